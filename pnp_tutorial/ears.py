"""Ears Φ by name, or any map of one's own.

`jtfs` is that of the papers, `mss` its rival, `mss-linear` the same without logarithms, `coarse` a plain one.
"""

import math
from collections.abc import Callable

import torch

from .metric import Map
from .mss import MSS, CoarseSpectra
from .runtime import check_whole, object_name
from .scattering import JTFS, LogScattering
from .synthesizer import Synthesizer, levels


def jtfs(n_samples: int, sample_rate: float) -> LogScattering:
    """The papers' Φ for sounds of 65 536 samples, J = 13; for shorter ones with as many octaves fewer.

    Raises ValueError unless n_samples is a whole number, at least 32.
    """
    check_whole("n_samples", n_samples, 32)
    return LogScattering(JTFS(n_samples, J=int(math.log2(n_samples)) - 3, sample_rate=sample_rate))


# Each makes Φ for sounds of some n_samples and sample_rate.
EARS: dict[str, Callable[[int, float], Map]] = {
    "jtfs": jtfs,
    "mss": lambda n_samples, sample_rate: MSS(),
    "mss-linear": lambda n_samples, sample_rate: MSS(log=False),
    "coarse": CoarseSpectra,
}


def find_ear(ear: str | Map, n_samples: int, sample_rate: float, device: torch.device | str = "cpu") -> Map:
    """Φ for sounds of n_samples at sample_rate, on a device: one of `EARS` by name, or the map that is given.

    Raises ValueError if the library has no ear of that name, what is given is no map, or has a `sample_rate` of its own
    that is another.
    """
    if isinstance(ear, str):
        if ear not in EARS:
            raise ValueError(
                f"the ear {ear!r} is not one of this library, {', '.join(EARS)}: pass it, as --ear file.py:OBJECT "
                "on the command line, or as `ear`"
            )
        ear = EARS[ear](n_samples, sample_rate)
    if not callable(ear):
        raise ValueError(f"expected an ear as a name or a callable, got {ear!r}")
    own = getattr(ear, "sample_rate", None)
    if own is not None and own != sample_rate:
        raise ValueError(f"the ear is for {own:g} Hz, and the synthesizer has {sample_rate:g} Hz")
    return ear.to(device) if isinstance(ear, torch.nn.Module) else ear


def ear_sketch(features: Map, synthesizer: Synthesizer, device: torch.device | str = "cpu") -> list[list[float]] | None:
    """What an ear on a device makes of three sounds, in a few numbers: sizes of the quarters of Φ, to three digits.

    None, if it hears the same sounds otherwise a second time, for it draws at random.
    """
    with torch.no_grad():
        nu = torch.cat([synthesizer.sample_uniform(2), torch.zeros(1, len(synthesizer.parameters))])
        x = synthesizer(nu, torch.float32).to(device)
        S, again = features(x), features(x)
    if not torch.allclose(S, again, rtol=1e-3, atol=1e-5):
        return None
    return [levels(S.cpu())]


def ear_name(ear: str | Map) -> str:
    """By which files refer to an ear."""
    return ear if isinstance(ear, str) else object_name(ear)
