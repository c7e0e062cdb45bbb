"""The arpeggiator: an AM/FM chirp, the second synthesizer of Vahidi et al. (2023) and Han et al. (2024).

    x(t) = w(t) sin(2π f_m t) sin(2π f_c (2^(γt) − 1) / (γ log 2))
    w(t) = exp(−(γt)² / 2σ²),  σ = 0.1 × 2 octaves

The pitch f_c 2^(γt) glides at γ octaves a second through f_c at t = 0, the middle of the sound, while the
modulator cuts it into events: two a period of f_m. The Gaussian window closes after the same interval of
log-frequency whatever γ, one octave on either side being five σ. At γ = 0 it is open and the pitch stands:
the phase is then 2π f_c t, the limit. (The authors' code multiplies x by γ besides.)
"""

import math

import torch
from torch import Tensor

from .runtime import full_precision, in_float64
from .synthesizer import Parameter, Synthesizer, check_domain

N_SAMPLES = 32768  # 4 s
SAMPLE_RATE = 8192  # Hz
BANDWIDTH = 2.0  # octaves, of the whole glide: ten σ of its window, as in the papers' code

# Both papers' grids are spaced logarithmically over these ranges.
PARAMETERS = (
    Parameter("f_c", "f_c", "Hz", 512.0, 1024.0, "pitch at the middle of the glide", "log"),
    Parameter("f_m", "f_m", "Hz", 4.0, 16.0, "tempo: two events a period", "log"),
    Parameter("gamma", "γ", "octaves/s", 0.5, 4.0, "speed of the glide", "log"),
)


def check_theta(theta: Tensor, sample_rate: float = SAMPLE_RATE) -> None:
    """Raise ValueError unless θ (..., 3) is an arpeggio that does not alias; the message names parameter and value.

    f_c and f_m must lie between 0 and a quarter of the sample rate, so that a glide up by an octave stays below
    half of it; γ may be any finite number, 0 and falling (negative) included.
    (Inside `torch.vmap` values cannot be read, so that only the shape is checked there.)
    """
    domain = ((0, sample_rate / 4), (0, sample_rate / 4), (-math.inf, math.inf))
    check_domain(theta, PARAMETERS, domain, f"will not do at a sample rate of {sample_rate:g} Hz")


def _expm1_over(u: Tensor) -> Tensor:
    """(eᵘ − 1)/u with its limit 1, and all derivatives, at u = 0: there by its power series."""
    near = u.abs() < 1e-2
    far_u = torch.where(near, 1, u)  # keeps the unused branch, and so its gradient, finite
    near_u = torch.where(near, u, 0)
    series = torch.ones_like(u)
    for k in range(7, 1, -1):
        series = 1 + near_u / k * series
    return torch.where(near, series, torch.expm1(far_u) / far_u)


@full_precision()
def arpeggiator(
    theta: Tensor,
    n_samples: int = N_SAMPLES,
    sample_rate: float = SAMPLE_RATE,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The sound of the arpeggio: x = g(θ), of amplitude up to 1.

    Parameters
    ----------
    theta : Tensor, shape (..., 3)
        (f_c in Hz, f_m in Hz, γ in octaves per second).
    n_samples : int
        The middle of the arpeggio, t = 0, is at sample n_samples // 2.
    sample_rate : float, Hz
    dtype : torch.dtype, optional
        Of the sound; θ's if not given. Phases reach 10⁴ rad and are formed in float64 in any case.

    Returns
    -------
    x : Tensor, shape (..., n_samples)

    Raises
    ------
    ValueError
        If θ has another shape or lies outside the domain (see `check_theta`), or if n_samples or sample_rate is
        not positive.
    """
    if n_samples < 1 or sample_rate <= 0:
        raise ValueError(f"expected n_samples ≥ 1 and sample_rate > 0 Hz, got {n_samples} and {sample_rate}")
    check_theta(theta, sample_rate)
    dtype = dtype or theta.dtype
    device = theta.device
    theta = in_float64(theta)  # phases need it
    f_c, f_m, gamma = theta.unsqueeze(-2).unbind(-1)  # each (..., 1)
    t = (torch.arange(n_samples, dtype=theta.dtype, device=theta.device) - n_samples // 2) / sample_rate
    # Beyond the whole bandwidth the window is below 10⁻²¹: stopping the glide there keeps 2^(γt) finite.
    glide = (gamma * t).clamp(-BANDWIDTH, BANDWIDTH)  # octaves
    window = torch.exp(-((glide / (0.1 * BANDWIDTH)) ** 2) / 2)
    carrier = torch.sin(2 * math.pi * f_c * t * _expm1_over(math.log(2) * glide))
    return (window * torch.sin(2 * math.pi * f_m * t) * carrier).to(device=device, dtype=dtype)


ARPEGGIATOR = Synthesizer("arpeggiator", PARAMETERS, arpeggiator, N_SAMPLES, SAMPLE_RATE, from_onset=False)
