"""An ear of one random path of JTFS at a time, in the place of all: the idea of SCRAPL (Mitcheltree et al., 2026).

    Φ_k(x) = log(1 + S₂(x; λ₂, ψ_fr)/ε)    of a rate λ₂ and a scale ψ_fr that are drawn anew for every k

What SCRAPL adds to that is left out here: moments of the gradient for every path, and paths drawn by their importance.
Whoever imports this module has it as the ear "paths".
"""

import copy

import torch
from torch import Tensor, nn

from pnp_tutorial.ears import EARS, jtfs
from pnp_tutorial.scalogram import log_compress


class RandomPaths(nn.Module):
    """Hears two batches through one path of the second order, as a loss needs it for its target and the answer; then
    two through another. A training seeds the draws, by torch's generator, at the start of each epoch.

    Parameters
    ----------
    n_samples : int
    sample_rate : float, Hz

    Called on audio (..., n_samples) it returns (..., P): the coefficients of the path along log-frequency.
    """

    def __init__(self, n_samples: int, sample_rate: float) -> None:
        super().__init__()
        self.whole = jtfs(n_samples, sample_rate)
        paths = self.whole.transform.paths
        second = paths[paths.order == 2]
        self.choices = list(second[["n2", "n_fr"]].drop_duplicates().itertuples(index=False, name=None))
        self.n_heard = 0
        self.path = self.choices[0]

    def forward(self, x: Tensor) -> Tensor:
        if self.n_heard % 2 == 0:
            self.path = self.choices[int(torch.randint(len(self.choices), ()))]
        self.n_heard += 1
        n2, n_fr = self.path
        one_rate = copy.copy(self.whole.transform)
        one_rate.rates = tuple(rate for rate in one_rate.rates if rate.n2 == n2)
        of_rate = one_rate.paths[one_rate.paths.n2 == n2]
        S = one_rate(x)[..., -len(of_rate) :]
        return log_compress(S[..., torch.tensor((of_rate.n_fr == n_fr).to_numpy(), device=S.device)], self.whole.eps)


EARS["paths"] = RandomPaths
