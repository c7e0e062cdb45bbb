"""The data set in trouble: configurations that cannot be, files in the way, other versions, other processes."""

import math
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import zarr
from conftest import as_slurm_starts_them, contents, fields_of

from pnp_tutorial.dataset import DatasetConfig, build, load


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_sounds": 9}, "n_sounds from 10"),
        ({"n_sounds": 100.5}, "n_sounds to be of type int, got 100.5"),
        ({"sampling": "unifrom"}, "sampling to be one of .* got 'unifrom'"),
        ({"n_sounds": 100_001, "sampling": "grid"}, "n_sounds from 10 to 100000"),
        ({"chunk_size": 0}, "chunk_size ≥ 1"),
        ({"seed": -1}, "seed ≥ 0, got -1"),
        ({"seed": 10**20}, "seed ≤ 9007199254740992, got 100000000000000000000"),
        ({"secant_step": 0.0}, r"secant_step in \[1e-06, 2\], got 0.0"),
        ({"secant_step": 1e-7}, r"secant_step in \[1e-06, 2\], got 1e-07"),
        ({"secant_step": math.nan}, r"secant_step in \[1e-06, 2\], got nan"),
        ({"device": "abacus"}, "device 'abacus' is not available here"),
        ({"n_sounds": 10**12}, "GB are free"),
        (
            {"n_samples": 16, "J": 2, "T": 4},
            "no data set can be made with n_samples = 16, J = 2, Q = 12, T = 4, ear = jtfs: ",
        ),
        ({"n_samples": 4, "J": 1, "T": 2, "secant_step": 0.1}, "no data set can be made with n_samples = 4"),
        ({"n_samples": -1}, "n_samples ≥ 1, got -1"),
        ({"J": 40}, "J must be a whole number"),
        ({"Q": 0}, "Q must be a whole number"),
        ({"T": 4096}, "T must be .* a whole number"),
        ({"metric": 1}, "metric to be of type bool, got 1"),
    ],
)
def test_impossible_configuration(tmp_path, change, message):
    """Refused before anything is written, folders included."""
    path = tmp_path / "new/x.zarr"
    with pytest.raises(ValueError, match=message):
        build(DatasetConfig(data=str(path), **{"n_samples": 2048, "J": 6, "T": 64} | change), progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_one_byte_too_small_is_named(tiny_data, tmp_path, monkeypatch):
    """The room that is wanted is that of all arrays; they are compressed, and so take less."""
    store = zarr.open_group(tiny_data.data, mode="r")
    size = sum(array.nbytes for name, array in store.arrays() if name != "done")
    config = replace(tiny_data, data=str(tmp_path / "x.zarr"))
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=size - 1))
    with pytest.raises(ValueError, match="but only .* GB are free there"):
        build(config, progress=False)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=size))
    assert build(config, progress=False).exists()


@pytest.mark.parametrize("progress", [False, True])
def test_a_bar_where_one_is_asked_for(tiny_data, tmp_path, capsys, progress):
    build(replace(tiny_data, data=str(tmp_path / "x.zarr"), n_sounds=10, metric=False), progress=progress)
    assert ("10/10" in capsys.readouterr().err) == progress


def test_a_corrected_configuration_is_taken(tmp_path):
    wrong = DatasetConfig(str(tmp_path / "x.zarr"), n_sounds=10, n_samples=16, J=2, T=4, device="cpu")
    with pytest.raises(ValueError, match="n_samples = 16"):
        build(wrong, progress=False)
    assert build(replace(wrong, n_samples=256, J=4), progress=False).exists()


def test_what_is_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    (tmp_path / "folder").mkdir()
    config = DatasetConfig(n_sounds=10, n_samples=2048, J=6, T=64, metric=False, device="cpu")
    for name in ("file", "folder"):
        with pytest.raises(ValueError, match=f"{name} is not a data set of this library"):
            build(replace(config, data=str(tmp_path / name)), progress=False)
    with pytest.raises(OSError, match="file"):
        build(replace(config, data=str(tmp_path / "file/x.zarr")), progress=False)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]


def forget(path, *names, **others):
    """A store as it was before some fields of its configuration existed, or with others."""
    store = zarr.open_group(path, mode="r+")
    store.attrs.pop("seal", None)
    store.attrs["config"] = {key: value for key, value in store.attrs["config"].items() if key not in names} | others


def test_stores_of_other_versions_are_read(tiny_data, tmp_path):
    path = str(shutil.copytree(tiny_data.data, tmp_path / "old.zarr"))
    forget(path, "secant_step", "features", audio=True)
    assert torch.equal(load(path).nu, load(tiny_data.data).nu)
    assert build(replace(tiny_data, data=path), progress=False) == Path(path)
    forget(path, microphone=False)
    assert len(load(path).nu) == 32
    forget(path, microphone=True)
    with pytest.raises(ValueError, match="another version of this library wrote microphone = true"):
        load(path)


def test_what_another_version_began_is_not_gone_on_with(tiny_data, tmp_path):
    config = replace(tiny_data, data=str(shutil.copytree(tiny_data.data, tmp_path / "c.zarr")))
    store = zarr.open_group(config.data, mode="r+")
    del store.attrs["seal"]
    store.attrs["made_with"] = store.attrs["made_with"] | {"pnp_tutorial": "0.0.1"}
    assert build(config, progress=False)  # it is finished
    store["done"][0] = False
    with pytest.raises(ValueError, match=r"was begun by version 0.0.1 of this package, and this is \d"):
        build(config, progress=False)


def test_two_that_know_nothing_of_each_other_build_one_data_set(tiny_data, tmp_path):
    """Two commands, started at once, three times: one is the faster at making the store, and both end well."""
    config = replace(tiny_data, data="", metric=False, n_sounds=10, chunk_size=2)
    code = (
        "import sys, time; from dataclasses import replace; from pathlib import Path\n"
        "import pnp_tutorial.dataset as d\n"
        f"config = d.DatasetConfig(**{fields_of(config)!r}); here = Path({str(tmp_path)!r})\n"
        "d._try = lambda *rest: None  # so that both make the store at the same moment\n"
        "for turn in range(3):\n"
        "    (here / f'{turn}-{sys.argv[1]}').touch()\n"
        "    while not (here / f'{turn}-{1 - int(sys.argv[1])}').exists(): time.sleep(1e-4)\n"
        "    d.load(d.build(replace(config, data=str(here / f'{turn}.zarr')), progress=False))\n"
    )
    both = [subprocess.Popen([sys.executable, "-c", code, str(i)], stderr=subprocess.PIPE) for i in (0, 1)]
    for process in both:
        _, errors = process.communicate(timeout=400)
        assert process.returncode == 0, errors.decode()
    assert [name for name in os.listdir(tmp_path) if name.endswith(".tmp")] == []
    assert contents(tmp_path / "0.zarr") == contents(tmp_path / "2.zarr")


def test_a_peer_that_dies_does_not_hold_the_others_for_ever(tiny_data, tmp_path):
    """Two processes as SLURM starts them, without an agent that ends them all; one is killed in its share."""
    config = replace(tiny_data, data=str(tmp_path / "d.zarr"), metric=False)
    code = (
        "import os, signal, pnp_tutorial.dataset as d; f = d._compute\n"
        "die = lambda nu: os.environ['RANK'] == '1' and len(nu) > 1 and os.kill(os.getpid(), signal.SIGKILL)\n"
        "d._compute = lambda nu, *rest: die(nu) or f(nu, *rest)\n"
        f"d.build(d.DatasetConfig(**{fields_of(config)!r}), progress=False, patience_s=20)"
    )
    peers = as_slurm_starts_them(code)
    assert peers[1].wait(240) == -signal.SIGKILL
    _, errors = peers[0].communicate(timeout=240)
    assert peers[0].returncode == 1
    assert "d.zarr has 3 of 5 chunks, and no other process has finished one for 20 s" in errors.decode()


@pytest.mark.parametrize(("umask", "file", "folder"), [(0o077, 0o600, 0o700), (0o002, 0o664, 0o775)])
def test_permissions_are_those_of_the_users_umask(tiny_data, tmp_path, umask, file, folder):
    before = os.umask(umask)
    try:
        path = build(replace(tiny_data, data=str(tmp_path / "new/u.zarr"), metric=False, n_sounds=10), progress=False)
    finally:
        os.umask(before)
    found = {(p.is_dir(), p.stat().st_mode & 0o777) for p in [path.parent, *path.parent.rglob("*")]}
    assert found == {(True, folder), (False, file)}
