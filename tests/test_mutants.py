"""Of the bugs that were planted in the library, nine of ten are found, and each of the others is accounted for."""

import re
from pathlib import Path

import mutants
import pytest

from pnp_tutorial.runtime import read_results

ROOT = Path(__file__).parents[1]
FOUND = read_results(ROOT / "pnp_tutorial/results/mutants.json")
SINCE = re.compile(r"killed since by (tests/test_\w+\.py)::(test_\w+)")


@pytest.mark.parametrize("name", mutants.TESTS)
def test_survivors_are_accounted_for(name):
    """By a reason why the bug changes nothing, or by a test that finds it now."""
    row = FOUND[name]
    assert row["killed"] + len(row["survivors"]) == row["planted"]
    for survivor in row["survivors"]:
        since = SINCE.fullmatch(survivor["verdict"])
        if since:
            file, test = since.groups()
            assert f"def {test}(" in (ROOT / file).read_text(encoding="utf-8")
        else:
            assert re.fullmatch("equivalent: .{10,}", survivor["verdict"])


def test_nine_of_ten_are_found():
    planted = sum(row["planted"] for row in FOUND.values())
    since = [s for row in FOUND.values() for s in row["survivors"] if SINCE.fullmatch(s["verdict"])]
    assert sum(row["killed"] for row in FOUND.values()) + len(since) >= 0.9 * planted > 0


def test_modules_that_are_named_are_done_again(tmp_path, monkeypatch):
    tried, row = [], {"killed": 1, "planted": 1, "survivors": []}
    monkeypatch.setattr(mutants, "RESULTS", tmp_path / "mutants.json")
    monkeypatch.setattr(mutants.subprocess, "run", lambda *arguments, **options: None)
    monkeypatch.setattr(mutants, "try_module", lambda name, copy, size: tried.append(name) or row)
    mutants.main(["drum"], 1)
    mutants.main(["drum"], 1)
    assert tried == ["drum", "drum"]
    mutants.main([], 1)
    assert sorted(tried[2:]) == sorted({*mutants.TESTS} - {"drum"})
