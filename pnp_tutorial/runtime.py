"""What has nothing to do with sound: devices, processes, objects by name, whole files, configurations compared."""

import errno
import hashlib
import importlib.util
import json
import math
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from datetime import timedelta
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import numpy as np
import safetensors
import safetensors.torch
import torch

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from lightning_fabric import Fabric

PATIENCE_S = 600.0  # that processes wait for one another: more than a step takes

HEADER = "pnp_tutorial"  # key of our JSON in the header of a safetensors file

Config = TypeVar("Config", bound="DataclassInstance")


def select_device(name: str) -> torch.device:
    """The device of "cpu", "cuda" or "mps"; of "auto", the first of cuda, mps and cpu that is there.

    Raises ValueError if there is none such here.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind in available if available[kind]))
    if not available.get(name, False):
        here = ", ".join(kind for kind in available if available[kind])
        raise ValueError(f"device {name!r} is not available here: expected auto or one of {here}")
    return torch.device(name)


def float64_device(device: torch.device | str) -> torch.device:
    """Where numbers of `device` are computed in float64: there, or on the CPU if it has none, as mps."""
    return torch.device("cpu") if torch.device(device).type == "mps" else torch.device(device)


def in_float64(values: torch.Tensor) -> torch.Tensor:
    """Values in float64, on `float64_device`."""
    return values.to(float64_device(values.device)).to(torch.float64)


@contextmanager
def full_precision() -> Iterator[None]:
    """Context, or decorator, in which torch computes in the dtypes of its tensors, inside torch.autocast too.

    Backward passes of torch's own operations are their caller's: torch wants them outside of autocast.
    """
    with ExitStack() as stack:
        for kind in ("cpu", "cuda", "mps"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def check_whole(name: str, value: Any, low: int, high: float = math.inf, otherwise: str = "") -> int:
    """A value as an int; ValueError unless it is a whole number in [low, high]; `otherwise`: what else it may be."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not low <= value <= high:
        raise ValueError(f"{name} must be {otherwise}a whole number in [{low}, {high}], got {value!r}")
    return int(value)


def at_least_one(rows: torch.Tensor) -> torch.Tensor:
    """Rows (B, ...); for B = 0 one row of zeros, as FFTs refuse to take none: cut what comes of it to B rows."""
    return rows if len(rows) else torch.nn.functional.pad(rows, (0, 0) * (rows.ndim - 1) + (0, 1))


@contextmanager
def threads(n: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of n threads, in each of which torch computes in one; what has not begun at the end of it never will."""
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(n, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    finally:
        try:
            pool.shutdown(cancel_futures=True)
        finally:  # if that is interrupted, too
            torch.set_num_threads(before)  # of this thread it has not changed, but of those to come


def side_by_side(work: Callable[[torch.Tensor], torch.Tensor], parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Work on each part: on a CPU as many at once as torch has threads, each in one thread.

    Threads that share one small operation after the other spend much of their time waiting for one another. Where
    derivatives are recorded or transformed, which belongs to a thread, parts are worked on one after the other.
    """
    n = torch.get_num_threads()
    alone = torch.is_grad_enabled() or torch._C._are_functorch_transforms_active() or parts[0].device.type != "cpu"
    if alone or n == 1 or len(parts) == 1:
        return [work(part) for part in parts]

    def without_gradients(part: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return work(part)

    with threads(n) as pool:
        return list(pool.map(without_gradients, parts))


def connect(
    device: torch.device, precision: Literal["32-true", "bf16-mixed"] = "32-true", patience_s: float = PATIENCE_S
) -> "Fabric":
    """The processes that torchrun or SLURM's srun started, one a device; this one alone otherwise.

    One that waits for another, which may have died, gives up after `patience_s` seconds, with a RuntimeError; after
    about three times as long if it is the first that died, before they met, as torch tries to reach it again.
    Raises ValueError if SLURM was asked for processes in a way that Lightning does not support.
    """
    # Imported here: it takes a while, and drum, metric and all that is below the data set connect nothing.
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
    from lightning_fabric.strategies import DDPStrategy
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    devices, nodes = 1, 1
    if TorchElasticEnvironment.detect():
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    elif shutil.which("srun") and SLURMEnvironment.detect():
        nodes = int(os.environ["SLURM_NNODES"])
        devices = int(os.environ["SLURM_NTASKS"]) // nodes
    strategy = DDPStrategy(timeout=timedelta(seconds=patience_s)) if devices * nodes > 1 else "auto"
    kind: dict[str, Any] = {"accelerator": device.type, "strategy": strategy, "precision": precision}
    try:
        fabric = Fabric(devices=devices, num_nodes=nodes, **kind)
    except (
        RuntimeError,
        MisconfigurationException,
    ) as error:  # tasks, or GPUs of each, that Lightning does not support
        raise ValueError(str(error)) from error
    fabric.launch()
    return fabric


def load_object(name: str) -> Any:
    """Import `module:OBJECT` or `file.py:OBJECT`, which runs that code, and return the object.

    Raises ValueError if the name has another form, or there is no such module, file or object, or importing it fails.
    """
    place, _, attribute = name.rpartition(":")
    if not (place and attribute.isidentifier()):
        raise ValueError(f"expected module:OBJECT or file.py:OBJECT, got {name!r}")
    neighbours = str(Path(place).parent.resolve() if place.endswith(".py") else Path.cwd())
    if neighbours not in sys.path:  # which the code may import, whichever way Python was started
        sys.path.append(neighbours)
    try:
        if place.endswith(".py"):
            if not Path(place).is_file():
                raise ValueError(f"there is no file {place}")
            specification = importlib.util.spec_from_file_location(f"{Path(place).stem} of {place}", place)
            assert specification is not None
            assert specification.loader is not None  # as the ending is .py
            module = sys.modules[specification.name] = importlib.util.module_from_spec(specification)
            specification.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
    except ValueError:
        raise
    except Exception as error:  # whatever the code does
        raise ValueError(f"{place} cannot be imported ({type(error).__name__}: {error})") from error
    if not hasattr(module, attribute):
        raise ValueError(f"{place} has no {attribute}")
    return getattr(module, attribute)


# Of errors that have no kind of their own: of torch's allocators, CUDA, threads, C++, oneDNN and the loader.
LACKS = (
    "allocate memory",
    "out of memory",
    "ALLOC_FAILED",
    "start new thread",
    "std::bad_alloc",
    "could not create a primitive",
    "failed to map segment from shared object",
)


def lacks_means(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, is that memory, a thread or a file descriptor could not be had.

    Then nothing is wrong with what was read.
    """
    while error is not None:
        words = any(words in str(error) for words in LACKS)
        if words or isinstance(error, MemoryError | torch.OutOfMemoryError):
            return True
        if isinstance(error, OSError) and error.errno in (errno.ENOMEM, errno.EMFILE, errno.ENFILE):
            return True
        error = error.__cause__ or error.__context__
    return False


def lost_another(error: BaseException) -> bool:
    """Whether an error is that another process has ended or does not answer: gloo's has no kind of its own."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    words = str(error).lower()
    return isinstance(error, torch.distributed.DistError) or any(name in words for name in ("gloo", "nccl"))


def is_out_of_reach(error: BaseException) -> bool:
    """Whether an error says nothing of what a file holds: means are lacking, or it cannot be read by us, or now."""
    closed = (errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE)
    return lacks_means(error) or (isinstance(error, OSError) and error.errno in closed)


@contextmanager
def told(what: str, why: str = "") -> Iterator[None]:
    """Context in which what code of a user's own raises becomes a ValueError: `what`, its words, and `why`."""
    try:
        yield
    except Exception as error:
        if lacks_means(error):
            raise
        kind = "" if isinstance(error, ValueError | RuntimeError) and str(error) else f"{type(error).__name__}: "
        raise ValueError(f"{what}: {kind}{error}{why}") from error


def temporary_name() -> str:
    """Of a file or folder that will be renamed: short, so that it fits where its final name fits."""
    return f".{uuid.uuid4().hex}.tmp"


def write_atomically(files: Mapping[Path, bytes]) -> None:
    """Write files, each of them whole: each goes to a temporary neighbour, and all are renamed at the end.

    Their permissions are those that the user's umask gives to new files. A process that is killed leaves the old files
    or the new ones, and perhaps temporary ones; of a machine that loses power, nothing is promised. Raises OSError, and
    changes none, if one of them cannot be written.
    """
    temporary: dict[Path, Path] = {}
    try:
        for path in files:
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary[new := path.with_name(temporary_name())] = path
            new.write_bytes(content)
        for new, path in temporary.items():
            os.replace(new, path)
    finally:
        for new in temporary:
            new.unlink(missing_ok=True)


def seal(document: Mapping[str, Any], *contents: bytes) -> str:
    """SHA-256 of a JSON document and of what belongs to it: kept beside both, it tells that they are as they were."""
    document = json.loads(json.dumps(document))  # as it is read: with all keys as text, which sort otherwise
    digest = hashlib.sha256(json.dumps(document, sort_keys=True).encode())
    for content in contents:
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


def write_results(path: Path, results: Mapping[str, Any], indent: int | None = None) -> None:
    """Write the results of a study or a benchmark as JSON, whole or not at all, with their seal."""
    text = json.dumps({**results, "seal": seal(results)}, indent=indent) + ("\n" if indent else "")
    write_atomically({path: text.encode()})


def read_results(path: Traversable) -> dict[str, Any]:
    """What `write_results` wrote, without the seal; raises ValueError if a file is no longer that, or has no seal."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        whole = results.pop("seal") == seal(results)
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
        whole = False
    if not whole:
        raise ValueError(f"{path} is damaged: what it holds is not what was written")
    return results


def read_study(folder: Traversable) -> dict[str, dict[str, Any]]:
    """The results of a study by name, which is that of the file without ".json", in the order of the names."""
    found = sorted((file for file in folder.iterdir() if file.name.endswith(".json")), key=lambda file: file.name)
    return {file.name.removesuffix(".json"): read_results(file) for file in found}


def _tensor_bytes(tensors: Mapping[str, torch.Tensor]) -> Iterator[bytes]:
    for name, values in sorted(tensors.items()):
        yield f"{name} {values.dtype} {tuple(values.shape)}".encode()
        yield values.flatten().view(torch.uint8).numpy().tobytes()


def tensor_file(tensors: Mapping[str, torch.Tensor], document: Mapping[str, Any]) -> bytes:
    """Tensors and a JSON document as a safetensors file, which keeps the seal of both."""
    tensors = {name: values.cpu().contiguous() for name, values in tensors.items()}
    sealed = {**document, "seal": seal(document, *_tensor_bytes(tensors))}
    return safetensors.torch.save(tensors, {HEADER: json.dumps(sealed)})


def read_tensors(path: Path, what: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The document and the tensors of a file of `tensor_file`; one that is older than seals has none.

    Raises ValueError if it is no such file, or damaged; `what` it should be, such as "a bank", is for the message.
    Raises OSError if it cannot be read.
    """
    try:
        with open(path, "rb"):  # whose errors say more than those of safetensors
            pass
        with safetensors.safe_open(path, "pt") as file:
            document = dict(json.loads(file.metadata()[HEADER]))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # whatever a file does that is another, or damaged
        if is_out_of_reach(error):
            raise
        raise ValueError(f"{path} is not {what} of this library ({' '.join(str(error).split())})") from error
    expected = document.pop("seal", None)
    if expected is not None and expected != seal(document, *_tensor_bytes(tensors)):
        raise ValueError(f"{path} is damaged: what it holds is not what was written")
    return document, tensors


def first_existing(folder: str | Path) -> Path:
    """A folder, or the first one above it that exists."""
    folder = Path(folder)
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def check_writable(folder: str | Path) -> None:
    """Raise OSError unless files can be written to a folder, which need not be there yet."""
    folder = first_existing(folder)
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    with tempfile.TemporaryFile(dir=folder):
        pass


def readable(text: object) -> str:
    """A path or message that any file and any terminal can take: what cannot be printed is escaped, as in \\xfc."""
    escaped = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
    return "".join(escaped).replace("\\udc", "\\x")  # bytes that are no UTF-8


def plain(record: "DataclassInstance", *names: str) -> None:
    """Make the numbers of numpy among some fields, all if none are named, Python's: no file of ours can hold others."""
    for name in names or [field.name for field in fields(record)]:
        if isinstance(value := getattr(record, name), np.generic):
            object.__setattr__(record, name, value.item())


def check_fields(config: "DataclassInstance") -> None:
    """Raise ValueError if a field of a configuration is of another type, or no word or number that it may be."""
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if get_origin(hint) is Literal:
            if value not in get_args(hint):
                raise ValueError(f"expected {name} to be one of {get_args(hint)}, got {value!r}")
            continue
        if get_origin(hint) is tuple:  # of words
            if not isinstance(value, tuple) or not all(isinstance(each, str) for each in value):
                raise ValueError(f"expected {name} to be a list of words, got {value!r}")
            continue
        kinds = tuple(Callable if get_origin(kind) is Callable else kind for kind in get_args(hint) or (hint,))
        fits = isinstance(value, kinds) or (float in kinds and isinstance(value, int))
        if not fits or (isinstance(value, bool) and bool not in kinds):
            wanted = " or ".join("nothing" if kind is type(None) else kind.__name__ for kind in kinds)
            raise ValueError(f"expected {name} to be of type {wanted}, got {value!r}")
        if float in kinds and isinstance(value, int) and abs(value) > sys.float_info.max:
            raise ValueError(f"expected {name} to be a number that a float can hold, got one of more than 300 digits")


def from_stored(kind: type[Config], values: Mapping[str, Any]) -> Config:
    """A configuration as a file holds it, whichever version wrote it.

    A field that the file is older than has its default. One that this version does not know is left out where it is
    off (false or null): else it may change what the file means.

    Raises
    ------
    TypeError
        If the file has a field that this version does not know, and that is on, or lacks one without a default.
    """
    known = {field.name for field in fields(kind)}
    if unknown := [name for name, value in values.items() if name not in known and value not in (None, False)]:
        raise TypeError(f"another version of this library wrote {unknown[0]} = {json.dumps(values[unknown[0]])}")
    return kind(**{name: value for name, value in values.items() if name in known})


def as_stored(config: "DataclassInstance") -> dict[str, Any]:
    """A configuration as files hold it: numbers, words and lists; of an object what its `to_dict` says, or its name."""
    return {field.name: _stored(getattr(config, field.name)) for field in fields(config)}


def _stored(value: Any) -> Any:
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if isinstance(value, tuple):
        return list(value)
    return object_name(value) if callable(value) else value


def object_name(value: Any) -> str:
    """The name of a function, or of the class of another object."""
    return getattr(value, "__name__", type(value).__name__)


def refuse_difference(old: Mapping[str, Any], new: "DataclassInstance", what: str, ignored: tuple[str, ...]) -> None:
    """Raise ValueError that names the first field in which a stored configuration differs from a new one.

    What the stored one lacks, for it is older, has its default.
    """
    defaults = {field.name: _stored(field.default) for field in fields(new)}
    for name, value in as_stored(new).items():
        before = old.get(name, defaults[name])
        if name not in ignored and before != value:
            raise ValueError(
                f"{what} with {name} = {json.dumps(before)}, not {json.dumps(value)}: choose another path or delete it"
            )
