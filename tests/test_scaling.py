"""The scaling study of chapter 8: its drums, and that its rows are comparable."""

import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import arpeggiator_study
import late_or_early
import pytest
import rows
import scaling
import study
import torch
from random_paths import RandomPaths

from pnp_tutorial.checks import check_synthesizer
from pnp_tutorial.dataset import build, draw, encoder_input, load
from pnp_tutorial.drum import DRUM, modes
from pnp_tutorial.ears import EARS, jtfs
from pnp_tutorial.encoder import load_encoder
from pnp_tutorial.evaluation import predict
from pnp_tutorial.losses import root
from pnp_tutorial.mss import MSS
from pnp_tutorial.runtime import as_stored
from pnp_tutorial.training import TrainingConfig, fit

DONE = {
    (drum, name): pair
    for drum in scaling.DRUMS
    for name, pair in (
        scaling.named(drum) | {name: (None, config) for name, config in scaling.tuning(drum, scaling.LOSSES).items()}
    ).items()
    if scaling.STUDIES[drum].result(name).exists()
}
DONE |= {
    ("short", name): (None, config)
    for name, (_, config) in scaling.takeovers().items()
    if scaling.STUDIES["short"].result(name).exists()
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
    named = scaling.named(drum)
    assert len({replace(config, output_folder=name) for name, (_, config) in named.items()}) == len(named)
    own = {"loss": "pnp", "damping": "adaptive", "unit_trace": False, "root": None, "data": ""}
    own_of_variants = {"clip": None, "lambda_0": None}
    groups = {}
    for name, (loss, config) in named.items():
        if not name.startswith(("validated", "inner", "other", "together", "variant")):
            groups.setdefault(name.removeprefix(loss), set()).add(replace(config, **own))
    assert all(len(group) == 1 for group in groups.values())
    for name, (loss, config) in named.items():
        if name.startswith("variant"):
            base = named[f"{loss}-{scaling.FEW}-{scaling.SHORT_RUN}-{config.seed}"][1]
            assert replace(config, **own, **own_of_variants) == replace(base, **own), name
        if name.startswith("together"):
            most = named[f"{loss}-{scaling.MOST}-{scaling.LONG_RUN}-{config.seed}"][1]
            assert config == replace(most, n_validation=scaling.INNER)


@pytest.mark.parametrize("drum", scaling.DRUMS)
def test_every_row_has_its_steps_and_its_data(drum):
    for name, (loss, config) in scaling.named(drum).items():
        assert int(config.epoch_share * config.n_train) // config.batch_size == scaling.STEPS_AN_EPOCH, name
        data = scaling.data_sets(drum)[config.data]
        assert data.curves == (config.loss == "curves")
        assert bool(data.secant_step) == (not (data.curves or loss.startswith(tuple(scaling.STORED))))
        assert n_train(data) >= config.n_train


def test_no_row_is_missing_but_those_that_the_chapter_names():
    rows_of = {drum: list(scaling.named(drum)) for drum in scaling.DRUMS}
    rows_of["short"] += scaling.takeovers()
    missing = {f"{drum}, {name}" for drum, names in rows_of.items() for name in names if (drum, name) not in DONE}
    counts = {f"{loss}-{n}-7040-{s}" for loss in scaling.ROOTS for n in (16384, 32768) for s in (0, 1)}
    counts |= {f"{loss}-{n}-7040-{s}" for loss in scaling.OF_M for n in (4096, 16384, 32768, 82224) for s in (0, 1)}
    assert missing == {f"full, {name}" for name in counts}
    assert all(scaling.STUDIES["short"].result(f"nearest-{n}").exists() for n in scaling.SEARCHED)


def test_one_metric_for_all_is_damped_as_those_of_each_are():
    for seed in range(3):
        name = f"secant-root-{scaling.FEW}-{scaling.SHORT_RUN}-{seed}"
        first = scaling.STUDIES["short"].read(name)["history"][0]
        assert first["damping"] == pytest.approx(scaling.BEGINNING, rel=1e-5)


def test_a_search_finds_the_nearest(tmp_path, monkeypatch):
    """Of sounds among which are those that are searched for."""
    monkeypatch.chdir(tmp_path)
    data = replace(scaling.data_sets("short")["data/scaling-short-secant.zarr"], n_sounds=60, metric=False)
    data = replace(data, secant_step=None, data="data/few.zarr", device="cpu")
    build(data, progress=False)
    monkeypatch.setattr(rows.Study, "result", lambda self, name: tmp_path / f"{name}.json")
    monkeypatch.setattr(rows, "N_TEST", 3)
    few = rows.Study("few", "scaling.yaml", lambda path: None, sounds=data)
    sought = rows.Judge(few, "test").rows.nu
    among = rows.Rows(torch.cat([data.synthesizer.sample_uniform(70, seed=5), sought]))
    monkeypatch.setattr(
        rows,
        "load",
        lambda path, split="train", names=(), n=None: among if split == "train" else load(path, split, names, n),
    )
    few.search("nearest")
    found = few.read("nearest")
    torch.testing.assert_close(torch.tensor(found["nu_hat"]).double(), sought, rtol=1e-3, atol=1e-4)
    assert max(found["jtfs"]) < 1e-2


@pytest.mark.parametrize(("drum", "name"), DONE)
def test_results_were_made_with_the_configuration_of_today(drum, name):
    """And with the learning rate that was best; the first weights and batches are those of the other losses."""
    (loss, config), study = DONE[drum, name], scaling.STUDIES[drum]
    rate = study.tuned(loss, scaling.RATES, scaling.runs_of(drum)) if loss else config.learning_rate
    config = replace(config, learning_rate=rate)
    study.refuse_other_settings(name, config)
    row = study.read(name)
    assert Path(row["training"]["config"]["data"]).name == Path(config.data).name
    assert len(row["history"]) == config.n_epochs
    n_sounds = study.splits["validation" if name.startswith("tune") else "test"]
    assert len(row["jtfs"]) == len(row["mss"]) == len(row["nu_hat"]) == n_sounds


def test_deltas_are_small_beside_the_distances_that_they_smooth():
    errors = torch.tensor([0.3, 1.0])
    assert (root(errors**2, scaling.LOSSES["parameter-root"]["root"]) > 0.8 * errors).all()


def test_fresh_sounds_are_in_no_data_set_and_look_as_a_store_has_them(tmp_path):
    data = replace(
        scaling.data_sets("short")["data/scaling-short-secant.zarr"], n_sounds=100, metric=False, secant_step=None
    )
    data = replace(data, data=str(tmp_path / "few.zarr"), device="cpu")
    build(data, progress=False)
    stored, found = load(data.data, "train", ("scalogram",)), rows.fresh(data, 12)
    assert found.nu.shape == (12, 5)
    assert found.scalogram.shape[1:] == stored.scalogram.shape[1:]
    assert found.scalogram.dtype == stored.scalogram.dtype
    assert torch.cdist(found.nu, stored.nu).min() > 0
    seen = encoder_input(data)(data.synthesizer(stored.nu[:4], torch.float32))
    torch.testing.assert_close(seen.half(), stored.scalogram[:4], rtol=2e-3, atol=2e-3)


def test_rows_are_judged_by_the_sounds_of_today(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rows, "N_TEST", 2)
    data = replace(scaling.data_sets("short")["data/scaling-short-all.zarr"], n_sounds=100, data="few.zarr")
    drum = data.synthesizer

    def backwards(*args, **options):
        return drum.function(*args, **options).flip(-1)

    for seed, synthesizer in ((0, drum), (1, drum), (1, replace(drum, function=backwards))):
        data = replace(data, metric=False, device="cpu", secant_step=None, seed=seed, synthesizer=synthesizer)
        build(data, progress=False)
        heard = rows.Judge(rows.Study("few", "scaling.yaml", None, sounds=data), "test")
        assert max(heard(heard.rows.nu)["jtfs"]) < 1e-3
        shutil.rmtree("few.zarr")


def test_a_row_is_confirmed_with_its_last_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, n in (("N_FRESH", 6), ("N_TEST", 4), ("N_VALIDATION", 4)):
        monkeypatch.setattr(rows, name, n)
    monkeypatch.setattr(rows.Study, "result", lambda self, name: tmp_path / f"{name}.json")
    rows.judge.cache_clear()
    data = replace(scaling.data_sets("short")["data/scaling-short-secant.zarr"], n_sounds=100, data="few.zarr")
    data = replace(data, device="cpu")
    study = rows.Study("few", "scaling.yaml", lambda path: build(data, progress=False), sounds=data)
    config = replace(study.of(TrainingConfig), data="few.zarr", output_folder="row", backbone="test_efficientnet")
    config = replace(config, n_train=64, n_validation=4, n_epochs=2, batch_size=16, device="cpu")
    study.prepare("few.zarr")
    fit(config, progress=False)
    end = torch.load("row/checkpoint.pt", weights_only=True)
    end["weights"] = {name: 1.5 * values for name, values in end["weights"].items()}  # others than the best
    torch.save(end, "row/checkpoint.pt")
    study.confirm_all({"row": config})
    row = study.read("fresh-row")
    found = rows.judge(study, "fresh")
    model = load_encoder("row/encoder.safetensors", "cpu", data.synthesizer)
    best = found(predict(model, found.rows))["jtfs"]
    model.encoder.load_state_dict(end["weights"])
    assert row["jtfs"] != pytest.approx(best, rel=1e-2)
    assert row["jtfs"] == pytest.approx(found(predict(model, found.rows))["jtfs"], rel=1e-3)
    assert len(row["jtfs"]) == 6
    study.confirm_all({"row": config})
    assert study.read("fresh-row") == row
    with pytest.raises(ValueError, match="fresh-row.json was made with learning_rate"):
        study.confirm_all({"row": replace(config, learning_rate=1e-5)})
    study.validate_all({"rate-row": config})  # of the same folder
    row = study.read("rate-row")
    for split in ("validation", "test"):
        found = rows.judge(study, split)
        expected = found(predict(model, found.rows))
        assert row[split]["jtfs"] == pytest.approx(expected["jtfs"], rel=1e-3)
        assert len(row[split]["mss"]) == 4
    rows.judge.cache_clear()


def test_a_lone_row_has_one_thread_as_others_have(monkeypatch):
    threads = [2]
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[-1])
    seen = []
    rows.side_by_side(lambda name, config: seen.append((name, threads[-1])), {"row": None}, lambda: None)
    assert seen == [("row", 1)]
    assert threads[-1] == 2


def test_a_row_may_leave_its_precision_open(monkeypatch):
    """What "auto" came to is compared only with a row that names its precision."""
    study, config = scaling.STUDIES["short"], TrainingConfig(precision="auto")
    made = {"training": {"config": as_stored(config), "precision": "bf16-mixed"}}
    monkeypatch.setattr(rows.Study, "read", lambda self, name: made)
    study.refuse_other_settings("row", config)
    study.refuse_other_settings("row", replace(config, precision="bf16-mixed"))
    with pytest.raises(ValueError, match='precision = "bf16-mixed", not "32-true"'):
        study.refuse_other_settings("row", replace(config, precision="32-true"))
    with pytest.raises(ValueError, match='data = .*, not "other.zarr"'):  # of other metrics, perhaps
        study.refuse_other_settings("row", replace(config, data="other.zarr"))


def test_random_paths_hear_target_and_answer_alike_and_the_next_pair_by_another():
    drum = scaling.DRUMS["short"]
    x = drum(drum.sample_uniform(3, seed=3), torch.float32)
    ear, again = (RandomPaths(drum.n_samples, drum.sample_rate) for _ in range(2))
    whole, paths = jtfs(drum.n_samples, drum.sample_rate), ear.whole.transform.paths
    drawn = []
    for k in range(20):
        torch.manual_seed(k)  # as a training does when an epoch begins
        target, answer = ear(x), ear(x[:2])
        n2, n_fr = ear.path
        chosen = ((paths.order == 2) & (paths.n2 == n2) & (paths.n_fr == n_fr)).to_numpy()
        torch.testing.assert_close(target, whole(x)[:, torch.tensor(chosen)])
        torch.testing.assert_close(answer, target[:2])
        torch.manual_seed(k)
        assert torch.equal(again(x), target)
        again(x)
        drawn.append(ear.path)
    assert len(set(drawn)) > 15
    assert {pair for pair in zip(paths.n2, paths.n_fr, strict=True) if pair[0] >= 0} == set(ear.choices)


def test_targets_are_late_or_early_and_answers_on_time():
    drum = scaling.DRUMS["short"]
    x = drum(drum.sample_uniform(4, seed=3), torch.float32)
    ear = late_or_early.LateOrEarly(lambda x: x, drum.sample_rate)
    most = round(0.046 * drum.sample_rate)
    assert ear.most == most
    found = []
    for k in range(20):
        torch.manual_seed(k)  # as a training does when an epoch begins
        targets, answers = ear(x), ear(x[:3])
        assert torch.equal(answers, torch.nn.functional.pad(x[:3], (most, most)))
        delays = [
            (target != 0).nonzero()[0, 0] - (row != 0).nonzero()[0, 0] - most
            for target, row in zip(targets, x, strict=True)
        ]
        for target, row, delay in zip(targets, x, delays, strict=True):
            assert torch.equal(target[most + delay :][: len(row)], row)
            assert target.count_nonzero() == row.count_nonzero()
        found += [int(delay) for delay in delays]
        torch.manual_seed(k)
        again = late_or_early.LateOrEarly(lambda x: x, drum.sample_rate)
        assert torch.equal(again(x), targets)
    assert len(set(found)) > 70
    assert -most <= min(found) < -0.9 * most
    assert 0.9 * most < max(found) <= most
    assert ear(x[:0]).shape == (0, len(x[0]) + 2 * most)


@pytest.mark.parametrize(("name", "log"), [("mss-late", True), ("mss-linear-late", False)])
def test_mss_of_late_or_early_targets_is_that_of_delayed_ones(name, log):
    drum = scaling.DRUMS["short"]
    x = drum(drum.sample_uniform(2, seed=3), torch.float32)
    ear = EARS[name](drum.n_samples, drum.sample_rate)
    torch.manual_seed(1)
    target, answer = ear(x), ear(x)
    torch.manual_seed(1)
    delay = torch.randint(-ear.most, ear.most + 1, (2,))
    moved = torch.zeros(2, drum.n_samples + 2 * ear.most)
    for row, sound, d in zip(moved, x, delay.tolist(), strict=True):
        row[ear.most + d :][: len(sound)] = sound
    torch.testing.assert_close(target, MSS(log=log)(moved))
    torch.testing.assert_close(answer, MSS(log=log)(torch.nn.functional.pad(x, (ear.most, ear.most))))


def test_what_takes_over_begins_where_another_row_has_ended():
    rows, named = scaling.takeovers(), scaling.named("short")
    for name, (first, config) in rows.items():
        assert Path(config.start_from) == scaling.STUDIES["short"].runs / first / "last.safetensors"
        assert first in named
        assert config.seed == named[first][1].seed == int(name[-1])
        assert config.backbone == named[first][1].backbone
        assert config.n_epochs * scaling.STEPS_AN_EPOCH == int(name.split("-")[-2])
    assert len({replace(config, output_folder="") for _, config in rows.values()}) == len(rows)


def test_rows_with_m_wait_for_their_pieces_of_the_papers_bank(monkeypatch, capsys):
    named = scaling.named("full")
    for there, least in ((0, None), (1, scaling.FEW), (3, scaling.MORE), (9, scaling.MOST)):
        monkeypatch.setattr(scaling.papers_bank, "n_there", lambda there=there: there)
        done = scaling.ready(named)
        sizes = {config.n_train for loss, config in done.values() if loss in scaling.OF_M}
        assert max(sizes, default=None) == least
        assert {name for name, (loss, _) in named.items() if loss in scaling.ROOTS} <= set(done)
        said = capsys.readouterr().out
        assert len(said.splitlines()) == len(named) - len(done)
    assert not said


def test_pieces_that_come_later_reach_a_data_set_that_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = replace(scaling.data_sets("short")["data/scaling-short-metric.zarr"], n_sounds=100, data="few-short.zarr")
    monkeypatch.setattr(scaling, "FROM_BANK", "few-short.zarr")
    monkeypatch.setattr(scaling, "data_sets", lambda drum: {"few-short.zarr": replace(config, device="cpu")})
    M = torch.eye(5, dtype=torch.float64).expand(100, 5, 5)
    for there in (50, 100):
        given = M * (torch.arange(100) < there)[:, None, None]
        monkeypatch.setattr(scaling.papers_bank, "metrics", lambda given=given: given)
        scaling.prepare("few-short.zarr")
        found = [load("few-short.zarr", split, ("metric",)).metric for split in ("train", "validation", "test")]
        assert torch.cat(found).diagonal(dim1=1, dim2=2).sum() == 5 * there


def test_names_that_no_row_has_are_refused_before_any_work(monkeypatch):
    monkeypatch.setattr(rows.Study, "do_all", lambda *_: pytest.fail("work"))
    with pytest.raises(SystemExit, match="expected beginnings of rows' names, such as .*, got '--help'"):
        scaling.main(["short", "full"], ["secant", "--help"], False)
    for other in (study, arpeggiator_study):
        monkeypatch.setattr(other, "prepare", lambda _: pytest.fail("work"))
        with pytest.raises(SystemExit, match="got '--help'"):
            other.main(["--help"])
