"""The rectangular drum g: a struck membrane, solved in its modes (functional transformation method).

With β = α + 1/α and s = α m₁² + m₂²/α (s = β for the first mode), mode m = (m₁, m₂) has

    σ_m  = (1 + p (s − β)) / τ₁                                                    decay rate, 1/s
    ω_m² = ω₁² (s/β) (1 + D² β (s − β)) + (s − β) (1 − p β)² / (β τ₁²)             frequency, rad/s
    a_m  = sin(π m₁ u₁) sin(π m₂ u₂) sin(π m₁ v₁) sin(π m₂ v₂) / ω_m               amplitude
    x[n] = Σ_m a_m exp(−σ_m n/sr) sin(ω_m n/sr),  divided by max |x|

for a strike at u and an ear at v (fractions of the sides). Chapter 1 derives this closed form
from the constants S, c², d₁, d₃ of Han et al. (2023); it needs none of them.

Sampling never exponentiates modes × samples: with z = exp((−σ + iω)/sr) and n = i + B k,
zⁿ = zⁱ (zᴮ)ᵏ, so a drum is one matrix product of (samples/B × modes) by (modes × B).
"""

import math

import torch
from torch import Tensor

from .parameters import PARAMETERS, check_last_axis

N_SAMPLES = 65536
SAMPLE_RATE = 22050  # Hz
POSITION = (0.4, 0.4)  # of the sides, for strike and ear: both papers


def check_theta(theta: Tensor) -> None:
    """Raise ValueError unless θ (..., 5) describes a physical drum; the message names parameter and value.

    Any finite ω₁ > 0, τ₁ > 0, p ≥ 0, D ≥ 0 and α > 0 will do: wider than the ranges of the data set.
    (Inside `torch.vmap` values cannot be read, so that only the shape is checked there.)
    """
    check_last_axis(theta, "theta")
    infinity = math.inf
    domain = ((-infinity, infinity), (0, infinity), (-infinity, infinity), (-infinity, infinity), (0, infinity))
    for j, (parameter, (low, high)) in enumerate(zip(PARAMETERS, domain, strict=True)):
        value = theta[..., j].detach()
        valid = (value > low) & (value < high)
        if parameter.name in ("log_p", "log_D"):
            valid |= value == -infinity  # p = 0 or D = 0: the ideal membrane
        try:
            all_valid = bool(valid.all())
        except RuntimeError:  # vmap
            return
        if not all_valid:
            raise ValueError(
                f"{parameter.name} = {value[~valid].flatten()[0].item():g} {parameter.unit} is not physical: "
                f"expected a value in ({low:g}, {high:g}); the data set has [{parameter.low:g}, {parameter.high:g}]"
            )


def modes(
    theta: Tensor,
    n_modes: int = 10,
    strike: tuple[float, float] = POSITION,
    ear: tuple[float, float] = POSITION,
) -> tuple[Tensor, Tensor, Tensor]:
    """Frequencies, decay rates and amplitudes of the modes of the drum.

    Parameters
    ----------
    theta : Tensor, shape (..., 5)
        (log₁₀ ω₁, τ₁, log₁₀ p, log₁₀ D, α).
    n_modes : int
        Modes along each side: m₁ and m₂ run from 1 to n_modes.
    strike, ear : pairs of fractions of the sides, in [0, 1]

    Returns
    -------
    omega, sigma, amplitude : Tensors, shape (..., n_modes²)
        Radian frequency in rad/s, decay rate in 1/s, amplitude in s; m₂ varies fastest.

    Raises
    ------
    ValueError
        If θ has another shape or lies outside the physical domain.
    """
    check_theta(theta)
    log_omega, tau, log_p, log_D, alpha = theta.unsqueeze(-2).unbind(-1)  # each (..., 1)
    p, D = 10**log_p, 10**log_D
    m = torch.arange(1, n_modes + 1, dtype=theta.dtype, device=theta.device)
    m1, m2 = m.repeat_interleave(n_modes), m.repeat(n_modes)  # (n_modes²,)

    beta = alpha + 1 / alpha
    s = alpha * m1**2 + m2**2 / alpha
    excess = alpha * (m1**2 - 1) + (m2**2 - 1) / alpha  # s − β, without cancellation
    sigma = (1 + p * excess) / tau
    omega = torch.sqrt(
        10 ** (2 * log_omega) * (s / beta) * (1 + D**2 * beta * excess) + excess * (1 - p * beta) ** 2 / (beta * tau**2)
    )
    shape = (
        torch.sin(math.pi * strike[0] * m1)
        * torch.sin(math.pi * strike[1] * m2)
        * torch.sin(math.pi * ear[0] * m1)
        * torch.sin(math.pi * ear[1] * m2)
    )
    return omega, sigma, shape / omega


def _powers(log_z: Tensor, n: int) -> Tensor:
    """z⁰ … zⁿ⁻¹ of shape (..., n) for log z (...): an outer product, so that only 2√n are exponentiated."""
    q = math.ceil(math.sqrt(n))
    steps = torch.arange(q, dtype=log_z.real.dtype, device=log_z.device)
    fine = torch.exp(log_z[..., None] * steps)
    coarse = torch.exp(log_z[..., None] * (steps[: math.ceil(n / q)] * q))
    return (coarse[..., :, None] * fine[..., None, :]).flatten(-2)[..., :n]


def rectangular_drum(
    theta: Tensor,
    n_samples: int = N_SAMPLES,
    sample_rate: float = SAMPLE_RATE,
    *,
    n_modes: int = 10,
    strike: tuple[float, float] = POSITION,
    ear: tuple[float, float] = POSITION,
    normalize: bool = True,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The sound of the drum: x = g(θ).

    Parameters
    ----------
    theta : Tensor, shape (..., 5)
        Keep θ in float64: rounding it to float32 alone moves x by 10⁻³, for phases reach 10⁵ rad.
    n_samples : int
    sample_rate : float, Hz
        Modes at or above half of it are left out, one by one.
    n_modes, strike, ear
        As in `modes`.
    normalize : bool
        Divide by max |x|.
    dtype : torch.dtype, optional
        Of the sound and of the large matrix product; θ's if not given. The small factors are
        formed in float64 in any case, so float32 sounds err by 10⁻⁶.

    Returns
    -------
    x : Tensor, shape (..., n_samples)

    Raises
    ------
    ValueError
        If θ has another shape or lies outside the physical domain, or if n_samples or sample_rate is not positive.
    """
    if n_samples < 1 or sample_rate <= 0:
        raise ValueError(f"expected n_samples ≥ 1 and sample_rate > 0 Hz, got {n_samples} and {sample_rate}")
    dtype = dtype or theta.dtype
    device = theta.device
    # Phases need float64; where a device lacks it (mps), the small factors are made on the CPU.
    theta = theta.to("cpu" if device.type == "mps" else device).to(torch.float64)
    omega, sigma, amplitude = modes(theta, n_modes, strike, ear)
    audible = omega < math.pi * sample_rate
    # A left-out mode is set to rest before exponentiating, which keeps its gradient 0, not 0 · ∞.
    amplitude = torch.where(audible, amplitude, 0)
    log_z = torch.complex(torch.where(audible, -sigma, 0), torch.where(audible, omega, 0)) / sample_rate

    block = math.ceil(math.sqrt(n_samples))
    fine = _powers(log_z, block)  # (..., modes, B), zⁱ
    coarse = amplitude[..., None] * _powers(log_z * block, math.ceil(n_samples / block))  # (..., modes, n/B), a zᴮᵏ
    # Im(coarse · fine), summed over the modes, as one real matrix product.
    left = torch.cat([coarse.real, coarse.imag], -2).to(device=device, dtype=dtype)
    right = torch.cat([fine.imag, fine.real], -2).to(device=device, dtype=dtype)
    x = (left.mT @ right).flatten(-2)[..., :n_samples]
    return x / x.abs().amax(-1, keepdim=True) if normalize else x
