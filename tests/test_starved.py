"""Where memory, threads or file descriptors end, what is read is not called damaged: nobody should delete it."""

import errno
import os
import warnings

import pytest
import torch
from tqdm import tqdm

from pnp_tutorial import dataset, encoder, runtime, training
from pnp_tutorial.__main__ import main
from pnp_tutorial.runtime import lacks_means

ALLOCATOR = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"
LACKS = {
    "memory": MemoryError(),
    "memory, torch": RuntimeError(ALLOCATOR),
    "memory of a GPU": RuntimeError("CUDA error: out of memory"),
    "memory of a GPU's library": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
    "memory, C++": RuntimeError("std::bad_alloc"),
    "memory, oneDNN": RuntimeError("could not create a primitive"),
    "memory, loader": ImportError("x.so: failed to map segment from shared object"),
    "threads": RuntimeError("can't start new thread"),
    "descriptors": OSError(errno.EMFILE, os.strerror(errno.EMFILE)),
}


def read_encoder(data, run):
    encoder.load_encoder(f"{run.output_folder}/encoder.safetensors")


# Of each reader of a file: what may lack something, and how it is called.
READERS = {
    "data set": ("zarr.open_group", lambda data, run: dataset.load(data.data)),
    "chunk": ("zarr.Array.get_orthogonal_selection", lambda data, run: dataset.load(data.data)),
    "encoder": ("safetensors.safe_open", read_encoder),
    "network": ("timm.create_model", read_encoder),
    "checkpoint": ("torch.load", lambda data, run: training.fit(run, progress=False)),
}


def failing(error):
    def fail(*arguments, **options):
        raise error

    return fail


@pytest.mark.parametrize("lack", LACKS)
@pytest.mark.parametrize("reader", READERS)
def test_no_file_is_called_damaged_for_it(tiny_data, tiny_training, monkeypatch, reader, lack):
    what, read = READERS[reader]
    monkeypatch.setattr(what, failing(LACKS[lack]))
    with pytest.raises(type(LACKS[lack])) as found:
        read(tiny_data, tiny_training)
    assert found.value is LACKS[lack]


@pytest.mark.parametrize("reader", READERS)
def test_other_errors_are_those_of_the_file(tiny_data, tiny_training, monkeypatch, reader):
    what, read = READERS[reader]
    monkeypatch.setattr(what, failing(RuntimeError("another")))
    with pytest.raises(ValueError, match="is damaged|is not a"):
        read(tiny_data, tiny_training)


REASONS = [(lack, f" ({LACKS[lack]})" if str(LACKS[lack]) else "") for lack in LACKS if lack != "descriptors"]


@pytest.mark.parametrize(("lack", "reason"), REASONS)
def test_the_command_line_says_so(tmp_path, monkeypatch, capfd, lack, reason):
    monkeypatch.setattr("pnp_tutorial.__main__.check_data", failing(LACKS[lack]))
    assert main(["dataset", f"--data={tmp_path}/x.zarr"]) == 2
    assert capfd.readouterr().err == f"pnp dataset: not enough memory{reason}\n"


class HalfBegun:
    """Like asyncio's loop, which cannot close what it could not open."""

    def __del__(self):
        raise AttributeError("no socket")


async def never():
    pass


@pytest.mark.parametrize("lack", ["threads", "descriptors"])
def test_and_nothing_else(tmp_path, monkeypatch, capfd, lack):
    """Of coroutines that nobody awaits and of loops that did not begin, as zarr has, Python says nothing."""

    def begin(config):
        loop, coroutine = HalfBegun(), never()
        raise LACKS[lack] if loop and coroutine else AssertionError

    monkeypatch.setattr("pnp_tutorial.__main__.check_data", begin)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        assert main(["dataset", f"--data={tmp_path}/x.zarr"]) == 2
        LACKS[lack].__traceback__ = None
    assert capfd.readouterr().err.count("\n") == 1
    assert warned == []


def test_bars_say_nothing_of_the_thread_that_they_do_without(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("tqdm.std.TMonitor", failing(LACKS["threads"]))
    monkeypatch.setattr(tqdm, "monitor", None)
    monkeypatch.setattr(tqdm, "monitor_interval", 10)  # which is 0 once a thread could not be had
    monkeypatch.setattr("pnp_tutorial.__main__.check_data", lambda config: failing(LACKS["threads"])(tqdm([]).close()))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        assert main(["dataset", f"--data={tmp_path}/x.zarr"]) == 2
    assert tqdm.monitor_interval == 0
    assert warned == []
    assert capfd.readouterr().err.endswith("pnp dataset: not enough memory (can't start new thread)\n")


@pytest.mark.parametrize("error", [LACKS["memory"], ValueError("bad")])
def test_the_line_that_says_so_comes_after_the_bar(tmp_path, monkeypatch, capfd, error):
    def begin(config):
        raise error if (bar := tqdm([], desc="here")) is not None else AssertionError(bar)

    monkeypatch.setattr("pnp_tutorial.__main__.check_data", begin)
    assert main(["dataset", f"--data={tmp_path}/x.zarr"]) == 2
    *_, bar, line, end = capfd.readouterr().err.split("\n")
    assert "here" in bar
    assert line.startswith("pnp dataset: ")
    assert end == ""


def test_what_an_error_came_from():
    error = ValueError("of a library that knows no better")
    error.__cause__ = LACKS["threads"]
    assert lacks_means(error)
    assert not lacks_means(ValueError("another"))
    assert not lacks_means(FileNotFoundError(errno.ENOENT, "not there"))
    assert runtime.lacks_means(torch.OutOfMemoryError())
