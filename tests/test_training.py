"""Training: it learns, it resumes to the same numbers, and the adaptive rule undoes what failed."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import as_slurm_starts_them, fields_of

from pnp_tutorial import checkpoint, objective, training, training_config
from pnp_tutorial.__main__ import main
from pnp_tutorial.curves import STEPS, curve_form, near_metric
from pnp_tutorial.damping import damping_matrix, largest_damping
from pnp_tutorial.dataset import build, ear, load
from pnp_tutorial.encoder import Encoder, load_encoder
from pnp_tutorial.losses import parameter_loss, pnp_loss, root
from pnp_tutorial.runtime import as_stored
from pnp_tutorial.training import Batch, TrainingConfig, as_batch, fit, make_loss

NUMBERS = ["epoch", "damping", "training_loss", "validation_loss", "record"]


def weights(folder):
    """Best weights of a run, in full precision."""
    return torch.load(Path(folder) / "checkpoint.pt", weights_only=True)["best"]["weights"]


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("loss", ["parameter", "pnp"])
@pytest.mark.parametrize("known", [(), ("log_omega",)])
def test_it_learns(tiny_training, tmp_path, loss, known):
    """On so few sounds the training loss must fall; n_outputs follows the pitch."""
    config = replace(
        tiny_training, output_folder=str(tmp_path), loss=loss, damping="constant", known=known, n_epochs=12
    )
    history = fit(config, progress=False)
    assert history.training_loss.iloc[-3:].mean() < 0.8 * history.training_loss.iloc[0]
    assert load_encoder(tmp_path / "encoder.safetensors").encoder.n_outputs == 5 - len(known)


@pytest.mark.parametrize("loss", ["mss", "spectral"])
def test_spectral_losses_train(tiny_data, tiny_training, tmp_path, loss):
    """What is told of an epoch is the loss of the encoder with which it ends."""
    config = replace(tiny_training, output_folder=str(tmp_path), loss=loss, n_epochs=1)
    history = fit(config, progress=False)
    drums = load(tiny_data.data, "validation")
    encoder = Encoder(5, config.backbone).eval()
    encoder.load_state_dict(weights(tmp_path))
    with torch.no_grad():
        nu_hat = encoder(drums.scalogram)
    expected = float(make_loss(config, tiny_data)(nu_hat, Batch(drums.scalogram, drums.nu), 0.0))
    assert history.validation_loss.iloc[0] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("loss", ["mss", "spectral"])
@pytest.mark.parametrize("known", [(), ("log_omega",)])
def test_spectral_losses_fall_along_their_gradients(tiny_data, tiny_training, loss, known):
    drums = load(tiny_data.data, "test")
    batch = Batch(drums.scalogram, 0.9 * drums.nu)
    spectral = make_loss(replace(tiny_training, loss=loss, known=known), tiny_data)
    nu_hat = (batch.nu[:, len(known) :] + 0.05).requires_grad_()
    value = spectral(nu_hat, batch, 0.0)
    (gradient,) = torch.autograd.grad(value, nu_hat)
    step = 1e-4 * gradient / gradient.norm()
    with torch.no_grad():
        fall = spectral(nu_hat - step, batch, 0.0) - spectral(nu_hat + step, batch, 0.0)
    assert fall.item() == pytest.approx(-2e-4 * gradient.norm().item(), rel=0.2)


def test_stored_features_are_the_target_of_the_spectral_loss(tiny_data, tiny_training, tmp_path, monkeypatch):
    """They spare the loss a pass through the ear, and change nothing."""
    config = replace(tiny_data, data=str(tmp_path / "f.zarr"), features=True)
    build(config, progress=False)
    drums = load(config.data, "test", ("scalogram", "features"))
    with_them = as_batch(drums, list(range(5)), replace(tiny_training, loss="spectral"), torch.device("cpu"))
    assert with_them.features is not None
    heard = []
    monkeypatch.setattr(objective, "ear", lambda data, device: Counted(ear(data), heard))
    found = []
    for batch in (with_them, with_them._replace(features=None)):
        nu_hat = (0.9 * batch.nu).requires_grad_()
        loss = make_loss(replace(tiny_training, loss="spectral"), config)(nu_hat, batch, 0.0)
        found.append((loss.detach(), *torch.autograd.grad(loss, nu_hat), len(heard)))
        heard.clear()
    assert [calls for *_, calls in found] == [1, 2]
    for one, other in zip(found[0][:-1], found[1][:-1], strict=True):
        assert (one - other).norm() < 1e-3 * other.norm()  # those that are stored came with tangents, in float32


class Counted(torch.nn.Module):
    def __init__(self, features, calls):
        super().__init__()
        self.features, self.calls = features, calls

    def forward(self, x):
        self.calls.append(len(x))
        return self.features(x)


@pytest.mark.parametrize("shape", ["diagonal", "mean"])
def test_damping_has_the_shape_that_was_asked_for(tiny_data, tiny_training, tmp_path, shape):
    config = replace(tiny_training, output_folder=str(tmp_path), damping_shape=shape, n_epochs=1)
    damping = fit(config, progress=False).damping[0]
    M = load(tiny_data.data).metric
    assert damping == pytest.approx(largest_damping(M, damping_matrix(M, shape)))


def test_schedule_ends_where_damping_has_no_say(tiny_data, tiny_training, tmp_path):
    config = replace(tiny_training, output_folder=str(tmp_path), damping="scheduled", n_epochs=4)
    damping = fit(config, progress=False).damping
    typical = load(tiny_data.data).metric.diagonal(dim1=1, dim2=2).mean(-1).median()
    assert damping[3] == pytest.approx(float(typical) / 100)
    assert (damping / damping.shift())[1:].tolist() == pytest.approx([damping[1] / damping[0]] * 3)


def test_a_loss_takes_over_where_another_ended(tiny_training, tmp_path):
    """With a learning rate of next to nothing, the weights that are trained are those of the first run."""
    first = f"{tiny_training.output_folder}/encoder.safetensors"
    config = replace(tiny_training, output_folder=str(tmp_path), loss="parameter", start_from=first, n_epochs=1)
    fit(replace(config, learning_rate=1e-9), progress=False)
    before, after = (load_encoder(path).encoder for path in (first, tmp_path / "encoder.safetensors"))
    for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True):
        torch.testing.assert_close(new, old, atol=1e-6, rtol=1e-3, msg=name)


def loudness(x):
    """An ear of the user's own."""
    return x.unflatten(-1, (16, -1)).square().mean(-1)


def test_another_ear_takes_over_too(tiny_data, tiny_training, tmp_path):
    """One of the user's own, from an encoder that was trained for the library's."""
    data = replace(tiny_data, data=str(tmp_path / "own.zarr"), metric=False, ear=loudness)
    build(data, progress=False)
    first = f"{tiny_training.output_folder}/encoder.safetensors"
    config = replace(tiny_training, data=data.data, ear=loudness, loss="spectral", start_from=first, n_epochs=1)
    history = fit(replace(config, output_folder=str(tmp_path / "run")), progress=False)
    assert history.training_loss[0] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"known": ("log_omega",)}, "of 4 outputs, .* got a test_efficientnet of 5"),
        ({"backbone": "mobilenetv3_small_050"}, "to be a mobilenetv3_small_050 of 5 outputs"),
        ({"start_from": "nowhere"}, "there is no encoder at nowhere"),
    ],
)
def test_an_encoder_of_another_kind_is_no_start(tiny_training, tmp_path, change, message):
    first = f"{tiny_training.output_folder}/encoder.safetensors"
    config = replace(tiny_training, **{"start_from": first, "output_folder": str(tmp_path / "run"), **change})
    with pytest.raises(ValueError, match=message):
        fit(config, progress=False)


def test_network_in_bfloat16_learns_the_same(tiny_training, tmp_path):
    config = replace(tiny_training, output_folder=str(tmp_path), precision="bf16-mixed", loss="parameter", n_epochs=4)
    exact = replace(config, output_folder=str(tmp_path / "exact"), precision="32-true")
    losses = [fit(each, progress=False).training_loss for each in (config, exact)]
    assert not losses[0].equals(losses[1])
    assert losses[0][0] == pytest.approx(losses[1][0], rel=0.02)
    assert losses[0][3] == pytest.approx(losses[1][3], rel=0.2)


@pytest.mark.parametrize(("units", "expected"), [(True, "bf16-mixed"), (False, "32-true")])
def test_bfloat16_where_the_processor_has_units_for_it(monkeypatch, units, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_tile": units}, raising=False)
    cpu = torch.device("cpu")
    assert training._precision(TrainingConfig(), cpu) == expected
    assert training._precision(TrainingConfig(precision="32-true"), cpu) == "32-true"
    for other in ("mps", "cuda"):  # steps in bfloat16 are no faster there
        assert training._precision(TrainingConfig(), torch.device(other)) == "32-true"


def test_metrics_for_tensorboard(tiny_training, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = replace(tiny_training, output_folder=str(tmp_path), tensorboard=True)
    history = fit(config, progress=False)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name in ("damping", "training_loss", "validation_loss"):
        assert [event.value for event in events.Scalars(name)] == pytest.approx(history[name].tolist())


def torchrun(*command, n_processes=2):
    options = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={n_processes}"]
    run = subprocess.run([sys.executable, *options, *command], capture_output=True, encoding="utf-8")
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def odd_data(tiny_data, tmp_path_factory):
    """Path of 90 sounds, 9 of them for validation: one more than a batch."""
    config = replace(tiny_data, data=str(tmp_path_factory.mktemp("odd") / "odd.zarr"), n_sounds=90)
    return str(build(config, progress=False))


class Frozen(Encoder):
    """An encoder without statistics of the batch, the one thing that processes on a CPU do not share."""

    def __init__(self, *options):
        super().__init__(*options)
        self.eval()

    def train(self, mode=True):
        return super().train(False)


def test_two_processes_have_the_losses_of_one(tiny_training, odd_data, tmp_path, monkeypatch):
    """Up to rounding, which Adam enlarges: one thread and two differ as much. Of the last batch of validation, of a
    single sound, one process has no share."""
    folder = str(tmp_path / "one")
    one = replace(tiny_training, output_folder=folder, n_epochs=3, data=odd_data, loss="parameter")
    two = replace(one, output_folder=str(tmp_path / "two"))
    script = tmp_path / "two.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_training import Frozen, TrainingConfig, training\n"
        "training.Encoder = Frozen\n"
        f"training.fit(TrainingConfig(**{fields_of(two)!r}), progress=False)\n",
        encoding="utf-8",
    )
    torchrun(str(script))
    monkeypatch.setattr(training, "Encoder", Frozen)
    expected = fit(one, progress=False)
    history = pd.read_json(tmp_path / "two/metrics.jsonl", lines=True)
    pd.testing.assert_frame_equal(history[NUMBERS], expected[NUMBERS], check_dtype=False, check_exact=False, rtol=1e-3)
    assert len(fit(replace(two, n_epochs=4), progress=False)) == 4


def test_two_processes_as_a_user_starts_them(tiny_training, tmp_path):
    """In bfloat16, from the command line: one of them prints and writes, and each normalizes its own share."""
    config = replace(tiny_training, output_folder=str(tmp_path), n_epochs=1, loss="parameter", precision="bf16-mixed")
    options = [f"--{key}={'null' if value is None else value}" for key, value in fields_of(config).items()]
    printed = torchrun("-m", "pnp_tutorial", "train", *options)
    assert len(printed.splitlines()) == 3  # a header, an epoch, and where the encoder is
    alone = fit(replace(config, output_folder=str(tmp_path / "one")), progress=False)
    together = pd.read_json(tmp_path / "metrics.jsonl", lines=True)
    assert together.training_loss[0] == pytest.approx(alone.training_loss[0], rel=0.05)


def test_two_processes_validate_the_encoder_that_is_kept(tiny_training, odd_data, tmp_path):
    """With the statistics of batches of the first one, though each has had other sounds."""
    config = replace(tiny_training, data=odd_data, loss="parameter", n_epochs=1)
    config = replace(config, precision="32-true", output_folder=str(tmp_path / "two"))
    options = [f"--{key}={'null' if value is None else value}" for key, value in fields_of(config).items()]
    torchrun("-m", "pnp_tutorial", "train", *options)
    together = pd.read_json(tmp_path / "two/metrics.jsonl", lines=True)
    setup, state = training.set_up(replace(config, output_folder=str(tmp_path / "one")))
    kept = torch.load(tmp_path / "two/checkpoint.pt", weights_only=True)
    state.network.load_state_dict(kept["weights"])
    alone = training.validate(state.network, setup.loss, setup.validation, setup.batch_size, setup.fabric)
    assert together.validation_loss[0] == pytest.approx(setup.unit * alone, rel=1e-4)


def test_an_error_among_processes_need_not_be_the_end_of_one(tiny_training, monkeypatch, capsys):
    """What is wrong in one of several processes keeps its traceback."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)

    def fail(error):
        monkeypatch.setattr("pnp_tutorial.__main__.fit", lambda *args, **options: (_ for _ in ()).throw(error))
        return main(["train", f"--data={tiny_training.data}"])

    with pytest.raises(RuntimeError, match="must match the size"):
        fail(RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"))
    assert fail(RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:554] Connection closed")) == 2
    assert fail(torch.distributed.DistBackendError("no answer")) == 2
    assert capsys.readouterr().err.count("another process has ended or does not answer (") == 2


def test_a_peer_that_dies_ends_the_others_with_one_line(tiny_training, tmp_path):
    """Two processes as SLURM starts them, without an agent that ends them all."""
    config = replace(tiny_training, output_folder=str(tmp_path / "run"), loss="parameter", n_epochs=100)
    options = [f"--{key}={'null' if value is None else value}" for key, value in fields_of(config).items()]
    code = (
        "import os, signal, sys, pnp_tutorial.training as t; from pnp_tutorial.__main__ import main\n"
        "keep = t.keep_or_undo\n"
        "die = lambda epoch: os.environ['RANK'] == '1' and epoch == 1 and os.kill(os.getpid(), signal.SIGKILL)\n"
        "t.keep_or_undo = lambda state, epoch, loss: die(epoch) or keep(state, epoch, loss)\n"
        f"sys.exit(main(['train', *{options!r}]))"
    )
    peers = as_slurm_starts_them(code)
    assert peers[1].wait(240) == -signal.SIGKILL
    _, errors = peers[0].communicate(timeout=240)
    assert peers[0].returncode == 2
    assert "pnp train: another process has ended or does not answer (" in errors.decode()
    assert "Traceback" not in errors.decode()
    assert len((tmp_path / "run/metrics.jsonl").read_text(encoding="utf-8").splitlines()) >= 1


@pytest.mark.parametrize("batch_size", [8, 6])
def test_processes_share_every_batch(tiny_data, batch_size):
    rows = as_batch(load(tiny_data.data), list(range(5)), TrainingConfig(), torch.device("cpu"))
    order = torch.randperm(len(rows.nu))
    shares = [training._batches(rows, order, batch_size, SimpleNamespace(global_rank=r, world_size=2)) for r in (0, 1)]
    for share, other, whole in zip(*shares, order.split(batch_size), strict=True):
        assert abs(len(share.nu) - len(other.nu)) <= 1
        both = torch.cat([share.nu, other.nu])
        assert sorted(both.tolist()) == sorted(rows.nu[whole].tolist())


def test_predictions_are_not_rounded_to_bfloat16(tiny_data):
    torch.manual_seed(0)
    encoder = Encoder(5, "test_efficientnet").eval()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        nu_hat = encoder(load(tiny_data.data).scalogram)
    assert nu_hat.dtype == torch.float32
    assert not torch.equal(nu_hat, nu_hat.bfloat16().float())


def test_processes_share_a_batch_equally(tiny_training, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "connect", lambda *args: SimpleNamespace(device=torch.device("cpu"), world_size=3))
    with pytest.raises(ValueError, match="that 3 processes can share equally, got 8"):
        fit(replace(tiny_training, output_folder=str(tmp_path)), progress=False)


def test_every_process_has_what_batch_normalization_needs(tiny_training, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "connect", lambda *args: SimpleNamespace(device=torch.device("cpu"), world_size=8))
    with pytest.raises(ValueError, match="two sounds a step for each process, .* got 8 for 8: batch_size = 8"):
        fit(replace(tiny_training, output_folder=str(tmp_path)), progress=False)


@pytest.mark.parametrize("loss", ["spectral", "mss", "parameter", "pnp"])
def test_losses_are_taken_where_float64_is(tiny_data, tiny_training, tmp_path, monkeypatch, loss):
    """Of a GPU that has none, as Apple's, on the CPU; here a device that has no numbers at all takes its place."""
    meta = torch.device("meta")
    monkeypatch.setattr(training, "connect", lambda *args: SimpleNamespace(device=meta, world_size=1))
    for room in (training, objective):
        monkeypatch.setattr(room, "float64_device", lambda device: torch.device("cpu"))
    setup, _ = training.set_up(replace(tiny_training, loss=loss, output_folder=str(tmp_path)))
    assert setup.train.S.device == meta
    batch = Batch(*(None if values is None else values[:2] for values in setup.train))
    assert setup.loss((0.9 * batch.nu).requires_grad_(), batch, 1.0).item() > 0


def test_the_largest_seed_is_one_of_torch(tiny_training):
    setup, _ = training.set_up(replace(tiny_training, seed=2**32 - 1, output_folder=tiny_training.output_folder))
    fabric = SimpleNamespace(world_size=1000, global_rank=999)
    assert next(training.shuffled(setup._replace(fabric=fabric), 10**5)) is not None


def test_same_seed_same_run(tiny_training, tmp_path):
    # Both are trained here: on some processors, what else a process has done with threads changes the last digits.
    one, again = (replace(tiny_training, output_folder=str(tmp_path / name)) for name in ("one", "again"))
    other = replace(tiny_training, output_folder=str(tmp_path / "b"), seed=1)
    fit(one, progress=False)
    first = pd.read_json(f"{one.output_folder}/metrics.jsonl", lines=True)
    pd.testing.assert_frame_equal(fit(again, progress=False)[NUMBERS], first[NUMBERS], check_exact=False, rtol=1e-12)
    assert same(weights(again.output_folder), weights(one.output_folder))
    assert fit(other, progress=False).validation_loss[0] != first.validation_loss[0]


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_killed_run_ends_with_the_same_numbers(tiny_training, tmp_path):
    whole = replace(tiny_training, output_folder=str(tmp_path / "whole"), n_epochs=6)
    killed = replace(whole, output_folder=str(tmp_path / "killed"))
    expected = fit(whole, progress=False)
    code = (
        f"import time, torch, pnp_tutorial.training as t; torch.set_num_threads({torch.get_num_threads()})\n"
        "v = t.validate; t.validate = lambda *a: (time.sleep(0.5), v(*a))[1]\n"
        f"t.fit(t.TrainingConfig(**{fields_of(killed)!r}), progress=False)"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    metrics, deadline = tmp_path / "killed/metrics.jsonl", time.time() + 60
    while (
        not (metrics.exists() and len(metrics.read_text(encoding="utf-8").splitlines()) >= 2) and time.time() < deadline
    ):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 2 <= len(metrics.read_text(encoding="utf-8").splitlines()) < 6
    assert not (tmp_path / "killed/encoder.safetensors").exists()
    pd.testing.assert_frame_equal(fit(killed, progress=False)[NUMBERS], expected[NUMBERS], check_exact=True)
    assert same(weights(killed.output_folder), weights(whole.output_folder))


def test_more_epochs_continue(tiny_training, tmp_path):
    short = replace(tiny_training, output_folder=str(tmp_path), n_epochs=2)
    long = replace(short, n_epochs=4)
    fit(short, progress=False)
    assert len(fit(long, progress=False)) == 4


def test_learning_rate_falls_along_a_cosine(tiny_training, tmp_path):
    config = replace(tiny_training, output_folder=str(tmp_path), loss="parameter", n_epochs=3)
    config = replace(config, final_learning_rate=0.0)
    rates = [training._learning_rate(config, epoch) for epoch in range(3)]
    assert rates == pytest.approx([config.learning_rate, config.learning_rate / 2, 0])
    fit(config, progress=False)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["optimizer"]["param_groups"][0]["lr"] == 0
    with pytest.raises(ValueError, match="holds a run with n_epochs = 3, not 4"):
        fit(replace(config, n_epochs=4), progress=False)


def test_a_schedule_that_has_come_to_its_end_is_not_continued(tiny_training, tmp_path):
    """λ would fall on and on; P-loss has no damping."""
    config = replace(tiny_training, output_folder=str(tmp_path / "pnp"), damping="scheduled", n_epochs=1)
    fit(config, progress=False)
    with pytest.raises(ValueError, match="holds a run with n_epochs = 1, not 2"):
        fit(replace(config, n_epochs=2), progress=False)
    config = replace(config, output_folder=str(tmp_path / "p"), loss="parameter")
    fit(config, progress=False)
    assert len(fit(replace(config, n_epochs=2), progress=False)) == 2


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
    assert history.damping.tolist() == pytest.approx([100, 10, 1])  # to a hundredth


def test_first_damping_is_the_largest_eigenvalue(tiny_data, tiny_training):
    history = pd.read_json(f"{tiny_training.output_folder}/metrics.jsonl", lines=True)
    largest = torch.linalg.eigvalsh(load(tiny_data.data).metric).max()
    assert history.damping[0] == pytest.approx(float(largest))


def test_pnp_is_rescaled_and_the_validation_loss_is_not(tiny_data, tiny_training):
    drums = load(tiny_data.data, "validation")
    nu_hat = torch.zeros_like(drums.nu)
    loss = make_loss(tiny_training, tiny_data, d=2.0, m=4.0)
    batch = Batch(drums.scalogram, drums.nu, drums.metric, damping_matrix(drums.metric))
    expected = pnp_loss(nu_hat, drums.nu, drums.metric, 3.0) / 10
    assert torch.allclose(loss(nu_hat, batch, 3.0), expected)
    # the last line of the history is the undamped loss, in squared features
    model = load_encoder(f"{tiny_training.output_folder}/encoder.safetensors").encoder
    results = json.loads(Path(f"{tiny_training.output_folder}/results.json").read_text(encoding="utf-8"))
    with torch.no_grad():
        recomputed = pnp_loss(model(drums.scalogram), drums.nu, drums.metric)
    assert results["validation_loss"] == pytest.approx(float(recomputed), rel=0.05)  # weights in float16


def test_pnp_root_is_of_the_rescaled_form(tiny_data, tiny_training):
    drums = load(tiny_data.data, "validation")
    nu_hat, D = torch.zeros_like(drums.nu), damping_matrix(drums.metric)
    loss = make_loss(replace(tiny_training, root=0.02), tiny_data, d=2.0, m=4.0)
    expected = pnp_loss(nu_hat, drums.nu, (drums.metric + 3 * D) / 10, delta=0.02)
    assert torch.allclose(loss(nu_hat, Batch(drums.scalogram, drums.nu, drums.metric, D), 3.0), expected)
    parameter = make_loss(replace(tiny_training, loss="parameter", root=0.05), tiny_data)
    batch = Batch(drums.scalogram, drums.nu)
    assert torch.allclose(parameter(nu_hat, batch, 0.0), parameter_loss(nu_hat, drums.nu, 0.05))


def test_metrics_of_unit_trace_count_alike(tiny_data, tiny_training):
    """And point as before: a loud drum and a quiet one differ in their metric's directions only."""
    drums = load(tiny_data.data)
    loud = drums._replace(metric=1e6 * drums.metric)
    config, where = replace(tiny_training, unit_trace=True), torch.device("cpu")
    quiet, loud = (as_batch(rows, [0, 2, 3], config, where).M for rows in (drums, loud))
    torch.testing.assert_close(loud, quiet)
    torch.testing.assert_close(quiet.diagonal(dim1=1, dim2=2).sum(1), torch.ones(len(quiet), dtype=torch.float64))
    own = drums.metric[:, [0, 2, 3]][:, :, [0, 2, 3]]
    torch.testing.assert_close(quiet * (own[:, :1, :1] / quiet[:, :1, :1]), own)
    silent = as_batch(drums._replace(metric=0 * drums.metric), [0, 1], config, where).M
    assert not silent.any()


def test_no_gradient_is_longer_than_the_clip(tiny_training, tmp_path, monkeypatch):
    norms = {}
    step = torch.optim.Adam.step
    for clip in (None, 1e-3):

        def measured(self, *args, clip=clip, **named):
            gradients = [p.grad.flatten() for group in self.param_groups for p in group["params"]]
            norms.setdefault(clip, []).append(float(torch.cat(gradients).norm()))
            return step(self, *args, **named)

        monkeypatch.setattr(torch.optim.Adam, "step", measured)
        fit(replace(tiny_training, clip=clip, output_folder=str(tmp_path / str(clip)), n_epochs=2), progress=False)
    assert min(norms[None]) > 1e-3
    assert norms[1e-3] == pytest.approx([1e-3] * len(norms[None]), rel=1e-3)


def test_the_validation_loss_of_a_root_is_in_features(tiny_data, tiny_training, tmp_path):
    """√(eᵀMe + Δ²m) − Δ√m, with m the median of tr M / n."""
    config = replace(tiny_training, root=0.02, output_folder=str(tmp_path))
    history = fit(config, progress=False)
    drums, M = load(tiny_data.data, "validation"), load(tiny_data.data).metric
    m = float(M.diagonal(dim1=1, dim2=2).mean(-1).median())
    best = load_encoder(tmp_path / "encoder.safetensors")
    with torch.no_grad():
        nu_hat = best.encoder(drums.scalogram)
    recomputed = pnp_loss(nu_hat, drums.nu, drums.metric, delta=0.02 * math.sqrt(m))
    assert history.validation_loss.min() == pytest.approx(float(recomputed), rel=0.05)  # weights in float16


@pytest.fixture(scope="module")
def curved_data(tiny_data, tmp_path_factory):
    """A data set with curves, and without metrics."""
    path = str(tmp_path_factory.mktemp("curves") / "curves.zarr")
    config = replace(tiny_data, data=path, metric=False, curves=True, n_sounds=20)
    build(config, progress=False)
    return config


@pytest.mark.parametrize("known", [(), ("log_omega",)])
@pytest.mark.parametrize("delta", [None, 0.02])
def test_curves_are_damped_and_rescaled_as_pnp_is(curved_data, tiny_training, known, delta):
    config = replace(tiny_training, data=curved_data.data, loss="curves", known=known, root=delta)
    drums, columns = load(curved_data.data, "train", ("scalogram", "curves")), slice(len(known), None)
    batch = as_batch(drums, list(range(len(known), 5)), config, "cpu")
    nu_hat = 0.5 * drums.nu[:, columns]
    whole = torch.cat([drums.nu[:, : len(known)], nu_hat], 1)
    q = curve_form(whole, drums.nu, drums.curves, STEPS) + 3 * (nu_hat - drums.nu[:, columns]).square().sum(1)
    expected = (q / 20).mean() if delta is None else root(q / 10, delta).mean()
    assert torch.allclose(make_loss(config, curved_data, d=2.0, m=4.0)(nu_hat, batch, 3.0), expected)
    assert torch.equal(batch.M, near_metric(drums.curves, drums.nu, STEPS)[:, columns, columns])


def test_curves_train(curved_data, tiny_training, tmp_path):
    config = replace(
        tiny_training, data=curved_data.data, output_folder=str(tmp_path), loss="curves", root=0.02, n_epochs=12
    )
    history = fit(replace(config, damping="constant"), progress=False)
    assert history.training_loss.iloc[-3:].mean() < 0.8 * history.training_loss.iloc[0]


def test_a_part_of_the_sounds(tiny_data, tiny_training, tmp_path):
    """A smaller part is in a larger one, whatever the seed; the network sees no other sounds."""
    parts = {}
    for n, seed in ((2, 0), (5, 1), (5, 2)):
        config = replace(tiny_training, n_train=n, n_validation=1, seed=seed, output_folder=str(tmp_path / "run"))
        setup, _ = training.set_up(config)
        parts[n, seed] = {tuple(row) for row in setup.train.nu.tolist()}
        assert len(setup.train.nu) == len(setup.train.S) == len(setup.train.M) == n
        assert len(setup.validation.nu) == 1
        row = (load(tiny_data.data).nu == setup.train.nu[0]).all(1).nonzero()[0]
        assert torch.equal(load(tiny_data.data).metric[row][0], setup.train.M[0])
    assert parts[2, 0] < parts[5, 1] == parts[5, 2]
    assert not (tmp_path / "run").exists()


def test_known_pitch_leaves_omega_out(tiny_data, tiny_training):
    config = replace(tiny_training, known=("log_omega",))
    drums = load(tiny_data.data, "test")
    guess = torch.zeros(len(drums.nu), 4, dtype=torch.float64)
    complete = torch.cat([drums.nu[:, :1], guess], -1)
    M = drums.metric[:, 1:, 1:]
    batch = Batch(drums.scalogram, drums.nu, M, damping_matrix(M))
    pnp = make_loss(config, tiny_data)(guess, batch, 0.0)
    assert torch.allclose(pnp, pnp_loss(complete, drums.nu, drums.metric))
    P = make_loss(replace(config, loss="parameter"), tiny_data)(guess, batch, 0.0)
    assert torch.allclose(P, parameter_loss(complete, drums.nu) * 5 / 4)
    for name in ("mss", "spectral"):
        spectral = make_loss(replace(config, loss=name), tiny_data)
        assert spectral(drums.nu[:, 1:], batch, 0.0) < 1e-6 < spectral(guess, batch, 0.0)


def test_results_say_how_they_came_about(tiny_data, tiny_training):
    results = json.loads(Path(f"{tiny_training.output_folder}/results.json").read_text(encoding="utf-8"))
    assert results["config"] == as_stored(tiny_training)
    assert results["dataset"] == as_stored(tiny_data)
    history = pd.read_json(f"{tiny_training.output_folder}/metrics.jsonl", lines=True)
    assert results["seconds_per_epoch"] == pytest.approx(history.seconds.median())
    assert results == load_encoder(f"{tiny_training.output_folder}/encoder.safetensors").metadata["training"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 5}, "holds a run with seed = 0, not 5"),
        ({"loss": "parameter"}, 'holds a run with loss = "pnp", not "parameter"'),
        ({"learning_rate": 0.0}, "learning_rate > 0"),
        ({"epoch_share": 1.5}, r"epoch_share in \(0, 1\]"),
        ({"lambda_0": -1.0}, "lambda_0 ≥ 0"),
        ({"final_learning_rate": -1.0}, "final_learning_rate ≥ 0"),
        ({"learning_rate": 10**400}, "learning_rate to be a number that a float can hold"),
        ({"data": "nowhere.zarr"}, "there is no data set at nowhere.zarr"),
        ({"device": "abacus"}, "not available"),
        ({"loss": "PNP"}, r"loss to be one of \('parameter', .*got 'PNP'"),
        ({"batch_size": 1}, "batch_size ≥ 2"),
        ({"n_epochs": 0}, "n_epochs > 0, got 0"),
        ({"n_epochs": 1}, "holds a run of 2 epochs: expected n_epochs of no less, got 1"),
        ({"learning_rate": math.nan}, "learning_rate > 0, got nan"),
        ({"seed": -1}, "seed ≥ 0, got -1"),
        ({"seed": 10**20}, "seed ≤ 4294967295, got 100000000000000000000"),
        ({"n_train": 1}, "two sounds a step .* got 1 for 1: batch_size = 8, and there are 1 sounds to train on"),
        ({"root": 0.0}, "root > 0, got 0"),
        ({"loss": "mss", "root": 0.1}, "no root with the loss mss"),
        ({"n_train": 0}, "n_train > 0, got 0"),
        ({"n_train": 10**6}, r"at most the \d+ train sounds of .*, got 1000000"),
        ({"clip": 0.0}, "clip > 0, got 0.0"),
        ({"unit_trace": True, "loss": "parameter"}, "unit_trace with the loss pnp only, got the loss parameter"),
        ({"n_validation": 10**6}, r"at most the \d+ validation sounds"),
        ({"backbone": "resnet_of_mine"}, "timm has no network 'resnet_of_mine'"),
    ],
)
def test_impossible_runs(tiny_training, change, message):
    """Refused before any work: nothing is written."""
    before = {path: path.read_bytes() for path in Path(tiny_training.output_folder).rglob("*")}
    with pytest.raises(ValueError, match=message):
        fit(replace(tiny_training, **change), progress=False)
    assert {path: path.read_bytes() for path in Path(tiny_training.output_folder).rglob("*")} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": "resnet_of_mine"}, "timm has no network"),
        ({"start_from": "nowhere"}, "there is no encoder"),
        ({"seed": -1}, "seed ≥ 0"),
        ({"tensorboard": True}, "tensorboard is not installed"),
        ({"loss": "pnp"}, "built without the metric M"),
        ({"loss": "curves"}, "built without curves"),
        ({"final_learning_rate": 1.0}, "a learning rate that falls, got 0.001 and, at the end, 1"),
        ({"lambda_0": 1.0}, "lambda_0 with the losses pnp and curves only, got the loss parameter"),
        ({"loss": "mss", "damping_shape": "mean"}, "damping_shape with .* only, got the loss mss"),
        ({"backbone": "efficientnet_b0.ra_in1k"}, "without the name of weights, 'efficientnet_b0', got"),
        ({"backbone": "efficientnet_b0.of_mine"}, "without the name of weights, 'efficientnet_b0', got"),
    ],
)
def test_a_refusal_leaves_nothing_behind(plain_data, tmp_path, monkeypatch, change, message):
    """And comes before the data set is read."""
    monkeypatch.setattr(training_config, "find_spec", lambda name: None)
    monkeypatch.setattr(training, "load", None)
    config = TrainingConfig(plain_data, str(tmp_path / "runs/new"), loss="parameter", device="cpu")
    with pytest.raises(ValueError, match=message):
        fit(replace(config, **change), progress=False)
    assert list(tmp_path.iterdir()) == []


def test_an_output_folder_that_is_a_file(plain_data, tmp_path):
    (tmp_path / "run").write_text("in the way", encoding="utf-8")
    with pytest.raises(NotADirectoryError, match="run"):
        fit(TrainingConfig(plain_data, str(tmp_path / "run"), loss="parameter"), progress=False)
    assert (tmp_path / "run").read_text(encoding="utf-8") == "in the way"


@pytest.fixture(scope="module")
def plain_data(tiny_data, tmp_path_factory):
    """Path of a data set without metrics."""
    path = str(tmp_path_factory.mktemp("plain") / "plain.zarr")
    return str(build(replace(tiny_data, data=path, metric=False, n_sounds=10), progress=False))


def test_a_checkpoint_from_before_some_fields_existed(tiny_training, tmp_path):
    """Is gone on with as if it had their defaults."""
    shutil.copytree(tiny_training.output_folder, tmp_path / "run")
    path = tmp_path / "run/checkpoint.pt"
    old = torch.load(path, weights_only=True)
    for name in ("start_from", "final_learning_rate", "damping_shape"):
        del old["config"][name]
    for name in ("secant_step", "features"):
        del old["dataset"][name]
    torch.save(old, path)
    assert len(fit(replace(tiny_training, output_folder=str(tmp_path / "run"), n_epochs=3), progress=False)) == 3
    with pytest.raises(ValueError, match='damping_shape = "identity", not "mean"'):
        fit(replace(tiny_training, output_folder=str(tmp_path / "run"), damping_shape="mean"), progress=False)


@pytest.mark.parametrize("clip", [None, 1.0])
def test_losses_that_are_not_finite_end_the_run(tiny_training, tmp_path, clip):
    config = replace(tiny_training, output_folder=str(tmp_path), learning_rate=1e30, clip=clip)
    with pytest.raises(ValueError, match="not finite .* try a learning rate below 1e[+]30"):
        fit(config, progress=False)
    assert not (tmp_path / "encoder.safetensors").exists()


def test_a_run_that_ends_in_infinity_keeps_its_best_encoder(tiny_training, tmp_path, monkeypatch):
    """One whose schedule ends with its epochs cannot be ended earlier by another call."""
    config = replace(tiny_training, output_folder=str(tmp_path), damping="scheduled")
    with pytest.raises(ValueError, match=f"epoch 2 ends with .* not finite .* The encoder of epoch 1 is in {tmp_path}"):
        scripted_run(config, monkeypatch, [3.0, 2.0, math.nan])
    kept = load_encoder(tmp_path / "encoder.safetensors")
    assert kept.metadata["training"]["best_epoch"] == 1
    best = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["best"]["weights"]
    assert torch.equal(kept.encoder.output_norm.weight, best["output_norm.weight"])


def test_numbers_of_numpy_are_kept_as_numbers(tiny_training, tmp_path):
    """So that a run goes on: no checkpoint is read that holds objects."""
    rate, n = np.geomspace(1e-4, 1e-2, 3)[1], np.arange(3)[1]
    change = {"learning_rate": rate, "lambda_0": np.float32(2.0), "n_epochs": n, "known": (np.str_("tau"),)}
    config = replace(tiny_training, output_folder=str(tmp_path), **change)
    assert all(type(value) in (float, int, str) for value in (config.learning_rate, config.n_epochs, *config.known))
    assert len(fit(config, progress=False)) == 1
    assert len(fit(replace(config, n_epochs=2), progress=False)) == 2


def test_a_checkpoint_that_may_not_be_read_is_not_called_damaged(tiny_training, monkeypatch):
    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(checkpoint.zipfile, "ZipFile", denied)
    with pytest.raises(PermissionError, match="Permission denied: .*checkpoint.pt"):
        fit(tiny_training, progress=False)


@pytest.mark.parametrize(("backbone", "message"), [("dla46_c", "tensor a"), ("test_vit", "")])
def test_a_backbone_for_other_images_is_named_before_any_step(tiny_training, tmp_path, backbone, message):
    with pytest.raises(ValueError, match=rf"{backbone} takes no scalograms of \d+ × \d+: .*{message}"):
        fit(replace(tiny_training, output_folder=str(tmp_path), backbone=backbone), progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shape", ["identity", "diagonal", "mean"])
def test_metrics_that_are_zero_are_named(tiny_training, tmp_path, monkeypatch, shape):
    """Of more than half of the sounds, no sought parameter is heard."""

    def mostly_deaf(*args):
        rows = load(*args)
        return rows._replace(metric=rows.metric * (torch.arange(len(rows.nu)) % 3 == 0)[:, None, None])

    monkeypatch.setattr(training, "load", mostly_deaf)
    config = replace(tiny_training, output_folder=str(tmp_path), damping="scheduled", damping_shape=shape)
    with pytest.raises(ValueError, match="expected metrics that are not zero"):
        fit(config, progress=False)


def test_a_run_goes_on_when_a_parameters_text_was_mended(tiny_training, tmp_path):
    folder = Path(shutil.copytree(tiny_training.output_folder, tmp_path / "run"))
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)
    saved["dataset"]["synthesizer"]["parameters"][0]["meaning"] = "pich"
    torch.save(saved, folder / "checkpoint.pt")
    assert len(fit(replace(tiny_training, output_folder=str(folder), n_epochs=3), progress=False)) == 3


@pytest.mark.parametrize("length", [0, 1000])
def test_a_damaged_checkpoint_is_named(tiny_training, tmp_path, length):
    whole = Path(tiny_training.output_folder, "checkpoint.pt").read_bytes()
    (tmp_path / "checkpoint.pt").write_bytes(whole[:length])
    with pytest.raises(ValueError, match="checkpoint.pt is damaged"):
        fit(replace(tiny_training, output_folder=str(tmp_path)), progress=False)


@pytest.mark.parametrize("content", [{"epoch": 3}, [1, 2], "config", "dataset", "history"])
def test_a_checkpoint_of_something_else_is_named(tiny_training, tmp_path, content):
    """Of another program, or without a part of what ours hold."""
    if isinstance(content, str):
        whole = torch.load(f"{tiny_training.output_folder}/checkpoint.pt", weights_only=True)
        content = whole | {content: None}
    torch.save(content, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="checkpoint.pt is damaged: delete .* to start again"):
        fit(replace(tiny_training, output_folder=str(tmp_path)), progress=False)


def test_two_runs_in_one_folder_do_not_mix(tiny_training, tmp_path, monkeypatch):
    """The second was begun before the first had written anything."""
    config = replace(tiny_training, output_folder=str(tmp_path), n_epochs=1)
    train_one_epoch = training.train_one_epoch

    def meanwhile(*args):
        monkeypatch.setattr(training, "train_one_epoch", train_one_epoch)
        fit(replace(config, seed=1), progress=False)
        return train_one_epoch(*args)

    monkeypatch.setattr(training, "train_one_epoch", meanwhile)
    with pytest.raises(ValueError, match="was empty, and holds another run by now"):
        fit(config, progress=False)
    assert json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["config"]["seed"] == 1


def test_a_run_does_not_go_on_in_another_precision(tiny_training, tmp_path, monkeypatch):
    """Which "auto" is on another machine."""
    config = replace(tiny_training, output_folder=str(tmp_path), precision="auto", n_epochs=1)
    monkeypatch.setattr(training, "_precision", lambda config, device: "32-true")
    fit(config, progress=False)
    monkeypatch.setattr(training, "_precision", lambda config, device: "bf16-mixed")
    with pytest.raises(ValueError, match="holds a run in 32-true, .* in bf16-mixed: expected precision = 32-true"):
        fit(replace(config, n_epochs=2), progress=False)
    monkeypatch.undo()
    assert len(fit(replace(config, n_epochs=2, precision="32-true"), progress=False)) == 2, "as the message says"


def test_weights_of_another_version_are_named(tiny_training, tmp_path):
    folder = Path(shutil.copytree(tiny_training.output_folder, tmp_path / "run"))
    saved = torch.load(folder / "checkpoint.pt", weights_only=True)
    saved["weights"] = {f"old.{name}": values for name, values in saved["weights"].items()}
    torch.save(saved, folder / "checkpoint.pt")
    with pytest.raises(
        ValueError, match="checkpoint.pt is of another version of timm or torch: delete .* to start again"
    ):
        fit(replace(tiny_training, output_folder=str(folder), n_epochs=3), progress=False)


def test_a_root_that_float32_cannot_hold_is_refused_before_any_work(tiny_training, tmp_path):
    with pytest.raises(ValueError, match="expected a root whose square float32 can hold, got 1e-20"):
        fit(replace(tiny_training, output_folder=str(tmp_path / "run"), root=1e-20), progress=False)
    assert not (tmp_path / "run").exists()
