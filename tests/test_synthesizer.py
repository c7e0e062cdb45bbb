import pytest
import torch

from pnp_tutorial import synthesizer


def test_corners_of_the_cube_are_the_ends_of_the_ranges():
    low, high = synthesizer.ranges()
    ends = torch.stack([-torch.ones(5, dtype=torch.float64), torch.ones(5, dtype=torch.float64)])
    torch.testing.assert_close(synthesizer.to_theta(ends), torch.stack([low, high]))
    assert low.tolist() == [2.4, 0.07, -5.0, -5.0, 1e-5]
    assert high.tolist() == [3.8, 0.8, -0.7, -0.52, 1.0]


def test_scaling_and_its_inverse_cancel():
    nu = synthesizer.sample_uniform(100, seed=3).reshape(4, 25, 5)
    torch.testing.assert_close(synthesizer.to_nu(synthesizer.to_theta(nu)), nu)


def test_uniform_sampling_is_reproducible_and_fills_the_cube():
    nu = synthesizer.sample_uniform(20_000, seed=1)
    assert torch.equal(nu, synthesizer.sample_uniform(20_000, seed=1))
    assert not torch.equal(nu, synthesizer.sample_uniform(20_000, seed=2))
    assert nu.abs().max() <= 1
    # Mean 0 and variance 1/3, to five standard errors.
    assert nu.mean(0).abs().max() < 5 * (1 / 3 / 20_000) ** 0.5
    assert (nu.var(0) - 1 / 3).abs().max() < 5 * (4 / 45 / 20_000) ** 0.5


def test_jittered_grid_has_one_point_in_every_cell():
    nu = synthesizer.sample_jittered_grid(n_cells=4, seed=0)
    cells = ((nu + 1) / 2 * 4).floor().long()
    expected = torch.stack(torch.unravel_index(torch.arange(4**5), (4,) * 5), -1)
    assert torch.equal(cells, expected)


@pytest.mark.parametrize("bad", [torch.zeros(4), torch.zeros(3, 6), torch.zeros(()), torch.zeros(5, dtype=torch.long)])
def test_wrong_shape_or_type_is_named(bad):
    with pytest.raises(ValueError, match="nu must"):
        synthesizer.to_theta(bad)
    with pytest.raises(ValueError, match="theta must"):
        synthesizer.to_nu(bad)
