"""A training run on disk: checkpoints from which a killed run goes on, and the results with which it ends."""

import io
import json
import os
import platform
import zipfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import pandas as pd
import torch
from torch.optim import Optimizer

from . import __version__
from .damping import ConstantDamping
from .dataset_config import DatasetConfig
from .encoder import CHECKPOINT, AudioEncoder, Encoder, save
from .objective import Batch, Loss
from .runtime import as_stored, is_out_of_reach, lacks_means, refuse_difference, write_atomically
from .synthesizer import other_functions, stored_synthesizer
from .training_config import TrainingConfig

if TYPE_CHECKING:
    from lightning_fabric import Fabric


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
    made_with: dict[str, Any]  # what tells the data set's functions and metrics: see `store.create`
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


def resume(setup: Setup, state: State) -> None:
    """Go on from the checkpoint in the output folder, if there is one; errors as in `training.fit`."""
    path, config = setup.folder / CHECKPOINT, setup.config
    if path.exists():
        try:
            with zipfile.ZipFile(path) as parts:  # torch compares no checksums
                if damaged := parts.testzip():
                    raise ValueError(f"the checksum of {damaged} is wrong")
            saved = torch.load(path, map_location="cpu", weights_only=True)
            run, data, history = dict(saved["config"]), dict(saved["dataset"]), list(saved["history"])
            weights, optimizer, damping, best = (saved[name] for name in ("weights", "optimizer", "damping", "best"))
        except Exception as error:  # whatever the damage does
            if is_out_of_reach(error):
                raise
            raise ValueError(f"{path} is damaged: delete {setup.folder} to start again") from error
        ignored = ["data", "output_folder", "synthesizer", "ear", "tensorboard", "device"]
        ignored += [] if config.ends_with_its_epochs else ["n_epochs"]
        ignored += ["precision"] if "precision" in saved else []  # what it came to is compared below
        refuse_difference(run, config, f"{setup.folder} holds a run", tuple(ignored))
        stored_synthesizer(data.get("synthesizer"), setup.data.synthesizer, str(setup.folder))
        refuse_difference(data, setup.data, f"{setup.folder} holds a run on data", ("data", "device", "synthesizer"))
        _refuse_other_functions(setup, saved.get("made_with", setup.made_with))
        if config.n_epochs < len(history):
            raise ValueError(
                f"{setup.folder} holds a run of {len(history)} epochs: expected n_epochs of no less, "
                f"got {config.n_epochs}"
            )
        if (before := saved.get("precision", setup.precision)) != setup.precision:
            raise ValueError(
                f"{setup.folder} holds a run in {before}, and this machine would go on in {setup.precision}: "
                f"expected precision = {before}"
            )
        try:
            state.network.load_state_dict(weights)
            state.optimizer.load_state_dict(optimizer)
        except (KeyError, RuntimeError, ValueError) as error:
            if lacks_means(error):
                raise
            raise ValueError(
                f"{path} is of another version of timm or torch: delete {setup.folder} to start again"
            ) from error
        state.damping, state.best, state.history = type(state.damping)(**damping), best, history
    setup.fabric.barrier()


def _refuse_other_functions(setup: Setup, before: dict[str, Any]) -> None:
    """Raise ValueError if the data set was built again, from other sounds, features or metrics than those before."""
    now = setup.made_with
    if other_functions(now, before) or now.get("metric_sum") != before.get("metric_sum"):
        raise ValueError(
            f"{setup.folder} holds a run on other sounds, features or metrics than {setup.config.data} has by now: "
            "choose another path or delete it"
        )


def write_checkpoint(setup: Setup, state: State) -> None:
    """Write what `resume` reads, and the history, by the first process."""
    path = setup.folder / CHECKPOINT
    if setup.fabric.is_global_zero:
        if len(state.history) == 1 and path.exists():
            raise ValueError(f"{setup.folder} was empty, and holds another run by now: choose another path")
        content: dict[str, Any] = {"weights": state.network.state_dict(), "optimizer": state.optimizer.state_dict()}
        content |= {"damping": asdict(state.damping), "best": state.best, "history": state.history}
        content |= {"config": as_stored(setup.config), "dataset": as_stored(setup.data), "made_with": setup.made_with}
        content |= {"precision": setup.precision}
        buffer = io.BytesIO()
        torch.save(content, buffer)
        write_atomically({path: buffer.getvalue()})
        _write_history(setup, state)


def _write_history(setup: Setup, state: State) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in state.history)
    write_atomically({setup.folder / "metrics.jsonl": lines.encode()})


def write_encoder(setup: Setup, state: State) -> None:
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
