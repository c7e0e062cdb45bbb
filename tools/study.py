"""The study of chapter 8: train encoders with every loss on the same data, and test them all alike.

    python tools/study.py              # every row that is missing
    python tools/study.py pnp mss-1    # those whose names begin so

A row is one training run and its test. It is written to pnp_tutorial/results/study once it is done; a row that is there
with the same configuration is not done again, and one that was interrupted goes on where it stopped.
"""

import json
import sys
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from repository import ROOT
from torch import Tensor
from tqdm import tqdm

from pnp_tutorial.bank import load_bank
from pnp_tutorial.dataset import DatasetConfig, Drums, build, ear, load, refuse_difference, write_atomically
from pnp_tutorial.drum import rectangular_drum
from pnp_tutorial.encoder import load_encoder
from pnp_tutorial.evaluation import best_constant, predict
from pnp_tutorial.matching import CoarseSpectra
from pnp_tutorial.metric import secant_metric
from pnp_tutorial.mss import mss_distance
from pnp_tutorial.parameters import to_theta
from pnp_tutorial.training import TrainingConfig, fit

SETTINGS = yaml.safe_load((ROOT / "book/parameters/study.yaml").read_text())
RESULTS = ROOT / "pnp_tutorial/results/study"
RUNS = Path("runs/study")
SEEDS = (0, 1, 2)
SMALL = {"backbone": "mobilenetv3_small_100"}  # of the rows that compare settings
SECANT = "data/study-secant.zarr"  # the same data set, with metrics at the scale of an encoder's errors
STEP = 0.1  # that scale: a twentieth of the range

# What is compared, and in what it differs from the settings. Each has its own learning rate.
LOSSES: dict[str, dict[str, Any]] = {
    "parameter": {"loss": "parameter"},
    "pnp": {"loss": "pnp"},
    "secant": {"loss": "pnp", "data": SECANT},
    "mss": {"loss": "mss"},
}
# The small rows: of which loss, and in what they differ from it.
DAMPINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "small-parameter": ("parameter", {}),
    "small-undamped": ("pnp", {"damping": "constant", "lambda_0": 0.0}),
    "small-constant": ("pnp", {"damping": "constant"}),
    "small-scheduled": ("pnp", {"damping": "scheduled"}),
    "small-adaptive": ("pnp", {"damping": "adaptive"}),
    "small-diagonal": ("pnp", {"damping": "adaptive", "damping_shape": "diagonal"}),
    "small-mean": ("pnp", {"damping": "adaptive", "damping_shape": "mean"}),
    "small-secant": ("secant", {}),
    "small-secant-undamped": ("secant", {"damping": "constant", "lambda_0": 0.0}),
}
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)


def of(config: type) -> dict[str, Any]:
    """The settings that are fields of a configuration."""
    return {field.name: SETTINGS[field.name] for field in fields(config) if field.name in SETTINGS}


DATA = DatasetConfig(**of(DatasetConfig))


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
    distance = {rate: np.mean(json.loads(result(f"tune-{loss}-{rate:g}").read_text())["jtfs"]) for rate in RATES}
    return min(distance, key=distance.__getitem__)


def rows() -> dict[str, tuple[str, TrainingConfig]]:
    """The rows of the tables, in the order in which they are done: loss, and configuration without a learning rate."""
    base = TrainingConfig(**of(TrainingConfig))
    named = {}
    for seed in SEEDS:
        for name, (loss, change) in DAMPINGS.items():
            named[f"{name}-{seed}"] = loss, replace(base, **SMALL, **LOSSES[loss], **change, seed=seed)
        for known in (False, True):
            for loss, change in LOSSES.items():
                config = replace(base, **change, known_pitch=known, seed=seed)
                named[f"{loss}{'-known' * known}-{seed}"] = loss, config
    return {name: (loss, replace(row, output_folder=str(RUNS / name))) for name, (loss, row) in named.items()}


def result(name: str) -> Path:
    return RESULTS / f"{name}.json"


def rounded(values: Tensor) -> list:
    """Four digits of each number."""
    return json.loads(json.dumps(values.tolist()), parse_float=lambda number: float(f"{float(number):.4g}"))


def synthesizer(theta: Tensor) -> Tensor:
    return rectangular_drum(theta, DATA.n_samples, dtype=torch.float32)


def drum(nu: Tensor) -> Tensor:
    return synthesizer(to_theta(nu))


class Judge:
    """Distances of predictions from the first sounds of a split, whose features are computed once, and kept."""

    def __init__(self, split: str, n_sounds: int) -> None:
        drums = load(SETTINGS["data"], split)
        self.drums, self.features = Drums(drums.nu[:n_sounds], drums.scalogram[:n_sounds]), ear(DATA)
        path = RUNS / f"features-{split}-{n_sounds}.pt"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with torch.no_grad():
                torch.save(torch.cat([self.features(drum(some)) for some in self.drums.nu.split(8)]), path)
        self.S = torch.load(path, weights_only=True)

    def listen(self, nu: Tensor) -> tuple[Tensor, Tensor]:
        """Features Φ(g(ν)) (n, P) and distance by MSS (n,) of g(ν) from the sounds of the split."""
        S, mss = [], []
        for some, true in zip(tqdm(nu.split(8), desc="listen", leave=False), self.drums.nu.split(8), strict=True):
            x = drum(some)
            S.append(self.features(x))
            mss.append(mss_distance(x, drum(true)))
        return torch.cat(S), torch.cat(mss)

    def __call__(self, nu_hat: Tensor) -> dict[str, list]:
        with torch.no_grad():
            S, mss = self.listen(nu_hat)
        return {"jtfs": rounded((S - self.S).norm(dim=-1)), "mss": rounded(mss), "nu_hat": rounded(nu_hat)}


def do(name: str, config: TrainingConfig, judge: Judge) -> None:
    """Train, test and write one row, unless it is there."""
    if result(name).exists():
        done = json.loads(result(name).read_text())["training"]["config"]
        refuse_difference(done, asdict(config), f"{result(name)} was made", ("data", "output_folder", "device"))
        return
    print(name, flush=True)
    fit(config)
    model = load_encoder(f"{config.output_folder}/encoder.safetensors")
    history = [json.loads(line) for line in Path(config.output_folder, "metrics.jsonl").read_text().splitlines()]
    row = {"training": model.metadata["training"], "history": history, **judge(predict(model, judge.drums))}
    write_atomically({result(name): json.dumps(row).encode()})


def secant_metrics(nu: Tensor) -> Tensor:
    """Metrics of the coarse spectra at the scale of STEP, computed once, and kept."""
    path = RUNS / "secant.pt"
    if not path.exists():
        coarse = CoarseSpectra(DATA.n_samples)
        parts = tqdm(nu.split(8), desc="secants", leave=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(torch.cat([secant_metric(some, coarse, synthesizer, step=STEP) for some in parts]), path)
    return torch.load(path, weights_only=True)


def main(prefixes: list[str]) -> None:
    bank = load_bank()
    refuse_difference(asdict(bank.config), asdict(DATA), "the bank was built", ("data", "chunk_size", "device"))
    build(DATA, metric=bank.metric)
    build(replace(DATA, data=SECANT), metric=secant_metrics(bank.nu))
    wanted = tuple(prefixes) or ("",)
    judge = Judge("validation", 128)
    for name, config in tuning().items():
        if name.startswith(wanted):
            do(name, config, judge)
    named = {name: row for name, row in rows().items() if name.startswith(wanted)}
    if not named:
        return
    judge = Judge("test", 512)
    if not result("constant").exists():  # the floor: one drum, whatever the sound
        train = load(SETTINGS["data"]).nu[:256]
        nu = best_constant(train, judge.features, partial(rectangular_drum, n_samples=DATA.n_samples), progress=True)
        write_atomically({result("constant"): json.dumps(judge(nu.expand_as(judge.drums.nu))).encode()})
    for name, (loss, config) in named.items():
        do(name, replace(config, learning_rate=tuned(loss)), judge)


if __name__ == "__main__":
    main(sys.argv[1:])
