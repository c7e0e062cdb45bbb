"""The closed form of the drum against a simulation of the membrane equation that shares nothing with it."""

import math
from functools import partial

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
    for n_intervals in (-5, 0, 1, 5, 12):
        for work in (partial(membrane.simulate, duration_s=DURATION_S), partial(membrane.play, n_samples=100)):
            with pytest.raises(ValueError, match=rf"multiple of 5, got {n_intervals}"):
                work(DRUMS[0], n_intervals=n_intervals)


SLOW = [2.8, 0.3, -3.0, -3.0, 1.0]  # 100 Hz: few steps


def pitch_hz(x):
    """The first partial, by the peak of a smooth spectrum below the second, which is 158 Hz."""
    spectrum = np.abs(np.fft.rfft(x * np.hanning(len(x)), 2**18))
    return spectrum[: int(130 / 22050 * 2**18)].argmax() * 22050 / 2**18


def test_play_is_what_the_ear_hears_of_the_simulation():
    x = membrane.play(SLOW, n_intervals=20, n_samples=800)
    u, sample_rate = membrane.simulate(SLOW, 20, 1000 / 22050)
    heard = u[:, 7, 7]  # 0.4 of the sides
    times = np.arange(800) / 22050
    expected = np.interp(times, np.arange(len(heard)) / sample_rate, heard)
    assert np.corrcoef(x, expected)[0, 1] > 0.99
    assert np.abs(x).max() == pytest.approx(1)


def test_a_circle_has_its_own_pitch():
    """The first zero of J₀ over the radius, against π√2 over the side: 1.083. The rim is a staircase of 3 %."""
    square, circle = (pitch_hz(membrane.play(SLOW, rim=rim, n_samples=8192)) for rim in ("rectangle", "ellipse"))
    assert square == pytest.approx(10**2.8 / (2 * math.pi), rel=0.01)
    assert circle / square == pytest.approx(2.4048 * 2 / (math.pi * math.sqrt(2)), rel=0.03)


def test_a_tight_drum_glides_down():
    """Wide motion raises the tension by 30 %, so the pitch by up to 14 %; once it is small, nothing is left of that."""
    x = membrane.play(SLOW, bend=0.3, n_intervals=10, n_samples=20000)
    rest = pitch_hz(membrane.play(SLOW, n_intervals=10, n_samples=20000)[-4096:])
    first, last = pitch_hz(x[:4096]), pitch_hz(x[-4096:])
    assert 1.01 < first / rest < 1.14
    assert last == pytest.approx(rest, rel=0.005)


@pytest.mark.parametrize("n_intervals", [10, 20])
def test_a_bend_is_the_tension_of_the_widest_motion(n_intervals, monkeypatch):
    """Of a membrane that does not tighten, by the very slope that tightens the other: −u Δu, on any grid."""
    stretches, move = [], membrane._motion
    u, _ = membrane.simulate(SLOW, n_intervals, 0.3)

    def noted(theta, n_intervals, n_steps, strike, inside, stretch):
        stretches.append(stretch)
        return move(theta, n_intervals, n_steps, strike, inside, stretch)

    monkeypatch.setattr(membrane, "_motion", noted)
    membrane.play(SLOW, bend=0.3, n_intervals=n_intervals, n_samples=100)
    h = math.pi / n_intervals  # SLOW is square
    v = np.pad(u, ((0, 0), (1, 1), (1, 1)))
    laplacian = (v[:, 2:, 1:-1] + v[:, :-2, 1:-1] + v[:, 1:-1, 2:] + v[:, 1:-1, :-2] - 4 * u) / h**2
    widest = (-u * laplacian).mean((1, 2)).max()
    assert stretches[-1] * widest == pytest.approx(0.3, rel=1e-6)


def test_where_it_is_struck_changes_the_colour_and_not_the_pitch():
    middle, side = (membrane.play(SLOW, strike=strike, n_samples=8192) for strike in [(0.5, 0.5), (0.1, 0.3)])
    assert pitch_hz(middle) == pytest.approx(pitch_hz(side), rel=1e-3)
    assert np.corrcoef(middle, side)[0, 1] < 0.95


@pytest.mark.parametrize("strike", [(0.0, 0.5), (0.05, 0.05)])
def test_strikes_outside_the_rim_are_refused(strike):
    with pytest.raises(ValueError, match="inside the rim"):
        membrane.play(SLOW, rim="ellipse", strike=strike, n_samples=100)


@pytest.mark.parametrize(
    ("theta", "message"),
    [
        (SLOW[:4], r"of shape \(5,\), got \(4,\)"),
        ([SLOW], r"of shape \(5,\), got \(1, 5\)"),
        ([*SLOW[:4], -0.7], "alpha = -0.7 is not physical"),
        ([2.8, 0.0, *SLOW[2:]], "tau = 0 s is not physical"),
    ],
)
def test_what_is_no_drum_is_refused(theta, message):
    for work in (
        partial(membrane.simulate, duration_s=DURATION_S, n_intervals=10),
        partial(membrane.play, n_samples=100),
    ):
        with pytest.raises(ValueError, match=message):
            work(theta)


def test_no_time_at_all_is_refused():
    with pytest.raises(ValueError, match="expected duration_s > 0, got -1"):
        membrane.simulate(SLOW, 10, -1)


@pytest.mark.parametrize("options", [{"rim": "circle"}, {"bend": -0.1}, {"bend": 3.0}, {"bend": math.nan}])
def test_other_rims_and_bends_are_refused(options):
    (name, value) = next(iter(options.items()))
    with pytest.raises(ValueError, match=f"expected .*{name} .*, got {value!r}"):
        membrane.play(SLOW, n_samples=100, **options)


@pytest.mark.parametrize("n_samples", [2, 10, 60])
def test_the_shortest_sounds_glide_too(n_samples):
    x = membrane.play(SLOW, bend=1.0, n_intervals=10, n_samples=n_samples)
    assert np.abs(x).max() == 1
    with pytest.raises(ValueError, match="expected n_samples ≥ 1, got 0"):
        membrane.play(SLOW, n_samples=0)


@pytest.mark.parametrize(("theta", "left"), [(SLOW, 0.1), ((3.8, 0.8, -5.0, -5.0, 1.0), 0.5)])
def test_the_largest_bend_is_stable(theta, left):
    """On a coarse grid it would not be for many membranes, such as the second."""
    x = membrane.play(theta, bend=2.99, n_intervals=15, n_samples=20000)
    assert np.isfinite(x).all()
    assert np.abs(x[-2000:]).max() < left, "it fades"
    with pytest.raises(ValueError, match="expected n_intervals ≥ 15 for a bend above 1, got 10"):
        membrane.play(theta, bend=2.99, n_intervals=10)
