"""Losses over the number of sounds and of steps, up to the papers' own, and on the papers' first drum (chapter 8).

    python tools/scaling.py                                       # every row that is missing
    python tools/scaling.py --drums short --rows secant-root pnp  # those of a drum whose names begin so
    python tools/scaling.py --drums short --rows pnp-root --fresh  # and test these on drums by which nothing was chosen

There are three drums, each with a jittered grid of its own:

    full        the drum of the book
    short       its sounds eight times as short, in length and in sustain, so that all of this fits two processor cores
    diagonal    short, with the ten modes m₁ = m₂ only, as in the papers' first experiments

A row is named by its loss, its numbers of training sounds and of steps, and its seed. All losses have the same seeds,
and so the same first weights and batches. Rows "validated-…", "inner-…" and "other-…" have other validation or training
sounds, "together-…" all three counts of the papers, and "variant-…" one change of a loss. Rows "rate-…" have every rate
that a loss may get, in whole trainings: they choose the rates of the papers' first drum, and say of the short drum
whether shorter runs chose well. Rows "delta-…", of the short drum, have other Δ. In rows "after-…", of the short drum,
losses that a CPU cannot afford from random weights, and others beside them, take over where the root of P-loss has
ended. In "nearest-…" there is a search in so many sounds, and no network. Rows of full length with M are done as far as
pieces of the papers' bank are there (tools/papers_bank.py). What a row is, and how it is kept: tools/rows.py.
"""

import argparse
from collections.abc import Collection
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import late_or_early  # noqa: F401  # the ears "mss-late" and "mss-linear-late"
import numpy as np
import papers_bank
import random_paths  # noqa: F401  # the ear "paths"
import torch
import zarr
from rows import Row, Runs, Study, beginning, judge, refuse_unknown, short_runs, take_last_weights, whole_runs
from torch import Tensor
from tqdm import tqdm

from pnp_tutorial.dataset import SPLITS, DatasetConfig, build, draw, ear, load
from pnp_tutorial.drum import DRUM, rectangular_drum
from pnp_tutorial.encoder import save
from pnp_tutorial.evaluation import predict
from pnp_tutorial.metric import riemannian_metric, secant_metric
from pnp_tutorial.runtime import write_results
from pnp_tutorial.store import in_drawn_order
from pnp_tutorial.synthesizer import Synthesizer
from pnp_tutorial.training import TrainingConfig

SHORTER = 8
BATCH, STEPS_AN_EPOCH = 64, 64
SHORT_RUN, LONG_RUN = 1280, 7040  # steps: of the other rows of chapter 8, and about as many as the papers'
SECANT_STEP = 0.06
WIDTHS = (0.001, 0.02, 0.1, 0.2)  # of secants, that are tried beside it; the first is next to none
# λ where it is constant: about a tenth of the median of tr M/5, for secants of every width and for M
CONSTANT = {0.02: 450.0, SECANT_STEP: 300.0, 0.1: 200.0, 0.2: 100.0}
CONSTANT_OF_M = 5000.0
BEGINNING = 442_312.0  # λ of the schedule in its first epoch, with the secant metric of every sound
RATES = (3e-3, 1e-2, 3e-2)  # that are tried for each loss
BEYOND = 1e-1  # tried after the rows were trained, to see what they miss; no row is chosen by it
TUNING_STEPS = 320
BY_WHOLE = ("diagonal",)  # whole trainings choose the rates; of short drums they say whether short runs chose well
# losses that have three of them at each rate, for verdicts rest on these
OF_THREE = dict.fromkeys(("parameter-root", "secant-root", "trace-root"), 3)

# Δ that are tried for short drums, beside those of LOSSES, a quarter and four times as large
DELTAS = {"parameter-root": (0.0125, 0.2), "secant-root": (0.005, 0.08)}

FEW, MORE, MANY, MOST = 4096, 16_384, 32_768, 82_224  # training sounds: of the other rows, and of the papers
# sounds of the grid whose metric M is computed, and whose curves; for as many sounds as the papers', M of all
N_WITH_M = {"short": 20_000, "diagonal": 6_000}
N_VALIDATION = {"diagonal": 448}  # other than the usual 512: of 6 000 sounds, 450 are for validation
NETWORKS = {"full": "mobilenetv3_small_100"}  # and for short sounds one that is half as wide
VALIDATED = (64, 1500)  # validation sounds, other than the usual 512
INNER = 7776  # as many as the papers', which are all inner drums of the grid: of a data set of their own

SECANT = {"loss": "pnp", "damping": "scheduled"}
LOSSES: dict[str, dict[str, Any]] = {
    "parameter": {"loss": "parameter"},
    "parameter-root": {"loss": "parameter", "root": 0.05},
    "secant": SECANT,
    "secant-root": {**SECANT, "root": 0.02},
    "curves-root": {"loss": "curves", "damping": "scheduled", "root": 0.02},
    "pnp-adaptive": {"loss": "pnp", "damping": "adaptive"},
    "pnp-scheduled": {"loss": "pnp", "damping": "scheduled"},
    "pnp-root": {"loss": "pnp", "damping": "scheduled", "root": 0.02},
    # M of every sound divided by its trace: tried after the other rows were seen
    "trace": {"loss": "pnp", "damping": "scheduled", "unit_trace": True},
    "trace-root": {"loss": "pnp", "damping": "scheduled", "unit_trace": True, "root": 0.02},
}
RATED = {"short": OF_THREE, "diagonal": dict.fromkeys(LOSSES, 1) | OF_THREE}  # numbers of seeds at each rate


def of_width(h: float) -> dict[str, Any]:
    """What a row with secants of another width changes."""
    return {} if h == SECANT_STEP else {"data": f"data/scaling-short-secant{h}.zarr"}


# One change each of a loss, whose learning rate it takes: the width of secants, the damping, and remedies against loud
# metrics.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "clip-scheduled": ("pnp-scheduled", {"clip": 1.0}),
    "clip-adaptive": ("pnp-adaptive", {"clip": 1.0}),
    "trace-adaptive": ("trace-root", {"damping": "adaptive"}),
    "trace-undamped": ("trace-root", {"damping": "constant", "lambda_0": 0.0}),
    "trace-secant": ("secant-root", {"unit_trace": True}),
    "metric-adaptive": ("pnp-root", {"damping": "adaptive"}),
    "metric-constant": ("pnp-root", {"damping": "constant", "lambda_0": CONSTANT_OF_M}),
    "0.06-adaptive": ("secant-root", {"damping": "adaptive"}),
    **{
        f"{h}-constant": ("secant-root", {"damping": "constant", "lambda_0": CONSTANT[h], **of_width(h)})
        for h in CONSTANT
    },
    **{
        f"{h}-{damping}": ("secant-root", {"damping": damping, **of_width(h)})
        for damping in ("scheduled", "adaptive")
        for h in WIDTHS
    },
    # secants of Φ itself, of the same width; and one form for all sounds, the mean of their secant metrics
    "heard-scheduled": ("secant-root", {"data": "data/scaling-short-heard.zarr"}),
    "mean-scheduled": ("secant-root", {"data": "data/scaling-short-mean.zarr"}),
    "mean-higher": ("secant-root", {"data": "data/scaling-short-mean.zarr", "lambda_0": BEGINNING}),
}
# Ears: MSS by one kind of magnitude, of targets that are on time, late or early; one path at a time, as in SCRAPL.
RIVALS = {
    "log": "mss",
    "linear": "mss-linear",
    "log-late": "mss-late",
    "linear-late": "mss-linear-late",
    "paths": "paths",
}
# What takes over from the root of P-loss, for how many steps, all at the same rate, which falls. The longer ones take
# less time than those of JTFS. Each Δ, in features, is small beside the distances that are left.
TAKEOVERS: dict[str, tuple[dict[str, Any], int]] = {
    **{f"{loss}-128": (LOSSES[loss], 128) for loss in ("parameter-root", "secant-root", "trace-root")},
    "mss-128": ({"loss": "mss"}, 128),
    **{
        f"{name}-128": ({"loss": "spectral", "root": 0.1, "ear": ear, "data": f"data/scaling-short-{name}.zarr"}, 128)
        for name, ear in RIVALS.items()
    },
    "jtfs-128": ({"loss": "spectral", "root": 1.0}, 128),
    **{f"{loss}-{SHORT_RUN}": (LOSSES[loss], SHORT_RUN) for loss in ("parameter-root", "secant-root")},
}
TAKEOVER_RATE = 1e-3
SEARCHED = (FEW, MORE)  # numbers of sounds that a search compares
# Beginnings of losses that want data sets of their own, and which.
STORED = {"pnp": "metric", "trace": "metric", "curves": "curves"}
FROM_BANK = "data/scaling-full-metric.zarr"  # whose metrics are those of the papers' bank

ROOTS, OF_M = ("parameter-root", "secant-root"), ("pnp-adaptive", "pnp-root", "trace-root")
# Numbers of sounds, of steps and of seeds, and the losses: in the order in which they are done.
PLAN: dict[str, list[tuple[int, int, int, tuple[str, ...]]]] = {
    "full": [
        (MOST, LONG_RUN, 3, ROOTS),
        *((FEW, n_steps, 3, ROOTS) for n_steps in (LONG_RUN, SHORT_RUN)),
        *((n, LONG_RUN, 2, (*ROOTS, *OF_M)) for n in (FEW, MORE, MANY, MOST)),
    ],
    "short": [
        (FEW, SHORT_RUN, 5, tuple(LOSSES)),
        *((n, LONG_RUN, 3, (*ROOTS, *OF_M)) for n in (MORE, MOST)),
        (MOST, SHORT_RUN, 3, (*ROOTS, *OF_M)),
        (FEW, LONG_RUN, 3, (*ROOTS, "pnp-adaptive")),
    ],
    "diagonal": [
        (FEW, SHORT_RUN, 3, tuple(LOSSES)),
    ],
}


def shorter(name: str, synthesizer: Synthesizer) -> Synthesizer:
    """Sounds and sustains a few times as short: what fades out within a sound, still does."""
    parameters = tuple(
        replace(p, low=p.low / SHORTER, high=p.high / SHORTER) if p.name == "tau" else p for p in synthesizer.parameters
    )
    return replace(synthesizer, name=name, parameters=parameters, n_samples=synthesizer.n_samples // SHORTER)


def ten_modes(*options: Any, **more: Any) -> Tensor:
    """The drum's modes m₁ = m₂: a function, and no `partial`, which another process would take for another one."""
    return rectangular_drum(*options, **more, diagonal=True)


DRUMS = {
    "full": DRUM,
    "short": shorter("short_drum", DRUM),
    "diagonal": shorter("diagonal_drum", replace(DRUM, function=ten_modes)),
}


def data_sets(drum: str) -> dict[str, DatasetConfig]:
    """By path: parts of one grid, whose drums are for training, validation or testing in all of them alike."""
    base = DatasetConfig(synthesizer=DRUMS[drum], sampling="grid", chunk_size=40)
    found = {"all": replace(base, n_sounds=100_000, secant_step=SECANT_STEP)}
    if drum == "full":
        found["metric"] = replace(base, n_sounds=100_000)
    if drum in N_WITH_M:
        found["curves"] = replace(base, n_sounds=N_WITH_M[drum], metric=False, curves=True)
        found["metric"] = replace(base, n_sounds=N_WITH_M[drum])
        found["secant"] = replace(found["metric"], secant_step=SECANT_STEP)
        if drum == "short":
            found["all-metric"] = replace(base, n_sounds=100_000)
            found |= {f"secant{h}": replace(found["metric"], secant_step=h) for h in WIDTHS}
            found["heard"] = found["mean"] = found["secant"]
            found["inner"] = found["all-metric"]
            found |= {name: replace(found["curves"], curves=False, ear=ear) for name, ear in RIVALS.items()}
    configs = [replace(config, data=f"data/scaling-{drum}-{name}.zarr") for name, config in found.items()]
    return {config.data: config for config in configs}


def pieces(config: TrainingConfig) -> int:
    """How many pieces of the papers' bank a row needs."""
    return papers_bank.pieces_for(config.n_train) if config.data == FROM_BANK else 0


def ready(rows: dict[str, Row]) -> dict[str, Row]:
    """Those rows whose pieces of the papers' bank are there; the others are named."""
    waiting = {name: n for name, (_, config) in rows.items() if (n := pieces(config)) > papers_bank.n_there()}
    for name, n in waiting.items():
        print(f"{name} wants the first {n} pieces of the papers' bank, there are {papers_bank.n_there()}: make papers")
    return {name: row for name, row in rows.items() if name not in waiting}


def judged_on(drum: str) -> str:
    """Path of the data set on whose sounds the rows of a drum are tested."""
    return f"data/scaling-{drum}-{'secant' if drum in N_WITH_M else 'all'}.zarr"


def prepare(path: str) -> None:
    config, given = data_sets(path.split("-")[1])[path], None
    if path.endswith(("heard.zarr", "inner.zarr")) and not is_done(path):
        given = metrics_of_rows(config)
    elif path.endswith("mean.zarr"):
        given = mean_secants(config)
    elif path == FROM_BANK:  # whose pieces come one by one: filled in below, whatever was there when it was begun
        n = len(config.synthesizer.parameters)
        given = torch.zeros(config.n_sounds, n, n, dtype=torch.float64)
    build(config, metric=given)
    if path == FROM_BANK:
        kept, now = zarr.open_group(path, mode="r+")["metric"], papers_bank.metrics().numpy()
        if not np.array_equal(kept[:], now):  # only then, for others may read it
            kept[:] = now


def is_done(path: str) -> bool:
    return Path(path).exists() and bool(zarr.open_group(path, mode="r")["done"][:].all())


def metrics_of_rows(config: DatasetConfig) -> Tensor:
    """M, or secant metrics of Φ itself, of the sounds that rows are trained and validated on; 0 for all others."""
    n_validation = INNER if config.secant_step is None else STUDIES["short"].of(TrainingConfig).n_validation
    nu, split = draw(config)
    places = []
    for n, name in ((FEW, "train"), (n_validation, "validation")):
        of_split = (torch.as_tensor(split) == SPLITS.index(name)).nonzero()[:, 0]
        places.append(of_split[in_drawn_order(len(of_split))][:n])
    features, metrics = ear(config, "cpu"), nu.new_zeros(config.n_sounds, *nu.shape[1:] * 2)
    secant = {} if config.secant_step is None else {"step": config.secant_step}
    metric = partial(secant_metric if secant else riemannian_metric, **secant)
    for some in tqdm(torch.cat(places).split(8), desc="metrics", unit="batch"):
        metrics[some] = metric(nu[some], features, lambda nu: config.synthesizer(nu, torch.float32))
    return metrics


def mean_secants(config: DatasetConfig) -> Tensor:
    """For every sound, the mean secant metric of those for training."""
    judged = judged_on("short")
    prepare(judged)
    mean = load(judged, "train", ("metric",)).metric.mean(0)
    return mean.expand(config.n_sounds, *mean.shape)


STUDIES = {
    drum: Study(f"scaling/{drum}", "scaling.yaml", prepare, sounds=data_sets(drum)[judged_on(drum)]) for drum in DRUMS
}


def row(drum: str, loss: str, n_train: int, n_steps: int, seed: int, **change: Any) -> TrainingConfig:
    """Configuration of a row, whose learning rate is not yet chosen."""
    stored = STORED.get(loss.split("-")[0], "secant")
    if n_train > N_WITH_M.get(drum, 0) and (drum, stored) != ("full", "metric"):
        stored = "all-metric" if (drum, stored) == ("short", "metric") else "all"
    settings = STUDIES[drum].of(TrainingConfig)
    config = replace(
        settings,
        data=f"data/scaling-{drum}-{stored}.zarr",
        backbone=NETWORKS.get(drum, "mobilenetv3_small_050"),
        n_train=n_train,
        n_validation=N_VALIDATION.get(drum, settings.n_validation),
        n_epochs=n_steps // STEPS_AN_EPOCH,
        epoch_share=min(1.0, (BATCH * STEPS_AN_EPOCH + 0.5) / n_train),
        seed=seed,
    )
    return replace(config, **(LOSSES.get(loss, {}) | change))


def named(drum: str) -> dict[str, Row]:
    """The rows of a drum, in the order in which they are done: loss, and configuration without a learning rate."""
    found = {}
    for n_train, n_steps, seeds, losses in PLAN[drum]:
        for seed in range(seeds):
            for loss in losses:
                found[f"{loss}-{n_train}-{n_steps}-{seed}"] = loss, row(drum, loss, n_train, n_steps, seed)
    if drum == "short":
        for seed in range(3):
            found |= {f"{name}-{seed}": config for name, config in changed(seed).items()}
    return found


def changed(seed: int) -> dict[str, Row]:
    """Rows of the short drum with other validation or training sounds, or with one change of a loss."""
    few, adaptive = partial(row, "short", n_train=FEW, n_steps=SHORT_RUN, seed=seed), "pnp-adaptive"
    other = {loss: f"data/scaling-short-{'inner' if loss in OF_M else 'all'}.zarr" for loss in (*ROOTS, *OF_M)}
    found = {f"validated-{n}": (adaptive, few(adaptive, n_validation=n)) for n in VALIDATED}
    # on another draw of training sounds
    found |= {f"other-{loss}": (loss, few(loss, data=data)) for loss, data in other.items() if loss != adaptive}
    for n in (512, INNER):
        found[f"inner-{n}"] = adaptive, few(adaptive, n_validation=n, data=other[adaptive])
    found["together"] = adaptive, row("short", adaptive, MOST, LONG_RUN, seed, n_validation=INNER)
    found |= {f"variant-{name}": (loss, few(loss, **change)) for name, (loss, change) in VARIANTS.items()}
    found["variant-curves-as-secant"] = "secant-root", few("curves-root")  # which have the rate of the secant metric
    return found


def tuning(drum: str, losses: Collection[str]) -> dict[str, TrainingConfig]:
    """Short runs of losses at every learning rate."""
    runs = {f"tune-{loss}-{{}}": row(drum, loss, FEW, TUNING_STEPS, 0) for loss in LOSSES if loss in losses}
    return STUDIES[drum].at_rates(runs, (*RATES, BEYOND))


def rated(drum: str) -> dict[str, TrainingConfig]:
    """Whole trainings of losses at every learning rate."""
    seeds = [(loss, seed) for loss, n_seeds in RATED.get(drum, {}).items() for seed in range(n_seeds)]
    rows = {f"rate-{loss}-{{}}-{seed}": row(drum, loss, FEW, SHORT_RUN, seed) for loss, seed in seeds}
    return STUDIES[drum].at_rates(rows, RATES if drum in BY_WHOLE else (*RATES, BEYOND))


def smoothed() -> dict[str, Row]:
    """Rows of the short drum with other Δ."""
    return {
        f"delta-{loss}-{delta:g}-{seed}": (loss, row("short", loss, FEW, SHORT_RUN, seed, root=delta))
        for seed in range(3)
        for loss, deltas in DELTAS.items()
        for delta in deltas
    }


def runs_of(drum: str) -> Runs:
    """The runs that choose a learning rate."""
    return partial(whole_runs, RATED[drum]) if drum in BY_WHOLE else short_runs


def with_rates(drum: str, rows: dict[str, Row]) -> dict[str, TrainingConfig]:
    """Rows with the learning rates that runs choose, which are done if they are missing."""
    study, losses = STUDIES[drum], {loss for loss, _ in rows.values()}
    study.do_all(tuning(drum, losses))  # even if whole trainings choose: the book compares the two
    if drum in BY_WHOLE:
        study.validate_rates(rated(drum), losses, RATES, runs_of(drum))
    return study.with_rates(rows, RATES, runs_of(drum))


def takeovers() -> dict[str, tuple[str, TrainingConfig]]:
    """The rows of the short drum in which a loss takes over: the row whose encoder goes on, and with what."""
    found = {}
    for seed in range(3):
        first = f"parameter-root-{FEW}-{SHORT_RUN}-{seed}"
        start = {"start_from": str(STUDIES["short"].runs / first / "last.safetensors")}
        for name, (change, n_steps) in TAKEOVERS.items():
            config = replace(row("short", name.rpartition("-")[0], FEW, n_steps, seed), **change, **start)
            found[f"after-{name}-{seed}"] = first, replace(config, learning_rate=TAKEOVER_RATE)
    return found


def take_over(prefixes: list[str]) -> None:
    """Do the rows in which a loss takes over; what they begin with is trained again if it is gone."""
    study, wanted, firsts = STUDIES["short"], beginning(takeovers(), prefixes), named("short")
    missing = {first for name, (first, _) in wanted.items() if not study.result(name).exists()}
    study.on_data(train, with_rates("short", {first: firsts[first] for first in missing}), "test")
    study.do_all(study.in_folders({name: config for name, (_, config) in wanted.items()}))


def search(prefixes: list[str]) -> None:
    """What needs no network: of each short test sound, the nearest of as many sounds as rows are trained on."""
    for name, n in beginning({f"nearest-{n}": n for n in SEARCHED}, prefixes).items():
        STUDIES["short"].search(name, n)


def train(name: str, config: TrainingConfig) -> None:
    """Train a row, keep the weights of its last epoch, which were not chosen by any validation loss, and test them:
    trained again, on another machine perhaps, they need not be those of the row.
    """
    study = STUDIES["short"]
    model = study.trained(config)
    take_last_weights(model, config)
    save(model, f"{config.output_folder}/last.safetensors")
    heard = judge(study, "test")
    write_results(study.result(f"begun-{name}"), {"jtfs": heard(predict(model, heard.rows))["jtfs"]})


def main(drums: list[str], prefixes: list[str], fresh: bool) -> None:
    names = [name for drum in drums for name in (*named(drum), *rated(drum))]
    names += [*smoothed(), *takeovers(), *(f"nearest-{n}" for n in SEARCHED)] if "short" in drums else []
    refuse_unknown(prefixes, names)
    for drum in drums:
        study, wanted = STUDIES[drum], ready(beginning(named(drum), prefixes))
        tuned = with_rates(drum, wanted)
        study.do_all(tuned)
        if fresh:
            study.confirm_all(tuned)
        study.validate_all(beginning(rated(drum), prefixes))
        if drum == "short":
            study.validate_all(with_rates(drum, beginning(smoothed(), prefixes)))
            take_over(prefixes)
            search(prefixes)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--drums", nargs="+", choices=list(DRUMS), default=list(DRUMS))
    parser.add_argument("--rows", nargs="+", default=[], help="beginnings of their names")
    parser.add_argument(
        "--fresh", action="store_true", help="test rows on fresh sounds, too, but for rate-…, delta-… and after-…"
    )
    arguments = parser.parse_args()
    main(arguments.drums, arguments.rows, arguments.fresh)
