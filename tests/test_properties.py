"""What must hold anywhere in the box of parameters, and for any sound: at points that hypothesis draws.

The same points every time. What is compared with references, and at chosen points, is in the tests of each module.
"""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pnp_tutorial.arpeggiator import ARPEGGIATOR
from pnp_tutorial.drum import DRUM, modal_sum
from pnp_tutorial.metric import eigen, gram, jacobian, riemannian_metric
from pnp_tutorial.recording import QUIET, load_recording
from pnp_tutorial.scattering import JTFS, LogScattering

N = 1024
drum = replace(DRUM, n_samples=N)
SYNTHESIZERS = {"drum": drum, "arpeggiator": replace(ARPEGGIATOR, n_samples=N)}


def some(n):
    """n examples; a folder that pytest gives may serve all of them."""
    slow = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=n, deadline=None, derandomize=True, database=None, suppress_health_check=slow)


@cache
def features(dtype=torch.float64):
    return LogScattering(JTFS(N, J=6, Q=(8, 1), J_fr=3, dtype=dtype))


def points(n, edge=1.0):
    """ν (n,) in the box, or so much inside it; its corners and its middle, too."""
    return st.lists(st.floats(-edge, edge), min_size=n, max_size=n).map(
        lambda nu: torch.tensor(nu, dtype=torch.float64)
    )


def noise(seed, *shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


DTYPES = st.sampled_from([torch.float32, torch.float64])
SEEDS = st.integers(0, 10**6)
GAINS = st.floats(-6, 6).map(lambda power: 10**power)


def differences(heard, nu):
    """Jacobian (P, n) by Richardson's rule, and the norm of the error (n,) that it states of each column.

    Central differences of steps h and h/4 err by c h² + O(h⁴), so that their extrapolation to h = 0 errs by no more
    than it moves the better of the two, and by what rounding makes of features divided by h. Of six pairs of steps the
    best is taken.
    """
    h = 1e-4 / 4 ** torch.arange(7, dtype=torch.float64)
    steps = h[:, None, None] * torch.eye(len(nu), dtype=torch.float64)  # (7, n, n)
    above, below = heard((nu + torch.stack([steps, -steps])).flatten(0, 2)).unflatten(0, (2, 7, len(nu)))
    D = (above - below) / (2 * h[:, None, None])  # (7, n, P)
    moved = (D[1:] - D[:-1]) / 15
    rounding = 1e-13 * above[:-1].norm(dim=-1) / h[1:, None]
    error, best = (moved.norm(dim=-1) + rounding).min(0)
    found = (D[1:] + moved)[best, torch.arange(len(nu))]
    return found.mT, error


@pytest.mark.parametrize("name", SYNTHESIZERS)
@some(8)
@given(data=st.data())
def test_metric_is_that_of_finite_differences(name, data):
    synthesizer = SYNTHESIZERS[name]
    nu = data.draw(points(len(synthesizer.parameters), 0.99))
    S, J = jacobian(nu, features(), synthesizer)
    by_differences, error = differences(lambda nu: features()(synthesizer(nu)), nu)
    assert (error <= 1e-4 * J.norm()).all(), "an estimate that says nothing"
    assert ((J - by_differences).norm(dim=0) <= 2 * error).all()
    M = riemannian_metric(nu, features(), synthesizer)
    bound = 2 * (2 * J.norm() * error.norm() + error.norm() ** 2)
    assert (M - gram(by_differences)).norm() <= bound


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@some(15)
@given(nu=points(5))
def test_metric_is_symmetric_and_positive_semi_definite(dtype, nu):
    """Also at the faces and corners of the box, and of features in float32."""
    M = riemannian_metric(nu, features(dtype), drum)
    assert M.isfinite().all()
    torch.testing.assert_close(M, M.mT, rtol=1e-14, atol=0)
    values, _ = eigen(M)
    assert values[0] >= -1e-14 * values[-1]


@st.composite
def transforms(draw):
    """A JTFS of any configuration that is small, and its number of samples."""
    n = draw(st.integers(200, 1500))
    J = draw(st.integers(3, 6))
    Q = draw(st.sampled_from([(1, 1), (4, 1), (8, 1), (6, 2)]))
    T = draw(st.sampled_from(["global", 8, 50, 128]))
    F = draw(st.sampled_from(["global", 1, 2, 3]))
    padding = draw(st.sampled_from(["zero", "reflect"]))
    return JTFS(n, J=J, Q=Q, J_fr=2, T=T, F=F, padding=padding, dtype=torch.float64), n


@some(20)
@given(of=transforms(), seed=SEEDS)
def test_derivatives_agree_with_each_other(of, seed):
    """Forward mode, `push` and reverse mode."""
    transform, n = of
    x, dx = noise(seed, 2, n)
    S, dS = torch.func.jvp(transform, (x,), (dx,))
    pushed, d_pushed = transform.push(x, dx[None])
    torch.testing.assert_close((pushed, d_pushed[0]), (S, dS), rtol=1e-8, atol=1e-9 * float(dS.abs().max()))
    w = noise(seed + 1, *S.shape)
    S_again, pull = torch.func.vjp(transform, x)
    torch.testing.assert_close(S_again, S)
    (gradient,) = pull(w)
    torch.testing.assert_close(gradient @ dx, (w * dS).sum(), rtol=1e-9, atol=1e-9 * float(gradient.norm() * dx.norm()))


@some(10)
@given(of=transforms(), seed=SEEDS)
def test_second_derivatives_agree_with_each_other(of, seed):
    """Backward twice, forward mode of a gradient, and differences of a gradient; they are symmetric, too."""
    transform, n = of
    x, dx, dy = noise(seed, 3, n)
    w = noise(seed + 1, *transform(x).shape)
    gradient = torch.func.grad(lambda x: (w * transform(x)).sum())
    forward = torch.func.jvp(gradient, (x,), (dx,))[1]
    x.requires_grad_()
    (once,) = torch.autograd.grad((w * transform(x)).sum(), x, create_graph=True)
    (twice,) = torch.autograd.grad(once @ dx, x)
    x = x.detach()
    torch.testing.assert_close(twice, forward, rtol=1e-8, atol=1e-9 * float(forward.abs().max()))
    by_differences = (gradient(x + 1e-6 * dx) - gradient(x - 1e-6 * dx)) / 2e-6
    assert (by_differences - forward).norm() <= 1e-4 * forward.norm()
    other = torch.func.jvp(gradient, (x,), (dy,))[1]
    torch.testing.assert_close(forward @ dy, other @ dx, rtol=1e-6, atol=1e-9 * float(forward.norm() * dy.norm()))


@some(20)
@given(seed=SEEDS, n_samples=st.integers(1, 3000), n_modes=st.integers(1, 20), s=GAINS, t=GAINS)
def test_drums_are_linear_in_their_amplitudes(seed, n_samples, n_modes, s, t):
    omega = 20_000 * noise(seed, n_modes).abs()
    sigma = 100 * noise(seed + 1, n_modes).abs()
    a, b = noise(seed + 2, 2, n_modes)
    x, y, z = (modal_sum(omega, sigma, c, n_samples, normalize=False) for c in (a, b, s * a - t * b))
    assert (z - (s * x - t * y)).abs().max() <= 1e-11 * (s * a.abs().sum() + t * b.abs().sum())


@some(15)
@given(nu=points(5), gain=GAINS)
def test_the_level_of_a_drum_is_not_that_of_its_amplitudes(nu, gain):
    a = noise(0, 7)
    omega, sigma = DRUM.to_theta(nu)[0].pow(10) * torch.arange(1, 8), torch.arange(1.0, 8, dtype=torch.float64)
    one, other = (modal_sum(omega, sigma, each, N) for each in (a, gain * a))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


@some(20)
@given(of=transforms(), seed=SEEDS, power=st.integers(-60, 60), gain=GAINS)
def test_scattering_follows_a_gain(of, seed, power, gain):
    """To the bit where it is a power of two."""
    transform, n = of
    x = noise(seed, n)
    S = transform(x)
    assert torch.equal(transform(2.0**power * x), 2.0**power * S)
    torch.testing.assert_close(transform(gain * x), gain * S, rtol=1e-9, atol=1e-12 * gain * float(S.abs().max()))


@some(20)
@given(
    shape=st.lists(st.integers(1, 3), max_size=3),
    seed=SEEDS,
    how=st.sampled_from(["as it is", "transposed", "every second", "expanded"]),
    dtype=DTYPES,
)
def test_sounds_of_a_batch_know_nothing_of_each_other(shape, seed, how, dtype):
    """To the bit, whatever their order, the axes of the batch, and where in memory they lie."""
    x = noise(seed, *shape, 2 * N, dtype=torch.float64).to(dtype)
    if how == "every second":
        x = x[..., ::2]
    else:
        x = x[..., :N]
    if how == "transposed" and x.ndim > 1:
        x = x.mT.contiguous().mT
    if how == "expanded":
        x = x[None].expand(2, *x.shape)
    S = features(torch.float32)(x)
    rows = x.reshape(-1, N)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    again = features(torch.float32)(rows[order])
    assert torch.equal(again, S.reshape(len(rows), -1)[order])
    assert torch.equal(features(torch.float32)(rows[0].clone()), S.reshape(len(rows), -1)[0])


@some(15)
@given(nu=st.lists(points(5), min_size=2, max_size=5).map(torch.stack), seed=SEEDS)
def test_order_of_drums_changes_nothing(nu, seed):
    order = torch.randperm(len(nu), generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(drum(nu[order]), drum(nu)[order], rtol=0, atol=1e-12)
    M = riemannian_metric(nu, features(), drum)
    M_ordered = riemannian_metric(nu[order], features(), drum)
    assert ((M_ordered - M[order]).flatten(1).norm(dim=1) <= 1e-9 * M[order].flatten(1).norm(dim=1)).all()


@some(20)
@given(nu=points(5))
def test_single_precision_is_close_to_double(nu):
    """Sounds to 10⁻⁵ of their peak, features to 10⁻³ where they reach about 5, metrics to 1 % of their norm."""
    x, x_single = drum(nu), drum(nu, torch.float32)
    assert (x_single - x).abs().max() <= 1e-5
    single = features(torch.float32)
    assert (single(x) - features()(x)).abs().max() <= 1e-3
    M, M_single = (riemannian_metric(nu, each, drum) for each in (features(), single))
    assert (M_single - M).norm() <= 1e-2 * M.norm()


@some(20)
@given(
    size=st.floats(-320, 15),
    sign=st.sampled_from([-1, 1]),
    seed=SEEDS,
    dtype=DTYPES,
)
def test_features_are_finite_for_the_smallest_and_the_largest(size, sign, seed, dtype):
    """Subnormal numbers, and 10¹⁵ times full scale."""
    x = sign * 10.0**size * noise(seed, N)
    S, dS = features(dtype).push(x, noise(seed + 1, 2, N))
    assert S.isfinite().all()
    assert dS.isfinite().all()


@some(15)
@given(
    nu=points(5, 0.9),
    before=st.integers(QUIET, 10_000),
    after=st.integers(0, 3000),
    gain=st.floats(-2, 2).map(lambda power: 10**power),
    channels=st.integers(1, 4),
)
def test_recordings_are_heard_whatever_their_level(tmp_path_factory, nu, before, after, gain, channels):
    """And on however many channels they are, and whatever silence is around them: to float32's rounding."""
    x = drum(nu).numpy()
    path = tmp_path_factory.mktemp("sounds") / "x.wav"

    def heard(x, before, after, channels):
        padded = np.concatenate([np.zeros(before), x, np.zeros(after)])
        soundfile.write(path, np.stack([padded] * channels, 1), DRUM.sample_rate, "FLOAT")
        return load_recording(path, drum).x

    one, other = heard(x, QUIET, 0, 1), heard(gain * x, before, after, channels)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
