"""The ear Φ: constant-Q scalogram and joint time–frequency scattering (JTFS).

    U₁(t, λ₁)       = |x ∗ ψ_λ₁|(t)                                     scalogram
    S₁(t, λ₁)       = (U₁ ∗ φ_T)(t, λ₁)                                 averaged scalogram
    Y₂(t, λ₁; λ₂)   = (U₁ ∗ᵗ ψ_λ₂)(t, λ₁)                               wavelets in time, rate λ₂
    U₂(t, λ₁; path) = |Y₂ ∗^λ₁ ψ_fr|(t, λ₁)                             wavelets in log-frequency: scale, spin
    S₂(t, λ₁; path) = (U₂ ∗ᵗ φ_T ∗^λ₁ φ_F)(t, λ₁)                       averaged in time and log-frequency

after Andén, Lostanlen and Mallat (2019). The first order, too, is filtered along log-frequency:
|S₁ ∗^λ₁ ψ_fr|. Values are those of kymatio's development branch (class TimeFrequencyScattering, format
"time"): with T = "global" a path is *summed* over the frames of its own rate, padding included, which
evens out the rates.

Why it is fast: the modulus does not see a phase, so the band of a filter is cropped out of the
spectrum and moved into a short one, and one batched inverse FFT per rate makes all its filters; wavelets along
log-frequency are one dense product over the few bins that exist; frames of the padding that no wavelet
reaches from the sound are left out; averages come last, as they are linear. Tangents, whose band no
modulus widens, take half the frames (`path_sums.halving_filter`).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from .drum import N_SAMPLES, SAMPLE_RATE
from .filters import (
    FrequencyBank,
    FrequencyFilters,
    Octave,
    Rate,
    Scales,
    band,
    bands,
    filter_bank,
    low_pass,
    moved,
    padded_length,
    reach,
)
from .path_sums import FRAMES, HALO, halving_filter, modulus, path_sums, with_conjugates
from .runtime import at_least_one, full_precision

EPS = 1e-3  # ε of the log-compression: the papers'
BLOCK = 2**21  # complex values that a CPU filters at once: 16 MB, which allocators keep for the next block
CUDA_BLOCK = 2**25


def log_compress(S: Tensor, eps: float = EPS) -> Tensor:
    """log(1 + |S|/ε), of any shape; ε is about the median of the JTFS of a drum.

    Only the zeroth order, an average of the sound itself, can be negative; the modulus keeps its logarithm real.
    """
    return torch.log1p(S.abs() / eps)


def _check_whole(name: str, value: Any, low: int, high: float = math.inf, otherwise: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not low <= value <= high:
        raise ValueError(f"{name} must be {otherwise}a whole number in [{low}, {high:g}], got {value!r}")


class _Transform(nn.Module):
    """What Scalogram and JTFS share: padding, the first-order filters and the low-pass filter in time.

    Filters follow from the configuration, so that `state_dict` holds none.
    """

    def __init__(
        self,
        n_samples: int,
        J: int,
        Q: int,
        T: int | str,
        padding: str,
        sample_rate: float,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        if padding not in ("zero", "reflect"):
            raise ValueError(f'padding must be "zero" or "reflect", got {padding!r}')
        _check_whole("n_samples", n_samples, 2)
        _check_whole("J", J, 1, math.floor(math.log2(n_samples)))
        _check_whole("Q", Q, 1)
        if T != "global":
            _check_whole("T", T, 1, n_samples, '"global" or ')
        if not sample_rate > 0:
            raise ValueError(f"expected sample_rate > 0 Hz, got {sample_rate!r}")
        dtype = dtype or torch.get_default_dtype()
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
        self.n_samples, self.J, self.T, self.padding, self.sample_rate = n_samples, J, T, padding, sample_rate
        self.dtype = dtype  # in which the filters were made: what `to` converts later is no more exact than this
        self.negligible = torch.finfo(dtype).eps  # of a filter's largest value: what is smaller is not kept
        width = 2**J if isinstance(T, str) else T
        self.log2_T = math.floor(math.log2(width))
        self.N = padded_length(n_samples, width)
        self.pad_left = (self.N - n_samples) // 2
        self.pad_right = self.N - n_samples - self.pad_left
        first, last = self.pad_left, self.pad_left + n_samples
        for _ in range(self.log2_T):  # the frames of the signal itself, padding left out
            first, last = (first + 1) // 2, (last + 1) // 2
        self.frames = slice(first, last)
        self.bank_1 = filter_bank(J, Q)
        self.levels_1 = [self._level(each.level) for each in self.bank_1]
        self.octaves = tuple(self._octave(level) for level in sorted(set(self.levels_1)))
        phi_hat = low_pass(self.N, width)
        self.phi = tuple(self._periodized(phi_hat, level) for level in range(self.log2_T + 1))

    def _level(self, level: int) -> int:
        return level if self.T == "global" else min(level, self.log2_T)

    def _octave(self, level: int) -> Octave:
        members = [wavelet for wavelet, its in zip(self.bank_1, self.levels_1, strict=True) if its == level]
        start, psi = bands(self.N, members, self.N >> level, self.negligible)
        return Octave(level, self._tensor(psi / 2**level), torch.from_numpy(start))

    def _periodized(self, phi_hat: np.ndarray, level: int) -> Tensor:
        """The low-pass filter of signals sampled at step 2^level, as half a spectrum."""
        return self._tensor(phi_hat.reshape(2**level, -1).sum(0)[: self._average_length(level) // 2 + 1])

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.as_tensor(values, dtype=self.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "_Transform":
        """Called by `to`, `double`, `cuda` and their like: filters follow, as buffers would."""
        self.phi = tuple(map(fn, self.phi))
        self.octaves = tuple(moved(octave, fn) for octave in self.octaves)
        return super()._apply(fn, recurse)

    def _frames_near(self, reach: int, level: int) -> slice:
        """Frames at step 2^level, no further than `reach` samples from the sound itself."""
        first, last = self.pad_left - reach, self.pad_left + self.n_samples + reach
        return slice(max(first >> level, 0), min((last >> level) + 1, self.N >> level))

    def _average_length(self, level: int) -> int:
        """Frames at which the low-pass filter is applied: four times its output's rate leaves no aliasing."""
        return min(self.N >> level, 4 * (self.N >> self.log2_T))

    def _pad(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"expected audio as a floating-point tensor, got {kind}")
        if x.ndim == 0 or x.shape[-1] != self.n_samples:
            raise ValueError(f"expected audio of shape (..., {self.n_samples}), got {tuple(x.shape)}")
        try:
            finite = bool(x.detach().isfinite().all())
        except RuntimeError:  # inside vmap values cannot be read
            finite = True
        if not finite:
            raise ValueError("expected finite audio, got NaN or infinite samples")
        x = x.reshape(x.shape[:-1].numel(), self.n_samples).to(self.phi[0])
        return pad(x, (self.pad_left, self.pad_right), mode="constant" if self.padding == "zero" else "reflect")

    def _first_order(self, x: Tensor) -> Iterator[tuple[Octave, Tensor]]:
        """Yield x ∗ ψ_λ₁ (..., n, N/2ʲ), up to a phase, of padded sounds x (..., N), a few filters at a time."""
        x_hat = torch.fft.fft(x)
        for octave in self.octaves:
            bins = (octave.start[:, None] + torch.arange(octave.psi.shape[-1], device=octave.psi.device)) % self.N
            few = max(1, (CUDA_BLOCK if x.is_cuda else BLOCK) * 2**octave.level // x.numel())
            for some_bins, some_psi in zip(bins.split(few), octave.psi.split(few), strict=True):
                yield octave, torch.fft.ifft(x_hat[..., some_bins] * some_psi, n=self.N >> octave.level)

    def _average(self, U_hat: Tensor, level: int) -> Tensor:
        """(U ∗ φ_T) at step 2^log2_T, of the half spectrum (…, N/2^level/2 + 1) of a real U: (…, N/2^log2_T)."""
        n, length = self._average_length(level), self.N >> level
        smooth = torch.fft.irfft(U_hat[..., : n // 2 + 1] * self.phi[level], n=n) * (n / length)
        return smooth[..., :: n // (self.N >> self.log2_T)]

    @full_precision()
    def forward(self, x: Tensor) -> Tensor:
        S = self._each(self._pad(x)[:, None])[:, 0]
        return S.reshape(*x.shape[:-1], *S.shape[1:])

    @full_precision()
    def push(self, x: Tensor, dx: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients of sounds and their derivatives along K tangents, in one pass: forward-mode differentiation.

        Faster than `torch.func.jvp`, and, unlike it, not itself differentiable.

        Parameters
        ----------
        x : Tensor, shape (..., n_samples)
        dx : Tensor, shape (K, ..., n_samples)

        Returns
        -------
        S : Tensor, as the transform itself returns
        dS : Tensor, shape (K, *S.shape)

        Raises
        ------
        ValueError
            If the shapes do not agree, or the audio is of another length or not finite.
        """
        if dx.shape[1:] != x.shape:
            raise ValueError(f"expected tangents of shape (K, {str(tuple(x.shape))[1:]}, got {tuple(dx.shape)}")
        with torch.no_grad():
            stack = torch.cat([x[None], dx])
            S = self._each(self._pad(stack).unflatten(0, (len(stack), -1)).transpose(0, 1))
        S = S.transpose(0, 1).reshape(len(stack), *x.shape[:-1], *S.shape[2:])
        return S[0], S[1:]

    def _each(self, x: Tensor) -> Tensor:
        """Coefficients of padded sounds: one by one on a CPU, which keeps a chunk in its cache; else 5 GB at once."""
        few = 1 if x.device.type == "cpu" else max(1, 2**24 // x.shape[1:].numel())
        return torch.cat([self._transform(some) for some in at_least_one(x).split(few)])[: len(x)]

    def _transform(self, x: Tensor) -> Tensor:
        """Coefficients (B, D, ...) of padded sounds (B, D, N): along D lie a sound and its tangents, if any.

        All is linear but the moduli.
        """
        raise NotImplementedError


class Scalogram(_Transform):
    """Constant-Q scalogram, averaged in time: S₁(t, λ₁) = (|x ∗ ψ_λ₁| ∗ φ_T)(t).

    Parameters
    ----------
    n_samples : int
        Length of the sounds.
    J : int
        Octaves below the Nyquist frequency: the longest filters last about 2ᴶ samples.
    Q : int
        Wavelets per octave.
    T : int or "global"
        Width of the average and, rounded down to a power of two, step of the frames, in samples;
        "global" sums over time.
    padding : "zero" or "reflect"
    sample_rate : float, Hz
        For `frequencies` only, which are in cycles a sample if it is not given.
    dtype : torch.dtype, optional
        Of the filters; torch's default dtype if not given.

    Attributes
    ----------
    frequencies : ndarray, shape (n_filters,)
        Centre of each filter in Hz, descending.

    Called on audio (..., n_samples) it returns (..., n_filters, n_frames), without n_frames if T is "global".
    Raises ValueError on audio of another length.
    """

    def __init__(
        self,
        n_samples: int,
        J: int = 13,
        Q: int = 12,
        T: int | str = 256,
        padding: str = "zero",
        sample_rate: float = 1.0,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(n_samples, J, Q, T, padding, sample_rate, dtype)
        self.frequencies = np.array([each.xi for each in self.bank_1]) * sample_rate

    def _transform(self, x: Tensor) -> Tensor:
        filtered = self._first_order(x)
        S = torch.cat([self._average(torch.fft.rfft(modulus(U)), octave.level) for octave, U in filtered], -2)
        return S.sum(-1) if self.T == "global" else S[..., self.frames]


class JTFS(_Transform):
    """Joint time–frequency scattering of orders 0, 1 and 2.

    Parameters
    ----------
    n_samples, J, T, padding, sample_rate, dtype
        As in `Scalogram`. T = "global" sums over time.
    Q : pair of int
        Wavelets per octave of the first and of the second order.
    J_fr, Q_fr : int
        Octaves, and wavelets per octave, of the filters along log-frequency; the longest spans about 2^J_fr bins.
    F : int or "global"
        Width of the average along log-frequency in bins (Q[0] bins an octave) and, rounded down to a power of
        two, its step; "global" sums.

    Attributes
    ----------
    paths : pandas.DataFrame, P rows
        Of every coefficient: order; indices n1, n2, n_fr of its filters (−1: none); carrier in Hz (of the
        first-order filter), rate in Hz, scale in cycles per octave, spin (+1: rising or −1: falling; NaN: none).

    Called on audio (..., n_samples) it returns (..., P) if T is "global", else (..., P, n_frames).
    Raises ValueError on audio of another length, and at construction on an impossible configuration.
    """

    def __init__(
        self,
        n_samples: int,
        J: int = 13,
        Q: tuple[int, int] = (12, 1),
        J_fr: int = 5,
        Q_fr: int = 1,
        T: int | str = "global",
        F: int | str = 2,
        padding: str = "zero",
        sample_rate: float = 1.0,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not isinstance(Q, tuple | list) or len(Q) != 2:
            raise ValueError(f"Q must be two whole numbers, for the first and the second order, got {Q!r}")
        super().__init__(n_samples, J, Q[0], T, padding, sample_rate, dtype)
        _check_whole("Q of the second order", Q[1], 1)
        _check_whole("Q_fr", Q_fr, 1)
        n_bins = (J + 1) * Q[0]  # kymatio's bound on the number of first-order filters
        _check_whole("J_fr", J_fr, 1, math.floor(math.log2(n_bins)))
        if F != "global":
            _check_whole("F", F, 1, n_bins, '"global" or ')
        self.Q, self.J_fr, self.Q_fr, self.F = Q, J_fr, Q_fr, F

        self.bank_2 = filter_bank(J, Q[1])
        self.levels_2 = [self._level(each.level) for each in self.bank_2]
        frequency = FrequencyBank(n_bins, J_fr, Q_fr, F, self.negligible)
        self.bank_fr, self.log2_F, self.low_step = frequency.wavelets, frequency.log2_F, frequency.low_step
        H, response = halving_filter()
        self.halving = self._tensor(H)
        octaves_1 = [each.level for each in self.bank_1]
        n_inputs = [sum(j1 < each.level for j1 in octaves_1) for each in self.bank_2]
        heard = [n2 for n2, n in enumerate(n_inputs) if n > 0]
        self.rates = tuple(self._rate(n2, n_inputs[n2], frequency, response) for n2 in heard)
        # S₁ is real: its negative spins are no news.
        self.scales_1 = self._scales(frequency.filters(len(self.bank_1), (1,)))
        self.octaves = tuple(replace(octave, seen=self._seen(octave.level)) for octave in self.octaves)
        self.paths = self._describe(frequency)

    def _rate(
        self, n2: int, n_inputs: int, frequency: FrequencyBank, response: Callable[[np.ndarray], np.ndarray]
    ) -> Rate:
        wavelet, level = self.bank_2[n2], self.levels_2[n2]
        L = self.N >> level
        start, psi = band(self.N, wavelet, L, self.negligible)
        psi = psi / 2**level
        far = reach(wavelet.sigma, self.negligible) + reach(self.bank_1[n_inputs - 1].sigma, self.negligible)
        near = self._frames_near(far if self.padding == "zero" else self.N, level)
        half_psi = None
        # What the halving filter lets pass is below float32's rounding, but not below float64's.
        if self.T == "global" and self.dtype == torch.float32 and L >= 2 * max(len(psi), FRAMES):
            near = slice(near.start // FRAMES * FRAMES, -(-near.stop // FRAMES) * FRAMES)  # whole blocks
            f = ((L - len(psi)) // 2 + np.arange(len(psi)) - L // 2) / L
            half_psi = self._tensor(psi / response(f))
        scales = self._scales(frequency.filters(n_inputs, (1, -1)))
        return Rate(n2, level, n_inputs, start, self._tensor(psi), half_psi, near, scales)

    def _scales(self, filters: FrequencyFilters) -> Scales:
        W = self._tensor(np.concatenate([filters.W.real, filters.W.imag]))
        averages = tuple(map(self._tensor, filters.averages))
        return Scales(W, filters.n_low, filters.n_alone, averages, tuple(filters.starts))

    def _seen(self, level: int) -> tuple[int, int]:
        """Bins that any rate takes of the spectra of what the octave of this level puts out."""
        users = [rate for rate in self.rates if level in self.levels_1[: rate.n_inputs]]
        starts, stops = [rate.start for rate in users], [rate.start + len(rate.psi) for rate in users]
        return min([*starts, 0]), max([*stops, 0])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> _Transform:
        self.halving = fn(self.halving)
        self.scales_1 = moved(self.scales_1, fn)
        self.rates = tuple(moved(rate, fn) for rate in self.rates)
        return super()._apply(fn, recurse)

    def _describe(self, frequency: FrequencyBank) -> pd.DataFrame:
        """The table `paths`, in the order of the coefficients."""
        table = [(0, -1, -1, -1, 0)]
        for order, n2, n_inputs, spins in (
            (1, -1, len(self.bank_1), (1,)),
            *((2, rate.n2, rate.n_inputs, (1, -1)) for rate in self.rates),
        ):
            table += [(order, n1, n2, 0, 0) for n1 in frequency.low_bins(n_inputs)]
            for n in range(len(self.bank_fr)):
                for spin in spins:
                    n_fr = 1 + n + (0 if spin > 0 else len(self.bank_fr))
                    table += [(order, n1, n2, n_fr, spin) for n1 in frequency.out_bins(n_inputs)]
        paths = pd.DataFrame(table, columns=["order", "n1", "n2", "n_fr", "spin"])
        xi_1 = np.array([each.xi for each in self.bank_1] + [np.nan])
        xi_2 = np.array([each.xi for each in self.bank_2] + [np.nan])
        xi_fr = np.array([0.0] + 2 * [each.xi for each in self.bank_fr] + [np.nan])
        paths["carrier"] = xi_1[paths.n1] * self.sample_rate
        if self.F == "global":  # such a path has no carrier of its own
            paths.loc[paths.n_fr > 0, "carrier"] = np.nan
        paths["rate"] = xi_2[paths.n2] * self.sample_rate
        paths["scale"] = xi_fr[paths.n_fr] * self.Q[0]
        paths["spin"] = paths.spin.astype(float).where((paths.order == 2) & (paths.n_fr > 0))
        return paths

    def _wavelet_moduli(self, Y: Tensor, scales: Scales) -> Tensor:
        """|Y ∗ ψ_fr| (B, D, rows, t) of Y (B, D, n, t), complex."""
        return modulus(with_conjugates(scales.W, scales.n_alone) @ Y)

    def _frequency_average(self, U: Tensor, scales: Scales) -> Tensor:
        """Average moduli U (B, D, rows, t) along log-frequency to (B, D, paths, t)."""
        S = [U[..., : scales.n_low, :]]
        for average, starts in zip(scales.averages, scales.starts, strict=True):
            S += [average @ U[..., start : start + average.shape[1], :] for start in starts]
        return torch.cat(S, -2)

    def _bands(self, U_hat: Tensor, octave: Octave) -> Tensor:
        """The bins of U₁'s spectrum that any rate sees; those of negative frequencies are conjugates."""
        first, last = octave.seen
        return torch.cat([U_hat[..., 1 : 1 - first].flip(-1).conj(), U_hat[..., :last]], -1)

    def _second_order(self, bands: list[tuple[Octave, Tensor]], rate: Rate, halved: bool = False) -> Tensor:
        """Y₂ (…, n_inputs, N/2ʲ²), up to a phase, from the bands of U₁'s spectrum; or at half that rate."""
        psi = rate.half_psi if halved and rate.half_psi is not None else rate.psi
        Y_hat, missing = [], rate.n_inputs
        for octave, seen in bands:
            if missing == 0:
                break
            first = rate.start - octave.seen[0]
            Y_hat.append(seen[..., :missing, first : first + len(psi)] * (psi * 2**octave.level))
            missing -= Y_hat[-1].shape[-2]
        length = self.N >> rate.level + halved
        left = (length - len(psi)) // 2  # the band comes to lie in the middle
        return torch.fft.ifft(pad(torch.cat(Y_hat, -2), (left, length - left - len(psi))))

    def _sounding(self, bands: list[tuple[Octave, Tensor]], rate: Rate) -> list[Tensor]:
        """Y₂ (B, n_inputs, t) of each sound and of each of its tangents, where the sound reaches, for `path_sums`."""
        first, last = rate.sounding.start, rate.sounding.stop
        if bands[0][1].is_cuda:
            return list(self._second_order(bands, rate)[..., first:last].unbind(1))
        each = [[(octave, seen[:, d]) for octave, seen in bands] for d in range(bands[0][1].shape[1])]  # fits a cache
        if len(each) == 1 or rate.half_psi is None:
            return [self._second_order(one, rate)[..., first:last] for one in each]
        Y = self._second_order(each[0], rate)
        Y = Y[..., torch.arange(first - HALO, last - HALO + FRAMES, device=Y.device) % Y.shape[-1]]
        return [Y] + [self._second_order(one, rate, True)[..., first // 2 : last // 2] for one in each[1:]]

    def _transform(self, x: Tensor) -> Tensor:
        local = self.T != "global"
        chunk = 1024 if x.device.type == "cpu" else max(16, 2**16 // len(x))  # frames at once: 1 GB on a GPU
        averages, bands = [], []
        for octave, U in self._first_order(x):
            U_hat = torch.fft.rfft(modulus(U))
            averages.append(self._average(U_hat, octave.level))
            bands.append((octave, self._bands(U_hat, octave)))

        if local:
            S = [self._average(torch.fft.rfft(x), 0)[..., None, self.frames]]
        else:
            S = [x.sum(-1)[..., None, None]]
        S_1 = torch.cat(averages, -2)
        S_1 = self._wavelet_moduli(S_1 + 0j, self.scales_1)
        S_1 = self._frequency_average(S_1, self.scales_1)
        S.append(S_1[..., self.frames] if local else S_1.sum(-1, keepdim=True))
        for rate in self.rates:
            if local:
                Y = self._second_order(bands, rate)
                moduli = [
                    self._frequency_average(self._wavelet_moduli(part, rate.scales), rate.scales)
                    for part in Y.split(chunk, -1)
                ]
                U_2_hat = torch.fft.rfft(torch.cat(moduli, -1))
                S.append(self._average(U_2_hat, rate.level)[..., self.frames])
            else:
                sums = path_sums(rate.scales.W, self._sounding(bands, rate), rate.scales.n_alone, chunk, self.halving)
                S.append(self._frequency_average(sums[..., None], rate.scales))
        out = torch.cat(S, -2)
        return out if local else out[..., 0]


class LogScattering(nn.Module):
    """Log-compressed features Φ(x) = log(1 + |S(x)|/ε) of a transform S such as `JTFS` or `Scalogram`."""

    def __init__(self, transform: nn.Module, eps: float = EPS) -> None:
        super().__init__()
        self.transform, self.eps = transform, eps

    def forward(self, x: Tensor) -> Tensor:
        return log_compress(self.transform(x), self.eps)

    def push(self, x: Tensor, dx: Tensor) -> tuple[Tensor, Tensor]:
        """Φ(x) and its derivatives along tangents dx (K, ..., n_samples): `push` of the transform, compressed."""
        S, dS = self.transform.push(x, dx)  # type: ignore[operator]
        return log_compress(S, self.eps), dS * S.sign() / (S.abs() + self.eps)


def paper_features(dtype: torch.dtype | None = None) -> LogScattering:
    """The papers' Φ: audio (..., 65536) at 22 050 Hz → log-compressed JTFS (..., 5305)."""
    return LogScattering(JTFS(N_SAMPLES, sample_rate=SAMPLE_RATE, dtype=dtype))
