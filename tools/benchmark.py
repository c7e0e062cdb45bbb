"""Time the drum against its direct sum, JTFS and metric against kymatio's development version, and training steps.

    python tools/benchmark.py pnp_tutorial/results/speed.json

No release of kymatio has a JTFS; the wheel of scrapl-loss carries kymatio's development version, which cannot be
installed beside kymatio. So it is unpacked into _build, and every contestant is a process of its own, idle while
another works. They take turns, so that a change of the machine's speed meets them all.
"""

import ctypes
import logging
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from repository import ROOT, path_argument
from torch import Tensor
from torch.profiler import profile
from tqdm import tqdm

WHEEL = "scrapl-loss==0.1.0"
FOLDER = ROOT / "_build/reference"
N_SAMPLES, BATCH = 2**16, 4
CONFIG: dict[str, Any] = {"J": 13, "Q": (12, 1), "J_fr": 5, "Q_fr": 1, "F": 2, "T": "global"}  # the paper's
EPS = 1e-3
TURNS = {"kymatio metric": 3, "kymatio JTFS": 7, "kymatio SCRAPL": 7, "metric": 21, "JTFS": 21}
TURNS |= {"direct sum drum": 7, "drum": 21}
TURNS |= {"step spectral": 3, "step mss": 7, "step pnp": 21, "step parameter": 21}
STEP_BATCH = 16
DRUM_BATCH = 32
FLOOR = ("fft", "mm")  # part of the names of the operators that do FFTs and matrix products: aten::_fft_r2c, aten::bmm


def download() -> None:
    """Unpack kymatio's development version into FOLDER, unless it is there."""
    if FOLDER.exists():
        return
    wheels = FOLDER.with_name("wheels")
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--dest", str(wheels)]
    subprocess.run([sys.executable, "-m", "pip", "download", *options, WHEEL], check=True)
    new = FOLDER.with_name("reference.new")
    shutil.rmtree(new, ignore_errors=True)
    with zipfile.ZipFile(next(wheels.glob("scrapl_loss-*.whl"))) as wheel:
        wheel.extractall(new)
    os.replace(new, FOLDER)


def peak_bytes() -> int:
    """Most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak() -> None:
    """Let `peak_bytes` begin anew, where the system can (Linux), with what is free given back to it (glibc)."""
    if (forget := Path("/proc/self/clear_refs")).exists():
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
        forget.write_text("5", encoding="utf-8")


def floor(work: Callable[[], object]) -> float:
    """Share of the time of this thread that goes to FFTs and matrix products."""
    with profile() as profiler:
        work()
    times = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    return sum(t for key, t in times.items() if any(part in key for part in FLOOR)) / sum(times.values())


def import_kymatio() -> None:
    """Import the development version, with the two patches without which it does not run."""
    sys.path.insert(0, str(FOLDER / "scrapl" / "kymatio"))
    import scipy.special

    if not hasattr(scipy.special, "sph_harm"):  # SciPy removed it, and JTFS does not use it
        scipy.special.sph_harm = None
    from kymatio.backend import torch_backend

    # torch.func refuses its modulus, an autograd.Function without setup_context.
    torch_backend.ModulusStable.apply = lambda z: torch.linalg.vector_norm(z, dim=-1)


Values = dict[tuple[int, ...], np.ndarray]  # (n1, n2, n_fr) or (n1, n_fr) or () of a path → coefficients (BATCH,)


class Contestant(NamedTuple):
    """What is timed, on how many sounds; and for JTFS its values in float64."""

    work: Callable[[], object]
    n_sounds: int
    exact: Callable[[], Values] | None = None


def drums(n: int) -> tuple[Tensor, Tensor]:
    """ν (n, 5) and sounds (n, N_SAMPLES), both float64."""
    from pnp_tutorial.drum import DRUM

    nu = DRUM.sample_uniform(n)
    return nu, DRUM(nu)


def theirs(what: str) -> Contestant:
    """kymatio's "JTFS", its "metric" by `torch.func.jacfwd`, or "SCRAPL"."""
    if what == "SCRAPL":
        return scrapl()
    nu, x = drums(BATCH)
    import_kymatio()
    from kymatio.numpy import TimeFrequencyScattering as NumpyTransform
    from kymatio.torch import TimeFrequencyScattering

    from pnp_tutorial.drum import DRUM

    jtfs = TimeFrequencyScattering(shape=N_SAMPLES, format="time", **CONFIG)

    def features(nu: Tensor) -> Tensor:
        return torch.log1p(jtfs(DRUM(nu).float())[..., 0].abs() / EPS)

    def metric() -> Tensor:
        J = torch.func.jacfwd(features)(nu[0])
        return J.mT @ J

    def exact() -> Values:  # its filters for torch are float32; its meta() is in another order than its array
        transform = NumpyTransform(shape=N_SAMPLES, format="time", out_type="list", **CONFIG)
        paths = [transform(each) for each in x.numpy()]
        return {path[0]["n"]: np.concatenate([p["coef"] for p in path]) for path in zip(*paths, strict=True)}

    return Contestant(metric, 1) if what == "metric" else Contestant(lambda: jtfs(x.float()), BATCH, exact)


def scrapl() -> Contestant:
    """SCRAPL: the gradient over ν̃ of a loss on one random path of kymatio's JTFS, which takes the place of them all.

    Without a network, for the library's encoder cannot be imported beside this kymatio.
    """
    nu, x = drums(STEP_BATCH)
    import_kymatio()
    sys.path.insert(0, str(FOLDER))
    logging.disable()  # it tells its settings
    from scrapl import SCRAPLLoss

    from pnp_tutorial.drum import DRUM

    torch.manual_seed(0)
    settings = {name: value for name, value in CONFIG.items() if name != "Q"}
    loss = SCRAPLLoss(N_SAMPLES, Q1=CONFIG["Q"][0], Q2=CONFIG["Q"][1], **settings, use_p_adam=False, use_p_saga=False)
    target = x.float()[:, None]
    nu_hat = (0.9 * nu).requires_grad_()

    def step() -> None:
        x_hat = DRUM(nu_hat, torch.float32)
        loss(x_hat[:, None], target).backward()

    return Contestant(step, STEP_BATCH)


def direct_sum(what: str) -> Contestant:
    """The "drum" as its equation has it: every mode at every sample."""
    from pnp_tutorial.drum import DRUM, modes

    nu, _ = drums(BATCH)

    def play() -> Tensor:
        t = torch.arange(N_SAMPLES, dtype=torch.float64) / DRUM.sample_rate
        sounds = []
        for each in DRUM.to_theta(nu):
            omega, sigma, a = (values[:, None] for values in modes(each))
            audible = omega < torch.pi * DRUM.sample_rate
            x = torch.where(audible, a * torch.exp(-sigma * t) * torch.sin(omega * t), 0).sum(0)
            sounds.append((x / x.abs().max()).float())
        return torch.stack(sounds)

    return Contestant(play, BATCH)


def ours(what: str) -> Contestant:
    """The library's "JTFS", "metric" or "drum"."""
    from pnp_tutorial.drum import DRUM
    from pnp_tutorial.metric import riemannian_metric
    from pnp_tutorial.scattering import JTFS, LogScattering

    if what == "drum":
        nu, _ = drums(DRUM_BATCH)
        return Contestant(torch.no_grad()(lambda: DRUM(nu, torch.float32)), DRUM_BATCH)
    nu, x = drums(BATCH)
    jtfs = JTFS(N_SAMPLES, **CONFIG)

    def exact() -> Values:
        transform = JTFS(N_SAMPLES, padding="reflect", dtype=torch.float64, **CONFIG)
        indices = transform.paths[["n1", "n2", "n_fr"]].itertuples(index=False)
        names = [tuple(n for n in row if n >= 0) for row in indices]
        return dict(zip(names, transform(x).numpy().T, strict=True))

    if what == "metric":
        return Contestant(lambda: riemannian_metric(nu, LogScattering(jtfs, EPS), DRUM), BATCH)

    def listen() -> Tensor:
        with torch.no_grad():
            return jtfs(x.float())

    return Contestant(listen, BATCH, exact)


def training_step(loss: str) -> Contestant:
    """A step of the paper's encoder with one loss."""
    import measured

    from pnp_tutorial.dataset import DatasetConfig

    nu, _ = drums(STEP_BATCH)
    step = measured.training_step(loss, nu, DatasetConfig(n_samples=N_SAMPLES), torch.float32)
    return Contestant(step, STEP_BATCH)


def serve(name: str, pipe: Connection) -> None:
    """Answer until told to stop: the seconds a sound, the peak memory, the floor, or the values in float64."""
    kind, _, what = name.rpartition(" ")
    work, n_sounds, exact = {"kymatio": theirs, "direct sum": direct_sum, "step": training_step, "": ours}[kind](what)
    forget_peak()  # what the sounds and torch itself take is not counted
    before = peak_bytes()
    while (command := pipe.recv()) != "stop":
        if command == "time":
            start = time.perf_counter()
            work()
            pipe.send((time.perf_counter() - start) / n_sounds)
        elif command == "memory":
            pipe.send(peak_bytes() - before)
        elif command == "floor":  # share of the time that goes to FFTs and matrix products, in one thread
            n_threads = torch.get_num_threads()
            torch.set_num_threads(1)
            pipe.send(floor(work))
            torch.set_num_threads(n_threads)
        elif command == "values" and exact is not None:
            pipe.send(exact())


def difference(ours: Values, theirs: Values) -> float:
    """Largest difference, relative to the largest coefficient, of all paths but those of spin 0 (n_fr = 0).

    There, the development version departs from its own description where F < 2^J_fr.
    """
    if set(ours) != set(theirs):
        raise ValueError(f"expected the same paths, got {len(ours)} and {len(theirs)}")
    compared = [n for n in ours if n == () or n[-1] != 0]
    largest = max(np.abs(values).max() for values in theirs.values())
    return max(np.abs(ours[n] - theirs[n]).max() for n in compared) / largest


def main(path: Path) -> None:
    # Not before: with the library comes another kymatio than that of some contestants.
    from measured import about

    from pnp_tutorial.runtime import write_results

    download()
    context = multiprocessing.get_context("spawn")
    pipes = {}
    for name in TURNS:
        pipes[name], other_end = context.Pipe()
        context.Process(target=serve, args=(name, other_end), daemon=True).start()
        other_end.close()  # so that a contestant that dies is noticed

    def ask(name: str, command: str) -> Any:
        pipes[name].send(command)
        return pipes[name].recv()

    for name in TURNS:  # warm up
        ask(name, "time")
    seconds: dict[str, list[float]] = {name: [] for name in TURNS}
    rounds = max(TURNS.values())
    for i in tqdm(range(rounds), unit="round"):
        for name, turns in TURNS.items():
            if i % (rounds // turns) == 0:
                seconds[name].append(ask(name, "time"))
    results = {
        "seconds": seconds,  # a sound, turn by turn
        "bytes": {name: ask(name, "memory") for name in TURNS},
        "floor": {name: ask(name, "floor") for name in ("drum", "JTFS", "metric")},
        "difference": difference(ask("JTFS", "values"), ask("kymatio JTFS", "values")),
        "config": {"n_samples": N_SAMPLES, "batch": BATCH, "drum_batch": DRUM_BATCH, **CONFIG},
        "reference": WHEEL,
        **about(),
    }
    for name in TURNS:
        pipes[name].send("stop")
    write_results(path, results, indent=1)


if __name__ == "__main__":
    main(path_argument(__doc__, "file of the results"))
