"""Training: it learns, it resumes to the same numbers, and the adaptive rule undoes what failed."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from pnp_tutorial import training
from pnp_tutorial.dataset import build, ear, load
from pnp_tutorial.encoder import load_encoder
from pnp_tutorial.losses import parameter_loss, pnp_loss
from pnp_tutorial.training import TrainingConfig, fit, make_loss

NUMBERS = ["epoch", "damping", "training_loss", "validation_loss", "record"]


def weights(folder):
    """Best weights of a run, in full precision."""
    return torch.load(Path(folder) / "checkpoint.pt", weights_only=True)["best"]["weights"]


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("loss", ["parameter", "pnp"])
@pytest.mark.parametrize("known_pitch", [False, True])
def test_it_learns(tiny_training, tmp_path, loss, known_pitch):
    """On so few sounds the training loss must fall; n_outputs follows the pitch."""
    config = replace(
        tiny_training, output_folder=str(tmp_path), loss=loss, damping="constant", known_pitch=known_pitch, n_epochs=12
    )
    history = fit(config, progress=False)
    assert history.training_loss.iloc[-3:].mean() < 0.8 * history.training_loss.iloc[0]
    assert load_encoder(tmp_path / "encoder.safetensors").encoder.n_outputs == 5 - known_pitch


def test_spectral_loss_trains(tiny_training, tmp_path):
    config = replace(tiny_training, output_folder=str(tmp_path), loss="spectral", n_epochs=1)
    assert fit(config, progress=False).validation_loss.iloc[0] > 0


def test_same_seed_same_run(tiny_training, tmp_path):
    again = replace(tiny_training, output_folder=str(tmp_path / "a"))
    other = replace(tiny_training, output_folder=str(tmp_path / "b"), seed=1)
    first = pd.read_json(f"{tiny_training.output_folder}/metrics.jsonl", lines=True)
    pd.testing.assert_frame_equal(fit(again, progress=False)[NUMBERS], first[NUMBERS], check_exact=False, rtol=1e-12)
    assert same(weights(again.output_folder), weights(tiny_training.output_folder))
    assert fit(other, progress=False).validation_loss[0] != first.validation_loss[0]


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_killed_run_ends_with_the_same_numbers(tiny_training, tmp_path):
    whole = replace(tiny_training, output_folder=str(tmp_path / "whole"), n_epochs=6)
    killed = replace(whole, output_folder=str(tmp_path / "killed"))
    expected = fit(whole, progress=False)
    code = (
        f"import time, torch, pnp_tutorial.training as t; torch.set_num_threads({torch.get_num_threads()})\n"
        "v = t.validate; t.validate = lambda *a: (time.sleep(0.5), v(*a))[1]\n"
        f"t.fit(t.TrainingConfig(**{asdict(killed)!r}), progress=False)"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    metrics, deadline = tmp_path / "killed/metrics.jsonl", time.time() + 60
    while not (metrics.exists() and len(metrics.read_text().splitlines()) >= 2) and time.time() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 2 <= len(metrics.read_text().splitlines()) < 6
    assert not (tmp_path / "killed/encoder.safetensors").exists()
    pd.testing.assert_frame_equal(fit(killed, progress=False)[NUMBERS], expected[NUMBERS], check_exact=True)
    assert same(weights(killed.output_folder), weights(whole.output_folder))


def test_more_epochs_continue(tiny_training, tmp_path):
    short = replace(tiny_training, output_folder=str(tmp_path), n_epochs=2)
    long = replace(short, n_epochs=4)
    fit(short, progress=False)
    assert len(fit(long, progress=False)) == 4


def test_finished_run_is_not_repeated(tiny_training, monkeypatch):
    monkeypatch.setattr(training, "validate", lambda *args: pytest.fail("trained again"))
    assert len(fit(tiny_training, progress=False)) == tiny_training.n_epochs


def scripted_run(config, monkeypatch, losses):
    """Run with given validation losses; weights at each validation, and those that the next epoch starts from."""
    seen = []

    def validate(encoder, *args):
        seen.append({name: value.clone() for name, value in encoder.state_dict().items()})
        return losses[len(seen) - 1]

    monkeypatch.setattr(training, "validate", validate)
    return fit(replace(config, n_epochs=len(losses)), progress=False), seen


def test_adaptive_rule_goes_back_to_the_best_weights(tiny_training, tmp_path, monkeypatch):
    config = replace(tiny_training, output_folder=str(tmp_path), lambda_0=100.0)
    history, seen = scripted_run(config, monkeypatch, [3.0, 2.0, 5.0, 4.0])
    assert history.damping.tolist() == pytest.approx([100, 20, 4, 4])
    assert history.record.tolist() == [True, True, False, False]
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert same(state["best"]["weights"], seen[1])
    assert same(state["weights"], seen[1])  # both failed epochs are undone,
    step = state["optimizer"]["state"][0]["step"]
    assert step == state["best"]["optimizer"]["state"][0]["step"] == 8  # in the optimizer, too: 2 epochs of 4 steps


def test_other_rules_go_on(tiny_training, tmp_path, monkeypatch):
    config = replace(tiny_training, output_folder=str(tmp_path), damping="scheduled", lambda_0=100.0)
    history, seen = scripted_run(config, monkeypatch, [2.0, 5.0, 4.0])
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert same(state["best"]["weights"], seen[0])
    assert same(state["weights"], seen[2])
    assert history.damping.tolist() == pytest.approx([100, 80, 64])


def test_first_damping_is_the_largest_eigenvalue(tiny_data, tiny_training):
    history = pd.read_json(f"{tiny_training.output_folder}/metrics.jsonl", lines=True)
    largest = torch.linalg.eigvalsh(load(tiny_data.data).metric).max()
    assert history.damping[0] == pytest.approx(float(largest))


def test_pnp_is_rescaled_and_the_validation_loss_is_not(tiny_data, tiny_training):
    drums = load(tiny_data.data, "validation")
    nu_hat = torch.zeros_like(drums.nu)
    loss = make_loss(tiny_training, typical=7.0)
    expected = pnp_loss(nu_hat, drums.nu, drums.metric, 3.0) / 10
    assert torch.allclose(loss(nu_hat, drums.nu, drums.metric, 3.0), expected)
    # the last line of the history is the undamped loss, in squared features
    model = load_encoder(f"{tiny_training.output_folder}/encoder.safetensors").encoder
    results = json.loads(Path(f"{tiny_training.output_folder}/results.json").read_text())
    with torch.no_grad():
        recomputed = pnp_loss(model(drums.scalogram), drums.nu, drums.metric)
    assert results["validation_loss"] == pytest.approx(float(recomputed), rel=0.05)  # weights in float16


def test_known_pitch_leaves_omega_out(tiny_data, tiny_training):
    config = replace(tiny_training, known_pitch=True)
    drums = load(tiny_data.data, "test")
    guess = torch.zeros(len(drums.nu), 4, dtype=torch.float64)
    complete = torch.cat([drums.nu[:, :1], guess], -1)
    M = drums.metric
    pnp = make_loss(config)(guess, drums.nu, M[:, 1:, 1:], 0.0)
    assert torch.allclose(pnp, pnp_loss(complete, drums.nu, M))
    P = make_loss(replace(config, loss="parameter"))(guess, drums.nu, None, 0.0)
    assert torch.allclose(P, parameter_loss(complete, drums.nu) * 5 / 4)
    features = ear(tiny_data)
    spectral = make_loss(replace(config, loss="spectral"), features)
    assert spectral(drums.nu[:, 1:], drums.nu, None, 0.0) < 1e-6 < spectral(guess, drums.nu, None, 0.0)


def test_results_say_how_they_came_about(tiny_data, tiny_training):
    results = json.loads(Path(f"{tiny_training.output_folder}/results.json").read_text())
    assert results["config"] == asdict(tiny_training)
    assert results["dataset"] == asdict(tiny_data)
    assert results["seconds_per_epoch"] > 0
    assert results == load_encoder(f"{tiny_training.output_folder}/encoder.safetensors").metadata["training"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 5}, "holds a run with seed = 0, not 5"),
        ({"loss": "parameter"}, 'holds a run with loss = "pnp", not "parameter"'),
        ({"learning_rate": 0.0}, "learning_rate > 0"),
        ({"epoch_share": 1.5}, r"epoch_share in \(0, 1\]"),
        ({"lambda_0": -1.0}, "lambda_0 ≥ 0"),
        ({"data": "nowhere.zarr"}, "there is no data set at nowhere.zarr"),
        ({"device": "abacus"}, "not available"),
    ],
)
def test_impossible_runs(tiny_training, change, message):
    with pytest.raises(ValueError, match=message):
        fit(replace(tiny_training, **change), progress=False)


def test_pnp_needs_the_metric(tiny_data, tmp_path):
    config = replace(tiny_data, data=str(tmp_path / "x.zarr"), metric=False, n_sounds=10)
    build(config, progress=False)
    with pytest.raises(ValueError, match="built without the metric"):
        fit(TrainingConfig(data=config.data, output_folder=str(tmp_path), device="cpu"), progress=False)
