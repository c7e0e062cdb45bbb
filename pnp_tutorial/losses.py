"""Losses between a prediction ν̃ and the truth ν, all (B, n); only ν̃ carries a gradient.

    P-loss      mean over batch and parameters of (ν̃ − ν)²
    spectral    mean over the batch of ½ ‖Φ(g(ν̃)) − Φ(g(ν))‖²
    MSS         mean over the batch of auraloss's distance between g(ν̃) and g(ν)
    PNP         mean over the batch of ½ (ν̃ − ν)ᵀ (M(ν) + λI) (ν̃ − ν)

PNP with λ = 0 is the spectral loss to second order in ν̃ − ν; for large λ it is λ times half the summed
P-loss (Han, Lostanlen and Lagrange, 2023, equations 3 to 8).

All but MSS are squared distances, q = ‖ν̃ − ν‖², ‖Φ(g(ν̃)) − Φ(g(ν))‖² or (ν̃ − ν)ᵀ (M(ν) + λI) (ν̃ − ν). Matches are
judged by distances, and so these losses have a second form, with `delta` > 0: the mean over the batch of
√(q + Δ²) − Δ, up to a factor the pseudo-Huber function of the distance. It is q / 2Δ for distances far below Δ and √q
far above it, so that the pull of a sound does not grow with its error.
"""

import torch
from torch import Tensor

from .metric import Map, check_vectors
from .mss import mss_distance
from .runtime import in_float64


def _check_pair(nu_hat: Tensor, nu: Tensor) -> None:
    if nu_hat.shape != nu.shape or nu.ndim < 1:
        raise ValueError(f"nu_hat and nu must have one shape (..., n), got {tuple(nu_hat.shape)} and {tuple(nu.shape)}")


def root(q: Tensor, delta: float) -> Tensor:
    """√(q + Δ²) − Δ of squared distances q, in their shape.

    Raises ValueError unless Δ > 0 has a square that the dtype of q can hold: √ has no slope at 0.
    """
    limits = torch.finfo(q.dtype)
    if not (delta > 0 and limits.tiny <= delta * delta <= limits.max):
        raise ValueError(f"expected delta > 0 with a square that {q.dtype} can hold, got {delta}")
    return q / ((q + delta * delta).sqrt() + delta)  # the same, where q is small beside Δ², too


def mean_of_form(q: Tensor, delta: float | None = None) -> Tensor:
    """Mean over the batch of half the squared distances q (B,); with `delta`, of their `root`, and errors as there."""
    # rounding may leave a form of zero just below it
    return (q / 2 if delta is None else root(q.clamp_min(0), delta)).mean()


def parameter_loss(nu_hat: Tensor, nu: Tensor, delta: float | None = None) -> Tensor:
    """Mean squared error on ν, a scalar; with `delta`, the mean over the batch of `root` of ‖ν̃ − ν‖².

    Raises ValueError if the shapes differ, or Δ ≤ 0.
    """
    _check_pair(nu_hat, nu)
    squares = (nu_hat - nu.detach()).square()
    return squares.mean() if delta is None else root(squares.sum(-1), delta).mean()


def spectral_loss(
    nu_hat: Tensor,
    nu: Tensor,
    features: Map,
    synthesizer: Map,
    target: Tensor | None = None,
    delta: float | None = None,
) -> Tensor:
    """½ ‖Φ(g(ν̃)) − Φ(g(ν))‖², mean over the batch, a scalar; Φ and g as in `metric.jacobian`.

    Differentiates through features and synthesizer: the costly loss that PNP approximates. `target` is Φ(g(ν)), of
    shape (B, P), where it is known from before. With `delta`, in features, it is `root` of the squared distance instead
    of half of it.
    Raises ValueError if the shapes differ, features are no real vectors, or Δ ≤ 0.
    """
    _check_pair(nu_hat, nu)
    if target is None:
        with torch.no_grad():
            target = features(synthesizer(in_float64(nu)))
    x = synthesizer(in_float64(nu_hat))
    S = check_vectors(features(x), x)
    if target.shape != S.shape:
        raise ValueError(f"expected target features of shape {tuple(S.shape)}, got {tuple(target.shape)}")
    return mean_of_form((S - target).square().sum(-1), delta)


def mss_loss(nu_hat: Tensor, nu: Tensor, synthesizer: Map) -> Tensor:
    """Multi-scale spectral loss, the paper's rival: `mss.mss_distance` of g(ν̃) from g(ν), mean over the batch.

    A scalar; raises ValueError if the shapes differ, and as `mss_distance` does.
    """
    _check_pair(nu_hat, nu)
    with torch.no_grad():
        target = synthesizer(in_float64(nu))
    return mss_distance(synthesizer(in_float64(nu_hat)), target).mean()


def pnp_loss(
    nu_hat: Tensor, nu: Tensor, metric: Tensor, damping: float | Tensor = 0.0, delta: float | None = None
) -> Tensor:
    """½ (ν̃ − ν)ᵀ (M + λI) (ν̃ − ν), mean over the batch; with `delta`, `root` of the form instead of half of it.

    Parameters
    ----------
    nu_hat, nu : Tensors, shape (..., n)
        Without the known parameters, which are left out of the metric, too.
    metric : Tensor, shape (..., n, n)
        M(ν), precomputed by `metric.riemannian_metric`.
    damping : float or scalar Tensor
        λ ≥ 0.
    delta : float > 0, optional
        Δ, in the units of the root of the form.

    Returns
    -------
    loss : scalar Tensor, float64, for the eigenvalues of M span many decades: on the CPU, if the device has none

    Raises
    ------
    ValueError
        If the shapes do not agree, λ < 0 or Δ ≤ 0.
    """
    _check_pair(nu_hat, nu)
    if metric.shape != (*nu.shape, nu.shape[-1]):
        raise ValueError(f"expected a metric of shape {(*nu.shape, nu.shape[-1])}, got {tuple(metric.shape)}")
    if not damping >= 0:
        raise ValueError(f"expected damping ≥ 0, got {float(damping):g}")
    error = in_float64(nu_hat - nu.detach())
    M = in_float64(metric.detach())
    q = torch.einsum("...i,...ij,...j->...", error, M, error) + damping * error.square().sum(-1)
    return mean_of_form(q, delta)
