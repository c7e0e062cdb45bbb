"""Sound files, files of options and command lines that are rubbish: random changes of good ones.

    python tools/torture_rubbish.py --minutes 60    # of processor time, after what was done before

A reader keeps its promise if it takes what it is given, or says in one line what is wrong with it: without a traceback,
within `LIMIT_S` seconds and 1 GB, and without a word of another library on standard error, but of the decoder of MP3.
What broke a promise is kept in tests/data/rubbish, and tests/test_rubbish.py reads it ever after.
"""

import argparse
import io
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, redirect_stdout
from dataclasses import fields, replace
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
import torch
from repository import ROOT
from torture_killed import CONTEXT, scratch
from trials import RESULTS, Trial, do, limit_memory

import pnp_tutorial.__main__ as command_line
from pnp_tutorial.dataset import check as check_data
from pnp_tutorial.drum import DRUM
from pnp_tutorial.recording import load_recording
from pnp_tutorial.runtime import read_results
from pnp_tutorial.training import check as check_training

CORPUS = ROOT / "tests/data/rubbish"
BATCH = 1000  # inputs to a process, which takes a second to start
MINUTES = 5.0  # of processor time, of each kind, if a kind has no figures yet
LIMIT_S = 20
MEMORY = 2**30  # bytes that a reader may take, beyond those that the program has
KEPT = 3  # files of one fault
MPEG = (
    "[src/libmpg123/",
    "Note: ",
    "Warning: ",
)  # what the decoder says of a damaged MP3 file, and nothing can silence
SHORT = replace(DRUM, n_samples=2048)

NUMBERS = [0, 1, 2, 3, 127, 128, 255, 256, 2**15 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1]
WORDS = ["", "0", "-1", "1", "8", "1e999", "-inf", "nan", ".nan", "0x10", "1_000", "10" * 50, "null", "~", "true", "no"]
WORDS += ["[]", "{}", "[[[", "]", "{a: b}", "- ", ": ", "? ", "| ", "> ", "# ", "&a ", "*a", "<<: ", "!!binary ", "%s"]
WORDS += ["!!python/object/apply:os.system [echo]", "!!python/name:os.system", "!!set {a}", "!!float x", "2024-99-99"]
WORDS += [
    "'",
    '"',
    "\\",
    "\0",
    "\t",
    "\r\n",
    "\n",
    "\u2028",
    "\ufeff",
    "\x85",
    "\x1b[2J",
    "é",
    "𝔘",
    "٣",
    "½",
    "a" * 5000,
]
WORDS += [
    "a:b",
    "nothing:OBJECT",
    "nothing.py:OBJECT",
    ":",
    "::",
    ".",
    "/",
    "//",
    "/dev/null",
    "/proc/self/mem",
    "$HOME",
]
WORDS += [
    "drum",
    "arpeggiator",
    "jtfs",
    "mss",
    "cpu",
    "cuda",
    "mps",
    "meta",
    "../..",
    "--",
    "-",
    "=",
    "@x",
    "*",
    "a" * 5000,
]


def change(content: bytes, how: random.Random, other: bytes, words: list[bytes]) -> bytes:
    """One random change, more often near the beginning, where headers are."""
    n = len(content)
    i = how.randrange(min(n, 200) if how.random() < 0.6 else n) if n else 0
    j = min(n, i + how.choice([1, 2, 4, 8, 64, 4096]))
    size = how.choice([1, 2, 4, 8])
    number = (how.choice(NUMBERS) % 256**size).to_bytes(size, how.choice(["little", "big"]))
    k = how.randrange(len(other)) if other else 0
    bit = bytes([content[i] ^ 1 << how.randrange(8)]) if n else b""
    changes = [content[:i] + bit + content[i + 1 :], content[:i] + number + content[i + size :], content[:i]]
    changes += [content[:i] + content[j:], content[:j] + content[i:], content[:i] + how.randbytes(j - i) + content[j:]]
    changes += [content[:i] + how.choice(words) + content[i:], content[:i] + other[k:]]
    return how.choice(changes)


def rubbish(seeds: list[bytes], how: random.Random, words: list[bytes]) -> bytes:
    content = how.choice(seeds)
    for _ in range(how.choice([1, 1, 2, 3, 6])):
        content = change(content, how, how.choice(seeds), words)
    return content[: 2**20]


@cache
def sounds() -> list[bytes]:
    """A drum in every format that soundfile writes, of one channel and of two."""
    with tempfile.TemporaryDirectory() as folder, chdir(folder):  # where SD2 leaves a file, its resource fork
        return _sounds()


def _sounds() -> list[bytes]:
    x = np.concatenate([np.zeros(50), SHORT(SHORT.sample_uniform(1)[0]).numpy()])
    found = []
    for kind in soundfile.available_formats():
        for subtype in soundfile.available_subtypes(kind):
            for channels in (1, 2):
                file = io.BytesIO()
                try:
                    soundfile.write(file, np.stack([x] * channels, 1), 22050, subtype, format=kind)
                except (soundfile.SoundFileError, ValueError, TypeError):  # not each takes both, or this rate
                    continue
                found.append(file.getvalue())
    return found


def read_sound(content: bytes, folder: Path) -> str:
    path = folder / "rubbish.wav"
    path.write_bytes(content)
    try:
        recording = load_recording(path, SHORT)
    except ValueError as error:
        return "" if str(path) in str(error) and "\n" not in str(error) else f"says {str(error)!r}"
    x = recording.x
    good = x.shape == (SHORT.n_samples,) and bool(x.isfinite().all()) and abs(float(x.abs().max()) - 1) < 1e-9
    return "" if good else f"reads {tuple(x.shape)}, peak {float(x.abs().max())}"


@cache
def options() -> list[bytes]:
    files = [path.read_bytes() for path in sorted((ROOT / "book/parameters").glob("*.yaml"))]
    return [*files, b"known: &a [x, y]\nn_sounds: [*a, *a]\n", b'{"data": "x", "J": 6, "metric": false}']


def read_options(content: bytes, folder: Path) -> str:
    path = folder / "rubbish.yaml"
    path.write_bytes(content)
    try:
        found = command_line._from_file("dataset", str(path))
    except ValueError as error:
        return "" if str(path) in str(error) else f"says {str(error)!r}"
    except OSError as error:
        return "" if str(path) in str(error) else f"says {str(error)!r}"
    return "" if all(isinstance(each, str) and each.startswith("--") for each in found) else f"reads {found}"


def commands() -> list[bytes]:
    """One argument a line."""
    lines = []
    for name, (config, _) in command_line.STAGES.items():
        given = [f"--{field.name}={field.default}" for field in fields(config)]
        lines += ["\n".join([name, *given]), "\n".join([name, *(part for each in given for part in each.split("="))])]
    return [
        line.encode() for line in [*lines, "--version", "dataset\n--help", "dataset\n--info", "match\nx\n--config=c"]
    ]


def _check_only() -> None:
    """What follows the reading of a command line is left out, but for what refuses it."""
    command_line.propose = lambda config: ""  # type: ignore[assignment]
    command_line.build = lambda config: check_data(config) or Path(config.data)  # type: ignore[assignment,func-returns-value]

    def refuse(config: Any) -> Any:
        check_training(config)
        raise ValueError("checked")

    command_line.fit = refuse  # type: ignore[assignment]


def read_command(content: bytes, folder: Path) -> str:
    _check_only()
    argv = content.decode("utf-8", "surrogateescape").split("\n")
    before = set(folder.iterdir())
    with redirect_stdout(io.StringIO()):
        error, sys.stderr = sys.stderr, io.StringIO()
        try:
            status = command_line.main(argv)
        except SystemExit as end:  # --help, --version
            status = 0 if not end.code else 1
        finally:
            said, sys.stderr = sys.stderr.getvalue(), error  # type: ignore[attr-defined]
    if set(folder.iterdir()) != before:
        return "leaves a file"
    if status not in (0, 2):
        return f"status {status}, {said[-300:]!r}"
    lines = said.split("\n")
    good = not said if status == 0 else len(lines) == 2 and not lines[1] and lines[0].startswith("pnp")
    return "" if good else f"status {status}, says {said[-300:]!r}"


class Kind(NamedTuple):
    """Seeds, what makes rubbish of them, and what reads it: "" or what is wrong."""

    seeds: Callable[[], list[bytes]]
    read: Callable[[bytes, Path], str]
    words: list[bytes]


TEXT = [word.encode() for word in WORDS]
KINDS = {
    "sounds": Kind(sounds, read_sound, [b"\0" * 16, b"\xff" * 16, b"data", b"fmt ", b"LIST", b"OggS", b"fLaC", b"ID3"]),
    "options": Kind(options, read_options, TEXT),
    "commands": Kind(commands, read_command, [*TEXT, *(b"\n" + word for word in TEXT), b"\n--config=c.yaml\n"]),
}


@contextmanager
def watched(said: int) -> Iterator[None]:
    """In little memory; standard error, that of C, too, goes to a file, and standard output nowhere."""
    here, output, error, nowhere = os.getcwd(), os.dup(1), os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(said, 2)
    before = limit_memory(MEMORY)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        os.dup2(output, 1)
        os.dup2(error, 2)
        for descriptor in (output, error, nowhere):
            os.close(descriptor)
        os.chdir(here)


def fault_of(kind: Kind, content: bytes, folder: Path, said: int) -> str:
    """What is wrong with how rubbish is read; a hang ends the process."""
    begun, before = time.monotonic(), os.fstat(said).st_size
    signal.alarm(LIMIT_S)
    try:
        fault = kind.read(content, folder)
    except Exception as error:
        fault = f"{type(error).__name__}: {error}"
    signal.alarm(0)
    words = os.pread(said, os.fstat(said).st_size - before, before).decode(errors="replace")
    if not fault and any(line.strip() and not line.startswith(MPEG) for line in words.split("\n")):
        fault = f"on standard error: {words[:300]!r}"
    seconds = time.monotonic() - begun
    return fault or (f"{seconds:.0f} s" if seconds > LIMIT_S / 2 else "")


def inputs(name: str, batch: int | None) -> Iterator[bytes]:
    """BATCH inputs, the same for the same number; for None, those that once broke the promise."""
    if batch is None:
        return (file.read_bytes() for file in sorted(CORPUS.glob(f"{name}-*")))
    kind, how = KINDS[name], random.Random(f"{name} {batch}")
    seeds = kind.seeds()
    return (rubbish(seeds, how, kind.words) for _ in range(BATCH))


def _batch(name: str, batch: int | None, folder: Path, answer: Path) -> None:
    torch.set_num_threads(1)
    kind, contents, faults = KINDS[name], inputs(name, batch), []
    work = folder / "work"
    work.mkdir()
    os.chdir(work)
    said = os.open(folder / "said", os.O_RDWR | os.O_CREAT)
    with watched(said):
        for content in contents:
            (folder / "now").write_bytes(content)  # if this process dies of it
            if fault := fault_of(kind, content, work, said):
                faults.append((fault, content.hex()))
    seconds = time.process_time()
    answer.write_text(json.dumps({"faults": faults, "seconds": seconds}), encoding="utf-8")


def one_batch(name: str, batch: int | None) -> tuple[list[tuple[str, bytes]], float]:
    """Of `inputs`, what broke a promise and why, and seconds of processor time: 0 if the process died of the last."""
    folder = Path(tempfile.mkdtemp(dir=scratch()))
    answer = folder / "answer.json"
    process = CONTEXT.Process(target=_batch, args=(name, batch, folder, answer))
    process.start()
    process.join()
    if process.exitcode:
        return [(f"the process ends with {process.exitcode}", (folder / "now").read_bytes())], 0.0
    found = json.loads(answer.read_text(encoding="utf-8"))
    return [(fault, bytes.fromhex(content)) for fault, content in found["faults"]], found["seconds"]


def read_rubbish(name: str, minutes: float) -> dict[str, Any]:
    """Figures of a kind, with those of earlier calls, after so many minutes of processor time more.

    What broke the promise in earlier calls is read again first, and counts as kept if it all has been mended.
    """
    path = RESULTS / f"rubbish-{name}.json"
    before = read_results(path) if path.exists() else {}
    figures = {key: before.get(key, 0) for key in ("trials", "kept", "since_mended", "batches", "cpu_minutes")}
    broken, spent = Counter(before.get("broken", {})), 0.0
    if broken and not one_batch(name, None)[0]:
        figures["kept"] += broken.total()
        figures["since_mended"] += broken.total()
        broken.clear()
    while spent < 60 * minutes:
        begun = time.monotonic()
        faults, seconds = one_batch(name, figures["batches"])
        spent += seconds or time.monotonic() - begun
        n_read = BATCH if seconds else 1  # of a batch in which the process died, that of which it did
        figures["batches"] += 1
        figures["trials"] += n_read
        figures["kept"] += n_read - len(faults)
        for fault, content in faults:
            broken[fault[:60]] += 1
            if broken[fault[:60]] <= KEPT:
                CORPUS.mkdir(parents=True, exist_ok=True)
                (CORPUS / f"{name}-{sha256(content).hexdigest()[:12]}").write_bytes(content)
    figures["cpu_minutes"] = round(figures["cpu_minutes"] + spent / 60, 1)
    return figures | {"broken": dict(broken.most_common(20))}


TRIALS = {
    "sounds": Trial(
        "A file that is no sound, or a damaged one, is read as a sound or named in one line",
        "drums in every format that soundfile writes, with one to six random changes each: bits, numbers, parts that "
        f"are left out, doubled or mixed; within {LIMIT_S} s and 1 GB, and nothing else on standard error",
        partial(read_rubbish, "sounds", MINUTES),
        "A header that asks for a wrong place in the file made Python print tracebacks; absurdly loud files gave NaN; "
        "of some with a wrong header, silence was read for hours.",
    ),
    "options": Trial(
        "A file that is no file of options is named",
        "the parameter files of the book, changed in the same way and by what YAML may hold",
        partial(read_rubbish, "options", MINUTES),
        "A few lines of aliases could stand for more than memory holds; an empty number with a tag was a traceback.",
    ),
    "commands": Trial(
        "A command line that is rubbish ends in one line",
        "the options of all commands, changed in the same way, up to where work would begin: status 0, or status 2 and "
        "one line",
        partial(read_rubbish, "commands", MINUTES),
        "Options that were cut short were guessed, with a warning of another library.",
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", help=f"of {', '.join(KINDS)}; all, if none is given")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="of processor time, of each kind")
    arguments = parser.parse_args()
    if unknown := set(arguments.kinds) - set(KINDS):
        parser.error(f"expected kinds of {', '.join(KINDS)}, got {', '.join(sorted(unknown))}")
    broken = 0
    for name in arguments.kinds or KINDS:
        trial = TRIALS[name]._replace(run=partial(read_rubbish, name, arguments.minutes))
        row = do(f"rubbish-{name}", "rubbish", name, trial)
        print(f"{name}: {row['kept']} of {row['trials']} kept", flush=True)
        broken += row["kept"] < row["trials"]
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
