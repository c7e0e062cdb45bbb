"""Training f_W with one of the losses and one of the dampings: one plain loop.

    for every epoch:    a random share of the training set, in batches: Adam on the loss
                        the validation loss, without damping, told to the damping rule
                        a record? keep the weights.  A failed epoch of the adaptive rule? go back to the best

Adam and learning rate are those of Han et al. (2023). Adam is nearly blind to a positive factor of the loss, but its
small constant and the range of float32 are not, and M spans many decades. So PNP is divided by λ d + m, where m and d
are the medians over the training set of tr M / n and tr D / n (D is what λ multiplies; d = 1 for D = I): the loss stays
near P-loss for large λ, and of order one when λ is gone.

Under torchrun or SLURM every process takes its share of each batch, and gradients are averaged. Batches do not depend
on the number of processes. Nor, on GPUs, do the statistics of batch normalization, which torch takes over all of them;
on CPUs it cannot, and each process normalizes its own share.
"""

import io
import json
import math
import os
import platform
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm.auto import tqdm

from . import __version__
from .curves import STEPS, curve_form, near_metric
from .damping import AdaptiveDamping, ConstantDamping, ScheduledDamping, Shape, damping_matrix, largest_damping
from .dataset import DatasetConfig, Rows, ear, load, read_config
from .drum import DRUM
from .encoder import (
    CHECKPOINT,
    AudioEncoder,
    Encoder,
    complete,
    load_encoder,
    refuse_other_scalogram,
    save,
    sought,
)
from .losses import mean_of_form, mss_loss, parameter_loss, pnp_loss, spectral_loss
from .metric import Map
from .runtime import (
    as_stored,
    check_fields,
    check_writable,
    connect,
    float64_device,
    lacks_means,
    refuse_difference,
    select_device,
    write_atomically,
)
from .synthesizer import Synthesizer

if TYPE_CHECKING:
    from lightning_fabric import Fabric

MOST_SEED = 2**32 - 1  # what is made of a seed, an epoch and a process fits into torch's 64 bits


@dataclass(frozen=True)
class TrainingConfig:
    """How an encoder is trained.

    Parameters
    ----------
    data
        Path of the data set.
    output_folder
        Where checkpoint, metrics, results and encoder are written.
    synthesizer
        Of the data set, if it is none of the library.
    ear
        Of the data set, if it is none of the library; only the spectral loss listens with it.
    loss
        "parameter", "pnp", "curves" (`curves.curve_form`: PNP that holds far away, too), "spectral" (squared distance
        in the features of the data set's ear), or "mss".
    damping
        "constant", "scheduled" or "adaptive"; for the losses pnp and curves, as are the next two.
    damping_shape
        What λ multiplies: "identity", "diagonal" (of M) or "mean" (of M over the training set).
    lambda_0
        The first λ; if not given, the one that just outweighs M for every training sound: with "identity" the
        largest eigenvalue.
    unit_trace
        Divide the metric of every sound by its trace, so that all sounds count alike; for the loss pnp.
    root
        δ: minimize `losses.root`, a distance, instead of its square. For pnp and curves it is in units of √(λ d + m),
        by which distances are divided; for the P-loss in ν; for the spectral loss in features. MSS is a distance.
    n_train
        Sounds to train on, drawn from the training set, the same for every seed: the drawn ones of a smaller number are
        among those of a larger one. All, if not given.
    n_validation
        Sounds to validate on, drawn in the same way.
    known
        Names of parameters that are given to the loss, and that the encoder need not predict; on the command line as
        [tau, alpha].
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
    clip
        Largest norm of a step's gradient: what is larger is scaled down to it. If not given, none is.
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
    synthesizer: Synthesizer | None = None
    ear: str | Map | None = None
    loss: Literal["parameter", "pnp", "curves", "spectral", "mss"] = "pnp"
    damping: Literal["constant", "scheduled", "adaptive"] = "adaptive"
    damping_shape: Shape = "identity"
    lambda_0: float | None = None
    unit_trace: bool = False
    root: float | None = None
    n_train: int | None = None
    n_validation: int | None = None
    known: tuple[str, ...] = ()
    backbone: str = "efficientnet_b0"  # the paper's
    start_from: str | None = None
    n_epochs: int = 70  # the paper's
    epoch_share: float = 1.0  # the paper's: 25 600 of 82 224 sounds
    batch_size: int = 256  # the paper's, but for its spectral loss: 64
    learning_rate: float = 1e-3  # the paper's
    final_learning_rate: float | None = None  # the paper's rate is constant
    clip: float | None = None
    seed: int = 0
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    tensorboard: bool = False
    device: str = "auto"

    def __post_init__(self) -> None:
        if isinstance(self.known, list):
            object.__setattr__(self, "known", tuple(self.known))


class Batch(NamedTuple):
    """Rows of a split, on the device where each is used; k of the n parameters are to be predicted."""

    S: Tensor  # (B, filters, frames): scalogram
    nu: Tensor  # (B, n), float64
    M: Tensor | None = None  # (B, k, k), float64, for PNP, and for curves what they are nearby
    D: Tensor | None = None  # (B, k, k): what λ multiplies
    features: Tensor | None = None  # (B, P): Φ(g(ν)), for the spectral loss, where the data set keeps it
    curves: Tensor | None = None  # (B, K, K): G, for the loss of that name


Loss = Callable[[Tensor, Batch, float], Tensor]  # of ν̃ (B, k), the batch it was predicted for, and λ


@dataclass
class State:
    """What an epoch changes, and a checkpoint keeps."""

    network: Encoder
    optimizer: Optimizer
    damping: ConstantDamping
    best: dict[str, Any] = field(default_factory=dict)  # weights, optimizer and number of the best epoch
    history: list[dict[str, Any]] = field(default_factory=list)  # a row an epoch


class Setup(NamedTuple):
    """What stays the same from the first step to the last."""

    config: TrainingConfig
    data: DatasetConfig
    fabric: "Fabric"
    precision: Literal["32-true", "bf16-mixed"]
    train: Batch  # all rows of the split
    validation: Batch
    loss: Loss
    unit: float  # of the loss without damping
    batch_size: int  # of all processes together
    n_steps: int  # an epoch

    @property
    def folder(self) -> Path:
        return Path(self.config.output_folder)


def fit(config: TrainingConfig, progress: bool = True) -> pd.DataFrame:
    """Train an encoder; write `encoder.safetensors` and `results.json` of the best epoch to the output folder.

    After every epoch `checkpoint.pt` (weights, optimizer, λ, history, configuration; batches and all that is random
    follow from seed and epoch) and `metrics.jsonl` are written atomically: a killed run, called again, ends with the
    numbers of one that was never killed. More epochs may be asked for later, for which a scheduled damping goes on as
    it began; but not where the learning rate falls, for it has come to its end.

    Under torchrun or srun all processes train one encoder; the first of them writes. If one dies, the others give up
    after ten minutes at the latest, with a RuntimeError.

    Returns
    -------
    history : DataFrame, one row an epoch
        epoch, damping (the λ of that epoch), training_loss (as minimized), validation_loss (without damping), record,
        seconds (of its steps, without validation). Of "pnp", "curves" and "spectral", validation_loss is half the
        squared distance in features (of "curves", in coarse spectra), or with `root` what `losses.root` makes of that
        square; with `unit_trace` it has no unit.

    Raises
    ------
    ValueError
        If the configuration is impossible, the data set is missing, unfinished, damaged or of another
        synthesizer, the losses are not finite, the output folder holds a damaged run, one of another configuration or
        one of more epochs, the encoder to start from is missing or of another kind, or TensorBoard is asked for and not
        installed.
    OSError
        If the output folder cannot be written to.
    """
    setup, state = set_up(config)
    fabric = setup.fabric
    encoder, state.optimizer = fabric.setup(state.network, state.optimizer)
    from lightning_fabric.loggers import TensorBoardLogger  # here, as it takes longer than torch

    logger = TensorBoardLogger(setup.folder, name="", version="tensorboard") if config.tensorboard else None
    resume(setup, state)
    done, quiet = len(state.history), not (progress and fabric.is_global_zero)
    with tqdm(total=setup.n_steps * config.n_epochs, initial=setup.n_steps * done, unit="step", disable=quiet) as bar:
        for epoch in range(done, config.n_epochs):
            start = time.perf_counter()
            for group in state.optimizer.param_groups:
                group["lr"] = _learning_rate(config, epoch)
            batches, damping = shuffled(setup, epoch), state.damping.value
            training_loss = train_one_epoch(
                encoder, state.optimizer, setup.loss, batches, damping, config.clip, fabric, bar
            )
            seconds = time.perf_counter() - start
            validation_loss = setup.unit * validate(
                state.network, setup.loss, setup.validation, setup.batch_size, fabric
            )
            losses = {"training_loss": training_loss, "validation_loss": validation_loss}
            _refuse_infinity(config, epoch, losses)
            record = keep_or_undo(state, epoch, validation_loss)
            state.history.append({"epoch": epoch, "damping": damping, **losses, "record": record, "seconds": seconds})
            bar.set_postfix(validation=f"{validation_loss:.3g}", damping=f"{damping:.3g}")
            write_checkpoint(setup, state)
            if logger:
                logger.log_metrics({"damping": damping, **losses}, step=epoch)
                logger.save()
            fabric.barrier()
    write_results(setup, state)
    return pd.DataFrame(state.history)


def train_one_epoch(
    encoder: nn.Module,
    optimizer: Optimizer,
    loss: Loss,
    batches: Iterator[Batch],
    damping: float,
    clip: float | None,
    fabric: "Fabric",
    bar: tqdm,
) -> float:
    """Minimize the loss, with λ = `damping`, a step a batch; return its mean over steps and processes."""
    total, n_steps = torch.zeros((), dtype=torch.float64), 0
    for batch in batches:
        optimizer.zero_grad()
        nu_hat = encoder(batch.S)  # (B, k)
        step_loss = loss(nu_hat.to(batch.nu.device), batch, damping)
        fabric.backward(step_loss)
        if clip is not None:
            fabric.clip_gradients(encoder, optimizer, max_norm=clip)
        optimizer.step()
        total, n_steps = total.to(step_loss.device) + step_loss.detach(), n_steps + 1
        bar.update()
    return float(_all_reduce(total, "mean", fabric)) / n_steps


def validate(network: torch.nn.Module, loss: Loss, rows: Batch, batch_size: int, fabric: "Fabric") -> float:
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


def _all_reduce(total: Tensor, how: str, fabric: "Fabric") -> Tensor:
    """The sum or mean over processes of a scalar; mps, always alone, could not even hold it in float64."""
    return total if fabric.world_size == 1 else fabric.all_reduce(total.to(fabric.device), reduce_op=how)  # type: ignore


def keep_or_undo(state: State, epoch: int, validation_loss: float) -> bool:
    """End an epoch as the damping rule wants it; True if the loss is the lowest so far."""
    record = state.damping.update(validation_loss)
    if record or not state.best:
        weights, optimizer = state.network.state_dict(), state.optimizer.state_dict()
        state.best = deepcopy({"weights": weights, "optimizer": optimizer, "epoch": epoch})
    elif isinstance(state.damping, AdaptiveDamping):  # Levenberg and Marquardt: undo the failed step
        state.network.load_state_dict(state.best["weights"])
        state.optimizer.load_state_dict(deepcopy(state.best["optimizer"]))  # else it would write into it
    return record


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


def drawn(rows: Rows, n: int | None, what: str) -> Rows:
    """n of some rows, at random; raises ValueError if there are not so many."""
    if n is None:
        return rows
    if n > len(rows.nu):
        raise ValueError(f"expected at most the {len(rows.nu)} {what}, got {n}")
    some = torch.randperm(len(rows.nu), generator=torch.Generator().manual_seed(0))[:n].sort().values
    return rows._replace(**{name: values[some] for name, values in rows._asdict().items() if values is not None})


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


def _batches(rows: Batch, order: Tensor, size: int, fabric: "Fabric") -> Iterator[Batch]:
    """Batches of rows in an order; of each, the share of this process."""
    share = slice(fabric.global_rank, None, fabric.world_size)
    orders = (order.to(where).split(size) for where in (rows.S.device, rows.nu.device))  # once: a GPU does not wait
    for batch_S, batch in zip(*orders, strict=True):
        here = batch[share]
        given = (values if values is None else values[here] for values in rows[2:])
        yield Batch(rows.S[batch_S[share]], rows.nu[here], *given)


def shuffled(setup: Setup, epoch: int) -> Iterator[Batch]:
    """The batches of an epoch: a random share of the training set, which follows from seed and epoch."""
    seed = setup.config.seed * 1_000_003 + epoch + 1
    torch.manual_seed(seed)
    order = torch.randperm(len(setup.train.nu))[: setup.n_steps * setup.batch_size]
    torch.manual_seed(seed * setup.fabric.world_size + setup.fabric.global_rank)  # dropout, if any
    return _batches(setup.train, order, setup.batch_size, setup.fabric)


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
    ask: Callable[[], dict[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)
    units = device.type == "cpu" and ask().get("amx_tile", False)
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


def check(config: TrainingConfig) -> None:
    """Raise ValueError, before any work, if a training cannot be as `config` has it.

    Raises OSError if the output folder cannot be written to.
    """
    check_fields(config)
    for name in ("n_epochs", "learning_rate"):
        if not 0 < getattr(config, name) < math.inf:
            raise ValueError(f"expected {name} > 0, got {getattr(config, name)}")
    if config.batch_size < 2:
        raise ValueError(f"expected batch_size ≥ 2, which batch normalization needs, got {config.batch_size}")
    if not 0 < config.epoch_share <= 1:
        raise ValueError(f"expected epoch_share in (0, 1], got {config.epoch_share}")
    for name in ("root", "clip", "n_train", "n_validation"):
        value = getattr(config, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"expected {name} > 0, got {value}")
    if config.root is not None and config.loss == "mss":
        raise ValueError(f"expected no root with the loss mss, which is a distance already, got root = {config.root}")
    if config.unit_trace and config.loss != "pnp":
        raise ValueError(f"expected unit_trace with the loss pnp only, got the loss {config.loss}")
    for name in ("lambda_0", "final_learning_rate", "seed"):
        value = getattr(config, name)
        if value is not None and not 0 <= value < math.inf:
            raise ValueError(f"expected {name} ≥ 0, got {value}")
    if config.seed > MOST_SEED:
        raise ValueError(f"expected seed ≤ {MOST_SEED}, got {config.seed}")
    check_writable(config.output_folder)
    data = read_config(config.data, config.synthesizer, config.ear)
    if unknown := [name for name in config.known if name not in data.synthesizer.names]:
        raise ValueError(f"expected known parameters of {data.synthesizer.names}, got {unknown[0]!r}")
    if not sought(data, config.known):
        raise ValueError(f"expected a parameter that is not known, got known = {config.known}")
    if config.loss == "pnp" and not data.metric:
        raise ValueError(f"{config.data} was built without the metric M, which the PNP loss needs")
    if config.loss == "curves" and not data.curves:
        raise ValueError(f"{config.data} was built without curves, which the loss of that name needs")
    if config.tensorboard and not find_spec("tensorboard") and not find_spec("tensorboardX"):
        raise ValueError("tensorboard is not installed: pip install tensorboard")


def set_up(config: TrainingConfig) -> tuple[Setup, State]:
    """Read the data and make a new network; errors as in `fit`."""
    check(config)
    device = select_device(config.device)
    precision = _precision(config, device)
    fabric = connect(device, precision)
    data = read_config(config.data, config.synthesizer, config.ear)
    names = {"pnp": ("metric",), "spectral": ("features",), "curves": ("curves",)}.get(config.loss, ())
    splits = {split: load(config.data, split, ("scalogram", *names)) for split in ("train", "validation")}
    for split, rows in splits.items():
        if not len(rows.nu):
            raise ValueError(f"{config.data} has no sounds for {split}: build a larger one")
    for split, n in (("train", config.n_train), ("validation", config.n_validation)):
        splits[split] = drawn(splits[split], n, f"{split} sounds of {config.data}")
    columns = sought(data, config.known)
    train, validation = (as_batch(rows, columns, config, fabric.device) for rows in splits.values())
    batch_size, world = min(config.batch_size, len(train.nu)), fabric.world_size
    if batch_size % world:
        raise ValueError(f"expected a batch size that {world} processes can share equally, got {batch_size}")
    if batch_size < 2 * (1 if fabric.device.type == "cuda" else world):  # GPUs share their statistics
        raise ValueError(
            f"expected at least two sounds a step for each process, which batch normalization needs, got {batch_size} "
            f"for {world}: batch_size = {config.batch_size}, and there are {len(train.nu)} sounds to train on"
        )
    damping, d, m = _first_damping(config, train)
    unit = m if config.root is None else math.sqrt(m)
    loss = make_loss(config, data, d, m, float64_device(fabric.device))  # where ν and stored features are
    n_steps = max(1, int(config.epoch_share * len(train.nu)) // batch_size)

    torch.manual_seed(config.seed)
    network = Encoder(len(columns), config.backbone)
    if config.start_from is not None and not Path(config.output_folder, CHECKPOINT).exists():
        network.load_state_dict(_first_weights(config, network, data))
    network.to(memory_format=torch.channels_last)  # what convolutions are fastest in
    if world > 1 and fabric.device.type == "cuda":
        from timm.layers import convert_sync_batchnorm

        network = convert_sync_batchnorm(network)
    state = State(network, torch.optim.Adam(network.parameters(), lr=config.learning_rate), damping)
    return Setup(config, data, fabric, precision, train, validation, loss, unit, batch_size, n_steps), state


def _first_weights(config: TrainingConfig, network: Encoder, data: DatasetConfig) -> dict[str, Tensor]:
    model = load_encoder(config.start_from, "cpu", config.synthesizer)  # whichever ear it was trained for
    first = model.encoder
    if (first.name, model.known) != (network.name, config.known):
        raise ValueError(
            f"expected {config.start_from} to be a {network.name} of {network.n_outputs} outputs, with known "
            f"parameters {config.known}, got a {first.name} of {first.n_outputs}, with {model.known}"
        )
    refuse_other_scalogram(model, data, config.data)
    return first.state_dict()


def modern(stored: Mapping[str, Any]) -> dict[str, Any]:
    """A stored configuration of a training as this version would store it: older ones say if the pitch is known."""
    known = list(DRUM.names[:1]) if stored.get("known_pitch") else []
    return {"known": known} | {name: value for name, value in stored.items() if name != "known_pitch"}


def resume(setup: Setup, state: State) -> None:
    """Go on from the checkpoint in the output folder, if there is one; errors as in `fit`."""
    path, config = setup.folder / CHECKPOINT, setup.config
    if path.exists():
        try:
            with zipfile.ZipFile(path) as parts:  # torch compares no checksums
                if damaged := parts.testzip():
                    raise ValueError(f"the checksum of {damaged} is wrong")
            saved = torch.load(path, map_location="cpu", weights_only=True)
            run, data, history = modern(saved["config"]), dict(saved["dataset"]), list(saved["history"])
            weights, optimizer, damping, best = (saved[name] for name in ("weights", "optimizer", "damping", "best"))
        except Exception as error:  # whatever the damage does
            if lacks_means(error):
                raise
            raise ValueError(f"{path} is damaged: delete {setup.folder} to start again") from error
        ignored = ["data", "output_folder", "synthesizer", "ear", "tensorboard", "device"]
        ignored += ["n_epochs"] if config.final_learning_rate is None else []
        refuse_difference(run, config, f"{setup.folder} holds a run", tuple(ignored))
        refuse_difference(data, setup.data, f"{setup.folder} holds a run on data", ("data", "device"))
        if config.n_epochs < len(history):
            raise ValueError(
                f"{setup.folder} holds a run of {len(history)} epochs: expected n_epochs of no less, "
                f"got {config.n_epochs}"
            )
        state.network.load_state_dict(weights)
        state.optimizer.load_state_dict(optimizer)
        state.damping, state.best, state.history = type(state.damping)(**damping), best, history
    setup.fabric.barrier()


def write_checkpoint(setup: Setup, state: State) -> None:
    """Write what `resume` reads, and the history, by the first process."""
    path = setup.folder / CHECKPOINT
    if setup.fabric.is_global_zero:
        if len(state.history) == 1 and path.exists():
            raise ValueError(f"{setup.folder} was empty, and holds another run by now: choose another path")
        content: dict[str, Any] = {"weights": state.network.state_dict(), "optimizer": state.optimizer.state_dict()}
        content |= {"damping": asdict(state.damping), "best": state.best, "history": state.history}
        content |= {"config": as_stored(setup.config), "dataset": as_stored(setup.data)}
        buffer = io.BytesIO()
        torch.save(content, buffer)
        write_atomically({path: buffer.getvalue()})
        _write_history(setup, state)


def _write_history(setup: Setup, state: State) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in state.history)
    write_atomically({setup.folder / "metrics.jsonl": lines.encode()})


def write_results(setup: Setup, state: State) -> None:
    """Write the best encoder, and how it came about, by the first process."""
    fabric, history = setup.fabric, pd.DataFrame(state.history)
    threads = f"{torch.get_num_threads()} threads, {fabric.world_size} processes"
    chip = torch.cuda.get_device_name(fabric.device) if fabric.device.type == "cuda" else fabric.device.type
    results = {
        "config": as_stored(setup.config),
        "dataset": as_stored(setup.data),
        "best_epoch": state.best["epoch"],
        "validation_loss": float(history.validation_loss[state.best["epoch"]]),
        "seconds_per_epoch": float(history.seconds.median()),
        "precision": setup.precision,
        "version": __version__,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {chip}, {threads}",
    }
    state.network.load_state_dict(state.best["weights"])
    if fabric.is_global_zero:
        _write_history(setup, state)  # again: the process may have been killed between checkpoint and metrics
        if not _is_written(setup.folder, results):
            model = AudioEncoder(state.network, setup.data, setup.config.known, {"training": results})
            save(model, setup.folder / "encoder.safetensors")
            write_atomically({setup.folder / "results.json": json.dumps(results, indent=2).encode()})
    fabric.barrier()


def _is_written(folder: Path, results: dict[str, Any]) -> bool:
    """Are encoder and results there, of this run and epoch? The encoder may have been evaluated since."""
    try:
        before = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        same = all(before[name] == results[name] for name in ("config", "dataset", "best_epoch", "validation_loss"))
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return same and (folder / "encoder.safetensors").exists()


def _refuse_infinity(config: TrainingConfig, epoch: int, losses: dict[str, float]) -> None:
    if not math.isfinite(sum(losses.values())):
        raise ValueError(
            f"epoch {epoch} ends with losses that are not finite (training {losses['training_loss']}, validation "
            f"{losses['validation_loss']}): try a learning rate below {config.learning_rate:g}"
        )
