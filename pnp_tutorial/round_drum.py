"""The round drum, for recordings: a circular skin, the stick that strikes it, and the tension that rises as it moves.

With j_mn the n-th zero of the Bessel function J_m and s = (j_mn/j_01)², 1 for the first mode, mode (m, n) of a skin
that is struck and heard at one point, at r of its radius, has

    σ_mn  = (1 + p (s − 1)) / τ₁                                           decay rate, 1/s
    ω_mn² = ω₁² s (1 + D² (s − 1)) + (s − 1) (1 − p)² / τ₁²                frequency, rad/s
    a_mn  = H(ω_mn) J_m(j_mn r)² / (J_m+1(j_mn)² ω_mn)                     amplitude, twice that if m > 0
    H(ω)  = 1 / (1 + (ω/ω_h)²),  ω_h = 2π f_h                              what the stick's pulse has at a frequency

The first two are those of `drum` for β = 1: their derivation asks of a rim for its s only. The stick's pulse is
ω_h² t e^(−ω_h t): a soft one lasts long. The wider a skin moves, the tighter it is: as its energy fades, like
e^(−2t/τ₁), its pitch glides down from (1 + b) ω₁ to ω₁. So its motion has a clock u of its own, and

    u(t) = t + b (1 − e^(−2t/τ₁)) τ₁/2
    y(t) = A_h(t) Σ a_mn e^(−σ_mn u) sin(ω_mn u) / max |Σ …|  +  A_n(t) 10^(L/20) e^(−t/τ_n) w(t)
    x(t) = K(t) y(t) / max |K y|

where w is the noise of stick, wires and room: white noise, one for all drums, in a band,

    N(ω) = e^(−(log₂(ω/ω_n) / w_n)² / 2),  ω_n = 2π f_n                    w_n octaves around f_n

of standard deviation 1/3. A_h and A_n are how skin and noise set in: as the integral of a pulse does, with ω_h or ω_n,

    A(t) = 1 − (1 + ω t) e^(−ω t)

and K is how the recording is cut off, 4 ms around t_c,

    K(t) = 1 / (1 + e^((t − t_c) / 4 ms))

`drum.modal_sum` makes the sound of a skin that does not glide, and cubic interpolation reads it at u.
"""

import math
from functools import cache, lru_cache

import numpy as np
import torch
from scipy.special import jn_zeros, jv
from torch import Tensor
from torch.nn.functional import pad

from .drum import CACHED, N_SAMPLES, SAMPLE_RATE, modal_sum, nonzero
from .runtime import full_precision, in_float64
from .synthesizer import Parameter, Synthesizer, check_domain

HIGHEST = 20  # above zero j_mn of the highest mode: more than eight times the pitch
N_ANGLES = 48  # of Bessel's integral, on half a circle: exact for m + j r < 2 · 48, up to rounding
N_OCTAVES = 10  # below half the sample rate, at whose ends the spectrum of noise is N
CUT = 0.004  # s, in which a sound is cut off
MOST_BEND = 2.0  # of the physical domain
BLOCK = 2**16  # samples of noise that are drawn at once
SEED = 22  # of the noise

PARAMETERS = (
    Parameter("log_omega", "log₁₀ ω₁", "log₁₀ rad/s", 2.0, 3.9, "pitch"),
    Parameter("tau", "τ₁", "s", 0.005, 2.0, "sustain of the first mode", "log"),
    Parameter("log_p", "log₁₀ p", "1", -4.0, 0.5, "how much faster high partials die"),
    Parameter("log_D", "log₁₀ D", "1", -4.0, 0.3, "inharmonicity"),
    Parameter("radius", "r", "1", 0.0, 0.98, "where it is struck: 0 in the middle, 1 at the rim"),
    Parameter("stick", "f_h", "Hz", 20.0, 20000.0, "hardness of the stick", "log"),
    Parameter("bend", "b", "1", 0.01, 1.0, "glide: how much higher the pitch begins", "log"),
    Parameter("noise", "L", "dB", -40.0, 40.0, "loudness of the noise"),
    Parameter("noise_tau", "τ_n", "s", 0.002, 1.0, "sustain of the noise", "log"),
    Parameter("noise_f", "f_n", "Hz", 20.0, 20000.0, "pitch of the noise: middle of its band", "log"),
    Parameter("noise_width", "w_n", "octaves", 0.5, 6.0, "width of that band", "log"),
    Parameter("cut", "t_c", "s", 0.01, 3.0, "when the sound is cut off", "log"),
)


def check_theta(theta: Tensor) -> None:
    """Raise ValueError unless θ (..., 12) describes a drum that can be; the message names parameter and value.

    Any finite ω₁, L and τ₁, f_h, τ_n, f_n, w_n and t_c > 0, p ≥ 0 and D ≥ 0 will do, and 0 ≤ r < 1 and 0 ≤ b < 2.
    (Inside `torch.vmap` values cannot be read, so that only the shape is checked there.)
    """
    anything, positive = (-math.inf, math.inf), (0, math.inf)
    skin = (anything, positive, anything, anything, (0, 1), positive, (0, MOST_BEND))
    domain = (*skin, anything, positive, positive, positive, positive)
    check_domain(theta, PARAMETERS, domain, "is not physical", with_lower_end=("log_p", "log_D", "radius", "bend"))


@cache
@torch.inference_mode(False)  # of which tensors that are kept would refuse gradients ever after
def _membrane() -> tuple[Tensor, Tensor, Tensor]:
    """m, j_mn and J_m+1(j_mn)² of all modes with j_mn < HIGHEST, float64, the lowest first."""
    zeros = [(j, m) for m in range(HIGHEST) for j in jn_zeros(m, HIGHEST) if j < HIGHEST]
    j, m = np.array(sorted(zeros)).T
    return torch.from_numpy(m.copy()), torch.from_numpy(j.copy()), torch.from_numpy(jv(m + 1, j) ** 2)


def _bessel(m: Tensor, z: Tensor) -> Tensor:
    """J_m(z), by Bessel's integral ∫ cos(m a − z sin a) da / π from 0 to π; the midpoint rule converges geometrically.

    (torch has J₀ and J₁ only, without derivatives.)
    """
    a = (torch.arange(N_ANGLES, dtype=z.dtype, device=z.device) + 0.5) * math.pi / N_ANGLES
    return torch.cos(m[..., None] * a - z[..., None] * a.sin()).mean(-1)


def stick_spectrum(omega: Tensor, f_h: Tensor) -> Tensor:
    """H: what the pulse of a stick of hardness f_h, in Hz, has at ω, in rad/s. At f_h, half."""
    return 1 / (1 + (omega / (2 * math.pi * f_h)).square())


def noise_spectrum(omega: Tensor, f_n: Tensor, width: Tensor) -> Tensor:
    """N at ω (..., k), in rad/s, of noise around f_n, in Hz, over a width of octaves; the largest of the k is 1."""
    log_N = -((omega / (2 * math.pi * f_n)).log2() / width).square() / 2
    return torch.exp(log_N - log_N.detach().amax(-1, keepdim=True))


def modes(theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Frequencies, decay rates and amplitudes of the modes, as the skin comes to rest.

    Parameters
    ----------
    theta : Tensor, shape (..., 12)
        See `PARAMETERS`.

    Returns
    -------
    omega, sigma, amplitude : Tensors, shape (..., n_modes)
        Radian frequency in rad/s, decay rate in 1/s, amplitude in s, the lowest j_mn first.

    Raises
    ------
    ValueError
        If θ has another shape or lies outside the physical domain.
    """
    check_theta(theta)
    log_omega, tau, log_p, log_D, radius, stick, *_ = theta.unsqueeze(-2).unbind(-1)  # each (..., 1)
    m, j, norm = (values.to(theta) for values in _membrane())
    p, D, s = 10**log_p, 10**log_D, (j / j[0]) ** 2
    sigma = (1 + p * (s - 1)) / tau
    omega = torch.sqrt(10 ** (2 * log_omega) * s * (1 + D**2 * (s - 1)) + (s - 1) * (1 - p) ** 2 / tau**2)
    shape = _bessel(m, j * radius).square() * torch.where(m > 0, 2, 1) / norm
    return omega, sigma, stick_spectrum(omega, stick) * shape / omega


def _fading(rate: Tensor, n: int, dtype: torch.dtype) -> Tensor:
    """e^(−rate k) (..., n) of rates (..., 1), for k < n: an outer product, so that 2√n are exponentiated."""
    block = math.ceil(math.sqrt(n))
    k = torch.arange(block, dtype=rate.dtype, device=rate.device)
    coarse, fine = torch.exp(-rate * block * k[: math.ceil(n / block)]).to(dtype), torch.exp(-rate * k).to(dtype)
    return (coarse[..., :, None] * fine[..., None, :]).flatten(-2)[..., :n]


def _swelling(rate: Tensor, n: int, dtype: torch.dtype) -> Tensor:
    """A (..., n) = 1 − (1 + rate k) e^(−rate k) of rates (..., 1), for k < n."""
    k = torch.arange(n, dtype=dtype, device=rate.device)
    return 1 - (1 + rate.to(dtype) * k) * _fading(rate, n, dtype)


def _glide(modes: tuple[Tensor, Tensor, Tensor], bend: Tensor, n: int, rate: float, dtype: torch.dtype) -> Tensor:
    """Σ a e^(−σ u) sin(ω u) (..., n) with u as at the head of this module, at n samples of t; 1/τ₁ is σ₁."""
    omega, sigma, amplitude = modes
    fading = 2 * sigma[..., :1] / rate
    most = bend / fading  # samples by which u is ahead of t in the end
    ahead = most - most * _fading(fading, n, omega.dtype)
    try:
        longest = n + int(ahead.detach()[..., -1].max()) + 3
    except RuntimeError:  # vmap
        longest = math.ceil((1 + MOST_BEND) * n) + 3
    ahead = ahead[..., 1:]
    x = modal_sum(omega, sigma, amplitude, longest, rate, normalize=False, dtype=dtype)
    whole = ahead.detach().long()
    f = (ahead - whole).to(dtype)
    at = whole + torch.arange(n - 1, device=whole.device)
    before, here, after, later = (x[..., k:].gather(-1, at) for k in range(4))  # by Newton's differences of these four
    slope, curve, bow = here - before, after - 2 * here + before, later - 3 * after + 3 * here - before
    y = before + (f + 1) * (slope + f / 2 * (curve + (f - 1) / 3 * bow))
    return pad(y, (1, 0))  # at rest at u = 0


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def _noise(n: int, sample_rate: float, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """White noise in octaves that overlap: their ω (k,), the octaves (k, n) and their mean products (k, k).

    If they are summed with weights, the spectrum goes through the weights at those ω, and straight in between over
    log ω. All add up to noise of standard deviation 1.
    """
    bins = BLOCK // 2  # up to half the sample rate
    below = -np.log2(np.maximum(np.arange(bins + 1), 0.5) / bins)  # octaves below that
    centres = np.arange(N_OCTAVES + 1)
    shares = np.maximum(0, 1 - np.abs(below.clip(0, N_OCTAVES) - centres[:, None]))
    white = [np.random.default_rng([SEED, i]).standard_normal(BLOCK) for i in range(math.ceil(n / BLOCK))]
    octaves = np.concatenate([np.fft.irfft(shares * np.fft.rfft(block)) for block in white], -1)
    products = octaves[:, :BLOCK] @ octaves[:, :BLOCK].T / BLOCK  # of one block, whatever n is
    omega = math.pi * sample_rate * 2.0**-centres
    return (
        torch.from_numpy(omega).to(device),
        torch.from_numpy(octaves[:, :n]).to(device=device, dtype=dtype),
        torch.from_numpy(products).to(device),
    )


def peak(x: Tensor) -> Tensor:
    """max |x| (..., 1) of sounds (..., n_samples), and 1 of silence."""
    return nonzero(x.abs().amax(-1, keepdim=True))


@full_precision()
def round_drum(
    theta: Tensor,
    n_samples: int = N_SAMPLES,
    sample_rate: float = SAMPLE_RATE,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The sound of the round drum: x = g(θ), of peak 1.

    Parameters
    ----------
    theta : Tensor, shape (..., 12)
        See `PARAMETERS`. Keep θ in float64, as for `rectangular_drum`.
    n_samples : int
    sample_rate : float, Hz
        Modes at or above half of it are left out, as in `modal_sum`. Those just below, whose glide begins above, alias
        at first: next to nothing of nine drums in ten, and up to a sixth of the skin of the worst.
    dtype : torch.dtype, optional
        Of the sound; θ's if not given. What is small is formed in float64 in any case.

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
    check_theta(theta)
    dtype, device = dtype or theta.dtype, theta.device
    rows = in_float64(theta.reshape(-1, theta.shape[-1]))
    few = max(1, CACHED // 4 // n_samples) if rows.device.type == "cpu" else max(1, len(rows))
    sounds = [_sounds(some, n_samples, sample_rate, dtype) for some in rows.split(few)]
    return torch.cat(sounds).reshape(*theta.shape[:-1], n_samples).to(device)


def _sounds(theta: Tensor, n: int, sample_rate: float, dtype: torch.dtype) -> Tensor:
    *_, stick, bend, level, noise_tau, noise_f, width, cut = theta.unsqueeze(-2).unbind(-1)  # each (..., 1)
    skin = _glide(modes(theta), bend, n, sample_rate, dtype)
    omega, octaves, products = _noise(n, sample_rate, dtype, theta.device)
    N = noise_spectrum(omega, noise_f, width)  # (..., 11)
    loudness = 10 ** (level / 20) * N / (N @ products * N).sum(-1, keepdim=True).sqrt() / 3
    noise = _fading(1 / (noise_tau * sample_rate), n, dtype) * (loudness.to(dtype) @ octaves)
    A_h, A_n = (_swelling(2 * math.pi * f / sample_rate, n, dtype) for f in (stick, noise_f))
    t = torch.arange(n, dtype=theta.dtype, device=theta.device) / sample_rate
    x = torch.sigmoid(((cut - t) / CUT).to(dtype)) * (A_h * skin / peak(skin) + A_n * noise)
    return x / peak(x)


ROUND_DRUM = Synthesizer("round_drum", PARAMETERS, round_drum, N_SAMPLES, SAMPLE_RATE, peak_normalized=True)
