"""What the benchmarks need: a training step and a synthesizer to time, and what they ran on."""

import os
import platform
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from repository import commit
from torch import Tensor

from pnp_tutorial import __version__
from pnp_tutorial.dataset import DatasetConfig, encoder_input
from pnp_tutorial.encoder import Encoder
from pnp_tutorial.synthesizer import Parameter, Synthesizer
from pnp_tutorial.training import Batch, TrainingConfig, make_loss


def processor() -> str:
    """Name of the processor, where the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), platform.processor())


def about() -> dict[str, Any]:
    """Machine, versions and commit, as every results file of a benchmark has them."""
    machine = {"processor": processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    versions = {name: version(name) for name in ("torch", "numpy", "scipy", "kymatio", "timm")}
    return {
        "machine": machine | {"system": platform.platform()},
        "versions": versions | {"pnp_tutorial": __version__, "python": platform.python_version()},
        "commit": commit(),
        "date": date.today().isoformat(),
    }


def training_step(
    loss: str, nu: Tensor, data: DatasetConfig, dtype: torch.dtype, how: str = "eager"
) -> Callable[[], object]:
    """A step of the papers' encoder on what a data set holds.

    As it is ("eager"), with the network as torch.compile makes it ("compiled"), or, on a GPU, as one CUDA graph of all
    its kernels ("graph"), which are then launched together.
    """
    torch.manual_seed(0)
    scalogram = encoder_input(data).to(nu.device)
    M = torch.eye(nu.shape[1], dtype=nu.dtype, device=nu.device).expand(len(nu), -1, -1)
    batch = Batch(scalogram(data.synthesizer(nu)).half(), nu, M, M)
    value = make_loss(TrainingConfig(loss=loss), data, device=nu.device)  # type: ignore[arg-type]
    network = Encoder(nu.shape[1]).to(nu.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(network.parameters(), capturable=how == "graph")
    if how == "compiled":
        network.compile()

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(nu.device.type, dtype, enabled=dtype != torch.float32, cache_enabled=how != "graph"):
            nu_hat = network(batch.S)
        value(nu_hat, batch, 1.0).backward()
        optimizer.step()

    return step if how != "graph" else captured(step)


def captured(step: Callable[[], object]) -> Callable[[], object]:
    """The kernels of a step as a CUDA graph: what replays them."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # what libraries choose and allocate at first is not captured
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def chord(n: int, n_samples: int, sample_rate: float) -> Synthesizer:
    """A synthesizer of n parameters: the loudnesses of n decaying partials."""

    def play(theta: Tensor, n_samples: int, sample_rate: float, *, dtype: torch.dtype) -> Tensor:
        t = torch.arange(n_samples, dtype=theta.dtype, device=theta.device) / sample_rate
        k = torch.arange(1, n + 1, dtype=theta.dtype, device=theta.device)[:, None]
        partials = torch.exp(-3 * t) * torch.sin(2 * torch.pi * 110 * k**0.9 * t)  # (n, n_samples)
        return (10 ** (theta / 20) @ partials).to(dtype)

    parameters = tuple(Parameter(f"level_{k}", f"l{k}", "dB", -60.0, 0.0, f"loudness of partial {k}") for k in range(n))
    return Synthesizer("chord", parameters, play, n_samples, sample_rate)
