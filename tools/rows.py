"""What the studies have in common: rows, each of them a training and its test, that are done once and kept as JSON.

A row is written to pnp_tutorial/results/<study> once it is done, with its history, its predictions and their distances;
one that chooses a setting has distances only, on validation and test sounds. A row that is there with the same
configuration is not done again, and one that was interrupted goes on where it stopped. As many rows are trained side by
side, in one thread each, as torch has threads: on two cores that is nearly twice as fast as one row after another, and
on a GPU the small steps of one leave room for those of others.
"""

import io
import json
import multiprocessing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import yaml
from repository import ROOT
from torch import Tensor
from tqdm import tqdm
from workers import do_all, end_with_parent

from pnp_tutorial.dataset import DatasetConfig, Rows, ear, encoder_input, load
from pnp_tutorial.ears import ear_sketch
from pnp_tutorial.encoder import AudioEncoder, load_encoder
from pnp_tutorial.evaluation import best_constant, predict
from pnp_tutorial.mss import mss_distance
from pnp_tutorial.runtime import (
    as_stored,
    float64_device,
    read_results,
    refuse_difference,
    seal,
    select_device,
    write_atomically,
    write_results,
)
from pnp_tutorial.runtime import side_by_side as in_threads
from pnp_tutorial.store import at_most
from pnp_tutorial.synthesizer import find_synthesizer, sketch
from pnp_tutorial.training import TrainingConfig, fit

N_VALIDATION, N_TEST = 128, 512  # sounds on which learning rates are chosen, and rows are compared
N_FRESH, FRESH_SEED = 2000, 2029  # sounds by which nothing was chosen

Kind = TypeVar("Kind")
Runs = Callable[[str, float], list[str]]  # names of the runs by which a loss and a learning rate are judged
Row = tuple[str, TrainingConfig]  # the loss whose learning rate it has, and its configuration without one


def short_runs(loss: str, rate: float) -> list[str]:
    """Names of the runs by which a learning rate is judged, unless a study has others."""
    return [f"tune-{loss}-{rate:g}"]


def whole_runs(n_seeds: Mapping[str, int], loss: str, rate: float) -> list[str]:
    """Names of the whole trainings by which a learning rate is judged, given each loss's number of seeds."""
    return [f"rate-{loss}-{rate:g}-{seed}" for seed in range(n_seeds[loss])]


def _unchanged(nu_hat: Tensor, config: TrainingConfig) -> Tensor:
    return nu_hat


def modern(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a row as it would be stored today: that of an older one says if the pitch is known."""
    known = ["log_omega"] if stored.get("known_pitch") else []
    return {"known": known} | {name: value for name, value in stored.items() if name != "known_pitch"}


@dataclass(frozen=True)
class Study:
    """Some rows that are tested on the same sounds.

    `prepare` builds a data set, given its path, unless it is there. `to_nu` makes ν of what an encoder predicts, if a
    data set has other coordinates. `sounds` is the data set on whose sounds rows are tested, and whose synthesizer all
    have, if the settings do not describe it.
    """

    name: str  # of the folders of its results and runs
    settings: str  # file of book/parameters: what all rows have in common
    prepare: Callable[[str], None]
    to_nu: Callable[[Tensor, TrainingConfig], Tensor] = _unchanged
    sounds: DatasetConfig | None = None

    @property
    def runs(self) -> Path:
        return Path("runs") / self.name

    def of(self, config: type) -> Any:
        """A configuration with those settings that are fields of it."""
        values = yaml.safe_load((ROOT / "book/parameters" / self.settings).read_text(encoding="utf-8"))
        own = {field.name: values[field.name] for field in fields(config) if field.name in values}
        if own.pop("synthesizer", None) and config is DatasetConfig:
            own["synthesizer"] = find_synthesizer(values["synthesizer"])
        if self.sounds and config is TrainingConfig:
            own["synthesizer"] = self.sounds.synthesizer
        return config(**own)

    @property
    def data(self) -> DatasetConfig:
        return self.sounds or self.of(DatasetConfig)

    @property
    def splits(self) -> dict[str, int]:
        """How many sounds rows are judged on."""
        return {"validation": N_VALIDATION, "test": N_TEST, "fresh": N_FRESH}

    @property
    def device(self) -> torch.device:
        """On which ν is, too."""
        return float64_device(select_device(self.data.device))

    def in_folders(self, rows: Mapping[str, TrainingConfig]) -> dict[str, TrainingConfig]:
        """The rows, each with a folder of its own."""
        return {name: replace(row, output_folder=str(self.runs / name)) for name, row in rows.items()}

    def result(self, name: str) -> Path:
        return ROOT / "pnp_tutorial/results" / self.name / f"{name}.json"

    def read(self, name: str) -> dict[str, Any]:
        return read_results(self.result(name))

    def refuse_other_settings(self, name: str, config: TrainingConfig) -> None:
        """Raise ValueError if a row was made with others than these."""
        training = self.read(name)["training"]
        made = modern(training["config"])
        if config.precision != "auto":
            made["precision"] = training.get("precision", "32-true")  # what "auto" came to
        refuse_difference(made, config, f"{self.result(name)} was made", ("output_folder", "device"))

    def at_rates(self, rows: Mapping[str, TrainingConfig], rates: Sequence[float]) -> dict[str, TrainingConfig]:
        """Every row at every learning rate, which takes the place of {} in its name."""
        named = {
            name.format(f"{rate:g}"): replace(row, learning_rate=rate) for name, row in rows.items() for rate in rates
        }
        return self.in_folders(named)

    def tuned(self, loss: str, rates: Sequence[float], runs: Runs = short_runs) -> float:
        """The learning rate whose runs came closest to the validation sounds, in mean JTFS distance."""

        def distance(rate: float) -> float:
            done = [self.read(name) for name in runs(loss, rate)]
            return float(np.mean([row.get("validation", row)["jtfs"] for row in done]))

        return min(rates, key=distance)

    def with_rates(
        self, rows: Mapping[str, Row], rates: Sequence[float], runs: Runs = short_runs
    ) -> dict[str, TrainingConfig]:
        """Rows of losses, each with the learning rate that runs found best for its loss."""
        return self.in_folders(
            {name: replace(row, learning_rate=self.tuned(loss, rates, runs)) for name, (loss, row) in rows.items()}
        )

    def trained(self, config: TrainingConfig) -> AudioEncoder:
        """The encoder of a row, with the weights of its best epoch, trained unless it has been."""
        fit(config, progress=multiprocessing.parent_process() is None)
        return load_encoder(f"{config.output_folder}/encoder.safetensors", self.device, config.synthesizer)

    def do(self, name: str, config: TrainingConfig) -> None:
        """Train, test and write one row."""
        print(name, flush=True)
        model = self.trained(config)
        lines = Path(config.output_folder, "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        heard = judge(self, "validation" if name.startswith("tune-") else "test")

        def test() -> dict[str, list]:
            return heard(self.to_nu(predict(model, heard.rows), config))

        row = {"training": model.metadata["training"], "history": [json.loads(line) for line in lines], **test()}
        if take_last_weights(model, config):  # validation may have chosen badly
            last = test()
            row["last"] = {key: last[key] for key in ("jtfs", "mss")}
        write_results(self.result(name), row)

    def confirm(self, name: str, config: TrainingConfig) -> None:
        """Test the last weights of a row on fresh sounds, once; train them again if they are gone."""
        print(name, flush=True)
        model = self.trained(config)
        take_last_weights(model, config)
        heard = judge(self, "fresh")
        made = {"training": model.metadata["training"], "seed": FRESH_SEED}
        found = heard(self.to_nu(predict(model, heard.rows), config))
        row = {**made, "jtfs": found["jtfs"], "mss": found["mss"]}
        write_results(self.result(name), row)

    def confirm_all(self, named: Mapping[str, TrainingConfig]) -> None:
        """Test those rows on fresh sounds that have not been."""
        self.on_data(self.confirm, self.missing({f"fresh-{name}": config for name, config in named.items()}), "fresh")

    def do_all(self, named: Mapping[str, TrainingConfig]) -> None:
        """Do the rows that are missing, side by side."""
        self.on_data(self.do, self.missing(named), "validation", "test")

    def validate_all(self, named: Mapping[str, TrainingConfig]) -> None:
        """Do those that are missing of rows that choose settings, side by side."""
        self.on_data(self.validate, self.missing(named), "validation", "test")

    def validate_rates(
        self, rated: Mapping[str, TrainingConfig], losses: Collection[str], rates: Sequence[float], runs: Runs
    ) -> None:
        """Do those of some whole trainings by which the rates of losses are judged."""
        choosing = {name for loss in losses for rate in rates for name in runs(loss, rate)}
        self.validate_all({name: config for name, config in rated.items() if name in choosing})

    def validate(self, name: str, config: TrainingConfig) -> None:
        """Train a row; judge its last weights on validation sounds, which choose settings, and on test sounds."""
        print(name, flush=True)
        model, found = self.trained(config), {}
        take_last_weights(model, config)
        for split in ("validation", "test"):
            heard = judge(self, split)
            distances = heard(self.to_nu(predict(model, heard.rows), config))
            found[split] = {key: distances[key] for key in ("jtfs", "mss")}
        write_results(self.result(name), {"training": model.metadata["training"], **found})

    def missing(self, named: Mapping[str, TrainingConfig]) -> dict[str, TrainingConfig]:
        """The rows that are not done; raises ValueError if one was done with another configuration."""
        for name, config in named.items():
            if self.result(name).exists() and "training" in self.read(name):  # older tests on fresh sounds do not say
                self.refuse_other_settings(name, config)
        return {name: config for name, config in named.items() if not self.result(name).exists()}

    def on_data(
        self, work: Callable[[str, TrainingConfig], None], named: Mapping[str, TrainingConfig], *splits: str
    ) -> None:
        """Do some work for every row, side by side, once their data sets and what is heard of splits are there."""
        for path in {self.data.data, *(config.data for config in named.values())} if named else ():
            self.prepare(path)
        side_by_side(work, named, lambda: [judge(self, split) for split in splits])

    def do_constant(self) -> None:
        """The floor: one ν, whatever the sound."""
        if not self.result("constant").exists():
            self.prepare(self.data.data)
            heard, train = judge(self, "test"), at_most(load(self.data.data, names=()), 256, self.data.sampling)
            nu = best_constant(train.nu.to(self.device), heard.features, heard.play, progress=True).cpu()
            write_results(self.result("constant"), heard(nu.expand_as(heard.rows.nu)))

    def search(self, name: str, n: int | None = None) -> None:
        """What needs no network, either: for each test sound, that of n for training whose features are nearest."""
        if self.result(name).exists():
            return
        self.prepare(self.data.data)
        nu = load(self.data.data, names=(), n=n).nu
        heard, parts = judge(self, "test"), nu.to(self.device).split(8)
        with torch.no_grad(), tqdm(total=len(parts), desc=name) as bar:

            def distances(some: Tensor) -> Tensor:
                S = heard.features(heard.play(some)).cpu()
                far = torch.cdist(heard.S, S, compute_mode="donot_use_mm_for_euclid_dist")
                bar.update()
                return far

            nearest = torch.cat(in_threads(distances, parts), 1).argmin(1)
        write_results(self.result(name), heard(nu[nearest]))


def refuse_unknown(prefixes: Collection[str], names: Collection[str]) -> None:
    """End with one line, before any work, if no row's name begins so."""
    for prefix in prefixes:
        if not any(name.startswith(prefix) for name in names):
            raise SystemExit(f"expected beginnings of rows' names, such as {min(names)!r}, got {prefix!r}")


def beginning(rows: Mapping[str, Kind], prefixes: Collection[str]) -> dict[str, Kind]:
    """The rows whose names begin so, or all of them."""
    return {name: row for name, row in rows.items() if not prefixes or name.startswith(tuple(prefixes))}


def side_by_side(
    work: Callable[[str, TrainingConfig], None], named: Mapping[str, TrainingConfig], first: Callable[[], object]
) -> None:
    """Do some work for every row, as many at once as torch has threads; before that, what is kept for all processes.

    A row that is alone has one thread, too: with more it would have other numbers.
    """
    if not named:
        return
    first()
    n_threads = torch.get_num_threads()
    if len(named) > 1:
        do_all(work, named.items(), min(n_threads, len(named)), worker)
        return
    torch.set_num_threads(1)
    try:
        work(*next(iter(named.items())))
    finally:
        torch.set_num_threads(n_threads)


def worker() -> None:
    end_with_parent()
    torch.set_num_threads(1)


def take_last_weights(model: AudioEncoder, config: TrainingConfig) -> bool:
    """Give a row's encoder the weights of its last epoch; returns whether they are others than those that it has."""
    end = torch.load(f"{config.output_folder}/checkpoint.pt", map_location="cpu", weights_only=True)
    best, last = end["best"]["weights"], end["weights"]
    model.encoder.load_state_dict(last)  # even if they are the same: a file has them in half precision
    return not all(torch.equal(values, best[key]) for key, values in last.items())


def fresh(data: DatasetConfig, n_sounds: int) -> Rows:
    """Sounds (n_sounds, …) like those of a data set, of a seed that no data set has, uniform over the box."""
    nu, scalogram = data.synthesizer.sample_uniform(n_sounds, FRESH_SEED), encoder_input(data)
    with torch.no_grad():
        seen = torch.cat([scalogram(data.synthesizer(some, torch.float32)) for some in nu.split(8)])
    return Rows(nu, seen.half())  # as they are stored


def rounded(values: Tensor) -> list:
    """Four digits of each number."""
    return json.loads(json.dumps(values.tolist()), parse_float=lambda number: float(f"{float(number):.4g}"))


def numbers(values: Tensor) -> list[float]:
    """Five digits of each number (n,)."""
    return [float(f"{value:.5g}") for value in values.tolist()]


class Judge:
    """Distances of predictions from sounds of a split, whose features are computed once, and kept."""

    def __init__(self, study: Study, split: str) -> None:
        data, n_sounds = study.data, study.splits[split]
        self.synthesizer, self.device = data.synthesizer, study.device
        self.features = ear(data, study.device)
        if split == "fresh":
            self.rows = fresh(data, n_sounds)
        else:
            self.rows = at_most(load(data.data, split, ("scalogram",)), n_sounds, data.sampling)
        if len(self.rows.nu) < n_sounds:
            raise ValueError(f"expected {n_sounds} {split} sounds in {data.data}, got {len(self.rows.nu)}")
        heard_by = {"sketch": sketch(data.synthesizer), "ear": ear_sketch(self.features, data.synthesizer, self.device)}
        drawn = {"seed": FRESH_SEED} if split == "fresh" else {}
        path = study.runs / f"features-{split}-{n_sounds}-{seal({**as_stored(data), **heard_by, **drawn})[:8]}.pt"
        if not path.exists():
            with torch.no_grad():
                S = [self.features(self.play(some)).cpu() for some in self.rows.nu.to(self.device).split(8)]
            content = io.BytesIO()
            torch.save(torch.cat(S), content)
            write_atomically({path: content.getvalue()})
        self.S = torch.load(path, weights_only=True)

    def play(self, nu: Tensor) -> Tensor:
        return self.synthesizer(nu, torch.float32)

    def listen(self, nu: Tensor) -> tuple[Tensor, Tensor]:
        """Features Φ(g(ν)) (n, P) and distance by MSS (n,) of g(ν) from the sounds of the split."""
        S, mss = [], []
        parts = zip(*(rows.to(self.device).split(8) for rows in (nu, self.rows.nu)), strict=True)
        for some, true in tqdm(list(parts), desc="listen", leave=False):
            x = self.play(some)
            S.append(self.features(x).cpu())
            mss.append(mss_distance(x, self.play(true)).cpu())
        return torch.cat(S), torch.cat(mss)

    def __call__(self, nu_hat: Tensor) -> dict[str, list]:
        with torch.no_grad():
            S, mss = self.listen(nu_hat)
        return {"jtfs": rounded((S - self.S).norm(dim=-1)), "mss": rounded(mss), "nu_hat": rounded(nu_hat)}


judge = cache(Judge)
