"""How the cost of a metric grows with the number of parameters: in forward mode, and by finite differences.

    python tools/metric_cost.py pnp_tutorial/results/metric_cost.json

The synthesizer is a chord of n decaying partials, whose loudnesses are the parameters. Seconds are those of one sound
in one thread, the median of a few; memory is the most that a process of its own held beyond its imports.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmark import forget_peak, peak_bytes
from measured import about, chord
from repository import path_argument

from pnp_tutorial.runtime import write_results

N_PARAMETERS = (5, 10, 20, 78)
KINDS = ("forward", "secant", "coarse secant")
REPEATS = 3
N_SAMPLES, SAMPLE_RATE = 2**15, 22050


def measure(kind: str, n: int) -> dict[str, float]:
    """Seconds and bytes of the metric of one sound of n parameters; of the features alone, if n is 0."""
    import torch

    from pnp_tutorial.ears import jtfs
    from pnp_tutorial.metric import riemannian_metric, secant_metric
    from pnp_tutorial.mss import CoarseSpectra

    torch.set_num_threads(1)
    synthesizer = chord(max(n, 1), N_SAMPLES, SAMPLE_RATE)
    features = CoarseSpectra(N_SAMPLES, SAMPLE_RATE) if kind == "coarse secant" else jtfs(N_SAMPLES, SAMPLE_RATE)
    nu = 0.5 * synthesizer.sample_uniform(1)

    def work() -> None:
        with torch.no_grad():
            if n == 0:
                features(synthesizer(nu, torch.float32))
            elif kind == "forward":
                riemannian_metric(nu, features, synthesizer)
            else:
                secant_metric(nu, features, lambda nu: synthesizer(nu, torch.float32))

    features(synthesizer(nu, torch.float32))
    forget_peak()
    before, seconds = peak_bytes(), []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return {"seconds": statistics.median(seconds), "bytes": peak_bytes() - before}


def main(path: Path) -> None:
    results: dict = {**about(), "n_parameters": N_PARAMETERS, "n_samples": N_SAMPLES}
    for kind in KINDS:
        for n in (0, *N_PARAMETERS):
            command = [sys.executable, __file__, kind, str(n)]
            found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
            print(kind, n, found, flush=True)
            for what, value in found.items():
                results.setdefault(kind, {}).setdefault(what, []).append(float(f"{value:.3g}"))
    write_results(path, results, indent=1)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
    else:
        main(path_argument(__doc__, "file of the results"))
