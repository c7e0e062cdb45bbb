"""The bank of drums and metrics: what is read is what was built, and damage is noticed."""

import hashlib
from dataclasses import replace

import pytest
import torch

from pnp_tutorial import bank, dataset
from pnp_tutorial.bank import load_bank, save_bank, shipped
from pnp_tutorial.dataset import SPLITS, build, ear, load
from pnp_tutorial.metric import riemannian_metric


@pytest.mark.parametrize("sampling", ["uniform", "grid"])
def test_bank_holds_every_drum(tiny_data, tmp_path, sampling):
    config = replace(tiny_data, data=str(tmp_path / "b.zarr"), sampling=sampling)
    build(config, progress=False)
    save_bank(config.data, tmp_path / "bank.safetensors")
    read = load_bank(tmp_path / "bank.safetensors")
    assert read.config == config
    for i, name in enumerate(SPLITS):
        part = load(config.data, name)
        assert torch.equal(read.nu[read.split == i], part.nu)
        assert torch.equal(read.metric[read.split == i], part.metric)


def test_data_set_from_a_bank_computes_no_jacobian(tiny_data, tmp_path, monkeypatch):
    save_bank(tiny_data.data, tmp_path / "bank.safetensors")
    monkeypatch.setattr(dataset, "push", lambda *args: pytest.fail("computed again"))
    config = replace(tiny_data, data=str(tmp_path / "c.zarr"))
    build(config, progress=False, metric=load_bank(tmp_path / "bank.safetensors").metric)
    for name in SPLITS:
        assert torch.equal(load(config.data, name).metric, load(tiny_data.data, name).metric)
        assert torch.equal(load(config.data, name).scalogram, load(tiny_data.data, name).scalogram)


def test_as_many_metrics_as_drums(tiny_data, tmp_path):
    with pytest.raises(ValueError, match=r"shape \(40, 5, 5\), got \(39, 5, 5\)"):
        build(replace(tiny_data, data=str(tmp_path / "d.zarr")), progress=False, metric=torch.zeros(39, 5, 5))


def test_files_that_are_no_bank(tiny_data, tmp_path):
    with pytest.raises(ValueError, match="there is no bank at"):
        load_bank(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("a bank of sand", encoding="utf-8")
    with pytest.raises(ValueError, match="is not a bank of this library"):
        load_bank(tmp_path / "text.safetensors")
    config = replace(tiny_data, data=str(tmp_path / "e.zarr"), metric=False)
    build(config, progress=False)
    with pytest.raises(ValueError, match="built without the metric"):
        save_bank(config.data, tmp_path / "bank.safetensors")


def test_damaged_shipment_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(bank, "WEIGHTS", tmp_path)
    (tmp_path / "SHA256SUMS").write_text(f"{hashlib.sha256(b'sound').hexdigest()}  drum\n", encoding="utf-8")
    with pytest.raises(ValueError, match="has no .*drum"):
        shipped("drum")
    (tmp_path / "drum").write_bytes(b"noise")
    with monkeypatch.context() as missing:
        missing.setattr(bank, "WEIGHTS", tmp_path / "drums")
        (tmp_path / "drums").mkdir()
        (tmp_path / "drums/drum").write_bytes(b"sound")
        with pytest.raises(ValueError, match="has no .*SHA256SUMS"):
            shipped("drum")
    with pytest.raises(ValueError, match="damaged"):
        shipped("drum")
    (tmp_path / "drum").write_bytes(b"sound")
    assert shipped("drum") == tmp_path / "drum"


def test_bank_that_ships():
    """Its ν are those of its configuration, and its metrics are what they should be."""
    shipment = load_bank()
    nu, split = dataset.draw(shipment.config)
    assert torch.equal(shipment.nu, nu)
    assert shipment.split.tolist() == split.tolist()
    M = riemannian_metric(nu[:1], ear(shipment.config), shipment.config.synthesizer)
    assert (shipment.metric[:1] - M).norm() < 1e-3 * M.norm()
    eigenvalues = torch.linalg.eigvalsh(shipment.metric)
    assert (eigenvalues[:, 0] > -1e-9 * eigenvalues[:, -1]).all()


def test_the_drums_of_a_bank_are_those_of_the_data_set(tiny_data, tmp_path, monkeypatch):
    """Not those that its configuration would draw: a copy of a data set may have other coordinates."""
    monkeypatch.setattr(bank, "draw", lambda config: (-dataset.draw(config)[0], dataset.draw(config)[1]))
    save_bank(tiny_data.data, tmp_path / "bank.safetensors")
    read = load_bank(tmp_path / "bank.safetensors")
    assert torch.equal(read.nu[read.split == 2], load(tiny_data.data, "test").nu)
