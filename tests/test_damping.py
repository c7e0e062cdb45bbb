import dataclasses
import math

from pnp_tutorial.damping import AdaptiveDamping, ConstantDamping, ScheduledDamping

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
