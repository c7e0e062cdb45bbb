"""The data set: for every sound its ν, the encoder's input log(1 + S₁(x)/ε) and the metric M(ν), once, to disk.

    ν → θ → x = g(θ) → log-compressed scalogram        (what the encoder sees)
    ν → M(ν) = JᵀJ over the ear's features             (what the PNP loss weighs errors with; or a secant metric)

`dataset_config` says which sounds, `store` how they are kept; their names are found here, too. Rows are computed and
written in whole chunks. So any number of processes may work on one store, started by torchrun or SLURM, and be killed;
and as a chunk is computed in a single thread, they all write the same bytes.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from . import __version__
from .checks import refuse_broken, refuse_elsewhere, refuse_infinite
from .curves import STEPS, curve_gram
from .dataset_config import SPLITS, DatasetConfig, check, draw, ear, encoder_input, stored_config
from .ears import ear_name
from .metric import Map, check_vectors, gram, push, riemannian_metric, secant_metric, tangents
from .mss import CoarseSpectra
from .runtime import (
    PATIENCE_S,
    as_stored,
    check_whole,
    connect,
    float64_device,
    refuse_difference,
    select_device,
    threads,
    told,
)
from .store import (
    Rows,
    create,
    describe,
    finished_rows,
    load,
    open_store,
    provenance,
    read_array,
    read_config,
    read_rows,
    stored_arrays,
)
from .synthesizer import REGISTRY, Synthesizer

__all__ = [
    "SPLITS",
    "DatasetConfig",
    "Rows",
    "build",
    "check",
    "describe",
    "draw",
    "ear",
    "encoder_input",
    "load",
    "propose",
    "read_config",
    "stored_config",
    "verify",
]

Part = tuple[Tensor, Tensor | None]  # ν (B, n) of a chunk, and its M (B, n, n), if known from before


def build(
    config: DatasetConfig, progress: bool = True, metric: Tensor | None = None, patience_s: float = PATIENCE_S
) -> Path:
    """Compute the data set, or what is missing of it, and return its path.

    `metric` is the M (n_sounds, n, n) of every sound, float64, if known from before, as from `bank.load_bank`: it is
    then kept as it is: symmetric, with a diagonal ≥ 0, and only where metrics are to be kept.

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
        are now (or none were), it is damaged, the disk is too small, the metrics that are given are no such, or other
        processes ended without their share.
    OSError
        If the store cannot be written or read.
    RuntimeError
        If another process has ended or does not answer.
    """
    check(config, metric)
    fabric = connect(select_device(config.device), patience_s=patience_s)
    path, device = Path(config.data), fabric.device
    if fabric.is_global_zero and not path.exists():
        _try(config, device, metric)
        create(config, metric, device)
    fabric.barrier()
    store = open_store(path, "r+")
    stored = read_config(path, config.synthesizer, None if isinstance(config.ear, str) else config.ear, device)
    refuse_difference(as_stored(stored), config, f"{path} was built", ignored=("data", "device"))
    missing = np.flatnonzero(~read_array(path, store, "done"))
    if len(missing):
        _refuse_another_version(path, store)
        _refuse_other_metrics(path, store, metric)
        refuse_elsewhere(config.synthesizer, device)
    fabric.barrier()  # all have read what is missing before any marks a chunk as done
    mine = missing[fabric.global_rank :: fabric.world_size].tolist()
    parts = _parts(config, torch.from_numpy(read_array(path, store, "nu")), mine, metric)
    name = path.name if fabric.world_size == 1 else f"{path.name}, process 1 of {fabric.world_size}"
    total = sum(len(part) for part, _ in parts.values())
    with tqdm(total=total, desc=name, unit="sound", disable=not (progress and fabric.is_global_zero and parts)) as bar:
        start = time.monotonic()
        for i, computed in _in_parallel(parts, config, device):
            if not read_array(path, store, "done", [i]).all():  # by a process that knows nothing of this one
                _write(store, i * config.chunk_size, computed)
                store["done"][i] = True  # last: a chunk is there or it is not
            bar.update(len(parts[i][0]))
    own = time.monotonic() - start  # others' chunks are like these: none takes longer than all of these have taken
    _wait_for_others(path, store, max(patience_s, own))
    return path


def propose(config: DatasetConfig) -> str:
    """How long the metrics of a data set take here, in words, if that is more than an hour, and what takes less.

    Forward mode costs about half as much as the features for every parameter, differences of the same features about
    three times as much as that (results/metric_cost.json): so it is what `build` takes for any number of parameters.
    Differences of coarse spectra are a small part of both, but another metric.
    Raises ValueError, as `build` does, if synthesizer or ear do not work.
    """
    if not config.metric or config.secant_step is not None:
        return ""
    device, synthesizer = select_device(config.device), config.synthesizer
    where = float64_device(device)
    n_at_once = 1 if device.type == "cpu" else min(config.chunk_size, config.n_sounds)
    nu = torch.zeros(n_at_once, len(synthesizer.parameters), dtype=torch.float64, device=where)

    def seconds(metric: Callable[[], Tensor]) -> float:
        for _ in range(2):  # the first time warms up
            start = time.perf_counter()
            with torch.no_grad():
                metric().cpu()
        return time.perf_counter() - start

    def hours(metric: Callable[[], Tensor]) -> float:
        n_threads = torch.get_num_threads() if device.type == "cpu" else 1
        with threads(1) as pool:  # each of them works alone, as in `build`
            return pool.submit(seconds, metric).result() / n_at_once / n_threads * config.n_sounds / 3600

    try:
        features = ear(config, device)
        forward = hours(lambda: riemannian_metric(nu, features, lambda nu: heard(synthesizer, nu, device)))
    except Exception:
        _try(config, device, None)  # which says what is wrong
        raise
    if forward < 1:
        return ""
    try:
        coarse = CoarseSpectra(config.n_samples, synthesizer.sample_rate).to(where)
    except ValueError:  # sounds too short, or of too low a rate, for spectra that are cheaper
        return ""
    secant = hours(lambda: secant_metric(nu, coarse, lambda nu: synthesizer(nu, torch.float32)))
    return (
        f"metrics of {config.n_sounds} sounds take about {forward:.2g} hours here; those of coarse spectra, for steps "
        f"of a finite width, about {secant:.2g}: --secant_step 0.1"
    )


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
    progress : bool
        Show a bar.
    synthesizer, ear : as in `read_config`

    Returns
    -------
    error : float
        Largest ‖recomputed − stored‖ / ‖stored‖ of any array of any row: 0 on the machine that built it, about
        10⁻⁵ on another; in the scalogram up to 10⁻³, the rounding of float16.

    Raises
    ------
    ValueError
        If the store is missing, unfinished or damaged, or differs from the new computation by more than 10⁻²; as
        `read_config` does; if n_chunks or seed is no whole number from 0 on, or the device is not here.
    OSError
        If the store cannot be read.
    """
    check_whole("n_chunks", n_chunks, 0)
    check_whole("seed", seed, 0)
    where = select_device(device)
    config, store = read_config(path, synthesizer, ear, where), open_store(path)
    refuse_elsewhere(config.synthesizer, where)
    names = tuple(stored_arrays(config, where))
    chunk = min(config.chunk_size, config.n_sounds)
    starts = range(0, config.n_sounds, chunk)
    finished_rows(path, "train")  # is it finished?
    for start in tqdm(starts, desc="checksums", unit="chunk", disable=not progress):
        read_rows(path, store, np.arange(start, min(start + chunk, config.n_sounds)), ("nu", *names))
    nu, split = draw(config)
    stored_nu, stored_split = read_array(path, store, "nu"), read_array(path, store, "split")
    if not (np.array_equal(nu.numpy(), stored_nu) and np.array_equal(split, stored_split)):
        raise ValueError(f"{path} is damaged (nu or split are not those of its configuration): build it again")
    some = np.random.default_rng(seed).choice(len(starts), min(n_chunks, len(starts)), replace=False)
    given = provenance(Path(path), store).get("metric_given")  # older stores do not say
    metric = torch.from_numpy(read_array(path, store, "metric")) if given else None
    parts = _parts(config, nu, some.tolist(), metric)
    computed = _in_parallel(parts, config, where)
    worst = 0.0
    for i, rows in tqdm(computed, desc="computed again", total=len(parts), disable=not progress):
        for name, values in rows.items():
            stored = read_array(path, store, name, slice(i * chunk, i * chunk + len(values)))
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


def heard(synthesizer: Synthesizer, nu: Tensor, device: torch.device) -> Tensor:
    """Sounds of ν as ears hear them: in float32, on a device, which need not be that of ν."""
    return synthesizer(nu).to(device, torch.float32)


def _compute(
    nu: Tensor,
    config: DatasetConfig,
    device: torch.device,
    scalogram: Map,
    features: Map,
    coarse: Map,
    metric: Tensor | None = None,
) -> dict[str, np.ndarray]:
    """The rows of one chunk; they depend on nothing outside it, and its M is computed if it is not given."""
    synthesizer = config.synthesizer
    rows = {}

    def play(nu: Tensor) -> Tensor:
        return synthesizer(nu, torch.float32)

    with torch.no_grad():
        if config.metric and config.secant_step is not None and metric is None:
            metric = secant_metric(nu, coarse, play, config.secant_step)
        if config.curves:
            rows["curves"] = curve_gram(nu, coarse, play, STEPS)
        if config.metric and metric is None:
            x, dx = tangents(nu, lambda nu: heard(synthesizer, nu, device))
            refuse_infinite(synthesizer, nu, {"sound": x, "derivative": dx.transpose(0, 1)})
            S, J = push(features, x, dx)
            rows["metric"] = gram(J)
            if config.features:
                rows["features"] = S
        else:
            x = heard(synthesizer, nu, device)
            refuse_infinite(synthesizer, nu, {"sound": x})
            if metric is not None:
                rows["metric"] = metric
            if config.features:
                rows["features"] = features(x)
        rows["scalogram"] = scalogram(x).half()
    refuse_infinite(synthesizer, nu, rows)
    return {name: values.cpu().numpy() for name, values in rows.items()}


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
    is_coarse = config.curves or (config.metric and config.secant_step is not None)
    rate = config.synthesizer.sample_rate
    coarse = CoarseSpectra(config.n_samples, rate).to(where) if is_coarse else torch.nn.Identity()
    with threads(torch.get_num_threads() if device.type == "cpu" else 1) as pool:
        tasks = {
            pool.submit(_compute, nu.to(where), config, device, scalogram, features, coarse, metric): i
            for i, (nu, metric) in parts.items()
        }
        for task in as_completed(list(tasks)):
            yield tasks.pop(task), task.result()  # and no longer kept


def _parts(config: DatasetConfig, nu: Tensor, chunks: list[int], metric: Tensor | None) -> dict[int, Part]:
    rows = {i: slice(i * config.chunk_size, (i + 1) * config.chunk_size) for i in chunks}
    return {i: (nu[some], None if metric is None else metric[some]) for i, some in rows.items()}


def _write(store: Any, first: int, computed: dict[str, np.ndarray]) -> None:
    for array, values in computed.items():
        store[array][first : first + len(values)] = values


def _wait_for_others(path: Path, store: Any, patience_s: float) -> None:
    """Return when all chunks are done; raise ValueError if none has been for `patience_s` seconds."""
    before, since = -1, time.monotonic()
    while not (done := read_array(path, store, "done")).all():
        if done.sum() > before:
            before, since = done.sum(), time.monotonic()
        elif time.monotonic() - since > patience_s:
            raise ValueError(
                f"{path} has {done.sum()} of {len(done)} chunks, and no other process has finished one for "
                f"{patience_s:g} s: run `pnp dataset` again to finish it"
            )
        time.sleep(min(1.0, patience_s / 10))


def _try(config: DatasetConfig, device: torch.device, metric: Tensor | None) -> None:
    """Compute one sound, so that a configuration that cannot work is refused before anything is written."""
    synthesizer = config.synthesizer
    if synthesizer.name not in REGISTRY:
        refuse_broken(synthesizer)
        refuse_elsewhere(synthesizer, device)
    settings = ", ".join(f"{name} = {getattr(config, name)}" for name in ("n_samples", "J", "Q", "T"))
    why = f" (sounds come in float32, on {device})"
    with told(f"no data set can be made with {settings}, ear = {ear_name(config.ear)}", why):  # of an ear of one's own
        middle = torch.zeros(1, len(synthesizer.parameters), dtype=torch.float64)
        with torch.no_grad():  # whoever trains or evaluates will, if this data set does not
            x = heard(synthesizer, middle, device)
            check_vectors(ear(config, device)(x), x)
        _, computed = next(_in_parallel({0: (middle, None if metric is None else metric[:1])}, config, device))
        if metric is None and config.metric and not computed["metric"].any():
            others = synthesizer.sample_uniform(2)  # of a sound that is symmetric in the middle, only that one is zero
            _, computed = next(_in_parallel({0: (others, None)}, config, device))
            if not computed["metric"].any():
                raise ValueError(
                    "the metrics of three sounds are zero, as if no parameter were heard: are features constant, "
                    "rounded or detached?"
                )


def _refuse_another_version(path: Path, store: Any) -> None:
    version = provenance(path, store)["pnp_tutorial"]
    if version != __version__:
        raise ValueError(
            f"{path} was begun by version {version} of this package, and this is {__version__}: "
            "finish it with that, or choose another path or delete it"
        )


def _refuse_other_metrics(path: Path, store: Any, metric: Tensor | None) -> None:
    made_with, given = provenance(path, store), metric is not None
    before = made_with.get("metric_given", given)  # older stores do not say
    words = {True: "metrics that were given", False: "metrics that it computed"}
    total = made_with.get("metric_sum")
    same = metric is None or total is None or math.isclose(total, float(metric.sum()), rel_tol=1e-9)
    if before != given or not same:
        now = words[given] if same else "other ones"
        raise ValueError(
            f"{path} was begun with {words[before]}, and is to go on with {now}: "
            "finish it as it was begun, or choose another path or delete it"
        )
