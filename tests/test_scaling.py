"""The scaling study of chapter 8: its drums, and that its rows are comparable."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import scaling
import torch

from pnp_tutorial.checks import check_synthesizer
from pnp_tutorial.dataset import draw
from pnp_tutorial.drum import DRUM, modes
from pnp_tutorial.losses import root

DONE = {
    (drum, name): pair
    for drum in scaling.DRUMS
    for name, pair in (scaling.named(drum) | {n: (None, c) for n, c in scaling.tuning(drum).items()}).items()
    if scaling.STUDIES[drum].result(name).exists()
}


@pytest.mark.parametrize("drum", ["short", "diagonal"])
def test_drums_keep_the_promises_of_a_synthesizer(drum):
    assert check_synthesizer(scaling.DRUMS[drum]) == []


def test_the_short_drum_fades_out_in_its_sound_as_the_drum_does_in_its_own():
    nu = DRUM.sample_uniform(8, seed=1)
    short = scaling.DRUMS["short"]
    assert short.n_samples / short.to_theta(nu)[:, 1] == pytest.approx(DRUM.n_samples / DRUM.to_theta(nu)[:, 1])
    x, long = short(nu), DRUM(nu)
    assert len(x[0]) == 8192
    # τ₁ says how long the first mode sounds: of all modes, the slowest
    last = slice(-1024, None)
    assert (x[:, last].norm(dim=1) / x.norm(dim=1)).max() < 2 * (long[:, -8192:].norm(dim=1) / long.norm(dim=1)).max()


def test_the_diagonal_drum_is_the_sum_of_ten_modes():
    drum = scaling.DRUMS["diagonal"]
    nu = drum.sample_uniform(4, seed=2)
    omega, sigma, amplitude = (v.unflatten(-1, (10, 10)).diagonal(dim1=-2, dim2=-1) for v in modes(drum.to_theta(nu)))
    t = torch.arange(drum.n_samples, dtype=torch.float64)[:, None, None] / drum.sample_rate
    heard = omega < torch.pi * drum.sample_rate
    x = (amplitude * heard * torch.exp(-sigma * t) * torch.sin(omega * t)).sum(-1).T
    torch.testing.assert_close(drum(nu), x / x.abs().amax(-1, keepdim=True))


@cache
def n_train(data):
    return int((draw(data)[1] == 0).sum())


@pytest.mark.parametrize("drum", scaling.DRUMS)
def test_rows_of_one_seed_differ_in_their_loss_only(drum):
    rows = scaling.named(drum)
    assert len({replace(config, output_folder=name) for name, (_, config) in rows.items()}) == len(rows)
    own = {"loss": "pnp", "damping": "adaptive", "root": None, "data": ""}
    groups = {}
    for name, (loss, config) in rows.items():
        if not name.startswith("validated"):
            groups.setdefault(name.removeprefix(loss), set()).add(replace(config, **own))
    assert all(len(group) == 1 for group in groups.values())


@pytest.mark.parametrize("drum", scaling.DRUMS)
def test_every_row_has_its_steps_and_its_data(drum):
    for name, (loss, config) in scaling.named(drum).items():
        assert int(config.epoch_share * config.n_train) // config.batch_size == scaling.STEPS_AN_EPOCH, name
        data = scaling.data_sets(drum)[config.data]
        assert data.curves == (config.loss == "curves")
        assert bool(data.secant_step) == (loss in scaling.EVERYWHERE)
        assert n_train(data) >= config.n_train


@pytest.mark.parametrize(("drum", "name"), DONE)
def test_results_were_made_with_the_configuration_of_today(drum, name):
    """And with the learning rate that was best; the first weights and batches are those of the other losses."""
    (loss, config), study = DONE[drum, name], scaling.STUDIES[drum]
    config = replace(config, learning_rate=study.tuned(loss, scaling.RATES)) if loss else config
    study.refuse_other_settings(name, config)
    row = study.read(name)
    assert Path(row["training"]["config"]["data"]).name == Path(config.data).name
    assert len(row["history"]) == config.n_epochs
    n_sounds = study.splits["validation" if name.startswith("tune") else "test"]
    assert len(row["jtfs"]) == len(row["mss"]) == len(row["nu_hat"]) == n_sounds


def test_deltas_are_small_beside_the_distances_that_they_smooth():
    errors = torch.tensor([0.3, 1.0])
    assert (root(errors**2, scaling.LOSSES["parameter-root"]["root"]) > 0.8 * errors).all()
