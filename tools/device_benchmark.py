"""Measure what one device, such as a GPU, does in a second: features, metrics, and training steps of every loss.

    python tools/device_benchmark.py pnp_tutorial/results/speed-cuda.json --device cuda   # or: make gpu

Everything as a data set or a training of the papers' size has it: sounds of 65536 samples, the papers' JTFS,
EfficientNet-B0. Each number is in sounds a second, and is written as soon as it is known, to a file beside the results
that takes their place once all is measured; of a batch that does not fit the memory there is none. For each precision
of products the errors of features, and of the eigenvalues of M, against float64 are written too.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from measured import about, processor, training_step
from torch import Tensor
from torch.utils.benchmark import Timer

from pnp_tutorial.dataset import DatasetConfig, build, ear
from pnp_tutorial.drum import DRUM, SAMPLE_RATE
from pnp_tutorial.evaluation import evaluate
from pnp_tutorial.metric import Map, jacobian, riemannian_metric
from pnp_tutorial.runtime import select_device, write_results
from pnp_tutorial.scattering import JTFS, LogScattering

BATCHES = (1, 8, 64, 256, 512, 1024)
STEPS = {"parameter": 256, "pnp": 256, "mss": 64, "spectral": 64}  # the papers' batch sizes
PRECISIONS = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16}
PRODUCTS = {"float32": "highest", "TF32": "high"}  # torch's names for how float32 is multiplied
N_EXACT = 8  # sounds whose features and metrics are also taken in float64
N_BUILT = 1024  # sounds of the data set that is built to time it
SECONDS = 1.0  # of each measurement


def rate(work: Callable[[], object], n_sounds: int) -> float:
    """Sounds a second, the median, after a first call that is not counted."""
    work()
    timer = Timer("work()", globals={"work": work}, num_threads=torch.get_num_threads())
    return n_sounds / timer.blocked_autorange(min_run_time=SECONDS).median


def seconds(work: Callable[[], object]) -> float:
    """That it takes once, after a first time."""
    work()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def dataset_rate(data: DatasetConfig, n_sounds: int) -> float:
    """Sounds a second that `pnp dataset` computes and writes, once all is warm."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "first.zarr")
        build(replace(data, data=str(path), n_sounds=max(10, data.chunk_size)), progress=False)
        start = time.perf_counter()
        build(replace(data, data=str(path.with_name("all.zarr")), n_sounds=n_sounds), progress=False)
        return n_sounds / (time.perf_counter() - start)


def errors(nu: Tensor, data: DatasetConfig) -> dict[str, dict[str, list[float]]]:
    """Of products in each precision, relative errors: of Φ, and of each eigenvalue of M, the least first (medians)."""

    def taken(features: Map, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        S, J = jacobian(nu, features, lambda nu: data.synthesizer(nu, dtype))
        return S.double(), torch.linalg.svdvals(J.double()).square().flip(-1)

    J = ear(data).transform.J  # type: ignore[attr-defined]
    float64 = LogScattering(JTFS(data.n_samples, J=J, sample_rate=SAMPLE_RATE, dtype=torch.float64))
    S, values = taken(float64.to(nu.device), torch.float64)
    found = {}
    for name, precision in PRODUCTS.items():
        torch.set_float32_matmul_precision(precision)
        S_there, values_there = taken(ear(data, nu.device), torch.float32)
        error = ((S_there - S).norm(dim=-1) / S.norm(dim=-1)).median()
        eigenvalues = ((values_there - values).abs() / values).median(0).values
        found[name] = {"features": [float(error)], "eigenvalues": eigenvalues.tolist()}
    torch.set_float32_matmul_precision("highest")
    return found


def main(path: Path, data: DatasetConfig, batches: list[int], n_sounds: int) -> None:
    device = select_device(data.device)
    nu = DRUM.sample_uniform(max(*batches, *STEPS.values())).to(device)
    features, synthesizer = ear(data, device), data.synthesizer
    results: dict[str, Any] = {**about(), "batch": {}}
    results["machine"]["device"] = torch.cuda.get_device_name() if device.type == "cuda" else processor()

    partial = path.with_suffix(".partial")  # until all is measured

    def write() -> None:
        write_results(partial, results, indent=1)

    def listen(n: int) -> Tensor:
        with torch.no_grad():
            return features(synthesizer(nu[:n]))

    def measure(kind: str, name: object, work: Callable[[], float]) -> None:
        try:
            sounds = float(f"{work():.4g}")
        except torch.OutOfMemoryError:
            print(f"{kind} {name}: more than the memory of this device", flush=True)
            return
        results.setdefault(kind, {})[str(name)] = sounds
        print(f"{kind} {name}: {sounds:g} sounds a second", flush=True)
        write()

    def measure_step(loss: str, name: str, dtype: torch.dtype, how: str) -> None:
        n = results["batch"][loss]
        measure("steps", f"{loss}, {name}", lambda: rate(training_step(loss, nu[:n], data, dtype, how), n))

    for n in batches:
        measure("metric", n, lambda n=n: rate(lambda: riemannian_metric(nu[:n], features, synthesizer), n))
        measure("features", n, lambda n=n: rate(lambda: listen(n), n))
    results["batch"] = {loss: min(batch, max(batches)) for loss, batch in STEPS.items()}
    for precision, dtype in PRECISIONS.items():
        for loss in STEPS:
            measure_step(loss, precision, dtype, "eager")
            if device.type == "cuda" and loss in ("parameter", "pnp"):
                measure_step(loss, f"{precision}, CUDA graph", dtype, "graph")
    results["errors"] = errors(nu[: min(N_EXACT, max(batches))], data)
    torch.set_float32_matmul_precision("high")
    for n in batches[-3:]:
        measure("features, TF32", n, lambda n=n: rate(lambda: listen(n), n))
    if device.type == "cuda":
        for loss in ("parameter", "pnp"):
            measure_step(loss, "TF32, CUDA graph", torch.float32, "graph")
    torch.set_float32_matmul_precision("highest")
    n = results["batch"]["parameter"]
    measure("evaluation", n, lambda: n / seconds(lambda: evaluate(nu[:n], nu[:n], nu[0], features, synthesizer)))
    fastest = max(results["metric"], key=results["metric"].get)
    measure("dataset", fastest, lambda: dataset_rate(replace(data, chunk_size=int(fastest)), n_sounds))
    if device.type == "cuda":
        start = time.perf_counter()
        step = training_step("parameter", nu[:n], data, torch.float32, "compiled")
        step()
        torch.cuda.synchronize()
        results["seconds before the first compiled step"] = round(time.perf_counter() - start, 1)
        measure("steps", "parameter, 32-true, compiled", lambda: rate(step, n))
    write()
    os.replace(partial, path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    main(arguments.path, DatasetConfig(device=arguments.device), list(BATCHES), N_BUILT)
