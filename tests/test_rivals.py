"""Rows that want a GPU: in which order, from which settings, and that their minutes are a limit."""

import time
from dataclasses import replace
from itertools import islice

import pytest
import rivals
import rows
import scaling
import study
import torch
from rows import Study

from pnp_tutorial.dataset import DatasetConfig, build


@pytest.fixture
def done(monkeypatch):
    """Names of the rows that were asked for; the second rate is the best."""
    names = {}
    monkeypatch.setattr(Study, "do_all", lambda self, rows: names.update(rows))
    monkeypatch.setattr(Study, "read", lambda self, name: {"jtfs": [abs(float(name.split("-", 2)[2]) - 0.003)]})
    return names


def test_what_is_to_be_known_first_is_done_first(done):
    rivals.main(1)
    rates = [f"{rate:g}" for rate in rivals.RATES]
    assert list(done) == [
        *(f"tune-jtfs-{rate}" for rate in rates),
        "jtfs-0",
        *(f"tune-paths-{rate}" for rate in rates),
        "paths-0",
        "jtfs-1",
        "paths-1",
    ]


def test_rows_differ_from_those_of_the_study_in_their_loss_and_rate_only(done):
    rivals.main(1)
    own = {"loss", "root", "ear", "data", "learning_rate", "output_folder", "synthesizer"}
    for name, config in done.items():
        if not name.startswith("tune"):
            beside = study.rows()[f"small-falling-parameter-root-{config.seed}"][1]
            differs = {key for key, value in vars(config).items() if value != vars(beside)[key]}
            assert differs <= own, name
            assert config.learning_rate == 0.003


def test_a_cpu_is_refused(monkeypatch):
    """It would begin its first epoch again and again."""
    monkeypatch.setattr(rivals, "select_device", torch.device)
    monkeypatch.setattr(
        rivals, "RIVALS", Study("rivals", "study.yaml", rivals.prepare, sounds=DatasetConfig(device="cpu"))
    )
    with pytest.raises(SystemExit, match="expected a GPU"):
        rivals.refuse_cpu()


def test_a_row_of_random_paths_is_trained_and_tested(tmp_path, monkeypatch):
    """On a few short drums, for two epochs."""
    monkeypatch.chdir(tmp_path)
    short = replace(scaling.data_sets("short")["data/scaling-short-metric.zarr"], data="data/study.zarr", device="cpu")
    short = replace(short, n_sounds=100, metric=False)
    monkeypatch.setattr(Study, "result", lambda self, name: tmp_path / f"{name}.json")
    for name in ("N_TEST", "N_VALIDATION"):
        monkeypatch.setattr(rows, name, 4)
    monkeypatch.setattr(study, "prepare", lambda path: build(short, progress=False))
    few = Study("rivals", "study.yaml", rivals.prepare, sounds=short)
    for name, value in (("RIVALS", few), ("SEEDS", (0,)), ("RATES", (1e-3,))):
        monkeypatch.setattr(rivals, name, value)
    monkeypatch.setattr(rivals, "LOSSES", {"paths": rivals.LOSSES["paths"]})
    monkeypatch.setattr(study, "SMALL", {"backbone": "test_efficientnet", "batch_size": 16, "n_epochs": 2})
    rows.judge.cache_clear()
    rivals.main(5)
    row = few.read("paths-0")
    assert row["training"]["dataset"]["ear"] == "paths"
    assert len(row["history"]) == 2
    assert len(row["jtfs"]) == 4
    rows.judge.cache_clear()


def test_its_minutes_are_a_limit(monkeypatch, capsys):
    seen = []

    def train(self, rows):
        seen.extend(rows)
        time.sleep(30)

    monkeypatch.setattr(Study, "do_all", train)
    start = time.monotonic()
    rivals.main(0.5 / 60)
    assert time.monotonic() - start < 10
    assert seen == list(next(islice(rivals.rows(), 1)))
    assert "called again, it goes on" in capsys.readouterr().out
