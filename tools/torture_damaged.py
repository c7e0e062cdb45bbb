"""Every file that the library reads, cut off and with single bits turned over.

A reader keeps its promise if it says which file is wrong, or reads the same as before: never another value without a
word. It may take little memory and little time whatever the file says, and no file may make it import anything.
"""

import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import torch
import zarr
from repository import ROOT
from torture_killed import BUDGET, CONTEXT, TRAINING, done_once, scratch, untimed
from trials import Trial, limit_memory

import pnp_tutorial.__main__ as command_line
import pnp_tutorial.bank as bank
import pnp_tutorial.match_files as match_files
from pnp_tutorial.bank import load_bank, save_bank, shipped
from pnp_tutorial.dataset import SPLITS, describe, load, read_config
from pnp_tutorial.encoder import load_encoder
from pnp_tutorial.runtime import as_stored, read_results, read_tensors, tensor_file
from pnp_tutorial.training import fit

N_CUTS, N_FLIPS = 10, 100
LIMIT_S = 60
MEMORY = 2**30  # bytes that a reader may take, beyond those that the program has


def _values(value: Any) -> Any:
    """What can be compared."""
    if hasattr(value, "_asdict"):
        return {name: _values(each) for name, each in value._asdict().items()}
    if hasattr(value, "__dataclass_fields__"):
        return as_stored(value)
    return untimed(value)


def read_store(folder: Path) -> Any:
    path = folder / "data.zarr"
    found = [_values(load(path, split)) for split in SPLITS]
    said = describe(path)
    said["arrays"] = {name: {**each, "bytes_on_disk": None} for name, each in said["arrays"].items()}
    return found, _values(read_config(path)), said | {"path": None}


def read_checkpoint(folder: Path) -> Any:
    return untimed(fit(_run(folder), progress=False).to_dict("list")), _encoder(folder / "run/encoder.safetensors")


def _run(folder: Path) -> Any:
    return replace(TRAINING, data=str(folder / "data.zarr"), output_folder=str(folder / "run"))


def _encoder(path: Path) -> Any:
    model = load_encoder(path)
    return untimed(model.encoder.state_dict()), _values(model.config), untimed(model.metadata), model.known


def read_encoder(folder: Path) -> Any:
    return _encoder(folder / "run/encoder.safetensors")


def read_bank(folder: Path) -> Any:
    return _values(load_bank(folder / "bank.safetensors"))


def read_shipped(folder: Path) -> Any:
    bank.WEIGHTS = folder / "weights"
    shipped.cache_clear()
    try:
        return shipped("bank.safetensors").read_bytes()
    finally:
        bank.WEIGHTS = Path(bank.__file__).parent / "weights"
        shipped.cache_clear()


def read_match(folder: Path) -> Any:
    def refuse(path: Path, *rest: Any, **named: Any) -> Any:
        raise ValueError(f"{path} is matched again")

    match, match_files.match = match_files.match, refuse  # type: ignore[assignment]
    try:
        sounds = sorted((folder / "sounds").iterdir())[:1]
        encoder = str(folder / "encoder.safetensors")
        (row,) = match_files.match_files(sounds, folder / "out", encoder, budget=BUDGET, progress=False)
    finally:
        match_files.match = match
    if row["error"]:
        raise ValueError(row["error"])
    return {name: value for name, value in row.items() if name != "file"}


def read_some_results(folder: Path) -> Any:
    return {path.name: read_results(path) for path in folder.glob("results/*")}


def read_yaml(folder: Path) -> Any:
    return command_line._from_file("dataset", str(folder / "c.yaml"))


def _data(folder: Path) -> None:
    shutil.copytree(done_once("data") / "data.zarr", folder / "data.zarr")


def _training(folder: Path) -> None:
    _data(folder)
    shutil.copytree(done_once("training") / "run", folder / "run")


def _bank(folder: Path) -> None:
    save_bank(done_once("data") / "data.zarr", folder / "bank.safetensors")


def _shipped(folder: Path) -> None:
    """With a bank that takes less time to sum."""
    (folder / "weights").mkdir()
    content = tensor_file({"nu": torch.zeros(3, 5)}, {})
    (folder / "weights/bank.safetensors").write_bytes(content)
    sums = f"{sha256(content).hexdigest()}  bank.safetensors\n"
    (folder / "weights/SHA256SUMS").write_text(sums, encoding="utf-8")


def _match(folder: Path) -> None:
    for name in ("sounds", "out"):
        shutil.copytree(done_once("match") / name, folder / name)
    shutil.copy(done_once("match") / "encoder.safetensors", folder)


def _results(folder: Path) -> None:
    """Of a study, on one line, and of a benchmark, on many."""
    (folder / "results").mkdir()
    for name in ("recordings/kick_1.json", "metric_cost.json"):
        shutil.copy(ROOT / "pnp_tutorial/results" / name, folder / "results")


def _yaml(folder: Path) -> None:
    text = "data: data/x.zarr\nn_sounds: 512\nn_samples: 2048\nJ: 6\nT: 64\nmetric: true\nseed: 3\n"
    (folder / "c.yaml").write_text(text, encoding="utf-8")


OUTCOMES = ("named", "the same", "another value")


class Reader(NamedTuple):
    """Files of a folder, one of which is damaged at a time, and what reads them."""

    prepare: Callable[[Path], None]
    files: str  # as `Path.glob` has them
    read: Callable[[Path], Any]
    name: str  # that must be in the message
    kept: tuple[str, ...] = ("named", "the same")  # outcomes that keep the promise


READERS = {
    "chunks": Reader(_data, "data.zarr/*/c/**/*", read_store, "data.zarr"),
    "attributes": Reader(_data, "data.zarr/**/zarr.json", read_store, "data.zarr"),
    "checkpoint": Reader(_training, "run/checkpoint.pt", read_checkpoint, "run"),
    "encoder": Reader(_training, "run/encoder.safetensors", read_encoder, "encoder.safetensors"),
    "bank": Reader(_bank, "bank.safetensors", read_bank, "bank.safetensors"),
    "shipped": Reader(_shipped, "weights/*", read_shipped, "weights"),
    "match": Reader(_match, "out/0_matched.*", read_match, "sounds/0.wav"),
    "results": Reader(_results, "results/*", read_some_results, "results"),
    "yaml": Reader(_yaml, "c.yaml", read_yaml, "c.yaml", OUTCOMES),  # nothing in it can tell
}


@contextmanager
def bounded() -> Any:
    """Little time and memory for what is read."""

    def late(*rest: Any) -> None:
        raise TimeoutError(f"more than {LIMIT_S} s")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(LIMIT_S)
    before = limit_memory(MEMORY)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.alarm(0)


def cut(content: bytes, how: random.Random) -> bytes:
    return content[: how.randrange(len(content))]


def flip(content: bytes, how: random.Random) -> bytes:
    changed = bytearray(content)
    changed[how.randrange(len(content))] ^= 1 << how.randrange(8)
    return bytes(changed)


def outcome(reader: Reader, folder: Path, expected: Any) -> str:
    """ "named", "the same", or what else reading has come to."""
    begun = time.monotonic()
    try:
        with bounded():
            value = reader.read(folder)
    except (ValueError, OSError) as error:
        found = "named" if reader.name in str(error) else f"nameless: {type(error).__name__}: {error}"
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
    else:
        found = "the same" if value == expected else "another value"
    seconds = time.monotonic() - begun
    return f"{seconds:.0f} s: {found}" if seconds >= LIMIT_S else found  # readers may name a file for the alarm, too


def new_folder() -> Path:
    return Path(tempfile.mkdtemp(dir=scratch()))


def put_back(folder: Path, intact: dict[Path, bytes]) -> None:
    """The files of a folder as they were: readers may write, too."""
    for path, content in intact.items():
        if not path.exists() or path.read_bytes() != content:
            path.write_bytes(content)


def _damaged(reader: Reader, seed: int, folder: Path, answer: Path) -> None:
    torch.set_num_threads(1)
    how, counts, broken, slowest = random.Random(seed), Counter[str](), [], 0.0
    expected = reader.read(folder)
    intact = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    paths = sorted(path for path in folder.glob(reader.files) if path.is_file())
    for damage in [cut] * N_CUTS + [flip] * N_FLIPS:
        path = how.choice(paths)
        path.write_bytes(damage(intact[path], how))
        begun = time.monotonic()
        found = outcome(reader, folder, expected)
        slowest = max(slowest, time.monotonic() - begun)
        counts[found if found in OUTCOMES else "anything else"] += 1
        if found not in reader.kept:
            broken.append(f"{damage.__name__}, {path.relative_to(folder)}: {found[:300]}")
        put_back(folder, intact)
    figures = {"trials": counts.total(), "kept": counts.total() - len(broken), "outcomes": counts}
    answer.write_text(json.dumps({**figures, "slowest_s": round(slowest, 2), "broken": broken[:20]}), encoding="utf-8")


def in_a_process(work: Callable[..., None], *arguments: Any) -> dict[str, Any]:
    """What work writes to a file, whose path is its last argument."""
    answer = new_folder() / "answer.json"
    process = CONTEXT.Process(target=work, args=(*arguments, answer))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{work.__name__} has ended with status {process.exitcode}")
    return json.loads(answer.read_text(encoding="utf-8"))


def damaged(name: str, seed: int = 0) -> dict[str, Any]:
    """Figures of a kind of file: ten times cut off, a hundred times a bit turned over."""
    folder = new_folder()
    READERS[name].prepare(folder)
    return in_a_process(_damaged, READERS[name], seed, folder)


# What a file may say instead: of any type, huge, negative, not a number, names of things to import.
EVIL = [None, True, -1, 0, 2**31, 2**62, 10**30, -0.5, 1e308, float("nan"), "", "8", "os:system", "evil:OBJECT"]
EVIL += ["evil.py:OBJECT", "../../evil", [], [1], {}, {"name": "evil:OBJECT"}, "x" * 10**6, [[]] * 10**5]


def _places(document: Any) -> list[tuple]:
    """Every value of a document, by the keys that lead there."""
    if not isinstance(document, dict | list):
        return []
    items = list(document.items() if isinstance(document, dict) else enumerate(document))
    return [(key, *rest) for key, value in items for rest in [(), *_places(value)]]


def _with(document: Any, place: tuple, value: Any) -> Any:
    copy = json.loads(json.dumps(document))
    at = copy
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    return copy


def _crafted(name: str, n: int, seed: int, folder: Path, answer: Path) -> None:
    torch.set_num_threads(1)
    reader, how, counts, broken = READERS[name], random.Random(seed), Counter[str](), []
    reader.read(folder)
    os.chdir(folder)
    Path("evil.py").write_text("open('executed', 'w')", encoding="utf-8")
    path = folder / reader.files
    if name == "attributes":
        store = zarr.open_group(folder / "data.zarr", mode="r+")
        store.attrs.pop("seal")
        document, tensors = dict(store.attrs), {}
    else:
        document, tensors = read_tensors(path, "a file")
    for _ in range(n):
        place, value = how.choice(_places(document)), how.choice(EVIL)
        if name == "attributes":
            store.attrs.put(_with(document, place, value))
        else:
            path.write_bytes(tensor_file(tensors, _with(document, place, value)))
        with imports() as imported:
            found = outcome(reader, folder, None)
        found = "imported something" if imported or Path("executed").exists() else found
        counts["taken" if found == "another value" else found if found in OUTCOMES else "anything else"] += 1
        if found not in OUTCOMES:
            broken.append(f"{place} = {str(value)[:50]!r}: {found[:300]}")
    figures = {"trials": counts.total(), "kept": counts.total() - len(broken), "outcomes": counts}
    answer.write_text(json.dumps({**figures, "broken": broken[:20]}), encoding="utf-8")


@contextmanager
def imports() -> Any:
    """The modules that are imported and are none of the library and what it stands on."""
    imported: list[str] = []

    def find(name: str, *rest: Any) -> None:
        if name.partition(".")[0] in ("evil", "os:system"):
            imported.append(name)

    spy = type("Spy", (), {"find_spec": staticmethod(find)})
    sys.meta_path.insert(0, spy)  # type: ignore[arg-type]
    try:
        yield imported
    finally:
        sys.meta_path.remove(spy)  # type: ignore[arg-type]


def crafted(n: int = 100, seed: int = 0) -> dict[str, Any]:
    """Headers of encoders, banks and stores in which somebody has put something else, with a seal that is right."""
    figures: dict[str, Any] = {"trials": 0, "kept": 0}
    for name in ("encoder", "bank", "attributes"):
        folder = new_folder()
        READERS[name].prepare(folder)
        figures[name] = in_a_process(_crafted, name, n, seed, folder)
        figures |= {key: figures[key] + figures[name][key] for key in ("trials", "kept")}
    return figures


HOW = (
    f"{N_CUTS} times cut off at a random place, {N_FLIPS} times with a random bit turned over: the file is named, or "
    f"the same is read, within {LIMIT_S} s and 1 GB"
)
WHAT = {
    "chunks": "A damaged chunk of a data set is noticed",
    "attributes": "What a data set says of itself and of its arrays is noticed when it is damaged",
    "checkpoint": "A damaged checkpoint is noticed",
    "encoder": "A damaged encoder is noticed",
    "bank": "A damaged bank is noticed",
    "shipped": "Damage to what ships with the package is noticed",
    "match": "A damaged match is made again",
    "results": "A damaged file of results, of those that ship, is noticed",
    "yaml": "A damaged file of options is named, or is another file of options",
}
MENDED = {
    "attributes": "Turned bits in its configuration passed: a store now keeps a seal (SHA-256) of all it says.",
    "checkpoint": "torch compares no checksums when it loads: now they are compared before.",
    "encoder": "Safetensors has no checksums: a seal in the header now covers header and tensors.",
    "bank": "As the encoder.",
    "match": "Digits of the JSON and halves of the sound passed: a seal in the JSON now covers both.",
    "results": "Digits that were another digit passed: a seal in each file now covers what it says.",
    "yaml": "Messages of the decoder and of the parser did not name the file.",
}
TRIALS = {name: Trial(WHAT[name], HOW, partial(damaged, name), MENDED.get(name, "")) for name in READERS}
TRIALS["crafted"] = Trial(
    "A header with a wrong value makes the library neither import nor take gigabytes, in as many as were tried",
    "a hundred times each in encoder, bank and store, a random value of the header is replaced by another: of another "
    "type, huge, negative, a name of something to import; with a seal that is right",
    crafted,
    "A header could ask for a network of any number of outputs, and for values of any type.",
)
