from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.func import jacfwd, jacrev

from pnp_tutorial import arpeggiator, metric, scattering
from pnp_tutorial.drum import DRUM, rectangular_drum
from pnp_tutorial.mss import MSS

REFERENCE = np.load(Path(__file__).parent / "data" / "paper.npz")
N = 4096


@cache
def features() -> torch.nn.Module:
    jtfs = scattering.JTFS(N, J=8, Q=(8, 1), J_fr=3, F=2, dtype=torch.float64)
    return scattering.LogScattering(jtfs)


short_drum = replace(DRUM, n_samples=N)


def test_paper_metric_equals_the_reference():
    M = metric.riemannian_metric(torch.from_numpy(REFERENCE["nu"]), scattering.paper_features(), DRUM)
    expected = torch.from_numpy(REFERENCE["metric"])  # by central differences, themselves good to 10⁻⁵
    assert M.dtype == torch.float64
    error = (M - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)
    assert (error < 1e-4).all()


def test_jacobian_agrees_with_finite_differences_and_with_reverse_mode():
    nu = DRUM.sample_uniform(2, seed=4)
    S, J = metric.jacobian(nu, features(), short_drum)
    assert J.shape == (*S.shape, 5)
    torch.testing.assert_close(S, features()(short_drum(nu)))
    h = 1e-7  # small against a radian of phase: phases reach 10⁴ rad
    for j in range(5):
        step = h * torch.eye(5, dtype=torch.float64)[j]
        plus, minus = (features()(short_drum(nu + s)) for s in (step, -step))
        central = (plus - minus) / (2 * h)
        assert (J[..., j] - central).norm() < 1e-5 * J.norm()
    reverse = jacrev(lambda nu: features()(short_drum(nu))[:50])(nu[0])
    torch.testing.assert_close(J[0, :50], reverse)


def test_metric_is_symmetric_positive_semi_definite():
    M = metric.riemannian_metric(DRUM.sample_uniform(12, seed=5).reshape(3, 4, 5), features(), short_drum)
    assert M.shape == (3, 4, 5, 5)
    torch.testing.assert_close(M, M.mT)
    eigenvalues = torch.linalg.eigvalsh(M)
    assert (eigenvalues[..., 0] > -1e-12 * eigenvalues[..., -1]).all()


def test_change_of_variables():
    nu = DRUM.sample_uniform(1, seed=6)[0]
    low, high = DRUM.ranges()
    M_nu = metric.riemannian_metric(nu, features(), short_drum)
    J_theta = jacfwd(lambda theta: features()(rectangular_drum(theta, N)))(DRUM.to_theta(nu))
    d_nu = torch.diag(2 / (high - low))  # ∂ν/∂θ
    torch.testing.assert_close(J_theta.T @ J_theta, d_nu.T @ M_nu @ d_nu)
    torch.testing.assert_close(DRUM.to_nu(DRUM.to_theta(nu)), nu)


def test_any_features_and_synthesizer_will_do():
    A = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    low, high = DRUM.ranges()
    M = metric.riemannian_metric(DRUM.sample_uniform(2), lambda x: x @ A.T, DRUM.to_theta)
    scaled = A * (high - low) / 2
    torch.testing.assert_close(M, (scaled.T @ scaled).expand(2, 5, 5))


def test_wrong_shape_is_named():
    with pytest.raises(ValueError, match=r"nu must have shape \(\.\.\., 5\)"):
        metric.jacobian(torch.zeros(4), features(), DRUM)


def test_any_synthesizer_and_any_features():
    """The arpeggiator's three parameters, heard by the multi-scale spectrum."""
    nu = torch.tensor([[0.1, -0.2, 0.3]], dtype=torch.float64)
    hear = MSS(torch.float64)

    synthesize = replace(arpeggiator.ARPEGGIATOR, n_samples=2**14, sample_rate=22050)

    S, J = metric.jacobian(nu, hear, synthesize)
    assert J.shape == (*S.shape, 3)
    step = 1e-7 * torch.eye(3, dtype=torch.float64)
    up, down = (hear(synthesize(nu + sign * step)) for sign in (1, -1))
    difference = (up - down).mT / 2e-7
    assert (J[0] - difference).norm() < 1e-4 * difference.norm()
    M = metric.riemannian_metric(nu, hear, synthesize)
    torch.testing.assert_close(M, J.mT @ J)


def test_features_without_push_are_differentiated_by_torch():
    nu = DRUM.sample_uniform(2, seed=7)
    S, J = metric.jacobian(nu, features(), short_drum)
    assert hasattr(features(), "push")
    S_torch, J_torch = metric.jacobian(nu, lambda x: features()(x), short_drum)
    torch.testing.assert_close(S, S_torch)
    torch.testing.assert_close(J, J_torch, rtol=1e-6, atol=1e-8)


def test_eigenvalues_and_directions_of_a_known_metric():
    Q = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    known = torch.tensor([0.0, 1e-6, 1.0, 10.0, 1e4], dtype=torch.float64)
    M = (Q * known) @ Q.T
    values, directions = metric.eigen(M.expand(3, 5, 5))
    assert values.shape == (3, 5)
    torch.testing.assert_close(values[0], known, rtol=1e-6, atol=1e-11)
    torch.testing.assert_close((directions[0] * known) @ directions[0].T, M, rtol=1e-9, atol=1e-9)
    largest = directions[0].gather(0, directions[0].abs().argmax(0, keepdim=True))
    assert (largest > 0).all()
    assert metric.rank(M, 1e-11) == 4
    assert metric.rank(M, 1e-8) == 3
    assert metric.rank(M, 1e-2) == 1
    assert metric.condition_number(torch.diag(known[1:])) == pytest.approx(1e10)
    assert metric.condition_number(torch.diag(known)) == torch.inf
    assert metric.condition_number(torch.zeros(5, 5)) == torch.inf
    assert metric.condition_number(torch.diag(known), damping=1.0) == pytest.approx(10_001)


@pytest.mark.parametrize("M", [torch.zeros(5), torch.zeros(5, 4), torch.full((2, 2), torch.nan)])
def test_what_is_no_metric_is_refused(M):
    for function in (metric.eigen, metric.rank, metric.condition_number):
        with pytest.raises(ValueError, match="expected"):
            function(M)


def test_rank_is_not_fooled_by_single_precision():
    """Directions that the float32 Jacobian calls empty are empty in float64, and the others agree."""
    nu = DRUM.sample_uniform(6, seed=8)
    single = scattering.LogScattering(scattering.JTFS(N, J=8, Q=(8, 1), J_fr=3, F=2, dtype=torch.float32))
    M, M_single = (metric.riemannian_metric(nu, f, short_drum) for f in (features(), single))
    values, single_values = metric.eigen(M)[0], metric.eigen(M_single)[0]
    kept = values > 1e-9 * values[:, -1:]
    torch.testing.assert_close(single_values[kept], values[kept], rtol=0.05, atol=0)
    assert torch.equal(metric.rank(M_single), metric.rank(M))


def test_secant_metric_becomes_the_metric_as_its_step_falls():
    """With an error of second order, that of central differences."""
    nu = torch.tensor([[-0.2, 0.3, -0.4, -0.1, 0.5], [0.1, -0.5, 0.2, 0.0, 0.3]], dtype=torch.float64)
    exact = metric.riemannian_metric(nu, features(), short_drum)

    def error(step):
        M = metric.secant_metric(nu, features(), short_drum, step=step)
        return float(((M - exact).norm(dim=(1, 2)) / exact.norm(dim=(1, 2))).max())

    assert error(1e-5) < 1e-3
    assert error(2e-5) / error(1e-5) == pytest.approx(4, rel=0.2)


def test_secant_metric_is_exact_for_a_linear_map_and_inside_the_box():
    """Also at the faces of the box, where its steps are one-sided; and it never leaves the box."""
    A = torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    seen = []

    def linear(nu):
        seen.append(nu)
        return nu @ A.T

    nu = torch.tensor([[0.0, 0.5, -0.5], [1.0, -1.0, 0.95]], dtype=torch.float64)
    M = metric.secant_metric(nu, lambda x: x, linear, step=0.1)
    torch.testing.assert_close(M, (A.T @ A).expand(2, 3, 3))
    assert seen[0].abs().max() <= 1


@pytest.mark.parametrize(
    ("nu", "step", "message"),
    [
        ([[0, 1.5, 0, 0, 0]], 0.1, "in \\[−1, 1\\], got 1.5"),
        ([0.0] * 5, 0.1, "shape \\(B, n\\), got \\(5,\\)"),
        ([[0.0] * 5], 0.0, r"step in \[1e-06, 2\], got 0.0"),
        ([[0.0] * 5], 1e-17, "got 1e-17"),
        ([[0.0] * 5], float("inf"), "got inf"),
        ([[0.0] * 5], "0.1", "got '0.1'"),
    ],
)
def test_secant_metric_refuses(nu, step, message):
    with pytest.raises(ValueError, match=message):
        metric.secant_metric(torch.tensor(nu, dtype=torch.float64), lambda x: x, DRUM, step=step)


def test_the_name_of_an_ear_is_no_ear():
    for function in (metric.riemannian_metric, metric.secant_metric):
        for ear in ("jtfs", None):
            with pytest.raises(ValueError, match=f"expected features as a callable, got {ear!r}: `ears.find_ear`"):
                function(torch.zeros(1, 5, dtype=torch.float64), ear, DRUM)


def test_a_secant_metric_takes_features_in_whole_numbers_and_steps_of_any_kind():
    nu, short = torch.zeros(1, 5, dtype=torch.float64), replace(DRUM, n_samples=512)
    for step in (np.float32(0.125), torch.tensor(0.125), 0.125):
        M = metric.secant_metric(nu, lambda x: (100 * x).int(), short, step)
        assert torch.equal(M, metric.secant_metric(nu, lambda x: (100 * x).int().double(), short, 0.125))
        assert M.abs().max() > 0


@pytest.mark.parametrize(
    ("nu", "got"),
    [([0.0] * 5, "list"), (torch.tensor(0.5), "torch.float32 of shape"), (torch.zeros(1, 5).int(), "int32")],
)
def test_parameters_that_are_no_vectors_of_numbers(nu, got):
    with pytest.raises(ValueError, match=rf"expected ν \(..., n\) as a tensor in floating point, got .*{got}"):
        metric.jacobian(nu, lambda x: x, DRUM)
    with pytest.raises(ValueError, match=rf"expected ν \(..., n\) as a tensor in floating point, got .*{got}"):
        metric.secant_metric(nu, lambda x: x, DRUM)


@pytest.mark.parametrize(
    ("M", "message"),
    [
        ([[1.0]], "expected metrics as a tensor of real numbers, got list"),
        (torch.eye(2) + 0j, "expected metrics as a tensor of real numbers, got torch.complex64"),
        (torch.zeros(3, 0, 0), r"of shape \(..., n, n\), got \(3, 0, 0\)"),
        (torch.zeros(3), r"of shape \(..., n, n\), got \(3,\)"),
    ],
)
def test_what_is_no_metric_is_named(M, message):
    for function in (metric.eigen, metric.rank, metric.condition_number):
        with pytest.raises(ValueError, match=message):
            function(M)
