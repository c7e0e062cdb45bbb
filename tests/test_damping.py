import dataclasses
import math

import pytest
import torch

from pnp_tutorial.damping import (
    AdaptiveDamping,
    ConstantDamping,
    ScheduledDamping,
    damping_matrix,
    largest_damping,
)

LOSSES = [3.0, 2.0, 2.5, 2.0, 1.0]
RECORDS = [True, True, False, False, True]


def run(rule):
    values = [rule.value]
    for loss, record in zip(LOSSES, RECORDS, strict=True):
        assert rule.update(loss) is record
        values.append(rule.value)
    return values


def test_constant_stays():
    assert run(ConstantDamping(7.0)) == [7.0] * 6


def test_scheduled_decays_geometrically_whatever_the_loss():
    assert run(ScheduledDamping(1.0, ratio=0.5)) == [1, 0.5, 0.25, 0.125, 0.0625, 0.03125]


def test_adaptive_decreases_on_a_record_and_brakes_otherwise():
    values = run(AdaptiveDamping(1.0, decrease=0.25, increase=2.0))
    assert values == [1, 0.25, 0.0625, 0.125, 0.25, 0.0625]


def test_rules_have_the_ratios_that_they_state():
    assert run(ScheduledDamping(1.0)) == pytest.approx([1, 0.8, 0.64, 0.512, 0.4096, 0.32768])
    assert run(AdaptiveDamping(1.0)) == pytest.approx([1, 0.2, 0.04, 0.04, 0.04, 0.008])


def test_a_nan_loss_is_a_failure_not_a_record():
    rule = AdaptiveDamping(1.0, increase=3.0)
    assert rule.update(math.nan) is False
    assert rule.value == 3.0
    assert rule.update(1.0) is True


def test_a_copy_from_its_fields_continues_where_it_was():
    rule = AdaptiveDamping(1.0)
    rule.update(2.0)
    copy = AdaptiveDamping(**dataclasses.asdict(rule))
    assert copy == rule
    assert copy.update(2.5) is rule.update(2.5) is False


@pytest.fixture
def metrics():
    J = torch.randn(6, 20, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    J *= torch.logspace(-3, 2, 5, dtype=torch.float64)
    return J.mT @ J


def test_shapes_of_damping(metrics):
    assert torch.equal(damping_matrix(metrics), torch.eye(5, dtype=torch.float64).expand(6, 5, 5))
    diagonal = damping_matrix(metrics, "diagonal")
    assert torch.equal(diagonal.diagonal(dim1=1, dim2=2), metrics.diagonal(dim1=1, dim2=2))
    assert diagonal.count_nonzero() == 30
    mean = damping_matrix(metrics, "mean")
    assert torch.equal(mean[0], metrics.mean(0))
    assert torch.equal(mean[0], mean[5])


def test_diagonal_damping_knows_no_units(metrics):
    """The condition number of M + λ diag M, each parameter in its own unit, does not change with the units."""
    scale = torch.diag(torch.tensor([1e3, 1, 1e-2, 10, 0.1], dtype=torch.float64))
    other = scale @ metrics @ scale
    for M in (metrics, other):
        assert largest_damping(M, damping_matrix(M, "diagonal")) == pytest.approx(
            largest_damping(metrics, damping_matrix(metrics, "diagonal"))
        )
    assert largest_damping(other, damping_matrix(other)) != pytest.approx(
        largest_damping(metrics, damping_matrix(metrics))
    )


@pytest.mark.parametrize("shape", ["identity", "diagonal", "mean"])
def test_largest_damping_just_outweighs_every_metric(metrics, shape):
    D = damping_matrix(metrics, shape)
    damping = largest_damping(metrics, D)
    unit = damping_matrix(metrics, "diagonal").diagonal(dim1=1, dim2=2).rsqrt()

    def least(damping):  # each parameter in its own unit, for rounding
        return torch.linalg.eigvalsh(unit[:, :, None] * (damping * D - metrics) * unit[:, None]).min()

    assert least(damping * 1.0001) > 0 > least(damping * 0.9999)


def test_largest_damping_leaves_out_silent_parameters(metrics):
    metrics[:, 2], metrics[:, :, 2] = 0, 0
    assert largest_damping(metrics, damping_matrix(metrics, "diagonal")) <= 5
    assert largest_damping(metrics, damping_matrix(metrics)) == pytest.approx(torch.linalg.eigvalsh(metrics).max())


def test_largest_damping_leaves_out_what_is_but_rounding():
    D = torch.ones(2, 2, dtype=torch.float64) + torch.diag(torch.tensor([1e-14, 0.0], dtype=torch.float64))
    assert largest_damping(3 * torch.eye(2, dtype=torch.float64)[None], D[None]) == pytest.approx(1.5)


@pytest.mark.parametrize("size", [1e-20, 1e5, 1e20])
def test_largest_damping_does_not_depend_on_the_size_of_one_parameter(size):
    M = torch.tensor([[size, 0, 0], [0, 1, 0.9], [0, 0.9, 1]], dtype=torch.float64)[None]
    assert largest_damping(M, damping_matrix(M, "diagonal")) == pytest.approx(1.9)


def test_no_metrics_have_no_largest_damping():
    nothing = torch.zeros(0, 3, 3)
    with pytest.raises(ValueError, match="at least one metric, got none"):
        largest_damping(nothing, damping_matrix(nothing))


@pytest.mark.parametrize(
    ("metric", "shape", "message"),
    [
        (torch.zeros(5, 5), "identity", r"shape \(B, n, n\), got \(5, 5\)"),
        (torch.zeros(3, 5, 4), "mean", r"got \(3, 5, 4\)"),
        (torch.zeros(3, 5, 5), "round", "got 'round'"),
    ],
)
def test_impossible_damping(metric, shape, message):
    with pytest.raises(ValueError, match=message):
        damping_matrix(metric, shape)
