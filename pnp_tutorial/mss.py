"""Two plainer ears, of short-time Fourier transforms: multi-scale spectra (MSS), a rival; coarse spectra, a guide.

MSS are log-magnitudes at three resolutions,

    Φ(x) = (log |STFT_r x| / √(3 P_r)) for r = 1, 2, 3, with P_r values each

so that ‖Φ(x̃) − Φ(x)‖² is the mean, over the three resolutions, of their mean squared difference. Transforms and
loss are auraloss's (Steinmetz and Reiss, 2020) with its defaults, those of Yamamoto et al. (2020): windows of 600,
1200 and 240 samples, magnitudes below 10⁻⁴ raised to it. `CoarseSpectra` has its formula below.
"""

import math
from typing import Any

import torch
from auraloss.freq import MultiResolutionSTFTLoss
from torch import Tensor, nn

from .runtime import at_least_one, check_whole, full_precision
from .scalogram import log_compress

SHORTEST = 1025  # samples that MSS takes: half the longest transform, and one
CACHED = 2**18  # samples whose spectra fit a CPU's cache


class MSS(nn.Module):
    """Multi-scale log-magnitude spectra as features: what JTFS is compared with.

    Parameters
    ----------
    dtype : torch.dtype, optional
        Of the windows, and so of the features; torch's default dtype if not given.
    log : bool
        Take the logarithm of magnitudes. Without it, what is loud counts most.

    Called on audio (..., n_samples) it returns (..., P): about 14 times as many values as samples.
    Raises ValueError on audio that is not of a floating-point type, or has less than 1025 samples, half the longest
    transform.
    """

    def __init__(self, dtype: torch.dtype | None = None, log: bool = True) -> None:
        super().__init__()
        self.log = log
        self.resolutions = MultiResolutionSTFTLoss().stft_losses
        for resolution in self.resolutions:  # windows as buffers, which follow the module's dtype and device
            window = resolution.window.to(dtype or torch.get_default_dtype())
            del resolution.window
            resolution.register_buffer("window", window, persistent=False)

    def rows(self, x: Tensor) -> Tensor:
        """Audio (..., n_samples) as (B, n_samples) where the windows are, in their dtype, if it is long enough."""
        if x.ndim == 0 or x.shape[-1] < SHORTEST:
            raise ValueError(f"expected audio of shape (..., n_samples), n_samples ≥ {SHORTEST}, got {tuple(x.shape)}")
        if not x.is_floating_point():
            raise ValueError(f"expected floating-point audio, got {x.dtype}")
        return x.reshape(x.shape[:-1].numel(), x.shape[-1]).to(self.resolutions[0].window)

    @staticmethod
    def spectrum(rows: Tensor, r: Any) -> Tensor:
        """STFT_r x (B, frames, frequencies) of rows (B, n_samples), as auraloss takes it."""
        return torch.stft(rows, r.fft_size, r.hop_size, r.win_length, r.window, return_complex=True).mT

    @staticmethod
    def magnitude(X: Tensor, r: Any) -> Tensor:
        """|X| of a spectrum; auraloss takes phases, too, in twice the time."""
        return (X.real.square() + X.imag.square()).clamp_min(r.eps).sqrt()

    @full_precision()
    def forward(self, x: Tensor) -> Tensor:
        rows = at_least_one(self.rows(x))
        parts = [self.magnitude(self.spectrum(rows, r), r).flatten(1) for r in self.resolutions]
        parts = [part.log() for part in parts] if self.log else parts
        S = torch.cat([part / math.sqrt(len(parts) * part.shape[-1]) for part in parts], -1)
        return S[: x.shape[:-1].numel()].reshape(*x.shape[:-1], S.shape[-1])


@full_precision()
def mss_distance(x_hat: Tensor, x: Tensor) -> Tensor:
    """Multi-resolution STFT loss (...) of each pair of sounds (..., n_samples), with auraloss's defaults.

    The mean over the resolutions of mean |log |X̃| − log |X|| plus the relative distance ‖|X̃| − |X|‖ / ‖|X|‖. The
    target is x; the loss is not symmetric. (auraloss itself, given a batch, takes that ratio over all its sounds;
    here every pair has its own.) Only x̃ carries a gradient, which cannot be differentiated again (a RuntimeError).
    Raises ValueError if the shapes differ, and as `MSS` does.
    """
    if x_hat.shape != x.shape:
        raise ValueError(f"x_hat and x must have one shape, got {tuple(x_hat.shape)} and {tuple(x.shape)}")
    transform = MSS(x.dtype if x.is_floating_point() else None).to(x.device)
    rows_hat, rows = (at_least_one(transform.rows(each)) for each in (x_hat, x.detach()))
    few = 1 if x.device.type == "cpu" else max(1, len(rows))  # one by one, spectra stay in a CPU's cache
    pairs = zip(rows_hat.split(few), rows.split(few), strict=True)
    distances = torch.cat([_Distance.apply(a, b, transform) for a, b in pairs])
    return distances[: x.shape[:-1].numel()].reshape(x.shape[:-1])


class _Distance(torch.autograd.Function):
    """Distances (B,) of x_hat from x, both (B, n_samples), whose gradients are taken at once.

    With A and B the P magnitudes of x̃ and x at one resolution, and D = A − B,

        d = ‖D‖ / ‖B‖ + Σ |log A/B| / P,      ∂d/∂A = D / (‖D‖ ‖B‖) + sign(D) / (P A)

    Torch's own derivatives of these steps would take half as much time again, and keep the spectra of a whole batch.
    """

    @staticmethod
    def forward(ctx: Any, x_hat: Tensor, x: Tensor, transform: MSS) -> Tensor:
        distance, gradient = x.new_zeros(len(x)), torch.zeros_like(x)
        axes, n = (1, 2), len(transform.resolutions)
        for r in transform.resolutions:
            X, Y = (transform.spectrum(rows, r) for rows in (x_hat, x))
            A, B = (transform.magnitude(spectrum, r) for spectrum in (X, Y))
            D = A - B
            norm_D, norm_B = (torch.linalg.vector_norm(each, dim=axes) for each in (D, B))
            distance += (norm_D / norm_B + torch.div(A, B, out=B).log_().abs_().mean(axes)) / n
            if ctx.needs_input_grad[0]:
                slope = D.sign().div_(A).div_(A[0].numel())
                slope += D.mul_((norm_D * norm_B).reciprocal_().nan_to_num_(posinf=0.0)[:, None, None])
                slope.div_(A).masked_fill_(r.eps**0.5 * (1 + 1e-6) > A, 0)  # where a magnitude was raised
                torch.view_as_real(X).mul_(slope[..., None])
                gradient += _adjoint(X, r, x.shape[-1]) / n
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(gradient)
        return distance

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        if torch.is_grad_enabled():  # whoever asks for a graph of the gradient would find a constant in it
            raise RuntimeError("the gradient of mss_distance cannot be differentiated again: do without create_graph")
        return grad[:, None] * ctx.saved_tensors[0], None, None


def _adjoint(G: Tensor, r: Any, n_samples: int) -> Tensor:
    """Gradient (B, n_samples) of a function of STFT_r x whose gradient over it is G (B, frames, frequencies)."""
    G[..., 1:-1] /= 2  # of a real signal, each stands for a negative frequency too
    pad, skip = r.fft_size // 2, (r.fft_size - r.win_length) // 2
    frames = torch.fft.irfft(G, r.fft_size, norm="forward")[..., skip : skip + r.win_length] * r.window
    n_frames, hop = frames.shape[1], r.hop_size
    n_hops = -(-r.win_length // hop)
    padded = frames.new_zeros(len(G), max(n_samples + 2 * pad, skip + (n_frames + n_hops) * hop))
    for k in range(n_hops):  # overlap and add
        part = frames[..., k * hop : (k + 1) * hop]
        first = skip + k * hop
        padded[:, first : first + n_frames * hop].unflatten(-1, (n_frames, hop))[..., : part.shape[-1]] += part
    gradient = padded[:, pad : pad + n_samples]
    gradient[:, 1 : pad + 1] += padded[:, :pad].flip(-1)  # what was reflected at the ends
    gradient[:, n_samples - 1 - pad : n_samples - 1] += padded[:, pad + n_samples : 2 * pad + n_samples].flip(-1)
    return gradient


class CoarseSpectra(nn.Module):
    """C(x): how loud each semitone is, frame by frame. A plain guide through the box, and far cheaper than Φ.

        C(k, t) = log(1 + √(Σ_f w_k(f) |X_t(f)|²) / ε)

    X_t is a short-time Fourier transform with a Hann window, scaled so that a sinusoid of amplitude 1 has the
    value 1; w_k is a Gaussian a semitone wide, at least one bin, around 35 Hz · 2^(k/12), up to the Nyquist frequency.

    Parameters
    ----------
    n_samples : int
        Of the sounds. Frames have 4096 samples (186 ms at 22 050 Hz), or a quarter of shorter sounds; they overlap by
        half.
    sample_rate : float, Hz

    Called on audio (..., n_samples) it returns (..., P), in torch's default dtype of when it was made; it raises
    ValueError if the audio has another length or is not in floating point.
    Raises ValueError unless n_samples is a whole number, at least 8, as two samples are the shortest frame, and half
    of sample_rate is above the second band, 37 Hz.
    """

    LONGEST = 4096  # samples of a frame
    window: Tensor
    weights: Tensor  # (bands, 2 × bins): one for the real and one for the imaginary part of each bin

    def __init__(self, n_samples: int, sample_rate: float) -> None:
        super().__init__()
        self.sample_rate = sample_rate
        self.n_samples = check_whole("n_samples", n_samples, 8)
        self.n_fft = min(self.LONGEST, n_samples // 4)
        lowest, semitone = 35.0, 2 ** (1 / 12)
        if not sample_rate > 2 * lowest * semitone:
            raise ValueError(f"expected sample_rate > {2 * lowest * semitone:.1f} Hz, got {sample_rate}")
        hz = torch.fft.rfftfreq(self.n_fft, 1 / sample_rate)
        n_bands = int(math.log(sample_rate / 2 / lowest, semitone))
        center = lowest * semitone ** torch.arange(n_bands)[:, None]
        width = torch.clamp(center * (semitone - 1), min=sample_rate / self.n_fft)
        weights = torch.exp(-((hz - center) ** 2) / (2 * width**2))
        # Octave by octave, the first and last bin that its bands weigh: nine of ten weights need no product.
        weighed = [(part > 1e-8).any(0).nonzero()[:, 0] for part in weights.split(12)]
        self.octaves = [(int(bins[0]), int(bins[-1]) + 1) for bins in weighed]
        self.register_buffer("window", torch.hann_window(self.n_fft), persistent=False)
        self.register_buffer("weights", weights.repeat_interleave(2, 1) / (self.n_fft / 4) ** 2, persistent=False)

    @full_precision()
    def forward(self, x: Tensor) -> Tensor:
        if not x.is_floating_point() or x.shape[-1:] != (self.n_samples,):
            raise ValueError(
                f"expected audio (..., {self.n_samples}) in floating point, got {tuple(x.shape)} of {x.dtype}"
            )
        n_rows = x.shape[:-1].numel()
        rows = at_least_one(x.reshape(n_rows, x.shape[-1]).to(self.window))
        few = max(1, CACHED // x.shape[-1]) if rows.device.type == "cpu" else len(rows)
        C = torch.cat([self._spectra(part) for part in rows.split(few)])
        return C[:n_rows].reshape(*x.shape[:-1], C.shape[-1])

    def _spectra(self, rows: Tensor) -> Tensor:
        rows = nn.functional.pad(rows, 2 * [self.n_fft // 2])
        X = torch.stft(rows, self.n_fft, self.n_fft // 2, window=self.window, center=False, return_complex=True).mT
        squares = torch.view_as_real(X).flatten(-2).square()  # (B, frames, 2 × bins)
        octaves = zip(self.octaves, self.weights.split(12), strict=True)
        power = torch.cat([squares[..., 2 * a : 2 * b] @ w[:, 2 * a : 2 * b].mT for (a, b), w in octaves], -1)
        return log_compress((power + 1e-30).sqrt()).mT.flatten(1)  # of 0, the root has no derivative
