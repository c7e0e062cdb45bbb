"""The data set: for every sound its ν, the encoder's input log(1 + S₁(x)/ε) and the metric M(ν), once, to disk.

    ν → θ → x = g(θ) → log-compressed scalogram        (what the encoder sees)
    ν → M(ν) = JᵀJ over the ear's features             (what the PNP loss weighs errors with; or a secant metric)

A Zarr store keeps, row by row,

    nu          (n,) float64                  parameters, scaled to [−1, 1]
    split       uint8                         index into `SPLITS`
    scalogram   (filters, frames) float16     log(1 + S₁/ε), from 0 to about 10, rounded to 0.05 %
    metric      (n, n) float64                M, in squared features per squared unit of ν, if asked for
    features    (P,) float32                  Φ(x), if asked for
    curves      (K, K) float32                G of `curves.curve_gram`, if asked for

M stays in float64 though it comes out of float32 features: rounding its entries would turn small eigenvalues negative.
Rows are computed and written in whole chunks, each with its checksum, and a chunk counts once it is marked in `done`,
which is written after it. So any number of processes may work on one store, started by torchrun or SLURM, and be
killed; and as a chunk is computed in a single thread, they all write the same bytes.
"""

import math
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import zarr
from torch import Tensor
from tqdm.auto import tqdm
from zarr.codecs import Crc32cCodec, ZstdCodec

from . import __version__
from .checks import check_synthesizer
from .curves import STEPS, curve_gram
from .drum import DRUM
from .ears import EARS, ear_name, find_ear
from .metric import Map, gram, push, riemannian_metric, secant_metric, tangents
from .mss import CoarseSpectra
from .runtime import (
    PATIENCE_S,
    as_stored,
    check_fields,
    connect,
    first_existing,
    float64_device,
    from_stored,
    lacks_means,
    object_name,
    refuse_difference,
    seal,
    select_device,
    temporary_name,
)
from .scalogram import Scalogram
from .scattering import LogScattering
from .synthesizer import REGISTRY, Synthesizer, find_synthesizer, sketch, stored_synthesizer

SPLITS = ("train", "validation", "test")
MOST_SEED = 2**53  # JSON keeps larger whole numbers only roughly, and torch has 64 bits


@dataclass(frozen=True)
class DatasetConfig:
    """What a data set is made of.

    Parameters
    ----------
    data
        Path of the Zarr store.
    synthesizer
        g: of the library, or any `Synthesizer`.
    ear
        Φ: "jtfs", "mss", "mss-linear" or "coarse"; or any differentiable map from sounds (..., n_samples) to vectors
        (..., P).
    sampling
        "uniform" over [−1, 1]ⁿ, or "grid": one point in each cell of a regular grid, as both papers have it.
    n_sounds
        Number of sounds; of the grid, as many of its points, drawn at random.
    n_cells
        Of the grid, along each axis: 10 for the paper's drums.
    n_inner
        Cells along each axis of the cube in the middle of the grid whose sounds are for validation.
    n_grid_test
        Sounds for testing, drawn from the cells around that cube; what is left is for training. (Uniform sounds are
        split 8 : 1 : 1.)
    seed
        Of ν.
    metric
        Whether to keep M, which takes most of the time and which only the PNP loss needs. Its cost grows with n.
    secant_step
        If given, M is not that of Φ but `metric.secant_metric` of coarse spectra, for steps in ν as wide as that; 0.1
        is about the size of an encoder's errors. It takes a small part of the time.
    features
        Whether to keep Φ(x); of a drum by JTFS, 21 kB a sound.
    curves
        Whether to keep G of `curves.curve_gram`: how coarse spectra change along each coordinate, at `curves.STEPS`. It
        costs five times a secant metric, and of a drum 10 kB.
    n_samples
        Length of a sound; 0, for short: the synthesizer's own.
    J
        Octaves of the encoder's scalogram below the Nyquist frequency.
    Q
        Wavelets per octave of that scalogram.
    T
        Width and step of its frames, in samples.
    chunk_size
        Sounds that are computed and written at once. Whatever it is, Jacobians take about 0.25 GB a thread on a CPU
        and 5 GB on a GPU.
    device
        "auto", "cpu", "cuda" or "mps".
    """

    data: str = "data/drums.zarr"
    synthesizer: Synthesizer = DRUM
    ear: str | Map = "jtfs"
    sampling: Literal["uniform", "grid"] = "uniform"
    n_sounds: int = 1024
    n_cells: int = 10  # the paper's, as are the next two
    n_inner: int = 6
    n_grid_test: int = 10_000
    seed: int = 0
    metric: bool = True
    secant_step: float | None = None  # the papers' metric is that of infinitesimal steps
    features: bool = False
    curves: bool = False
    n_samples: int = 0
    J: int = 10  # a semitone apart down to 57 Hz; J = 13 adds 36 filters, nearly all below the lowest pitch, 40 Hz
    Q: int = 12  # a semitone
    T: int = 1024  # 46 ms: decays last from 70 ms; 64 frames
    chunk_size: int = 8
    device: str = "auto"

    def __post_init__(self) -> None:
        if isinstance(self.synthesizer, Synthesizer) and isinstance(self.n_samples, int) and self.n_samples >= 0:
            n_samples = self.n_samples or self.synthesizer.n_samples
            object.__setattr__(self, "n_samples", n_samples)
            object.__setattr__(self, "synthesizer", replace(self.synthesizer, n_samples=n_samples))


Part = tuple[Tensor, Tensor | None]  # ν (B, n) of a chunk, and its M (B, n, n), if known from before


class Rows(NamedTuple):
    """Rows of a data set: shapes and dtypes at the head of this module, with a leading axis n; None: not there."""

    nu: Tensor
    scalogram: Tensor | None = None
    metric: Tensor | None = None
    features: Tensor | None = None
    curves: Tensor | None = None


def encoder_input(config: DatasetConfig) -> LogScattering:
    """Log-compressed scalogram: audio (..., n_samples) → (..., filters, frames)."""
    rate = config.synthesizer.sample_rate
    return LogScattering(Scalogram(config.n_samples, config.J, config.Q, config.T, sample_rate=rate))


def ear(config: DatasetConfig, device: torch.device | str = "cpu") -> Map:
    """Φ of a data set, on a device; errors as in `find_ear`, also where a store was made with an ear of its user's."""
    return find_ear(config.ear, config.n_samples, config.synthesizer.sample_rate, device)


def draw(config: DatasetConfig) -> tuple[Tensor, np.ndarray]:
    """ν (n_sounds, n), float64, and the index into `SPLITS` of every row, (n_sounds,).

    Uniform sounds are split 8 : 1 : 1 in the order in which they were drawn. On the grid, as the authors did, the inner
    n_innerⁿ cells are for validation, n_grid_test of the others, at random, for testing, and the rest for training.
    """
    n, synthesizer = config.n_sounds, config.synthesizer
    if config.sampling == "uniform":
        split = np.searchsorted([int(0.8 * n), int(0.8 * n) + (n - int(0.8 * n)) // 2], np.arange(n), side="right")
        return synthesizer.sample_uniform(n, config.seed), split
    nu = synthesizer.sample_jittered_grid(config.n_cells, config.seed)
    cells = np.stack(np.unravel_index(np.arange(len(nu)), (config.n_cells,) * nu.shape[1]))
    first = (config.n_cells - config.n_inner) // 2
    inner = ((cells >= first) & (cells < first + config.n_inner)).all(0)
    random = np.random.default_rng(config.seed)
    split = np.where(inner, SPLITS.index("validation"), SPLITS.index("train"))
    split[random.choice(np.flatnonzero(~inner), config.n_grid_test, replace=False)] = SPLITS.index("test")
    rows = np.sort(random.choice(len(nu), n, replace=False))
    return nu[rows], split[rows]


def _arrays(config: DatasetConfig) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape of a row and dtype of what is computed."""
    silence = torch.zeros(config.n_samples)
    arrays: dict[str, tuple[tuple[int, ...], str]] = {}
    arrays["scalogram"] = (tuple(encoder_input(config)(silence).shape), "float16")
    if config.metric:
        arrays["metric"] = ((len(config.synthesizer.parameters),) * 2, "float64")
    if config.features:
        arrays["features"] = (tuple(ear(config)(silence).shape), "float32")
    if config.curves:
        arrays["curves"] = ((2 * len(config.synthesizer.parameters) * (len(STEPS) + 1),) * 2, "float32")
    return arrays


def _create(config: DatasetConfig, metric_given: bool) -> None:
    """Make the store with its ν and empty arrays, under another name, and move it into place.

    If another process has been faster, its store is left as it is.
    """
    path = Path(config.data)
    n, chunk = config.n_sounds, min(config.chunk_size, config.n_sounds)
    arrays = _arrays(config)
    own = 8 * len(config.synthesizer.parameters) + 1  # ν and split
    size = n * (own + sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in arrays.values()))
    if size > (free := shutil.disk_usage(first_existing(path.parent)).free):
        raise ValueError(f"{path} needs {size / 1e9:.3g} GB, but only {free / 1e9:.3g} GB are free there")
    nu, split = draw(config)
    made_with: dict[str, Any] = {"pnp_tutorial": __version__, "torch": torch.__version__}
    made_with |= {"machine": platform.platform(), "metric_given": metric_given}
    made_with["sketch"] = sketch(config.synthesizer)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(temporary_name())
    try:
        store = zarr.open_group(new, mode="w", attributes={"config": as_stored(config), "made_with": made_with})
        # crc32c: a damaged chunk is noticed when it is read
        codecs = [ZstdCodec(level=1), Crc32cCodec()]
        for name, (shape, dtype) in arrays.items():
            store.create_array(
                name, shape=(n, *shape), chunks=(chunk, *shape), dtype=dtype, fill_value=np.nan, compressors=codecs
            )
        store.create_array("done", shape=(math.ceil(n / chunk),), chunks=(1,), dtype="bool")
        store.create_array("nu", data=nu.numpy(), compressors=codecs)
        store.create_array("split", data=split.astype("uint8"), compressors=codecs)
        store.attrs["seal"] = _seal(new, store.attrs)
        os.replace(new, path)
    except OSError:
        if not path.exists():
            raise
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _compute(
    nu: Tensor, config: DatasetConfig, scalogram: Map, features: Map, metric: Tensor | None = None
) -> dict[str, np.ndarray]:
    """The rows of one chunk; they depend on nothing outside it, and its M is computed if it is not given."""
    synthesizer = config.synthesizer
    rows = {}

    def play(nu: Tensor) -> Tensor:
        return synthesizer(nu, torch.float32)

    with torch.no_grad():
        step = config.secant_step if config.metric and metric is None else None
        if step is not None or config.curves:
            coarse = CoarseSpectra(config.n_samples, synthesizer.sample_rate).to(nu.device)
        if step is not None:
            metric = secant_metric(nu, coarse, play, step)
        if config.curves:
            rows["curves"] = curve_gram(nu, coarse, play, STEPS)
        if config.metric and metric is None:
            x, dx = tangents(nu, synthesizer)
            S, J = push(features, x, dx)
            rows["metric"] = gram(J)
            if config.features:
                rows["features"] = S
        else:
            x = synthesizer(nu)
            if config.metric and metric is not None:
                rows["metric"] = metric
            if config.features:
                rows["features"] = features(x)
        rows["scalogram"] = scalogram(x).half()
    return {name: values.cpu().numpy() for name, values in rows.items()}


def check(config: DatasetConfig, metric: Tensor | None = None) -> None:
    """Raise ValueError, before any work, if a data set cannot be as `config` has it, with `metric` as in `build`."""
    check_fields(config)
    synthesizer, n = config.synthesizer, len(config.synthesizer.parameters)
    if synthesizer.name in REGISTRY and synthesizer.function is not find_synthesizer(synthesizer.name).function:
        raise ValueError(f"{synthesizer.name!r} is the name of a synthesizer of the library: give yours another")
    if not isinstance(config.ear, str) and object_name(config.ear) in EARS:
        raise ValueError(f"{object_name(config.ear)!r} is the name of an ear of the library: give yours another")
    if config.secant_step is not None and not config.metric:
        raise ValueError("secant_step is of the metric, and there is none: metric = False")
    for name, least in (("chunk_size", 1), ("seed", 0), ("n_samples", 1), ("n_cells", 1), ("n_grid_test", 0)):
        if getattr(config, name) < least:
            raise ValueError(f"expected {name} ≥ {least}, got {getattr(config, name)}")
    if config.seed > MOST_SEED:
        raise ValueError(f"expected seed ≤ {MOST_SEED}, got {config.seed}")
    limit = math.inf
    if config.sampling == "grid":
        limit = len(config.synthesizer.sample_jittered_grid(config.n_cells))
        if not 0 <= config.n_inner <= config.n_cells or config.n_grid_test > limit - config.n_inner**n:
            raise ValueError(
                f"a grid of {config.n_cells} cells along each of {n} axes has no {config.n_inner} inner ones "
                f"and {config.n_grid_test} sounds around them for testing"
            )
    if not 10 <= config.n_sounds <= limit:
        raise ValueError(f"expected n_sounds from 10 to {limit} with {config.sampling} sampling, got {config.n_sounds}")
    if config.sampling == "grid":
        split = draw(config)[1]
        if empty := [name for i, name in enumerate(SPLITS) if not (split == i).any()]:
            raise ValueError(
                f"a grid of n_sounds = {config.n_sounds}, n_inner = {config.n_inner} and n_grid_test = "
                f"{config.n_grid_test} has no sounds for {empty[0]}"
            )
    if config.secant_step is not None and not 0 < config.secant_step <= 2:
        raise ValueError(f"expected secant_step in (0, 2], got {config.secant_step}")
    if metric is not None and metric.shape != (config.n_sounds, n, n):
        raise ValueError(f"expected metrics of shape ({config.n_sounds}, {n}, {n}), got {tuple(metric.shape)}")


def build(
    config: DatasetConfig, progress: bool = True, metric: Tensor | None = None, patience_s: float = PATIENCE_S
) -> Path:
    """Compute the data set, or what is missing of it, and return its path.

    `metric` is the M (n_sounds, n, n) of every sound, float64, if known from before, as from `bank.load_bank`: it is
    then kept as it is.

    Under torchrun or srun all processes share the work; each uses as many threads as torch does, or its GPU. A process
    that has done its share waits for the others as long as they finish chunks, and for `patience_s` seconds more, by
    default ten minutes. May be killed at any moment and called again: a chunk that was finished is not computed again.
    The same configuration on the same machine gives the same bytes, whatever the number of processes and threads and
    the order of the chunks; another machine, or another version of torch, changes the last digits.

    Raises
    ------
    ValueError
        If the configuration is impossible, the synthesizer breaks a promise (see `check_synthesizer`), the store was
        begun with another configuration, by another version of this package, or with metrics that were given where none
        are now (or none were), it is damaged, the disk is too small, there are not as many metrics as sounds, or other
        processes ended without their share.
    """
    check(config, metric)
    metric = metric if config.metric else None
    fabric = connect(select_device(config.device), patience_s=patience_s)
    path, device = Path(config.data), fabric.device
    if fabric.is_global_zero and not path.exists():
        _try(config, device, metric)
        _create(config, metric is not None)
    fabric.barrier()
    store = _open(path, "r+")
    stored = read_config(path, config.synthesizer)
    refuse_difference(as_stored(stored), config, f"{path} was built", ignored=("data", "device"))
    missing = np.flatnonzero(~_numbers(path, store, "done"))
    if len(missing):
        _refuse_another_version(path, store)
        _refuse_other_metrics(path, store, metric is not None)
        _refuse_another_function(path, store, config.synthesizer)
    fabric.barrier()  # all have read what is missing before any marks a chunk as done
    mine = missing[fabric.global_rank :: fabric.world_size].tolist()
    parts = _parts(config, torch.from_numpy(_numbers(path, store, "nu")), mine, metric)
    name = path.name if fabric.world_size == 1 else f"{path.name}, process 1 of {fabric.world_size}"
    total = sum(len(part) for part, _ in parts.values())
    with tqdm(total=total, desc=name, unit="sound", disable=not (progress and fabric.is_global_zero and parts)) as bar:
        for i, computed in _in_parallel(parts, config, device):
            if not _numbers(path, store, "done", [i]).all():  # by a process that knows nothing of this one
                _write(store, i * config.chunk_size, computed)
                store["done"][i] = True  # last: a chunk is there or it is not
            bar.update(len(parts[i][0]))
    _wait_for_others(path, store, patience_s)
    return path


def propose(config: DatasetConfig) -> str:
    """How long the metrics of a data set take here, in words, if that is more than an hour, and what takes less.

    Forward mode costs about half as much as the features for every parameter, differences of the same features twice as
    much (results/metric_cost.json): so it is what `build` takes for any number of parameters. Differences of coarse
    spectra are a small part of both, but another metric.
    Raises ValueError, as `build` does, if synthesizer or ear do not work.
    """
    if not config.metric or config.secant_step is not None:
        return ""
    device, synthesizer = select_device(config.device), config.synthesizer
    where = float64_device(device)
    n_at_once = 1 if device.type == "cpu" else min(config.chunk_size, config.n_sounds)
    nu = torch.zeros(n_at_once, len(synthesizer.parameters), dtype=torch.float64, device=where)

    def hours(metric: Callable[[], Tensor]) -> float:
        for _ in range(2):  # the first time warms up
            start = time.perf_counter()
            metric().cpu()
        return (time.perf_counter() - start) / n_at_once * config.n_sounds / 3600

    try:
        features = ear(config, device)
        forward = hours(lambda: riemannian_metric(nu, features, synthesizer))
    except Exception:
        _try(config, device, None)  # which says what is wrong
        raise
    if forward < 1:
        return ""
    coarse = CoarseSpectra(config.n_samples, synthesizer.sample_rate).to(where)
    secant = hours(lambda: secant_metric(nu, coarse, lambda nu: synthesizer(nu, torch.float32)))
    return (
        f"metrics of {config.n_sounds} sounds take about {forward:.2g} hours here; those of coarse spectra, for steps "
        f"of a finite width, about {secant:.2g}: --secant_step 0.1"
    )


def _refuse_another_version(path: Path, store: Any) -> None:
    version = _made_with(path, store)["pnp_tutorial"]
    if version != __version__:
        raise ValueError(
            f"{path} was begun by version {version} of this package, and this is {__version__}: "
            "finish it with that, or choose another path or delete it"
        )


def _refuse_other_metrics(path: Path, store: Any, given: bool) -> None:
    before = _made_with(path, store).get("metric_given", given)  # older stores do not say
    if before != given:
        words = {True: "metrics that were given", False: "metrics that it computed"}
        raise ValueError(
            f"{path} was begun with {words[before]}, and is to go on with {words[given]}: "
            "finish it as it was begun, or choose another path or delete it"
        )


def _refuse_another_function(path: Path, store: Any, synthesizer: Synthesizer) -> None:
    """Raise ValueError if sounds are others than those that were begun: files tell no function."""
    now, before = sketch(synthesizer), _made_with(path, store).get("sketch")  # which older stores do not have
    # more than rounding to three digits can do
    if before is not None and not np.allclose(now, before, rtol=0.02, atol=0.02 * max(map(abs, now))):
        raise ValueError(
            f"{path} was begun when the synthesizer {synthesizer.name!r} made other sounds: "
            "finish it with that, or choose another path or delete it"
        )


def _try(config: DatasetConfig, device: torch.device, metric: Tensor | None) -> None:
    """Compute one sound, so that a configuration that cannot work is refused before anything is written."""
    synthesizer = config.synthesizer
    if synthesizer.name not in REGISTRY and (broken := check_synthesizer(synthesizer)):
        raise ValueError(f"{synthesizer.name} breaks its promises: {'; '.join(broken)}")
    try:
        middle = torch.zeros(1, len(synthesizer.parameters), dtype=torch.float64)
        next(_in_parallel({0: (middle, None if metric is None else metric[:1])}, config, device))
    except Exception as error:  # of an ear of the user's own, too
        if lacks_means(error):
            raise
        settings = ", ".join(f"{name} = {getattr(config, name)}" for name in ("n_samples", "J", "Q", "T"))
        raise ValueError(f"no data set can be made with {settings}, ear = {ear_name(config.ear)}: {error}") from error


def _parts(config: DatasetConfig, nu: Tensor, chunks: list[int], metric: Tensor | None) -> dict[int, Part]:
    rows = {i: slice(i * config.chunk_size, (i + 1) * config.chunk_size) for i in chunks}
    return {i: (nu[some], None if metric is None else metric[some]) for i, some in rows.items()}


def _write(store: Any, first: int, computed: dict[str, np.ndarray]) -> None:
    for array, values in computed.items():
        store[array][first : first + len(values)] = values


def _wait_for_others(path: Path, store: Any, patience_s: float) -> None:
    """Return when all chunks are done; raise ValueError if none has been for `patience_s` seconds."""
    before, since = -1, time.monotonic()
    while not (done := _numbers(path, store, "done")).all():
        if done.sum() > before:
            before, since = done.sum(), time.monotonic()
        elif time.monotonic() - since > patience_s:
            raise ValueError(
                f"{path} has {done.sum()} of {len(done)} chunks, and no other process has finished one for "
                f"{patience_s:g} s: run `pnp dataset` again to finish it"
            )
        time.sleep(min(1.0, patience_s / 10))


def _in_parallel(
    parts: Mapping[int, Part], config: DatasetConfig, device: torch.device
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Rows of each chunk as they are ready. On a CPU, threads share the chunks: each chunk is for one alone."""
    if not parts:
        return
    scalogram = encoder_input(config).to(device)
    is_heard = config.features or (config.metric and config.secant_step is None)
    features = ear(config, device) if is_heard else torch.nn.Identity()
    where = float64_device(device)  # of ν
    n_threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(
        n_threads if device.type == "cpu" else 1, initializer=torch.set_num_threads, initargs=(1,)
    )
    try:
        tasks = {
            pool.submit(_compute, nu.to(where), config, scalogram, features, metric): i
            for i, (nu, metric) in parts.items()
        }
        for task in as_completed(list(tasks)):
            yield tasks.pop(task), task.result()  # and no longer kept
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(n_threads)


def _open(path: str | Path, mode: Literal["r", "r+"] = "r") -> Any:
    if not Path(path).exists():
        raise ValueError(f"there is no data set at {path}: build one with `pnp dataset --data {path}`")
    try:
        store = zarr.open_group(path, mode=mode)
        expected = store.attrs.get("seal")  # older stores have none
        intact = expected is None or expected == _seal(Path(path), store.attrs)
    except Exception as error:
        if lacks_means(error):
            raise
        raise ValueError(f"{path} is not a data set of this library") from error
    if not intact:
        raise ValueError(f"{path} is damaged (what it says of itself has changed): delete it and build it again")
    return store


def _made_with(path: Path, store: Any) -> Mapping[str, Any]:
    made_with = store.attrs.get("made_with")
    if not isinstance(made_with, Mapping) or "pnp_tutorial" not in made_with:
        raise ValueError(f"{path} is damaged (it does not say what it was made with): delete it and build it again")
    return made_with


def _seal(path: Path, attributes: Mapping[str, Any]) -> str:
    """Of what a store says of itself and of its arrays, whose numbers have checksums of their own."""
    arrays = [path / name / "zarr.json" for name in ("done", "split", *Rows._fields)]
    said = {name: attributes.get(name) for name in ("config", "made_with")}
    return seal(said, *(array.read_bytes() for array in arrays if array.exists()))


def read_config(
    path: str | Path, synthesizer: Synthesizer | None = None, ear: str | Map | None = None
) -> DatasetConfig:
    """The configuration that a store was built with.

    A synthesizer of the user's own must be given; an ear of his own as well, before it can be heard with.
    Raises ValueError if there is no such store, or it was made with another synthesizer or ear.
    """
    store = _open(path)
    try:
        return stored_config(store.attrs["config"], synthesizer, ear, str(path))
    except KeyError as error:
        raise ValueError(f"{path} is not a data set of this library") from error
    except TypeError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def stored_config(
    values: Mapping[str, Any], synthesizer: Synthesizer | None = None, ear: str | Map | None = None, what: str = "this"
) -> DatasetConfig:
    """The configuration that a store, a bank or an encoder holds, whichever version wrote it; errors as `from_stored`.

    Synthesizer and ear are as in `read_config`, and `what` is the file, for messages. Names that it holds are looked up
    in the library, and never imported. Older stores may keep audio besides, which changes nothing else.
    """
    if not isinstance(values, Mapping):
        raise TypeError(f"expected the fields of a configuration, got {values!r}")
    values = {name: value for name, value in values.items() if name != "audio"}
    values["synthesizer"] = stored_synthesizer(values.get("synthesizer"), synthesizer, what)
    config = from_stored(DatasetConfig, values)
    try:
        check_fields(config)
    except ValueError as error:
        raise TypeError(str(error)) from error
    if ear is None:
        return config
    if ear_name(ear) != config.ear:
        raise ValueError(f"{what} was made with the ear {config.ear!r}, and {ear_name(ear)!r} is given")
    return replace(config, ear=ear)


def _rows(path: str | Path, split: str) -> tuple[Any, np.ndarray]:
    """The store of a finished data set, and the rows of one split."""
    if split not in SPLITS:
        raise ValueError(f"expected a split of {SPLITS}, got {split!r}")
    store = _open(path)
    config = store.attrs.get("config")
    if not isinstance(config, Mapping):
        raise ValueError(f"{path} is not a data set of this library")
    try:  # a store that only another version can read
        stored_config({name: value for name, value in config.items() if name != "synthesizer"})
    except TypeError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    done, rows = _numbers(path, store, "done"), np.flatnonzero(_numbers(path, store, "split") == SPLITS.index(split))
    if not done.all():
        raise ValueError(f"{path} has {done.sum()} of {len(done)} chunks: run `pnp dataset` again to finish it")
    return store, rows


def _numbers(path: str | Path, store: Any, name: str, rows: Any = slice(None)) -> np.ndarray:
    """Rows of an array of a store, all if none are given; raises ValueError, which names the store, if it is damaged.

    Of chunks that are not there, what the array is filled with.
    """
    try:
        return store[name].oindex[rows]
    except (LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:  # of zarr and its codecs
        if lacks_means(error):
            raise
        raise ValueError(f"{path} is damaged ({name}: {error}): delete it and build it again") from error


def _read(path: str | Path, store: Any, rows: np.ndarray, names: tuple[str, ...]) -> Rows:
    arrays = {}
    for name in names:
        values = torch.from_numpy(_numbers(path, store, name, rows))
        if not values.isfinite().all():  # a chunk that is not there reads as NaN
            raise ValueError(f"{path} is damaged (rows of {name} are missing): delete it and build it again")
        arrays[name] = values
    return Rows(**arrays)


def _names(path: str | Path, names: tuple[str, ...]) -> tuple[str, ...]:
    """ν, and those of `names` that a store has, damaged or not: scalograms are in every one."""
    unknown = set(names) - set(Rows._fields)
    if unknown:
        raise ValueError(f"expected names of {Rows._fields}, got {sorted(unknown)}")
    return ("nu", *(name for name in names if name != "nu" and (name == "scalogram" or Path(path, name).exists())))


def load(path: str | Path, split: str = "train", names: tuple[str, ...] = ("scalogram", "metric")) -> Rows:
    """One split of a data set, in memory, in the order of the store.

    Parameters
    ----------
    path : path of the store
    split : "train", "validation" or "test"
    names : tuple of str
        What to read besides ν, if it is there: "scalogram", "metric", "features", "curves".

    Raises
    ------
    ValueError
        If there is no such split or store, or if the store is unfinished or damaged.
    """
    store, rows = _rows(path, split)
    return _read(path, store, rows, _names(path, names))


def describe(path: str | Path) -> dict[str, Any]:
    """What a data set is: configuration, provenance, how much is done; of its arrays, shape, dtype and bytes on disk.

    Raises ValueError if there is no such store, or it is damaged.
    """
    store = _open(path)
    try:
        config, made_with = dict(store.attrs["config"]), dict(store.attrs["made_with"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a data set of this library") from error
    done, split = _numbers(path, store, "done"), _numbers(path, store, "split")
    arrays = {}
    for name in _names(path, Rows._fields):
        _numbers(path, store, name, slice(0))  # that it is an array
        files = [file.stat().st_size for file in Path(path, name).rglob("*") if file.is_file()]
        shape, dtype = list(store[name].shape), str(store[name].dtype)
        arrays[name] = {"shape": shape, "dtype": dtype, "bytes_on_disk": sum(files)}
    return {
        "path": str(path),
        "config": {"synthesizer": DRUM.to_dict(), "ear": "jtfs"} | config,  # older stores say neither
        "made_with": made_with,
        "chunks": f"{int(done.sum())} of {len(done)} done",
        "splits": {name: int((split == i).sum()) for i, name in enumerate(SPLITS)},
        "arrays": arrays,
    }


def verify(
    path: str | Path,
    n_chunks: int = 2,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
    synthesizer: Synthesizer | None = None,
    ear: str | Map | None = None,
) -> float:
    """Check a data set: every checksum, ν against the configuration, and some chunks against a new computation.

    Metrics that were given to `build` cannot be computed again: of these, the checksums alone are checked.

    Parameters
    ----------
    path : path of the store
    n_chunks : int
        Chunks, drawn at random, that are computed again.
    seed : int
        Of that draw.
    device : "auto", "cpu", "cuda" or "mps"
    synthesizer, ear : as in `read_config`

    Returns
    -------
    error : float
        Largest ‖recomputed − stored‖ / ‖stored‖ of any array of any row: 0 on the machine that built it, about
        10⁻⁵ on another; in the scalogram up to 10⁻³, the rounding of float16.

    Raises
    ------
    ValueError
        If the store is missing, unfinished or damaged, or differs from the new computation by more than 10⁻².
    """
    config, store = read_config(path, synthesizer, ear), _open(path)
    names = tuple(_arrays(config))
    chunk = min(config.chunk_size, config.n_sounds)
    starts = range(0, config.n_sounds, chunk)
    _rows(path, "train")  # is it finished?
    for start in tqdm(starts, desc="checksums", unit="chunk", disable=not progress):
        _read(path, store, np.arange(start, min(start + chunk, config.n_sounds)), ("nu", *names))
    nu, split = draw(config)
    stored_nu, stored_split = _numbers(path, store, "nu"), _numbers(path, store, "split")
    if not (np.array_equal(nu.numpy(), stored_nu) and np.array_equal(split, stored_split)):
        raise ValueError(f"{path} is damaged (nu or split are not those of its configuration): build it again")
    some = np.random.default_rng(seed).choice(len(starts), min(n_chunks, len(starts)), replace=False)
    given = _made_with(Path(path), store).get("metric_given")  # older stores do not say
    metric = torch.from_numpy(_numbers(path, store, "metric")) if given else None
    parts, where = _parts(config, nu, some.tolist(), metric), select_device(device)
    computed = _in_parallel(parts, config, where)
    worst = 0.0
    for i, rows in tqdm(computed, desc="computed again", total=len(parts), disable=not progress):
        for name, values in rows.items():
            stored = _numbers(path, store, name, slice(i * chunk, i * chunk + len(values)))
            stored, anew = (each.astype("float64").reshape(len(values), -1) for each in (stored, values))
            difference, size = (np.linalg.norm(each, axis=1) for each in (anew - stored, stored))
            off = np.where(difference == 0, 0.0, np.inf)  # where nothing is stored: silence has no features
            error = float(np.divide(difference, size, out=off, where=size > 0).max())
            if not error < 1e-2:
                raise ValueError(
                    f"{path}: {name} of chunk {i} is {error:.2g} off what is computed anew: build it again"
                )
            worst = max(worst, error)
    return worst
