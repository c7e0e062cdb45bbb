"""The ear Φ: constant-Q scalogram and joint time–frequency scattering (JTFS).

    U₁(t, λ₁)       = |x ∗ ψ_λ₁|(t)                                     scalogram
    S₁(t, λ₁)       = (U₁ ∗ φ_T)(t, λ₁)                                 averaged scalogram
    Y₂(t, λ₁; λ₂)   = (U₁ ∗ᵗ ψ_λ₂)(t, λ₁)                               wavelets in time, rate λ₂
    U₂(t, λ₁; path) = |Y₂ ∗^λ₁ ψ_fr|(t, λ₁)                             wavelets in log-frequency: scale, spin
    S₂(t, λ₁; path) = (U₂ ∗ᵗ φ_T ∗^λ₁ φ_F)(t, λ₁)                       averaged in time and log-frequency

after Andén, Lostanlen and Mallat (2019). The first order, too, is filtered along log-frequency:
|S₁ ∗^λ₁ ψ_fr|. Filters are kymatio's, and so are all values (its development branch, class
TimeFrequencyScattering, format "time"): with T = "global" a path is *summed* over the frames of
its own rate, padding included, which evens out the rates.

Why it is fast: the modulus does not see a phase, so the band of a filter is cropped out of the
spectrum and moved into a short one, and one batched inverse FFT per rate makes all its filters; wavelets along
log-frequency are one dense product over the few bins that exist; frames of the padding that no wavelet
reaches from the sound are left out; averages come last, as they are linear. Tangents, whose band no
modulus widens, take half the frames (`_halving_filter`).
"""

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from kymatio.scattering1d.filter_bank import (
    compute_params_filterbank,
    compute_temporal_support,
    gauss_1d,
    morlet_1d,
)
from torch import Tensor, nn
from torch.nn.functional import pad

from .drum import N_SAMPLES, SAMPLE_RATE

SIGMA_0 = 0.1  # bandwidth of a low-pass filter of unit width, in cycles per sample: kymatio's
ALPHA = 5.0  # bandwidths kept above a filter's centre when its output is subsampled: kymatio's
EPS = 1e-3  # ε of the log-compression: the papers'
BLOCK = 2**21  # complex values that a CPU filters at once: 16 MB, which allocators keep for the next block
CUDA_BLOCK = 2**25
HALO, FRAMES = 8, 32  # of the filter that halves a rate: its reach, and frames filtered at once


def log_compress(S: Tensor, eps: float = EPS) -> Tensor:
    """log(1 + |S|/ε), of any shape; ε is about the median of the JTFS of a drum.

    Only the zeroth order, an average of the sound itself, can be negative; the modulus keeps its logarithm real.
    """
    return torch.log1p(S.abs() / eps)


def _filter_bank(J: int, Q: int) -> list[tuple[float, float, int]]:
    """Centre ξ and width σ in cycles per sample, and log₂ of the coarsest sampling step, of each wavelet."""
    return list(zip(*compute_params_filterbank(SIGMA_0 / 2**J, Q, ALPHA), strict=True))


def _padded_length(n_samples: int, T: float) -> int:
    """Length, a power of two, that leaves room for three supports of the low-pass filter on each side."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "support too small": it is capped below
        support = compute_temporal_support(gauss_1d(n_samples, SIGMA_0 / T)[None], criterion_amplitude=1e-3)
    wanted = math.ceil(math.log2(n_samples + 6 * support))
    return 2 ** min(wanted, math.floor(math.log2(3 * n_samples - 2)))


def _band(filter_hat: np.ndarray, xi: float, width: int, negligible: float) -> tuple[int, np.ndarray]:
    """First bin and values of the stretch of the spectrum, at most `width` bins, in which a filter lives."""
    N = len(filter_hat)
    left = round(xi * N) - width // 2
    window = filter_hat[np.arange(left, left + width) % N]
    kept = np.flatnonzero(np.abs(window) > negligible * np.abs(filter_hat).max())
    return left + kept[0], window[kept[0] : kept[-1] + 1]


def _unit(z: Tensor, modulus: Tensor) -> Tensor:
    """z/|z|, and 0 where z = 0: the direction in which |z| grows."""
    return torch.where(modulus > 0, z / modulus, 0)


class _Modulus(torch.autograd.Function):
    """|Z| of a complex Z: torch's own is six times slower on a CPU, and its hypot has no derivative at 0."""

    generate_vmap_rule = True

    @staticmethod
    def forward(Z: Tensor) -> Tensor:
        return torch.hypot(Z.real, Z.imag)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs, output)
        ctx.save_for_forward(*inputs, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        Z, modulus = ctx.saved_tensors
        return grad * _unit(Z, modulus)

    @staticmethod
    def jvp(ctx: Any, dZ: Tensor) -> Tensor:
        Z, modulus = ctx.saved_tensors
        unit = _unit(Z, modulus)
        return unit.real * dZ.real + unit.imag * dZ.imag


class _PathSums(torch.autograd.Function):
    """Σ_t |W Y(t)| (B, R) of W (R, n) and Y (B, n, t): wavelets along log-frequency, modulus, sum over time.

    Nothing of size (R, t) outlives a chunk of time; derivatives recompute it. Complex numbers are stacked
    as [Re; Im], so that one real product [[Re W, −Im W], [Im W, Re W]] [Re Y; Im Y] does it all. And the
    sum lets five tangents cost five products of the same size, without five moduli, for with Ẑ = W Y/|W Y|

        d Σ_t |W Y| = Σ_t Re(Ẑ* · W dY) = Re Σ_n W · (Σ_t Ẑ* dYᵀ).
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(W: Tensor, Y: Tensor, chunk: int) -> Tensor:  # W (2R, 2n), Y (B, 2n, t), both real
        R = len(W) // 2
        sums = []
        for y in Y.split(chunk, -1):
            Z = W @ y
            if Z.is_cuda:  # one pass over its memory; a CPU's hypot is slow
                modulus = torch.hypot(Z[:, :R], Z[:, R:])
            else:
                square = Z.mul_(Z)
                modulus = (square[:, :R] + square[:, R:]).sqrt_()
            sums.append(modulus.sum(-1))
        return torch.stack(sums).sum(0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        W, Y, ctx.chunk = inputs
        ctx.save_for_backward(W, Y)
        ctx.save_for_forward(W, Y)

    @staticmethod
    def _units(W: Tensor, y: Tensor) -> Tensor:
        """Ẑ (B, 2R, t) as [Re; Im]."""
        Z = W @ y
        re, im = Z.chunk(2, 1)
        inverse = (re * re + im * im).clamp_min_(torch.finfo(Z.dtype).tiny).rsqrt_()
        re.mul_(inverse)
        im.mul_(inverse)
        return Z

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        W, Y = ctx.saved_tensors
        grad = torch.cat([grad, grad], -1)[..., None]
        return None, torch.cat([W.T @ (grad * _PathSums._units(W, y)) for y in Y.split(ctx.chunk, -1)], -1), None

    @staticmethod
    def jvp(ctx: Any, dW: None, dY: Tensor, dchunk: None) -> Tensor:
        W, Y = ctx.saved_tensors
        pairs = zip(Y.split(ctx.chunk, -1), dY.split(ctx.chunk, -1), strict=True)
        correlation = sum(_PathSums._units(W, y) @ dy.mT for y, dy in pairs)
        return (W * correlation).sum(-1).unflatten(-1, (2, -1)).sum(-2)


def _modulus(Z: Tensor) -> Tensor:
    """|Z| of Z (B, 1, …), or, of Z and its K tangents (B, 1 + K, …), |Z| and its derivatives Re(Ẑ* dZ)."""
    if Z.shape[1] == 1:
        return _Modulus.apply(Z)
    out = torch.empty(Z.shape, dtype=Z.real.dtype, device=Z.device)
    torch.hypot(Z[:, :1].real, Z[:, :1].imag, out=out[:, :1])
    inverse = out[:, :1].clamp_min(torch.finfo(out.dtype).tiny).reciprocal_()  # where Z = 0, Ẑ is 0, too
    torch.mul(Z[:, 1:].real, Z[:, :1].real * inverse, out=out[:, 1:])
    out[:, 1:].addcmul_(Z[:, 1:].imag, Z[:, :1].imag * inverse)
    return out


def _halving_filter() -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """Filter that lets tangents dY of a sum over time have half the frames, at the price of filtering Ẑ once.

    dY fills less than half of its spectrum: only the modulus of Y needs the other half. For a short low-pass h, then,

        dY(t) = Σ_s h(t − 2s) dY′(s)    and    Σ_t Ẑ*(t) dY(t) = Σ_s (Σ_t h(t − 2s) Ẑ(t))* dY′(s)

    if the spectrum of dY′ is that of dY divided by the response of h. What h lets pass beyond its half is the less, the
    larger ψ_λ₂ is there: together they leave less than 10⁻⁷. Bands lie in the middle of their spectra, where h
    is a low-pass that alternates in sign.

    Returns
    -------
    H : ndarray, shape (FRAMES + 2 HALO, FRAMES / 2)
        From a block of frames, and the 2 HALO that follow it, to its frames at half the rate, HALO frames later.
    response : callable
        Of h, at frequencies f, in cycles per frame, from the middle of the spectrum.
    """
    h, k = np.kaiser(2 * HALO + 1, 16.5), np.arange(-HALO, HALO + 1)
    H = np.zeros((FRAMES + 2 * HALO, FRAMES // 2))
    for s in range(FRAMES // 2):
        H[2 * s : 2 * s + len(h), s] = h * (-1.0) ** (k + s)
    return H, lambda f: np.cos(2 * np.pi * f[:, None] * k) @ h


def _halve(Z: Tensor, H: Tensor) -> Tensor:
    """Z (B, R, t + FRAMES) at half the rate: (B, R, t/2), of frames HALO later."""
    blocks = Z.view(-1, FRAMES)
    out = blocks @ H[:FRAMES]
    out[:-1].addmm_(blocks[1:, : 2 * HALO], H[FRAMES:])
    return out.view(*Z.shape[:-1], -1)[..., : -FRAMES // 2]


def _path_sums(W: Tensor, Y: list[Tensor], chunk: int, H: Tensor) -> Tensor:
    """`_PathSums` of a complex Y (B, n, t), and its derivatives along the K tangents that follow: (B, 1 + K, R).

    With tangents the wavelets are applied once for value and derivatives. On a CPU the complex product Ẑ* dYᵀ takes
    three real ones: with Ẑ = u + iv and dY = p + iq,

        Re W (u − iv)(p + iq) = (Re W − Im W) (u − v)p + Re W v(p + q) + Im W u(p − q).

    Tangents of half the rate are (B, n, t/2), and the value then has FRAMES more, HALO of them before its first.
    A GPU, which products keep less busy than memory does, is faster with complex numbers.
    """
    y, *dY = Y
    if not dY:
        return _PathSums.apply(W, torch.cat([y.real, y.imag], -2), chunk)[:, None]
    if W.is_cuda:
        return _complex_path_sums(W, Y, chunk)
    (B, n, t), K, R = y.shape, len(dY), len(W) // 2
    halved = dY[0].shape[-1] != t
    step, before, halo = (2, HALO, FRAMES) if halved else (1, 0, 0)
    y = torch.cat([y.real, y.imag], -2)
    sums = W.new_zeros(B, R)
    products = [W.new_zeros(B, K * n, R) for _ in range(3)]
    first = 0
    for dy in zip(*(d.split(chunk, -1) for d in dY), strict=True):
        frames = step * dy[0].shape[-1]
        Z = W @ y[..., first : first + frames + halo]
        first += frames
        u, v = Z.chunk(2, 1)
        modulus = (u * u).addcmul_(v, v).sqrt_()
        sums += modulus[..., before : before + frames].sum(-1)
        inverse = modulus.clamp_min_(torch.finfo(W.dtype).tiny).reciprocal_()
        u.mul_(inverse)
        v.mul_(inverse)
        if halved:
            u, v = _halve(Z, H).chunk(2, 1)
        p, q = torch.cat([d.real for d in dy], -2), torch.cat([d.imag for d in dy], -2)
        for product, tangents, units in zip(products, (p, p + q, p - q), (u - v, v, u), strict=True):
            product.baddbmm_(tangents, units.mT)
    W_re, W_im = W[:R, :n].mT.contiguous(), W[R:, :n].mT.contiguous()  # (n, R)
    weighted = zip(products, (W_re - W_im, W_re, W_im), strict=True)
    tangents = sum(product.unflatten(1, (K, n)).mul_(w).sum(2) for product, w in weighted)
    return torch.cat([sums[:, None], tangents], 1)


def _complex_path_sums(W: Tensor, Y: list[Tensor], chunk: int) -> Tensor:
    """`_path_sums` with tangents, in complex numbers."""
    (B, n, _), K, R = Y[0].shape, len(Y) - 1, len(W) // 2
    sums = W.new_zeros(B, R)
    W = torch.complex(W[:R, :n], W[R:, :n])
    product = W.new_zeros(B, K * n, R)
    for y, *dy in zip(*(each.split(chunk, -1) for each in Y), strict=True):
        Z = W @ y
        sums += Z.abs().sum(-1)
        product.baddbmm_(torch.cat(dy, -2), Z.sgn_().mH)
    tangents = (product.unflatten(1, (K, n)) * W.mT).sum(2).real
    return torch.cat([sums[:, None], tangents], 1)


def _check_whole(name: str, value: Any, low: int, high: float = math.inf, otherwise: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not low <= value <= high:
        raise ValueError(f"{name} must be {otherwise}a whole number in [{low}, {high:g}], got {value!r}")


class _Transform(nn.Module):
    """What Scalogram and JTFS share: padding, the first-order filters and the low-pass filter in time."""

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
        self.N = _padded_length(n_samples, width)
        self.pad_left = (self.N - n_samples) // 2
        self.pad_right = self.N - n_samples - self.pad_left
        first, last = self.pad_left, self.pad_left + n_samples
        for _ in range(self.log2_T):  # the frames of the signal itself, padding left out
            first, last = (first + 1) // 2, (last + 1) // 2
        self.frames = slice(first, last)

        # First order: filters grouped by the step 2ʲ at which their output may be sampled.
        self.bank_1 = _filter_bank(J, Q)
        self.levels_1 = [j if T == "global" else min(j, self.log2_T) for _, _, j in self.bank_1]
        for level in sorted(set(self.levels_1)):
            members = [n for n, k in enumerate(self.levels_1) if k == level]
            bands = []
            for n in members:
                xi, sigma, _ = self.bank_1[n]
                bands.append(_band(morlet_1d(self.N, xi, sigma), xi, self.N >> level, self.negligible))
            size = max(len(values) for _, values in bands)
            psi = np.stack([np.pad(values, (0, size - len(values))) for _, values in bands]) / 2**level
            self._buffer(f"psi_1_{level}", psi)
            self.register_buffer(f"start_1_{level}", torch.tensor([start for start, _ in bands]))
        phi_hat = gauss_1d(self.N, SIGMA_0 / width)
        for level in range(self.log2_T + 1):  # periodized: the low-pass filter of signals sampled at step 2^level
            periodized = phi_hat.reshape(2**level, -1).sum(0)
            self._buffer(f"phi_{level}", periodized[: self._average_length(level) // 2 + 1])

    phi_0: Tensor

    def _buffer(self, name: str, values: np.ndarray, persistent: bool = True) -> None:
        self.register_buffer(name, torch.as_tensor(values, dtype=self.dtype), persistent=persistent)

    def _reach(self, sigma: float) -> int:
        """Samples from its middle at which a wavelet of width σ, a Gaussian in time too, is negligible."""
        return math.ceil(math.sqrt(-2 * math.log(self.negligible)) / (2 * math.pi * sigma))

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
        x = x.reshape(-1, self.n_samples).to(self.phi_0)
        pad = (self.pad_left, self.pad_right)
        return nn.functional.pad(x, pad, mode="constant" if self.padding == "zero" else "reflect")

    def _first_order(self, x: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield j and x ∗ ψ_λ₁ (..., n, N/2ʲ), up to a phase, of padded sounds x (..., N), a few filters at a time."""
        x_hat = torch.fft.fft(x)
        for level in sorted(set(self.levels_1)):
            psi, start = getattr(self, f"psi_1_{level}"), getattr(self, f"start_1_{level}")
            bins = (start[:, None] + torch.arange(psi.shape[-1], device=psi.device)) % self.N
            few = max(1, (CUDA_BLOCK if x.is_cuda else BLOCK) * 2**level // x.numel())
            for some_bins, some_psi in zip(bins.split(few), psi.split(few), strict=True):
                yield level, torch.fft.ifft(x_hat[..., some_bins] * some_psi, n=self.N >> level)

    def _average(self, U_hat: Tensor, level: int) -> Tensor:
        """(U ∗ φ_T) at step 2^log2_T, of the half spectrum (…, N/2^level/2 + 1) of a real U: (…, N/2^log2_T)."""
        n, length = self._average_length(level), self.N >> level
        smooth = torch.fft.irfft(U_hat[..., : n // 2 + 1] * getattr(self, f"phi_{level}"), n=n) * (n / length)
        return smooth[..., :: n // (self.N >> self.log2_T)]

    def forward(self, x: Tensor) -> Tensor:
        S = self._each(self._pad(x)[:, None])[:, 0]
        return S.reshape(*x.shape[:-1], *S.shape[1:])

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
        few = 1 if x.device.type == "cpu" else max(1, 2**24 // x[0].numel())
        return torch.cat([self._transform(some) for some in x.split(few)])

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
        For `frequencies` only.
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
        n_samples: int = N_SAMPLES,
        J: int = 13,
        Q: int = 12,
        T: int | str = 256,
        padding: str = "zero",
        sample_rate: float = SAMPLE_RATE,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(n_samples, J, Q, T, padding, sample_rate, dtype)
        self.frequencies = np.array([xi for xi, _, _ in self.bank_1]) * sample_rate

    def _transform(self, x: Tensor) -> Tensor:
        filtered = self._first_order(x)
        S = torch.cat([self._average(torch.fft.rfft(_modulus(U)), level) for level, U in filtered], -2)
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

    halving: Tensor

    def __init__(
        self,
        n_samples: int = N_SAMPLES,
        J: int = 13,
        Q: tuple[int, int] = (12, 1),
        J_fr: int = 5,
        Q_fr: int = 1,
        T: int | str = "global",
        F: int | str = 2,
        padding: str = "zero",
        sample_rate: float = SAMPLE_RATE,
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

        # Second order in time.
        self.bank_2 = _filter_bank(J, Q[1])
        octaves_1 = [j for _, _, j in self.bank_1]
        self.n_inputs = [sum(j1 < j2 for j1 in octaves_1) for _, _, j2 in self.bank_2]  # bins with j₁ < j₂
        self.rates = [n2 for n2, n_input in enumerate(self.n_inputs) if n_input > 0]
        self.levels_2 = [j if T == "global" else min(j, self.log2_T) for _, _, j in self.bank_2]
        self.start_2 = {}
        self.sounding = {}  # frames of each rate that the sound reaches: all others are zero
        H, response = _halving_filter()
        self._buffer("halving", H, persistent=False)
        for n2 in self.rates:
            xi, sigma, _ = self.bank_2[n2]
            start, psi = _band(morlet_1d(self.N, xi, sigma), xi, self.N >> self.levels_2[n2], self.negligible)
            self.start_2[n2] = start
            psi = psi / 2 ** self.levels_2[n2]
            self._buffer(f"psi_2_{n2}", psi)
            reach = self._reach(sigma) + self._reach(self.bank_1[self.n_inputs[n2] - 1][1])
            near = self._frames_near(reach if padding == "zero" else self.N, self.levels_2[n2])
            L = self.N >> self.levels_2[n2]
            # What the halving filter lets pass is below float32's rounding, but not below float64's.
            if T == "global" and self.dtype == torch.float32 and L >= 2 * max(len(psi), FRAMES):
                near = slice(near.start // FRAMES * FRAMES, -(-near.stop // FRAMES) * FRAMES)  # whole blocks
                f = ((L - len(psi)) // 2 + np.arange(len(psi)) - L // 2) / L
                self._buffer(f"half_psi_2_{n2}", psi / response(f), persistent=False)
            self.sounding[n2] = near
        self.seen = {}  # bins that any rate takes of the spectra of a level's filters
        for level in set(self.levels_1):
            users = [n2 for n2 in self.rates if level in self.levels_1[: self.n_inputs[n2]]]
            starts = [self.start_2[n2] for n2 in users]
            stops = [self.start_2[n2] + len(getattr(self, f"psi_2_{n2}")) for n2 in users]
            self.seen[level] = min(starts + [0]), max(stops + [0])

        # Along log-frequency: wavelets of both spins.
        width = 2**J_fr if isinstance(F, str) else F
        self.log2_F = math.floor(math.log2(width))
        self.N_fr = int(n_bins + 8 * min(width, 2**J_fr)) // 2**J_fr * 2**J_fr
        self.bank_fr = _filter_bank(J_fr, Q_fr)
        self.low_step = 2**J_fr
        phi_low = np.fft.ifft(gauss_1d(self.N_fr, SIGMA_0 / 2**J_fr)).real
        phi_F = np.fft.ifft(gauss_1d(self.N_fr, SIGMA_0 / width)).real
        psi_fr = {
            spin: [np.fft.ifft(morlet_1d(self.N_fr, spin * xi, sigma)) for xi, sigma, _ in self.bank_fr]
            for spin in (1, -1)
        }
        levels_fr = [j if F == "global" else min(j, self.log2_F) for *_, j in self.bank_fr]

        self.blocks: dict[int, list[tuple[int, int]]] = {}  # of each rate and wavelet: spins, rows a spin
        table = [(0, -1, -1, -1, 0)]
        for n2 in [-1, *self.rates]:  # −1: the first order
            order, n_input = (1, len(self.bank_1)) if n2 < 0 else (2, self.n_inputs[n2])
            low_bins = np.arange(0, n_input, self.low_step)
            rows = [phi_low[(low_bins[:, None] - np.arange(n_input)) % self.N_fr].astype(complex)]
            table += [(order, n1, n2, 0, 0) for n1 in low_bins]
            out_bins = np.arange(0, n_input, n_input if F == "global" else 2**self.log2_F)
            blocks = []
            spins = (1,) if order == 1 else (1, -1)  # S₁ is real: its negative spins are no news
            for n, level in enumerate(levels_fr):
                positions = np.arange(0, self.N_fr, 2**level)
                steps = (positions[:, None] - np.arange(n_input)) % self.N_fr
                if F == "global":
                    average = np.ones((1, len(positions)))
                else:
                    average = 2**level * phi_F[(out_bins[:, None] - positions) % self.N_fr]
                # Only positions that the wavelet sees and that the average reaches are worth computing.
                seen, reached = np.abs(psi_fr[1][n][steps]).max(1), np.abs(average).max(0)
                needed = (seen > self.negligible * seen.max()) & (reached > self.negligible * reached.max())
                for spin in spins:
                    rows.append(psi_fr[spin][n][steps[needed]])
                    n_fr = 1 + n + (0 if spin > 0 else len(self.bank_fr))
                    table += [(order, n1, n2, n_fr, spin) for n1 in out_bins]
                blocks.append((len(spins), len(rows[-1])))
                self._buffer(f"average_{n2}_{n}", average[:, needed], persistent=False)
            self.blocks[n2] = blocks
            W = np.concatenate(rows)
            self._buffer(f"W_{n2}", np.block([[W.real, -W.imag], [W.imag, W.real]]), persistent=False)
        self.paths = self._describe(table)

    def _describe(self, table: list[tuple[int, int, int, int, int]]) -> pd.DataFrame:
        paths = pd.DataFrame(table, columns=["order", "n1", "n2", "n_fr", "spin"])
        xi_1 = np.array([xi for xi, _, _ in self.bank_1] + [np.nan])
        xi_2 = np.array([xi for xi, _, _ in self.bank_2] + [np.nan])
        xi_fr = np.array([0.0] + 2 * [xi for xi, _, _ in self.bank_fr] + [np.nan])
        paths["carrier"] = xi_1[paths.n1] * self.sample_rate
        if self.F == "global":  # such a path has no carrier of its own
            paths.loc[paths.n_fr > 0, "carrier"] = np.nan
        paths["rate"] = xi_2[paths.n2] * self.sample_rate
        paths["scale"] = xi_fr[paths.n_fr] * self.Q[0]
        paths["spin"] = paths.spin.astype(float).where((paths.order == 2) & (paths.n_fr > 0))
        return paths

    def _wavelet_moduli(self, Y: Tensor, n2: int) -> Tensor:
        """|Y ∗ ψ_fr| (B, D, rows, t) of Y (B, D, 2n, t), stacked as [Re; Im]."""
        re, im = (getattr(self, f"W_{n2}") @ Y).chunk(2, -2)
        return _modulus(torch.complex(re, im))

    def _frequency_average(self, U: Tensor, n2: int) -> Tensor:
        """Average moduli U (B, D, rows, t) along log-frequency to (B, D, paths, t)."""
        n_low = len(range(0, len(self.bank_1) if n2 < 0 else self.n_inputs[n2], self.low_step))
        S, row = [U[..., :n_low, :]], n_low
        for n, (n_spins, n_rows) in enumerate(self.blocks[n2]):
            block = U[..., row : row + n_spins * n_rows, :].unflatten(-2, (n_spins, n_rows))
            S.append((getattr(self, f"average_{n2}_{n}") @ block).flatten(-3, -2))
            row += n_spins * n_rows
        return torch.cat(S, -2)

    def _bands(self, U_hat: Tensor, level: int) -> Tensor:
        """The bins of U₁'s spectrum that any rate sees; those of negative frequencies are conjugates."""
        first, last = self.seen[level]
        return torch.cat([U_hat[..., 1 : 1 - first].flip(-1).conj(), U_hat[..., :last]], -1)

    def _second_order(self, bands: list[tuple[int, Tensor]], n2: int, halved: bool = False) -> Tensor:
        """Y₂ (…, n_inputs, N/2ʲ²), up to a phase, from the bands of U₁'s spectrum; or at half that rate."""
        psi, start = getattr(self, f"half_psi_2_{n2}" if halved else f"psi_2_{n2}"), self.start_2[n2]
        Y_hat, missing = [], self.n_inputs[n2]
        for level, band in bands:
            if missing == 0:
                break
            first = start - self.seen[level][0]
            Y_hat.append(band[..., :missing, first : first + len(psi)] * (psi * 2**level))
            missing -= Y_hat[-1].shape[-2]
        length = self.N >> self.levels_2[n2] + halved
        left = (length - len(psi)) // 2  # the band comes to lie in the middle
        return torch.fft.ifft(pad(torch.cat(Y_hat, -2), (left, length - left - len(psi))))

    def _sounding(self, bands: list[tuple[int, Tensor]], n2: int) -> list[Tensor]:
        """Y₂ (B, n_inputs, t) of each sound and of each of its tangents, where the sound reaches, for `_path_sums`."""
        first, last = self.sounding[n2].start, self.sounding[n2].stop
        if bands[0][1].is_cuda:
            return list(self._second_order(bands, n2)[..., first:last].unbind(1))
        each = [[(level, band[:, d]) for level, band in bands] for d in range(bands[0][1].shape[1])]  # fits a cache
        if len(each) == 1 or not hasattr(self, f"half_psi_2_{n2}"):
            return [self._second_order(one, n2)[..., first:last] for one in each]
        Y = self._second_order(each[0], n2)
        Y = Y[..., torch.arange(first - HALO, last - HALO + FRAMES, device=Y.device) % Y.shape[-1]]
        return [Y] + [self._second_order(one, n2, True)[..., first // 2 : last // 2] for one in each[1:]]

    def _transform(self, x: Tensor) -> Tensor:
        local = self.T != "global"
        chunk = 1024 if x.device.type == "cpu" else max(16, 2**16 // len(x))  # frames at once: 1 GB on a GPU
        averages, bands = [], []
        for level, U in self._first_order(x):
            U_hat = torch.fft.rfft(_modulus(U))
            averages.append(self._average(U_hat, level))
            bands.append((level, self._bands(U_hat, level)))

        if local:
            S = [self._average(torch.fft.rfft(x), 0)[..., None, self.frames]]
        else:
            S = [x.sum(-1)[..., None, None]]
        S_1 = torch.cat(averages, -2)
        S_1 = self._frequency_average(self._wavelet_moduli(torch.cat([S_1, 0 * S_1], -2), -1), -1)
        S.append(S_1[..., self.frames] if local else S_1.sum(-1, keepdim=True))
        for n2 in self.rates:
            if local:
                Y = self._second_order(bands, n2)
                planar = torch.cat([Y.real, Y.imag], -2)
                moduli = [self._frequency_average(self._wavelet_moduli(Y, n2), n2) for Y in planar.split(chunk, -1)]
                U_2_hat = torch.fft.rfft(torch.cat(moduli, -1))
                S.append(self._average(U_2_hat, self.levels_2[n2])[..., self.frames])
            else:
                sums = _path_sums(getattr(self, f"W_{n2}"), self._sounding(bands, n2), chunk, self.halving)
                S.append(self._frequency_average(sums[..., None], n2))
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
    return LogScattering(JTFS(dtype=dtype))
