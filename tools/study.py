"""The study of chapter 8: train encoders with every loss on the same data, and test them all alike.

    python tools/study.py              # every row that is missing
    python tools/study.py pnp mss-1    # those whose names begin so

A row is one training run and its test. It is written to pnp_tutorial/results/study once it is done; a row that is there
with the same configuration is not done again, and one that was interrupted goes on where it stopped. As many rows are
trained side by side, in one thread each, as torch has threads: on two cores that is nearly twice as fast as one row
after another, and on a GPU the small steps of one leave room for those of others.
"""

import json
import multiprocessing
import os
import shutil
import sys
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
import zarr
from repository import ROOT
from torch import Tensor
from tqdm import tqdm

from pnp_tutorial.bank import load_bank
from pnp_tutorial.dataset import DatasetConfig, Drums, build, ear, load
from pnp_tutorial.drum import rectangular_drum
from pnp_tutorial.encoder import load_encoder
from pnp_tutorial.evaluation import best_constant, predict
from pnp_tutorial.metric import Map
from pnp_tutorial.mss import mss_distance
from pnp_tutorial.runtime import float64_device, refuse_difference, select_device, write_atomically
from pnp_tutorial.synthesizer import NAMES, ranges, to_nu, to_theta
from pnp_tutorial.training import TrainingConfig, fit

RESULTS = ROOT / "pnp_tutorial/results/study"
RUNS = Path("runs/study")
SEEDS = (0, 1, 2)
UNDAMPED = {"damping": "constant", "lambda_0": 0.0}
AVERAGE = {"damping": "constant", "damping_shape": "mean", "lambda_0": 1e6}
SMALL = {"backbone": "mobilenetv3_small_100"}  # of the rows that compare settings
SECANT = "data/study-secant.zarr"  # the same data set, with metrics of coarse spectra for steps as wide as errors are
COARSE = "data/study-coarse.zarr"  # and with metrics of coarse spectra for steps that are a hundred times as small
SECANTS = {SECANT: 0.1, COARSE: 0.001}

# The same data set with another coordinate of the shape: a function of α and its inverse. It is scaled linearly, so
# that α from FLATTEST to 1 becomes [−1, 1]; one drum in a hundred is flatter, and counts as FLATTEST.
SHAPES: dict[str, tuple[Map, Map]] = {
    "data/study-log.zarr": (torch.log, torch.exp),
    "data/study-inverse.zarr": (lambda a: 1 / a + 1 / a**2, lambda u: ((1 + 4 * u).sqrt() - 1).reciprocal() * 2),
}
FLATTEST = 0.01
ALPHA = NAMES.index("alpha")

# What is compared, and in what it differs from the settings. Each has its own learning rate.
LOSSES: dict[str, dict[str, Any]] = {
    "parameter": {"loss": "parameter"},
    "pnp": {"loss": "pnp"},
    "secant": {"loss": "pnp", "data": SECANT},
    "coarse": {"loss": "pnp", "data": COARSE},
    "mss": {"loss": "mss"},
}
# With the paper's encoder, with unknown and known pitch. The secant metric is damped by a schedule: where the adaptive
# rule keeps going back to a lucky epoch, what the low rates of the last epochs bring does not add up.
MAIN: dict[str, dict[str, Any]] = {"parameter": {}, "pnp": {}, "secant": {"damping": "scheduled"}, "mss": {}}
FALLING = {"final_learning_rate": 1e-4}  # of these; the learning rate of most others is constant, as the paper's
# The small rows: of which loss, and in what they differ from it.
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
    # one quadratic form for all sounds: the mean secant metric, next to which that of the sound itself has no say
    "small-average": ("secant", AVERAGE),
    # the learning rate falls: what that is worth, and which damping then serves
    "small-falling-parameter": ("parameter", FALLING),
    "small-falling-adaptive": ("pnp", FALLING),
    "small-falling-scheduled": ("pnp", {**FALLING, "damping": "scheduled"}),
    "small-falling-secant": ("secant", {**FALLING, "damping": "scheduled"}),
    "small-falling-secant-adaptive": ("secant", FALLING),
    "small-falling-average": ("secant", {**FALLING, **AVERAGE}),
    "small-log-undamped": ("pnp", {**UNDAMPED, "data": "data/study-log.zarr"}),
    "small-inverse-undamped": ("pnp", {**UNDAMPED, "data": "data/study-inverse.zarr"}),
}
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)

# Rows that are trained once more, on a CPU: a GPU's row beside a CPU's shows what another machine changes.
AGAIN = ("parameter-cpu-0", "small-falling-parameter-cpu-1")

# One loss that takes over from another, for a few epochs at a low rate: the row whose encoder goes on, and with what.
# The same loss at that rate is the control: what only the low rate brings.
HYBRIDS: dict[str, tuple[str, dict[str, Any]]] = {
    "hybrid-parameter-parameter": ("small-parameter-0", {**LOSSES["parameter"], "n_epochs": 5}),
    "hybrid-parameter-pnp": ("small-parameter-0", {**LOSSES["pnp"], **UNDAMPED, "n_epochs": 5}),
    "hybrid-parameter-secant": ("small-parameter-0", {**LOSSES["secant"], **UNDAMPED, "n_epochs": 5}),
    "hybrid-secant-secant": ("small-secant-0", {**LOSSES["secant"], **UNDAMPED, "n_epochs": 5}),
    "hybrid-secant-mss": ("small-secant-0", {**LOSSES["mss"], "n_epochs": 2}),
}
HYBRID_RATE = 3e-4


@cache
def settings() -> dict[str, Any]:
    """What all rows have in common."""
    return yaml.safe_load((ROOT / "book/parameters/study.yaml").read_text(encoding="utf-8"))


def of(config: type) -> dict[str, Any]:
    """The settings that are fields of a configuration."""
    return {field.name: settings()[field.name] for field in fields(config) if field.name in settings()}


@cache
def data() -> DatasetConfig:
    return DatasetConfig(**of(DatasetConfig))


@cache
def device() -> torch.device:
    """On which ν is, too."""
    return float64_device(select_device(data().device))


def tuning() -> dict[str, TrainingConfig]:
    """Short runs of every loss at every learning rate."""
    base = replace(TrainingConfig(**of(TrainingConfig)), **SMALL, n_epochs=5)
    named = {
        f"tune-{name}-{rate:g}": replace(base, **change, learning_rate=rate)
        for name, change in LOSSES.items()
        for rate in RATES
    }
    return {name: replace(row, output_folder=str(RUNS / name)) for name, row in named.items()}


def tuned(loss: str) -> float:
    """The learning rate whose short run came closest to the validation sounds, in mean JTFS distance."""
    distance = {
        rate: np.mean(json.loads(result(f"tune-{loss}-{rate:g}").read_text(encoding="utf-8"))["jtfs"]) for rate in RATES
    }
    return min(distance, key=distance.__getitem__)


def rows() -> dict[str, tuple[str, TrainingConfig]]:
    """The rows of the tables, in the order in which they are done: loss, and configuration without a learning rate."""
    base = TrainingConfig(**of(TrainingConfig))
    named = {}
    for seed in SEEDS:
        for known in (False, True):
            for loss, change in MAIN.items():
                config = replace(base, **LOSSES[loss], **FALLING, **change, known_pitch=known, seed=seed)
                named[f"{loss}{'-known' * known}-{seed}"] = loss, config
        for name, (loss, change) in DAMPINGS.items():
            named[f"{name}-{seed}"] = loss, replace(base, **SMALL, **LOSSES[loss], **change, seed=seed)
    for name in AGAIN:
        loss, config = named[name.replace("-cpu", "")]
        named[name] = loss, replace(config, device="cpu")
    return {name: (loss, replace(row, output_folder=str(RUNS / name))) for name, (loss, row) in named.items()}


def hybrids() -> dict[str, tuple[TrainingConfig, TrainingConfig]]:
    """The rows in which one loss takes over from another: both configurations."""
    named = {}
    for name, (first, change) in HYBRIDS.items():
        loss, config = rows()[first]
        config = replace(config, learning_rate=tuned(loss))
        start = {"start_from": f"{config.output_folder}/encoder.safetensors", "output_folder": str(RUNS / name)}
        own = {"data": data().data, "damping": "adaptive", "learning_rate": HYBRID_RATE}
        named[name] = config, replace(config, **(start | own | change))
    return named


def result(name: str) -> Path:
    return RESULTS / f"{name}.json"


def refuse_other_settings(name: str, config: TrainingConfig) -> None:
    """Raise ValueError if a row was made with others than these."""
    training = json.loads(result(name).read_text(encoding="utf-8"))["training"]
    made = training["config"] | {"precision": training.get("precision", "32-true")}  # what "auto" came to
    refuse_difference(made, config, f"{result(name)} was made", ("data", "output_folder", "device"))


def rounded(values: Tensor) -> list:
    """Four digits of each number."""
    return json.loads(json.dumps(values.tolist()), parse_float=lambda number: float(f"{float(number):.4g}"))


def synthesizer(theta: Tensor) -> Tensor:
    return rectangular_drum(theta, data().n_samples, dtype=torch.float32)


def drum(nu: Tensor) -> Tensor:
    return synthesizer(to_theta(nu))


class Judge:
    """Distances of predictions from the first sounds of a split, whose features are computed once, and kept."""

    def __init__(self, split: str, n_sounds: int) -> None:
        drums = load(data().data, split)
        self.drums, self.features = Drums(drums.nu[:n_sounds], drums.scalogram[:n_sounds]), ear(data()).to(device())
        path = RUNS / f"features-{split}-{n_sounds}.pt"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with torch.no_grad():
                S = [self.features(drum(some)).cpu() for some in self.drums.nu.to(device()).split(8)]
            torch.save(torch.cat(S), path)
        self.S = torch.load(path, weights_only=True)

    def listen(self, nu: Tensor) -> tuple[Tensor, Tensor]:
        """Features Φ(g(ν)) (n, P) and distance by MSS (n,) of g(ν) from the sounds of the split."""
        S, mss = [], []
        parts = zip(*(rows.to(device()).split(8) for rows in (nu, self.drums.nu)), strict=True)
        for some, true in tqdm(list(parts), desc="listen", leave=False):
            x = drum(some)
            S.append(self.features(x).cpu())
            mss.append(mss_distance(x, drum(true)).cpu())
        return torch.cat(S), torch.cat(mss)

    def __call__(self, nu_hat: Tensor) -> dict[str, list]:
        with torch.no_grad():
            S, mss = self.listen(nu_hat)
        return {"jtfs": rounded((S - self.S).norm(dim=-1)), "mss": rounded(mss), "nu_hat": rounded(nu_hat)}


judge = cache(Judge)


def do(name: str, config: TrainingConfig) -> None:
    """Train, test and write one row."""
    print(name, flush=True)
    fit(config, progress=multiprocessing.parent_process() is None)
    model = load_encoder(f"{config.output_folder}/encoder.safetensors", device())
    history = [
        json.loads(line)
        for line in Path(config.output_folder, "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    heard = judge("validation", 128) if name in tuning() else judge("test", 512)

    def test() -> dict[str, list]:
        nu_hat = predict(model, heard.drums)
        return heard(from_shape(nu_hat, *SHAPES[config.data]) if config.data in SHAPES else nu_hat)

    row = {"training": model.metadata["training"], "history": history, **test()}
    end = torch.load(f"{config.output_folder}/checkpoint.pt", map_location="cpu", weights_only=True)
    best = end["best"]["weights"]
    if any(not torch.equal(values, best[key]) for key, values in end["weights"].items()):
        model.encoder.load_state_dict(end["weights"])  # the last epoch's: validation may have chosen badly
        last = test()
        row["last"] = {key: last[key] for key in ("jtfs", "mss")}
    write_atomically({result(name): json.dumps(row).encode()})


def single_thread() -> None:
    torch.set_num_threads(1)


def do_all(named: dict[str, TrainingConfig]) -> None:
    """Do the rows that are missing, side by side."""
    for name, config in named.items():
        if result(name).exists():
            refuse_other_settings(name, config)
    missing = {name: config for name, config in named.items() if not result(name).exists()}
    for path in {config.data for config in missing.values()}:
        prepare(path)
    n = min(torch.get_num_threads(), len(missing))
    if n <= 1:
        for name, config in missing.items():
            do(name, config)
        return
    with ProcessPoolExecutor(n, multiprocessing.get_context("spawn"), single_thread) as pool:
        for _ in tqdm(pool.map(do, missing, missing.values()), total=len(missing), unit="row"):
            pass


def build_copy(path: str, nu: Tensor, metric: Tensor) -> None:
    """The data set once more, with other coordinates and metrics."""
    unfinished = shutil.copytree(data().data, f"{path}.new", dirs_exist_ok=True)
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
    alpha = to_theta(nu)[:, ALPHA]
    first, last = ends(u)
    low, high = (end[ALPHA] for end in ranges())
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
    bank = load_bank()
    refuse_difference(asdict(bank.config), data(), "the bank was built", ("data", "chunk_size", "device"))
    build(data(), metric=bank.metric)
    if path in SECANTS:
        build(replace(data(), data=path, secant_step=SECANTS[path]))
    elif path in SHAPES and not Path(path).exists():
        build_copy(path, *shape_metric(bank.nu, bank.metric, SHAPES[path][0]))


def from_shape(nu: Tensor, u: Map, inverse: Map) -> Tensor:
    """ν of coordinates in which u(α) takes the place of α."""
    first, last = ends(u)
    theta = to_theta(nu)
    theta[:, ALPHA] = inverse(first + (nu[:, ALPHA] + 1) / 2 * (last - first))
    return to_nu(theta)


def main(prefixes: list[str]) -> None:
    wanted = tuple(prefixes) or ("",)

    def those(names: Iterable[str]) -> list[str]:
        return [name for name in names if name.startswith(wanted)]

    named, taking_over = rows(), those(HYBRIDS)
    firsts = {HYBRIDS[name][0] for name in taking_over if not result(name).exists()}
    needed = {named[name][0] for name in (*those(named), *firsts)}
    prepare(data().data)
    judge("validation", 128)  # what it keeps is for all processes
    short = tuning()
    do_all({name: short[name] for name in short if name.startswith((*wanted, *(f"tune-{loss}-" for loss in needed)))})
    if not (those(named) or taking_over):
        return
    heard = judge("test", 512)
    if not result("constant").exists():  # the floor: one drum, whatever the sound
        train = load(data().data).nu[:256].to(device())
        nu = best_constant(train, heard.features, synthesizer, progress=True).cpu()
        write_atomically({result("constant"): json.dumps(heard(nu.expand_as(heard.drums.nu))).encode()})
    tuned_rows = {name: replace(config, learning_rate=tuned(loss)) for name, (loss, config) in named.items()}
    do_all({name: tuned_rows[name] for name in those(named)})
    for first in firsts:
        prepare(tuned_rows[first].data)
        fit(tuned_rows[first])  # it is trained again if its encoder is gone
    do_all({name: hybrids()[name][1] for name in taking_over})


if __name__ == "__main__":
    main(sys.argv[1:])
