import math
from functools import partial

import numpy as np
import pytest
import scipy.signal
import torch
from torch.func import hessian, jacfwd, jacrev, jvp, vmap

from pnp_tutorial.arpeggiator import ARPEGGIATOR, PARAMETERS
from pnp_tutorial.arpeggiator import arpeggiator as at_its_own_rate

arpeggiator = partial(at_its_own_rate, sample_rate=22050)
THETA = torch.tensor([[600.0, 8.0, 2.0], [512.0, 5.0, -1.0], [900.0, 12.0, 0.0], [700.0, 4.0, 1e-3]]).double()


def test_equals_the_published_formula():
    n, sample_rate = 2**14, 8192
    t = np.arange(-n / 2, n / 2) / sample_rate
    for f_c, f_m, gamma in ARPEGGIATOR.to_theta(
        torch.tensor([[-1.0, -1, -1], [0, 0.3, 0.2], [1, 1, 1]]).double()
    ).tolist():
        window = scipy.signal.windows.gaussian(n + 1, 0.1 * 2 / gamma * sample_rate)[:-1]
        carrier = np.sin(2 * np.pi * f_c / (gamma * np.log(2)) * (2 ** (gamma * t) - 1))
        expected = window * np.sin(2 * np.pi * f_m * t) * carrier
        x = at_its_own_rate(torch.tensor([f_c, f_m, gamma], dtype=torch.float64), n, sample_rate)
        np.testing.assert_allclose(x, expected, rtol=0, atol=1e-9)


def test_pitch_glides_through_the_carrier_at_the_chirp_rate():
    """Without events, f_m so low that sin is nearly linear: the instantaneous frequency of the analytic signal."""
    n, sample_rate, gamma = 2**15, 8192, 1.5
    x = at_its_own_rate(torch.tensor([700.0, 0.05, gamma], dtype=torch.float64), n, sample_rate)
    phase = np.unwrap(np.angle(scipy.signal.hilbert(x.numpy())))
    hz = np.diff(phase) / (2 * np.pi) * sample_rate
    t = (np.arange(n - 1) + 0.5 - n // 2) / sample_rate
    heard = (t > 0.02) & (t < 0.15)  # the modulator is positive, the window open
    slope, middle = np.polyfit(t[heard], np.log2(hz[heard]), 1)
    assert slope == pytest.approx(gamma, rel=0.01)
    assert 2**middle == pytest.approx(700, rel=0.01)


def test_without_a_glide_it_is_a_modulated_sine_and_the_limit_of_slow_glides():
    f_c, f_m = 600.0, 8.0
    still = arpeggiator(torch.tensor([f_c, f_m, 0.0], dtype=torch.float64), 4096)
    t = (torch.arange(4096, dtype=torch.float64) - 2048) / 22050
    expected = torch.sin(2 * math.pi * f_m * t) * torch.sin(2 * math.pi * f_c * t)
    torch.testing.assert_close(still, expected, rtol=0, atol=1e-12)
    distances = [
        (arpeggiator(torch.tensor([f_c, f_m, gamma], dtype=torch.float64), 4096) - still).norm()
        for gamma in (1e-4, -1e-5, 1e-6)
    ]
    assert distances[0] > 8 * distances[1] > 64 * distances[2]  # first order in γ


def test_a_falling_arpeggio_is_a_rising_one_in_reverse():
    rising = arpeggiator(torch.tensor([600.0, 8.0, 2.0], dtype=torch.float64), 4097)
    falling = arpeggiator(torch.tensor([600.0, 8.0, -2.0], dtype=torch.float64), 4097)
    torch.testing.assert_close(falling, rising.flip(-1))


def test_scaling_spans_the_papers_ranges_logarithmically():
    ends = ARPEGGIATOR.to_theta(torch.tensor([[-1.0, -1, -1], [0, 0, 0], [1, 1, 1]]).double())
    low, high = (torch.tensor([getattr(p, end) for p in PARAMETERS]).double() for end in ("low", "high"))
    torch.testing.assert_close(ends, torch.stack([low, (low * high).sqrt(), high]))


def test_gradients_agree_with_finite_differences():
    assert torch.autograd.gradcheck(
        lambda theta: arpeggiator(theta, 512) * 1e2, THETA.clone().requires_grad_(), check_forward_ad=True
    )
    direction = torch.ones_like(THETA)
    dx = jvp(lambda theta: arpeggiator(theta, 512), (THETA,), (direction,))[1]
    h = 1e-6
    central = (arpeggiator(THETA + h * direction, 512) - arpeggiator(THETA - h * direction, 512)) / (2 * h)
    assert (dx - central).norm() < 1e-7 * dx.norm()


@pytest.mark.parametrize("gamma", [0.0, 1e-9, 0.1, -4.0, 1e6])
def test_derivatives_are_finite_and_transforms_compose(gamma):
    theta = torch.tensor([600.0, 8.0, gamma], dtype=torch.float64)
    forward = jacfwd(lambda theta: arpeggiator(theta, 2048))(theta)
    assert forward.isfinite().all()
    torch.testing.assert_close(forward, jacrev(lambda theta: arpeggiator(theta, 2048))(theta))
    assert hessian(lambda theta: arpeggiator(theta, 256).square().sum())(theta).isfinite().all()


def test_series_and_formula_meet_without_a_step():
    """Where the power series around γ = 0 hands over: the slope in γ is continuous."""
    t_end = 1024 / 22050
    gamma = 1e-2 / math.log(2) / t_end  # at the first sample, the switch
    around = torch.tensor([[600.0, 8.0, gamma * (1 + side)] for side in (-1e-9, 1e-9)], dtype=torch.float64)
    below, above = vmap(jacfwd(lambda theta: arpeggiator(theta, 2048)))(around)
    torch.testing.assert_close(below, above, rtol=1e-6, atol=1e-6)


def test_batch_axes_and_dtypes():
    theta = THETA.reshape(2, 2, 3)
    x = arpeggiator(theta, 1024)
    assert x.shape == (2, 2, 1024)
    torch.testing.assert_close(x[1, 0], arpeggiator(THETA[2], 1024))
    torch.testing.assert_close(vmap(lambda theta: arpeggiator(theta, 1024))(THETA), x.flatten(0, 1))
    single = arpeggiator(theta, 1024, dtype=torch.float32)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single, x.float())
    assert arpeggiator(THETA.float(), 1024).dtype == torch.float32


@pytest.mark.parametrize(
    ("theta", "message"),
    [
        ([0.0, 8.0, 1.0], r"f_c = 0 Hz.*expected a value in \(0, 5512\.5\)"),
        ([6000.0, 8.0, 1.0], "f_c = 6000 Hz"),
        ([600.0, -8.0, 1.0], "f_m = -8 Hz"),
        ([600.0, 8.0, math.inf], "gamma = inf octaves/s"),
        ([600.0, math.nan, 1.0], "f_m = nan Hz"),
        ([600.0, 8.0], r"shape \(\.\.\., 3\).*got \(2,\)"),
    ],
)
def test_bad_parameters_are_named(theta, message):
    with pytest.raises(ValueError, match=message):
        arpeggiator(torch.tensor(theta), 64)


def test_bad_types_lengths_and_rates_are_named():
    with pytest.raises(ValueError, match="int64"):
        arpeggiator(torch.tensor([600, 8, 1]))
    with pytest.raises(ValueError, match=r"nu must have shape \(\.\.\., 3\)"):
        ARPEGGIATOR.to_theta(torch.zeros(5))
    with pytest.raises(ValueError, match="n_samples ≥ 1"):
        arpeggiator(THETA, 0)
    with pytest.raises(ValueError, match="sample_rate > 0"):
        at_its_own_rate(THETA, 64, -1.0)
