"""The data set: for every drum its ν, the encoder's input log(1 + S₁(x)/ε) and the metric M(ν), once, to disk.

    ν → θ → x = g(θ) → log-compressed scalogram        (what the encoder sees)
    ν → M(ν) = JᵀJ over the log-compressed JTFS        (what the PNP loss weighs errors with)

A Zarr store keeps, row by row, `nu` (5,) float64, `scalogram` (filters, frames) float16 (values from 0 to about 10,
rounded to 0.05 %), `metric` (5, 5) float64, in squared features per squared unit of ν, and `split`. M stays in
float64 though it comes out of float32 features: rounding its entries would turn small eigenvalues negative. Rows
are computed and written in whole chunks, and a chunk counts once it is marked in `done`, which is written after it.
"""

import json
import math
import os
import platform
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import zarr
from torch import Tensor
from tqdm.auto import tqdm
from zarr.codecs import Crc32cCodec, ZstdCodec

from . import __version__
from .drum import N_SAMPLES, rectangular_drum
from .metric import Map, riemannian_metric
from .parameters import N_PARAMETERS, sample_jittered_grid, sample_uniform, to_theta
from .scattering import JTFS, LogScattering, Scalogram

SPLITS = ("train", "validation", "test")
N_CELLS = 10  # of the grid, along each axis: the paper's
INNER = (2, 7)  # first and last cell, on every axis, of the validation cube: the authors'
N_GRID_TEST = 10_000  # test sounds, drawn from the cells around that cube: the authors'


@dataclass(frozen=True)
class DatasetConfig:
    """What a data set is made of.

    Parameters
    ----------
    data
        Path of the Zarr store.
    sampling
        "uniform" over [−1, 1]⁵, or "grid": one point in each cell of the paper's 10⁵ grid.
    n_sounds
        Number of drums; of the grid, as many of its 100 000 points, drawn at random.
    seed
        Of ν.
    metric
        Whether to compute M, which takes most of the time and which only the PNP loss needs.
    n_samples
        Length of a sound, at 22 050 Hz.
    J
        Octaves of the encoder's scalogram below the Nyquist frequency.
    Q
        Wavelets per octave of that scalogram.
    T
        Width and step of its frames, in samples.
    chunk_size
        Sounds that are computed and written at once; a Jacobian needs about 0.3 GB a sound.
    device
        "auto", "cpu", "cuda" or "mps".
    """

    data: str = "data/drums.zarr"
    sampling: Literal["uniform", "grid"] = "uniform"
    n_sounds: int = 1024
    seed: int = 0
    metric: bool = True
    n_samples: int = N_SAMPLES
    J: int = 10  # a semitone apart down to 57 Hz; J = 13 adds 36 filters, nearly all below the lowest pitch, 40 Hz
    Q: int = 12  # a semitone
    T: int = 1024  # 46 ms: decays last from 70 ms; 64 frames
    chunk_size: int = 8
    device: str = "auto"


class Drums(NamedTuple):
    """Rows of a data set: ν (n, 5) float64, scalogram (n, filters, frames) float16, M (n, 5, 5) float64 or None."""

    nu: Tensor
    scalogram: Tensor
    metric: Tensor | None


def select_device(name: str) -> torch.device:
    """The device of "auto", "cpu", "cuda" or "mps"; raises ValueError if there is none such here."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind in available if available[kind]))
    if not available.get(name, False):
        here = ", ".join(kind for kind in available if available[kind])
        raise ValueError(f"device {name!r} is not available here: expected auto or one of {here}")
    return torch.device(name)


def write_atomically(files: Mapping[Path, bytes]) -> None:
    """Write files whole or not at all: each goes to a temporary neighbour, and all are renamed at the end."""
    temporary: dict[str, Path] = {}
    try:
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
            temporary[name] = path
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            os.chmod(name, 0o644)
        for name, path in temporary.items():
            os.replace(name, path)
    finally:
        for name in temporary:
            Path(name).unlink(missing_ok=True)


def encoder_input(config: DatasetConfig) -> LogScattering:
    """Log-compressed scalogram: audio (..., n_samples) → (..., filters, frames)."""
    return LogScattering(Scalogram(config.n_samples, config.J, config.Q, config.T))


def ear(config: DatasetConfig) -> LogScattering:
    """The paper's Φ for sounds of 65536 samples, J = 13; for shorter ones with as many octaves fewer."""
    return LogScattering(JTFS(config.n_samples, J=int(math.log2(config.n_samples)) - 3))


def draw(config: DatasetConfig) -> tuple[Tensor, np.ndarray]:
    """ν (n, 5), float64, and the index into `SPLITS` of every row, (n,).

    Uniform sounds are split 8 : 1 : 1 in the order in which they were drawn. On the grid, as the authors did,
    the inner 6⁵ cells are for validation, 10 000 of the others, at random, for testing, and the rest for training.
    """
    n = config.n_sounds
    if config.sampling == "uniform":
        split = np.searchsorted([int(0.8 * n), int(0.8 * n) + (n - int(0.8 * n)) // 2], np.arange(n), side="right")
        return sample_uniform(n, config.seed), split
    nu = sample_jittered_grid(N_CELLS, config.seed)
    cells = np.stack(np.unravel_index(np.arange(len(nu)), (N_CELLS,) * N_PARAMETERS))
    inner = ((cells >= INNER[0]) & (cells <= INNER[1])).all(0)
    random = np.random.default_rng(config.seed)
    split = np.where(inner, SPLITS.index("validation"), SPLITS.index("train"))
    split[random.choice(np.flatnonzero(~inner), N_GRID_TEST, replace=False)] = SPLITS.index("test")
    rows = np.sort(random.choice(len(nu), n, replace=False))
    return nu[rows], split[rows]


def _create(config: DatasetConfig) -> None:
    """Make the store with its ν and empty arrays, under another name, and move it into place."""
    path = Path(config.data)
    n, chunk = config.n_sounds, min(config.chunk_size, config.n_sounds)
    S = encoder_input(config)(torch.zeros(config.n_samples))
    size = n * (2 * S.numel() + 8 * N_PARAMETERS * (1 + N_PARAMETERS))
    path.parent.mkdir(parents=True, exist_ok=True)
    if size > (free := shutil.disk_usage(path.parent).free):
        raise ValueError(f"{path} needs {size / 1e9:.3g} GB, but only {free / 1e9:.3g} GB are free there")
    nu, split = draw(config)
    new = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    new.chmod(0o755)
    made_with = {"pnp_tutorial": __version__, "torch": torch.__version__, "machine": platform.platform()}
    store = zarr.open_group(new, mode="w", attributes={"config": asdict(config), "made_with": made_with})
    # crc32c: a damaged chunk is noticed when it is read
    codecs = [ZstdCodec(level=1), Crc32cCodec()]
    arrays = [("scalogram", (n, *S.shape), "float16")] + [("metric", (n, 5, 5), "float64")] * config.metric
    for name, shape, dtype in arrays:
        store.create_array(
            name, shape=shape, chunks=(chunk, *shape[1:]), dtype=dtype, fill_value=np.nan, compressors=codecs
        )
    store.create_array("done", shape=(math.ceil(n / chunk),), chunks=(1,), dtype="bool")
    store.create_array("nu", data=nu.numpy(), compressors=codecs)
    store.create_array("split", data=split.astype("uint8"), compressors=codecs)
    os.replace(new, path)


def _compute(nu: Tensor, config: DatasetConfig, scalogram: Map, features: Map | None) -> dict[str, np.ndarray]:
    """The rows of one chunk; they depend on nothing outside it."""
    synthesizer = partial(rectangular_drum, n_samples=config.n_samples)
    rows = {"scalogram": scalogram(synthesizer(to_theta(nu))).half()}
    if features is not None:
        rows["metric"] = riemannian_metric(nu, features, synthesizer)
    return {name: values.cpu().numpy() for name, values in rows.items()}


def build(config: DatasetConfig, progress: bool = True) -> Path:
    """Compute the data set, or what is missing of it, and return its path.

    May be killed at any moment and called again: a chunk that was finished is not computed again, and the same
    configuration on the same machine gives the same bytes, whatever the order of the chunks.

    Raises
    ------
    ValueError
        If the configuration is impossible, the store was begun with another one, or the disk is too small.
    """
    limit = N_CELLS**N_PARAMETERS if config.sampling == "grid" else math.inf
    if not 10 <= config.n_sounds <= limit:
        raise ValueError(f"expected n_sounds from 10 to {limit} with {config.sampling} sampling, got {config.n_sounds}")
    if config.chunk_size < 1:
        raise ValueError(f"expected chunk_size ≥ 1, got {config.chunk_size}")
    device = select_device(config.device)
    path = Path(config.data)
    if not path.exists():
        _create(config)
    existing = read_config(path)
    refuse_difference(asdict(existing), asdict(config), f"{path} was built", ignored=("data", "device"))

    store = _open(path, "r+")
    nu = torch.from_numpy(store["nu"][:])
    chunk = min(config.chunk_size, config.n_sounds)
    missing = np.flatnonzero(~store["done"][:])
    if len(missing) == 0:
        return path
    scalogram = encoder_input(config).to(device)
    features = ear(config).to(device) if config.metric else None
    rows_missing = sum(len(nu[i * chunk : (i + 1) * chunk]) for i in missing)
    with tqdm(total=len(nu), initial=len(nu) - rows_missing, desc=path.name, unit="sound", disable=not progress) as bar:
        for i in missing:
            rows = slice(i * chunk, (i + 1) * chunk)
            for name, values in _compute(nu[rows].to(device), config, scalogram, features).items():
                store[name][rows] = values
            store["done"][i] = True  # last: a chunk is there or it is not
            bar.update(len(nu[rows]))
    return path


def refuse_difference(old: dict, new: dict, what: str, ignored: tuple[str, ...]) -> None:
    """Raise ValueError that names the first field in which two configurations differ."""
    for key in new:
        if key not in ignored and old.get(key) != new[key]:
            raise ValueError(
                f"{what} with {key} = {json.dumps(old.get(key))}, not {json.dumps(new[key])}: "
                "choose another path or delete it"
            )


def _open(path: str | Path, mode: Literal["r", "r+"] = "r") -> Any:
    if not Path(path).exists():
        raise ValueError(f"there is no data set at {path}: build one with `pnp dataset --data {path}`")
    try:
        return zarr.open_group(path, mode=mode)
    except Exception as error:
        raise ValueError(f"{path} is not a data set of this library") from error


def read_config(path: str | Path) -> DatasetConfig:
    """The configuration that a store was built with; raises ValueError if there is no such store."""
    store = _open(path)
    try:
        return DatasetConfig(**store.attrs["config"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a data set of this library") from error


def load(path: str | Path, split: str = "train") -> Drums:
    """One split of a data set, in memory, in the order of the store.

    Raises
    ------
    ValueError
        If there is no such split or store, or if the store is unfinished or damaged.
    """
    if split not in SPLITS:
        raise ValueError(f"expected a split of {SPLITS}, got {split!r}")
    config, store = read_config(path), _open(path)
    names = ["nu", "scalogram"] + ["metric"] * config.metric
    try:
        done = store["done"][:]
        rows = np.flatnonzero(store["split"][:] == SPLITS.index(split))
        arrays = {name: torch.from_numpy(store[name].oindex[rows]) for name in names if done.all()}
    except (KeyError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it and build it again") from error
    if not done.all():
        raise ValueError(f"{path} has {done.sum()} of {len(done)} chunks: run `pnp dataset` again to finish it")
    for name, values in arrays.items():
        if not values.isfinite().all():  # a chunk that is not there reads as NaN
            raise ValueError(f"{path} is damaged (rows of {name} are missing): delete it and build it again")
    return Drums(arrays["nu"], arrays["scalogram"], arrays.get("metric"))
