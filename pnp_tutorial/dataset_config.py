"""What a data set is made of: its sounds, what is kept of each, and which are for training, validation and testing."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from .drum import DRUM
from .ears import EARS, ear_name, find_ear
from .metric import SMALLEST_STEP, Map
from .runtime import check_fields, from_stored, object_name, plain
from .scalogram import Scalogram
from .scattering import LogScattering
from .synthesizer import Synthesizer, refuse_taken_name, stored_synthesizer

SPLITS = ("train", "validation", "test")
MOST_SEED = 2**53  # JSON keeps larger whole numbers only roughly, and torch has 64 bits


@dataclass(frozen=True)
class DatasetConfig:
    """What a data set is made of.

    Parameters
    ----------
    data
        Path of the Zarr store.
    synthesizer
        g: of the library, or any `Synthesizer`.
    ear
        Φ: "jtfs", "mss", "mss-linear" or "coarse"; or any differentiable map from sounds (..., n_samples) to vectors
        (..., P). It gets sounds in float32, on the device.
    sampling
        "uniform" over [−1, 1]ⁿ, or "grid": one point in each cell of a regular grid, as both papers have it.
    n_sounds
        Number of sounds; of the grid, as many of its points, drawn at random.
    n_cells
        Of the grid, along each axis: 10 for the paper's drums.
    n_inner
        Cells along each axis of the cube in the middle of the grid whose sounds are for validation.
    n_grid_test
        Sounds for testing, of all those of the grid, drawn from the cells around that cube; what is left is for
        training. So of n_sounds a like share is for each. (Uniform sounds are split 8 : 1 : 1, and the last three
        settings do not count.)
    seed
        Of ν.
    metric
        Whether to keep M, which takes most of the time and which only the PNP loss needs. Its cost grows with n.
    secant_step
        If given, M is not that of Φ but `metric.secant_metric` of coarse spectra, for steps in ν as wide as that; 0.1
        is about the size of an encoder's errors. It takes a small part of the time.
    features
        Whether to keep Φ(x), which spares the spectral loss computing it at every step; of a drum by JTFS, 21 kB a
        sound.
    curves
        Whether to keep G of `curves.curve_gram`, which the loss curves needs: how coarse spectra change along each
        coordinate, at `curves.STEPS`. It costs five times a secant metric, and of a drum 10 kB.
    n_samples
        Length of a sound; 0, for short: the synthesizer's own. (It is filled in at once: to change the synthesizer by
        `dataclasses.replace`, give n_samples = 0 as well.)
    J
        Octaves of the encoder's scalogram below the Nyquist frequency.
    Q
        Wavelets per octave of that scalogram.
    T
        Width of the average that makes its frames, in samples. Their step is T rounded down to a power of two.
    chunk_size
        Sounds that are computed and written at once. Whatever it is, Jacobians take about 0.25 GB a thread on a CPU
        and 5 GB on a GPU.
    device
        "cpu", "cuda", "mps", or "auto": cuda if there is one, else mps if there is one, else cpu.

    Nothing is checked when it is made: `check` and `build` raise ValueError if it is impossible.
    """

    data: str = "data/sounds.zarr"
    synthesizer: Synthesizer = DRUM
    ear: str | Map = "jtfs"
    sampling: Literal["uniform", "grid"] = "uniform"
    n_sounds: int = 1024
    n_cells: int = 10  # the paper's, as are the next two
    n_inner: int = 6
    n_grid_test: int = 10_000
    seed: int = 0
    metric: bool = True
    secant_step: float | None = None  # the papers' metric is that of infinitesimal steps
    features: bool = False
    curves: bool = False
    n_samples: int = 0
    J: int = 10  # a semitone apart down to 57 Hz; J = 13 adds 36 filters, nearly all below the lowest pitch, 40 Hz
    Q: int = 12  # a semitone
    T: int = 1024  # 46 ms: decays last from 70 ms; 64 frames
    chunk_size: int = 8
    device: str = "auto"

    def __post_init__(self) -> None:
        plain(self)
        if isinstance(self.synthesizer, Synthesizer) and isinstance(self.n_samples, int) and self.n_samples >= 0:
            n_samples = self.n_samples or self.synthesizer.n_samples
            object.__setattr__(self, "n_samples", n_samples)
            object.__setattr__(self, "synthesizer", replace(self.synthesizer, n_samples=n_samples))


def encoder_input(config: DatasetConfig) -> LogScattering:
    """Log-compressed scalogram: audio (..., n_samples) → (..., filters, frames)."""
    rate = config.synthesizer.sample_rate
    return LogScattering(Scalogram(config.n_samples, config.J, config.Q, config.T, sample_rate=rate))


def ear(config: DatasetConfig, device: torch.device | str = "cpu") -> Map:
    """Φ of a data set, on a device; errors as in `find_ear`, also where a store was made with an ear of its user's."""
    return find_ear(config.ear, config.n_samples, config.synthesizer.sample_rate, device)


def draw(config: DatasetConfig) -> tuple[Tensor, np.ndarray]:
    """ν (n_sounds, n), float64, and the index into `SPLITS` of every row, (n_sounds,).

    Uniform sounds are split 8 : 1 : 1 in the order in which they were drawn. On the grid, as the authors did, the inner
    n_innerⁿ cells are for validation, n_grid_test of the others, at random, for testing, and the rest for training.
    """
    n, synthesizer = config.n_sounds, config.synthesizer
    if config.sampling == "uniform":
        split = np.searchsorted([int(0.8 * n), int(0.8 * n) + (n - int(0.8 * n)) // 2], np.arange(n), side="right")
        return synthesizer.sample_uniform(n, config.seed), split
    nu = synthesizer.sample_jittered_grid(config.n_cells, config.seed)
    cells = np.stack(np.unravel_index(np.arange(len(nu)), (config.n_cells,) * nu.shape[1]))
    first = (config.n_cells - config.n_inner) // 2
    inner = ((cells >= first) & (cells < first + config.n_inner)).all(0)
    random = np.random.default_rng(config.seed)
    split = np.where(inner, SPLITS.index("validation"), SPLITS.index("train"))
    split[random.choice(np.flatnonzero(~inner), config.n_grid_test, replace=False)] = SPLITS.index("test")
    rows = np.sort(random.choice(len(nu), n, replace=False))
    return nu[rows], split[rows]


def check(config: DatasetConfig, metric: Tensor | None = None) -> None:
    """Raise ValueError, before any work, if a data set cannot be what `config` says; `metric` as in `dataset.build`."""
    check_fields(config)
    refuse_taken_name(config.synthesizer)
    n = len(config.synthesizer.parameters)
    if not isinstance(config.ear, str) and object_name(config.ear) in EARS:
        raise ValueError(f"{object_name(config.ear)!r} is the name of an ear of the library: give yours another")
    if config.secant_step is not None and not config.metric:
        raise ValueError("secant_step is of the metric, and there is none: metric = False")
    for name, least in (("chunk_size", 1), ("seed", 0), ("n_samples", 1), ("n_cells", 1), ("n_grid_test", 0)):
        if getattr(config, name) < least:
            raise ValueError(f"expected {name} ≥ {least}, got {getattr(config, name)}")
    if config.seed > MOST_SEED:
        raise ValueError(f"expected seed ≤ {MOST_SEED}, got {config.seed}")
    limit = math.inf
    if config.sampling == "grid":
        limit = config.n_cells**n
        if not 0 <= config.n_inner <= config.n_cells or config.n_grid_test > limit - config.n_inner**n:
            raise ValueError(
                f"a grid of {config.n_cells} cells along each of {n} axes has no {config.n_inner} inner ones "
                f"and {config.n_grid_test} sounds around them for testing"
            )
    if not 10 <= config.n_sounds <= limit:
        most = f" to {limit}" if config.sampling == "grid" else ""
        raise ValueError(f"expected n_sounds from 10{most} with {config.sampling} sampling, got {config.n_sounds}")
    if config.sampling == "grid":
        split = draw(config)[1]
        if empty := [name for i, name in enumerate(SPLITS) if not (split == i).any()]:
            raise ValueError(
                f"a grid of n_sounds = {config.n_sounds}, n_inner = {config.n_inner} and n_grid_test = "
                f"{config.n_grid_test} has no sounds for {empty[0]}"
            )
    if config.secant_step is not None and not SMALLEST_STEP <= config.secant_step <= 2:
        raise ValueError(f"expected secant_step in [{SMALLEST_STEP:g}, 2], got {config.secant_step}")
    if metric is not None:
        _check_given(metric, config)


def _check_given(metric: Tensor, config: DatasetConfig) -> None:
    n = len(config.synthesizer.parameters)
    if not config.metric:
        raise ValueError("metrics are given, and none are to be kept: metric = False")
    if not isinstance(metric, Tensor) or not metric.is_floating_point():
        got = metric.dtype if isinstance(metric, Tensor) else type(metric).__name__
        raise ValueError(f"expected metrics as a tensor in floating point, got {got}")
    if metric.shape != (config.n_sounds, n, n):
        raise ValueError(f"expected metrics of shape ({config.n_sounds}, {n}, {n}), got {tuple(metric.shape)}")
    if not metric.isfinite().all():
        raise ValueError("expected finite metrics, got NaN or infinite entries")
    off, size = (metric - metric.mT).abs().amax((1, 2)), metric.abs().amax((1, 2))
    if (off > 1e-4 * size).any() or (metric.diagonal(dim1=1, dim2=2) < 0).any():
        raise ValueError("expected symmetric metrics with diagonals ≥ 0, got others")


def stored_config(
    values: Mapping[str, Any], synthesizer: Synthesizer | None = None, ear: str | Map | None = None, what: str = "this"
) -> DatasetConfig:
    """The configuration that a store, a bank or an encoder holds, whichever version wrote it; errors as `from_stored`.

    Synthesizer and ear are as in `store.read_config`, and `what` is the file, for messages. Names that it holds are
    looked up in the library, and never imported. Older stores may keep audio besides, which changes nothing else.
    """
    if not isinstance(values, Mapping):
        raise TypeError(f"expected the fields of a configuration, got {values!r}")
    values = {name: value for name, value in values.items() if name != "audio"}
    values["synthesizer"] = stored_synthesizer(values.get("synthesizer"), synthesizer, what)
    config = from_stored(DatasetConfig, values)
    try:
        check_fields(config)
    except ValueError as error:
        raise TypeError(str(error)) from error
    if ear is None:
        return config
    if ear_name(ear) != config.ear:
        raise ValueError(f"{what} was made with the ear {config.ear!r}, and {ear_name(ear)!r} is given")
    return replace(config, ear=ear)
