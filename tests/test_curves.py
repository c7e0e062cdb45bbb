import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from pnp_tutorial.curves import curve_form, curve_gram, curve_weights, near_metric
from pnp_tutorial.drum import DRUM
from pnp_tutorial.metric import riemannian_metric, secant_metric
from pnp_tutorial.mss import CoarseSpectra

STEPS = (0.02, 0.06, 0.2, 0.6)
N_NODES = 2 * (len(STEPS) + 1)  # a coordinate
N = 4096
coarse = CoarseSpectra(N, DRUM.sample_rate)
short_drum = replace(DRUM, n_samples=N)
A = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def toy(x):
    """Features whose curves level off, and whose coordinates make up for each other in part."""
    return (1.5 * x @ A.T).sin()


def identity(nu):
    return nu


def draw(n_rows, n, seed):
    return 2 * torch.rand(n_rows, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) - 1


def moved(nu, j, h):
    return nu + h * torch.eye(nu.shape[1], dtype=nu.dtype)[j]


def squared_distance(features, synthesizer, a, b):
    with torch.no_grad():
        return (features(synthesizer(a)) - features(synthesizer(b))).double().square().sum(-1)


@pytest.fixture(scope="module")
def drums():
    nu = DRUM.sample_uniform(3, seed=1)
    nu[1, 0], nu[2, 1] = 0.97, -1.0  # close to an end, and at an end
    return nu, curve_gram(nu, coarse, short_drum, STEPS)


def test_forms_are_distances_of_features_at_every_node_of_every_axis(drums):
    nu, G = drums
    assert G.shape == (3, 5 * N_NODES, 5 * N_NODES)
    for row in range(3):
        target, block = nu[row : row + 1], G[row : row + 1]
        for j in range(5):
            at = target[0, j].item()
            nodes = [h for s in STEPS for h in (-s, s) if abs(at + h) <= 1] + [-1 - at, 1 - at]
            for h in nodes:
                nu_hat = moved(target, j, h).clamp(-1, 1)
                true = squared_distance(coarse, short_drum, nu_hat, target)
                torch.testing.assert_close(curve_form(nu_hat, target, block, STEPS), true, rtol=1e-3, atol=1e-4)


def test_forms_are_those_of_curves_interpolated_by_numpy():
    nu, e = draw(40, 3, seed=2), draw(40, 3, seed=3)
    e = (nu + e).clamp(-1, 1) - nu
    form = curve_form(nu + e, nu, curve_gram(nu, toy, identity, STEPS), STEPS)
    for row in range(len(nu)):
        change = np.zeros(7)
        for j in range(3):
            at = nu[row, j].item()
            h = np.unique(
                [0, -1 - at, 1 - at, *(s * side for s in STEPS for side in (-1, 1) if abs(at + s * side) < 1)]
            )
            curve = toy(torch.stack([moved(nu[row : row + 1], j, each)[0] for each in h])) - toy(nu[row])
            change += [np.interp(e[row, j], h, each) for each in curve.T.numpy()]
        assert form[row].item() == pytest.approx((change**2).sum(), rel=1e-5)


def test_what_two_coordinates_do_adds_up(drums):
    nu, G = drums
    change = [coarse(short_drum(moved(nu[:1], j, h))) - coarse(short_drum(nu[:1])) for j, h in ((0, -0.06), (3, 0.2))]
    form = curve_form(moved(moved(nu[:1], 0, -0.06), 3, 0.2), nu[:1], G[:1], STEPS)
    torch.testing.assert_close(form, sum(change).double().square().sum(-1), rtol=1e-4, atol=0)


@pytest.mark.parametrize("steps", [(0.1,), STEPS])
def test_for_linear_features_the_form_is_exact_everywhere(steps):
    """At corners of the box, on its faces, and beyond it."""
    nu = torch.cat([draw(20, 3, seed=4), torch.tensor([[1.0, -1.0, 1.0], [1.0, 0.3, 1 - 1e-12]]).double()])
    e = 3 * draw(22, 3, seed=5)
    assert ((nu + e).abs() > 1).any()
    form = curve_form(nu + e, nu, curve_gram(nu, lambda x: x @ A.T, lambda nu: 2 * nu, steps), steps)
    torch.testing.assert_close(form, (2 * e @ A.T).square().sum(-1), rtol=1e-5, atol=0)


def test_one_step_is_the_secant_metric_where_curves_are_odd():
    """Around ν = 0 the toy is odd in ν, so that the chords of both sides are that of the secant metric."""
    nu, e = torch.zeros(6, 3, dtype=torch.float64), 0.3 * draw(6, 3, seed=6)
    M = secant_metric(nu, toy, identity, step=0.3)
    form = curve_form(nu + e, nu, curve_gram(nu, toy, identity, (0.3,)), (0.3,))
    torch.testing.assert_close(form, torch.einsum("bi,bij,bj->b", e, M, e), rtol=1e-5, atol=0)


def test_small_steps_are_the_metric_to_first_order():
    nu, e = 0.9 * draw(6, 3, seed=7), draw(6, 3, seed=8)
    M = riemannian_metric(nu, toy, identity)
    gaps = []
    for h in (4e-3, 2e-3, 1e-3):
        form = curve_form(nu + h * e, nu, curve_gram(nu, toy, identity, (h,)), (h,))
        gaps.append((form / torch.einsum("bi,bij,bj->b", h * e, M, h * e) - 1).abs().mean())
    assert gaps[-1] < 0.01
    assert gaps[0] / gaps[1] == pytest.approx(2, abs=0.1)
    assert gaps[1] / gaps[2] == pytest.approx(2, abs=0.1)


def test_nodes_reach_the_ends_of_the_box_and_no_further():
    heard = []
    curve_gram(draw(1000, 3, seed=11), toy, lambda nu: heard.append(nu) or nu, STEPS)
    ends = heard[0].unflatten(0, (1000, -1)).aminmax(dim=1)
    assert (ends.min == -1).all()
    assert (ends.max == 1).all()


def test_grams_are_symmetric_positive_semi_definite(drums):
    nu, G = drums
    assert G.dtype == torch.float32
    assert not G.requires_grad
    assert torch.equal(G, G.mT)
    eigenvalues = torch.linalg.eigvalsh(G.double())
    assert (eigenvalues[:, 0] > -1e-6 * eigenvalues[:, -1]).all()
    w = curve_weights(draw(3, 5, seed=9), nu, STEPS)
    assert (torch.einsum("bk,bkl,bl->b", w, G.double(), w) > 0).all()


def test_no_error_has_no_weights_and_no_cost(drums):
    nu, G = drums
    nu_hat = nu.clone().requires_grad_()
    form = curve_form(nu_hat, nu, G, STEPS)
    form.sum().backward()
    assert (curve_weights(torch.zeros_like(nu), nu, STEPS) == 0).all()
    assert (form == 0).all()
    assert (nu_hat.grad == 0).all()


def test_weights_are_two_neighbours_of_each_coordinate():
    nu = torch.zeros(1, 2, dtype=torch.float64)
    w = curve_weights(torch.tensor([[0.05, -0.01]]), nu, STEPS).reshape(2, 2, -1)  # coordinate, side, node
    expected = torch.zeros(2, 2, len(STEPS) + 1, dtype=torch.float64)
    expected[0, 1, :2] = torch.tensor([0.25, 0.75])
    expected[1, 0, 0] = 0.5
    torch.testing.assert_close(w, expected, rtol=0, atol=1e-6)


def test_gradients_are_those_of_finite_differences(drums):
    nu, G = drums
    nu_hat = (nu + 0.3 * draw(3, 5, seed=10)).requires_grad_()
    nu_hat.data[0, 0] = 1.2  # beyond the box
    torch.autograd.gradcheck(lambda nu_hat: curve_weights(nu_hat - nu, nu, STEPS), nu_hat)
    torch.autograd.gradcheck(lambda nu_hat: curve_form(nu_hat, nu, G, STEPS), nu_hat, eps=1e-7, rtol=1e-4)


def test_only_the_prediction_carries_a_gradient(drums):
    nu, G = (each.clone().requires_grad_() for each in drums)
    nu_hat = (0.9 * drums[0]).float().requires_grad_()
    form = curve_form(nu_hat, nu, G, STEPS)
    form.sum().backward()
    assert form.dtype == torch.float64
    assert nu_hat.grad.norm() > 0
    assert nu.grad is None
    assert G.grad is None


@pytest.mark.parametrize("gap", [0.0, 1e-12, 1e-9, 1e-5])
def test_nodes_that_almost_fall_together_do_no_harm(gap):
    """Close to an end of the box, and where a step comes close to it, all is as it is a little further inside."""
    e = torch.tensor([[0.3, -0.01, 0.05, -0.4, 0.03]], dtype=torch.float64)  # out of the box, along τ and α

    def form(gap):
        nu = torch.tensor([[0.4, -1 + gap, 0.1, 1 - gap, 0.98 - gap]], dtype=torch.float64)
        nu_hat = (nu + e).requires_grad_()
        value = curve_form(nu_hat, nu, curve_gram(nu, coarse, short_drum, STEPS), STEPS)
        return torch.cat([value, torch.autograd.grad(value.sum(), nu_hat)[0][0]]).detach()

    torch.testing.assert_close(form(gap), form(1e-4), rtol=0.1, atol=0)


def test_to_leave_the_box_costs_and_costs_more_the_further(drums):
    nu = torch.tensor([[0.2, 0.2, 0.2, 0.2, 1.0]], dtype=torch.float64)
    G = curve_gram(nu, coarse, short_drum, STEPS)
    for j in range(5):
        beyond = torch.tensor([1.0, 1.02, 1.05, 1.1])
        nu_hat = nu.repeat(4, 1)
        nu_hat[:, j] = beyond
        q = curve_form(nu_hat, nu.expand(4, 5), G.expand(4, -1, -1), STEPS)
        assert (q.diff() > 0).all(), (j, q)


def test_no_rows():
    nu = torch.zeros(0, 5, dtype=torch.float64)
    G = curve_gram(nu, coarse, short_drum, STEPS)
    assert G.shape == (0, 5 * N_NODES, 5 * N_NODES)
    assert curve_weights(nu, nu, STEPS).shape == (0, 5 * N_NODES)
    assert curve_form(nu, nu, G, STEPS).shape == (0,)


def test_bad_input_is_named():
    nu = torch.zeros(2, 5, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"expected ν of shape \(B, n\), got \(5,\)"):
        curve_gram(nu[0], coarse, short_drum, STEPS)
    for bad in (-1.5, math.nan):
        with pytest.raises(ValueError, match=rf"expected ν in \[−1, 1\], got {bad}"):
            curve_gram(nu + bad, coarse, short_drum, STEPS)
    for steps in ((), (0.0, 0.1), (0.2, 0.1), (0.1, 0.1), (0.1, 2.0), (math.nan,)):
        with pytest.raises(ValueError, match="expected steps 0 < h₁ < h₂ < … < 2, got"):
            curve_weights(nu, nu, steps)
    with pytest.raises(ValueError, match=r"one shape \(B, n\), got \(2, 4\) and \(2, 5\)"):
        curve_weights(nu[:, :4], nu, STEPS)
    with pytest.raises(ValueError, match=r"one shape \(B, n\), got \(1, 5\) and \(2, 5\)"):
        curve_form(nu[:1], nu, torch.zeros(2, 50, 50), STEPS)
    with pytest.raises(ValueError, match=r"expected G of shape \(2, 50, 50\) for these steps, got \(2, 40, 40\)"):
        curve_form(nu, nu, torch.zeros(2, 40, 40), STEPS)


def test_curves_contain_the_secant_metric_of_their_nearest_nodes(drums):
    nu, G = drums
    M = secant_metric(nu, coarse, partial(short_drum, dtype=torch.float32), step=STEPS[0])
    torch.testing.assert_close(near_metric(G, nu, STEPS), M, rtol=1e-3, atol=1e-5 * float(M.max()))
    assert near_metric(G[:0], nu[:0], STEPS).shape == (0, 5, 5)
    with pytest.raises(ValueError, match=r"expected G of shape \(3, 50, 50\), got \(2, 50, 50\)"):
        near_metric(G[:2], nu, STEPS)


def test_curves_of_pictures_are_refused():
    with pytest.raises(ValueError, match="a vector for each sound"):
        curve_gram(torch.zeros(1, 1).double(), lambda x: x.unflatten(-1, (2, -1)), lambda nu: nu.expand(-1, 4), [0.1])


def test_a_name_is_no_ear():
    with pytest.raises(ValueError, match="find_ear"):
        curve_gram(torch.zeros(1, 5, dtype=torch.float64), "coarse", short_drum, STEPS)
