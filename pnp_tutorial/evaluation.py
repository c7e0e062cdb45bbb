"""How far the sounds of an encoder are from the true ones, to the ear and in their parameters.

    ear    ‖Φ(g(ν̃)) − Φ(g(ν))‖₂, in the features of the data set's ear: JTFS, if no other was asked for
    MSS    auraloss's multi-resolution STFT loss, with its defaults, as in Han et al. (2023)

The floor under every result is the best constant: the one ν that, whatever the sound, is closest on average. What an
encoder is given of a sound's parameters then takes the place of the constant's.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from tqdm.auto import tqdm

from .checks import refuse_elsewhere
from .dataset_config import ear
from .ears import ear_name
from .encoder import CHECKPOINT, AudioEncoder, complete, load_encoder, refuse_other_scalogram, save, sought
from .metric import Map
from .mss import SHORTEST, mss_distance
from .runtime import as_stored, check_fields, check_writable, float64_device, plain, select_device, write_atomically
from .store import Rows, at_most, load, read_config
from .synthesizer import Synthesizer

BATCH = 8  # sounds whose features are taken at once
GPU_BATCH = 64  # on a GPU, which fewer would not keep busy


@dataclass(frozen=True)
class EvaluationConfig:
    """What is evaluated, and on what.

    Parameters
    ----------
    encoder
        File of the encoder; if not given, the one that ships for `synthesizer`, and the drum's if that is not given
        either, whatever the data set.
    data
        Path of the data set.
    output_folder
        Where evaluation.csv, evaluation.json and the encoder, with these results in its header, are written. They
        replace those of an earlier evaluation.
    synthesizer, ear
        Of the data set, if they are none of the library. `synthesizer` also chooses the encoder, if none is given.
    n_sounds
        At most so many sounds of the test split, drawn from all over it.
    n_constant
        So many sounds of the training split, drawn in the same way, are candidates for the best constant.
    device
        "cpu", "cuda", "mps", or "auto": cuda if there is one, else mps if there is one, else cpu.

    Nothing is checked when it is made: `report` raises ValueError if it is impossible.
    """

    encoder: str | None = None
    data: str = "data/sounds.zarr"
    output_folder: str = "runs/evaluation"
    synthesizer: Synthesizer | None = None
    ear: str | Map | None = None
    n_sounds: int = 1000
    n_constant: int = 256
    device: str = "auto"

    def __post_init__(self) -> None:
        plain(self)


def _batches(rows: Tensor) -> tuple[Tensor, ...]:
    return rows.split(GPU_BATCH if rows.is_cuda else BATCH)


def best_constant(nu: Tensor, features: Map, synthesizer: Map, progress: bool = False) -> Tensor:
    """The ν (n,), among the rows of ν (B, n) and the centre 0, of the least mean distance to all rows in features.

    The best that an encoder could do which does not listen: with features S of the B sounds, the row c that
    minimizes Σ_i ‖S_c − S_i‖₂ (their medoid).
    """
    candidates = torch.cat([nu, nu.new_zeros(1, nu.shape[1])])
    if not len(nu):
        return candidates[0]
    with torch.no_grad():
        batches = tqdm(_batches(candidates), desc="features", unit="batch", disable=not progress)
        S = torch.cat([features(synthesizer(batch).float()) for batch in batches])
    return candidates[torch.cdist(S, S[:-1], compute_mode="donot_use_mm_for_euclid_dist").mean(1).argmin()]


def predict(model: AudioEncoder, rows: Rows) -> Tensor:
    """ν̃ (B, n), float64, of the scalograms of a data set; an encoder with known parameters is given the true ones."""
    device = next(model.parameters()).device
    with torch.no_grad():
        assert rows.scalogram is not None
        batches = rows.scalogram.split(64)
        nu_hat = torch.cat([model.encoder(batch.to(device)) for batch in batches])
    return complete(nu_hat.to(rows.nu.device), rows.nu, sought(model.config, model.known))


def evaluate(nu_hat: Tensor, nu: Tensor, nu_constant: Tensor, features: Map, synthesizer: Synthesizer) -> pd.DataFrame:
    """Distances and errors of predictions ν̃ (B, n) of ν (B, n), next to those of a constant.

    That is one ν (n,), or ν (B, n) where it is given what is known of each sound.

    Returns
    -------
    table : DataFrame, B rows
        ear, mss: distance of the predicted sound from the true one; ear_constant, mss_constant: of the constant one;
        ear_gain: ear_constant − ear, more than 0 where the encoder is better; error_<parameter>: |ν̃ − ν|, where the
        whole range is 2. Of sounds that are too short for MSS, no mss.
    """
    rows, names = [], synthesizer.names

    def heard(nu: Tensor) -> tuple[Tensor, Tensor]:
        x = synthesizer(nu).float()
        return x, features(x)

    with torch.no_grad():
        alone = heard(nu_constant[None]) if nu_constant.ndim == 1 else None
        for part, part_hat, part_constant in zip(*map(_batches, (nu, nu_hat, nu_constant.expand_as(nu))), strict=True):
            x, S = heard(part)
            columns = {}
            for of, (y, S_y) in (("", heard(part_hat)), ("_constant", alone or heard(part_constant))):
                columns[f"ear{of}"] = torch.linalg.vector_norm(S_y - S, dim=-1)
                if x.shape[-1] >= SHORTEST:
                    columns[f"mss{of}"] = mss_distance(y.expand_as(x), x)
            errors = {f"error_{name}": error for name, error in zip(names, (part_hat - part).abs().T, strict=True)}
            rows.append(pd.DataFrame({name: values.cpu().numpy() for name, values in (columns | errors).items()}))
    table = pd.concat(rows, ignore_index=True)
    table.insert(table.columns.get_loc(f"error_{names[0]}"), "ear_gain", table.ear_constant - table.ear)
    return table


def summarize(table: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Mean of every column and its 95 % bootstrap interval: columns mean, low, high.

    Raises ValueError of a table of fewer than two rows.
    """
    import scipy.stats  # here, as it takes a third of a second, and whoever matches sounds does without

    summary = {}
    for name, values in table.items():
        sample = (values.to_numpy(),)
        generator = np.random.default_rng(seed)
        options = {"method": "percentile", "batch": 500, "rng": generator}  # in batches, as memory has its limits
        interval = scipy.stats.bootstrap(sample, np.mean, **options).confidence_interval
        summary[name] = {"mean": float(values.mean()), "low": float(interval.low), "high": float(interval.high)}
    return pd.DataFrame.from_dict(summary, orient="index")


def paired_gain(far: ArrayLike, near: ArrayLike, n_resamples: int = 4000, seed: int = 0) -> dict[str, float]:
    """By how much one loss comes closer than another, and how sure that is, over seeds and over sounds.

    Every seed of both is tested on the same sounds, so that the bootstrap draws seeds and, crossed with them, sounds,
    both with replacement. (Of few seeds a bootstrap knows little: with five, the interval is somewhat too narrow.)

    Parameters
    ----------
    far, near : arrays, shape (n_seeds, n_sounds)
        Distances of both; the same seed in the same row, the same sound in the same column.
    n_resamples, seed : int
        Of the bootstrap.

    Returns
    -------
    dict of mean, low and high
        Mean of far − near, and its 95 % interval; and `effect`, the mean divided by the standard deviation of the
        seeds' means (not a number with one seed, or if their means agree exactly).

    Raises ValueError unless both have one shape of two axes, of at least one seed and one sound.
    """
    gain = np.asarray(far, dtype=float) - np.asarray(near, dtype=float) if np.shape(far) == np.shape(near) else None
    if gain is None or gain.ndim != 2 or not gain.size:
        raise ValueError(f"expected two arrays of one shape (seeds, sounds), got {np.shape(far)} and {np.shape(near)}")
    n_seeds, n_sounds = gain.shape
    random = np.random.default_rng(seed)
    seeds = random.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), n_resamples) / n_seeds
    sounds = random.multinomial(n_sounds, np.full(n_sounds, 1 / n_sounds), n_resamples) / n_sounds
    low, high = np.quantile(((seeds @ gain) * sounds).sum(1), [0.025, 0.975])
    spread = (gain.mean(1).std(ddof=1) if n_seeds > 1 else 0) or np.nan
    mean = gain.mean()
    return {"mean": float(mean), "low": float(low), "high": float(high), "effect": float(mean / spread)}


def report(config: EvaluationConfig, progress: bool = True) -> pd.DataFrame:
    """Evaluate an encoder on the test split, write the results, and return their summary.

    Writes evaluation.csv (one row a sound), evaluation.json (configuration and summary) and encoder.safetensors, with
    the summary in its header, and the best constant, with which `matching.match` compares. (If another ear than the
    encoder's judged, the header keeps the constant that it has.)
    Raises ValueError if encoder or data set are missing or do not fit, or if there are fewer than two test sounds, and
    OSError if the output folder cannot be written to. Also raises ValueError if that folder holds a training and it is
    another encoder that is evaluated: it would take the place of what was trained.
    """
    check_fields(config)
    if config.n_sounds < 2 or config.n_constant < 1:
        raise ValueError(
            f"expected n_sounds ≥ 2 and n_constant ≥ 1, got n_sounds = {config.n_sounds} and n_constant = "
            f"{config.n_constant}"
        )
    check_writable(config.output_folder)
    _keep_what_was_trained(config)
    device = select_device(config.device)
    model = load_encoder(config.encoder, device, config.synthesizer)  # whichever ear it was trained for
    where = float64_device(device)  # of ν, of sounds and of features
    data = read_config(config.data, config.synthesizer, config.ear, where)
    refuse_elsewhere(data.synthesizer, where)
    refuse_other_scalogram(model, data, config.data)
    test = at_most(load(config.data, "test", ("scalogram",)), config.n_sounds, data.sampling)
    train = at_most(load(config.data, "train", ()), config.n_constant, data.sampling)
    if len(test.nu) < 2:
        raise ValueError(f"expected at least two test sounds in {config.data}, got {len(test.nu)}")

    features, synthesizer = ear(data, where), data.synthesizer
    nu_constant = best_constant(train.nu.to(where), features, synthesizer, progress)
    nu, columns = test.nu.to(where), sought(data, model.known)
    constants = complete(nu_constant[columns].expand(len(nu), -1), nu, columns) if model.known else nu_constant
    table = evaluate(predict(model, test).to(where), nu, constants, features, synthesizer)
    summary = summarize(table)
    results: dict[str, Any] = {"n_sounds": len(test.nu), "summary": summary.to_dict("index")}
    results |= {"nu_constant": nu_constant.tolist(), "config": as_stored(config), "dataset": as_stored(data)}
    folder = Path(config.output_folder)
    csv, document = table.to_csv(index_label="sound").encode(), json.dumps(results, indent=2).encode()
    write_atomically({folder / "evaluation.csv": csv, folder / "evaluation.json": document})
    if ear_name(data.ear) != ear_name(model.config.ear):  # the best to another ear than the encoder's
        before = model.metadata.get("evaluation", {}).get("nu_constant")
        results = {name: value for name, value in results.items() if name != "nu_constant"}
        results |= {"nu_constant": before} if before else {}
    model.metadata["evaluation"] = {**results, "config": None, "dataset": None}
    save(model, folder / "encoder.safetensors")
    return summary


def _keep_what_was_trained(config: EvaluationConfig) -> None:
    own = Path(config.output_folder, "encoder.safetensors")
    is_own = config.encoder is not None and Path(config.encoder).resolve() == own.resolve()
    if Path(config.output_folder, CHECKPOINT).exists() and not is_own:
        other = "the encoder that ships with the package" if config.encoder is None else config.encoder
        raise ValueError(
            f"{config.output_folder} holds a training, whose encoder {other} would replace: evaluate that one, "
            f"as --encoder {own}, or choose another output folder"
        )
