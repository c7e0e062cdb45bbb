"""The benchmark of one device: it runs, and writes what the chapters read."""

import json

import device_benchmark

from pnp_tutorial.dataset import DatasetConfig


def test_every_rate_is_measured_and_written(tmp_path, monkeypatch):
    monkeypatch.setattr(device_benchmark, "SECONDS", 0.01)
    data = DatasetConfig(n_samples=2048, J=6, T=64, device="cpu")
    device_benchmark.main(tmp_path / "speed.json", data, batches=[1, 2], n_sounds=10)
    results = json.loads((tmp_path / "speed.json").read_text(encoding="utf-8"))
    rates = {kind: results[kind] for kind in ("features", "metric", "dataset", "steps")}
    assert [len(kind) for kind in rates.values()] == [2, 2, 1, 8]
    assert all(rate > 0 for kind in rates.values() for rate in kind.values())
    assert results["batch"] == {"parameter": 2, "pnp": 2, "mss": 2, "spectral": 2}
