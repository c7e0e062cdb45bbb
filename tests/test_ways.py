"""Ways through the library that are seldom taken: interrupted by Ctrl-C, started by SLURM, on a device that is faked,
with functorch's transforms together, and from the workers of a DataLoader."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from conftest import contents, fields_of
from torch.utils.data import DataLoader, Dataset

from pnp_tutorial import path_sums, runtime
from pnp_tutorial.__main__ import main
from pnp_tutorial.curves import curve_form
from pnp_tutorial.dataset import DatasetConfig, build, encoder_input
from pnp_tutorial.drum import DRUM
from pnp_tutorial.evaluation import _batches
from pnp_tutorial.losses import mss_loss, pnp_loss, spectral_loss
from pnp_tutorial.metric import eigen, gram, jacobian, tangents
from pnp_tutorial.runtime import connect, float64_device
from pnp_tutorial.scalogram import Scalogram
from pnp_tutorial.scattering import JTFS, LogScattering

N = 2048
short = replace(DRUM, n_samples=N)
features = LogScattering(JTFS(N, J=6))
SMALL = DatasetConfig(n_samples=N, J=6, T=64)


def options(config):
    return [f"--{key}={'null' if value is None else value}" for key, value in fields_of(config).items()]


def test_info_and_verify(tiny_data, capfd):
    assert main(["dataset", f"--data={tiny_data.data}", "--info"]) == 0
    info = yaml.safe_load(capfd.readouterr().out)
    assert info["chunks"] == "5 of 5 done"
    assert info["splits"] == {"train": 32, "validation": 4, "test": 4}
    assert info["arrays"]["metric"]["shape"] == [40, 5, 5]
    assert info["config"]["J"] == tiny_data.J
    assert main(["dataset", f"--data={tiny_data.data}", "--verify", "--device=cpu"]) == 0
    assert "checksums are right; computed again, two chunks differ by 0 at most" in capfd.readouterr().out


def test_verify_of_another_number(tiny_data, tmp_path, capfd):
    """Numbers that have a right checksum, and are not those of their ν."""
    import zarr

    path = shutil.copytree(tiny_data.data, tmp_path / "d.zarr")
    store = zarr.open_group(path, mode="r+")
    store["metric"][:] = 1.1 * store["metric"][:]
    assert main(["dataset", f"--data={path}", "--verify", "--device=cpu"]) == 2
    assert "metric of chunk" in capfd.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT")
def test_ctrl_c_keeps_what_is_done(tiny_data, tmp_path):
    """Status 130 and one line, and the same command goes on from there to the same bytes."""
    config = replace(tiny_data, data=str(tmp_path / "c.zarr"), chunk_size=1)
    code = (
        "import signal, sys, time, pnp_tutorial.dataset as d; from pnp_tutorial.__main__ import main; f = d._compute\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started this in the background\n"
        "d._compute = lambda *a: (time.sleep(0.2), f(*a))[1]\n"
        f"sys.exit(main(['dataset', *{options(config)!r}]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, encoding="utf-8")
    deadline = time.time() + 120
    while len(list((tmp_path / "c.zarr/done").rglob("c/*"))) < 3 and time.time() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert said.rstrip("\n").split("\n")[-1] == "pnp dataset: interrupted; the same command goes on from here"
    assert "Traceback" not in said
    n_done = len(list((tmp_path / "c.zarr/done").rglob("c/*")))
    assert 3 <= n_done < 40, "some work is done, and some is left"
    assert main(["dataset", *options(config)]) == 0
    whole = replace(config, data=str(tmp_path / "whole.zarr"))
    build(whole, progress=False)
    assert contents(config.data) == contents(whole.data)


def test_two_tasks_of_slurm_build_one_data_set(tiny_data, tmp_path):
    """With the variables that srun sets, and a program of that name, which is not called."""
    (tmp_path / "srun").write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    (tmp_path / "srun").chmod(0o755)
    config = replace(tiny_data, data=str(tmp_path / "s.zarr"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared |= {"SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "pnp", "SLURM_NTASKS": "2", "SLURM_NNODES": "1"}
    shared |= {"SLURM_NODELIST": "localhost", "SLURM_NODEID": "0", "OMP_NUM_THREADS": "1"}
    shared |= {"SLURM_NTASKS_PER_NODE": "2"}
    tasks = [
        subprocess.Popen(
            [sys.executable, "-m", "pnp_tutorial", "dataset", *options(config)],
            env=os.environ | shared | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )
        for i in range(2)
    ]
    said = [task.communicate(timeout=300) for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], said
    assert [out for out, _ in said] == [f"{config.data}\n", ""], "the first of them speaks"
    assert "process 1 of 2" in said[0][1], "they know of each other"
    assert contents(config.data) == contents(tiny_data.data)


def test_tasks_that_slurm_was_asked_for_in_another_way(monkeypatch, tmp_path, capfd):
    """Lightning wants their number of a node; it says so, and the command in one line."""
    monkeypatch.setattr(runtime.shutil, "which", lambda name: "/usr/bin/srun")
    for name, value in {"NTASKS": "2", "NNODES": "1", "JOB_ID": "1", "JOB_NAME": "pnp", "PROCID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert main(["dataset", f"--data={tmp_path}/x.zarr", "--n_sounds=10", "--device=cpu"]) == 2
    said = capfd.readouterr().err
    assert "--ntasks-per-node=2" in said
    assert said.count("\n") == 1


def test_a_machine_without_slurm_is_alone():
    assert connect(torch.device("cpu")).world_size == 1


def test_what_lacks_float64_takes_the_detour():
    assert float64_device("mps") == float64_device(torch.device("mps")) == torch.device("cpu")
    assert float64_device("cuda:1") == torch.device("cuda:1")


def test_whatever_wants_float64_takes_it(monkeypatch):
    """With a CPU that has no float64, and a detour that leads to where nothing is computed."""
    monkeypatch.setattr(runtime, "float64_device", lambda device: torch.device("meta"))
    nu, M, G = torch.zeros(2, 5), torch.eye(5).repeat(2, 1, 1), torch.eye(30).repeat(2, 1, 1)
    forms = (pnp_loss(nu, nu, M, 0.1), curve_form(nu, nu, G, (0.5, 1.0)), gram(M), *eigen(M))
    assert {values.device.type for values in forms} == {"meta"}
    heard = []

    def silent(nu):
        heard.append((nu.device.type, nu.dtype))
        return torch.zeros(len(nu), 4096)

    spectral_loss(nu, nu, lambda x: x, silent)
    mss_loss(nu, nu, silent)
    assert heard == [("meta", torch.float64)] * 4


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_devices_that_are_there_are_taken(monkeypatch, kind):
    """In the order of speed; the CPU where there is no other."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: kind == "cuda")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: kind == "mps")
    assert runtime.select_device("auto") == torch.device(kind)
    assert runtime.select_device("cpu") == torch.device("cpu")


def test_what_is_for_a_gpu_gives_the_same_numbers(monkeypatch):
    """Every tensor says that it is on a GPU, so that each branch for one is taken, on a CPU.

    In float64: the gradient of a sound in float32 is another one when its last digits change.
    """
    nu = short.sample_uniform(3)
    heard, seen = (each.to(torch.float64) for each in (LogScattering(JTFS(N, J=6)), encoder_input(SMALL)))
    called = []
    sums = path_sums.complex_path_sums
    monkeypatch.setattr(path_sums, "complex_path_sums", lambda *rest: called.append(1) or sums(*rest))

    def found():
        x, dx = (values.to(torch.float64) for values in tangents(nu, short))
        x.requires_grad_()
        heard(x).sum().backward()
        with torch.no_grad():
            S, dS = heard.push(x, dx)
            return S, dS, x.grad, seen(x), torch.cat(_batches(nu))

    expected = found()
    assert not called
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda self: True))
    assert nu.is_cuda
    on_a_gpu = found()
    assert called
    for values, others in zip(on_a_gpu, expected, strict=True):
        scale = float(others.abs().max())
        torch.testing.assert_close(values, others, rtol=1e-6, atol=1e-7 * scale)


def test_forward_mode_and_vmap_together():
    """vmap over sounds of jvp over directions gives the Jacobian that `push` carries along."""
    nu = short.sample_uniform(2)

    def heard(nu):
        return features(short(nu))

    S, J = jacobian(nu, features, short)
    directions = torch.eye(5, dtype=torch.float64)
    each = torch.vmap(lambda one: torch.vmap(lambda d: torch.func.jvp(heard, (one,), (d,))[1])(directions))(nu)
    torch.testing.assert_close(each.mT, J, rtol=1e-4, atol=1e-6 * float(J.abs().max()))  # J is of float32


@pytest.mark.parametrize("kind", [JTFS, Scalogram])
def test_compiled_features(kind):
    """torch.compile traces what it can, forwards and backwards, and leaves the rest: values and gradients are the same.

    The backend is the one that needs no compiler of C++.
    """
    if not torch._dynamo.is_dynamo_supported():
        pytest.skip("this torch compiles nothing for this Python")
    heard = LogScattering(kind(256, J=3, Q=(2, 1), J_fr=1) if kind is JTFS else kind(256, J=3, Q=2, T=32))
    compiled = torch.compile(heard, backend="aot_eager")
    x = torch.randn(2, 256, generator=torch.Generator().manual_seed(0))
    found = []
    for each in (heard, compiled):
        x = x.clone().detach().requires_grad_()
        S = each(x)
        S.square().sum().backward()
        found.append((S, x.grad))
    for plain, other in zip(*found, strict=True):
        torch.testing.assert_close(other, plain, rtol=1e-5, atol=1e-6)
    assert torch._dynamo.utils.counters["stats"]["calls_captured"] > 0, "some of it is traced"
    torch._dynamo.reset()


class Sounds(Dataset):
    def __init__(self):
        self.nu = short.sample_uniform(4)

    def __len__(self):
        return len(self.nu)

    def __getitem__(self, i):
        with torch.no_grad():
            return features(short(self.nu[i], torch.float32))


@pytest.mark.skipif(sys.platform == "win32", reason="fork")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_of_a_data_loader(method):
    """Features are the same in a worker, however it was started."""
    loader = DataLoader(Sounds(), batch_size=2, num_workers=1, multiprocessing_context=method, timeout=240)
    expected = torch.stack([Sounds()[i] for i in range(4)])
    torch.testing.assert_close(torch.cat(list(loader)), expected, rtol=1e-5, atol=1e-6)


def start_workers(tmp_path, work, jobs):
    """A program in which two processes do these jobs: it is given the folder, too."""
    code = (
        "import os, sys, time; from pathlib import Path\n"
        "from workers import do_all\n"
        f"{work}\n"
        "if __name__ == '__main__':\n"
        f"    do_all(work, {jobs}, 2)\n"
    )
    (tmp_path / "program.py").write_text(code, encoding="utf-8")
    path = os.pathsep.join([str(Path(__file__).parents[1] / "tools"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(tmp_path / "program.py"), str(tmp_path)]
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path}, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_what_started_them(tmp_path, stop):
    """A pool of two is at work; its program is killed or interrupted; no worker is left to write, nor begins anew."""
    work = "def work(i):\n    Path(sys.argv[1], f'{os.getpid()}.pid').touch()\n    time.sleep(600)"
    program = start_workers(tmp_path, work, [(i,) for i in range(6)])
    deadline = time.time() + 120
    while len(list(tmp_path.glob("*.pid"))) < 2 and time.time() < deadline:
        time.sleep(0.02)
    workers = [int(file.stem) for file in tmp_path.glob("*.pid")]
    assert len(workers) == 2
    for pid in (program.pid, *(workers if stop == signal.SIGINT else ())):  # a terminal interrupts all
        with suppress(ProcessLookupError):
            os.kill(pid, stop)
    program.communicate(timeout=60)
    deadline = time.time() + 20
    while any(map(is_alive, workers)) and time.time() < deadline:
        time.sleep(0.05)
    assert not any(map(is_alive, workers))


def test_a_job_that_fails_leaves_the_others_alone(tmp_path):
    """Its traceback is shown, the others are done, and the end names it."""
    fails = "def work(name, i):\n    if i == 0:\n        raise ValueError('the first')\n"
    work = fails + "    Path(sys.argv[1], name).touch()"
    program = start_workers(tmp_path, work, [(f"job{i}", i) for i in range(4)])
    said = program.communicate(timeout=240)[1]
    assert sorted(file.name for file in tmp_path.glob("job*")) == ["job1", "job2", "job3"]
    assert program.returncode == 1
    assert said.splitlines()[-1] == "not done: job0 0"
    assert "ValueError: the first" in said
    assert "line 5, in work" in said


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
