"""What is no sound, no file of options and no command line: some of it afresh, and all that once broke a promise."""

import os

import pytest
import torture_rubbish
from torture_rubbish import CORPUS, KINDS, fault_of, rubbish, watched


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Function of the name of a kind and of content that tells what is wrong with how it is read, as the trial does."""
    monkeypatch.chdir(tmp_path)
    for name in ("propose", "build", "fit"):
        monkeypatch.setattr(torture_rubbish.command_line, name, None)  # put back at the end
    said = os.open(tmp_path.parent / f"{tmp_path.name} said", os.O_RDWR | os.O_CREAT)
    with watched(said):
        yield lambda name, content: fault_of(KINDS[name], content, tmp_path, said)
    os.close(said)


@pytest.mark.parametrize("path", sorted(CORPUS.iterdir()), ids=lambda path: path.name)
def test_what_broke_a_promise_once(path, read):
    assert read(path.name.split("-")[0], path.read_bytes()) == ""


@pytest.mark.parametrize(("name", "n"), [("sounds", 200), ("options", 200), ("commands", 40)])
def test_some_rubbish(name, n, read):
    how, kind = torture_rubbish.random.Random(f"{name} of the tests"), KINDS[name]
    seeds = kind.seeds()
    faults = {}
    for _ in range(n):
        content = rubbish(seeds, how, kind.words)
        if fault := read(name, content):
            faults[content[:60]] = fault
    assert faults == {}


def test_good_sounds_leave_no_file(tmp_path, monkeypatch):
    """SD2 has its header in a file of its own, also where its sound goes to memory."""
    monkeypatch.chdir(tmp_path)
    torture_rubbish.sounds.__wrapped__()
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_aliases_does_not_grow(read):
    """Nine lists of nine of the one before: 400 MB, if they were written out."""
    lines = ["n_sounds: &a [x, x, x, x, x, x, x, x, x]"]
    keys = ["J", "Q", "T", "seed", "n_cells", "n_inner", "metric", "features"]
    lines += [f"{key}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]" for i, key in enumerate(keys)]
    assert read("options", "\n".join(lines).encode()) == ""
