"""Training f_W with one of the three losses and one of the three dampings: one plain loop.

    for every epoch:    a random share of the training set, in batches: Adam on the loss
                        the validation loss, without damping, told to the damping rule
                        a record? keep the weights.  A failed epoch of the adaptive rule? go back to the best

Adam and learning rate are those of Han et al. (2023). Adam is nearly blind to a positive factor of the loss, but its
small constant and the range of float32 are not, and M spans many decades. So PNP is divided by λ + m, where m is
the median over the training set of tr M / n: it stays near P-loss for large λ and of order one when λ is gone.
"""

import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from lightning_fabric import Fabric
from torch import Tensor
from tqdm.auto import tqdm

from . import __version__
from .damping import AdaptiveDamping, ConstantDamping, ScheduledDamping
from .dataset import Drums, ear, load, read_config, refuse_difference, select_device, write_atomically
from .drum import rectangular_drum
from .encoder import AudioEncoder, Encoder, save
from .losses import parameter_loss, pnp_loss, spectral_loss
from .parameters import N_PARAMETERS
from .scattering import LogScattering

DAMPINGS = {"constant": ConstantDamping, "scheduled": ScheduledDamping, "adaptive": AdaptiveDamping}


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
        "parameter", "spectral" or "pnp".
    damping
        "constant", "scheduled" or "adaptive"; for the PNP loss.
    lambda_0
        The first λ; the largest eigenvalue of M over the training set, if not given.
    known_pitch
        Give ω₁ to the encoder's loss and predict the other four parameters.
    backbone
        Any convolutional network of timm.
    n_epochs
        Number of epochs.
    epoch_share
        Share of the training set that makes an epoch.
    batch_size
        Sounds a step.
    learning_rate
        Of Adam.
    seed
        Of weights and batches.
    device
        "auto", "cpu", "cuda" or "mps".
    """

    data: str = "data/drums.zarr"
    output_folder: str = "runs/pnp"
    loss: Literal["parameter", "spectral", "pnp"] = "pnp"
    damping: Literal["constant", "scheduled", "adaptive"] = "adaptive"
    lambda_0: float | None = None
    known_pitch: bool = False
    backbone: str = "efficientnet_b0"  # the paper's
    n_epochs: int = 70  # the paper's
    epoch_share: float = 1.0  # the paper's: 25 600 of 82 224 sounds
    batch_size: int = 256  # the paper's, but for its spectral loss: 64
    learning_rate: float = 1e-3  # the paper's, constant
    seed: int = 0
    device: str = "auto"


Loss = Callable[[Tensor, Tensor, Tensor | None, float], Tensor]  # of ν̃, ν, M, λ


def _metric(drums: Drums, known_pitch: bool) -> Tensor | None:
    """M (n, 5, 5); without the row and column of ω₁, (n, 4, 4), if the pitch is known."""
    return drums.metric[:, 1:, 1:] if drums.metric is not None and known_pitch else drums.metric


def make_loss(config: TrainingConfig, features: LogScattering | None = None, typical: float = 1.0) -> Loss:
    """The loss that `config` names, as a function of ν̃ (B, n), ν (B, 5), M (B, n, n) and λ; n is 5, or 4.

    `features` serves the spectral loss only; PNP is divided by λ + `typical`.
    """
    known = int(config.known_pitch)  # leading parameters that are given

    def parameter(nu_hat: Tensor, nu: Tensor, metric: Tensor | None, damping: float) -> Tensor:
        return parameter_loss(nu_hat, nu[:, known:])

    def spectral(nu_hat: Tensor, nu: Tensor, metric: Tensor | None, damping: float) -> Tensor:
        assert features is not None
        n_samples = int(features.transform.n_samples)  # type: ignore[arg-type]
        complete = torch.cat([nu[:, :known], nu_hat.to(nu.dtype)], -1)
        return spectral_loss(complete, nu, features, lambda theta: rectangular_drum(theta, n_samples))

    def pnp(nu_hat: Tensor, nu: Tensor, metric: Tensor | None, damping: float) -> Tensor:
        assert metric is not None
        return pnp_loss(nu_hat, nu[:, known:], metric, damping) / (damping + typical)

    return {"parameter": parameter, "spectral": spectral, "pnp": pnp}[config.loss]


def _batches(drums: Drums, known_pitch: bool, rows: Tensor, size: int, device: torch.device) -> Iterator[tuple]:
    """Batches (scalogram, ν, M) of the given rows, moved to the device."""
    metric = _metric(drums, known_pitch)
    for batch in rows.split(size):
        M = metric[batch].to(device) if metric is not None else None
        yield drums.scalogram[batch].to(device), drums.nu[batch].to(device), M


def validate(encoder: torch.nn.Module, loss: Loss, drums: Drums, config: TrainingConfig, device: torch.device) -> float:
    """Mean over a split of the loss without damping; the encoder is left in training mode."""
    encoder.eval()
    total = 0.0
    with torch.no_grad():
        rows = torch.arange(len(drums.nu))
        for S, nu, M in _batches(drums, config.known_pitch, rows, config.batch_size, device):
            total += float(loss(encoder(S), nu, M, 0.0)) * len(nu)
    encoder.train()
    return total / len(drums.nu)


def _check(config: TrainingConfig) -> None:
    for name in ("n_epochs", "batch_size", "learning_rate"):
        if getattr(config, name) <= 0:
            raise ValueError(f"expected {name} > 0, got {getattr(config, name)}")
    if not 0 < config.epoch_share <= 1:
        raise ValueError(f"expected epoch_share in (0, 1], got {config.epoch_share}")
    if config.lambda_0 is not None and config.lambda_0 < 0:
        raise ValueError(f"expected lambda_0 ≥ 0, got {config.lambda_0}")
    if config.loss == "pnp" and not read_config(config.data).metric:
        raise ValueError(f"{config.data} was built without the metric M, which the PNP loss needs")


def fit(config: TrainingConfig, progress: bool = True) -> pd.DataFrame:
    """Train an encoder; write `encoder.safetensors` and `results.json` of the best epoch to the output folder.

    After every epoch `checkpoint.pt` (weights, optimizer, λ, history; batches follow from seed and epoch) and
    `metrics.jsonl` are written atomically: a killed run, called again, ends with the numbers of one that was
    never killed. More epochs may be asked for later.

    Returns
    -------
    history : DataFrame, one row an epoch
        epoch, damping (the λ of that epoch), training_loss (as minimized), validation_loss (without damping, in
        squared features for PNP and spectral), record, seconds.

    Raises
    ------
    ValueError
        If the configuration is impossible, the data set is missing, unfinished or damaged, or the output folder
        holds a run of another configuration.
    """
    _check(config)
    device = select_device(config.device)
    fabric = Fabric(accelerator=device.type, devices=1, precision="32-true")
    fabric.launch()
    train, validation = load(config.data, "train"), load(config.data, "validation")
    data_config = read_config(config.data)

    typical, lambda_0 = 1.0, config.lambda_0 or 0.0
    if config.loss == "pnp":
        eigenvalues = torch.linalg.eigvalsh(_metric(train, config.known_pitch))
        typical = float(eigenvalues.mean(-1).median())  # tr M / n
        lambda_0 = float(eigenvalues.max()) if config.lambda_0 is None else config.lambda_0
    damping = DAMPINGS[config.damping](lambda_0)
    features = ear(data_config).to(device) if config.loss == "spectral" else None
    loss = make_loss(config, features, typical)

    torch.manual_seed(config.seed)
    network = Encoder(config.backbone, N_PARAMETERS - config.known_pitch)
    network.to(memory_format=torch.channels_last)  # what convolutions are fastest in
    encoder, optimizer = fabric.setup(network, torch.optim.Adam(network.parameters(), lr=config.learning_rate))
    best: dict[str, Any] = {}
    history: list[dict[str, Any]] = []

    folder = Path(config.output_folder)
    checkpoint = folder / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        ignored = ("data", "output_folder", "n_epochs", "device")
        refuse_difference(saved["config"], asdict(config), f"{folder} holds a run", ignored)
        refuse_difference(saved["dataset"], asdict(data_config), f"{folder} holds a run on data", ("data", "device"))
        network.load_state_dict(saved["weights"])
        optimizer.load_state_dict(saved["optimizer"])
        damping, best, history = DAMPINGS[config.damping](**saved["damping"]), saved["best"], saved["history"]

    batch_size = min(config.batch_size, len(train.nu))
    n_steps = max(1, int(config.epoch_share * len(train.nu)) // batch_size)
    done = len(history)
    with tqdm(total=n_steps * config.n_epochs, initial=n_steps * done, unit="step", disable=not progress) as bar:
        for epoch in range(done, config.n_epochs):
            start = time.perf_counter()
            torch.manual_seed(config.seed * 1_000_003 + epoch + 1)  # batches, and dropout where a backbone has it
            rows = torch.randperm(len(train.nu))[: n_steps * batch_size]
            total: float | torch.Tensor = 0.0
            for S, nu, M in _batches(train, config.known_pitch, rows, batch_size, device):
                optimizer.zero_grad()
                step_loss = loss(encoder(S), nu, M, damping.value)
                fabric.backward(step_loss)
                optimizer.step()
                total = total + step_loss.detach()
                bar.update()
            seconds = time.perf_counter() - start
            validation_loss = validate(encoder, loss, validation, config, device) * typical
            used, record = damping.value, damping.update(validation_loss)
            if record or not best:
                best = deepcopy({"weights": network.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch})
            elif config.loss == "pnp" and config.damping == "adaptive":  # Levenberg and Marquardt: undo the failed step
                network.load_state_dict(best["weights"])
                optimizer.load_state_dict(deepcopy(best["optimizer"]))  # else it would write into it
            row = {"epoch": epoch, "damping": used, "training_loss": float(total) / n_steps}
            history.append({**row, "validation_loss": validation_loss, "record": record, "seconds": seconds})
            bar.set_postfix(validation=f"{validation_loss:.3g}", damping=f"{used:.3g}")
            state = {"weights": network.state_dict(), "optimizer": optimizer.state_dict(), "damping": asdict(damping)}
            state |= {"best": best, "history": history, "config": asdict(config), "dataset": asdict(data_config)}
            _save_checkpoint(fabric, checkpoint, state)
            lines = "".join(json.dumps(row) + "\n" for row in history)
            write_atomically({folder / "metrics.jsonl": lines.encode()})

    table = pd.DataFrame(history)
    results = {
        "config": asdict(config),
        "dataset": asdict(data_config),
        "best_epoch": best["epoch"],
        "validation_loss": float(table.validation_loss[best["epoch"]]),
        "seconds_per_epoch": float(table.seconds.median()),
        "version": __version__,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {device.type}, {torch.get_num_threads()} threads",
    }
    network.load_state_dict(best["weights"])
    save(AudioEncoder(network, data_config, {"training": results}), folder / "encoder.safetensors")
    write_atomically({folder / "results.json": json.dumps(results, indent=2).encode()})
    return table


def _save_checkpoint(fabric: Fabric, path: Path, state: dict[str, Any]) -> None:
    """Write beside the old checkpoint, then take its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    fabric.save(new, state)
    os.replace(new, path)
