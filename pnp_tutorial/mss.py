"""The rival: multi-scale spectra (MSS), log-magnitudes of short-time Fourier transforms at three resolutions.

    Φ(x) = (log |STFT_r x| / √(3 P_r)) for r = 1, 2, 3, with P_r values each

so that ‖Φ(x̃) − Φ(x)‖² is the mean, over the three resolutions, of their mean squared difference. Transforms and
loss are auraloss's (Steinmetz and Reiss, 2020) with its defaults, those of Yamamoto et al. (2020): windows of 600,
1200 and 240 samples, magnitudes below 10⁻⁴ raised to it.
"""

import math
from typing import Any

import torch
from auraloss.freq import MultiResolutionSTFTLoss
from torch import Tensor, nn
from torch.func import vmap


class MSS(nn.Module):
    """Multi-scale log-magnitude spectra as features: what JTFS is compared with.

    Parameters
    ----------
    dtype : torch.dtype, optional
        Of the windows, and so of the features; torch's default dtype if not given.

    Called on audio (..., n_samples) it returns (..., P): about 14 times as many values as samples.
    Raises ValueError on audio that is not of a floating-point type, or has less than 1025 samples, half the longest
    transform.
    """

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.resolutions = MultiResolutionSTFTLoss().stft_losses
        for resolution in self.resolutions:  # windows as buffers, which follow the module's dtype and device
            window = resolution.window.to(dtype or torch.get_default_dtype())
            del resolution.window
            resolution.register_buffer("window", window, persistent=False)

    def rows(self, x: Tensor) -> Tensor:
        """Audio (..., n_samples) as (B, n_samples) of the windows' dtype, once it is known to be long enough."""
        shortest = max(resolution.fft_size for resolution in self.resolutions) // 2 + 1
        if x.ndim == 0 or x.shape[-1] < shortest:
            raise ValueError(f"expected audio of shape (..., n_samples), n_samples ≥ {shortest}, got {tuple(x.shape)}")
        if not x.is_floating_point():
            raise ValueError(f"expected floating-point audio, got {x.dtype}")
        return x.reshape(-1, x.shape[-1]).to(self.resolutions[0].window.dtype)

    @staticmethod
    def magnitude(rows: Tensor, resolution: nn.Module) -> Tensor:
        """|STFT_r x| (B, frequencies, frames): auraloss's, without the phases, a third of its time."""
        r: Any = resolution
        X = torch.stft(rows, r.fft_size, r.hop_size, r.win_length, r.window, return_complex=True)
        return (X.real.square() + X.imag.square()).clamp_min(r.eps).sqrt()

    def forward(self, x: Tensor) -> Tensor:
        rows = self.rows(x)
        logs = [self.magnitude(rows, resolution).log().flatten(1) for resolution in self.resolutions]
        S = torch.cat([log / math.sqrt(len(logs) * log.shape[-1]) for log in logs], -1)
        return S.reshape(*x.shape[:-1], -1)


def mss_distance(x_hat: Tensor, x: Tensor) -> Tensor:
    """Multi-resolution STFT loss (...) of each pair of sounds (..., n_samples), with auraloss's defaults.

    The mean over the resolutions of mean |log |X̃| − log |X|| plus the relative distance ‖|X̃| − |X|‖ / ‖|X|‖. The
    target is x; the loss is not symmetric. (auraloss itself, given a batch, takes that ratio over all its sounds;
    here every pair has its own.) Only x̃ carries a gradient, which cannot be differentiated again.
    Raises ValueError if the shapes differ, and as `MSS` does.
    """
    if x_hat.shape != x.shape:
        raise ValueError(f"x_hat and x must have one shape, got {tuple(x_hat.shape)} and {tuple(x.shape)}")
    transform = MSS(x.dtype if x.is_floating_point() else None).to(x.device)
    rows_hat, rows = transform.rows(x_hat), transform.rows(x.detach())
    few = 1 if x.device.type == "cpu" else max(1, len(rows))  # one by one, spectra stay in a CPU's cache
    pairs = zip(rows_hat.split(few), rows.split(few), strict=True)
    return torch.cat([_Distance.apply(a, b, transform) for a, b in pairs]).reshape(x.shape[:-1])


class _Distance(torch.autograd.Function):
    """Distances (B,) whose gradients are taken at once, so that the spectra of one pair are gone before the next.

    Those of a whole batch would be gigabytes, and on a CPU a step would spend most of its time on asking for them.
    """

    @staticmethod
    def forward(ctx: Any, x_hat: Tensor, x: Tensor, transform: MSS) -> Tensor:
        with torch.set_grad_enabled(ctx.needs_input_grad[0]):
            leaf = x_hat.detach().requires_grad_(ctx.needs_input_grad[0])
            losses = []
            for resolution in transform.resolutions:
                X_hat, X = (transform.magnitude(each, resolution) for each in (leaf, x))
                losses.append(vmap(resolution.spectralconv)(X_hat, X) + vmap(resolution.logstft)(X_hat, X))
            distance = torch.stack(losses).mean(0)
            if ctx.needs_input_grad[0]:
                ctx.save_for_backward(*torch.autograd.grad(distance.sum(), leaf))
        return distance.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad[:, None] * ctx.saved_tensors[0], None, None
