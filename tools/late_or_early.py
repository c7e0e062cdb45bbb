"""Ears for which a sound comes late or early, by up to 46 ms at random: MSS as SCRAPL's authors compare it.

    Φ_k(x) = Φ(x(t − d_k))    of a delay d_k that is drawn anew for every sound of a target, and is 0 for the answer

Mitcheltree et al. (2026) found that such delays, as every recording has, decide how well MSS serves as a loss. Whoever
imports this module has MSS of one kind of magnitude each as the ears "mss-late" and "mss-linear-late".
"""

from functools import partial

import torch
from torch import Tensor, nn

from pnp_tutorial.ears import EARS
from pnp_tutorial.metric import Map

MOST = 0.046  # s


class LateOrEarly(nn.Module):
    """Hears two batches, as a loss needs it for its target and the answer: the first late or early, the second as it
    is. Then two more, and so on. A training seeds the draws, by torch's generator, at the start of each epoch.

    Parameters
    ----------
    features : callable
        What hears, audio (..., n_samples) of any length.
    sample_rate : float, Hz

    Called on audio (..., n_samples) it returns the features of sounds that are longer by 46 ms at either end, so that
    nothing of them is cut.
    """

    def __init__(self, features: Map, sample_rate: float) -> None:
        super().__init__()
        self.features = features
        self.most = round(MOST * sample_rate)
        self.n_heard = 0

    def forward(self, x: Tensor) -> Tensor:
        delay = torch.zeros(x.shape[:-1], dtype=torch.long)
        if self.n_heard % 2 == 0:
            delay = torch.randint(-self.most, self.most + 1, delay.shape)
        self.n_heard += 1
        return self.features(delayed(x, delay.to(x.device), self.most))


def delayed(x: Tensor, delay: Tensor, most: int) -> Tensor:
    """Sounds (..., n_samples) with `most` zeros at either end, each late by its delay (...) in samples, |d| ≤ most."""
    padded = nn.functional.pad(x, (most, most))
    n = padded.shape[-1]
    source = (torch.arange(n, device=x.device) - delay[..., None]) % n  # what wraps around is zero
    return padded.gather(-1, source)


def late(name: str, n_samples: int, sample_rate: float) -> LateOrEarly:
    return LateOrEarly(EARS[name](n_samples, sample_rate), sample_rate)


EARS |= {f"{name}-late": partial(late, name) for name in ("mss", "mss-linear")}
