"""The geometry: Jacobian of the sound's features, and the Riemannian metric that they lay on parameter space.

    J(ν) = ∂(Φ∘g)/∂ν            (P × n)
    M(ν) = JᵀJ                  (n × n), symmetric positive semi-definite

so that ‖Φ(g(ν + δ)) − Φ(g(ν))‖² ≈ δᵀ M(ν) δ for a small step δ (Han et al., 2023, equation 5). The input has
few dimensions, a drum's has n = 5, and the output thousands. So J is taken in forward mode: n tangents travel with the
sound through the same linear operators.
"""

import warnings
from collections.abc import Callable
from numbers import Real
from threading import RLock

import torch
from torch import Tensor
from torch.func import jvp, vmap

from .runtime import in_float64

with warnings.catch_warnings():  # torch's forward-mode formulas warn of torch.jit when first used
    warnings.simplefilter("ignore")
    import torch._decomp.decompositions_for_jvp  # noqa: F401

Map = Callable[[Tensor], Tensor]
SMALLEST_STEP = 1e-6  # of a secant metric: below that, rounding rules even the stiffest direction
FORWARD_MODE = RLock()  # torch.func.jvp is for one thread at a time


def jacobian(nu: Tensor, features: Map, synthesizer: Map) -> tuple[Tensor, Tensor]:
    """Features of the sound of ν and their Jacobian over ν, in one pass of forward-mode differentiation.

    Parameters
    ----------
    nu : Tensor, shape (..., n)
        Best in float64, as `rectangular_drum` explains; the sum JᵀJ spans many decades.
    features : callable
        Any differentiable map from audio (..., n_samples) to vectors (..., P), such as `paper_features()`.
    synthesizer : callable
        Any differentiable map from ν (..., n) to audio (..., n_samples), such as `DRUM`.

    Returns
    -------
    S : Tensor, shape (..., P)
    J : Tensor, shape (..., P, n)

    Raises
    ------
    ValueError
        If ν has another shape, or lies where the synthesizer is not defined, or features are no callable or no
        real vectors.
    """
    check_features(features)
    x, dx = tangents(nu, synthesizer)
    S, J = push(features, x, dx)
    return check_vectors(S, x), J


def tangents(nu: Tensor, synthesizer: Map) -> tuple[Tensor, Tensor]:
    """Sound (..., n_samples) of ν (..., n) and its derivatives (n, ..., n_samples) over ν; errors as in `jacobian`."""
    _check_nu(nu)

    def along(direction: Tensor) -> tuple[Tensor, Tensor]:
        return jvp(synthesizer, (nu,), (direction.expand_as(nu),))  # type: ignore[return-value]

    directions = torch.eye(nu.shape[-1], dtype=nu.dtype, device=nu.device)
    with FORWARD_MODE:
        return vmap(along, out_dims=(None, 0))(directions)  # type: ignore[arg-type]  # None: x does not depend on it


def _check_nu(nu: Tensor) -> None:
    if not (isinstance(nu, Tensor) and nu.is_floating_point() and nu.ndim):
        got = f"{nu.dtype} of shape {tuple(nu.shape)}" if isinstance(nu, Tensor) else type(nu).__name__
        raise ValueError(f"expected ν (..., n) as a tensor in floating point, got {got}")


def check_features(features: Map) -> None:
    if not callable(features):
        raise ValueError(f"expected features as a callable, got {features!r}: `ears.find_ear` makes one of a name")


def push(features: Map, x: Tensor, dx: Tensor) -> tuple[Tensor, Tensor]:
    """Features S (..., P) of sounds x and their Jacobian (..., P, K) along tangents dx (K, ..., n_samples).

    By the features' own method `push` if they have one, as scattering has, else by `torch.func.jvp`.
    """
    if hasattr(features, "push"):
        S, dS = features.push(x, dx)
    else:
        with FORWARD_MODE:
            S, dS = vmap(lambda tangent: jvp(features, (x,), (tangent,)), out_dims=(None, 0))(dx)  # type: ignore
    return S, dS.movedim(0, -1)


def check_vectors(S: Tensor, x: Tensor) -> Tensor:
    """S, if it is a real vector (..., P) for each of the sounds x (..., n_samples); else raise ValueError."""
    if not isinstance(S, Tensor) or S.is_complex():
        got = S.dtype if isinstance(S, Tensor) else type(S).__name__
        raise ValueError(f"expected features as a tensor of real numbers, got {got}")
    if S.shape[:-1] != x.shape[:-1]:
        raise ValueError(
            f"expected features of shape (..., P), a vector for each sound, got {tuple(S.shape)} for sounds of shape "
            f"{tuple(x.shape)}: `flatten` makes vectors of pictures"
        )
    return S


def gram(J: Tensor) -> Tensor:
    """JᵀJ (..., n, n), in float64, of Jacobians (..., P, n)."""
    J = in_float64(J)
    return J.mT @ J


def riemannian_metric(nu: Tensor, features: Map, synthesizer: Map) -> Tensor:
    """M(ν) = JᵀJ of shape (..., n, n), float64, for ν (..., n); arguments and errors as in `jacobian`."""
    return gram(jacobian(nu, features, synthesizer)[1])


def secant_metric(nu: Tensor, features: Map, synthesizer: Map, step: float = 0.1) -> Tensor:
    """The metric at the scale of a step: JᵀJ with J of finite differences as wide as that step.

        J_j = (Φ(g(ν + h_j)) − Φ(g(ν − h_j))) / ‖2 h_j‖,    h_j = step along ν_j, cut where the box [−1, 1] ends

    M(ν) is right for errors so small that features change in proportion. Where errors are larger the features saturate,
    and M overstates what an error costs, the more the stiffer the direction. This one does not: no entry exceeds the
    square of the largest distance over a step. For step → 0 it tends to M(ν), until the differences drown in rounding.

    Parameters
    ----------
    nu : Tensor, shape (B, n), float64, in [−1, 1]
    features, synthesizer : callables
        As in `jacobian`, but need not be differentiable.
    step : float from 10⁻⁶ to 2
        About the size of the errors that are to be weighed; the whole range is 2. Of float32 features, what is hardly
        heard drowns in rounding well above 10⁻⁶, where only the stiffest direction is right.

    Returns
    -------
    M : Tensor, shape (B, n, n), float64

    Raises
    ------
    ValueError
        If ν has another shape or lies outside the box, step is out of bounds, or features are no callable or no real
        vectors.
    """
    _check_nu(nu)
    check_features(features)
    if nu.ndim != 2:
        raise ValueError(f"expected ν of shape (B, n), got {tuple(nu.shape)}")
    if not (inside := nu.abs() <= 1).all():
        raise ValueError(f"expected ν in [−1, 1], got {float(nu[~inside][0]):g}")
    if not (isinstance(step, Real | Tensor) and SMALLEST_STEP <= step <= 2):
        raise ValueError(f"expected step in [{SMALLEST_STEP:g}, 2], got {step!r}")
    h = step * torch.eye(nu.shape[-1], dtype=nu.dtype, device=nu.device)
    ends = torch.stack([(nu[:, None] - h).clamp(-1, 1), (nu[:, None] + h).clamp(-1, 1)])  # (2, B, n, n)
    width = (ends[1] - ends[0]).diagonal(dim1=-2, dim2=-1)  # (B, n)
    with torch.no_grad():
        x = synthesizer(ends.flatten(0, 2))
        below, above = check_vectors(features(x), x).unflatten(0, ends.shape[:3])
    return gram(((above - below) / width[..., None]).mT)


def eigen(metric: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues of metrics and the directions in ν that they belong to, from the sloppiest to the stiffest.

    Parameters
    ----------
    metric : Tensor, shape (..., n, n)

    Returns
    -------
    values : Tensor, shape (..., n), ascending, float64
        A step of length r along direction i moves the features by about r √values[..., i].
    directions : Tensor, shape (..., n, n)
        Direction i is the unit vector directions[..., :, i], its largest component positive.

    Raises
    ------
    ValueError
        If the metrics are not square matrices of finite real numbers.
    """
    if not isinstance(metric, Tensor) or metric.is_complex():
        got = metric.dtype if isinstance(metric, Tensor) else type(metric).__name__
        raise ValueError(f"expected metrics as a tensor of real numbers, got {got}")
    if metric.ndim < 2 or not metric.shape[-1] == metric.shape[-2] > 0:
        raise ValueError(f"expected metrics of shape (..., n, n), got {tuple(metric.shape)}")
    if not metric.isfinite().all():
        raise ValueError("expected finite metrics, got NaN or infinite entries")
    values, directions = torch.linalg.eigh(in_float64(metric))
    largest = directions.gather(-2, directions.abs().argmax(-2, keepdim=True))
    return values, directions * largest.sign()


def rank(metric: Tensor, tolerance: float = 1e-9) -> Tensor:
    """Number (...) of eigenvalues of metrics (..., n, n) above `tolerance` times the largest; errors as in `eigen`.

    The default is on the safe side: Jacobians in float32 give smaller eigenvalues, too, where small columns of J make
    them, but not where large columns cancel.
    """
    values, _ = eigen(metric)
    return (values > tolerance * values[..., -1:]).sum(-1)


def condition_number(metric: Tensor, damping: float = 0.0) -> Tensor:
    """(μ_n + λ) / (μ_1 + λ) (...) of the largest and the smallest eigenvalue of metrics (..., n, n).

    Infinite where M + λI is singular (or, by rounding, below). Errors as in `eigen`.
    """
    values, _ = eigen(metric)
    smallest = values[..., 0] + damping
    return torch.where(smallest > 0, (values[..., -1] + damping) / smallest, torch.inf)
