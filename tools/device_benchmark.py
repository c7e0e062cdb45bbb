"""Measure what one device, such as a GPU, does in a second: features, metrics, and training steps of every loss.

    python tools/device_benchmark.py pnp_tutorial/results/speed-cuda.json --device cuda   # or: make gpu

Everything as a data set or a training of the papers' size has it: sounds of 65536 samples, the papers' JTFS,
EfficientNet-B0. Each number is in sounds a second, and is written as soon as it is known.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from measured import processor, training_step
from torch import Tensor
from torch.utils.benchmark import Timer

from pnp_tutorial.dataset import DatasetConfig, build, ear
from pnp_tutorial.drum import DRUM
from pnp_tutorial.metric import riemannian_metric
from pnp_tutorial.runtime import select_device, write_atomically

BATCHES = (1, 8, 64, 256)
STEPS = {"parameter": 256, "pnp": 256, "mss": 64, "spectral": 64}  # the papers' batch sizes
PRECISIONS = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16}
SECONDS = 1.0  # of each measurement


def rate(work: Callable[[], object], n_sounds: int) -> float:
    """Sounds a second, the median, after a first call that is not counted."""
    work()
    timer = Timer("work()", globals={"work": work}, num_threads=torch.get_num_threads())
    return n_sounds / timer.blocked_autorange(min_run_time=SECONDS).median


def dataset_rate(data: DatasetConfig, n_sounds: int) -> float:
    """Sounds a second that `pnp dataset` computes and writes, once all is warm."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "first.zarr")
        build(replace(data, data=str(path), n_sounds=max(10, data.chunk_size)), progress=False)
        start = time.perf_counter()
        build(replace(data, data=str(path.with_name("all.zarr")), n_sounds=n_sounds), progress=False)
        return n_sounds / (time.perf_counter() - start)


def main(path: Path, data: DatasetConfig, batches: list[int], n_sounds: int) -> None:
    device = select_device(data.device)
    nu = DRUM.sample_uniform(max(*batches, *STEPS.values())).to(device)
    features, synthesizer = ear(data, device), data.synthesizer
    name = torch.cuda.get_device_name() if device.type == "cuda" else processor()
    results: dict[str, dict] = {"machine": {"device": name, "torch": torch.__version__}, "batch": {}}

    def listen(n: int) -> Tensor:
        with torch.no_grad():
            return features(synthesizer(nu[:n]))

    def measure(kind: str, name: object, work: Callable[[], float]) -> None:
        sounds = float(f"{work():.4g}")
        results.setdefault(kind, {})[str(name)] = sounds
        print(f"{kind} {name}: {sounds:g} sounds a second", flush=True)
        write_atomically({path: (json.dumps(results, indent=1) + "\n").encode()})

    for n in batches:
        measure("features", n, lambda n=n: rate(lambda: listen(n), n))
        measure("metric", n, lambda n=n: rate(lambda: riemannian_metric(nu[:n], features, synthesizer), n))
    fastest = max(batches, key=lambda n: results["metric"][str(n)])
    measure("dataset", fastest, lambda: dataset_rate(replace(data, chunk_size=fastest), n_sounds))
    for precision, dtype in PRECISIONS.items():
        for loss, batch in STEPS.items():
            results["batch"][loss] = n = min(batch, max(batches))
            step = training_step(loss, nu[:n], data, dtype)
            measure("steps", f"{loss}, {precision}", lambda step=step, n=n: rate(step, n))
    if device.type == "cuda":
        n, start = results["batch"]["parameter"], time.perf_counter()
        step = training_step("parameter", nu[:n], data, torch.float32, compiled=True)
        step()
        torch.cuda.synchronize()
        results["seconds before the first compiled step"] = round(time.perf_counter() - start, 1)
        measure("steps", "parameter, 32-true, compiled", lambda: rate(step, n))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--n_sounds", type=int, default=1024, help="of the data set that is built to time it")
    arguments = parser.parse_args()
    main(arguments.path, DatasetConfig(device=arguments.device), arguments.batches, arguments.n_sounds)
