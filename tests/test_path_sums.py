"""Moduli and path sums where a sound has nearly died away."""

import pytest
import torch

from pnp_tutorial.path_sums import halving_filter, modulus, path_sums


@pytest.mark.parametrize("size", [1e-18, 1e-20, 1e-24, 1e-36])
def test_a_tangent_of_a_tiny_modulus_is_no_longer_than_that_of_its_number(size):
    """The square of a tiny number is 0 in float32, and so was its modulus, while the number was not."""
    Z = torch.tensor([[[size * (1 + 1j)], [1 + 1j]]], dtype=torch.complex64)  # a number and its tangent: (1, 2, 1)
    out = modulus(Z)
    assert out[0, 1, 0].abs() <= abs(1 + 1j) * 1.001


@pytest.mark.parametrize("size", [1e-18, 1e-20, 1e-24, 1e-36])
def test_tangents_of_a_sum_of_tiny_moduli_are_bounded_too(size):
    n_frames = 64
    W = torch.tensor([[1.0], [0.0]])  # one wavelet, real, on one bin
    Y = torch.full((1, 1, n_frames), size * (1 + 1j), dtype=torch.complex64)
    dY = torch.ones(1, 1, n_frames, dtype=torch.complex64)
    H = torch.tensor(halving_filter()[0], dtype=torch.float32)
    sums = path_sums(W, [Y, dY], 1, 512, H)
    assert sums.isfinite().all()
    assert sums[0, 1].abs().max() <= n_frames * 1.001
