"""Training f_W with one of the losses and one of the dampings: one plain loop.

    for every epoch:    a random share of the training set, in batches: Adam on the loss
                        the validation loss, without damping, told to the damping rule
                        a record? keep the weights.  A failed epoch of the adaptive rule? go back to the best

Adam and learning rate are those of Han et al. (2023). `training_config` has the settings, `objective` the losses,
`checkpoint` what is written; their names are found here, too.

Under torchrun or SLURM every process takes its share of each batch, and gradients are averaged. Batches do not depend
on the number of processes. Nor, on GPUs, do the statistics of batch normalization, which torch takes over all of them;
on CPUs it cannot, and each process normalizes its own share.
"""

import math
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm.auto import tqdm

from .checkpoint import Setup, State, resume, write_checkpoint, write_encoder
from .checks import refuse_elsewhere
from .damping import AdaptiveDamping
from .dataset_config import DatasetConfig
from .encoder import CHECKPOINT, Encoder, load_encoder, refuse_other_scalogram, sought
from .objective import Batch, Loss, as_batch, first_damping, make_loss
from .runtime import connect, float64_device, lacks_means, select_device, told
from .store import load, open_store, provenance
from .training_config import TrainingConfig, check

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Batch", "TrainingConfig", "as_batch", "check", "fit", "make_loss", "sought"]


def fit(config: TrainingConfig, progress: bool = True) -> pd.DataFrame:
    """Train an encoder; write `encoder.safetensors` and `results.json` of the best epoch to the output folder.

    After every epoch `checkpoint.pt` (weights, optimizer, λ, history, configuration; batches and all that is random
    follow from seed and epoch) and `metrics.jsonl` are written atomically: a killed run, called again, ends with the
    numbers of one that was never killed. More epochs may be asked for later, but not where the learning rate falls or
    the damping has a schedule, which have come to their end. A run whose losses are no longer finite ends with the best
    encoder before that, and a ValueError.

    Under torchrun or srun all processes train one encoder; the first of them writes. If one dies, the others give up
    as `runtime.connect` says, with a RuntimeError.

    Returns
    -------
    history : DataFrame, one row an epoch
        epoch, damping (the λ of that epoch), training_loss (as minimized), validation_loss (without damping), record
        (whether validation_loss is the lowest so far), seconds (of its steps, without validation). validation_loss is
        of "parameter" the mean squared error on ν; of "mss" that distance; of "spectral" half the squared distance in
        features; of "pnp" and "curves" the form that stands for it (in coarse spectra for "curves", and for "pnp" where
        the data set has a secant_step). With `root` it is what `losses.root` makes of the square; with `unit_trace` it
        has no unit.

    Raises
    ------
    ValueError
        If the configuration is impossible, the data set is missing, unfinished, damaged or of another
        synthesizer, no gradient passes the ear, the losses are not finite, the output folder holds a damaged run, one
        of another configuration or precision, of another version of timm or torch, or of more epochs, the encoder to
        start from is missing or of another kind, or TensorBoard is asked for and not installed.
    OSError
        If the output folder cannot be written to, or a file cannot be read.
    RuntimeError
        If another process has ended or does not answer.
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
            _share_statistics(state.network, fabric)
            validation_loss = setup.unit * validate(
                state.network, setup.loss, setup.validation, setup.batch_size, fabric
            )
            losses = {"training_loss": training_loss, "validation_loss": validation_loss}
            if not math.isfinite(sum(losses.values())):
                _end_at_infinity(setup, state, losses)
            record = keep_or_undo(state, epoch, validation_loss)
            state.history.append({"epoch": epoch, "damping": damping, **losses, "record": record, "seconds": seconds})
            bar.set_postfix(validation=f"{validation_loss:.3g}", damping=f"{damping:.3g}")
            write_checkpoint(setup, state)
            if logger:
                logger.log_metrics({"damping": damping, **losses}, step=epoch)
                logger.save()
            fabric.barrier()
    write_encoder(setup, state)
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
        fabric.backward(step_loss, inputs=list(encoder.parameters()))  # none for an ear's or synthesizer's own weights
        if clip is not None:
            fabric.clip_gradients(encoder, optimizer, max_norm=clip, error_if_nonfinite=False)
        optimizer.step()
        total, n_steps = total.to(step_loss.device) + step_loss.detach(), n_steps + 1
        bar.update()
    return float(_all_reduce(total, "mean", fabric)) / n_steps


def _share_statistics(network: nn.Module, fabric: "Fabric") -> None:
    """Give all processes the statistics of batches that the first one has, and that are kept: on CPUs they differ."""
    if fabric.world_size > 1:
        for buffer in network.buffers():
            torch.distributed.broadcast(buffer, 0)


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
    if record:
        weights, optimizer = state.network.state_dict(), state.optimizer.state_dict()
        state.best = deepcopy({"weights": weights, "optimizer": optimizer, "epoch": epoch})
    elif isinstance(state.damping, AdaptiveDamping):  # Levenberg and Marquardt: undo the failed step
        state.network.load_state_dict(state.best["weights"])
        state.optimizer.load_state_dict(deepcopy(state.best["optimizer"]))  # else it would write into it
    return record


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


def set_up(config: TrainingConfig) -> tuple[Setup, State]:
    """Read the data and make a new network; errors as in `fit`."""
    data, device = check(config), select_device(config.device)
    precision = _precision(config, device)
    fabric = connect(device, precision)
    if config.loss in ("mss", "spectral"):
        refuse_elsewhere(data.synthesizer, device)
    names = {"pnp": ("metric",), "spectral": ("features",), "curves": ("curves",)}.get(config.loss, ())
    columns, batches = sought(data, config.known), []
    for split, n in (("train", config.n_train), ("validation", config.n_validation)):
        rows = load(config.data, split, ("scalogram", *names), n)
        batches.append(as_batch(rows, columns, config, fabric.device))
    train, validation = batches
    batch_size, world = min(config.batch_size, len(train.nu)), fabric.world_size
    if batch_size % world:
        raise ValueError(f"expected a batch size that {world} processes can share equally, got {batch_size}")
    if batch_size < 2 * (1 if fabric.device.type == "cuda" else world):  # GPUs share their statistics
        raise ValueError(
            f"expected at least two sounds a step for each process, which batch normalization needs, got {batch_size} "
            f"for {world}: batch_size = {config.batch_size}, and there are {len(train.nu)} sounds to train on"
        )
    damping, d, m = first_damping(config, train)
    unit = m if config.root is None else math.sqrt(m)
    loss = make_loss(config, data, d, m, float64_device(fabric.device))  # where ν and stored features are
    if config.loss in ("mss", "spectral"):
        _refuse_without_gradient(loss, validation, columns)
    n_steps = max(1, int(config.epoch_share * len(train.nu)) // batch_size)

    torch.manual_seed(config.seed)
    network = Encoder(len(columns), config.backbone)
    _refuse_small_scalogram(network, tuple(train.S.shape[1:]))
    if config.start_from is not None and not Path(config.output_folder, CHECKPOINT).exists():
        network.load_state_dict(_first_weights(config, network, data))
    network.to(memory_format=torch.channels_last)  # what convolutions are fastest in
    if world > 1 and fabric.device.type == "cuda":
        from timm.layers import convert_sync_batchnorm

        network = convert_sync_batchnorm(network)
    state = State(network, torch.optim.Adam(network.parameters(), lr=config.learning_rate), damping)
    made_with = dict(provenance(Path(config.data), open_store(config.data)))
    return Setup(config, data, made_with, fabric, precision, train, validation, loss, unit, batch_size, n_steps), state


def _refuse_without_gradient(loss: Loss, rows: Batch, columns: list[int]) -> None:
    """Raise ValueError if a loss does not pull at what is predicted, as with an ear that detaches or rounds."""
    some = Batch(rows.S[:2], rows.nu[:2], *(values if values is None else values[:2] for values in rows[2:]))
    nu_hat = (some.nu[:, columns] / 2).requires_grad_()  # off the truth, where a gradient may be zero
    expected = "expected an ear and a synthesizer through which gradients pass"
    with told(expected):
        value = loss(nu_hat, some, 0.0)
        (gradient,) = torch.autograd.grad(value, nu_hat, allow_unused=True) if value.requires_grad else (None,)
    if gradient is None or not gradient.any():
        raise ValueError(f"{expected}, got one that detaches or rounds")


def _refuse_small_scalogram(network: Encoder, shape: tuple[int, ...]) -> None:
    """Raise ValueError if a backbone takes no scalograms of that shape (filters, frames)."""
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(1, *shape))
    except (RuntimeError, AssertionError) as error:
        if lacks_means(error):
            raise
        size = " × ".join(map(str, shape))
        raise ValueError(f"{network.name} takes no scalograms of {size}: {error}") from error
    network.train()


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


def _end_at_infinity(setup: Setup, state: State, losses: dict[str, float]) -> None:
    """Raise ValueError that an epoch's losses are not finite; what was trained before it is kept."""
    epoch, kept = len(state.history), ""
    if state.history:
        write_encoder(setup, state)
        kept = f". The encoder of epoch {state.best['epoch']} is in {setup.folder}"
    raise ValueError(
        f"epoch {epoch} ends with losses that are not finite (training {losses['training_loss']}, validation "
        f"{losses['validation_loss']}): try a learning rate below {setup.config.learning_rate:g}{kept}"
    )
