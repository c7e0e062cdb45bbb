"""Time how drum, features and metric grow with batch, length, J, Q, modes and threads, and what each grows in memory.

    python tools/growth.py pnp_tutorial/results/growth.json

Every point is a process of its own, in one thread, on one sound with the papers' settings, but for what its axis says.
Its floor is the share of its time that goes to FFTs and matrix products.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # noqa: F401  (PyTorch would load it when forward mode is first used: 160 MB that are no growth)
from benchmark import floor, forget_peak, peak_bytes
from measured import about
from repository import path_argument
from tqdm import tqdm

from pnp_tutorial.drum import DRUM, rectangular_drum
from pnp_tutorial.metric import riemannian_metric
from pnp_tutorial.runtime import write_results
from pnp_tutorial.scattering import JTFS, LogScattering

DEFAULTS = {"batch": 1, "n_samples": DRUM.n_samples, "J": 13, "Q": 12, "modes": 10, "threads": 1}
LENGTHS = tuple(2**k for k in range(12, 19))  # J follows them: log₂ n − 3
AXES: dict[str, dict[str, tuple[int, ...]]] = {
    "drum": {"batch": (1, 8, 32, 128, 512), "n_samples": LENGTHS, "modes": (5, 10, 20, 40)},
    "drum, tangents": {"batch": (1, 8, 32, 128, 512)},
    "drum, gradient": {"batch": (1, 8, 32, 128, 512)},
    "features": {"batch": (1, 4, 16), "n_samples": LENGTHS, "J": (7, 9, 11, 13), "Q": (4, 8, 12, 16, 24)},
    "metric": {
        "batch": (1, 2, 4, 8),
        "n_samples": LENGTHS,
        "J": (7, 9, 11, 13),
        "Q": (4, 8, 12, 16, 24),
        "modes": (5, 10, 20),
    },
}
THREAD_BATCH = 8
SECONDS, LEAST = 1.0, 3  # of a point, at least, and calls


def points(n_threads: int) -> list[tuple[str, str, dict[str, int]]]:
    """Kind, axis and settings of every point."""
    axes = {kind: dict(values) for kind, values in AXES.items()}
    for kind in ("features", "metric"):
        axes[kind]["threads"] = tuple(sorted({1, 2, n_threads} & set(range(1, n_threads + 1))))
    found = []
    for kind, values in axes.items():
        for axis, each in values.items():
            for value in each:
                settings = DEFAULTS | {axis: value}
                if axis == "n_samples":
                    settings["J"] = value.bit_length() - 4
                if axis == "threads":
                    settings["batch"] = THREAD_BATCH
                found.append((kind, axis, settings))
    return found


def contestant(kind: str, batch: int, n_samples: int, J: int, Q: int, modes: int, threads: int) -> Callable[[], object]:
    """What is timed."""
    torch.set_num_threads(threads)
    nu = DRUM.sample_uniform(batch)
    drum = replace(DRUM, n_samples=n_samples, function=partial(rectangular_drum, n_modes=modes))

    def sounds(nu: torch.Tensor) -> torch.Tensor:
        return drum(nu, torch.float32)

    if kind == "drum":
        return torch.no_grad()(lambda: sounds(nu))
    if kind == "drum, tangents":
        axes = torch.eye(nu.shape[1], dtype=nu.dtype)
        along = torch.func.vmap(lambda axis: torch.func.jvp(sounds, (nu,), (axis.expand_as(nu),))[1])
        return torch.no_grad()(lambda: along(axes))
    if kind == "drum, gradient":
        dx = torch.randn(batch, n_samples)

        def gradient() -> None:
            sounds(nu.clone().requires_grad_()).backward(dx)

        return gradient
    features = LogScattering(JTFS(n_samples, J=J, Q=(Q, 1), sample_rate=DRUM.sample_rate))
    if kind == "metric":
        return lambda: riemannian_metric(nu, features, drum)
    x = sounds(nu)
    return torch.no_grad()(lambda: features(x))


def measure(kind: str, settings: dict[str, int]) -> dict[str, float]:
    """Seconds a sound (median and fastest), the bytes that it takes at most, and its floor."""
    work = contestant(kind, **settings)
    forget_peak()
    before = peak_bytes()
    work()
    seconds: list[float] = []
    while len(seconds) < LEAST or sum(seconds) < SECONDS:
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    grown = peak_bytes() - before
    numbers = {"seconds": statistics.median(seconds), "fastest": min(seconds)}
    numbers = {name: value / settings["batch"] for name, value in numbers.items()}
    return {name: float(f"{value:.4g}") for name, value in (numbers | {"bytes": grown, "floor": floor(work)}).items()}


def main(path: Path) -> None:
    results: dict[str, Any] = {**about(), "defaults": DEFAULTS, "points": []}
    for kind, axis, settings in tqdm(points(torch.get_num_threads()), unit="point"):
        command = [sys.executable, __file__, kind, json.dumps(settings)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{kind}, {settings}: {done.stderr}")
        found = json.loads(done.stdout)
        results["points"].append({"kind": kind, "axis": axis, "value": settings[axis], **found})
    write_results(path, results, indent=1)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(measure(sys.argv[1], json.loads(sys.argv[2]))))
    else:
        main(path_argument(__doc__, "file of the results"))
