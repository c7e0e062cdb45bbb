"""An ear of linear magnitudes: what `MSS` hears, without its logarithm. It counts what is loud."""

import math

import torch
from torch import Tensor

from pnp_tutorial.mss import MSS


def linear_spectra(x: Tensor) -> Tensor:
    """Audio (..., n_samples) to (|STFT_r x| / √(3 P_r)) for r = 1, 2, 3, with P_r values each: (..., P)."""
    mss = MSS().to(x.device)
    rows = mss.rows(x)
    parts = [mss.magnitude(mss.spectrum(rows, r), r).flatten(1) for r in mss.resolutions]
    S = torch.cat([part / math.sqrt(len(parts) * part.shape[-1]) for part in parts], -1)
    return S.reshape(*x.shape[:-1], S.shape[-1])
