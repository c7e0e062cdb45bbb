"""The membrane equation itself, stepped through time on a grid: an independent check of the drum's closed form.

    ∂²u/∂t² + S⁴∇⁴u − c²∇²u + ∂/∂t (d₁u + d₃∇²u) = impulse,    u = ∇²u = 0 on the rim

Nothing here knows of modes, and no equation is shared with `drum`: finite differences in NumPy, float64. With
Δ the five-point Laplacian and k the time step, the explicit scheme is

    (u⁺ − 2u + u⁻)/k² = c² Δu − S⁴ ΔΔu − d₁ (u⁺ − u⁻)/2k − d₃ Δ(u − u⁻)/k,

of second order in the grid's spacing h, as k ∝ h² (S. Bilbao, Numerical Sound Synthesis, 2009, chapters 11 and 12).
"""

import math
from collections.abc import Iterator
from typing import Literal

import numpy as np
import soxr
import torch
from numpy.typing import ArrayLike

from .drum import N_SAMPLES, POSITION, SAMPLE_RATE, check_theta

COARSEST = 10  # intervals along each side


def constants(theta: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """S⁴, c², d₁, d₃, each (...), of drums θ (..., 5) with first side π: Han, Lostanlen and Lagrange (2023)."""
    log_omega, tau, log_p, log_D, alpha = np.moveaxis(np.asarray(theta, dtype=np.float64), -1, 0)
    omega_1, p, D, beta = 10**log_omega, 10**log_p, 10**log_D, alpha + 1 / alpha
    S4 = (D * omega_1 * alpha) ** 2 + (p * alpha / tau) ** 2
    c2 = alpha * (omega_1**2 * (1 / beta - D**2 * beta) + (1 / beta - p**2 * beta) / tau**2)
    return S4, c2, 2 * (1 - p * beta) / tau, -2 * p * alpha / tau


def _time_step(theta: ArrayLike, n_intervals: int) -> float:
    """Half the largest stable step of the coarsest grid, refined with the square of the spacing; checks θ, too."""
    if np.shape(theta) != (5,):
        raise ValueError(f"expected θ of one drum, of shape (5,), got {np.shape(theta)}")
    check_theta(torch.as_tensor(np.asarray(theta, dtype=float)))
    if n_intervals < COARSEST or n_intervals % 5:
        raise ValueError(f"expected n_intervals ≥ {COARSEST} and a multiple of 5, got {n_intervals}")
    S4, c2, _, d3 = (float(value) for value in constants(theta))
    alpha = float(np.asarray(theta)[4])
    gamma = 4 * (COARSEST / math.pi) ** 2 * (1 + 1 / alpha**2)  # largest eigenvalue of −Δ
    stiffness, damping = c2 * gamma + S4 * gamma**2, -d3 * gamma
    # The fastest pattern of the grid stays bounded while k² stiffness + 2 k damping ≤ 4.
    limit = (math.sqrt(damping**2 + 4 * stiffness) - damping) / stiffness
    return 0.5 * limit * (COARSEST / n_intervals) ** 2


def _motion(
    theta: ArrayLike,
    n_intervals: int,
    n_steps: int,
    strike: tuple[float, float] = POSITION,
    inside: ArrayLike = True,
    stretch: float = 0.0,
) -> Iterator[np.ndarray]:
    """Displacement of the inner nodes, step by step.

    Nodes where `inside` is False are held still. The tension grows with the stretched area (Berger's equation): c² is
    multiplied by 1 + stretch · ⟨|∇u|²⟩, the mean square slope.
    """
    S4, c2, d1, d3 = constants(theta)
    alpha = float(np.asarray(theta)[4])
    h1, h2 = math.pi / n_intervals, math.pi * alpha / n_intervals
    k = _time_step(theta, n_intervals)

    def laplacian(u: np.ndarray) -> np.ndarray:
        v = np.pad(u, 1)
        return ((v[2:, 1:-1] - 2 * u + v[:-2, 1:-1]) / h1**2 + (v[1:-1, 2:] - 2 * u + v[1:-1, :-2]) / h2**2) * inside

    shape = (n_intervals - 1, n_intervals - 1)
    old, u = np.zeros(shape), np.zeros(shape)
    node = tuple(round(fraction * n_intervals) - 1 for fraction in strike)
    u[node] = k / (h1 * h2)  # the impulse: unit momentum at one node
    before = np.zeros(shape)  # Δu of the step before
    yield old
    for _ in range(n_steps - 1):
        yield u
        now = laplacian(u)
        slope = -(u * now).mean() if stretch else 0.0  # by parts, for u is 0 on the rim
        force = c2 * (1 + stretch * slope) * now - S4 * laplacian(now) - d3 * (now - before) / k
        old, u = u, (2 * u - (1 - d1 * k / 2) * old + k**2 * force) / (1 + d1 * k / 2)
        before = now


def simulate(theta: ArrayLike, n_intervals: int, duration_s: float) -> tuple[np.ndarray, float]:
    """Displacement of a membrane that is struck at 0.4 of its sides, by finite differences.

    Parameters
    ----------
    theta : array, shape (5,)
        As in `drum.modes`.
    n_intervals : int
        Of the grid, along each side: a multiple of 5, so that a node is struck, and at least 10.
    duration_s : float, s

    Returns
    -------
    u : array, shape (n_steps, n_intervals − 1, n_intervals − 1)
        Inner nodes of the grid, in units of the impulse; m₁ runs along the second axis, m₂ along the last.
    sample_rate : float, Hz
        Steps a second.

    Raises
    ------
    ValueError
        If θ is not that of one physical drum, n_intervals does not fit, or duration_s ≤ 0.
    """
    k = _time_step(theta, n_intervals)
    if not 0 < duration_s < math.inf:
        raise ValueError(f"expected duration_s > 0, got {duration_s}")
    return np.stack(list(_motion(theta, n_intervals, math.ceil(duration_s / k)))), 1 / k


def play(
    theta: ArrayLike,
    rim: Literal["rectangle", "ellipse"] = "rectangle",
    strike: tuple[float, float] = POSITION,
    bend: float = 0.0,
    n_intervals: int = 20,
    n_samples: int = N_SAMPLES,
) -> np.ndarray:
    """Sound, at 0.4 of the sides, of membranes that `drum` does not know.

    Parameters
    ----------
    theta : array, shape (5,)
        As in `drum.modes`. Those numbers make a rectangle; another rim has its own pitch.
    rim : "rectangle" or "ellipse"
        The ellipse, a circle for α = 1, touches the sides of the rectangle.
    strike : pair of fractions of the sides
        The nearest node is struck.
    bend : float, at least 0 and less than 3
        How much more tension the membrane would have at the widest motion of one that does not tighten, than at rest:
        pitch then glides down as it fades. A tight one moves less: for 0.3 it has a quarter more, for 1 0.7 times more.
    n_intervals : int
        Of the grid, along each side, as in `simulate`; at least 15 for a bend above 1. Few detune the high modes.
    n_samples : int

    Returns
    -------
    x : array, shape (n_samples,), of peak 1, at 22 050 Hz

    Raises
    ------
    ValueError
        If θ is not that of one physical drum, n_intervals does not fit, rim or bend is none of the above, strike or ear
        lies outside the rim, or n_samples < 1.
    """
    if rim not in ("rectangle", "ellipse"):
        raise ValueError(f"expected rim 'rectangle' or 'ellipse', got {rim!r}")
    if not 0 <= bend < 3:  # half the step that is stable at rest is stable under less than four times the tension
        raise ValueError(f"expected a bend of at least 0 and less than 3, got {bend}")
    if bend > 1 and n_intervals < 15:
        raise ValueError(f"expected n_intervals ≥ 15 for a bend above 1, got {n_intervals}")
    if n_samples < 1:
        raise ValueError(f"expected n_samples ≥ 1, got {n_samples}")
    k = _time_step(theta, n_intervals)
    y = np.arange(1, n_intervals) / n_intervals
    inside = np.ones((n_intervals - 1, n_intervals - 1), bool)
    if rim == "ellipse":
        inside = np.hypot(y[:, None] - 0.5, y - 0.5) < 0.5
    n_steps = math.ceil(n_samples / SAMPLE_RATE / k) + 1
    node, ear = (tuple(round(f * n_intervals) - 1 for f in position) for position in (strike, POSITION))
    if not (min(node) >= 0 and max(node) < len(y) and inside[node] and inside[ear]):
        raise ValueError(f"expected a strike and an ear inside the rim, got {strike} and {POSITION}")

    def motion(n_steps: int, stretch: float) -> Iterator[np.ndarray]:
        return _motion(theta, n_intervals, n_steps, strike, inside, stretch)

    stretch = 0.0
    if bend:  # its widest motion comes at once: within a tenth of the usual time, however short the sound is
        h1, h2 = math.pi / n_intervals, math.pi * float(np.asarray(theta)[4]) / n_intervals
        slopes = [_mean_square_slope(u, h1, h2) for u in motion(math.ceil(N_SAMPLES / 10 / SAMPLE_RATE / k), 0.0)]
        stretch = bend / max(slopes)
    x = soxr.resample(np.array([u[ear] for u in motion(n_steps, stretch)]), 1 / k, SAMPLE_RATE)[:n_samples]
    return np.pad(x, (0, n_samples - len(x))) / np.abs(x).max()


def _mean_square_slope(u: np.ndarray, h1: float, h2: float) -> float:
    """Mean of |∇u|² over the membrane, as `_motion` has it by parts: edges between the rim, where u = 0, and the inner
    nodes count, too.
    """
    v = np.pad(u, 1)
    return float((np.square(np.diff(v, axis=0) / h1).sum() + np.square(np.diff(v, axis=1) / h2).sum()) / u.size)


def measure_mode(u: np.ndarray, sample_rate: float, m1: int, m2: int) -> tuple[float, float]:
    """Frequency ω in rad/s and decay rate σ in 1/s of the pattern (m₁, m₂) in a simulated motion u.

    The field is projected on sin(π m₁ y₁) sin(π m₂ y₂), and a damped sinusoid q fitted to what comes out by linear
    prediction, q[n + 1] = 2 e^(−σk) cos(ωk) q[n] − e^(−2σk) q[n − 1].
    """
    y = np.arange(1, u.shape[1] + 1) / (u.shape[1] + 1)
    q = np.einsum("nij,i,j->n", u, np.sin(math.pi * m1 * y), np.sin(math.pi * m2 * y))
    (b1, b2), *_ = np.linalg.lstsq(np.stack([q[1:-1], q[:-2]], -1), q[2:], rcond=None)
    z = (b1 + np.sqrt(complex(b1**2 + 4 * b2))) / 2
    return abs(np.angle(z)) * sample_rate, -math.log(abs(z)) * sample_rate
