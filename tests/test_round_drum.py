"""The round drum against textbooks, SciPy's Bessel functions and the simulation of the membrane equation."""

import math
from dataclasses import replace
from functools import partial
from importlib.resources import files

import numpy as np
import pytest
import scipy.signal
import scipy.special
import torch
from torch.func import jacfwd, jacrev, jvp, vjp, vmap

from pnp_tutorial import membrane
from pnp_tutorial.checks import check_synthesizer
from pnp_tutorial.recording import load_recording
from pnp_tutorial.round_drum import (
    PARAMETERS,
    ROUND_DRUM,
    SAMPLE_RATE,
    _membrane,
    modes,
    noise_spectrum,
    round_drum,
    stick_spectrum,
)
from pnp_tutorial.runtime import read_results
from pnp_tutorial.synthesizer import find_synthesizer

NAMES = ROUND_DRUM.names
MIDDLE = ROUND_DRUM.to_theta(torch.zeros(12, dtype=torch.float64))
BARE = {"bend": 0.0, "stick": 1e9, "noise": -300.0, "cut": 1e9}  # the skin alone, under a needle


def theta_of(**values):
    """θ in the middle of the ranges, but for some parameters."""
    theta = MIDDLE.clone()
    for name, value in values.items():
        theta[NAMES.index(name)] = value
    return theta


def direct_sum(theta, n_samples):
    """The sound of the skin alone, without interpolation, for ever."""
    omega, sigma, amplitude = modes(theta)
    tau, bend = theta[NAMES.index("tau")], theta[NAMES.index("bend")]
    rate = 2 * math.pi * theta[NAMES.index("stick")]
    t = torch.arange(n_samples, dtype=theta.dtype) / SAMPLE_RATE
    u = t + bend * (1 - torch.exp(-2 * t / tau)) * tau / 2
    amplitude = torch.where(omega < math.pi * SAMPLE_RATE, amplitude, 0)
    x = (amplitude[:, None] * torch.exp(-sigma[:, None] * u) * torch.sin(omega[:, None] * u)).sum(0)
    x = x * (1 - (1 + rate * t) * torch.exp(-rate * t))
    return x / x.abs().max()


def test_it_keeps_the_promises_of_a_synthesizer():
    assert check_synthesizer(replace(ROUND_DRUM, n_samples=4096)) == []
    assert find_synthesizer("round_drum") is ROUND_DRUM


def test_ideal_skin_has_the_textbook_ratios():
    omega, _, _ = modes(theta_of(log_omega=3.0, tau=1e6, log_p=-math.inf, log_D=-math.inf))
    ratios = omega / omega[0]
    textbook = [1, 1.594, 2.136, 2.296, 2.653, 2.918]  # (0,1), (1,1), (2,1), (0,2), (3,1), (1,2)
    torch.testing.assert_close(ratios[:6], torch.tensor(textbook, dtype=torch.float64), rtol=5e-4, atol=0)


def test_first_mode_has_the_named_frequency_and_decay():
    theta = ROUND_DRUM.to_theta(ROUND_DRUM.sample_uniform(100))
    omega, sigma, _ = modes(theta)
    torch.testing.assert_close(omega[:, 0], 10 ** theta[:, 0])
    torch.testing.assert_close(sigma[:, 0], 1 / theta[:, 1])


@pytest.mark.parametrize("radius", [0.0, 0.3, 0.9, 0.999])
def test_amplitudes_are_those_of_an_impulse_on_a_disc(radius):
    """Of the unit disc: the squared mode shape over its mean square, by quadrature with SciPy's Bessel functions."""
    omega, _, amplitude = modes(theta_of(radius=radius, stick=1e9))
    rho = (np.arange(20_000) + 0.5) / 20_000
    zeros = sorted((j, m) for m in range(20) for j in scipy.special.jn_zeros(m, 20) if j < 20)
    assert len(zeros) == len(omega)
    expected = []
    for j, m in zeros:
        mean_square = (scipy.special.jv(m, j * rho) ** 2 * rho).mean() * (2 if m == 0 else 1)  # of cos², a half
        expected.append(scipy.special.jv(m, j * radius) ** 2 / mean_square)
    heard = amplitude * omega
    torch.testing.assert_close(heard / heard[0], torch.tensor(expected).double() / expected[0], rtol=1e-6, atol=1e-9)


def as_round(theta):
    """θ (9,) of the circle that touches the sides, of length π, of the square membrane θ (5,), by its constants."""
    S4, c2, d1, d3 = (float(value) for value in membrane.constants(theta))
    gamma = (scipy.special.jn_zeros(0, 1)[0] / (math.pi / 2)) ** 2
    sigma = (d1 - d3 * gamma) / 2
    omega = math.sqrt(S4 * gamma**2 + c2 * gamma - sigma**2)
    p = -d3 * gamma / (2 * sigma)
    D = math.sqrt(S4 * gamma**2 - (p * sigma) ** 2) / omega
    # membrane.play strikes and hears at 0.4 of the sides
    return theta_of(
        log_omega=math.log10(omega),
        tau=1 / sigma,
        log_p=math.log10(p),
        log_D=math.log10(D),
        radius=0.2 * 2**0.5,
        **BARE,
    )


@pytest.mark.parametrize("square", [[2.9, 0.3, -3.0, -3.0, 1.0], [2.8, 0.2, -1.5, -1.2, 1.0]])
def test_closed_form_agrees_with_finite_differences_of_a_circle(square):
    """Partials of both, by their peaks. The grid's rim is a staircase: a few per cent, less on a finer grid."""
    theta = as_round(square)
    n = 4096
    closed = round_drum(theta, n).numpy()
    omega = modes(theta)[0].numpy()[[0, 1, 3]]  # (0,1), (1,1), (0,2)
    hz = np.fft.rfftfreq(2**18, 1 / SAMPLE_RATE)

    def peaks(x):
        spectrum = np.abs(np.fft.rfft(x * np.hanning(2 * n)[n:], 2**18))
        near = [np.abs(hz / (w / 2 / math.pi) - 1) < 0.07 for w in omega]
        places = [np.flatnonzero(some)[spectrum[some].argmax()] for some in near]
        return hz[places], spectrum[places] / spectrum[places[0]]

    expected, levels = peaks(closed)
    np.testing.assert_allclose(expected, omega / 2 / math.pi, rtol=6e-3)
    errors = []
    for n_intervals in (20, 30):
        found, found_levels = peaks(membrane.play(square, rim="ellipse", n_intervals=n_intervals, n_samples=n))
        errors.append(np.abs(found / expected - 1).max())
        np.testing.assert_allclose(20 * np.log10(found_levels / levels), 0, atol=3)
    assert errors[1] < 0.03
    assert errors[1] < errors[0] < 0.04


def test_a_tight_skin_glides_down_to_its_pitch():
    x = round_drum(theta_of(log_omega=3.2, tau=0.2, log_p=1.0, radius=0.0, **BARE | {"bend": 0.3}), 8192)
    phase = np.unwrap(np.angle(scipy.signal.hilbert(x.numpy())))
    omega = np.gradient(phase)[600:5000] * SAMPLE_RATE
    t = np.arange(600, 5000) / SAMPLE_RATE
    expected = 10**3.2 * (1 + 0.3 * np.exp(-2 * t / 0.2))
    np.testing.assert_allclose(omega, expected, rtol=0.03)


def test_interpolation_is_close_to_the_direct_sum():
    for nu in ROUND_DRUM.sample_uniform(6, seed=3):
        theta = ROUND_DRUM.to_theta(nu)
        theta[NAMES.index("noise")], theta[NAMES.index("cut")] = -300.0, 1e9
        theta[NAMES.index("log_omega")].clamp_(max=3.4)
        x, expected = round_drum(theta, 8192), direct_sum(theta, 8192)
        assert (x - expected).norm() < 0.02 * expected.norm()
        theta[NAMES.index("bend")] = 0
        torch.testing.assert_close(round_drum(theta, 8192), direct_sum(theta, 8192), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("f_n", "width"), [(1000.0, 1.0), (3000.0, 0.5), (300.0, 3.0)])
def test_noise_has_the_decay_and_band_of_its_parameters(f_n, width):
    """All but noise, for all modes lie above half the sample rate. Between octaves the spectrum is straight."""
    tau = 0.5
    theta = theta_of(log_omega=6.0, noise=0.0, noise_tau=tau, noise_f=f_n, noise_width=width, cut=1e9)
    x = round_drum(theta, 2**15)
    t = torch.arange(2**15) / SAMPLE_RATE
    white = (x * torch.exp(t / tau))[2**11 :]
    quarters = white.unflatten(0, (5, -1)).std(-1)
    torch.testing.assert_close(quarters / quarters.mean(), torch.ones(5).double(), rtol=0, atol=0.1)
    hz, power = scipy.signal.welch(white.numpy(), SAMPLE_RATE, nperseg=1024)
    octaves = SAMPLE_RATE / 2 * 2.0 ** -np.arange(11)[::-1]
    heights = np.exp(-((np.log2(octaves / f_n) / width) ** 2) / 2)
    hz, power = hz[5:-5], power[5:-5]
    expected = np.interp(np.log2(hz), np.log2(octaves), heights) ** 2
    loud = expected > 0.03 * expected.max()
    ratio = 10 * np.log10(power[loud] / expected[loud])
    np.testing.assert_allclose(ratio - ratio.mean(), 0, atol=4)
    assert power[~loud].max(initial=0) < 0.1 * power.max()


def test_a_band_out_of_reach_leaves_its_nearest_octave():
    """It is never nothing: its level says how loud it is."""
    omega = 2 * math.pi * torch.tensor([1000.0, 2000.0], dtype=torch.float64)
    near, far = (noise_spectrum(omega, torch.tensor(f), torch.tensor(0.1)) for f in (2000.0, 1e9))
    assert near.argmax() == far.argmax() == 1
    assert near.max() == far.max() == 1
    x = round_drum(theta_of(log_omega=6.0, noise=0.0, noise_f=1e12, noise_width=0.01), 4096)
    assert x.abs().max() == 1


def test_noise_of_zero_decibels_is_a_third_of_the_peak():
    """By how much of the skin alone and of the noise alone is in both."""
    values = {"stick": 1e9, "noise": 0.0, "noise_tau": 1e9, "noise_f": 2000.0, "cut": 1e9}
    skin, noise, both = (
        round_drum(theta_of(**each), 2**15)
        for each in (values | {"noise": -300.0}, values | {"log_omega": 6.0}, values)
    )
    parts = torch.stack([skin, noise], -1)
    much, little = torch.linalg.lstsq(parts, both[:, None]).solution[:, 0]
    torch.testing.assert_close(parts @ torch.stack([much, little]), both, rtol=0, atol=1e-9)
    assert float(little * noise.std() / much) == pytest.approx(1 / 3, rel=0.1)


def test_a_hard_stick_is_brighter():
    spectra = [round_drum(theta_of(stick=f_h, noise=-300.0), 8192).numpy() for f_h in (50.0, 200.0, 1000.0, 10_000.0)]
    hz = np.fft.rfftfreq(8192, 1 / SAMPLE_RATE)
    centroids = [(power := np.abs(np.fft.rfft(x)) ** 2) @ hz / power.sum() for x in spectra]
    assert centroids == sorted(centroids)
    assert centroids[-1] > 1.2 * centroids[0]


def test_the_pulse_of_the_stick_has_the_spectrum_that_is_claimed():
    """Of ω_h² t e^(−ω_h t), and the stroke sets in like its integral."""
    f_h, rate = 100.0, 1e6
    t = np.arange(200_000) / rate
    pulse = (2 * math.pi * f_h) ** 2 * t * np.exp(-2 * math.pi * f_h * t) / rate
    hz = np.fft.rfftfreq(len(t), 1 / rate)[:500]
    H = stick_spectrum(torch.from_numpy(2 * math.pi * hz), torch.tensor(f_h)).numpy()
    np.testing.assert_allclose(np.abs(np.fft.rfft(pulse))[:500], H, atol=1e-3)
    sets_in = np.interp(np.arange(2**12) / SAMPLE_RATE, t, np.cumsum(pulse))
    skin = {"log_omega": 2.3, "log_D": -math.inf, "noise": -300.0, "cut": 1e9}
    noise = {"log_omega": 6.0, "noise": 0.0, "noise_tau": 1e9, "noise_width": 1e9, "cut": 1e9}
    for values, name, most in ((skin, "stick", 0.2), (noise, "noise_f", 0.1)):
        soft, hard = (round_drum(theta_of(**values, **{name: f}), 2**12) for f in (f_h, 1e9))
        assert float(soft[0]) == 0
        if name == "noise_f":  # a harder stick wakes other partials, too
            heard = hard.abs() > 0.01
            shape = (soft / hard)[heard]
            torch.testing.assert_close(shape / shape[-1], torch.from_numpy(sets_in)[heard], rtol=1e-3, atol=1e-3)
        assert soft[:20].abs().max() < most * soft.abs().max()
    assert sets_in[20] < 0.12


def test_a_recording_is_cut_off():
    """At t_c half is left, and 40 ms later nothing is; long before, all is as if it went on."""
    values = {"noise": 0.0, "noise_tau": 1.0, "tau": 1.0}
    cut, whole = (round_drum(theta_of(cut=t_c, **values), 8192) for t_c in (0.2, 1e9))
    t = torch.arange(8192, dtype=torch.float64) / SAMPLE_RATE
    heard = whole.abs() > 0.01
    share = (cut / whole)[heard]
    torch.testing.assert_close(share, 1 / (1 + torch.exp((t[heard] - 0.2) / 0.004)), rtol=1e-9, atol=1e-9)
    assert cut[t > 0.24].abs().max() < 1e-4
    assert share[t[heard] < 0.15].min() > 0.99999


def test_energy_of_the_skin_decays():
    theta = ROUND_DRUM.to_theta(ROUND_DRUM.sample_uniform(30))
    theta[:, NAMES.index("noise")] = -300.0
    energy = round_drum(theta).unflatten(-1, (8, -1)).square().sum(-1)
    assert (energy.diff(dim=-1) <= 0).all()


@pytest.mark.parametrize("n_samples", [1, 2, 7, 1000, 4097])
def test_any_length_is_a_prefix_of_a_longer_sound(n_samples):
    theta = ROUND_DRUM.to_theta(ROUND_DRUM.sample_uniform(2))
    theta[:, NAMES.index("bend")] = 0.2
    short, long = round_drum(theta, n_samples), round_drum(theta, 8192)[:, :n_samples]
    assert short.shape == (2, n_samples)
    scale = (short * long).sum(-1, keepdim=True) / short.square().sum(-1, keepdim=True).clamp_min(1e-300)
    if n_samples > 1000:  # else the peaks, by which skin and all are divided, come later
        torch.testing.assert_close(scale * short, long, rtol=0, atol=1e-9)


def test_more_than_one_block_of_noise():
    theta = theta_of(noise=20.0, noise_tau=1e9, cut=1e9)
    x = round_drum(theta, 70_000)
    assert x[-4000:].std() > 0.5 * x.std()
    assert not torch.equal(x[2**16 :], x[: 70_000 - 2**16])


def test_batch_axes_rows_and_none():
    theta = ROUND_DRUM.to_theta(ROUND_DRUM.sample_uniform(6)).reshape(2, 3, 12)
    x = round_drum(theta, 2048)
    torch.testing.assert_close(x.abs().amax(-1), torch.ones(2, 3, dtype=torch.float64))
    torch.testing.assert_close(x[1, 2], round_drum(theta[1, 2], 2048))
    assert ROUND_DRUM(torch.zeros(0, 12)).shape == (0, ROUND_DRUM.n_samples)
    assert round_drum(torch.zeros(0, 12).double(), 100).shape == (0, 100)


def test_derivatives_agree_with_finite_differences():
    """But where u meets a sample: cubic interpolation is continuous there, its slope is not quite."""
    nu, h = 0.9 * ROUND_DRUM.sample_uniform(4, seed=2), 1e-6
    nu[:, NAMES.index("cut")] = torch.tensor([-0.8, -0.6, -0.5, -0.4])  # within the sound
    play = replace(ROUND_DRUM, n_samples=1000)
    for axis in torch.eye(12, dtype=torch.float64):
        dx = jvp(play, (nu,), (axis.expand_as(nu),))[1]
        central = (play(nu + h * axis) - play(nu - h * axis)) / (2 * h)
        errors, sizes = (dx - central).norm(dim=-1), dx.norm(dim=-1)
        assert errors.median() < 1e-5 * sizes.median()
        assert (errors < 2e-3 * sizes + 1e-8).all()


def test_single_precision_agrees_with_double():
    theta = ROUND_DRUM.to_theta(ROUND_DRUM.sample_uniform(4, seed=3))
    directions = torch.diag(ROUND_DRUM.slope(torch.zeros(12, dtype=torch.float64)))
    weights = torch.randn(4, 8192, generator=torch.Generator().manual_seed(0))

    def differentiate(dtype):
        play = partial(round_drum, n_samples=8192, dtype=dtype)
        x, pull = vjp(play, theta)
        tangents = vmap(lambda d: jvp(play, (theta,), (d.expand_as(theta),))[1])(directions)
        assert x.dtype == dtype
        return x, pull(weights.to(dtype))[0], tangents

    for single, double in zip(differentiate(torch.float32), differentiate(torch.float64), strict=True):
        assert (single - double).norm() < 2e-5 * double.norm()


def test_what_is_kept_from_inference_has_gradients():
    theta, n = MIDDLE[None].clone().requires_grad_(), 300  # of no other test, so that nothing of it is kept before
    _membrane.cache_clear()
    with torch.inference_mode():
        round_drum(theta, n)
    round_drum(theta, n).square().sum().backward()
    assert theta.grad.isfinite().all()


def test_transforms_compose():
    theta = ROUND_DRUM.to_theta(ROUND_DRUM.sample_uniform(4, seed=1))

    def play(theta):
        return round_drum(theta, 256)

    torch.testing.assert_close(vmap(play)(theta), play(theta))
    torch.testing.assert_close(jacfwd(play)(theta[0]), jacrev(play)(theta[0]))


@pytest.mark.parametrize(
    ("name", "value"),
    [("tau", 0.0), ("radius", 1.0), ("radius", -0.1), ("bend", 2.0), ("stick", 0.0), ("noise_tau", -1.0), ("cut", 0.0)],
)
def test_parameters_outside_the_physical_domain_are_named(name, value):
    with pytest.raises(ValueError, match=f"{name} = .* is not physical"):
        round_drum(theta_of(**{name: value})[None], 100)


def test_bad_lengths_and_shapes_are_refused():
    for n_samples, sample_rate in ((0, 22050.0), (10, 0.0)):
        with pytest.raises(ValueError, match="expected n_samples"):
            round_drum(MIDDLE, n_samples, sample_rate)
    with pytest.raises(ValueError, match=rf"shape \(\.\.\., {len(PARAMETERS)}\)"):
        round_drum(MIDDLE[:5], 100)


RECORDINGS = files("pnp_tutorial") / "recordings"


def test_every_recording_states_its_licence_and_has_results():
    names = sorted(file.name for file in RECORDINGS.iterdir() if file.name.endswith(".flac"))
    lines = (RECORDINGS / "LICENSES.md").read_text(encoding="utf-8").splitlines()
    stated = {line.split("|")[1].strip(): line for line in lines if ".flac |" in line}
    assert sorted(stated) == names
    assert all("CC BY 3.0" in line or "CC0 1.0" in line for line in stated.values())
    assert sum(len((RECORDINGS / name).read_bytes()) for name in names) < 1_000_000
    for name in names:
        assert load_recording(str(RECORDINGS / name), ROUND_DRUM).x.abs().max() == pytest.approx(1)
        result = files("pnp_tutorial") / f"results/recordings/{name.removesuffix('.flac')}.json"
        rows = read_results(result)["rows"]
        assert {("round_drum", "clean"), ("drum", "clean")} <= {(row["model"], row["condition"]) for row in rows}
        assert len(rows[0]["nu"]) == len(PARAMETERS)
