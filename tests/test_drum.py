import math
import statistics
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.func import hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from pnp_tutorial import drum, membrane
from pnp_tutorial.drum import DRUM

DATA = Path(__file__).parent / "data"
PAPER_THETA = torch.from_numpy(np.loadtxt(DATA / "paper_test_parameters.csv", delimiter=",", skiprows=1))


def published_modes(theta, n_modes=10):
    """ω and σ by the constants S, c², d₁, d₃ of the membrane equation, as Han et al. (2023) publish them."""
    S4, c2, d1, d3 = (torch.from_numpy(value)[..., None] for value in membrane.constants(theta))
    m = torch.arange(1, n_modes + 1, dtype=theta.dtype)
    m1, m2 = m.repeat_interleave(n_modes), m.repeat(n_modes)
    gamma = m1**2 + (m2 / theta[..., 4:]) ** 2  # −∇² of the mode; the first side is π
    sigma = (d1 - d3 * gamma) / 2
    return torch.sqrt(S4 * gamma**2 + c2 * gamma - sigma**2), sigma


def direct_sum(theta, n_samples=drum.N_SAMPLES, sample_rate=drum.SAMPLE_RATE):
    omega, sigma, amplitude = drum.modes(theta)
    amplitude = torch.where(omega < math.pi * sample_rate, amplitude, 0)
    t = torch.arange(n_samples, dtype=theta.dtype) / sample_rate
    x = sum(
        a[:, None] * torch.exp(-s[:, None] * t) * torch.sin(w[:, None] * t)
        for w, s, a in zip(omega.T, sigma.T, amplitude.T, strict=True)
    )
    return x / x.abs().amax(-1, keepdim=True)


def test_closed_form_agrees_with_the_published_constants():
    omega, sigma, _ = drum.modes(PAPER_THETA)
    expected_omega, expected_sigma = published_modes(PAPER_THETA)
    real = ~expected_omega.isnan()  # the published radicand cancels below zero for some
    assert real.double().mean() > 0.99
    torch.testing.assert_close(omega[real], expected_omega[real], rtol=1e-9, atol=0)
    torch.testing.assert_close(sigma, expected_sigma, rtol=1e-9, atol=1e-9)


def test_first_mode_has_the_named_frequency_and_decay():
    theta = DRUM.to_theta(DRUM.sample_uniform(1000))
    omega, sigma, _ = drum.modes(theta)
    torch.testing.assert_close(omega[:, 0], 10 ** theta[:, 0])
    torch.testing.assert_close(sigma[:, 0], 1 / theta[:, 1])


def test_ideal_square_membrane_has_the_textbook_ratios():
    theta = torch.tensor([3.0, 1e6, -math.inf, -math.inf, 1.0], dtype=torch.float64)  # no loss, no stiffness
    omega = drum.modes(theta)[0].reshape(10, 10)
    m = torch.arange(1, 11, dtype=torch.float64)
    ratios = torch.sqrt((m[:, None] ** 2 + m**2) / 2)
    torch.testing.assert_close(omega / omega[0, 0], ratios)
    torch.testing.assert_close(omega, omega.T)  # degenerate pairs


def test_factored_powers_equal_the_direct_sum():
    theta = DRUM.to_theta(DRUM.sample_uniform(8, seed=5))
    expected = direct_sum(theta)
    torch.testing.assert_close(drum.rectangular_drum(theta), expected, rtol=0, atol=1e-11)
    assert (drum.rectangular_drum(theta, dtype=torch.float32) - expected).abs().max() < 2e-6


@pytest.mark.parametrize("n_samples", [1, 7, 1000, 4097])
def test_any_length_is_a_prefix_of_a_longer_sound(n_samples):
    theta = DRUM.to_theta(DRUM.sample_uniform(2))
    short = drum.rectangular_drum(theta, n_samples, normalize=False)
    assert short.shape == (2, n_samples)
    long = drum.rectangular_drum(theta, 8192, normalize=False)
    torch.testing.assert_close(short, long[:, :n_samples], rtol=0, atol=1e-12)


def test_modes_above_nyquist_drop_out_one_by_one():
    theta = DRUM.to_theta(torch.zeros(5, dtype=torch.float64))
    omega = drum.modes(theta)[0]
    sample_rate = float(omega.median() / math.pi)  # half of the modes lie above
    x = drum.rectangular_drum(theta, 4096, sample_rate, normalize=False)
    fewer = torch.where(omega < math.pi * sample_rate, drum.modes(theta)[2], 0)
    t = torch.arange(4096, dtype=torch.float64) / sample_rate
    sigma = drum.modes(theta)[1]
    expected = (fewer[:, None] * torch.exp(-sigma[:, None] * t) * torch.sin(omega[:, None] * t)).sum(0)
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-10 * float(expected.abs().max()))


def test_normalization_and_batch_axes():
    theta = DRUM.to_theta(DRUM.sample_uniform(6)).reshape(2, 3, 5)
    x = drum.rectangular_drum(theta, 2048)
    assert x.shape == (2, 3, 2048)
    torch.testing.assert_close(x.abs().amax(-1), torch.ones(2, 3, dtype=torch.float64))
    torch.testing.assert_close(x[1, 2], drum.rectangular_drum(theta[1, 2], 2048))


@pytest.mark.parametrize(("n_samples", "normalize"), [(512, False), (270, True)])
def test_gradients_agree_with_finite_differences(normalize, n_samples):
    theta = DRUM.to_theta(DRUM.sample_uniform(3, seed=2)).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda theta: drum.rectangular_drum(theta, n_samples, normalize=normalize) * (1 if normalize else 1e3),
        theta,
        eps=1e-7,
        atol=1e-4,
        rtol=1e-4,
        check_forward_ad=True,
    )


def test_single_precision_derivatives_agree_with_double():
    theta = DRUM.to_theta(DRUM.sample_uniform(4, seed=3))
    directions = torch.eye(5, dtype=torch.float64)
    weights = torch.randn(4, drum.N_SAMPLES, generator=torch.Generator().manual_seed(0))

    def differentiate(dtype):
        x, pull = vjp(partial(drum.rectangular_drum, dtype=dtype), theta)
        gradient = pull(weights.to(dtype))[0]
        tangents = vmap(lambda d: jvp(partial(drum.rectangular_drum, dtype=dtype), (theta,), (d.expand_as(theta),))[1])(
            directions
        )
        return gradient, tangents

    for single, double in zip(differentiate(torch.float32), differentiate(torch.float64), strict=True):
        assert (single - double).norm() < 2e-6 * double.norm()


def test_modal_sum_takes_any_modes():
    """The string: m = 1, 2, 3, … in place of the pairs, s = m² and β = 1."""
    m = torch.arange(1, 21, dtype=torch.float64)
    omega, sigma = 1000 * m * torch.sqrt(1 + 0.01**2 * (m**2 - 1)), 5 + 0.1 * (m**2 - 1)
    x = drum.modal_sum(omega, sigma, 1 / m, 3000, 8000.0)
    audible = (omega < math.pi * 8000) / m
    t = torch.arange(3000, dtype=torch.float64)[:, None] / 8000
    expected = (audible * torch.exp(-sigma * t) * torch.sin(omega * t)).sum(-1)
    torch.testing.assert_close(x, expected / expected.abs().max(), rtol=0, atol=1e-12)


def test_silence_stays_silence():
    theta = DRUM.to_theta(torch.zeros(5, dtype=torch.float64)).requires_grad_()
    x = drum.rectangular_drum(theta, 100, sample_rate=10.0)  # every mode lies above 5 Hz
    assert torch.equal(x, torch.zeros(100, dtype=torch.float64))
    assert torch.equal(torch.autograd.grad(x.sum(), theta)[0], torch.zeros(5, dtype=torch.float64))


def test_a_mode_fades_out_at_nyquist_but_its_slope_does_not():
    """At half the sample rate sin(ω n/sr) is 0 at every n: x is continuous in θ there. Its derivative is not."""
    theta = DRUM.to_theta(torch.zeros(5, dtype=torch.float64))
    omega, sigma, amplitude = drum.modes(theta)
    heard = amplitude.abs() > 1e-9 * amplitude.abs().max()
    top = omega.where(heard, 0).argmax()

    def around(step):
        sample_rate = float(omega[top] / math.pi * (1 + step))
        slope = jvp(
            lambda theta: drum.rectangular_drum(theta, 512, sample_rate, normalize=False),
            (theta,),
            (torch.eye(5, dtype=torch.float64)[0],),  # log₁₀ ω₁
        )
        return slope, sample_rate

    ((below, slope_below), sample_rate), ((above, slope_above), _) = around(1e-12), around(-1e-12)
    torch.testing.assert_close(below, above, rtol=0, atol=1e-6 * float(amplitude[top].abs()))
    n = torch.arange(512, dtype=torch.float64)
    slope_of_omega = jvp(drum.modes, (theta,), (torch.eye(5, dtype=torch.float64)[0],))[1][0][top]
    lost = amplitude[top] * torch.exp(-sigma[top] * n / sample_rate) * (-1) ** n * n / sample_rate * slope_of_omega
    torch.testing.assert_close(slope_below - slope_above, lost, rtol=0, atol=1e-5 * float(lost.abs().max()))


def test_fast():
    """At least 30 times the rate of the direct sum over modes × samples, 20 with its gradient.

    The direct sum's float32 phases err by 10⁻⁴; its time here is that of four drums.
    """
    theta = DRUM.to_theta(DRUM.sample_uniform(32, seed=1)).requires_grad_()
    omega, sigma, amplitude = (value.detach().float() for value in drum.modes(theta[:4]))

    def direct(parameters):
        omega, sigma, amplitude = parameters
        t = torch.arange(drum.N_SAMPLES) / drum.SAMPLE_RATE
        return (amplitude[..., None] * torch.exp(-sigma[..., None] * t) * torch.sin(omega[..., None] * t)).sum(-2)

    def fast(theta):
        return drum.rectangular_drum(theta, dtype=torch.float32)

    def seconds(function, argument, gradient):
        start = time.perf_counter()
        x = function(argument)
        if gradient:
            x.square().sum().backward()
        return (time.perf_counter() - start) / len(x)

    slow = [value.requires_grad_() for value in (omega, sigma, amplitude)]
    for gradient, ratio in ((False, 30), (True, 20)):
        with torch.set_grad_enabled(gradient):
            fast_times = [seconds(fast, theta, gradient) for _ in range(5)]
            slow_times = [seconds(direct, slow, gradient) for _ in range(2)]
        assert min(slow_times) > ratio * statistics.median(fast_times)


def test_gradients_are_finite_over_the_ranges_and_at_their_edges():
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 5)
    theta = DRUM.to_theta(torch.cat([corners, DRUM.sample_uniform(200, seed=9)])).requires_grad_()
    x = drum.rectangular_drum(theta, 2048)
    (gradient,) = torch.autograd.grad((x * torch.linspace(-1, 1, 2048, dtype=x.dtype)).sum(), theta)
    assert x.isfinite().all()
    assert gradient.isfinite().all()


def test_transforms_compose():
    theta = DRUM.to_theta(DRUM.sample_uniform(4))

    def synthesize(theta):
        return drum.rectangular_drum(theta, 256)

    torch.testing.assert_close(vmap(synthesize)(theta), synthesize(theta))
    torch.testing.assert_close(jacfwd(synthesize)(theta[0]), jacrev(synthesize)(theta[0]))
    assert hessian(lambda theta: synthesize(theta).square().sum())(theta[0]).isfinite().all()


def test_energy_decays():
    theta = DRUM.to_theta(DRUM.sample_uniform(50))
    energy = drum.rectangular_drum(theta).unflatten(-1, (8, -1)).square().sum(-1)
    assert (energy.diff(dim=-1) <= 0).all()


@pytest.mark.parametrize(
    ("index", "value", "name"),
    [(1, 0.0, "tau"), (1, -0.1, "tau"), (4, 0.0, "alpha"), (4, -1.0, "alpha"), (0, math.nan, "log_omega")],
)
def test_parameters_outside_the_physical_domain_are_named(index, value, name):
    theta = DRUM.to_theta(torch.zeros(2, 5, dtype=torch.float64))
    theta[1, index] = value
    with pytest.raises(ValueError, match=rf"{name} = {value:g}.*expected a value in"):
        drum.rectangular_drum(theta)


@pytest.mark.parametrize("name", ["strike", "ear"])
@pytest.mark.parametrize("position", [(0.0, 0.4), (0.4, 1.2), (math.nan, 0.4), (0.4,)])
def test_positions_off_the_drum_are_refused(name, position):
    theta = DRUM.to_theta(torch.zeros(5, dtype=torch.float64))
    with pytest.raises(ValueError, match=rf"{name} must be two fractions"):
        drum.rectangular_drum(theta, 100, **{name: position})


def test_bad_length_and_sample_rate_are_refused():
    theta = DRUM.to_theta(torch.zeros(5, dtype=torch.float64))
    with pytest.raises(ValueError, match="n_samples"):
        drum.rectangular_drum(theta, 0)
    with pytest.raises(ValueError, match="sample_rate"):
        drum.rectangular_drum(theta, 100, -1.0)


class Calls(TorchDispatchMode):
    """The operations that were called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.names.append(operation.__name__)
        return operation(*args, **(kwargs or {}))


def test_one_product_for_a_batch_that_is_not_on_a_cpu():
    """A GPU waits for each kernel: a batch of any size is one product there, where a CPU takes as much as its cache."""
    omega = torch.ones(3, 64, 5, dtype=torch.float64, device="meta")
    with Calls() as calls:
        x = drum.modal_sum(omega, omega, omega, drum.N_SAMPLES)
    assert x.shape == (3, 64, drum.N_SAMPLES)
    assert calls.names.count("bmm.default") == 1
