"""The closed form of the drum against a simulation of the membrane equation that shares nothing with it."""

import math

import numpy as np
import pytest
import torch

from pnp_tutorial import drum, membrane

DURATION_S = 0.04
MODES = [(1, 1), (1, 2), (2, 1), (2, 2), (3, 2)]
# Soft and stiff, lightly and heavily damped, square and oblong.
DRUMS = [[3.0, 0.2, -1.7, -1.7, 0.6], [2.7, 0.4, -5.0, -5.0, 1.0], [2.9, 0.1, -1.2, -1.0, 0.5]]


def errors(theta, n_intervals):
    """Relative errors of frequency and decay rate of MODES, shape (5, 2)."""
    omega, sigma, _ = (value.reshape(10, 10) for value in drum.modes(torch.tensor(theta, dtype=torch.float64)))
    u, sample_rate = membrane.simulate(theta, n_intervals, DURATION_S)
    measured = np.array([membrane.measure_mode(u, sample_rate, *mode) for mode in MODES])
    expected = np.array([[value[m1 - 1, m2 - 1].item() for value in (omega, sigma)] for m1, m2 in MODES])
    return np.abs(measured / expected - 1)


@pytest.mark.parametrize("theta", DRUMS)
def test_closed_form_is_the_limit_of_finite_differences(theta):
    coarse, fine = errors(theta, 20), errors(theta, 40)
    assert fine.max() < 4e-3
    # Second order in the spacing: half of it, a quarter of the error.
    order = np.log2(coarse / fine)
    real = fine > 1e-8  # with p = 10⁻⁵ the decay of the first mode is exact up to rounding
    assert real[:, 0].all()
    np.testing.assert_allclose(order[real], 2, atol=0.15)


def test_amplitudes_are_those_of_an_impulse():
    theta = DRUMS[1]
    u, sample_rate = membrane.simulate(theta, 40, DURATION_S)
    omega, sigma, amplitude = drum.modes(torch.tensor(theta, dtype=torch.float64))
    y = np.arange(1, 40) / 40
    t = np.arange(len(u)) / sample_rate
    for m1, m2 in MODES:
        m = 10 * (m1 - 1) + m2 - 1
        shape = np.sin(math.pi * m1 * y)[:, None] * np.sin(math.pi * m2 * y)
        # Projection of the field, divided by the norm of the pattern; the ear hears it at 0.4 of the sides.
        q = np.tensordot(u, shape, 2) / np.square(shape).sum() * shape[15, 15]
        wave = np.exp(-sigma[m].item() * t) * np.sin(omega[m].item() * t)
        heard = q @ wave / (wave @ wave)
        expected = amplitude[m].item() * 4 / math.pi**2  # over the area π²/4 of the pattern; α = 1
        assert heard == pytest.approx(expected, rel=0.02)


def test_grids_that_do_not_fit_are_refused():
    for n_intervals in (5, 12):
        with pytest.raises(ValueError, match=rf"multiple of 5, got {n_intervals}"):
            membrane.simulate(DRUMS[0], n_intervals, DURATION_S)
