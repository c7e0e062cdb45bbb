"""The ear Φ: joint time–frequency scattering (JTFS).

    U₁(t, λ₁)       = |x ∗ ψ_λ₁|(t)                                     scalogram
    Y₂(t, λ₁; λ₂)   = (U₁ ∗ᵗ ψ_λ₂)(t, λ₁)                               wavelets in time, rate λ₂
    U₂(t, λ₁; path) = |Y₂ ∗^λ₁ ψ_fr|(t, λ₁)                             wavelets in log-frequency: scale, spin
    S₂(t, λ₁; path) = (U₂ ∗ᵗ φ_T ∗^λ₁ φ_F)(t, λ₁)                       averaged in time and log-frequency

after Andén, Lostanlen and Mallat (2019). The first order, too, is filtered along log-frequency:
|S₁ ∗^λ₁ ψ_fr|. Values are those of kymatio's development branch (class TimeFrequencyScattering, format
"time"): with T = "global" a path is *summed* over the frames of its own rate, padding included, which
evens out the rates.

Why it is fast, beyond what `scalogram` says of the first order: wavelets along log-frequency are one dense product
over the few bins that exist, which both spins share; frames of the padding that no wavelet reaches from the sound are
left out; fast rates, which hardly reach beyond it, are filtered on a circle little longer than the sound. Tangents,
whose band no modulus widens, take half the frames (`path_sums.halving_filter`).
"""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from scipy.fft import next_fast_len
from scipy.special import erfc
from torch import Tensor, nn
from torch.nn.functional import pad

from .drum import N_SAMPLES, SAMPLE_RATE
from .filters import (
    Band,
    Circle,
    FrequencyBank,
    FrequencyFilters,
    Octave,
    Rate,
    Scales,
    band,
    filter_bank,
    moved,
    reach,
)
from .metric import push
from .path_sums import FRAMES, HALO, halving_filter, modulus, path_sums, with_conjugates
from .runtime import check_whole
from .scalogram import EPS, Transform, log_compress

SMOOTH = 15.0  # steepness of the low-pass filter between the two circles: it falls by 14 decades where it may


class JTFS(Transform):
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
    Raises ValueError on audio of another length, of whole numbers, or with NaN or infinite samples, and at
    construction on an impossible configuration.
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
        sample_rate: float | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not isinstance(Q, tuple | list) or len(Q) != 2:
            raise ValueError(f"Q must be two whole numbers, for the first and the second order, got {Q!r}")
        super().__init__(n_samples, J, Q[0], T, padding, sample_rate, dtype)
        check_whole("Q of the second order", Q[1], 1)
        check_whole("Q_fr", Q_fr, 1)
        n_bins = (J + 1) * Q[0]  # kymatio's bound on the number of first-order filters
        check_whole("J_fr", J_fr, 1, math.floor(math.log2(n_bins)))
        if F != "global":
            check_whole("F", F, 1, n_bins, '"global" or ')
        self.Q, self.F = Q, F

        self.bank_2 = filter_bank(J, Q[1])
        self.levels_2 = [self._level(each.level) for each in self.bank_2]
        frequency = FrequencyBank(n_bins, J_fr, Q_fr, F, self.negligible)
        self.bank_fr, self.log2_F, self.low_step = frequency.wavelets, frequency.log2_F, frequency.low_step
        H, response = halving_filter()
        self.halving = self._tensor(H)
        octaves_1 = [each.level for each in self.bank_1]
        n_inputs = [sum(j1 < each.level for j1 in octaves_1) for each in self.bank_2]
        heard = [n2 for n2, n in enumerate(n_inputs) if n > 0]
        self.fast_level, short = self._short_circle({n2: n_inputs[n2] for n2 in heard})
        circles = {n2: short if self.levels_2[n2] <= self.fast_level else self.circle for n2 in heard}
        self.rates = tuple(self._rate(n2, n_inputs[n2], circles[n2], frequency, response) for n2 in heard)
        # S₁ is real: its negative spins are no news.
        self.scales_1 = self._scales(frequency.filters(len(self.bank_1), (1,)))
        self.octaves = tuple(self._heard_octave(level, short) for level in sorted(set(self.levels_1)))
        self.slow_seen = self._seen([rate for rate in self.rates if rate.circle == self.circle])
        self.paths = self._describe(frequency)

    def _short_circle(self, n_inputs: dict[int, int]) -> tuple[int, Circle]:
        """Level up to which rates, of n_inputs each, are filtered on a shorter circle, and that circle.

        So are the octaves that they hear. For slower rates, these are handed on to the long circle, smoothed.
        The sound may reach as far as a sixteenth of its length. Level 0 if none is so short.
        """
        best = 0, self.circle
        if self.T != "global" or self.padding != "zero":
            return best
        for level in sorted({self.levels_2[n2] for n2 in n_inputs}):
            fast = [n2 for n2 in n_inputs if self.levels_2[n2] <= level]
            heard = reach(self.bank_1[max(n_inputs[n2] for n2 in fast) - 1].sigma, self.negligible)
            smoothed = reach(2.0**-level / (math.sqrt(2) * SMOOTH), self.negligible)
            far = max([self._far(n2, n_inputs[n2]) for n2 in fast] + [heard + smoothed])
            left = far + (self.pad_left - far) % 2**level
            blocks = next_fast_len(-(-(left + self.n_samples + far) // (FRAMES << level)))
            circle = Circle(blocks * (FRAMES << level), left)
            if far <= self.n_samples // 16 and circle.length < 0.9 * self.N:
                best = level, circle
        return best

    def _far(self, n2: int, n_inputs: int) -> int:
        """Samples from a sound at which its Y₂ is negligible."""
        return reach(self.bank_2[n2].sigma, self.negligible) + reach(self.bank_1[n_inputs - 1].sigma, self.negligible)

    def _heard_octave(self, level: int, short: Circle) -> Octave:
        """An octave with what the rates need of it, on the short circle if fast ones hear it."""
        is_fast = level < self.fast_level
        octave = self._octave(level, short if is_fast else self.circle)
        on_circle = [rate for rate in self.rates if rate.circle == octave.circle]
        users = [rate for rate in on_circle if level in self.levels_1[: rate.n_inputs]]
        octave = replace(octave, seen=self._seen(users))
        if not is_fast:
            return octave
        last = self.fast_level - 1
        smooth = np.ones((short.length >> last + 1) + 1)
        if level < last:  # 1 where the slow rates lie, 0 at their frames' Nyquist frequency
            smooth = erfc(SMOOTH * (np.linspace(0, 1, len(smooth)) - 0.65)) / 2
        return replace(octave, smooth=self._tensor(smooth * 2.0 ** (level - last)))

    def _rate(
        self,
        n2: int,
        n_inputs: int,
        circle: Circle,
        frequency: FrequencyBank,
        response: Callable[[np.ndarray], np.ndarray],
    ) -> Rate:
        wavelet, level = self.bank_2[n2], self.levels_2[n2]
        L = circle.length >> level
        start, psi = band(circle.length, wavelet, L, self.negligible)
        psi = psi / 2**level
        far = self._far(n2, n_inputs) if self.padding == "zero" else self.N
        near = self._frames_near(far, level, circle)
        half_psi = None
        # What the halving filter lets pass is below float32's rounding, but not below float64's.
        if self.T == "global" and self.dtype == torch.float32 and L >= 2 * max(len(psi), FRAMES):
            near = slice(near.start // FRAMES * FRAMES, -(-near.stop // FRAMES) * FRAMES)  # whole blocks
            f = ((L - len(psi)) // 2 + np.arange(len(psi)) - L // 2) / L
            half_psi = self._tensor(psi / response(f))
        scales = self._scales(frequency.filters(n_inputs, (1, -1)))
        return Rate(n2, level, circle, n_inputs, start, self._tensor(psi), half_psi, near, scales)

    def _scales(self, filters: FrequencyFilters) -> Scales:
        W = self._tensor(np.concatenate([filters.W.real, filters.W.imag]))
        averages = tuple(map(self._tensor, filters.averages))
        return Scales(W, filters.n_low, filters.n_alone, averages, tuple(filters.starts))

    @staticmethod
    def _seen(rates: list[Rate]) -> tuple[int, int]:
        """Bins that any rate takes of the spectra of what it hears."""
        starts, stops = [rate.start for rate in rates], [rate.start + len(rate.psi) for rate in rates]
        return min([*starts, 0]), max([*stops, 0])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Transform:
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
        paths["carrier"] = xi_1[paths.n1] * (self.sample_rate or 1)
        if self.F == "global":  # such a path has no carrier of its own
            paths.loc[paths.n_fr > 0, "carrier"] = np.nan
        paths["rate"] = xi_2[paths.n2] * (self.sample_rate or 1)
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

    def _handed_on(self, U_hat: Tensor, octave: Octave, smooth: Tensor) -> Tensor:
        """Spectrum of U₁ on the long circle, from that on the short one, at the step of the last octave there."""
        level = self.fast_level - 1
        n, left = octave.circle.length >> level, (self.pad_left - octave.circle.left) >> level
        U = torch.fft.irfft(U_hat[..., : n // 2 + 1] * smooth, n)
        return torch.fft.rfft(pad(U, (left, (self.N >> level) - left - n)))

    @staticmethod
    def _band(U_hat: Tensor, level: int, seen: tuple[int, int]) -> Band:
        """The bins of U₁'s spectrum that any rate sees; those of negative frequencies are conjugates."""
        first, last = seen
        return Band(level, first, torch.cat([U_hat[..., 1 : 1 - first].flip(-1).conj(), U_hat[..., :last]], -1))

    def _second_order(self, bands: list[Band], rate: Rate, halved: bool = False) -> Tensor:
        """Y₂ (…, n_inputs, frames), up to a phase, from the bands of U₁'s spectrum; or at half that rate."""
        psi = rate.half_psi if halved and rate.half_psi is not None else rate.psi
        length = rate.circle.length >> rate.level + halved
        left = (length - len(psi)) // 2  # the band comes to lie in the middle
        Y_hat = bands[0].values.new_zeros(*bands[0].values.shape[:-2], rate.n_inputs, length)
        row = 0
        for level, first, seen in bands:
            if row == rate.n_inputs:
                break
            start = rate.start - first
            stretch = seen[..., : rate.n_inputs - row, start : start + len(psi)]
            Y_hat[..., row : row + stretch.shape[-2], left : left + len(psi)] = stretch * (psi * 2**level)
            row += stretch.shape[-2]
        return torch.fft.ifft(Y_hat)

    def _sounding(self, bands: list[Band], rate: Rate) -> list[Tensor]:
        """Y₂ (B, n_inputs, t) of each sound and of each of its tangents, where the sound reaches, for `path_sums`."""
        first, last = rate.sounding.start, rate.sounding.stop
        n = bands[0].values.shape[1]
        few = max(1, n - 1) if bands[0].values.is_cuda else 1  # tangents at once: one fits a CPU's cache
        halved = n > 1 and rate.half_psi is not None

        def part(d: int, few: int, halved: bool) -> Tensor:
            return self._second_order([b._replace(values=b.values[:, d : d + few]) for b in bands], rate, halved)

        Y = part(0, 1, False)
        if halved:
            Y = Y[..., torch.arange(first - HALO, last - HALO + FRAMES, device=Y.device) % Y.shape[-1]]
            first, last = first // 2, last // 2
        else:
            Y = Y[..., first:last]
        parts = [part(d, few, halved)[..., first:last] for d in range(1, n, few)]
        return [y for each in (Y, *parts) for y in each.unbind(1)]

    def _transform(self, x: Tensor) -> Tensor:
        local = self.T != "global"
        chunk = frames_at_once(len(x), x.device)
        averages, fast, slow = [], [], []
        for octave, U in self._first_order(x):
            U_hat, level, seen = torch.fft.rfft(modulus(U)), octave.level, octave.seen
            if octave.smooth is not None:
                fast.append(self._band(U_hat, level, seen))
                U_hat, level, seen = self._handed_on(U_hat, octave, octave.smooth), self.fast_level - 1, self.slow_seen
            averages.append(self._average(U_hat, level))
            slow.append(self._band(U_hat, level, seen))

        x = self._pad(x, self.circle)
        if local:
            S = [self._average(torch.fft.rfft(x), 0)[..., None, self.frames]]
        else:
            S = [x.sum(-1)[..., None, None]]
        S_1 = torch.cat(averages, -2)
        S_1 = self._wavelet_moduli(S_1 + 0j, self.scales_1)
        S_1 = self._frequency_average(S_1, self.scales_1)
        S.append(S_1[..., self.frames] if local else S_1.sum(-1, keepdim=True))
        for rate in self.rates:
            bands = slow if rate.circle == self.circle else fast
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


def frames_at_once(n_sounds: int, device: torch.device) -> int:
    """Of each path, what a CPU's cache or 1 GB of a GPU holds: whole blocks, which `path_sums` halves."""
    return 512 if device.type == "cpu" else max(1, 2**16 // (n_sounds * FRAMES)) * FRAMES


class LogScattering(nn.Module):
    """Log-compressed features Φ(x) = log(1 + |S(x)|/ε) of a transform S (Han, Lostanlen and Lagrange, 2023).

    Parameters
    ----------
    transform : Module
        S: sounds (..., n_samples) to coefficients, such as `JTFS` or `Scalogram`.
    eps : float
        ε > 0, in the units of S; by default the papers'.

    Called on sounds it returns Φ, in the shape of S. Raises ValueError unless ε > 0, and as the transform does.
    """

    def __init__(self, transform: nn.Module, eps: float = EPS) -> None:
        super().__init__()
        if not eps > 0:
            raise ValueError(f"expected eps > 0, got {eps}")
        self.transform, self.eps = transform, eps
        self.sample_rate = getattr(transform, "sample_rate", None)

    def forward(self, x: Tensor) -> Tensor:
        return log_compress(self.transform(x), self.eps)

    def push(self, x: Tensor, dx: Tensor) -> tuple[Tensor, Tensor]:
        """Φ(x) and its derivatives along tangents dx (K, ..., n_samples): those of the transform, compressed."""
        S, dS = push(self.transform, x, dx)
        dS = dS.movedim(-1, 0)
        return log_compress(S, self.eps), dS * S.sign() / (S.abs() + self.eps)


def paper_features(dtype: torch.dtype | None = None) -> LogScattering:
    """The papers' Φ: audio (..., 65536) at 22 050 Hz → log-compressed JTFS (..., 5305)."""
    return LogScattering(JTFS(N_SAMPLES, sample_rate=SAMPLE_RATE, dtype=dtype))
