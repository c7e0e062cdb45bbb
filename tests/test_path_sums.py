"""Moduli and path sums where a sound has nearly died away."""

import pytest
import torch

from pnp_tutorial.path_sums import FRAMES, complex_path_sums, halving_filter, modulus, path_sums
from pnp_tutorial.scattering import frames_at_once


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


@pytest.mark.parametrize("sums", [path_sums, complex_path_sums])
@pytest.mark.parametrize("n_sounds", [1, 5, 7, 21])
def test_how_many_frames_a_gpu_takes_at_once_makes_no_difference(sums, n_sounds):
    chunk = frames_at_once(n_sounds, torch.device("cuda"))
    n = 2 * chunk + 5 * FRAMES  # at half the rate, three parts, of which the last is a short one
    generator = torch.Generator().manual_seed(n_sounds)
    y = torch.randn(n_sounds, 1, 2 * n + FRAMES, dtype=torch.complex64, generator=generator)
    dY = [torch.randn(n_sounds, 1, n, dtype=torch.complex64, generator=generator) for _ in range(2)]
    W, H = torch.tensor([[1.0], [1.0]]), torch.tensor(halving_filter()[0], dtype=torch.float32)
    expected = sums(W, [y, *dY], 1, 512, H)
    assert torch.allclose(sums(W, [y, *dY], 1, chunk, H), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_frames_at_once_are_whole_blocks_for_any_number_of_sounds():
    """Else blocks that are halved would hold frames of two rows: an error, or wrong tangents."""
    chunks = [frames_at_once(n, torch.device("cuda")) for n in (*range(1, 100), 2**20)]
    assert all(chunk % FRAMES == 0 and chunk >= FRAMES for chunk in chunks)
    assert chunks[0] == 2**16
    y, dy = torch.ones(1, 1, 232, dtype=torch.complex64), torch.ones(1, 1, 100, dtype=torch.complex64)
    H = torch.tensor(halving_filter()[0], dtype=torch.float32)
    with pytest.raises(ValueError, match="whole blocks of 32 frames, got 72"):
        path_sums(torch.ones(2, 1), [y, dy], 1, 20, H)
