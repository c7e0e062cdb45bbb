"""Damping λ of the PNP loss over the epochs: constant, scheduled, adaptive.

Every rule has the current λ as `value`, and `update(validation_loss)`, to be called once an epoch, which
moves λ and says whether the loss broke its record. A rule is a plain dataclass, so that a checkpoint
keeps it with `dataclasses.asdict` and a copy continues where it was.

The adaptive rule is Levenberg and Marquardt's, as used by Han et al. (2023, section 3.3): trust the metric
more after a success, and after a failure do not.
"""

import math
from dataclasses import dataclass


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
