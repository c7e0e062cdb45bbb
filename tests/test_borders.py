"""What holds for every map, from ν to the loss: no rows give no rows; autocast and threads change nothing."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import pytest
import torch

from pnp_tutorial import arpeggiator, damping, drum, losses, metric, mss, round_drum
from pnp_tutorial.drum import DRUM
from pnp_tutorial.scalogram import Scalogram
from pnp_tutorial.scattering import JTFS, LogScattering

N = 4096
P = 1319  # of JTFS
jtfs, scalogram = JTFS(N, J=7), Scalogram(N, J=7)
features, coarse = LogScattering(jtfs), mss.CoarseSpectra(N, 22050)
N_COARSE, N_MSS = (len(ear(torch.zeros(N))) for ear in (coarse, mss.MSS()))
short = replace(DRUM, n_samples=N)


def play(nu):
    return short(nu, torch.float32)


def rows(*shape, dtype=torch.float32):
    return torch.zeros(shape, dtype=dtype)


# Of every function: what it is given for a batch of shape b, and the shapes of what it returns, after those of b.
MAPS = {
    "to_theta": (DRUM.to_theta, lambda b: [rows(*b, 5)], [(5,)]),
    "modes": (drum.modes, lambda b: [1 + rows(*b, 5)], [(100,)] * 3),
    "drum": (partial(drum.rectangular_drum, n_samples=N), lambda b: [1 + rows(*b, 5)], [(N,)]),
    "arpeggiator": (partial(arpeggiator.arpeggiator, n_samples=N), lambda b: [1 + rows(*b, 3)], [(N,)]),
    "round drum": (partial(round_drum.round_drum, n_samples=N), lambda b: [0.5 + rows(*b, 12)], [(N,)]),
    "JTFS": (jtfs, lambda b: [rows(*b, N)], [(P,)]),
    "JTFS, local": (JTFS(N, J=7, T=256), lambda b: [rows(*b, N)], [(P, 16)]),
    "scalogram": (scalogram, lambda b: [rows(*b, N)], [(64, 16)]),
    "features": (features, lambda b: [rows(*b, N)], [(P,)]),
    "MSS": (mss.MSS(), lambda b: [rows(*b, N)], [(N_MSS,)]),
    "coarse spectra": (coarse, lambda b: [rows(*b, N)], [(N_COARSE,)]),
    "distance by MSS": (mss.mss_distance, lambda b: [rows(*b, N)] * 2, [()]),
    "jacobian": (
        partial(metric.jacobian, features=features, synthesizer=play),
        lambda b: [rows(*b, 5)],
        [(P,), (P, 5)],
    ),
    "jacobian, MSS": (
        partial(metric.jacobian, features=mss.MSS(), synthesizer=play),
        lambda b: [rows(*b, 5)],
        [(N_MSS,), (N_MSS, 5)],
    ),
    "metric": (
        partial(metric.riemannian_metric, features=features, synthesizer=play),
        lambda b: [rows(*b, 5)],
        [(5, 5)],
    ),
    "eigen": (metric.eigen, lambda b: [rows(*b, 5, 5)], [(5,), (5, 5)]),
    "rank": (metric.rank, lambda b: [rows(*b, 5, 5)], [()]),
    "condition number": (metric.condition_number, lambda b: [rows(*b, 5, 5)], [()]),
}


@pytest.mark.parametrize("batch", [(0,), (2, 0), (0, 3)])
@pytest.mark.parametrize("name", MAPS)
def test_no_rows_give_no_rows(name, batch):
    function, given, shapes = MAPS[name]
    out = function(*given(batch))
    out = out if isinstance(out, tuple) else (out,)
    assert [tuple(each.shape) for each in out] == [(*batch, *shape) for shape in shapes]
    one = function(*given((1,)))
    assert [each.dtype for each in out] == [each.dtype for each in (one if isinstance(one, tuple) else (one,))]


@pytest.mark.parametrize("K", [0, 2])
def test_tangents_of_no_rows(K):
    S, dS = features.push(rows(0, N), rows(K, 0, N))
    assert (S.shape, dS.shape) == ((0, P), (K, 0, P))
    assert features.push(rows(3, N), rows(0, 3, N))[1].shape == (0, 3, P)


def test_what_takes_a_flat_batch_takes_an_empty_one():
    nothing = rows(0, 5, dtype=torch.float64)
    assert metric.secant_metric(nothing, coarse, play).shape == (0, 5, 5)
    assert damping.damping_matrix(rows(0, 5, 5), "mean").shape == (0, 5, 5)
    assert DRUM.sample_uniform(0).shape == (0, 5)
    # A loss is a mean, and that of nothing is NaN, as torch has it.
    assert losses.pnp_loss(nothing, nothing, rows(0, 5, 5)).isnan()
    assert losses.spectral_loss(nothing, nothing, features, play).isnan()


def test_gradients_pass_through_no_rows():
    x = rows(0, N).requires_grad_()
    features(x).sum().backward()
    assert x.grad.shape == (0, N)


nu = DRUM.sample_uniform(2)
x = play(nu)
dx = torch.randn(3, 2, N, generator=torch.Generator().manual_seed(0))


def gradient(function, at):
    def compute(context):
        with context:
            point = at.clone().requires_grad_()
            value = function(point).square().sum()
        value.backward()
        return point.grad

    return compute


def inside(function, *arguments):
    def compute(context):
        with context:
            return function(*arguments)

    return compute


IN_A_CONTEXT = {
    "drum": inside(play, nu),
    "gradient of the drum": gradient(play, nu),
    "tangents of the drum": inside(metric.tangents, nu, play),
    "arpeggiator": inside(arpeggiator.arpeggiator, arpeggiator.ARPEGGIATOR.to_theta(rows(2, 3)), N),
    "round drum": inside(round_drum.round_drum, round_drum.ROUND_DRUM.to_theta(rows(2, 12)), N),
    "JTFS": inside(jtfs, x),
    "JTFS, local": inside(JTFS(N, J=7, T=256), x),
    "gradient of JTFS": gradient(jtfs, x),
    "push": inside(features.push, x, dx),
    "jvp": inside(torch.func.jvp, jtfs, (x,), (dx[0],)),
    "scalogram": inside(scalogram, x),
    "MSS": inside(mss.MSS(), x),
    "coarse spectra": inside(coarse, x),
    "gradient of coarse spectra": gradient(coarse, x),
    "distance by MSS": inside(mss.mss_distance, x, x.flip(0)),
    "metric": inside(metric.riemannian_metric, nu, features, play),
    "metric of MSS": inside(metric.riemannian_metric, nu, mss.MSS(), play),
    "secant metric": inside(metric.secant_metric, nu, coarse, play),
    "spectral loss": inside(losses.spectral_loss, 0.9 * nu, nu, features, play),
    "PNP loss": inside(losses.pnp_loss, (0.9 * nu).float(), nu.float(), torch.eye(5).expand(2, 5, 5)),
}


@pytest.mark.parametrize("name", IN_A_CONTEXT)
def test_autocast_changes_no_digit(name):
    compute = IN_A_CONTEXT[name]
    plain, cast = (compute(torch.autocast("cpu", torch.bfloat16, enabled=enabled)) for enabled in (False, True))
    for one, other in zip(*(out if isinstance(out, tuple) else (out,) for out in (plain, cast)), strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


@pytest.mark.parametrize("ear", [features, mss.MSS()], ids=["push", "jvp"])
def test_any_thread_may_compute_a_metric(ear):
    expected = metric.riemannian_metric(nu, ear, play)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: metric.riemannian_metric(nu, ear, play), range(16)))
    for M in found:
        torch.testing.assert_close(M, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))


def test_threads_may_use_forward_mode_inside_forward_mode():
    """A synthesizer, or an ear, that takes a derivative of its own does not wait for itself."""

    def slope(x):
        return torch.func.jvp(torch.sin, (x,), (torch.ones_like(x),))[1]

    M = metric.riemannian_metric(nu, slope, DRUM.to_theta)
    assert M.shape == (2, 5, 5)
