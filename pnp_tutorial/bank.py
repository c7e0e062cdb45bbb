"""What ships with the package, so that chapters run at once: encoders, and a bank of drums with their metrics.

The bank holds ν (n, 5), M(ν) (n, 5, 5) and the split of every drum of the data set with which `make study` begins.
Sums in `weights/SHA256SUMS` guard all files; `weights/MODEL_CARD.md` tells what they are.
"""

import hashlib
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .dataset_config import SPLITS, DatasetConfig, draw, stored_config
from .metric import Map
from .runtime import as_stored, read_tensors, tensor_file, write_atomically
from .store import load, read_config
from .synthesizer import Synthesizer

WEIGHTS = Path(__file__).parent / "weights"


class Bank(NamedTuple):
    """Sounds and their metrics."""

    nu: Tensor  # (n_sounds, n), float64
    metric: Tensor  # (n_sounds, n, n), float64, in squared features per squared unit of ν
    split: Tensor  # (n_sounds,), uint8, index into `dataset_config.SPLITS`
    config: DatasetConfig


@cache
def shipped(name: str) -> Path:
    """Path of a file that ships with the package; raises ValueError if it is missing or damaged."""
    path, sums_path = WEIGHTS / name, WEIGHTS / "SHA256SUMS"
    for file in (path, sums_path):
        if not file.is_file():
            raise ValueError(f"this copy of the package has no {file}: install it again")
    line = f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {name}"
    if line.encode() not in sums_path.read_bytes().splitlines():
        raise ValueError(f"{path} is damaged (its sum is not that of SHA256SUMS): install the package again")
    return path


def save_bank(data: str | Path, path: str | Path, synthesizer: Synthesizer | None = None) -> None:
    """Write ν, M and split of all sounds of a finished data set, in its order, atomically, as safetensors.

    Raises ValueError as `store.read_config` and `store.load` do, and if the data set has no metrics.
    """
    config = read_config(data, synthesizer)
    if not config.metric:
        raise ValueError(f"{data} was built without the metric M")
    nu, split = draw(config)
    metric = torch.empty(len(nu), *([nu.shape[1]] * 2), dtype=torch.float64)
    for i, name in enumerate(SPLITS):
        there, rows = torch.from_numpy(split == i), load(data, name, ("metric",))
        nu[there], metric[there] = rows.nu, rows.metric  # type: ignore[assignment]
    tensors = {"nu": nu, "metric": metric, "split": torch.from_numpy(split.astype("uint8"))}
    write_atomically({Path(path): tensor_file(tensors, as_stored(config))})


def load_bank(
    path: str | Path | None = None, synthesizer: Synthesizer | None = None, ear: str | Map | None = None
) -> Bank:
    """Read a bank that `save_bank` wrote; that of drums, which ships with the package, if no path is given.

    Synthesizer and ear are those of the bank, if they are none of the library; they are compared by name and
    parameters, so that a function that was edited since goes unnoticed. Raises ValueError if there is no such file, it
    is damaged, no bank of this library, or of another synthesizer or ear, and OSError if it cannot be read.
    """
    path = shipped("bank.safetensors") if path is None else Path(path)
    if not path.is_file():
        raise ValueError(f"there is no bank at {path}")
    document, tensors = read_tensors(path, "a bank")
    try:
        config = stored_config(document, synthesizer, ear, str(path))
        return Bank(tensors["nu"], tensors["metric"], tensors["split"], config)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a bank of this library ({' '.join(str(error).split())})") from error
