"""The Zarr store of a data set: made with its ν and empty arrays, filled chunk by chunk by `dataset.build`, and read.

Row by row it keeps

    nu          (n,) float64                  parameters, scaled to [−1, 1]
    split       uint8                         index into `SPLITS`
    scalogram   (filters, frames) float16     log(1 + S₁/ε), from 0 to about 10, rounded to 0.05 %
    metric      (n, n) float64                M, in squared features per squared unit of ν, if asked for
    features    (P,) float32                  Φ(x), if asked for
    curves      (K, K) float32                G of `curves.curve_gram`, if asked for

M stays in float64 though it comes out of float32 features: rounding its entries would turn small eigenvalues negative.
Each chunk of rows has its checksum, and counts once it is marked in `done`, which is written after it. What the store
says of itself, its configuration and what it was made with, has a seal.
"""

import math
import os
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import zarr
from torch import Tensor
from zarr.codecs import Crc32cCodec, ZstdCodec

from . import __version__
from .curves import STEPS
from .dataset_config import SPLITS, DatasetConfig, draw, ear, encoder_input, stored_config
from .drum import DRUM
from .ears import ear_name, ear_sketch, find_ear
from .metric import Map
from .runtime import as_stored, first_existing, is_out_of_reach, lacks_means, seal, temporary_name, told
from .synthesizer import Synthesizer, differs, refuse_edited, sketch


class Rows(NamedTuple):
    """B rows of a data set: shapes and dtypes at the head of this module, behind an axis of B; None: not there."""

    nu: Tensor
    scalogram: Tensor | None = None
    metric: Tensor | None = None
    features: Tensor | None = None
    curves: Tensor | None = None


def stored_arrays(config: DatasetConfig, device: torch.device) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape of a row and dtype of what is computed, on a device on which the ear hears."""
    silence = torch.zeros(1, config.n_samples)
    arrays: dict[str, tuple[tuple[int, ...], str]] = {}
    arrays["scalogram"] = (tuple(encoder_input(config)(silence).shape[1:]), "float16")
    if config.metric:
        arrays["metric"] = ((len(config.synthesizer.parameters),) * 2, "float64")
    if config.features:
        with torch.no_grad():
            arrays["features"] = (tuple(ear(config, device)(silence.to(device)).shape[1:]), "float32")
    if config.curves:
        arrays["curves"] = ((2 * len(config.synthesizer.parameters) * (len(STEPS) + 1),) * 2, "float32")
    return arrays


def create(config: DatasetConfig, metric: Tensor | None, device: torch.device) -> None:
    """Make the store with its ν and empty arrays, under another name, and move it into place; its M may be given.

    If another process has been faster, its store is left as it is. Raises ValueError if the disk has too little room.
    """
    path = Path(config.data)
    n, chunk = config.n_sounds, min(config.chunk_size, config.n_sounds)
    arrays = stored_arrays(config, device)
    own = 8 * len(config.synthesizer.parameters) + 1  # ν and split
    size = n * (own + sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in arrays.values()))
    if size > (free := shutil.disk_usage(first_existing(path.parent)).free):
        raise ValueError(f"{path} needs {size / 1e9:.3g} GB, but only {free / 1e9:.3g} GB are free there")
    nu, split = draw(config)
    made_with: dict[str, Any] = {"pnp_tutorial": __version__, "torch": torch.__version__}
    made_with |= {"machine": platform.platform(), "metric_given": metric is not None}
    made_with |= {} if metric is None else {"metric_sum": float(metric.sum())}
    made_with["sketch"] = sketch(config.synthesizer)
    if not isinstance(config.ear, str):
        made_with["ear_sketch"] = ear_sketch(ear(config, device), config.synthesizer, device)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(temporary_name())
    try:
        store = zarr.open_group(new, mode="w", attributes={"config": as_stored(config), "made_with": made_with})
        # crc32c: a damaged chunk is noticed when it is read
        codecs = [ZstdCodec(level=1), Crc32cCodec()]
        for name, (shape, dtype) in arrays.items():
            store.create_array(
                name, shape=(n, *shape), chunks=(chunk, *shape), dtype=dtype, fill_value=np.nan, compressors=codecs
            )
        store.create_array("done", shape=(math.ceil(n / chunk),), chunks=(1,), dtype="bool")
        store.create_array("nu", data=nu.numpy(), compressors=codecs)
        store.create_array("split", data=split.astype("uint8"), compressors=codecs)
        store.attrs["seal"] = _seal(new, store.attrs)
        os.replace(new, path)
    except OSError:
        if not path.exists():
            raise
    finally:
        shutil.rmtree(new, ignore_errors=True)


def open_store(path: str | Path, mode: Literal["r", "r+"] = "r") -> Any:
    """The Zarr group of a data set; raises ValueError if there is none, or what it says of itself has changed.

    Raises OSError if it cannot be read.
    """
    if not Path(path).exists():
        raise ValueError(
            f"there is no data set at {path}: build one with `pnp dataset --data {path}`, and --synthesizer if it "
            "is not the drum"
        )
    try:
        store = zarr.open_group(path, mode=mode)
        expected = store.attrs.get("seal")  # older stores have none
        intact = expected is None or expected == _seal(Path(path), store.attrs)
    except Exception as error:
        if is_out_of_reach(error):
            raise
        raise ValueError(f"{path} is not a data set of this library") from error
    if not intact:
        raise ValueError(f"{path} is damaged (what it says of itself has changed): delete it and build it again")
    return store


def provenance(path: Path, store: Any) -> Mapping[str, Any]:
    """What a store was made with: versions, machine and sketches; raises ValueError if it does not say."""
    made_with = store.attrs.get("made_with")
    if not isinstance(made_with, Mapping) or "pnp_tutorial" not in made_with:
        raise ValueError(f"{path} is damaged (it does not say what it was made with): delete it and build it again")
    return made_with


def _seal(path: Path, attributes: Mapping[str, Any]) -> str:
    """Of what a store says of itself and of its arrays, whose numbers have checksums of their own."""
    arrays = [path / name / "zarr.json" for name in ("done", "split", *Rows._fields)]
    said = {name: attributes.get(name) for name in ("config", "made_with")}
    return seal(said, *(array.read_bytes() for array in arrays if array.exists()))


def read_config(
    path: str | Path,
    synthesizer: Synthesizer | None = None,
    ear: str | Map | None = None,
    device: torch.device | str = "cpu",
) -> DatasetConfig:
    """The configuration that a store was built with.

    A synthesizer of the user's own must be given; an ear of his own as well, before it can be heard with, and the
    device on which it hears. Raises ValueError if there is no such store, or it was made with another synthesizer or
    ear than a given one, as it is today.
    """
    store = open_store(path)
    try:
        config = stored_config(store.attrs["config"], synthesizer, ear, str(path))
    except KeyError as error:
        raise ValueError(f"{path} is not a data set of this library") from error
    except TypeError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    made_with = provenance(Path(path), store)  # sketches, too, for files tell no function
    if synthesizer is not None:
        refuse_edited(config.synthesizer, made_with.get("sketch"), path, "build it")
    if ear is not None and not isinstance(ear, str):
        heard = find_ear(ear, config.n_samples, config.synthesizer.sample_rate, device)
        with told(f"the ear {ear_name(ear)!r} does not hear on {device}"):
            own = ear_sketch(heard, config.synthesizer, device)
        if differs(own, made_with.get("ear_sketch")):
            raise ValueError(f"{path} was made when the ear {ear_name(ear)!r} heard otherwise: build it again")
    return config


def read_array(path: str | Path, store: Any, name: str, rows: Any = slice(None)) -> np.ndarray:
    """Rows of an array of a store, all if none are given; raises ValueError, which names the store, if it is damaged.

    Of chunks that are not there, what the array is filled with.
    """
    try:
        return store[name].oindex[rows]
    except (LookupError, ValueError, TypeError, AttributeError, RuntimeError) as error:  # of zarr and its codecs
        if lacks_means(error):
            raise
        raise ValueError(f"{path} is damaged ({name}: {error}): delete it and build it again") from error


def finished_rows(path: str | Path, split: str) -> tuple[Any, np.ndarray]:
    """The store of a finished data set, and the numbers (n,) of the rows of one split; raises ValueError as `load`."""
    if split not in SPLITS:
        raise ValueError(f"expected a split of {SPLITS}, got {split!r}")
    store = open_store(path)
    config = store.attrs.get("config")
    if not isinstance(config, Mapping):
        raise ValueError(f"{path} is not a data set of this library")
    try:  # a store that only another version can read
        stored_config({name: value for name, value in config.items() if name != "synthesizer"})
    except TypeError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    done, of_row = read_array(path, store, "done"), read_array(path, store, "split")
    if not done.all():
        raise ValueError(f"{path} has {done.sum()} of {len(done)} chunks: run `pnp dataset` again to finish it")
    return store, np.flatnonzero(of_row == SPLITS.index(split))


def read_rows(path: str | Path, store: Any, rows: np.ndarray, names: tuple[str, ...]) -> Rows:
    """Rows, given their numbers (n,), of some arrays; raises ValueError, which names the store, if any is damaged."""
    arrays = {}
    for name in names:
        values = torch.from_numpy(read_array(path, store, name, rows))
        if not values.isfinite().all():  # a chunk that is not there reads as NaN
            raise ValueError(f"{path} is damaged (rows of {name} are missing): delete it and build it again")
        arrays[name] = values
    return Rows(**arrays)


def _names(path: str | Path, names: tuple[str, ...]) -> tuple[str, ...]:
    """ν, and those of `names` that a store has, damaged or not: scalograms are in every one."""
    unknown = set(names) - set(Rows._fields)
    if unknown:
        raise ValueError(f"expected names of {Rows._fields}, got {sorted(unknown)}")
    return ("nu", *(name for name in names if name != "nu" and (name == "scalogram" or Path(path, name).exists())))


def load(
    path: str | Path,
    split: str = "train",
    names: tuple[str, ...] = ("scalogram", "metric"),
    n: int | None = None,
) -> Rows:
    """One split of a data set, in memory, in the order of the store.

    Parameters
    ----------
    path : path of the store
    split : "train", "validation" or "test"
    names : tuple of str
        What to read besides ν, if it is there: "scalogram", "metric", "features", "curves".
    n : int, optional
        So many of the split's sounds, drawn at random; all, if it is not given.

    Returns
    -------
    rows : Rows, of the B sounds of the split; what was not asked for or is not there is None

    Raises
    ------
    ValueError
        If there is no such split, store or name, if the store is unfinished or damaged, or has fewer sounds than n.
    OSError
        If the store cannot be read.
    """
    store, rows = finished_rows(path, split)
    if n is not None and n > len(rows):
        raise ValueError(f"expected at most the {len(rows)} {split} sounds of {path}, got {n}")
    return read_rows(path, store, rows[drawn(len(rows), n).numpy()], _names(path, names))


def in_drawn_order(n: int) -> Tensor:
    """Indices (n,) of some rows: more of them begin with those that fewer of them are."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))


def drawn(n_rows: int, n: int | None) -> Tensor:
    """Indices of n of some rows, at random, or of all, ascending."""
    return in_drawn_order(n_rows)[:n].sort().values


def rows_at(rows: Rows, places: Tensor | slice) -> Rows:
    """Some of the rows, or a part of them."""
    return rows._replace(**{name: values[places] for name, values in rows._asdict().items() if values is not None})


def at_most(rows: Rows, n: int, sampling: str) -> Rows:
    """At most n rows that are spread over the box: those of a grid come cell by cell, so that they are drawn."""
    return rows_at(rows, drawn(len(rows.nu), n) if sampling == "grid" else slice(n))


def describe(path: str | Path) -> dict[str, Any]:
    """What a data set is: configuration, provenance, how much is done; of its arrays, shape, dtype and bytes on disk.

    Raises ValueError if there is no such store, or it is damaged.
    """
    store = open_store(path)
    try:
        config, made_with = dict(store.attrs["config"]), dict(store.attrs["made_with"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a data set of this library") from error
    done, split = read_array(path, store, "done"), read_array(path, store, "split")
    arrays = {}
    for name in _names(path, Rows._fields):
        read_array(path, store, name, slice(0))  # that it is an array
        files = [file.stat().st_size for file in Path(path, name).rglob("*") if file.is_file()]
        shape, dtype = list(store[name].shape), str(store[name].dtype)
        arrays[name] = {"shape": shape, "dtype": dtype, "bytes_on_disk": sum(files)}
    return {
        "path": str(path),
        "config": {"synthesizer": DRUM.to_dict(), "ear": "jtfs"} | config,  # older stores say neither
        "made_with": made_with,
        "chunks": f"{int(done.sum())} of {len(done)} done",
        "splits": {name: int((split == i).sum()) for i, name in enumerate(SPLITS)},
        "arrays": arrays,
    }
