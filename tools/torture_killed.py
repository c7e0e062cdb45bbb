"""Work that is killed at random moments and begun again, beside the same work done in one go: the same to the bit.

A job is a whole piece of work, done in a folder. Each of its processes comes from a server that has imported everything
and computed nothing, so that a job takes seconds. Half of the kills come at a random time; the others inside a write:
a random one of the files that a job writes gets half of its bytes, and the process is gone. Only kills that leave work
undone are counted.
"""

import atexit
import io
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
import torch
from repository import ROOT
from rows import Study
from safetensors.torch import load_file
from trials import Trial

from pnp_tutorial import training
from pnp_tutorial.dataset import DatasetConfig, build
from pnp_tutorial.drum import DRUM
from pnp_tutorial.match_files import match_files
from pnp_tutorial.matching import Budget
from pnp_tutorial.runtime import connect, read_results
from pnp_tutorial.training import TrainingConfig, fit

N_KILLS = 20
GONE_S = 5.0  # after which no worker of what was killed is left
PATIENCE_S = 600.0  # that a job may take
# A server of processes inherits the environment, but not this program's path to modules (Python before 3.12.4).
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "tools"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torture_killed", "timm"])  # which an encoder imports when it is made

DATA = DatasetConfig(data="data.zarr", n_sounds=20, n_samples=2048, J=6, T=64, chunk_size=1, device="cpu")
TRAINING = TrainingConfig(
    data="data.zarr", output_folder="run", backbone="test_efficientnet", n_epochs=6, batch_size=8, device="cpu"
)
BUDGET = Budget(n_sounds=5, n_generations=2, n_runs=1, n_iterations=1)


class SmallStudy(Study):
    """A study whose results lie in the current folder."""

    def result(self, name: str) -> Path:
        return Path(f"{name}.json")


def _prepare(path: str) -> None:
    build(replace(DATA, data=path), progress=False)


STUDY = SmallStudy("small", "study.yaml", _prepare, sounds=DATA)


def build_data() -> None:
    build(DATA, progress=False, patience_s=20)


def train() -> None:
    training.connect = partial(connect, patience_s=30)  # type: ignore[assignment]  # with one that is dead
    fit(TRAINING, progress=False)


def match() -> None:
    for row in match_files(sorted(Path("sounds").iterdir()), "out", "encoder.safetensors", budget=BUDGET):
        if row["error"]:
            raise ValueError(row["error"])


def study() -> None:
    """Four rows, by two workers."""
    torch.set_num_threads(2)
    STUDY.do_all({f"row-{i}": replace(TRAINING, output_folder=f"rows/{i}", seed=i, n_epochs=3) for i in range(4)})


def nothing(folder: Path) -> None:
    pass


def with_data(folder: Path) -> None:
    shutil.copytree(done_once("data") / "data.zarr", folder / "data.zarr")


def with_sounds(folder: Path) -> None:
    shutil.copy(done_once("training") / "run/encoder.safetensors", folder)
    (folder / "sounds").mkdir()
    short = replace(DRUM, n_samples=DATA.n_samples)
    for i, x in enumerate(short(DRUM.sample_uniform(3, seed=7)).numpy()):
        soundfile.write(folder / f"sounds/{i}.wav", np.concatenate([np.zeros(100), x]), 22050)


Results = dict[str, Any]  # by name: what can be compared


def files(folder: Path) -> Results:
    """All files of a folder that have their final names."""
    whole = (path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".partial", ".tmp"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in whole}


def of_data(folder: Path) -> Results:
    return files(folder / "data.zarr")


def of_matches(folder: Path) -> Results:
    return files(folder / "out")


def untimed(value: Any) -> Any:
    """Without what says how long something took."""
    if isinstance(value, dict):
        return {key: untimed(each) for key, each in value.items() if key not in ("seconds", "seconds_per_epoch")}
    if isinstance(value, torch.Tensor):
        return value.numpy().tobytes()
    return [untimed(each) for each in value] if isinstance(value, list | tuple) else value


def of_training(folder: Path) -> Results:
    found, run = {}, folder / "run"
    if (run / "checkpoint.pt").exists():
        found["checkpoint"] = untimed(torch.load(run / "checkpoint.pt", weights_only=True))
    if (run / "metrics.jsonl").exists():
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        found |= {f"epoch {i}": untimed(json.loads(line)) for i, line in enumerate(lines)}
    if (run / "results.json").exists():
        found["results"] = untimed(json.loads((run / "results.json").read_text(encoding="utf-8")))
    if (run / "encoder.safetensors").exists():
        found["encoder"] = untimed(load_file(run / "encoder.safetensors"))
    return found


def of_study(folder: Path) -> Results:
    return {path.name: untimed(read_results(path)) for path in folder.glob("row-*.json")}


class Job(NamedTuple):
    work: Callable[[], None]  # in the current folder
    prepare: Callable[[Path], None]  # puts into a folder what the work needs
    results: Callable[[Path], Results]


JOBS = {
    "data": Job(build_data, nothing, of_data),
    "training": Job(train, with_data, of_training),
    "match": Job(match, with_sounds, of_matches),
    "study": Job(study, with_data, of_study),
}


def count_writes(die_at: int | None) -> Callable[[], int]:
    """From now on files that are written are counted; with the one of number `die_at` half written, this process dies.

    Returns what tells their number.
    """
    open_file, number = io.open, itertools.count()

    def opened(file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
        stream = open_file(file, mode, *rest, **named)
        if mode == "wb" and next(number) == die_at:
            write = stream.write

            def half(content: Any) -> None:
                view = memoryview(content).cast("B")
                write(view[: len(view) // 2])
                stream.flush()
                os.kill(os.getpid(), signal.SIGKILL)

            stream.write = half
        return stream

    io.open = opened  # type: ignore[assignment]  # by which pathlib opens, and so zarr and all of this library
    return lambda: next(number)


def _run(name: str, folder: str, die_at: int | None, group: dict[str, str]) -> None:
    os.chdir(folder)
    os.environ.update(group)
    torch.set_num_threads(1)
    log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    n_writes = count_writes(die_at)
    JOBS[name].work()
    Path("n_writes").write_text(str(n_writes()), encoding="utf-8")


def start(name: str, folder: Path, die_at: int | None = None, group: dict[str, str] | None = None) -> BaseProcess:
    process = CONTEXT.Process(target=_run, args=(name, str(folder), die_at, group or {}))
    process.start()
    return process


def end(process: BaseProcess) -> int:
    """Exit status of a process, which is waited for: as the shell's negative number of a signal."""
    process.join(PATIENCE_S)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise RuntimeError(f"a job has not ended after {PATIENCE_S:g} s")
    return process.exitcode


@cache
def scratch() -> str:
    """A folder that is there until this process ends."""
    folder = tempfile.mkdtemp(prefix="torture-")
    os.chmod(folder, 0o755)  # also for users who own nothing
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def new_folder(name: str) -> Path:
    folder = Path(tempfile.mkdtemp(dir=scratch()))
    JOBS[name].prepare(folder)
    return folder


@cache
def warm_up() -> None:
    """Start the server, which takes longer than a job."""
    process = CONTEXT.Process(target=nothing, args=(Path(),))
    process.start()
    end(process)


@cache
def done_once(name: str, n_processes: int = 1) -> Path:
    """The folder in which a job was done in one go; in its file `seconds`, how long that took."""
    folder = new_folder(name)
    warm_up()
    begun = time.monotonic()
    statuses = [end(process) for process in [start(name, folder, group=g) for g in groups(n_processes)]]
    assert statuses == [0] * n_processes, (folder / "log").read_text(encoding="utf-8")
    (folder / "seconds").write_text(str(time.monotonic() - begun), encoding="utf-8")
    return folder


def groups(n_processes: int) -> list[dict[str, str]]:
    """The environments of processes of one group, as SLURM starts them; that of one that is alone is empty."""
    if n_processes == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    n = str(n_processes)
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": n, "LOCAL_WORLD_SIZE": n}
    shared |= {"TORCHELASTIC_RUN_ID": "none", "GROUP_RANK": "0"}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(n_processes)]


def workers_of(process: BaseProcess) -> set[int]:
    """Processes that a process has started, where the system tells."""
    try:
        return set(
            map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="utf-8").split())
        )
    except OSError:
        return set()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kill_once(name: str, folder: Path, how: random.Random, late: bool) -> set[int]:
    """Begin a job and kill it, if late in a write, or a study after its first row; returns the workers that it had."""
    whole = done_once(name)
    if late and name != "study":
        n_writes = int((whole / "n_writes").read_text(encoding="utf-8"))
        process = start(name, folder, die_at=how.randrange(n_writes))
        end(process)
        return set()
    process = start(name, folder)
    if late:
        while process.is_alive() and not JOBS[name].results(folder):
            time.sleep(0.02)
        time.sleep(how.uniform(0, 1))
    else:
        time.sleep(how.uniform(0, float((whole / "seconds").read_text(encoding="utf-8"))))
    workers = workers_of(process)
    process.kill()
    end(process)
    return workers


def left_after_seconds(workers: set[int]) -> set[int]:
    """Those that are still there after `GONE_S` seconds."""
    deadline = time.monotonic() + GONE_S
    while (left := {pid for pid in workers if alive(pid)}) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def killed(name: str, n: int = N_KILLS, seed: int = 0) -> dict[str, Any]:
    """Figures of n kills of a job that left work undone, each in a folder of its own, and of the job begun again."""
    how, results = random.Random(seed), JOBS[name].results
    expected = results(done_once(name))
    figures: dict[str, Any] = {"trials": 0, "kept": 0, "in_a_write": 0, "orphans": 0}
    there = []
    while figures["trials"] < n:
        folder, late = new_folder(name), bool(figures["trials"] % 2)
        workers = kill_once(name, folder, how, late)
        before = results(folder)
        if before == expected:  # it had been faster
            continue
        figures["trials"] += 1
        figures["in_a_write"] += late and name != "study"
        there.append(sum(expected.get(key) == value for key, value in before.items()) / len(expected))
        at_once = [start(name, folder)] if late else []  # beside what is left of it
        orphans = left_after_seconds(workers)
        figures["orphans"] += len(orphans)
        again = end(*at_once or [start(name, folder)]) == 0 and results(folder) == expected
        figures["kept"] += again and not orphans
        shutil.rmtree(folder)
    return figures | {"done_before_the_kill": sorted(round(share, 2) for share in there)}


def survived(name: str, n: int = N_KILLS, seed: int = 0) -> dict[str, Any]:
    """Figures of n pairs of processes that share a folder and know nothing of each other; one of each is killed."""
    how, results = random.Random(seed), JOBS[name].results
    whole = done_once(name)
    figures = {"trials": 0, "kept": 0}
    while figures["trials"] < n:
        folder = new_folder(name)
        pair = [start(name, folder) for _ in range(2)]
        time.sleep(how.uniform(0, float((whole / "seconds").read_text(encoding="utf-8"))))
        pair[0].kill()
        if end(pair[0]) == -signal.SIGKILL:
            figures["trials"] += 1
            figures["kept"] += end(pair[1]) == 0 and results(folder) == results(whole)
        else:
            end(pair[1])
        shutil.rmtree(folder)
    return figures


def bereaved(n: int = N_KILLS, seed: int = 0) -> dict[str, Any]:
    """Figures of n trainings by two processes, one of which is killed: the other ends, and both begin again."""
    how = random.Random(seed)
    whole = done_once("training", 2)
    figures = {"trials": 0, "kept": 0}
    while figures["trials"] < n:
        folder = new_folder("training")
        pair = [start("training", folder, group=group) for group in groups(2)]
        time.sleep(how.uniform(0, float((whole / "seconds").read_text(encoding="utf-8"))))
        lost = how.randrange(2)
        pair[lost].kill()
        if end(pair[lost]) == -signal.SIGKILL and end(pair[1 - lost]) != 0:
            figures["trials"] += 1
            again = [end(process) for process in [start("training", folder, group=group) for group in groups(2)]]
            figures["kept"] += again == [0, 0] and of_training(folder) == of_training(whole)
        else:
            end(pair[1 - lost])
        shutil.rmtree(folder)
    return figures


HOW = (
    "killed (SIGKILL) at a random moment or in the middle of a random write, only kills that leave work undone "
    "counted; begun again, and compared bit for bit with the same work done in one go"
)
TRIALS = {
    "data set": Trial("A data set that is killed goes on where it was", HOW, partial(killed, "data")),
    "training": Trial("A training that is killed ends with the same weights", HOW, partial(killed, "training")),
    "folder of matches": Trial(
        "A folder of matches that is killed goes on where it was", HOW, partial(killed, "match")
    ),
    "study": Trial(
        "A study that is killed takes its workers with it, and goes on where it was",
        "killed at a random moment, every other time after its first row, and then begun again at once; no worker is "
        "left after five seconds; compared as above",
        partial(killed, "study"),
        "Rows whose precision was left open were refused as made with another one; and a row that was left alone had "
        "all threads, and other numbers.",
    ),
    "data set, two processes": Trial(
        "Two commands may build one data set, and one of them be killed",
        "one of two is killed at a random moment; what the other leaves is compared bit for bit",
        partial(survived, "data"),
    ),
    "folder of matches, two processes": Trial(
        "Two commands may match one folder, and one of them be killed",
        "one of two is killed at a random moment; what the other leaves is compared bit for bit",
        partial(survived, "match"),
    ),
    "training, two processes": Trial(
        "Of two processes that train one encoder, one may be killed",
        "one of two (gloo) is killed; the other ends by itself; both begin again, and end as without the kill",
        bereaved,
    ),
}
