"""What training minimizes: the loss that a configuration names, for rows of a data set.

Adam is nearly blind to a positive factor of the loss, but its small constant and the range of float32 are not, and M
spans many decades. So PNP is divided by λ d + m, where m and d are the medians over the training set of tr M / n and
tr D / n (D is what λ multiplies; d = 1 for D = I): the loss stays near P-loss for large λ, and of order one when λ is
gone.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .curves import STEPS, curve_form, near_metric
from .damping import AdaptiveDamping, ConstantDamping, ScheduledDamping, damping_matrix, largest_damping
from .dataset_config import DatasetConfig, ear
from .encoder import complete, sought
from .losses import mean_of_form, mss_loss, parameter_loss, pnp_loss, spectral_loss
from .runtime import float64_device
from .store import Rows
from .training_config import TrainingConfig


class Batch(NamedTuple):
    """Rows of a split, on the device where each is used; k of the n parameters are to be predicted."""

    S: Tensor  # (B, filters, frames): scalogram
    nu: Tensor  # (B, n), float64
    M: Tensor | None = None  # (B, k, k), float64, for PNP, and for curves what they are nearby
    D: Tensor | None = None  # (B, k, k): what λ multiplies
    features: Tensor | None = None  # (B, P): Φ(g(ν)), for the spectral loss, where the data set keeps it
    curves: Tensor | None = None  # (B, K, K): G, for the loss of that name


Loss = Callable[[Tensor, Batch, float], Tensor]  # of ν̃ (B, k), the batch it was predicted for, and λ


def make_loss(
    config: TrainingConfig, data: DatasetConfig, d: float = 1.0, m: float = 1.0, device: torch.device | str = "cpu"
) -> Loss:
    """The loss that `config` names for sounds of `data`; PNP is divided by λ d + m; features are taken on `device`."""
    columns = sought(data, config.known)
    features = ear(data, device) if config.loss == "spectral" else torch.nn.Identity()

    def synthesizer(nu: Tensor) -> Tensor:
        return data.synthesizer(nu, torch.float32)

    def parameter(nu_hat: Tensor, batch: Batch, damping: float) -> Tensor:
        return parameter_loss(nu_hat, batch.nu[:, columns], config.root)

    def pnp(nu_hat: Tensor, batch: Batch, damping: float) -> Tensor:
        assert batch.M is not None
        assert batch.D is not None
        return pnp_loss(nu_hat, batch.nu[:, columns], (batch.M + damping * batch.D) / (damping * d + m), 0, config.root)

    def curves(nu_hat: Tensor, batch: Batch, damping: float) -> Tensor:
        assert batch.curves is not None
        assert batch.D is not None
        error = nu_hat - batch.nu[:, columns]
        q = curve_form(complete(nu_hat, batch.nu, columns), batch.nu, batch.curves, STEPS)
        q = q + damping * torch.einsum("bi,bij,bj->b", error, batch.D, error)
        return mean_of_form(q / (damping * d + m), config.root)

    def mss(nu_hat: Tensor, batch: Batch, damping: float) -> Tensor:
        return mss_loss(complete(nu_hat, batch.nu, columns), batch.nu, synthesizer)

    def spectral(nu_hat: Tensor, batch: Batch, damping: float) -> Tensor:
        predicted = complete(nu_hat, batch.nu, columns)
        return spectral_loss(predicted, batch.nu, features, synthesizer, batch.features, config.root)

    losses = {"parameter": parameter, "pnp": pnp, "curves": curves, "mss": mss, "spectral": spectral}
    return losses[config.loss]


def as_batch(rows: Rows, columns: list[int], config: TrainingConfig, device: torch.device) -> Batch:
    """A whole split, so that no step waits for it: a GPU holds the paper's 82 224 drums in 1.1 GB."""
    where = float64_device(device)
    features = None if rows.features is None else rows.features.to(where)
    assert rows.scalogram is not None
    batch = Batch(rows.scalogram.to(device), rows.nu.to(where), features=features)
    if config.loss == "curves":
        assert rows.curves is not None
        batch = batch._replace(curves=rows.curves.to(where))
        metric = near_metric(rows.curves, rows.nu, STEPS)
    elif config.loss == "pnp":
        assert rows.metric is not None
        metric = rows.metric
    else:
        return batch
    M = metric[:, columns][:, :, columns].to(where)
    if config.unit_trace:
        M = M / M.diagonal(dim1=1, dim2=2).sum(-1).clamp_min(torch.finfo(M.dtype).tiny)[:, None, None]
    return batch._replace(M=M, D=damping_matrix(M, config.damping_shape))


def first_damping(config: TrainingConfig, rows: Batch) -> tuple[ConstantDamping, float, float]:
    """The damping rule at its start, and the scales d and m of the loss."""
    if rows.M is None or rows.D is None:
        return ConstantDamping(0.0), 1.0, 1.0
    m, d = (float(values.diagonal(dim1=1, dim2=2).mean(-1).median()) for values in (rows.M, rows.D))
    if not m > 0:
        raise ValueError(
            "expected metrics that are not zero: of more than half of the sounds for training, what is sought changes "
            "nothing that is heard"
        )
    lambda_0 = largest_damping(rows.M, rows.D) if config.lambda_0 is None else config.lambda_0
    if config.damping == "scheduled":  # down to where λ has no say, a hundredth of M's own size
        last = min(lambda_0, m / d) / 100
        ratio = (last / lambda_0) ** (1 / max(1, config.n_epochs - 1)) if lambda_0 else 1.0
        return ScheduledDamping(lambda_0, ratio=ratio), d, m
    return {"constant": ConstantDamping, "adaptive": AdaptiveDamping}[config.damping](lambda_0), d, m
