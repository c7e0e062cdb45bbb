"""The trials of `make torture` call a promise kept where it is, and nowhere else."""

import os
import re
import resource
import time

import pytest
import torch
import torture
import torture_damaged
import torture_starved
import trials
from torture_damaged import Reader, outcome
from trials import Trial

from pnp_tutorial.runtime import read_results


def after(seconds, otherwise=None):
    """A reader that takes so long, and blames its file for whatever happens."""

    def read(folder):
        try:
            time.sleep(seconds)
            if otherwise:
                raise otherwise
        except Exception as error:
            raise ValueError("file.x is damaged") from error
        return 3

    return Reader(None, "", read, "file.x")


def test_a_reader_that_hangs_breaks_its_promise_whatever_it_says(tmp_path, monkeypatch):
    monkeypatch.setattr(torture_damaged, "LIMIT_S", 1)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    assert outcome(after(0), tmp_path, 3) == "the same"
    assert outcome(after(0), tmp_path, 4) == "another value"
    assert outcome(after(0, OSError("gone")), tmp_path, 3) == "named"
    assert outcome(after(3), tmp_path, 3).endswith(" s: named")
    assert resource.getrlimit(resource.RLIMIT_AS) == limits


@pytest.mark.skipif(not trials.STATM.exists(), reason="only Linux tells what a process takes")
def test_memory_is_limited_to_a_little_more():
    before = trials.limit_memory(2**28)
    try:
        with pytest.raises(MemoryError):
            bytearray(2**29)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert len(bytearray(2**29)) == 2**29


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        (
            "pnp match: [Errno 13] Permission denied: '/tmp/a-1/b/out/c'",
            "pnp match: [Errno 13] Permission denied: '…/c'",
        ),
        ("not enough memory (/a/.venv/lib/b.so: failed)", "not enough memory (…/b.so: failed)"),
        ("too many open files: 'data.zarr/done/c/4'", "too many open files: 'data.zarr/done/c/4'"),
    ],
)
def test_places_of_a_machine_are_not_kept(said, kept):
    assert torture_starved.without_places(said) == kept


def test_no_result_names_a_place_of_a_machine():
    for path in trials.RESULTS.parent.rglob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"(?<![\w.:/…])(/[\w.-]+){3,}", text), path


def test_starved_trials_want_root_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(torture, "RESULTS", tmp_path)
    monkeypatch.setattr(torture, "do", lambda *_: pytest.fail("work"))
    with pytest.raises(SystemExit, match="expected root, .* got user 1000"):
        torture.main(["starved"])


def test_a_trial_is_done_once_and_says_whether_all_was_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    runs = []
    trial = Trial("it holds", "twice", lambda: {"trials": 2, "kept": 1 + len(runs), "run": runs.append(1)})
    for module in (torture, trials):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    monkeypatch.setattr(torture, "PARTS", {"some": {"a part, b": trial}})
    assert torture.main([]) == torture.main(["some"]) == 1
    assert len(runs) == 1
    row = read_results(tmp_path / "some-a_part-b.json")
    assert (row["part"], row["name"], row["promise"], row["kept"]) == ("some", "a part, b", "it holds", 1)
