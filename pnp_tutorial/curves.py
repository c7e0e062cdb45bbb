"""Curves: how the features change along each coordinate, near and far. A quadratic form of what they have come to.

    φ_j(h) = Φ(g(ν + h e_j)) − Φ(g(ν))                      the curve of coordinate j
    Φ(g(ν + e)) − Φ(g(ν)) ≈ Σ_j φ_j(e_j)                    the model: what the coordinates do adds up
    ‖Σ_j φ_j(e_j)‖² = wᵀ G w,  G_kl = φ_k · φ_l              with weights w(e) that interpolate between nodes

The metric M(ν) keeps the slope of each curve at h = 0, a secant metric its chord at one step. Here each curve is kept
at several nodes on both sides of ν, the last ones at the ends of the box, and is linear between them. So wᵀ G w
is the squared distance of the features at every node of every axis, levels off where they do, and for small steps is
eᵀ M e. As in M, the blocks of G off its diagonal say how parameters make up for each other.

Nodes lie at ν ± steps, cut where the box [−1, 1] ends, and at the ends of the box. They follow from ν and the steps,
and are not stored. G has their order: coordinate by coordinate, first the nodes below ν, then those above, from near
to far; m = 2 (len(steps) + 1) a coordinate. Nodes that fall together do no harm.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import pad

from .metric import Map, check_features, check_vectors, gram
from .runtime import in_float64

# Of data sets: from the errors of a good encoder to those of one that has learned nothing.
STEPS = (0.02, 0.06, 0.2, 0.6)


def curve_gram(nu: Tensor, features: Map, synthesizer: Map, steps: Sequence[float]) -> Tensor:
    """G of the features' changes at all nodes: G_kl = φ_k · φ_l.

    Parameters
    ----------
    nu : Tensor, shape (B, n), float64, in [−1, 1]
    features, synthesizer : callables
        As in `metric.jacobian`, but need not be differentiable. They are given B (1 + K) rows at once.
    steps : sequence of floats, 0 < h₁ < h₂ < … < 2
        In ν: from the smallest errors that matter to the largest; the ends of the box come by themselves.

    Returns
    -------
    G : Tensor, shape (B, K, K), float32
        K = 2 n (len(steps) + 1); symmetric, positive semi-definite to rounding.

    Raises
    ------
    ValueError
        If ν has another shape or lies outside the box, the steps do not ascend between 0 and 2, or features are no
        callable or no vectors.
    """
    check_features(features)
    _check(nu, steps)
    if not (inside := nu.abs() <= 1).all():
        raise ValueError(f"expected ν in [−1, 1], got {nu[~inside][0]:g}")
    side = torch.tensor([[-1], [1]], dtype=nu.dtype, device=nu.device)
    axis = torch.eye(nu.shape[1], dtype=nu.dtype, device=nu.device)
    moves = (side * _distances(nu, steps))[..., None] * axis[:, None, None]  # (B, n, 2, m/2, n)
    points = torch.cat([nu[:, None], nu[:, None] + moves.flatten(1, 3)], 1)  # (B, 1 + K, n)
    with torch.no_grad():
        x = synthesizer(points.flatten(0, 1))
        S = check_vectors(features(x), x).unflatten(0, points.shape[:2])
    return gram((S[:, 1:] - S[:, :1]).mT).float()


def curve_weights(error: Tensor, nu: Tensor, steps: Sequence[float]) -> Tensor:
    """w(e) with Σ_j φ_j(e_j) = Σ_k w_k φ_k: of each coordinate, the two nodes (or one) around its error.

    Beyond an end of the box a curve goes on along the chord to that end from the first node on the other side of ν: a
    chord that is never short.

    Parameters
    ----------
    error : Tensor, shape (B, n)
        e, in ν; it may lead out of the box.
    nu, steps
        As in `curve_gram`.

    Returns
    -------
    w : Tensor, shape (B, K), float64
        0 where e = 0; piecewise linear in e, differentiable but at the nodes.

    Raises
    ------
    ValueError
        If the shapes differ, or the steps do not ascend between 0 and 2. Whether ν lies in the box is not looked at:
        in each step of a training, a GPU would wait for the answer.
    """
    _check(nu, steps)
    if error.shape != nu.shape:
        raise ValueError(f"error and nu must have one shape (B, n), got {tuple(error.shape)} and {tuple(nu.shape)}")
    error = in_float64(error)
    nodes = _distances(in_float64(nu), steps)  # (B, n, 2, m/2)
    before = pad(nodes, (1, 0))[..., :-1]
    width = nodes - before
    below_above = torch.stack([-error, error], -1)[..., None]  # (B, n, 2, 1)
    passed = ((below_above - before) / width.where(width > 0, 1)).clamp(0, 1)  # shares of the ways from node to node
    w = passed - pad(passed, (0, 1))[..., 1:]
    first, last = nodes[..., :1], nodes[..., -1:]
    beyond = (below_above - last).relu() / (last + first.flip(-2))
    w = w + pad(beyond, (len(steps), 0)) - pad(beyond.flip(-2), (0, len(steps)))
    return w.flatten(1)


def curve_form(nu_hat: Tensor, nu: Tensor, G: Tensor, steps: Sequence[float]) -> Tensor:
    """Modelled squared distance of the features of ν̃ from those of ν, sound by sound: wᵀ G w with w = w(ν̃ − ν).

    Parameters
    ----------
    nu_hat : Tensor, shape (B, n)
        ν̃, the only one that carries a gradient. Of a known parameter it is the truth.
    nu, steps
        As in `curve_gram`.
    G : Tensor, shape (B, K, K)
        Of `curve_gram` with the same ν and steps.

    Returns
    -------
    q : Tensor, shape (B,), float64, ≥ 0

    Raises
    ------
    ValueError
        If the shapes do not agree, and as in `curve_weights`.
    """
    nu = nu.detach()
    if nu_hat.shape != nu.shape:
        raise ValueError(f"nu_hat and nu must have one shape (B, n), got {tuple(nu_hat.shape)} and {tuple(nu.shape)}")
    w = curve_weights(nu_hat - nu, nu, steps)
    if G.shape != (*w.shape, w.shape[1]):
        raise ValueError(f"expected G of shape {(*w.shape, w.shape[1])} for these steps, got {tuple(G.shape)}")
    q = torch.einsum("bk,bkl,bl->b", w, in_float64(G.detach()), w)
    return q.clamp_min(0)  # rounding may leave a form of zero just below it


def near_metric(G: Tensor, nu: Tensor, steps: Sequence[float]) -> Tensor:
    """The secant metric M (B, n, n), float64, that curves contain: its chords are those between the nearest nodes.

    G, ν and steps are as in `curve_form`, and so are the errors raised.
    """
    _check(nu, steps)
    n, side = nu.shape[1], len(steps) + 1
    if G.shape != (len(nu), 2 * n * side, 2 * n * side):
        raise ValueError(f"expected G of shape {(len(nu), 2 * n * side, 2 * n * side)}, got {tuple(G.shape)}")
    near = in_float64(G.reshape(-1, n, 2, side, n, 2, side)[:, :, :, 0, :, :, 0])  # (B, n, 2, n, 2)
    sign = near.new_tensor([-1.0, 1.0])
    width = _distances(nu, steps)[..., 0].sum(-1)  # (B, n)
    return torch.einsum("bisjt,s,t->bij", near, sign, sign) / (width[:, :, None] * width[:, None, :])


def _check(nu: Tensor, steps: Sequence[float]) -> None:
    if nu.ndim != 2:
        raise ValueError(f"expected ν of shape (B, n), got {tuple(nu.shape)}")
    if not (steps and all(a < b for a, b in pairwise([0, *steps, 2]))):
        raise ValueError(f"expected steps 0 < h₁ < h₂ < … < 2, got {tuple(steps)}")


def _distances(nu: Tensor, steps: Sequence[float]) -> Tensor:
    """Distances (B, n, 2, m/2) of the nodes below and above each coordinate from ν, from near to far."""
    ends = torch.stack([1 + nu, 1 - nu], -1)[..., None]
    inner = torch.tensor(steps, dtype=nu.dtype, device=nu.device).minimum(ends)
    return torch.cat([inner, ends], -1)
