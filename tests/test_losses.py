import math
from dataclasses import replace

import pytest
import torch

from pnp_tutorial import losses, metric, scattering
from pnp_tutorial.drum import DRUM

N = 4096
features = scattering.LogScattering(scattering.JTFS(N, J=8, Q=(8, 1), J_fr=3, F=2, dtype=torch.float64))


short_drum = replace(DRUM, n_samples=N)


@pytest.fixture(scope="module")
def pair():
    nu = 0.8 * DRUM.sample_uniform(3, seed=1)
    direction = torch.nn.functional.normalize(DRUM.sample_uniform(3, seed=2), dim=-1)
    return nu, direction, metric.riemannian_metric(nu, features, short_drum)


def test_parameter_loss_is_the_mean_square():
    nu = torch.zeros(4, 5)
    assert losses.parameter_loss(nu + 0.5, nu).item() == 0.25


def test_without_damping_pnp_is_spectral_loss_to_second_order(pair):
    nu, direction, M = pair
    steps = torch.tensor([1e-3, 5e-4, 2.5e-4], dtype=torch.float64)
    remainder = torch.stack(
        [
            losses.spectral_loss(nu + h * direction, nu, features, short_drum)
            - losses.pnp_loss(nu + h * direction, nu, M)
            for h in steps
        ]
    ).abs()
    slopes = (remainder[:-1] / remainder[1:]).log2()
    assert (slopes > 2.7).all(), slopes  # the remainder of the quadratic form is of third order


def test_for_large_damping_pnp_is_parameter_loss(pair):
    nu, direction, M = pair
    nu_hat = (nu + 0.1 * direction).requires_grad_()
    damping = 1e12 * torch.linalg.eigvalsh(M).max()
    pnp = torch.autograd.grad(losses.pnp_loss(nu_hat, nu, M, damping) / damping, nu_hat)[0]
    p = torch.autograd.grad(losses.parameter_loss(nu_hat, nu) * 5 / 2, nu_hat)[0]
    torch.testing.assert_close(pnp, p)


def test_only_the_prediction_carries_a_gradient(pair):
    nu, direction, M = pair
    nu_hat, nu, M = (nu + direction).requires_grad_(), nu.clone().requires_grad_(), M.clone().requires_grad_()
    (
        losses.parameter_loss(nu_hat, nu)
        + losses.pnp_loss(nu_hat, nu, M, 1.0)
        + losses.spectral_loss(0.5 * nu_hat, 0.5 * nu, features, short_drum)
    ).backward()
    assert nu_hat.grad.abs().min() > 0
    assert nu.grad is None
    assert M.grad is None


def test_pnp_loss_keeps_its_digits_where_the_metric_spans_many_decades():
    M = torch.diag(torch.tensor([1e20, 1.0], dtype=torch.float32))
    nu_hat = torch.tensor([[1e-10, 2.0]], dtype=torch.float32)
    assert losses.pnp_loss(nu_hat, torch.zeros(1, 2), M[None]).item() == pytest.approx(0.5 * (1 + 4), rel=1e-6)


@pytest.mark.parametrize("delta", [0.02, 5.0])
def test_roots_are_distances_of_each_sound(pair, delta):
    """√(q + Δ²) − Δ, sound by sound, of the forms that the losses without `delta` halve, sum or average."""
    nu, direction, M = pair
    nu, M = nu.expand(3, 5), M.expand(3, 5, 5)
    nu_hat = nu + torch.tensor([[0.0], [0.01], [0.1]]) * direction

    def expected(q):
        return ((q + delta**2).sqrt() - delta).mean()

    error = nu_hat - nu
    form = (error[:, None] @ (M + 7 * torch.eye(5)) @ error[:, :, None]).flatten()
    q = (features(short_drum(nu_hat)) - features(short_drum(nu))).square().sum(-1)
    torch.testing.assert_close(losses.parameter_loss(nu_hat, nu, delta), expected(error.square().sum(-1)))
    torch.testing.assert_close(losses.pnp_loss(nu_hat, nu, M, 7.0, delta), expected(form))
    root = losses.spectral_loss(nu_hat, nu, features, short_drum, delta=delta)
    torch.testing.assert_close(root, expected(q), rtol=1e-4, atol=1e-6)
    assert losses.pnp_loss(nu, nu, M, 7.0, delta) == 0


def test_the_pull_of_a_root_does_not_grow_with_the_error():
    nu_hat = torch.tensor([[0.0, 0.0], [3e-3, 4e-3], [30.0, 40.0]], dtype=torch.float64, requires_grad=True)
    losses.parameter_loss(nu_hat, torch.zeros(3, 2, dtype=torch.float64), delta=0.05).backward()
    pull = 3 * nu_hat.grad.norm(dim=1)  # of the sum, not of the mean
    assert pull[0] == 0
    assert pull[1] == pytest.approx(0.005 / math.hypot(0.005, 0.05))
    assert pull[2] == pytest.approx(1, abs=1e-5)


def test_roots_of_forms_that_rounding_made_negative():
    M = torch.diag(torch.tensor([1.0, -1e-9], dtype=torch.float64))
    nu_hat = torch.tensor([[0.0, 1.0]], dtype=torch.float64, requires_grad=True)
    loss = losses.pnp_loss(nu_hat, torch.zeros(1, 2, dtype=torch.float64), M[None], delta=1e-6)
    loss.backward()
    assert loss == 0
    assert nu_hat.grad.isfinite().all()


@pytest.mark.parametrize("delta", [0.0, -1.0, math.nan, math.inf])
def test_a_root_needs_a_width(delta):
    with pytest.raises(ValueError, match="expected delta > 0"):
        losses.parameter_loss(torch.zeros(2, 5), torch.zeros(2, 5), delta)


def test_mismatched_shapes_and_negative_damping_are_named():
    nu = torch.zeros(2, 5)
    with pytest.raises(ValueError, match="one shape"):
        losses.parameter_loss(torch.zeros(2, 4), nu)
    with pytest.raises(ValueError, match=r"metric of shape \(2, 5, 5\), got \(5, 5\)"):
        losses.pnp_loss(nu, nu, torch.eye(5))
    with pytest.raises(ValueError, match="damping ≥ 0, got -1"):
        losses.pnp_loss(nu, nu, torch.eye(5).expand(2, 5, 5), -1.0)


def test_the_root_of_a_small_distance_is_exact():
    q = torch.tensor([5e-6, 1.0])
    for delta in (0.3, 10.0):
        expected = (q.double() + delta**2).sqrt() - delta
        torch.testing.assert_close(losses.root(q, delta).double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("delta", [0.0, -1.0, float("nan"), 1e-23, 1e-20, 1e23, 1e200])
def test_the_square_of_delta_must_be_a_number_of_the_dtype(delta):
    with pytest.raises(ValueError, match="expected delta > 0 with a square that torch.float32 can hold"):
        losses.root(torch.zeros(3), delta)


def test_a_target_of_another_shape_is_refused():
    """It would be compared with every sound, without a word."""
    nu = torch.zeros(2, 5, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"target features of shape \(2, (\d+)\), got \(7, 2, \1\)"):
        losses.spectral_loss(nu, nu, features, short_drum, features(short_drum(nu)).expand(7, 2, -1))


def test_a_spectral_loss_of_pictures_is_refused():
    """Not averaged over their rows."""
    nu = torch.zeros(2, 5, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"a vector for each sound, got \(2, 4, 1024\)"):
        losses.spectral_loss(nu, nu, lambda x: x.unflatten(-1, (4, -1)), short_drum)
