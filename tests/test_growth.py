"""The benchmark of growth: every axis has its points, and a point its numbers."""

import growth
import pytest

SMALL = {"batch": 2, "n_samples": 4096, "J": 8, "Q": 6, "modes": 4, "threads": 1}


def test_every_axis_has_points():
    points = growth.points(n_threads=4)
    axes = {(kind, axis) for kind, axis, _ in points}
    assert {axis for kind, axis in axes if kind == "metric"} == set(growth.DEFAULTS)
    assert [s["threads"] for kind, axis, s in points if (kind, axis) == ("features", "threads")] == [1, 2, 4]
    lengths = {s["n_samples"]: s["J"] for kind, axis, s in points if (kind, axis) == ("metric", "n_samples")}
    assert lengths[2**16] == growth.DEFAULTS["J"]
    assert (min(lengths), max(lengths)) == (2**12, 2**18)


@pytest.mark.parametrize("kind", growth.AXES)
def test_a_point_has_its_numbers(kind, monkeypatch):
    monkeypatch.setattr(growth, "SECONDS", 0.0)
    n_threads = growth.torch.get_num_threads()
    monkeypatch.setattr(growth, "peak_bytes", iter([1000, 3500]).__next__)
    found = growth.measure(kind, SMALL)
    growth.torch.set_num_threads(n_threads)
    assert 0 < found["fastest"] <= found["seconds"]
    assert 0 < found["floor"] < 1
    assert found["bytes"] == 2500
