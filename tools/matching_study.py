"""How `match` fares on drums whose parameters are known, clean or recorded badly, and on other membranes.

    python tools/matching_study.py               # every condition that is missing
    python tools/matching_study.py clean noise   # those whose names begin so

Every match is kept in runs/matching as soon as it is made, and conditions are written to pnp_tutorial/results/matching
once all that was asked for is matched: interrupted, it goes on where it stopped. As many processes run side by side as
torch has threads.
"""

import hashlib
import io
import json
import platform
import sys
import time
from collections.abc import Callable
from functools import cache, partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import torch
from repository import ROOT
from rows import numbers, refuse_unknown
from scipy.signal import fftconvolve
from torch import Tensor
from workers import do_all

from pnp_tutorial import __version__
from pnp_tutorial.bank import load_bank, shipped
from pnp_tutorial.dataset import ear
from pnp_tutorial.drum import DRUM, SAMPLE_RATE, rectangular_drum
from pnp_tutorial.encoder import load_encoder
from pnp_tutorial.matching import Match, Step, heard_through, match
from pnp_tutorial.membrane import play
from pnp_tutorial.metric import Map, riemannian_metric
from pnp_tutorial.mss import CoarseSpectra
from pnp_tutorial.runtime import read_results, write_atomically, write_results
from pnp_tutorial.search import refine, scan
from pnp_tutorial.uncertainty import covariance

RESULTS = ROOT / "pnp_tutorial/results/matching"
SEED = 2026  # of the drums, which no training has seen
N_DRUMS = 200
N_SOME = 12  # of them, matched without one of the stages too
N_NEAREST = 3  # drums of the bank from which those are refined
N_BAD = 12  # of them, in each condition that is not clean
SLIP = round(0.02 * SAMPLE_RATE)  # 20 ms


@cache
def encoder_sum() -> str:
    """SHA-256 of the encoder."""
    return hashlib.sha256(shipped("encoder.safetensors").read_bytes()).hexdigest()


def runs(name: str) -> Path:
    """Folder of the sounds of a condition; what another encoder began is not gone on with."""
    return Path("runs/matching", encoder_sum()[:12], name)


def is_done(name: str) -> bool:
    """Is a condition there, made with the encoder of today?"""
    path = RESULTS / f"{name}.json"
    return path.exists() and read_results(path)["encoder"] == encoder_sum()


def noisy(x: Tensor, snr_db: float) -> Tensor:
    """White noise of a power that is snr_db below that of the whole sound."""
    noise = torch.randn(len(x), generator=torch.Generator().manual_seed(SEED), dtype=x.dtype)
    return x + x.square().mean().sqrt() * 10 ** (-snr_db / 20) * noise


def faded_in(x: Tensor) -> Tensor:
    """Without its attack: it swells over 20 ms."""
    return torch.cat([x[:SLIP] * torch.linspace(0, 1, SLIP, dtype=x.dtype), x[SLIP:]])


CONDITIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "clean": lambda x: x,
    "noise-20dB": partial(noisy, snr_db=20),
    "noise-10dB": partial(noisy, snr_db=10),
    "noise-0dB": partial(noisy, snr_db=0),
    "late-20ms": lambda x: torch.cat([torch.zeros(SLIP, dtype=x.dtype), x[:-SLIP]]),
    "early-20ms": lambda x: torch.cat([x[SLIP:], torch.zeros(SLIP, dtype=x.dtype)]),
    "no-attack": faded_in,
}


def filed(x: Tensor, rate: int) -> np.ndarray:
    """Two equal channels (n, 2) of another rate, at half level and after 0.1 s of silence."""
    late = np.concatenate([np.zeros(SAMPLE_RATE // 10), 0.5 * x.numpy()])
    return np.stack(2 * [soxr.resample(late, SAMPLE_RATE, rate)], 1)


def by_phone(x: Tensor, rate: int) -> np.ndarray:
    """Two channels (n, 2) as a phone may record them: half a second late, one at half the level of the other.

    Each has white noise of its own, from the first sample to half a second after the drum. In the band of x, it is
    20 dB below the drum of the louder channel.
    """
    silence = np.zeros(SAMPLE_RATE // 2)
    late = soxr.resample(np.concatenate([silence, x.numpy(), silence]), SAMPLE_RATE, rate)
    noise_std = 0.1 * float(x.square().mean().sqrt()) * (rate / SAMPLE_RATE) ** 0.5
    noise = noise_std * np.random.default_rng(SEED).normal(size=(len(late), 2))
    return 0.5 * (late[:, None] * [1.0, 0.5] + noise)


# What is written to a 16-bit file, and its sample rate.
FILES: dict[str, tuple[Callable[[Tensor, int], np.ndarray], int]] = {
    "44.1kHz": (filed, 44_100),
    "48kHz": (filed, 48_000),
    "phone": (by_phone, 44_100),
}


def coloured(x: Tensor, nu: Tensor, random: np.random.Generator) -> Tensor:
    """With noise whose power falls as 1/f (rumble, wind) or 1/f² and is 10 to 30 dB below that of the whole sound."""
    spectrum = np.fft.rfft(random.normal(size=len(x)))
    spectrum[1:] /= np.arange(1, len(spectrum)) ** random.choice([0.5, 1.0])
    spectrum[0] = 0
    noise = np.fft.irfft(spectrum, len(x))
    level = float(x.square().mean()) ** 0.5 * 10 ** (-random.uniform(10, 30) / 20)
    return x + torch.from_numpy(level / noise.std() * noise)


def in_a_room(x: Tensor, nu: Tensor, random: np.random.Generator) -> Tensor:
    """With an echo that falls by 60 dB in 0.2 to 0.8 s: noise, its energy 5 to 15 dB below that of the direct sound."""
    t = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    tail = random.normal(size=len(t)) * 10 ** (-3 * t / random.uniform(0.2, 0.8)) * (t > 0.005)
    tail *= 10 ** (-random.uniform(5, 15) / 20) / np.linalg.norm(tail)
    tail[0] = 1
    return torch.from_numpy(fftconvolve(x.numpy(), tail)[: len(x)])


def elsewhere(x: Tensor, nu: Tensor, random: np.random.Generator) -> Tensor:
    """The same drum, but struck and heard at other places than the model's: each partial has another loudness."""
    strike, ear = random.uniform(0.15, 0.5, (2, 2)).tolist()
    return rectangular_drum(DRUM.to_theta(nu), strike=tuple(strike), ear=tuple(ear))


# What the matcher does not expect: by it uncertainties are calibrated on some drums, and tested on others.
UNEXPECTED: dict[str, Callable[[Tensor, Tensor, np.random.Generator], Tensor]] = {
    "coloured": coloured,
    "room": in_a_room,
    "elsewhere": elsewhere,
}
SEEDS = {"calibration": 2027, "test": 2028}  # of those drums
CALIBRATION = {f"{kind}-{half}": (kind, seed) for half, seed in SEEDS.items() for kind in UNEXPECTED}
N_CALIBRATION = 12  # drums in each
NEAR = 1e-2  # of ‖C(x)‖: what the page's matcher takes for a match


# Drums that the finite differences of `membrane` play, and in what each differs from the closed form.
MEMBRANES: dict[str, dict[str, Any]] = {
    "membrane-rectangle": {},  # the same drum, but for the detuning of a grid of 20 intervals
    "membrane-ellipse": {"rim": "ellipse"},
    "membrane-bend": {"bend": 0.3},
    "membrane-edge": {"strike": (0.15, 0.3)},
    "membrane-middle": {"strike": (0.5, 0.5)},
}
PLAYED = [[2.9, 0.4, -2.5, -3.0, 1.0], [3.05, 0.3, -3.5, -2.5, 0.8], [2.75, 0.5, -2.0, -2.5, 0.6]]  # θ


@cache
def model_and_features() -> tuple:
    torch.set_num_threads(1)
    model = load_encoder()
    return model, ear(model.config)


@cache
def coarse_spectra() -> CoarseSpectra:
    return CoarseSpectra(DRUM.n_samples, SAMPLE_RATE)


@cache
def bank_and_spectra() -> tuple[Tensor, Tensor]:
    """ν (n, 5) of all drums of the bank, and their coarse spectra (n, P)."""
    nu, coarse = load_bank().nu, coarse_spectra()
    with torch.no_grad():
        return nu, torch.cat([coarse(drum(some)) for some in nu.split(16)])


def drum(nu: Tensor) -> Tensor:
    return DRUM(nu, torch.float32)


def end_of_scan(found: Match) -> dict[str, list[float]]:
    """ν where the scan of a match ended, and its uncertainty by coarse spectra, as the page's matcher states it."""
    step = [step for step in found.history if step.stage == "scan"][-1]
    v, coarse = torch.tensor(step.v, dtype=torch.float64), coarse_spectra()
    M = riemannian_metric(v[None], coarse, heard_through(found.noise, DRUM, v.device))[0]
    near = NEAR * float(coarse(found.x).norm())
    spread = covariance(M / near**2, step.distance / near).diagonal().sqrt()
    return {"nu_hat": numbers(v[:-1]), "uncertainty": numbers(spread[:-1])}


def recorded(name: str, i: int) -> tuple[Tensor, Tensor | Path]:
    """ν (5,) of a drum, and its sound as a condition has it, or a file of that."""
    if name in MEMBRANES:
        x = torch.from_numpy(play(PLAYED[i], **MEMBRANES[name])).float()
        if i == 0:  # to listen to
            sound = io.BytesIO()
            soundfile.write(sound, 0.9 * x.numpy(), SAMPLE_RATE, format="FLAC", subtype="PCM_16")
            write_atomically({RESULTS / f"{name}.flac": sound.getvalue()})
        return DRUM.to_nu(torch.tensor(PLAYED[i], dtype=torch.float64)), x
    if name in CALIBRATION:
        kind, seed = CALIBRATION[name]
        nu = DRUM.sample_uniform(N_CALIBRATION, seed)[i]
        x = UNEXPECTED[kind](DRUM(nu), nu, np.random.default_rng([seed, i]))
        return nu, (x / x.abs().max()).float()
    nu = DRUM.sample_uniform(N_DRUMS, SEED)[i]
    x = DRUM(nu)
    if name in FILES:
        condition, rate = FILES[name]
        path, channels = runs(name) / f"{i}.wav", condition(x, rate)
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, channels, rate, subtype="PCM_16")
        return nu, path
    x = CONDITIONS[name](x)
    return nu, (x / x.abs().max()).float()


def other_ways(x: Tensor, nu_encoder: Tensor, features: Map) -> dict[str, Any]:
    """What is found from the encoder without a scan, by a scan without the encoder, and from the bank."""
    with torch.no_grad():
        S = features(x)
    found = {}
    alone, distance, _ = refine(S, nu_encoder, features, drum)
    found["refined_only"] = {"nu_hat": numbers(alone), "distance": float(f"{distance:.4g}")}
    steps: list[Step] = []
    scanned, *_ = scan(x, drum, torch.zeros_like(nu_encoder), SAMPLE_RATE, tell=steps.append)
    with torch.no_grad():
        distance = float((features(drum(scanned)) - S).norm())
    found["scanned_only"] = {"nu_hat": numbers(scanned), "distance": float(f"{distance:.4g}")}
    found["scanned_only"]["n_drums"] = steps[-1].n_heard
    bank, spectra = bank_and_spectra()
    with torch.no_grad():
        nearest = (spectra - coarse_spectra()(x)).norm(dim=-1).topk(N_NEAREST, largest=False).indices
    ends = []
    for nu_bank in bank[nearest]:
        steps = []
        alone, distance, _ = refine(S, nu_bank, features, drum, tell=steps.append)
        ends.append((distance, alone, steps[-1].n_heard))
    distance, alone, _ = min(ends, key=itemgetter(0))
    found["bank_only"] = {"nu_hat": numbers(alone), "distance": float(f"{distance:.4g}")}
    found["bank_only"]["n_drums"] = sum(n_drums for *_, n_drums in ends)  # those of the bank are heard once for all
    return found


def one(name: str, i: int) -> None:
    """Match one sound, and the first clean ones in other ways too."""
    model, features = model_and_features()
    nu, x = recorded(name, i)
    start = time.process_time()
    found = match(x, model, features)
    row: dict[str, Any] = {"seconds": round(time.process_time() - start, 1)}
    row |= {"nu": numbers(nu), "nu_hat": numbers(found.nu), "uncertainty": numbers(found.uncertainty)}
    row |= {"nu_encoder": numbers(found.nu_encoder)}
    row |= {"distance": {name: float(f"{distance:.4g}") for name, distance in found.distance.items()}}
    row |= {"level_db": round(found.level_db, 2), "noise_db": round(found.noise_db, 1)}
    row |= {"n_drums": found.history[-1].n_heard, "n_iterations": sum(step.stage == "refine" for step in found.history)}
    if name in CALIBRATION:
        row["scan"] = end_of_scan(found)
    if name == "clean" and i < N_SOME:
        row |= other_ways(x, found.nu_encoder, features)
    write_atomically({runs(name) / f"{i}.json": json.dumps(row).encode()})


def main(prefixes: list[str]) -> None:
    sizes = {name: N_DRUMS if name == "clean" else N_BAD for name in (*CONDITIONS, *FILES)}
    sizes |= dict.fromkeys(MEMBRANES, len(PLAYED)) | dict.fromkeys(CALIBRATION, N_CALIBRATION)
    refuse_unknown(prefixes, sizes)
    wanted = {name: range(n) for name, n in sizes.items() if name.startswith(tuple(prefixes) or ("",))}
    missing = [(name, i) for name, rows in wanted.items() for i in rows if not (runs(name) / f"{i}.json").exists()]
    missing = [(name, i) for name, i in missing if not is_done(name)]
    do_all(one, missing, torch.get_num_threads())
    for name, rows in wanted.items():
        if not is_done(name):
            done = [json.loads((runs(name) / f"{i}.json").read_text(encoding="utf-8")) for i in rows]
            seed = CALIBRATION.get(name, (name, SEED))[1]
            about = {"seed": seed, "version": __version__, "torch": torch.__version__, "machine": platform.platform()}
            about["encoder"] = encoder_sum()
            write_results(RESULTS / f"{name}.json", {**about, "rows": done})


if __name__ == "__main__":
    main(sys.argv[1:])
