"""The benchmark of one device: it runs, and writes what the chapters read."""

import time

import device_benchmark
import torch

from pnp_tutorial.dataset import DatasetConfig
from pnp_tutorial.metric import riemannian_metric
from pnp_tutorial.runtime import read_results


def test_every_rate_is_measured_and_written(tmp_path, monkeypatch):
    monkeypatch.setattr(device_benchmark, "SECONDS", 0.01)
    data = DatasetConfig(n_samples=2048, J=6, T=64, device="cpu")
    device_benchmark.main(tmp_path / "speed.json", data, batches=[1, 2], n_sounds=10)
    results = read_results(tmp_path / "speed.json")
    kinds = ("features", "metric", "features, TF32", "dataset", "evaluation", "steps")
    rates = {kind: results[kind] for kind in kinds}
    assert [len(kind) for kind in rates.values()] == [2, 2, 2, 1, 1, 8]
    assert results["batch"] == {"parameter": 2, "pnp": 2, "mss": 2, "spectral": 2}
    assert results["machine"].keys() > {"device", "cores", "threads"}
    assert results["versions"].keys() > {"torch", "pnp_tutorial"}
    for errors in results["errors"].values():  # of products in float32 and TF32, which a CPU may not have
        assert 0 < errors["features"][0] < 1e-2
        assert len(errors["eigenvalues"]) == 5


def test_a_rate_is_that_of_sounds(monkeypatch):
    """Of work that takes a hundredth of a second, or more on a busy machine."""
    monkeypatch.setattr(device_benchmark, "SECONDS", 0.01)
    assert 1000 < device_benchmark.rate(lambda: time.sleep(0.01), 5000) < 500_100


def test_a_batch_beyond_the_memory_is_left_out(tmp_path, monkeypatch, capsys):
    def metric(nu, features, synthesizer):
        if len(nu) > 1:
            raise torch.OutOfMemoryError
        return riemannian_metric(nu, features, synthesizer)

    monkeypatch.setattr(device_benchmark, "SECONDS", 0.01)
    monkeypatch.setattr(device_benchmark, "riemannian_metric", metric)
    data = DatasetConfig(n_samples=2048, J=6, T=64, device="cpu")
    device_benchmark.main(tmp_path / "speed.json", data, batches=[1, 2], n_sounds=10)
    results = read_results(tmp_path / "speed.json")
    assert list(results["metric"]) == ["1"]
    assert list(results["features"]) == ["1", "2"]
    assert "metric 2: more than the memory of this device" in capsys.readouterr().out
