"""The first order: a constant-Q scalogram, |x ∗ ψ_λ₁| averaged in time, and what all scattering transforms share.

    U₁(t, λ₁) = |x ∗ ψ_λ₁|(t)             scalogram
    S₁(t, λ₁) = (U₁ ∗ φ_T)(t, λ₁)         averaged

Why it is fast: the modulus does not see a phase, so the band of a filter is cropped out of the spectrum and moved into
a short one, and one batched inverse FFT per rate makes all its filters. Averages come last, as they are linear.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from .filters import Circle, Octave, bands, filter_bank, low_pass, moved, padded_length
from .path_sums import modulus
from .runtime import at_least_one, check_whole, full_precision, side_by_side

EPS = 1e-3  # ε of the log-compression: the papers'
BLOCK = 2**21  # complex values that a CPU filters at once: 16 MB, which allocators keep for the next block
CUDA_BLOCK = 2**25


def log_compress(S: Tensor, eps: float = EPS) -> Tensor:
    """log(1 + |S|/ε), of any shape; ε is about the median of the JTFS of a drum.

    Only the zeroth order, an average of the sound itself, can be negative; the modulus keeps its logarithm real.
    """
    return torch.log1p(S.abs() / eps)


class Transform(nn.Module):
    """What Scalogram and JTFS share: padding, the first-order filters and the low-pass filter in time.

    Filters follow from the configuration, so that `state_dict` holds none.
    """

    octaves: tuple[Octave, ...]  # made by each transform, on the circles that it needs

    def __init__(
        self,
        n_samples: int,
        J: int,
        Q: int,
        T: int | str,
        padding: str,
        sample_rate: float | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        if padding not in ("zero", "reflect"):
            raise ValueError(f'padding must be "zero" or "reflect", got {padding!r}')
        check_whole("n_samples", n_samples, 2)
        check_whole("J", J, 1, math.floor(math.log2(n_samples)))
        check_whole("Q", Q, 1)
        if T != "global":
            check_whole("T", T, 1, n_samples, '"global" or ')
        if sample_rate is not None and not sample_rate > 0:
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
        first, last = self.pad_left, self.pad_left + n_samples
        for _ in range(self.log2_T):  # the frames of the signal itself, padding left out
            first, last = (first + 1) // 2, (last + 1) // 2
        self.frames = slice(first, last)
        self.circle = Circle(self.N, self.pad_left)
        self.bank_1 = filter_bank(J, Q)
        self.levels_1 = [self._level(each.level) for each in self.bank_1]
        phi_hat = low_pass(self.N, width)
        self.phi = tuple(self._periodized(phi_hat, level) for level in range(self.log2_T + 1))

    def _level(self, level: int) -> int:
        return level if self.T == "global" else min(level, self.log2_T)

    def _octave(self, level: int, circle: Circle) -> Octave:
        members = [wavelet for wavelet, its in zip(self.bank_1, self.levels_1, strict=True) if its == level]
        starts, psi = bands(circle.length, members, circle.length >> level, self.negligible)
        return Octave(level, circle, self._tensor(psi / 2**level), tuple((starts % circle.length).tolist()))

    def _periodized(self, phi_hat: np.ndarray, level: int) -> Tensor:
        """The low-pass filter of signals sampled at step 2^level, as half a spectrum."""
        return self._tensor(phi_hat.reshape(2**level, -1).sum(0)[: self._average_length(level) // 2 + 1])

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.as_tensor(values, dtype=self.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Transform":
        """Called by `to`, `double`, `cuda` and their like: filters follow, as buffers would."""
        self.phi = tuple(map(fn, self.phi))
        self.octaves = tuple(moved(octave, fn) for octave in self.octaves)
        return super()._apply(fn, recurse)

    def _frames_near(self, reach: int, level: int, circle: Circle) -> slice:
        """Frames at step 2^level, no further than `reach` samples from the sound itself."""
        first, last = circle.left - reach, circle.left + self.n_samples + reach
        return slice(max(first >> level, 0), min((last >> level) + 1, circle.length >> level))

    def _average_length(self, level: int) -> int:
        """Frames at which the low-pass filter is applied: four times its output's rate leaves no aliasing."""
        return min(self.N >> level, 4 * (self.N >> self.log2_T))

    def _rows(self, x: Tensor, what: str = "audio") -> Tensor:
        """Audio (..., n_samples), or a derivative of it, as (B, n_samples), once it is known to be fit."""
        if not isinstance(x, Tensor) or not x.is_floating_point():
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"expected {what} as a floating-point tensor, got {kind}")
        if x.ndim == 0 or x.shape[-1] != self.n_samples:
            raise ValueError(f"expected {what} of shape (..., {self.n_samples}), got {tuple(x.shape)}")
        try:
            finite = bool(x.detach().isfinite().all())
        except RuntimeError:  # inside vmap values cannot be read
            finite = True
        if not finite:
            raise ValueError(f"expected finite {what}, got NaN or infinite samples")
        return x.reshape(x.shape[:-1].numel(), self.n_samples).to(self.phi[0])

    def _pad(self, x: Tensor, circle: Circle) -> Tensor:
        right = circle.length - circle.left - self.n_samples
        return pad(x, (circle.left, right), mode="constant" if self.padding == "zero" else "reflect")

    def _first_order(self, x: Tensor) -> Iterator[tuple[Octave, Tensor]]:
        """Yield x ∗ ψ_λ₁ (..., n, N/2ʲ), up to a phase, of sounds x (..., n_samples), a few filters at a time.

        N is the length of the octave's circle.
        """
        circle, x_hat = None, x
        for octave in self.octaves:
            n, K = octave.psi.shape
            if octave.circle != circle:
                circle = octave.circle
                x_hat = torch.fft.fft(self._pad(x, circle))
                x_hat = torch.cat([x_hat, x_hat[..., :K]], -1)  # for bands that go round
            few = max(1, (CUDA_BLOCK if x.is_cuda else BLOCK) * 2**octave.level // (x[..., 0].numel() * circle.length))
            for i in range(0, n, few):
                bands = [x_hat[..., start : start + K] for start in octave.starts[i : i + few]]
                bands_hat = torch.stack(bands, -2) * octave.psi[i : i + few]
                yield octave, torch.fft.ifft(bands_hat, n=circle.length >> octave.level)

    def _average(self, U_hat: Tensor, level: int) -> Tensor:
        """(U ∗ φ_T) at step 2^log2_T, of the half spectrum (…, N/2^level/2 + 1) of a real U: (…, N/2^log2_T)."""
        n, length = self._average_length(level), self.N >> level
        smooth = torch.fft.irfft(U_hat[..., : n // 2 + 1] * self.phi[level], n=n) * (n / length)
        return smooth[..., :: n // (self.N >> self.log2_T)]

    @full_precision()
    def forward(self, x: Tensor) -> Tensor:
        S = self._each(self._rows(x)[:, None])[:, 0]
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
            If the shapes do not agree, or audio or tangents are of another length or not finite.
        """
        if dx.shape[1:] != x.shape:
            raise ValueError(f"expected tangents of shape (K, {str(tuple(x.shape))[1:]}, got {tuple(dx.shape)}")
        with torch.no_grad():
            rows = torch.stack([self._rows(x), *(self._rows(along, "tangents") for along in dx)], 1)
            S = self._each(rows).transpose(0, 1)
        S = S.reshape(len(S), *x.shape[:-1], *S.shape[2:])
        return S[0], S[1:]

    def _each(self, x: Tensor) -> Tensor:
        """Coefficients of sounds: one by one on a CPU, which keeps a chunk in its cache; else 5 GB at once."""
        few = 1 if x.device.type == "cpu" else max(1, 2**24 // (x.shape[1] * self.N))
        return torch.cat(side_by_side(self._transform, at_least_one(x).split(few)))[: len(x)]

    def _transform(self, x: Tensor) -> Tensor:
        """Coefficients (B, D, ...) of sounds (B, D, n_samples): along D lie a sound and its tangents, if any.

        All is linear but the moduli.
        """
        raise NotImplementedError


class Scalogram(Transform):
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
    Raises ValueError on audio of another length, of whole numbers, or with NaN or infinite samples.
    """

    def __init__(
        self,
        n_samples: int,
        J: int = 13,
        Q: int = 12,
        T: int | str = 256,
        padding: str = "zero",
        sample_rate: float | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(n_samples, J, Q, T, padding, sample_rate, dtype)
        self.octaves = tuple(self._octave(level, self.circle) for level in sorted(set(self.levels_1)))
        self.frequencies = np.array([each.xi for each in self.bank_1]) * (sample_rate or 1)

    def _transform(self, x: Tensor) -> Tensor:
        filtered = self._first_order(x)
        S = torch.cat([self._average(torch.fft.rfft(modulus(U)), octave.level) for octave, U in filtered], -2)
        return S.sum(-1) if self.T == "global" else S[..., self.frames]
