"""What both benchmarks need: a training step to time, and the name of the processor that it was timed on."""

import platform
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from pnp_tutorial.dataset import DatasetConfig, encoder_input
from pnp_tutorial.drum import rectangular_drum
from pnp_tutorial.encoder import Encoder
from pnp_tutorial.synthesizer import to_theta
from pnp_tutorial.training import Batch, TrainingConfig, make_loss


def processor() -> str:
    """Name of the processor, where the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), platform.processor())


def training_step(
    loss: str, nu: Tensor, data: DatasetConfig, dtype: torch.dtype, compiled: bool = False
) -> Callable[[], object]:
    """A step of the papers' encoder, or of what torch.compile makes of it, on what a data set holds."""
    torch.manual_seed(0)
    scalogram = encoder_input(data).to(nu.device)
    M = torch.eye(nu.shape[1], dtype=nu.dtype, device=nu.device).expand(len(nu), -1, -1)
    batch = Batch(scalogram(rectangular_drum(to_theta(nu), data.n_samples)).half(), nu, M, M)
    value = make_loss(TrainingConfig(loss=loss), data, device=nu.device)  # type: ignore[arg-type]
    network = Encoder().to(nu.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(network.parameters())
    if compiled:
        network.compile()

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(nu.device.type, dtype, enabled=dtype != torch.float32):
            nu_hat = network(batch.S)
        value(nu_hat, batch, 1.0).backward()
        optimizer.step()

    return step
