"""Studies of chapters 8 and 9: results are of what the code says; another coordinate of the shape, the same drum."""

import hashlib
from dataclasses import replace
from pathlib import Path

import arpeggiator_study
import matching_study
import pytest
import scaling
import study
import torch

from pnp_tutorial.arpeggiator import ARPEGGIATOR
from pnp_tutorial.bank import WEIGHTS, shipped
from pnp_tutorial.drum import DRUM
from pnp_tutorial.encoder import load_encoder
from pnp_tutorial.runtime import read_results
from pnp_tutorial.training import TrainingConfig

ROWS = study.rows() | {name: (None, config) for name, config in study.tuning().items()}
DONE = [name for name in ROWS if study.STUDY.result(name).exists()]


def test_no_row_is_missing():
    assert list(ROWS) == DONE
    assert all(study.STUDY.result(name).exists() for name in ("constant", "nearest"))


def today(name: str) -> TrainingConfig:
    """A row with the learning rate that was best."""
    loss, config = ROWS[name]
    return study.with_rates({name: (loss, config)})[name] if loss else config


def test_rows_differ_and_have_folders_of_their_own():
    configs = study.with_rates(study.rows()) | study.tuning()
    assert len({replace(config, output_folder="") for config in configs.values()}) == len(ROWS)
    assert len({config.output_folder for config in configs.values()}) == len(ROWS)


@pytest.mark.parametrize("name", DONE)
def test_results_were_made_with_the_configuration_of_today(name):
    row, config = study.STUDY.read(name), today(name)
    study.STUDY.refuse_other_settings(name, config)
    assert Path(row["training"]["config"]["data"]).name == Path(config.data).name
    assert len(row["history"]) == config.n_epochs
    n_sounds = 128 if name.startswith("tune") else 512
    assert len(row["jtfs"]) == len(row["mss"]) == len(row["nu_hat"]) == n_sounds


SHORT = scaling.STUDIES["short"]
VALIDATED = [
    *((study.STUDY, *row) for row in study.rated().items()),
    *((scaling.STUDIES[drum], *row) for drum in scaling.DRUMS for row in scaling.rated(drum).items()),
    *((SHORT, *row) for row in SHORT.with_rates(scaling.smoothed(), scaling.RATES).items()),
]


@pytest.mark.parametrize(("made", "name", "config"), VALIDATED)
def test_rows_that_choose_settings_are_there(made, name, config):
    made.refuse_other_settings(name, config)
    row = made.read(name)
    for split, n_sounds in (("validation", 128), ("test", 512)):
        assert len(row[split]["jtfs"]) == len(row[split]["mss"]) == n_sounds


def test_fresh_results_are_of_the_rows_of_today():
    fresh = [path.stem for path in study.STUDY.result("fresh-*").parent.glob("fresh-*.json")]
    assert len(fresh) == 6
    for name in fresh:
        study.STUDY.refuse_other_settings(name, today(name.removeprefix("fresh-")))
        assert len(study.STUDY.read(name)["mss"]) == 2000


def test_a_row_wants_the_runs_of_its_own_loss_that_choose_its_rate(monkeypatch):
    """And not those of losses whose names go on."""
    done = []
    monkeypatch.setattr(study.Study, "do_all", lambda self, named: done.append(list(named)) if named else None)
    monkeypatch.setattr(study.Study, "validate_all", study.Study.do_all)
    monkeypatch.setattr(study.Study, "do_constant", lambda self: None)
    monkeypatch.setattr(study.Study, "search", lambda self, name: None)
    study.main(["small-parameter-0"])
    assert done == [[f"tune-parameter-{rate:g}" for rate in study.RATES], ["small-parameter-0"]]
    done.clear()
    study.main(["small-falling-secant-0", "small-falling-average-scheduled-4"])
    whole = [f"rate-secant-{rate:g}-0" for rate in study.WHOLE_RATES]
    assert done == [whole, ["small-falling-secant-0", "small-falling-average-scheduled-4"]]
    done.clear()
    scaling.main(["diagonal"], ["parameter-4096-1280-0"], False)
    short = [f"tune-parameter-{rate:g}" for rate in (*scaling.RATES, scaling.BEYOND)]
    whole = [f"rate-parameter-{rate:g}-0" for rate in scaling.RATES]
    assert done == [short, whole, ["parameter-4096-1280-0"]]


ARPEGGIOS = arpeggiator_study.rows() | {name: (None, row) for name, row in arpeggiator_study.tuning().items()}


@pytest.mark.parametrize("name", ARPEGGIOS)
def test_every_row_of_the_arpeggiator_is_there_with_the_configuration_of_today(name):
    loss, config = ARPEGGIOS[name]
    made = arpeggiator_study.STUDY
    config = replace(config, learning_rate=made.tuned(loss, arpeggiator_study.RATES)) if loss else config
    made.refuse_other_settings(name, config)
    row = made.read(name)
    dataset = row["training"]["dataset"]
    assert Path(row["training"]["config"]["data"]).name == Path(config.data).name
    assert dataset["synthesizer"] == ARPEGGIATOR.to_dict()
    assert dataset["n_sounds"] == made.data.n_sounds
    assert len(row["history"]) == config.n_epochs
    assert len(row["jtfs"]) == len(row["mss"]) == len(row["nu_hat"]) == (128 if name.startswith("tune") else 512)


def test_the_encoder_that_ships_is_a_row_of_the_scaling_study():
    model = load_encoder()
    name = f"secant-root-{scaling.MOST}-{scaling.LONG_RUN}-0"
    assert model.metadata["training"] == scaling.STUDIES["full"].read(name)["training"]
    assert model.metadata["evaluation"]["n_sounds"] == 512


def test_the_arpeggiator_that_ships_is_a_row_of_its_study():
    model = load_encoder(synthesizer=ARPEGGIATOR)
    assert model.config.synthesizer == ARPEGGIATOR
    row = arpeggiator_study.STUDY.read("constant-0")
    assert model.metadata["training"] == row["training"]
    assert model.metadata["evaluation"]["summary"]["ear"]["mean"] == pytest.approx(sum(row["jtfs"]) / 512, rel=0.01)


MATCHED = (
    *matching_study.CONDITIONS,
    *matching_study.FILES,
    *matching_study.MEMBRANES,
    *matching_study.CALIBRATION,
)


@pytest.mark.parametrize("name", MATCHED)
def test_matches_are_those_of_the_encoder_that_ships(name):
    made = read_results(matching_study.RESULTS / f"{name}.json")
    assert made["encoder"] == hashlib.sha256(shipped("encoder.safetensors").read_bytes()).hexdigest()


def test_matches_of_another_encoder_count_as_missing(monkeypatch):
    assert matching_study.is_done("clean")
    assert not matching_study.is_done("none")
    monkeypatch.setattr(matching_study, "encoder_sum", lambda: "another")
    assert not matching_study.is_done("clean")


@pytest.mark.parametrize("data", study.SHAPES)
def test_another_coordinate_of_the_shape_is_the_same_drum(data):
    u, inverse = study.SHAPES[data]
    nu = DRUM.sample_uniform(50, seed=2)
    nu = nu[DRUM.to_theta(nu)[:, study.ALPHA] > study.FLATTEST]
    new, slope = study.to_shape(nu, u)
    assert new.abs().max() <= 1
    torch.testing.assert_close(study.from_shape(new, u, inverse), nu)
    step = 1e-6 * torch.ones_like(nu)
    torch.testing.assert_close((study.to_shape(nu + step, u)[0] - new) * slope, step, rtol=1e-3, atol=0)


@pytest.mark.parametrize("synthesizer", [DRUM, ARPEGGIATOR])
def test_the_model_card_says_what_the_encoders_were_measured_to_do(synthesizer):
    card = (WEIGHTS / "MODEL_CARD.md").read_text(encoding="utf-8")
    section = card.split("## ")[2 if synthesizer is DRUM else 3]
    s = load_encoder(synthesizer=synthesizer).metadata["evaluation"]["summary"]
    distance = "{mean:.1f} [{low:.1f}, {high:.1f}]" if synthesizer is DRUM else "{mean:.2f} [{low:.2f}, {high:.2f}]"
    assert f"JTFS distance of {distance.format(**s['ear'])} in the mean" in section
    assert f"{s['mss']['mean']:.2f} by MSS" in section
    constant = f"constant answer is at {s['ear_constant']['mean']:.1f} and {s['mss_constant']['mean']:.2f}."
    assert " ".join(section.split()).endswith(constant)
