"""The command line where something is missing: room on the disk, the right to write, a home, memory, descriptors.

Every command is run in a process that has imported everything before it is starved. It keeps its promise if it ends
with status 2, says why in one line, leaves no file under its final name that differs from those of an undisturbed run,
and ends with the files of that run when it is called again with all it needs.
"""

import ctypes
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from repository import ROOT
from torture_killed import (
    BUDGET,
    CONTEXT,
    DATA,
    PATIENCE_S,
    TRAINING,
    Results,
    count_writes,
    done_once,
    files,
    nothing,
    of_data,
    of_matches,
    of_training,
    scratch,
    warm_up,
    with_data,
    with_sounds,
)
from trials import Trial, limit_memory

import pnp_tutorial.__main__ as command_line
from pnp_tutorial.match_files import match_files

# What stands before a command so that it cannot write to the package, nor to the Python that runs it (root can).
PLACES = f"for p in {ROOT} {sys.prefix} {sys.base_prefix}; do mount --bind $p $p && mount -o remount,bind,ro $p; done"
READ_ONLY = ["unshare", "-m", "sh", "-c", f'{PLACES}; exec "$@"', "sh"] if os.geteuid() == 0 else []
N = 5  # times that a command is starved
N_MEMORY = 10  # and of memory
DESCRIPTORS = 32  # up to so many more than are open, until a command works
GROWING = ("checkpoint", "matches.csv")  # that are whole before the work is


def _options(config: Any, *names: str) -> list[str]:
    return [f"--{name}={getattr(config, name)}" for name in names]


def with_both(folder: Path) -> None:
    with_data(folder)
    shutil.copy(done_once("training") / "run/encoder.safetensors", folder)


class Command(NamedTuple):
    """A command line, in a folder."""

    argv: list[str]
    prepare: Callable[[Path], None]
    results: Callable[[Path], Results]
    half: int  # number of a write in the middle


COMMANDS = {
    "dataset": Command(
        ["dataset", *_options(DATA, "data", "n_sounds", "n_samples", "J", "T", "chunk_size", "device")],
        nothing,
        of_data,
        40,
    ),
    "train": Command(
        ["train", *_options(TRAINING, "data", "output_folder", "backbone", "n_epochs", "batch_size", "device")],
        with_data,
        of_training,
        7,
    ),
    "evaluate": Command(
        "evaluate --data=data.zarr --encoder=encoder.safetensors --output_folder=evaluation --device=cpu".split(),
        with_both,
        lambda folder: files(folder / "evaluation"),
        1,
    ),
    "match": Command(
        "match sounds --encoder=encoder.safetensors --output_folder=out --device=cpu".split(),
        with_sounds,
        of_matches,
        2,
    ),
}


class End(NamedTuple):
    """How a command has ended."""

    status: int
    said: str

    @property
    def reason(self) -> str:
        """The last line, if that is one of ours and there is no other; progress bars are none."""
        lines = [line for line in self.said.split("\n") if line.strip() and "\r" not in line]
        return lines[-1] if lines and len(lines) == 1 and lines[0].startswith("pnp ") else ""


def _work(name: str, folder: str, starve: Callable[[], None] | None, pipe: Any) -> None:
    os.chdir(folder)
    torch.set_num_threads(1)
    for stream in (1, 2):
        os.dup2(pipe.fileno(), stream)
    sys.stdout, sys.stderr = (open(stream, "w", buffering=1, encoding="utf-8", closefd=False) for stream in (1, 2))
    command_line.match_files = partial(match_files, budget=BUDGET)  # type: ignore[assignment]
    if starve:
        starve()
    sys.exit(command_line.main(COMMANDS[name].argv))


def run(name: str, folder: Path, starve: Callable[[], None] | None = None, meanwhile: Any = None) -> End:
    """A command in a folder; `meanwhile` is called as it goes on."""
    ours, theirs = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_work, args=(name, str(folder), starve, theirs))
    process.start()
    theirs.close()
    watch = threading.Timer(PATIENCE_S, process.kill)
    watch.start()
    if meanwhile:
        meanwhile()
    said = b""
    while part := os.read(ours.fileno(), 2**16):
        said += part
    process.join()
    watch.cancel()
    ours.close()
    return End(process.exitcode or 0, said.decode(errors="replace"))


def new_folder(name: str) -> Path:
    folder = Path(tempfile.mkdtemp(dir=scratch()))
    folder.chmod(0o755)
    COMMANDS[name].prepare(folder)
    return folder


@cache
def undisturbed(name: str) -> tuple[Results, float]:
    """Results of a command that has all it needs, and how many seconds it takes."""
    folder = new_folder(name)
    warm_up()
    begun = time.monotonic()
    end = run(name, folder)
    assert end.status == 0, end.said
    return COMMANDS[name].results(folder), time.monotonic() - begun


def without_places(said: str) -> str:
    """What was said, with the last part only of every path of this machine."""
    return re.sub(r"(?<![\w.])/[^\s'\"]*/", "…/", said)


class Figures:
    """Of a trial: how many times each command was starved, and kept its promise."""

    def __init__(self) -> None:
        self.counts: dict[str, dict[str, int]] = {}
        self.broken: list[str] = []
        self.reasons: set[str] = set()

    def add(self, name: str, fault: str, reason: str = "") -> None:
        count = self.counts.setdefault(name, {"trials": 0, "kept": 0})
        count["trials"] += 1
        count["kept"] += not fault
        if fault:
            self.broken.append(f"{name}: {without_places(fault)}")
        if reason:
            self.reasons.add(without_places(reason)[:200])

    def sum(self) -> dict[str, Any]:
        whole = {key: sum(count[key] for count in self.counts.values()) for key in ("trials", "kept")}
        return whole | {"commands": self.counts, "broken": self.broken[:20], "reasons": sorted(self.reasons)[:10]}


def fault_of(name: str, folder: Path, end: End, words: tuple[str, ...]) -> str:
    """What is wrong with a command that was starved; empty, if it kept its promise. It is then called again."""
    command, (expected, _) = COMMANDS[name], undisturbed(name)
    if end.status != 2 or not end.reason:
        return f"status {end.status}, {end.said[-600:]!r}"
    if not any(word in end.reason for word in words):
        return f"says {end.reason!r}"
    there = command.results(folder)
    if half := [key for key, value in there.items() if expected.get(key) != value and key not in GROWING]:
        return f"left {half}"
    again = run(name, folder)
    if again.status or command.results(folder) != expected:
        return f"called again: status {again.status}, {again.said[-300:]!r}"
    return ""


def _limit(kind: int, value: int) -> None:
    resource.setrlimit(kind, (value, value))


def file_size(n: int = N, seed: int = 0) -> dict[str, Any]:
    """No file may grow beyond a limit, drawn below the size of the largest that a command writes."""
    how, figures = random.Random(seed), Figures()
    for name in COMMANDS:
        folder = new_folder(name)
        assert run(name, folder).status == 0
        empty = new_folder(name)
        given = {path.relative_to(empty) for path in empty.rglob("*")}
        made = [path for path in folder.rglob("*") if path.is_file() and path.relative_to(folder) not in given]
        largest = max(path.stat().st_size for path in made)
        for _ in range(n):
            folder = new_folder(name)
            end = run(name, folder, partial(_limit, resource.RLIMIT_FSIZE, how.randrange(1, largest)))
            figures.add(name, fault_of(name, folder, end, ("File too large",)), end.reason)
            shutil.rmtree(folder)
    return figures.sum()


@contextmanager
def small_disk(name: str) -> Any:
    """A folder on a disk of its own, in memory."""
    folder = Path(tempfile.mkdtemp(dir=scratch()))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m,mode=755", "tmpfs", folder], check=True)
    try:
        COMMANDS[name].prepare(folder)
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def _fill(folder: Path, after_s: float) -> None:
    time.sleep(after_s)
    with open(folder / "filler", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(2**12))
        except OSError:
            pass


def full_disk(n: int = N, seed: int = 0) -> dict[str, Any]:
    """A disk that is filled by somebody else at a random moment."""
    how, figures = random.Random(seed), Figures()
    for name in COMMANDS:
        _, seconds = undisturbed(name)
        while figures.counts.get(name, {"trials": 0})["trials"] < n:
            with small_disk(name) as folder:
                end = run(name, folder, meanwhile=partial(_fill, folder, how.uniform(0, seconds)))
                (folder / "filler").unlink()
                if end.status:
                    figures.add(name, fault_of(name, folder, end, ("No space left", "are free there")), end.reason)
    return figures.sum()


def obey_permissions() -> None:
    """Like any other user, also if this is root: without its capabilities (Linux)."""
    if os.geteuid() == 0:
        header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        if ctypes.CDLL(None, use_errno=True).capset(header, none):
            raise OSError(ctypes.get_errno(), "capset")


def read_only() -> dict[str, Any]:
    """The folder may not be written to, nor what a first call, killed half-way, has left in it."""
    figures = Figures()
    for name, command in COMMANDS.items():
        for begun in (False, True):
            folder = new_folder(name)
            if begun:
                run(name, folder, partial(count_writes, command.half))
            before = command.results(folder)
            places = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
            for place in places:
                place.chmod(0o555)
            end = run(name, folder, obey_permissions)
            for place in places:
                place.chmod(0o755)
            fault = "" if command.results(folder) == before else "something was written"
            figures.add(name, fault or fault_of(name, folder, end, ("Permission denied",)), end.reason)
            shutil.rmtree(folder)
    return figures.sum()


def _program(name: str, folder: Path, **options: Any) -> End:
    """A command as a user starts it."""
    done = subprocess.run(
        [*READ_ONLY, sys.executable, "-m", "pnp_tutorial", *COMMANDS[name].argv],
        cwd=folder,
        capture_output=True,
        timeout=600,
        **options,
    )
    return End(done.returncode, done.stderr.decode(errors="replace"))  # with each \r as it is: it tells a progress bar


def homeless() -> dict[str, Any]:
    """Without a home, and without the right to write to the package: nothing is missing."""
    figures = Figures()
    nowhere = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "TMPDIR", "MPLCONFIGDIR"), "/nonexistent")
    kept = {key: value for key, value in os.environ.items() if key not in nowhere}
    for name in COMMANDS:
        for environment in (kept, kept | nowhere):
            folder = new_folder(name)
            end = _program(name, folder, env=environment)
            extra = [line for line in end.said.split("\n") if line.strip() and "\r" not in line]
            figures.add(name, "" if end.status == 0 and not extra else f"status {end.status}, {end.said[-500:]!r}")
            shutil.rmtree(folder)
    return figures.sum()


def memory(n: int = N_MEMORY, seed: int = 0) -> dict[str, Any]:
    """So much memory more than what the program takes when it starts: a command works, or says that it lacks memory."""
    how, figures = random.Random(seed), Figures()
    enough = {}
    for name, command in COMMANDS.items():
        for _ in range(n):
            folder, megabytes = new_folder(name), round(2 ** how.uniform(0, 10))
            end = run(name, folder, partial(limit_memory, megabytes * 2**20))
            words = ("memory", "allocate", "thread")
            if end.status == 0:
                fault = "" if command.results(folder) == undisturbed(name)[0] else "another result"
                enough[name] = min(megabytes, enough.get(name, megabytes))
            else:
                fault = fault_of(name, folder, end, words)
            figures.add(name, f"{megabytes} MB: {fault}" if fault else "", end.reason)
            shutil.rmtree(folder)
    return figures.sum() | {"enough_megabytes": enough}


def _is_free(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return True
    return False


def _few_descriptors(more: int) -> None:
    """So many more can be opened: some below the highest one are free."""
    free = [descriptor for descriptor in range(256) if _is_free(descriptor)]
    _limit(resource.RLIMIT_NOFILE, free[more])


def descriptors(n: int = DESCRIPTORS) -> dict[str, Any]:
    """With every number more than are open, from none to what is enough, but at most n."""
    figures, enough = Figures(), {}
    for name, command in COMMANDS.items():
        for more in range(n + 1):
            folder = new_folder(name)
            end = run(name, folder, partial(_few_descriptors, more))
            if end.status == 0:
                fault = "" if command.results(folder) == undisturbed(name)[0] else "another result"
                enough[name] = more
            else:
                fault = fault_of(name, folder, end, ("Too many open files",))
            figures.add(name, f"{more} more: {fault}" if fault else "", end.reason)
            shutil.rmtree(folder)
            if name in enough:
                break
    return figures.sum() | {"enough": enough}


AND = (
    "status 2, one line that says why, no half a file under a final name, "
    "and the same command, called again, ends as undisturbed"
)
TRIALS = {
    "file size": Trial(
        "A file that may not grow costs no more than itself",
        f"data set, training, evaluation and matches, each under five random limits of a file's size: {AND}",
        file_size,
    ),
    "full disk": Trial(
        "A disk that fills up costs no work that is done",
        f"the four on a disk of 64 MB that somebody else fills at a random moment, five times each: {AND}",
        full_disk,
    ),
    "read-only": Trial(
        "A folder that may not be written to is named",
        f"the four in a read-only folder, new and half done: {AND}",
        read_only,
    ),
    "homeless": Trial(
        "Neither a home nor write access to the package is needed",
        "the four on a read-only package and Python, with HOME unset, or wrong with all its like: status 0, and "
        "nothing on standard error but progress",
        homeless,
    ),
    "memory": Trial(
        "Where memory ends, one line says so",
        f"the four, {N_MEMORY} times each, with 1 MB to 1 GB more than they take at their start: a right result, or "
        f"{AND}",
        memory,
        "Readers called a file damaged where memory or a thread could not be had: whoever believed it, deleted it. "
        "Three words for a lack of memory were not known, and a bar of progress was drawn after the line that says so.",
    ),
    "descriptors": Trial(
        "Where file descriptors end, one line says so",
        f"the four with every number more than they have at their start, from 0 to that with which they work: {AND}",
        descriptors,
        "What other libraries had half begun made Python print tracebacks besides that line.",
    ),
}
