"""Training f_W with one of the losses and one of the dampings: one plain loop.

    for every epoch:    a random share of the training set, in batches: Adam on the loss
                        the validation loss, without damping, told to the damping rule
                        a record? keep the weights.  A failed epoch of the adaptive rule? go back to the best

Adam and learning rate are those of Han et al. (2023). Adam is nearly blind to a positive factor of the loss, but its
small constant and the range of float32 are not, and M spans many decades. So PNP is divided by λ d + m, where m and d
are the medians over the training set of tr M / n and tr D / n (D is what λ multiplies; d = 1 for D = I): the loss stays
near P-loss for large λ, and of order one when λ is gone.

Under torchrun or SLURM every process takes its share of each batch. Neither the batches nor the statistics of batch
normalization depend on the number of processes, and so, up to rounding, nor do the losses.
"""

import json
import math
import os
import pickle
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pandas as pd
import timm.layers
import torch
import torch.distributed.nn
from lightning_fabric import Fabric
from lightning_fabric.loggers import TensorBoardLogger
from torch import Tensor
from torch.nn.functional import batch_norm
from torch.overrides import TorchFunctionMode
from tqdm.auto import tqdm

from . import __version__
from .damping import AdaptiveDamping, ConstantDamping, ScheduledDamping, Shape, damping_matrix, largest_damping
from .dataset import DatasetConfig, Drums, ear, load, read_config
from .drum import rectangular_drum
from .encoder import AudioEncoder, Encoder, load_encoder, save
from .losses import mss_loss, parameter_loss, pnp_loss, spectral_loss
from .runtime import check_choices, connect, float64_device, refuse_difference, select_device, write_atomically
from .synthesizer import N_PARAMETERS


@dataclass(frozen=True)
class TrainingConfig:
    """How an encoder is trained.

    Parameters
    ----------
    data
        Path of the data set.
    output_folder
        Where checkpoint, metrics, results and encoder are written.
    loss
        "parameter", "pnp", or a spectral loss: "mss" or "jtfs".
    damping
        "constant", "scheduled" or "adaptive"; for the PNP loss, as are the next two.
    damping_shape
        What λ multiplies: "identity", "diagonal" (of M) or "mean" (of M over the training set).
    lambda_0
        The first λ; if not given, the one that just outweighs M for every training sound: with "identity" the
        largest eigenvalue.
    known_pitch
        Give ω₁ to the encoder's loss and predict the other four parameters.
    backbone
        Any convolutional network of timm.
    start_from
        File of an encoder of that kind, whose weights the training begins with; random ones, if not given. So a loss
        can take over where another ended.
    n_epochs
        Number of epochs.
    epoch_share
        Share of the training set that makes an epoch.
    batch_size
        Sounds a step, of all processes together.
    learning_rate
        Of Adam.
    final_learning_rate
        What the learning rate falls to in the last epoch, along half a period of a cosine; if not given, it stays.
    seed
        Of weights and batches.
    precision
        Of the network: "32-true", "bf16-mixed" (bfloat16 where that is safe), or "auto": bf16-mixed on a processor
        that has matrix units for it. PNP and P-loss are taken in float64 in any case.
    tensorboard
        Write the metrics for TensorBoard too, which must be installed.
    device
        "auto", "cpu", "cuda" or "mps".
    """

    data: str = "data/drums.zarr"
    output_folder: str = "runs/pnp"
    loss: Literal["parameter", "pnp", "mss", "jtfs"] = "pnp"
    damping: Literal["constant", "scheduled", "adaptive"] = "adaptive"
    damping_shape: Shape = "identity"
    lambda_0: float | None = None
    known_pitch: bool = False
    backbone: str = "efficientnet_b0"  # the paper's
    start_from: str | None = None
    n_epochs: int = 70  # the paper's
    epoch_share: float = 1.0  # the paper's: 25 600 of 82 224 sounds
    batch_size: int = 256  # the paper's, but for its spectral loss: 64
    learning_rate: float = 1e-3  # the paper's
    final_learning_rate: float | None = None  # the paper's rate is constant
    seed: int = 0
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    tensorboard: bool = False
    device: str = "auto"


class Batch(NamedTuple):
    """Rows of a split, on the device where each is used; n is 5, or 4 where the pitch is known."""

    S: Tensor  # (B, filters, frames): scalogram
    nu: Tensor  # (B, 5), float64
    M: Tensor | None = None  # (B, n, n), float64, for PNP only
    D: Tensor | None = None  # (B, n, n): what λ multiplies


Loss = Callable[[Tensor, Batch, float], Tensor]  # of ν̃ (B, n), the batch it was predicted for, and λ


def make_loss(
    config: TrainingConfig, data: DatasetConfig, d: float = 1.0, m: float = 1.0, device: torch.device | str = "cpu"
) -> Loss:
    """The loss that `config` names for sounds of `data`; PNP is divided by λ d + m; JTFS are computed on `device`."""
    known = int(config.known_pitch)  # leading parameters that are given
    synthesizer = partial(rectangular_drum, n_samples=data.n_samples, dtype=torch.float32)
    features = ear(data).to(device) if config.loss == "jtfs" else torch.nn.Identity()

    def parameter(nu_hat: Tensor, batch: Batch, damping: float) -> Tensor:
        return parameter_loss(nu_hat, batch.nu[:, known:])

    def pnp(nu_hat: Tensor, batch: Batch, damping: float) -> Tensor:
        assert batch.M is not None
        assert batch.D is not None
        return pnp_loss(nu_hat, batch.nu[:, known:], batch.M + damping * batch.D) / (damping * d + m)

    def complete(nu_hat: Tensor, nu: Tensor) -> Tensor:
        return torch.cat([nu[:, :known], nu_hat.to(nu.dtype)], -1)

    def mss(nu_hat: Tensor, batch: Batch, damping: float) -> Tensor:
        return mss_loss(complete(nu_hat, batch.nu), batch.nu, synthesizer)

    def jtfs(nu_hat: Tensor, batch: Batch, damping: float) -> Tensor:
        return spectral_loss(complete(nu_hat, batch.nu), batch.nu, features, synthesizer)

    return {"parameter": parameter, "pnp": pnp, "mss": mss, "jtfs": jtfs}[config.loss]


class SharedBatchNorm(TorchFunctionMode):
    """Context in which batch normalization takes its statistics over the batches of all processes.

    torch's own SyncBatchNorm needs a GPU.
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return (self._batch_norm if func is batch_norm else func)(*args, **(kwargs or {}))

    @staticmethod
    def _batch_norm(
        x: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        weight: Tensor,
        bias: Tensor,
        training: bool,
        momentum: float,
        eps: float,
    ) -> Tensor:
        if not training:
            return batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
        axes, dtype = [0, *range(2, x.ndim)], x.dtype  # all but the channels
        x = x.float()  # statistics of bfloat16 too
        world = torch.distributed.get_world_size()

        def mean_of_all(values: Tensor) -> Tensor:
            return torch.distributed.nn.functional.all_reduce(values.mean(axes, keepdim=True)) / world

        mean = mean_of_all(x)
        variance = mean_of_all((x - mean).square())
        n = world * x.numel() / x.shape[1]
        with torch.no_grad():
            running_mean.lerp_(mean.flatten(), momentum)
            running_var.lerp_(variance.flatten() * n / (n - 1), momentum)
        scale, shift = (values.reshape(mean.shape) for values in (weight, bias))
        return ((x - mean) * (variance + eps).rsqrt() * scale + shift).to(dtype)


def as_batch(drums: Drums, config: TrainingConfig, device: torch.device) -> Batch:
    """A whole split, so that no step waits for it: a GPU holds the paper's 82 224 sounds in 1.1 GB."""
    where = float64_device(device)
    rows = Batch(drums.scalogram.to(device), drums.nu.to(where))
    if config.loss != "pnp":
        return rows
    assert drums.metric is not None
    known = int(config.known_pitch)
    M = drums.metric[:, known:, known:].to(where)
    return rows._replace(M=M, D=damping_matrix(M, config.damping_shape))


def _batches(rows: Batch, order: Tensor, size: int, fabric: Fabric) -> Iterator[Batch]:
    """Batches of rows in an order; of each, the share of this process."""
    for batch in order.split(size):
        mine = batch[fabric.global_rank :: fabric.world_size]
        here = mine.to(rows.nu.device)
        M, D = (values if values is None else values[here] for values in (rows.M, rows.D))
        yield Batch(rows.S[mine.to(rows.S.device)], rows.nu[here], M, D)


def validate(network: torch.nn.Module, loss: Loss, rows: Batch, batch_size: int, fabric: Fabric) -> float:
    """Mean over a split of the loss without damping; the network is left in training mode.

    It is called as it is, not by way of the processes: of the last batch one of them may have no share.
    """
    network.eval()
    total = torch.zeros((), dtype=torch.float64)
    with torch.no_grad():
        for batch in _batches(rows, torch.arange(len(rows.nu)), batch_size, fabric):
            if len(batch.nu):
                with fabric.autocast():
                    nu_hat = network(batch.S)
                total += loss(nu_hat.to(batch.nu.device), batch, 0.0).cpu() * len(batch.nu)
    network.train()
    return float(_all_reduce(total, "sum", fabric)) / len(rows.nu)


def _all_reduce(total: Tensor, how: str, fabric: Fabric) -> Tensor:
    """The sum or mean over processes of a scalar; mps, always alone, could not even hold it in float64."""
    return total if fabric.world_size == 1 else fabric.all_reduce(total.to(fabric.device), reduce_op=how)  # type: ignore


def _check(config: TrainingConfig) -> None:
    check_choices(config)
    for name in ("n_epochs", "learning_rate"):
        if getattr(config, name) <= 0:
            raise ValueError(f"expected {name} > 0, got {getattr(config, name)}")
    if config.batch_size < 2:
        raise ValueError(f"expected batch_size ≥ 2, which batch normalization needs, got {config.batch_size}")
    if not 0 < config.epoch_share <= 1:
        raise ValueError(f"expected epoch_share in (0, 1], got {config.epoch_share}")
    for name in ("lambda_0", "final_learning_rate"):
        if getattr(config, name) is not None and getattr(config, name) < 0:
            raise ValueError(f"expected {name} ≥ 0, got {getattr(config, name)}")
    if config.loss == "pnp" and not read_config(config.data).metric:
        raise ValueError(f"{config.data} was built without the metric M, which the PNP loss needs")


def _learning_rate(config: TrainingConfig, epoch: int) -> float:
    first, last = config.learning_rate, config.final_learning_rate
    if last is None or config.n_epochs == 1:
        return first
    return last + (first - last) * (1 + math.cos(math.pi * epoch / (config.n_epochs - 1))) / 2


def _precision(config: TrainingConfig, device: torch.device) -> Literal["32-true", "bf16-mixed"]:
    if config.precision != "auto":
        return config.precision
    # AMX; AVX-512's instructions alone make no step faster. Nor does a GPU, measured (results/speed-cuda.json): steps
    # seem to wait there for kernels to be launched, and casts are more of them. Older torch cannot be asked.
    units = device.type == "cpu" and getattr(torch.cpu, "_is_amx_tile_supported", bool)()
    return "bf16-mixed" if units else "32-true"


def _first_damping(config: TrainingConfig, rows: Batch) -> tuple[ConstantDamping, float, float]:
    """The damping rule at its start, and the scales d and m of the loss."""
    if rows.M is None or rows.D is None:
        return ConstantDamping(0.0), 1.0, 1.0
    m, d = (float(values.diagonal(dim1=1, dim2=2).mean(-1).median()) for values in (rows.M, rows.D))
    lambda_0 = largest_damping(rows.M, rows.D) if config.lambda_0 is None else config.lambda_0
    if config.damping == "scheduled":  # down to where λ has no say, a hundredth of M's own size
        last = min(lambda_0, m / d) / 100
        ratio = (last / lambda_0) ** (1 / max(1, config.n_epochs - 1)) if lambda_0 else 1.0
        return ScheduledDamping(lambda_0, ratio=ratio), d, m
    return {"constant": ConstantDamping, "adaptive": AdaptiveDamping}[config.damping](lambda_0), d, m


def _first_weights(config: TrainingConfig, network: Encoder, data: DatasetConfig) -> dict[str, Tensor]:
    model = load_encoder(config.start_from)
    first = model.encoder
    if (first.name, first.n_outputs) != (network.name, network.n_outputs):
        raise ValueError(
            f"expected {config.start_from} to be a {network.name} of {network.n_outputs} outputs, "
            f"got a {first.name} of {first.n_outputs}"
        )
    if any(getattr(model.config, name) != getattr(data, name) for name in ("n_samples", "J", "Q", "T")):
        raise ValueError(f"{config.start_from} was trained on other scalograms than those of {config.data}")
    return first.state_dict()


def fit(config: TrainingConfig, progress: bool = True) -> pd.DataFrame:
    """Train an encoder; write `encoder.safetensors` and `results.json` of the best epoch to the output folder.

    After every epoch `checkpoint.pt` (weights, optimizer, λ, history, configuration; batches and all that is random
    follow from seed and epoch) and `metrics.jsonl` are written atomically: a killed run, called again, ends with the
    numbers of one that was never killed. More epochs may be asked for later, for which a scheduled damping goes on as
    it began; but not where the learning rate falls, for it has come to its end.

    Under torchrun or srun all processes train one encoder; the first of them writes.

    Returns
    -------
    history : DataFrame, one row an epoch
        epoch, damping (the λ of that epoch), training_loss (as minimized), validation_loss (without damping, in
        squared features for "pnp" and "jtfs"), record, seconds (of its steps, without validation).

    Raises
    ------
    ValueError
        If the configuration is impossible, the data set is missing, unfinished or damaged, the losses are not finite,
        the output folder holds a damaged run or one of another configuration, the encoder to start from is missing or
        of another kind, or TensorBoard is asked for and not installed.
    """
    _check(config)
    device = select_device(config.device)
    precision = _precision(config, device)
    fabric = connect(device, precision)
    device, world = fabric.device, fabric.world_size
    data = read_config(config.data)
    drums = load(config.data, "train")
    train, validation = (as_batch(split, config, device) for split in (drums, load(config.data, "validation")))
    if not len(validation.nu):
        raise ValueError(f"{config.data} has no sounds for validation: build a larger one")
    batch_size = min(config.batch_size, len(train.nu))
    if batch_size % world:
        raise ValueError(f"expected a batch size that {world} processes can share equally, got {batch_size}")
    damping, d, m = _first_damping(config, train)
    loss = make_loss(config, data, d, m, device)
    folder = Path(config.output_folder)
    try:
        logger = TensorBoardLogger(folder, name="", version="tensorboard") if config.tensorboard else None
    except ModuleNotFoundError as error:
        raise ValueError("tensorboard is not installed: pip install tensorboard") from error

    torch.manual_seed(config.seed)
    network = Encoder(config.backbone, N_PARAMETERS - config.known_pitch)
    checkpoint = folder / "checkpoint.pt"
    if config.start_from is not None and not checkpoint.exists():
        network.load_state_dict(_first_weights(config, network, data))
    network.to(memory_format=torch.channels_last)  # what convolutions are fastest in
    if world > 1 and device.type == "cuda":
        network = timm.layers.convert_sync_batchnorm(network)
    shared = SharedBatchNorm() if world > 1 and device.type == "cpu" else nullcontext()
    encoder, optimizer = fabric.setup(network, torch.optim.Adam(network.parameters(), lr=config.learning_rate))
    best: dict[str, Any] = {}
    history: list[dict[str, Any]] = []

    if checkpoint.exists():
        try:
            saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
        except (EOFError, RuntimeError, pickle.UnpicklingError) as error:
            raise ValueError(f"{checkpoint} is damaged: delete {folder} to start again") from error
        ignored = ["data", "output_folder", "tensorboard", "device"]
        ignored += ["n_epochs"] if config.final_learning_rate is None else []
        refuse_difference(saved["config"], config, f"{folder} holds a run", tuple(ignored))
        refuse_difference(saved["dataset"], data, f"{folder} holds a run on data", ("data", "device"))
        network.load_state_dict(saved["weights"])
        optimizer.load_state_dict(saved["optimizer"])
        damping, best, history = type(damping)(**saved["damping"]), saved["best"], saved["history"]
    fabric.barrier()

    n_steps = max(1, int(config.epoch_share * len(train.nu)) // batch_size)
    done, quiet = len(history), not (progress and fabric.is_global_zero)
    with tqdm(total=n_steps * config.n_epochs, initial=n_steps * done, unit="step", disable=quiet) as bar:
        for epoch in range(done, config.n_epochs):
            start = time.perf_counter()
            torch.manual_seed(config.seed * 1_000_003 + epoch + 1)  # batches
            order = torch.randperm(len(train.nu))[: n_steps * batch_size]
            torch.manual_seed((config.seed * 1_000_003 + epoch + 1) * world + fabric.global_rank)  # dropout, if any
            for group in optimizer.param_groups:
                group["lr"] = _learning_rate(config, epoch)
            total = torch.zeros((), dtype=torch.float64)
            for batch in _batches(train, order, batch_size, fabric):
                optimizer.zero_grad()
                with shared:
                    nu_hat = encoder(batch.S)
                step_loss = loss(nu_hat.to(batch.nu.device), batch, damping.value)
                fabric.backward(step_loss)
                optimizer.step()
                total = total.to(step_loss.device) + step_loss.detach()
                bar.update()
            training_loss = float(_all_reduce(total, "mean", fabric)) / n_steps
            seconds = time.perf_counter() - start
            validation_loss = validate(network, loss, validation, batch_size, fabric) * m
            if not math.isfinite(training_loss + validation_loss):
                raise ValueError(
                    f"epoch {epoch} ends with losses that are not finite (training {training_loss}, validation "
                    f"{validation_loss}): try a learning rate below {config.learning_rate:g}"
                )
            used, record = damping.value, damping.update(validation_loss)
            if record or not best:
                best = deepcopy({"weights": network.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch})
            elif isinstance(damping, AdaptiveDamping):  # Levenberg and Marquardt: undo the failed step
                network.load_state_dict(best["weights"])
                optimizer.load_state_dict(deepcopy(best["optimizer"]))  # else it would write into it
            losses = {"training_loss": training_loss, "validation_loss": validation_loss}
            history.append({"epoch": epoch, "damping": used, **losses, "record": record, "seconds": seconds})
            bar.set_postfix(validation=f"{validation_loss:.3g}", damping=f"{used:.3g}")
            state = {"weights": network.state_dict(), "optimizer": optimizer.state_dict(), "damping": asdict(damping)}
            state |= {"best": best, "history": history, "config": asdict(config), "dataset": asdict(data)}
            if fabric.is_global_zero:
                _write_checkpoint(checkpoint, state)
                _write_metrics(folder, history)
            if logger:
                logger.log_metrics({"damping": used, **losses}, step=epoch)
                logger.save()
            fabric.barrier()

    table = pd.DataFrame(history)
    threads = f"{torch.get_num_threads()} threads, {world} processes"
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    results = {
        "config": asdict(config),
        "dataset": asdict(data),
        "best_epoch": best["epoch"],
        "validation_loss": float(table.validation_loss[best["epoch"]]),
        "seconds_per_epoch": float(table.seconds.median()),
        "precision": precision,
        "version": __version__,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {chip}, {threads}",
    }
    network.load_state_dict(best["weights"])
    if fabric.is_global_zero:
        _write_metrics(folder, history)  # again: the process may have been killed between checkpoint and metrics
        save(AudioEncoder(network, data, {"training": results}), folder / "encoder.safetensors")
        write_atomically({folder / "results.json": json.dumps(results, indent=2).encode()})
    fabric.barrier()
    return table


def _write_metrics(folder: Path, history: list[dict[str, Any]]) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in history)
    write_atomically({folder / "metrics.jsonl": lines.encode()})


def _write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write beside the old checkpoint, then take its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    torch.save(state, new)
    os.replace(new, path)
