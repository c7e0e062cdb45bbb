"""Files are whole or not there, with the user's permissions; configurations are compared, old ones included."""

import json
import os
import threading
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

import pytest
import torch

from pnp_tutorial.runtime import (
    check_fields,
    check_writable,
    first_existing,
    from_stored,
    read_results,
    read_study,
    readable,
    refuse_difference,
    side_by_side,
    write_atomically,
    write_results,
)


@dataclass(frozen=True)
class Config:
    path: str
    size: int = 3
    rate: float | None = None
    shape: Literal["round", "square"] = "round"
    loud: bool = False
    words: tuple[str, ...] = ()


def test_files_are_written_together_or_not_at_all(tmp_path):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(OSError, match="file"):
        write_atomically({tmp_path / "a": b"1", tmp_path / "file/b": b"2"})
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match="folder"):
        write_atomically({tmp_path / "a": b"1", tmp_path / "folder": b"2"})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]
    write_atomically({tmp_path / "a": b"1", tmp_path / "new/b": b"2"})
    assert (tmp_path / "a").read_bytes() + (tmp_path / "new/b").read_bytes() == b"12"
    write_atomically({tmp_path / ("x" * 255): b""})  # the longest name that most systems have


@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o022, 0o644), (0o002, 0o664)])
def test_files_have_the_permissions_of_the_users_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_atomically({tmp_path / "a": b""})
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == mode


def is_as_written_or_named(path, expected):
    try:
        return read_results(path) == expected
    except ValueError as error:
        return str(path) in str(error)


@pytest.mark.parametrize("indent", [None, 1])
def test_results_are_read_as_they_were_written_or_not_at_all(tmp_path, indent):
    path = tmp_path / "results.json"
    results = {"rows": [{"distance": 0.25, "name": "é"}], 10: 1, 9: (2, None)}
    write_results(path, results, indent)
    expected = json.loads(json.dumps(results))
    assert read_results(path) == expected
    content = path.read_bytes()
    for i in range(len(content)):
        for changed in (content[:i], content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :]):
            path.write_bytes(changed)
            assert is_as_written_or_named(path, expected)


@pytest.mark.parametrize("text", ["", "{}", "[]", "3", '{"seal": 3}', '{"rows": [0.25]}', "[" * 10**5, "\xff"])
def test_results_without_a_seal_are_none(tmp_path, text):
    path = tmp_path / "results.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"results\.json is damaged"):
        read_results(path)


def test_rows_of_a_study_have_the_names_of_their_files(tmp_path):
    for name in ("b-0.02-1", "a-1", "a-0"):
        write_results(tmp_path / f"{name}.json", {"name": name})
    (tmp_path / "notes.txt").write_text("", encoding="utf-8")
    (tmp_path / "nested").mkdir()
    assert list(read_study(tmp_path).items()) == [(name, {"name": name}) for name in ("a-0", "a-1", "b-0.02-1")]
    (tmp_path / "a-1.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"a-1\.json is damaged"):
        read_study(tmp_path)


def test_results_that_ship_are_sealed():
    paths = list((files("pnp_tutorial") / "results").rglob("*.json"))
    assert paths
    assert all(read_results(path) for path in paths)


def test_where_files_can_be_written(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    check_writable(tmp_path / "not/yet/there")
    assert first_existing(tmp_path / "not/yet/there") == tmp_path
    for folder in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(NotADirectoryError, match="file"):
            check_writable(folder)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_older_files_have_the_defaults_of_later_fields():
    assert from_stored(Config, {"path": "p", "size": 4}) == Config("p", 4)
    assert from_stored(Config, {"path": "p", "deep": False, "wide": None}) == Config("p")
    with pytest.raises(TypeError, match="another version of this library wrote deep = 2"):
        from_stored(Config, {"path": "p", "deep": 2})
    with pytest.raises(TypeError, match="path"):
        from_stored(Config, {})


def test_differences_are_named():
    refuse_difference({"path": "p"}, Config("p"), "it was made", ())
    refuse_difference({"path": "q", "size": 3}, Config("p"), "it was made", ("path",))
    with pytest.raises(ValueError, match='it was made with shape = "round", not "square"'):
        refuse_difference({"path": "p"}, Config("p", shape="square"), "it was made", ())
    with pytest.raises(ValueError, match="it was made with rate = 2.0, not null"):
        refuse_difference({"path": "p", "rate": 2.0}, Config("p"), "it was made", ())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 2.5}, "expected size to be of type int, got 2.5"),
        ({"size": True}, "expected size to be of type int, got True"),
        ({"rate": "fast"}, "expected rate to be of type float or nothing, got 'fast'"),
        ({"shape": "flat"}, r"expected shape to be one of \('round', 'square'\), got 'flat'"),
        ({"loud": 1}, "expected loud to be of type bool, got 1"),
        ({"path": None}, "expected path to be of type str, got None"),
        ({"words": None}, "expected words to be a list of words, got None"),
        ({"words": "loud"}, "expected words to be a list of words, got 'loud'"),
        ({"words": (3,)}, r"expected words to be a list of words, got \(3,\)"),
    ],
)
def test_fields_of_another_type(change, message):
    check_fields(Config("p", rate=2))
    with pytest.raises(ValueError, match=message):
        check_fields(Config(**{"path": "p"} | change))


def test_readable_names():
    assert readable(os.fsdecode(b"dr\xfcm \xe2\x80\x93 1\n.wav")) == "dr\\xfcm – 1\\n.wav"


@pytest.mark.parametrize("n_threads", [1, 2, 3])
def test_parts_are_worked_on_side_by_side(n_threads):
    """In as many threads as torch has, each with one; results are in order, and errors come through."""
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    barrier = threading.Barrier(n_threads, timeout=30)

    def work(part):
        barrier.wait()  # all are here at once
        assert torch.get_num_threads() == 1
        return 2 * part

    def fail(part):
        raise ValueError(f"part {int(part)}")

    try:
        with torch.no_grad():
            assert side_by_side(work, torch.arange(6).split(1)) == [2 * i for i in range(6)]
            with pytest.raises(ValueError, match="part 0"):
                side_by_side(fail, torch.arange(6).split(1))
        assert side_by_side(lambda part: part + torch.is_grad_enabled(), torch.arange(2).split(1)) == [1, 2]
        assert torch.get_num_threads() == n_threads
    finally:
        torch.set_num_threads(before)
