"""Damping λ of the PNP loss over the epochs: constant, scheduled, adaptive.

Every rule has the current λ as `value`, and `update(validation_loss)`, to be called once an epoch, which
moves λ and says whether the loss broke its record. A rule is a plain dataclass, so that a checkpoint
keeps it with `dataclasses.asdict` and a copy continues where it was.

The adaptive rule is Levenberg and Marquardt's, as used by Han et al. (2023, section 3.3): trust the metric
more after a success, and after a failure do not.

What λ multiplies has a shape D: PNP weighs errors with M(ν) + λD, where D is

    identity    I                   Levenberg's: λ in the units of M
    diagonal    diag M(ν)           Marquardt's: each parameter in its own unit; λ has none
    mean        mean over ν of M    the same for all sounds: an average ear; λ has no unit
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Shape = Literal["identity", "diagonal", "mean"]


@dataclass
class ConstantDamping:
    """λ = λ₀."""

    value: float
    best: float = math.inf

    def update(self, validation_loss: float) -> bool:
        """Take note of the validation loss of an epoch; True if it is the lowest so far."""
        record = validation_loss < self.best
        self.best = min(self.best, validation_loss)
        return record


@dataclass
class ScheduledDamping(ConstantDamping):
    """Geometric decay: λ is multiplied by `ratio` after every epoch, whatever the loss."""

    ratio: float = 0.8

    def update(self, validation_loss: float) -> bool:
        """Take note of the validation loss of an epoch and decrease λ; True if the loss is the lowest so far."""
        self.value *= self.ratio
        return super().update(validation_loss)


@dataclass
class AdaptiveDamping(ConstantDamping):
    """λ is multiplied by `decrease` < 1 when the validation loss breaks its record, else by `increase` ≥ 1.

    Start it at the largest eigenvalue of the metric over the training set, where PNP is still close to
    P-loss. After a failure the caller goes back to the best weights.
    """

    decrease: float = 0.2
    increase: float = 1.0

    def update(self, validation_loss: float) -> bool:
        """Take note of the validation loss of an epoch and move λ; True if the loss is the lowest so far."""
        record = super().update(validation_loss)
        self.value *= self.decrease if record else self.increase
        return record


def damping_matrix(metric: Tensor, shape: Shape = "identity") -> Tensor:
    """What λ multiplies, D, for all metrics of a data set at once.

    Parameters
    ----------
    metric : Tensor, shape (B, n, n)
    shape : "identity", "diagonal" or "mean"

    Returns
    -------
    D : Tensor, shape (B, n, n), an expanded view where it is the same for all

    Raises
    ------
    ValueError
        If the metrics have another shape, or there is no such shape of damping.
    """
    if metric.ndim != 3 or metric.shape[-1] != metric.shape[-2]:
        raise ValueError(f"expected metrics of shape (B, n, n), got {tuple(metric.shape)}")
    if shape == "identity":
        return torch.eye(metric.shape[-1], dtype=metric.dtype, device=metric.device).expand_as(metric)
    if shape == "diagonal":
        return torch.diag_embed(metric.diagonal(dim1=-2, dim2=-1))
    if shape == "mean":
        return metric.mean(0).expand_as(metric)
    raise ValueError(f'expected a damping shape "identity", "diagonal" or "mean", got {shape!r}')


def largest_damping(metric: Tensor, D: Tensor) -> float:
    """The least λ with λD ⪰ M for all metrics M (B, n, n): for D = I the largest eigenvalue of all.

    From there on, λD outweighs M in every direction. Directions to which D is deaf are left out. Raises ValueError if
    there is no metric.
    """
    if not len(metric):
        raise ValueError("expected at least one metric, got none")
    size = D.diagonal(dim1=-2, dim2=-1)  # of each parameter in units of its own: λ does not depend on them
    unit = torch.where(size > 0, size, torch.inf).rsqrt()
    metric, D = (unit[..., :, None] * each * unit[..., None, :] for each in (metric, D))
    values, vectors = torch.linalg.eigh(D)
    kept = values > 1e-12 * values[..., -1:]
    root = vectors * torch.where(kept, values, torch.inf).rsqrt().unsqueeze(-2)  # D^(-1/2), rotated
    return float(torch.linalg.eigvalsh(root.mT @ metric @ root).max())
