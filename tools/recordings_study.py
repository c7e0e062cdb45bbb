"""How `match` fares on recorded drums, with the rectangular drum and with the round one, and what it survives.

    python tools/recordings_study.py            # every match that is missing
    python tools/recordings_study.py tom kick   # of the sounds whose names begin so
    python tools/recordings_study.py --again    # those of the round drum once more, with another seed

The sounds are the recordings that ship with the package, and a few round drums whose parameters are known. The round
drum was chosen on these recordings, but for those called held. Every match is kept in runs/recordings as soon as it is
made, and written to pnp_tutorial/results/recordings once all that was asked for is matched: interrupted, it goes on
where it stopped. As many processes run side by side as torch has threads; the seconds are those of one processor core.
"""

import io
import json
import math
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import torch
from repository import ROOT, commit
from rows import numbers, refuse_unknown
from torch import Tensor
from workers import do_all

from pnp_tutorial import __version__
from pnp_tutorial.dataset import DatasetConfig, ear
from pnp_tutorial.drum import DRUM
from pnp_tutorial.encoder import AudioEncoder, Encoder, load_encoder
from pnp_tutorial.matching import Match, match
from pnp_tutorial.recording import load_recording
from pnp_tutorial.runtime import write_atomically, write_results
from pnp_tutorial.scattering import paper_features
from pnp_tutorial.synthesizer import find_synthesizer

RECORDINGS = ROOT / "pnp_tutorial/recordings"
AGAIN = "--again" in sys.argv  # which processes that are spawned have, too
NAME = "recordings_again" if AGAIN else "recordings"
RESULTS = ROOT / "pnp_tutorial/results" / NAME
RUNS = ROOT / "runs" / NAME
SEED = 2026  # of the drums whose parameters are known, and of the noise
N_KNOWN = 1
SPOILED = ("tom_high", "snare_1")  # recordings that are matched in every condition, as known drums are
SHORTEST, LONGEST = 2**14, 2**15  # samples of a round drum, of which half as many take half the time


def noisy(x: np.ndarray, rate: int) -> np.ndarray:
    """Coloured noise, whose power falls like 1/f, 20 dB below the mean power of the sound."""
    white = np.random.default_rng(SEED).normal(size=x.shape)
    spectrum = np.fft.rfft(white, axis=0)
    spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))[:, None]
    colour = np.fft.irfft(spectrum, len(x), axis=0)
    return x + 0.1 * x.std() / colour.std() * colour


def struck_again(x: np.ndarray, rate: int) -> np.ndarray:
    """A second stroke after 300 ms."""
    late = round(0.3 * rate)
    longer = np.pad(x, ((0, late), (0, 0)))
    longer[late:] += x
    return longer


# What becomes of channels (n, k) of a peak of 1, at a rate.
CONDITIONS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "clean": lambda x, rate: x,
    "noise": noisy,
    "clipped": lambda x, rate: x.clip(-0.5, 0.5),
    "mp3": lambda x, rate: x,
    "twice": struck_again,
}


@cache
def listener(name: str, n_samples: int) -> tuple[AudioEncoder, Any]:
    """An encoder and an ear. That of the round drum has learned nothing: a match begins in the middle of the box."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if name == "drum":
        model = load_encoder()
        return model, ear(model.config)
    synthesizer = replace(find_synthesizer(name), n_samples=n_samples)
    model = AudioEncoder(Encoder(len(synthesizer.names)), DatasetConfig(synthesizer=synthesizer)).eval()
    return model, ear(model.config)


def long_enough(path: Path) -> int:
    """Samples of a round drum that is matched to a file: a power of two by which the file is over, if LONGEST is."""
    n = math.ceil(soundfile.info(path).duration * DRUM.sample_rate)
    return min(max(SHORTEST, 2 ** math.ceil(math.log2(n))), LONGEST)


def known(i: int) -> Tensor:
    """ν (12,) of a round drum that is well inside the ranges."""
    return 0.8 * find_synthesizer("round_drum").sample_uniform(N_KNOWN, SEED)[i]


def sound(source: str, condition: str) -> Path:
    """File of a sound in a condition; that of a recording as it is ships with the package."""
    if source.startswith("known"):
        synthesizer, rate = find_synthesizer("round_drum"), 44_100
        x = soxr.resample(synthesizer(known(int(source[-1]))).numpy()[:, None], synthesizer.sample_rate, rate)
    elif condition == "clean":
        return RECORDINGS / f"{source}.flac"
    else:
        x, rate = soundfile.read(RECORDINGS / f"{source}.flac", always_2d=True)
    x = CONDITIONS[condition](x / np.abs(x).max(), rate)
    kind: dict[str, Any] = {"format": "FLAC", "subtype": "PCM_24"}
    if condition == "mp3":  # 128 kbit/s: a third of the way from 32 to 320
        kind = {"format": "MP3", "bitrate_mode": "CONSTANT", "compression_level": 2 / 3}
    path = RUNS / f"{source}-{condition}.{kind['format'].lower()}"
    content = io.BytesIO()
    soundfile.write(content, 0.9 * x / np.abs(x).max(), rate, **kind)
    write_atomically({path: content.getvalue()})
    return path


def jobs(source: str) -> list[tuple[str, str]]:
    """Models and conditions in which a sound is matched."""
    if source.startswith("known"):
        return [("round_drum", condition) for condition in CONDITIONS]
    models = [(model, "clean") for model in (("round_drum",) if AGAIN else ("round_drum", "drum"))]
    return models + [("round_drum", condition) for condition in CONDITIONS if condition != "clean"] * (
        source in SPOILED
    )


def run(source: str, model: str, condition: str) -> Path:
    return RUNS / f"{source}-{model}-{condition}.json"


def judge(found: Match, path: Path, clean: Path) -> tuple[float, float]:
    """Distances in the paper's features, of full length: from the file that was matched, and from a clean one.

    The matched sound is heard at its level, and for the former through the noise of the file.
    """
    synthesizer, features = replace(found.synthesizer, n_samples=DRUM.n_samples), paper_features()
    heard = 10 ** (found.level_db / 20) * synthesizer(found.nu, torch.float32)
    noise = torch.nn.functional.pad(found.noise, (0, len(heard) - len(found.noise)))
    with torch.no_grad():
        S, S_clean = (features(load_recording(each, synthesizer).x.float()) for each in (path, clean))
        return float((features(heard + noise) - S).norm()), float((features(heard) - S_clean).norm())


def one(source: str, name: str, condition: str) -> None:
    """Match one sound."""
    path = sound(source, condition)
    model, features = listener(name, long_enough(path))
    start = time.process_time()
    found = match(path, model, features, seed=int(AGAIN))
    seconds = time.process_time() - start
    far, from_clean = judge(found, path, sound(source, "clean"))
    row: dict[str, Any] = {"model": name, "condition": condition, "seconds": round(seconds, 1)}
    row |= {"nu": numbers(found.nu), "uncertainty": numbers(found.uncertainty)}
    row |= {
        "distance": float(f"{far:.4g}"),
        "from_clean": float(f"{from_clean:.4g}"),
        "level_db": round(found.level_db, 2),
    }
    row |= {"noise_db": round(found.noise_db, 1), "n_heard": found.history[-1].n_heard}
    row |= {"version": __version__, "commit": commit(), "torch": torch.__version__, "machine": platform.platform()}
    write_atomically({run(source, name, condition): json.dumps(row).encode()})


def main(prefixes: list[str]) -> None:
    names = sorted(path.stem for path in RECORDINGS.glob("*.flac")) + [f"known_{i}" for i in range(N_KNOWN)]
    refuse_unknown(prefixes, names)
    wanted = [name for name in names if name.startswith(tuple(prefixes) or ("",))]
    wanted = [name for name in wanted if not (RESULTS / f"{name}.json").exists()]
    missing = [(name, *job) for name in wanted for job in jobs(name) if not run(name, *job).exists()]
    missing.sort(key=lambda job: job[0].startswith("known") + 2 * (job[2] != "clean"))
    do_all(one, missing, torch.get_num_threads())
    for name in wanted:
        about: dict[str, Any] = {"seed": SEED}
        about |= {"nu": numbers(known(int(name[-1])))} if name.startswith("known") else {}
        rows = [json.loads(run(name, *job).read_text(encoding="utf-8")) for job in jobs(name)]
        write_results(RESULTS / f"{name}.json", {**about, "rows": rows})


if __name__ == "__main__":
    main([name for name in sys.argv[1:] if name != "--again"])
