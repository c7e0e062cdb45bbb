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
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import hardshrink, pad

from .runtime import full_precision, in_float64
from .synthesizer import Parameter, Synthesizer, check_domain

N_SAMPLES = 65536
SAMPLE_RATE = 22050  # Hz
CACHED = 2**19  # samples that a CPU makes at once
POSITION = (0.4, 0.4)  # of the sides, for strike and ear: both papers

# Ranges: Han, Lostanlen and Lagrange (2023), section 4.
PARAMETERS = (
    Parameter("log_omega", "log₁₀ ω₁", "log₁₀ rad/s", 2.4, 3.8, "pitch"),
    Parameter("tau", "τ₁", "s", 0.07, 0.8, "sustain of the first mode"),
    Parameter("log_p", "log₁₀ p", "1", -5.0, -0.7, "how much faster high partials die"),
    Parameter("log_D", "log₁₀ D", "1", -5.0, -0.52, "inharmonicity"),
    Parameter("alpha", "α", "1", 1e-5, 1.0, "shape: ratio of the sides"),
)


def check_theta(theta: Tensor) -> None:
    """Raise ValueError unless θ (..., 5) describes a physical drum; the message names parameter and value.

    Any finite ω₁ > 0, τ₁ > 0, p ≥ 0, D ≥ 0 and α > 0 will do: wider than the ranges of the data set.
    (Inside `torch.vmap` values cannot be read, so that only the shape is checked there.)
    """
    infinity = math.inf
    domain = ((-infinity, infinity), (0, infinity), (-infinity, infinity), (-infinity, infinity), (0, infinity))
    # p = 0 or D = 0: the ideal membrane
    check_domain(theta, PARAMETERS, domain, "is not physical", with_lower_end=("log_p", "log_D"))


def mode_shapes(n_modes: int, strike: tuple[float, float], ear: tuple[float, float]) -> Tensor:
    """Products of the mode shapes sin(π m₁ u₁) sin(π m₂ u₂) at strike and ear: (n_modes²,), float64.

    Raises ValueError if n_modes < 1 or a position is not two fractions of the sides, inside the rim.
    """
    if n_modes < 1:
        raise ValueError(f"expected n_modes ≥ 1, got {n_modes}")
    for name, position in (("strike", strike), ("ear", ear)):
        if len(position) != 2 or not all(0 < fraction < 1 for fraction in position):
            raise ValueError(f"{name} must be two fractions of the sides, between 0 and 1, got {position}")
    m = torch.arange(1, n_modes + 1, dtype=torch.float64)
    along, across = (torch.sin(math.pi * u * m) * torch.sin(math.pi * v * m) for u, v in zip(strike, ear, strict=True))
    return (along[:, None] * across).flatten()


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
    strike, ear : pairs of fractions of the sides, between 0 and 1

    Returns
    -------
    omega, sigma, amplitude : Tensors, shape (..., n_modes²)
        Radian frequency in rad/s, decay rate in 1/s, amplitude in s; m₂ varies fastest.

    Raises
    ------
    ValueError
        If θ has another shape or lies outside the physical domain, or a position outside the drum.
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
    return omega, sigma, mode_shapes(n_modes, strike, ear).to(omega) / omega


def _powers(log_z: Tensor, n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """z⁰ … zⁿ⁻¹ of shape (..., n, modes) for log z (..., modes): an outer product, so that 2√n are exponentiated.

    The factors of that product are 0 below ∜tiny: four of them make a term of the sound, and numbers
    below `tiny` are subnormal, ten times slower than others.
    """
    q = math.ceil(math.sqrt(n))
    steps = torch.arange(q, dtype=log_z.real.dtype, device=log_z.device)[:, None]

    def exact(steps: Tensor) -> Tensor:
        exponent = log_z[..., None, :] * steps
        magnitude = hardshrink(exponent.real.exp(), torch.finfo(dtype).tiny ** 0.25)
        parts = magnitude * exponent.imag.cos(), magnitude * exponent.imag.sin()  # a third of torch.polar's time
        return torch.complex(*(part.to(device=device, dtype=dtype) for part in parts))

    coarse, fine = exact(q * steps[: math.ceil(n / q)]), exact(steps)
    return (coarse[..., :, None, :] * fine[..., None, :, :]).flatten(-3, -2)[..., :n, :]


def _real_factors(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Real matrices whose product is Im Σ_m left[k, m] right[i, m], for all k and i."""
    swapped = torch.stack([right.imag, right.real], -1)
    return torch.view_as_real(left).flatten(-2), swapped.flatten(-2).mT


def nonzero(peak: Tensor) -> Tensor:
    """Peaks to divide sounds by: 1 in place of 0, so that silence stays silence."""
    return torch.where(peak == 0, 1, peak)


class _ModalSum(torch.autograd.Function):
    """x[n] = Σ_m a_m Im z_mⁿ, divided by max |x| if asked, and the n of the maximum.

    As d(zⁿ) = n zⁿ d(log z) and n = i + B k, the derivatives are matrix products of the same factors and of i zⁱ.
    Formed so, five tangents or a gradient cost a fraction of what differentiating every step would.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        a: Tensor, log_z: Tensor, n_samples: int, normalize: bool, dtype: torch.dtype, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        coarse, fine, _, _ = _ModalSum.factors(log_z, n_samples, dtype, device)
        left, right = _real_factors(a[..., None, :].to(coarse) * coarse, fine)
        blocks = left @ right  # (..., n/B, B)
        x = blocks.flatten(-2)
        x[..., n_samples:] = 0
        k = blocks.abs().amax(-1).argmax(-1, keepdim=True)  # faster than to look for the peak in all samples
        at = k * blocks.shape[-1] + blocks.gather(-2, k[..., None].expand(*k.shape, blocks.shape[-1])).abs().argmax(-1)
        x = x[..., :n_samples].contiguous()
        return (x.div_(nonzero(x.gather(-1, at).abs())) if normalize else x), at

    @staticmethod
    def factors(
        log_z: Tensor, n: int, dtype: torch.dtype, device: torch.device, stretch: int = 1
    ) -> tuple[Tensor, ...]:
        """zᴮᵏ (..., n/B, modes), zⁱ (..., B, modes), and the counts B k and i as columns; B = stretch · √n."""
        block = stretch * math.ceil(math.sqrt(n))
        coarse = _powers(log_z * block, math.ceil(n / block), dtype, device)
        fine = _powers(log_z, block, dtype, device)
        i = torch.arange(block, dtype=dtype, device=device)[:, None]
        return coarse, fine, block * i[: coarse.shape[-2]], i

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        a, log_z, *ctx.options = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(a, log_z, output[1])
        ctx.save_for_forward(a, log_z, output[1])

    @staticmethod
    def peak(a: Tensor, log_z: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        """The sum (..., 1) at the sample n = `at` (..., 1), with its sign, and zⁿ (..., modes)."""
        z = torch.exp(log_z * at.to(log_z.real))
        return nonzero((a * z).imag.sum(-1, keepdim=True)), z

    @staticmethod
    @full_precision()
    def jvp(ctx: Any, da: Tensor, dlog_z: Tensor, *_: None) -> tuple[Tensor, None]:
        a, log_z, at = ctx.saved_tensors
        n_samples, normalize, dtype, device = ctx.options
        if normalize:  # the amplitudes carry the change of the peak
            peak, z = _ModalSum.peak(a, log_z, at)
            dpeak = ((da + a * dlog_z * at.to(a)) * z).imag.sum(-1, keepdim=True)
            a, da = a / peak.abs(), (da - a * dpeak / peak) / peak.abs()
        # Several tangents differ in the left matrix only, so that one is kept short. And sound by sound they become
        # rows of one product, where a batched product would copy the right matrix for each.
        coarse, fine, Bk, i = _ModalSum.factors(log_z, n_samples, dtype, device, stretch=2)
        da, dz = da[..., None, :].to(coarse), (a * dlog_z)[..., None, :].to(coarse)
        left = torch.cat([(da + dz * Bk) * coarse, dz * coarse], -1)
        left, right = _real_factors(left, torch.cat([fine, i * fine], -1))
        n_sounds = a.shape[:-1].numel()
        pairs = zip(*(matrix.reshape(n_sounds, *matrix.shape[-2:]) for matrix in (left, right)), strict=True)
        sounds = [(one @ other).flatten()[:n_samples] for one, other in pairs]
        return (torch.stack(sounds) if sounds else dz.real.new_zeros(0)).reshape(*a.shape[:-1], n_samples), None

    @staticmethod
    @full_precision()
    def backward(ctx: Any, dx: Tensor, _: None) -> tuple[Tensor | None, ...]:
        a, log_z, at = ctx.saved_tensors
        n_samples, normalize, dtype, device = ctx.options
        coarse, fine, Bk, i = _ModalSum.factors(log_z, n_samples, dtype, device)
        dx = pad(dx, (0, len(Bk) * len(i) - n_samples)).unflatten(-1, (len(Bk), len(i)))
        products = dx @ torch.view_as_real(torch.cat([fine, i * fine], -1)).flatten(-2)
        first, second = torch.view_as_complex(products.unflatten(-1, (-1, 2))).chunk(2, -1)
        z = (coarse * first).sum(-2).to(log_z)  # Σ_n dx[n] zⁿ
        nz = (coarse * (Bk * first + second)).sum(-2).to(log_z)  # Σ_n dx[n] n zⁿ
        if normalize:  # x/peak does not change where all amplitudes grow alike
            peak, z_at = _ModalSum.peak(a, log_z, at)
            share = (a * z).imag.sum(-1, keepdim=True) / peak
            z = (z - share * z_at) / peak.abs()
            nz = (nz - share * at.to(a) * z_at) / peak.abs()
        return z.imag, 1j * (a * nz).conj(), None, None, None, None


@full_precision()
def modal_sum(
    omega: Tensor,
    sigma: Tensor,
    amplitude: Tensor,
    n_samples: int = N_SAMPLES,
    sample_rate: float = SAMPLE_RATE,
    *,
    normalize: bool = True,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
) -> Tensor:
    """Sound of any damped modes: x[n] = Σ_m a_m exp(−σ_m n/sr) sin(ω_m n/sr).

    Parameters
    ----------
    omega, sigma, amplitude : Tensors, shape (..., n_modes), float64
        In rad/s, 1/s and any unit in which `dtype` can hold them. A mode of zero amplitude costs as much as any
        other: leave it out.
    n_samples : int
    sample_rate : float, Hz
        Modes at or above half of it are left out, one by one. At half of it a mode is 0 at every sample, so that
        the sound stays continuous in ω; its derivative does not.
    normalize : bool
        Divide by max |x|.
    dtype, device : of the sound and of the large matrix product

    Returns
    -------
    x : Tensor, shape (..., n_samples)

    Raises
    ------
    ValueError
        If n_samples or sample_rate is not positive.
    """
    if n_samples < 1 or sample_rate <= 0:
        raise ValueError(f"expected n_samples ≥ 1 and sample_rate > 0 Hz, got {n_samples} and {sample_rate}")
    audible = omega < math.pi * sample_rate
    # A left-out mode is set to rest before exponentiating, which keeps its gradient 0, not 0 · ∞.
    rest = torch.zeros((), dtype=omega.dtype, device=omega.device)
    log_z = torch.complex(torch.where(audible, -sigma, rest), torch.where(audible, omega, rest)) / sample_rate
    amplitude = torch.where(audible, amplitude, rest)
    where = torch.device(device or omega.device)
    few = max(1, CACHED // n_samples) if where.type == "cpu" else max(1, omega.shape[:-1].numel())
    parts = zip(*(each.reshape(-1, omega.shape[-1]).split(few) for each in (amplitude, log_z)), strict=True)
    x = [_ModalSum.apply(*part, n_samples, normalize, dtype, where)[0] for part in parts]
    return torch.cat(x).reshape(*omega.shape[:-1], n_samples)


@full_precision()
def rectangular_drum(
    theta: Tensor,
    n_samples: int = N_SAMPLES,
    sample_rate: float = SAMPLE_RATE,
    *,
    n_modes: int = 10,
    strike: tuple[float, float] = POSITION,
    ear: tuple[float, float] = POSITION,
    diagonal: bool = False,
    normalize: bool = True,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The sound of the drum: x = g(θ).

    Parameters
    ----------
    theta : Tensor, shape (..., 5)
        Keep θ in float64: rounding it to float32 alone moves x by 10⁻³, for phases reach 10⁵ rad.
    n_samples, sample_rate, normalize
        As in `modal_sum`.
    n_modes, strike, ear
        As in `modes`.
    diagonal : bool
        Only the modes with m₁ = m₂ sound: the drum of the papers' first experiments.
    dtype : torch.dtype, optional
        Of the sound and of the large matrix product; θ's if not given. The small factors are
        formed in float64 in any case, so float32 sounds err by 10⁻⁶.

    Returns
    -------
    x : Tensor, shape (..., n_samples)

    Raises
    ------
    ValueError
        If θ has another shape or lies outside the physical domain, if a position lies outside the drum, or if
        n_samples or sample_rate is not positive.
    """
    check_theta(theta)
    device, dtype = theta.device, dtype or theta.dtype
    theta = in_float64(theta)  # phases need it
    heard = mode_shapes(n_modes, strike, ear).abs() > 1e-12  # not a node of strike or ear
    heard = heard.nonzero()[:, 0]
    heard = heard[heard % (n_modes + 1) == 0] if diagonal else heard
    heard = heard.to(theta.device)
    omega, sigma, amplitude = (value[..., heard] for value in modes(theta, n_modes, strike, ear))
    return modal_sum(omega, sigma, amplitude, n_samples, sample_rate, normalize=normalize, dtype=dtype, device=device)


DRUM = Synthesizer("drum", PARAMETERS, rectangular_drum, N_SAMPLES, SAMPLE_RATE, peak_normalized=True)
