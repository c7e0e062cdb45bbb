"""How far the drums of an encoder are from the true ones, to the ear and in their parameters.

    JTFS distance   ‖Φ(g(ν̃)) − Φ(g(ν))‖₂
    MSS distance    auraloss's multi-resolution STFT loss, with its defaults, as in Han et al. (2023)

The floor under every result is the best constant: the one drum that, whatever the sound, is closest on average.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats
import torch
from torch import Tensor
from tqdm.auto import tqdm

from .dataset import Drums, ear, load, read_config
from .drum import rectangular_drum
from .encoder import AudioEncoder, load_encoder, refuse_other_scalogram, save
from .metric import Map
from .mss import mss_distance
from .runtime import float64_device, select_device, write_atomically
from .synthesizer import N_PARAMETERS, NAMES, to_theta

BATCH = 8  # sounds whose features are taken at once


@dataclass(frozen=True)
class EvaluationConfig:
    """What is evaluated, and on what.

    Parameters
    ----------
    encoder
        File of the encoder; the one that ships with the package, if not given.
    data
        Path of the data set.
    output_folder
        Where evaluation.csv, evaluation.json and the encoder, with these results in its header, are written.
    n_sounds
        At most so many sounds of the test split.
    n_constant
        So many sounds of the training split are candidates for the best constant.
    device
        "auto", "cpu", "cuda" or "mps".
    """

    encoder: str | None = None
    data: str = "data/drums.zarr"
    output_folder: str = "runs/evaluation"
    n_sounds: int = 1000
    n_constant: int = 256
    device: str = "auto"


def _in_batches(function: Callable[[Tensor], Tensor], rows: Tensor, progress: bool = False) -> Tensor:
    with torch.no_grad():
        batches = tqdm(rows.split(BATCH), desc="features", unit="batch", disable=not progress)
        return torch.cat([function(batch) for batch in batches])


def jtfs_distance(x_hat: Tensor, x: Tensor, features: Map) -> Tensor:
    """‖Φ(x̃) − Φ(x)‖₂ (B,), of each pair of sounds (B, n_samples); Φ is `features`, such as `paper_features()`."""
    return torch.linalg.vector_norm(_in_batches(features, x_hat) - _in_batches(features, x), dim=-1)


def best_constant(nu: Tensor, features: Map, synthesizer: Map = rectangular_drum, progress: bool = False) -> Tensor:
    """The ν (5,), among the rows of ν (n, 5) and the centre 0, of the least mean JTFS distance to all rows.

    The best that an encoder could do which does not listen: with features S of the n sounds, the row c that
    minimizes Σ_i ‖S_c − S_i‖₂ (their medoid).
    """
    candidates = torch.cat([nu, torch.zeros_like(nu[:1])])
    S = _in_batches(lambda rows: features(synthesizer(to_theta(rows))), candidates, progress)
    return candidates[torch.cdist(S, S[:-1], compute_mode="donot_use_mm_for_euclid_dist").mean(1).argmin()]


def predict(model: AudioEncoder, drums: Drums) -> Tensor:
    """ν̃ (n, 5), float64, of the scalograms of a data set; an encoder of known pitch is given the true one."""
    device = next(model.parameters()).device
    with torch.no_grad():
        batches = drums.scalogram.split(64)
        nu_hat = torch.cat([model.encoder(batch.to(device)) for batch in batches]).to(drums.nu)
    return torch.cat([drums.nu[:, : N_PARAMETERS - nu_hat.shape[-1]], nu_hat], -1)


def evaluate(
    nu_hat: Tensor, nu: Tensor, nu_constant: Tensor, features: Map, synthesizer: Map = rectangular_drum
) -> pd.DataFrame:
    """Distances and errors of predictions ν̃ (n, 5) of ν (n, 5), next to those of the constant ν (5,).

    Returns
    -------
    table : DataFrame, n rows
        jtfs, mss: distance of the predicted drum from the true one; jtfs_constant, mss_constant: of the constant
        drum; jtfs_gain: jtfs_constant − jtfs, more than 0 where the encoder is better; error_<parameter>: |ν̃ − ν|,
        where the whole range is 2.
    """
    rows: list[pd.DataFrame] = []
    with torch.no_grad():
        constant = synthesizer(to_theta(nu_constant[None]))
        S_constant = features(constant)
        for part, part_hat in zip(nu.split(BATCH), nu_hat.split(BATCH), strict=True):
            x, x_hat = synthesizer(to_theta(part)), synthesizer(to_theta(part_hat))
            S = features(x)
            columns = {
                "jtfs": torch.linalg.vector_norm(features(x_hat) - S, dim=-1),
                "mss": mss_distance(x_hat, x),
                "jtfs_constant": torch.linalg.vector_norm(S_constant - S, dim=-1),
                "mss_constant": mss_distance(constant.expand_as(x), x),
            }
            errors = {f"error_{name}": error for name, error in zip(NAMES, (part_hat - part).abs().T, strict=True)}
            rows.append(pd.DataFrame({name: values.cpu().numpy() for name, values in (columns | errors).items()}))
    table = pd.concat(rows, ignore_index=True)
    table.insert(4, "jtfs_gain", table.jtfs_constant - table.jtfs)
    return table


def summarize(table: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Mean of every column and its 95 % bootstrap interval: columns mean, low, high."""
    summary = {}
    for name, values in table.items():
        sample = (values.to_numpy(),)
        generator = np.random.default_rng(seed)
        interval = scipy.stats.bootstrap(sample, np.mean, method="percentile", rng=generator).confidence_interval
        summary[name] = {"mean": float(values.mean()), "low": float(interval.low), "high": float(interval.high)}
    return pd.DataFrame.from_dict(summary, orient="index")


def report(config: EvaluationConfig, progress: bool = True) -> pd.DataFrame:
    """Evaluate an encoder on the test split, write the results, and return their summary.

    Writes evaluation.csv (one row a sound), evaluation.json (configuration and summary) and encoder.safetensors, with
    summary and best constant in its header: `matching.match` compares with that constant.
    Raises ValueError if encoder or data set are missing or do not fit, or if there are fewer than two test sounds.
    """
    device = select_device(config.device)
    model = load_encoder(config.encoder, device)
    data = read_config(config.data)
    refuse_other_scalogram(model, data, config.data)
    test, train = load(config.data, "test"), load(config.data, "train")
    test = Drums(test.nu[: config.n_sounds], test.scalogram[: config.n_sounds], None)
    if len(test.nu) < 2 or config.n_constant < 1:
        raise ValueError(f"expected two test sounds and n_constant ≥ 1, got {len(test.nu)} and {config.n_constant}")

    where = float64_device(device)  # of ν
    features, synthesizer = ear(data).to(where), partial(rectangular_drum, n_samples=data.n_samples)
    nu_constant = best_constant(train.nu[: config.n_constant].to(where), features, synthesizer, progress)
    table = evaluate(predict(model, test).to(where), test.nu.to(where), nu_constant, features, synthesizer)
    summary = summarize(table)
    results: dict[str, Any] = {"n_sounds": len(test.nu), "summary": summary.to_dict("index")}
    results |= {"nu_constant": nu_constant.tolist(), "config": asdict(config), "dataset": asdict(data)}
    folder = Path(config.output_folder)
    csv, document = table.to_csv(index_label="sound").encode(), json.dumps(results, indent=2).encode()
    write_atomically({folder / "evaluation.csv": csv, folder / "evaluation.json": document})
    model.metadata["evaluation"] = {**results, "config": None, "dataset": None}
    save(model, folder / "encoder.safetensors")
    return summary
