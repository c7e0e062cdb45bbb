"""The study of chapter 8: train encoders with every loss on the same data, and test them all alike.

    python tools/study.py              # every row that is missing
    python tools/study.py pnp mss-1    # those whose names begin so
    python tools/study.py --fresh small-falling-secant-root-0  # and test these on drums by which nothing was chosen

What a row is, and how it is kept: tools/rows.py.
"""

import argparse
import os
import shutil
from collections.abc import Collection
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import zarr
from rows import Row, Study, beginning, refuse_unknown, whole_runs
from torch import Tensor

from pnp_tutorial.bank import load_bank
from pnp_tutorial.dataset import build, load
from pnp_tutorial.drum import DRUM
from pnp_tutorial.metric import Map
from pnp_tutorial.runtime import as_stored, refuse_difference
from pnp_tutorial.training import TrainingConfig

SEEDS = (0, 1, 2)
MORE_SEEDS = (3, 4)  # of the rows on which verdicts between losses rest
UNDAMPED = {"damping": "constant", "lambda_0": 0.0}
SMALL = {"backbone": "mobilenetv3_small_100"}  # of the rows that compare settings
SECANT = "data/study-secant.zarr"  # the same data set, with metrics of coarse spectra for steps as wide as errors are
COARSE = "data/study-coarse.zarr"  # and with metrics of coarse spectra for steps that are a hundred times as small
SECANTS = {SECANT: 0.1, COARSE: 0.001}
MEAN = "data/study-mean.zarr"  # and with one metric for all sounds, the mean secant metric of those for training

# The same data set with another coordinate of the shape: a function of α and its inverse. It is scaled linearly, so
# that α from FLATTEST to 1 becomes [−1, 1]; one drum in a hundred is flatter, and counts as FLATTEST.
SHAPES: dict[str, tuple[Map, Map]] = {
    "data/study-log.zarr": (torch.log, torch.exp),
    "data/study-inverse.zarr": (lambda a: 1 / a + 1 / a**2, lambda u: ((1 + 4 * u).sqrt() - 1).reciprocal() * 2),
}
FLATTEST = 0.01
ALPHA = DRUM.names.index("alpha")

# What is compared, and in what it differs from the settings. Each has its own learning rate, by short runs.
LOSSES: dict[str, dict[str, Any]] = {
    "parameter": {"loss": "parameter"},
    "pnp": {"loss": "pnp"},
    "secant": {"loss": "pnp", "data": SECANT},
    "coarse": {"loss": "pnp", "data": COARSE},
    "mss": {"loss": "mss"},
    # of forms that are squares, the root: with Δ, and with the damping that serves the rows that have it
    "parameter-root": {"loss": "parameter", "root": 0.05},
    "secant-root": {"loss": "pnp", "data": SECANT, "damping": "scheduled", "root": 0.02},
    "pnp-root": {"loss": "pnp", "damping": "scheduled", "root": 0.02},
    # M of every sound divided by its trace, as a square and as a root
    "trace": {"loss": "pnp", "damping": "scheduled", "unit_trace": True},
    "trace-root": {"loss": "pnp", "damping": "scheduled", "unit_trace": True, "root": 0.02},
}
# With the paper's encoder, with unknown and known pitch. The secant metric is damped by a schedule: where the adaptive
# rule keeps going back to a lucky epoch, what the low rates of the last epochs bring does not add up.
MAIN: dict[str, dict[str, Any]] = {"parameter": {}, "pnp": {}, "secant": {"damping": "scheduled"}, "mss": {}}
FALLING = {"final_learning_rate": 1e-4}  # of these; the learning rate of the next ones is constant, as the paper's
# The small rows at a constant rate: of which loss, and in what they differ from it.
DAMPINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "small-parameter": ("parameter", {}),
    "small-undamped": ("pnp", UNDAMPED),
    "small-constant": ("pnp", {"damping": "constant"}),
    "small-scheduled": ("pnp", {"damping": "scheduled"}),
    "small-adaptive": ("pnp", {"damping": "adaptive"}),
    "small-diagonal": ("pnp", {"damping": "adaptive", "damping_shape": "diagonal"}),
    "small-mean": ("pnp", {"damping": "adaptive", "damping_shape": "mean"}),
    "small-coarse": ("coarse", {}),
    "small-secant": ("secant", {}),
    "small-secant-undamped": ("secant", UNDAMPED),
    "small-constant-1e7": ("pnp", {"damping": "constant", "lambda_0": 1e7}),
    "small-log-undamped": ("pnp", {**UNDAMPED, "data": "data/study-log.zarr"}),
    "small-inverse-undamped": ("pnp", {**UNDAMPED, "data": "data/study-inverse.zarr"}),
}
# The small rows whose learning rate falls, on which verdicts rest: each loss has its own, by whole trainings.
DECIDING: dict[str, dict[str, Any]] = {
    "parameter": LOSSES["parameter"],
    "adaptive": LOSSES["pnp"],
    "scheduled": {**LOSSES["pnp"], "damping": "scheduled"},
    "constant": {**LOSSES["pnp"], "damping": "constant"},
    "secant": {**LOSSES["secant"], "damping": "scheduled"},
    **{loss: LOSSES[loss] for loss in ("trace", "parameter-root", "secant-root", "pnp-root", "trace-root")},
}
# With the rate of the secant metric: with the adaptive rule; and one quadratic form for all sounds, the mean of their
# secant metrics.
AS_SECANT = {"secant-adaptive": LOSSES["secant"], "average-scheduled": {**DECIDING["secant"], "data": MEAN}}
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)  # of short runs
WHOLE_RATES = (3e-3, 1e-2, 3e-2)
# of seeds at each of them: more for the losses on which the first verdict rests
RATED = dict.fromkeys(DECIDING, 1) | dict.fromkeys(("parameter-root", "secant-root"), 3)
WHOLE_RUNS = partial(whole_runs, RATED)
# Tried after the rows were trained, to see what they miss: further rates where the best one was the highest or the
# lowest. No row is chosen by them.
BEYOND = {"pnp-root": 1e-1, "scheduled": 1e-3}

# Rows that are trained once more, on a CPU: a GPU's row beside a CPU's shows what another machine changes.
AGAIN = ("parameter-cpu-0", "small-falling-parameter-cpu-1")


def tuning(losses: Collection[str] = LOSSES) -> dict[str, TrainingConfig]:
    """Short runs of losses at every learning rate."""
    base = replace(STUDY.of(TrainingConfig), **SMALL, n_epochs=5)
    runs = {f"tune-{loss}-{{}}": replace(base, **change) for loss, change in LOSSES.items() if loss in losses}
    return STUDY.at_rates(runs, RATES)


def rows() -> dict[str, Row]:
    """The rows of the tables, in the order in which they are done: loss, and configuration without a learning rate."""
    base = STUDY.of(TrainingConfig)
    named = {}
    for seed in SEEDS + MORE_SEEDS:
        for name, change in (DECIDING | AS_SECANT).items():
            if seed in SEEDS or name != "secant-adaptive":
                loss = "secant" if name in AS_SECANT else name
                named[f"small-falling-{name}-{seed}"] = loss, replace(base, **SMALL, **FALLING, **change, seed=seed)
    for seed in SEEDS:
        for name, (loss, change) in DAMPINGS.items():
            named[f"{name}-{seed}"] = loss, replace(base, **SMALL, **(LOSSES[loss] | change), seed=seed)
    for seed in SEEDS:
        for known in ((), ("log_omega",)):
            for loss, change in MAIN.items():
                config = replace(base, **LOSSES[loss], **FALLING, **change, known=known, seed=seed)
                named[f"{loss}{'-known' * len(known)}-{seed}"] = loss, config
    for name in AGAIN:
        loss, config = named[name.replace("-cpu", "")]
        named[name] = loss, replace(config, device="cpu")
    return named


def rated() -> dict[str, TrainingConfig]:
    """Small rows, with a rate that falls, of the losses that decide, at every learning rate."""
    named = rows()
    runs = [(loss, seed) for loss, n_seeds in RATED.items() for seed in range(n_seeds)]
    at = {f"rate-{loss}-{{}}-{seed}": named[f"small-falling-{loss}-{seed}"][1] for loss, seed in runs}
    found = STUDY.at_rates(at, WHOLE_RATES)
    for loss, rate in BEYOND.items():
        name = f"rate-{loss}-{{}}-0"
        found |= STUDY.at_rates({name: at[name]}, [rate])
    return found


def by_runs(named: dict[str, Row]) -> tuple[dict[str, Row], dict[str, Row]]:
    """The rows whose rate short runs choose, and those whose rate whole trainings do."""
    whole = {name: row for name, row in named.items() if name.startswith("small-falling-")}
    return {name: row for name, row in named.items() if name not in whole}, whole


def choose_rates(named: dict[str, Row]) -> None:
    """Do the runs that choose the rates of rows."""
    short, whole = by_runs(named)
    STUDY.do_all(tuning({loss for loss, _ in short.values()}))
    STUDY.validate_rates(rated(), {loss for loss, _ in whole.values()}, WHOLE_RATES, WHOLE_RUNS)


def with_rates(named: dict[str, Row]) -> dict[str, TrainingConfig]:
    """The rows with the learning rates that runs have chosen."""
    short, whole = by_runs(named)
    return STUDY.with_rates(short, RATES) | STUDY.with_rates(whole, WHOLE_RATES, WHOLE_RUNS)


def build_copy(path: str, nu: Tensor, metric: Tensor) -> None:
    """The data set once more, with other coordinates and metrics."""
    unfinished = shutil.copytree(STUDY.data.data, f"{path}.new", dirs_exist_ok=True)
    store = zarr.open_group(unfinished, mode="r+")
    store["nu"][:] = nu.numpy()
    store["metric"][:] = metric.numpy()
    store.attrs["changed_by"] = f"tools/study.py: {path}"
    os.replace(unfinished, path)


def ends(u: Map) -> Tensor:
    """u at the flattest drum and at the square one."""
    return u(torch.tensor([FLATTEST, 1.0], dtype=torch.float64))


def to_shape(nu: Tensor, u: Map) -> tuple[Tensor, Tensor]:
    """ν' (n, 5), with u(α) in place of α, of ν (n, 5); and the diagonal (n, 5) of ∂ν/∂ν'."""
    alpha = DRUM.to_theta(nu)[:, ALPHA]
    first, last = ends(u)
    low, high = (end[ALPHA] for end in DRUM.ranges())
    new, slope = nu.clone(), torch.ones_like(nu)
    new[:, ALPHA] = 2 * (u(alpha) - first) / (last - first) - 1
    slope[:, ALPHA] = (last - first) / (high - low) / torch.func.vmap(torch.func.grad(u))(alpha)
    return new, slope


def shape_metric(nu: Tensor, metric: Tensor, u: Map) -> tuple[Tensor, Tensor]:
    """Coordinates ν' of ν in which u(α) takes the place of α, and the metric M' = (∂ν/∂ν')ᵀ M (∂ν/∂ν') there."""
    new, slope = to_shape(nu, u)
    return new.clamp(-1, 1), slope[:, :, None] * metric * slope[:, None, :]


def prepare(path: str) -> None:
    """Build the data set, and the one that is wanted of those that differ from it, unless they are there."""
    bank, data = load_bank(), STUDY.data
    refuse_difference(as_stored(bank.config), data, "the bank was built", ("data", "chunk_size", "device"))
    build(data, metric=bank.metric)
    if path in SECANTS:
        build(replace(data, data=path, secant_step=SECANTS[path]))
    elif path == MEAN:
        prepare(SECANT)
        mean = load(SECANT, names=("metric",)).metric.mean(0)
        build(replace(data, data=path, secant_step=SECANTS[SECANT]), metric=mean.expand(data.n_sounds, *mean.shape))
    elif path in SHAPES and not Path(path).exists():
        build_copy(path, *shape_metric(bank.nu, bank.metric, SHAPES[path][0]))


def from_shape(nu: Tensor, u: Map, inverse: Map) -> Tensor:
    """ν of coordinates in which u(α) takes the place of α."""
    first, last = ends(u)
    theta = DRUM.to_theta(nu)
    theta[:, ALPHA] = inverse(first + (nu[:, ALPHA] + 1) / 2 * (last - first))
    return DRUM.to_nu(theta)


def to_nu(nu_hat: Tensor, config: TrainingConfig) -> Tensor:
    return from_shape(nu_hat, *SHAPES[config.data]) if config.data in SHAPES else nu_hat


STUDY = Study("study", "study.yaml", prepare, to_nu)


def main(prefixes: list[str], fresh: bool = False) -> None:
    named, short, whole = rows(), tuning(), rated()
    refuse_unknown(prefixes, [*named, *short, *whole])
    STUDY.do_all(beginning(short, prefixes))
    STUDY.validate_all(beginning(whole, prefixes))
    if wanted := beginning(named, prefixes):
        STUDY.do_constant()
        STUDY.search("nearest")
        choose_rates(wanted)
        tuned = with_rates(wanted)
        STUDY.do_all(tuned)
        if fresh:
            STUDY.confirm_all(tuned)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prefixes", nargs="*", help="beginnings of rows' names")
    parser.add_argument("--fresh", action="store_true", help="test them on fresh sounds, too, but for rows rate-…")
    arguments = parser.parse_args()
    main(arguments.prefixes, arguments.fresh)
