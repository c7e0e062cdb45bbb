"""Distances, the best constant, and the report."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pnp_tutorial import evaluation
from pnp_tutorial.dataset import DatasetConfig, build, ear, load
from pnp_tutorial.drum import DRUM
from pnp_tutorial.encoder import load_encoder
from pnp_tutorial.evaluation import (
    EvaluationConfig,
    best_constant,
    evaluate,
    paired_gain,
    predict,
    report,
    summarize,
)
from pnp_tutorial.training import fit

SYNTHESIZER = replace(DRUM, n_samples=2048)


@pytest.fixture(scope="module")
def features():
    return ear(DatasetConfig(n_samples=2048))


def test_best_constant_is_the_medoid():
    """With features that are the parameters themselves, it is known."""
    nu = torch.tensor([[-0.9], [0.3], [0.4], [0.5], [0.9]], dtype=torch.float64).repeat(1, 5)
    identity = {"features": lambda x: x, "synthesizer": lambda nu: nu}
    assert torch.equal(best_constant(nu, **identity), nu[2])


def test_best_constant_may_be_the_centre():
    """The corners of a cross polytope are √2 or 2 from each other, and 1 from its centre."""
    nu = torch.cat([torch.eye(5), -torch.eye(5)]).double()
    assert torch.equal(best_constant(nu, lambda x: x, lambda nu: nu).abs().round(), torch.zeros(5).double())


def test_perfect_predictions(tiny_data, features):
    nu = load(tiny_data.data, "train").nu[:9]
    table = evaluate(nu, nu, torch.zeros(5, dtype=torch.float64), features, SYNTHESIZER)
    assert len(table) == 9
    assert (table[["ear", *(f"error_{name}" for name in DRUM.names)]] == 0).all(axis=None)
    S = features(SYNTHESIZER(nu))
    expected = (S - features(SYNTHESIZER(torch.zeros(5, dtype=torch.float64)))).norm(dim=-1)
    assert table.ear_constant.to_numpy() == pytest.approx(expected.numpy(), rel=1e-3)
    assert (table.ear_gain == table.ear_constant).all()


def test_constant_predictions_gain_nothing(tiny_data, features):
    nu, constant = load(tiny_data.data, "test").nu, torch.full((5,), 0.1, dtype=torch.float64)
    table = evaluate(constant.expand_as(nu), nu, constant, features, SYNTHESIZER)
    assert np.abs(table.ear_gain).max() < 1e-3 * table.ear.max()
    assert table.error_tau.to_numpy() == pytest.approx((nu[:, 1] - 0.1).abs().numpy())


def test_the_constant_is_given_what_the_encoder_is(tiny_data, tiny_training, tmp_path):
    """So that an encoder which answers it, and knows the pitch of every sound, gains nothing."""
    nu = load(tiny_data.data, "test").nu
    constants = torch.cat([nu[:, :1], torch.full((len(nu), 4), 0.1)], 1).double()
    table = evaluate(constants, nu, constants, ear(tiny_data), SYNTHESIZER)
    assert (table.ear_gain == 0).all()
    training = replace(tiny_training, known=("log_omega",), n_epochs=1, output_folder=str(tmp_path))
    fit(training, progress=False)
    config = EvaluationConfig(f"{tmp_path}/encoder.safetensors", tiny_data.data, str(tmp_path), device="cpu")
    report(config, progress=False)
    medoid = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))["nu_constant"]
    constants[:, 1:] = torch.tensor(medoid[1:], dtype=torch.float64)
    expected = evaluate(nu, nu, constants, ear(tiny_data), SYNTHESIZER).ear_constant
    assert pd.read_csv(tmp_path / "evaluation.csv").ear_constant.to_numpy() == pytest.approx(expected.to_numpy())


def test_known_pitch_is_given(tiny_data):
    class FourOutputs(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))
            self.config, self.known = tiny_data, ("log_omega",)

        def encoder(self, S):
            return self.weight.expand(len(S), 4)

    drums = load(tiny_data.data, "test")
    nu_hat = predict(FourOutputs(), drums)
    assert torch.equal(nu_hat[:, 0], drums.nu[:, 0])
    assert (nu_hat[:, 1:] == 0).all()


def test_bootstrap_interval_covers_the_mean_of_a_known_sample():
    sample = np.random.default_rng(0).normal(3.0, 2.0, 400)
    row = summarize(pd.DataFrame({"x": sample})).loc["x"]
    standard_error = sample.std() / np.sqrt(400)
    assert row["mean"] == pytest.approx(sample.mean())
    assert row.high - row.low == pytest.approx(2 * 1.96 * standard_error, rel=0.1)


def test_report_writes_what_it_returns(tiny_data, tiny_training, tmp_path):
    trained = f"{tiny_training.output_folder}/encoder.safetensors"
    config = EvaluationConfig(trained, tiny_data.data, str(tmp_path), n_constant=8, device="cpu")
    summary = report(config, progress=False)
    table = pd.read_csv(tmp_path / "evaluation.csv")
    results = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))
    assert len(table) == results["n_sounds"] == 4
    assert summary.loc["ear", "mean"] == pytest.approx(table.ear.mean())
    assert results["summary"]["ear"]["mean"] == pytest.approx(table.ear.mean())
    assert results["nu_constant"] in [*load(tiny_data.data).nu[:8].tolist(), [0.0] * 5]
    stamped, plain = load_encoder(tmp_path / "encoder.safetensors"), load_encoder(trained)
    assert stamped.metadata["evaluation"]["summary"] == results["summary"]
    assert stamped.metadata["training"] == plain.metadata["training"]
    S = load(tiny_data.data, "test").scalogram
    assert torch.equal(stamped.encoder(S), plain.encoder(S))


def test_another_ear_leaves_the_constant_of_the_encoders_own(tiny_data, tiny_training, tmp_path):
    """With which matches compare."""
    by_ear = replace(tiny_data, data=str(tmp_path / "x.zarr"), ear="coarse", metric=False)
    build(by_ear, progress=False)
    encoder, folder = f"{tiny_training.output_folder}/encoder.safetensors", str(tmp_path / "out")
    report(EvaluationConfig(encoder, by_ear.data, folder, device="cpu"), progress=False)
    assert "nu_constant" not in load_encoder(f"{folder}/encoder.safetensors").metadata["evaluation"]
    report(EvaluationConfig(encoder, tiny_data.data, folder, n_constant=8, device="cpu"), progress=False)
    own = load_encoder(f"{folder}/encoder.safetensors").metadata["evaluation"]
    report(EvaluationConfig(f"{folder}/encoder.safetensors", by_ear.data, folder, device="cpu"), progress=False)
    kept = load_encoder(f"{folder}/encoder.safetensors").metadata["evaluation"]
    assert kept["nu_constant"] == own["nu_constant"]
    assert kept["summary"] != own["summary"]


def test_report_refuses_other_scalograms(tiny_data, tiny_training, tmp_path):
    other = DatasetConfig(str(tmp_path / "o.zarr"), n_sounds=10, n_samples=2048, J=7, T=64, metric=False, device="cpu")
    build(other, progress=False)
    encoder = str(Path(tiny_training.output_folder) / "encoder.safetensors")
    with pytest.raises(ValueError, match="scalograms with J = 6, but .* has 7"):
        report(EvaluationConfig(encoder, other.data, str(tmp_path), device="cpu"), progress=False)


@pytest.mark.parametrize("change", [{"n_sounds": -2}, {"n_sounds": 1}, {"n_constant": 0}])
def test_report_refuses_too_few_sounds(tmp_path, change):
    """Before it looks for encoder and data set, which are not there."""
    config = EvaluationConfig("nowhere.safetensors", "nowhere.zarr", str(tmp_path), device="cpu")
    with pytest.raises(ValueError, match="expected n_sounds ≥ 2 and n_constant ≥ 1, got "):
        report(replace(config, **change), progress=False)
    assert list(tmp_path.iterdir()) == []


def test_report_refuses_a_data_set_with_one_test_sound(tiny_data, tiny_training, tmp_path):
    few = replace(tiny_data, data=str(tmp_path / "few.zarr"), n_sounds=10, metric=False)
    build(few, progress=False)
    encoder = f"{tiny_training.output_folder}/encoder.safetensors"
    with pytest.raises(ValueError, match="expected at least two test sounds in .*few.zarr, got 1"):
        report(EvaluationConfig(encoder, few.data, str(tmp_path / "run"), device="cpu"), progress=False)


def test_a_grid_is_evaluated_all_over(tiny_data, tiny_training, tmp_path, monkeypatch):
    """Its rows come cell by cell: the first of them are in one corner."""
    sampling = {"sampling": "grid", "n_cells": 3, "n_inner": 1, "n_grid_test": 120, "n_sounds": 243}
    grid = replace(tiny_data, data=str(tmp_path / "grid.zarr"), metric=False, **sampling)
    build(grid, progress=False)
    seen = []
    monkeypatch.setattr(evaluation, "best_constant", lambda nu, *rest: seen.append(nu) or nu[0])
    monkeypatch.setattr(evaluation, "predict", lambda model, rows: seen.append(rows.nu) or rows.nu)
    encoder = f"{tiny_training.output_folder}/encoder.safetensors"
    config = EvaluationConfig(encoder, grid.data, str(tmp_path / "run"), n_sounds=24, n_constant=24, device="cpu")
    report(config, progress=False)
    assert [len(nu) for nu in seen] == [24, 24]
    for nu, split in zip(seen, ("train", "test"), strict=True):
        assert (load(grid.data, split).nu[:24, 0] < 0.34).all()
        assert (nu > 0.34).any(0).all()
        assert (nu < -0.34).any(0).all()


def test_a_paired_gain_of_one_seed_is_the_bootstrap_over_sounds():
    far = np.random.default_rng(0).normal(3, 1, (1, 400))
    gain = paired_gain(far, np.zeros((1, 400)))
    assert gain["mean"] == pytest.approx(far.mean())
    assert gain["high"] - gain["low"] == pytest.approx(2 * 1.96 / 20, rel=0.1)
    assert np.isnan(gain["effect"])


def test_a_paired_gain_is_as_uncertain_as_seeds_are():
    """Seeds that differ by much more than sounds: what matters is how many there are."""
    random = np.random.default_rng(1)
    each = random.normal(0, 1, (40, 1))
    far = each + random.normal(2, 0.1, (40, 500))
    near = random.normal(1, 0.1, (40, 500))
    gain = paired_gain(far, near)
    assert gain["high"] - gain["low"] == pytest.approx(2 * 1.96 * each.std() / 40**0.5, rel=0.1)
    assert gain["effect"] == pytest.approx((far - near).mean() / (far - near).mean(1).std(ddof=1))
    back = paired_gain(near, far)
    assert back["mean"] == pytest.approx(-gain["mean"])


def test_paired_gains_cover_the_truth():
    """Of a hundred experiments with ten seeds, some ninety; were sounds or seeds left out, far fewer."""
    random, hits = np.random.default_rng(2), 0
    for k in range(100):
        seeds, sounds = random.normal(0, 0.3, (10, 1)), random.normal(0, 2, (1, 60))
        far = 1 + seeds + sounds + random.normal(0, 0.2, (10, 60))
        gain = paired_gain(far, np.zeros_like(far), 1000, seed=k)
        hits += gain["low"] < 1 < gain["high"]
    assert 85 <= hits <= 99


@pytest.mark.parametrize("shapes", [((3, 4), (3, 5)), ((4,), (4,)), ((0, 4), (0, 4))])
def test_distances_that_are_not_paired(shapes):
    with pytest.raises(ValueError, match=r"one shape \(seeds, sounds\), got"):
        paired_gain(*map(np.zeros, shapes))


def test_an_evaluation_never_replaces_what_was_trained(tiny_data, tiny_training, tmp_path):
    """One file of options may name the folder of the training for both."""
    folder = shutil.copytree(tiny_training.output_folder, tmp_path / "run")
    run = replace(tiny_training, output_folder=str(folder))
    fit(run, progress=False)  # trains nothing, and writes where it is now
    trained = (folder / "encoder.safetensors").read_bytes()
    config = EvaluationConfig(None, tiny_data.data, str(folder), n_constant=8, device="cpu")
    with pytest.raises(ValueError, match="run holds a training, whose encoder the encoder that ships .* would replace"):
        report(config, progress=False)
    assert (folder / "encoder.safetensors").read_bytes() == trained
    report(replace(config, encoder=f"{folder}/encoder.safetensors"), progress=False)
    evaluated = (folder / "encoder.safetensors").read_bytes()
    fit(run, progress=False)
    assert (folder / "encoder.safetensors").read_bytes() == evaluated, "nothing was trained"


def test_the_effect_of_seeds_that_agree_is_not_a_number():
    assert np.isnan(paired_gain([[1, 2], [2, 1]], np.zeros((2, 2)))["effect"])


def test_best_constant_of_no_sounds_is_the_centre():
    nu = torch.zeros(0, 5, dtype=torch.float64)
    assert torch.equal(best_constant(nu, lambda x: x, lambda nu: nu), torch.zeros(5, dtype=torch.float64))


def halves(x):
    """An ear of one's own: the size of both halves of a sound."""
    return torch.stack([half.norm(dim=-1) for half in x.tensor_split(2, -1)], -1)


def test_an_encoder_is_heard_by_another_ear_than_its_own(tiny_data, tiny_training, tmp_path):
    other = replace(tiny_data, data=str(tmp_path / "own.zarr"), ear=halves, metric=False)
    build(other, progress=False)
    encoder = f"{tiny_training.output_folder}/encoder.safetensors"
    config = EvaluationConfig(encoder, other.data, str(tmp_path / "out"), ear=halves, n_constant=8, device="cpu")
    assert report(config, progress=False).loc["ear", "mean"] > 0
    known = load_encoder(tmp_path / "out/encoder.safetensors").metadata["evaluation"]
    assert known["n_sounds"] == 4
    assert "nu_constant" not in known, "which is the best by that ear"
