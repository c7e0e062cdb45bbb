"""What several tests share: a data set of short sounds, and an encoder trained on it for a moment."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

# Imports are inside the fixtures: most tests need neither timm nor zarr.


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """40 sounds of 2 048 samples: configuration of a data set that is already built."""
    from pnp_tutorial.dataset import DatasetConfig, build

    path = str(tmp_path_factory.mktemp("data") / "tiny.zarr")
    config = DatasetConfig(data=path, n_sounds=40, n_samples=2048, J=6, T=64, device="cpu")
    build(config, progress=False)
    return config


@pytest.fixture(scope="session")
def tiny_training(tiny_data, tmp_path_factory):
    """Configuration of a run that is already finished: two epochs of a small network."""
    from pnp_tutorial.training import TrainingConfig, fit

    folder = str(tmp_path_factory.mktemp("run"))
    config = TrainingConfig(
        data=tiny_data.data,
        output_folder=folder,
        backbone="test_efficientnet",
        n_epochs=2,
        batch_size=8,
        precision="32-true",  # on every machine, so that tolerances are those of float32
        device="cpu",
    )
    fit(config, progress=False)
    return config


def as_slurm_starts_them(code: str) -> list[subprocess.Popen]:
    """Two processes of one group that run a program, and that nobody ends if one of them dies."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    shared |= {"TORCHELASTIC_RUN_ID": "none", "GROUP_RANK": "0", "OMP_NUM_THREADS": "1"}
    environments = [os.environ | shared | {"RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]
    command = [sys.executable, "-c", code]
    return [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) for environment in environments]


def fields_of(config) -> dict:
    """What a configuration is made of, but for the objects in it."""
    from pnp_tutorial.runtime import as_stored

    return {name: value for name, value in as_stored(config).items() if name not in ("synthesizer", "ear", "known")}


def contents(path: str | Path) -> dict[str, bytes]:
    """Every file of a store that holds numbers, by name."""
    return {str(p.relative_to(path)): p.read_bytes() for p in Path(path).rglob("*") if p.is_file() and "/c/" in str(p)}
