"""A synthesizer and an ear of a reader's own go the whole way: from a file by command line alone, and as objects."""

import json
import os
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
import yaml
import zarr

from pnp_tutorial.__main__ import main
from pnp_tutorial.arpeggiator import ARPEGGIATOR
from pnp_tutorial.bank import load_bank, save_bank
from pnp_tutorial.checks import refuse_elsewhere
from pnp_tutorial.dataset import SPLITS, DatasetConfig, build, describe, draw, ear, load, propose, read_config, verify
from pnp_tutorial.ears import find_ear
from pnp_tutorial.encoder import load_encoder
from pnp_tutorial.evaluation import EvaluationConfig, report
from pnp_tutorial.match_files import match_files
from pnp_tutorial.matching import Budget, match
from pnp_tutorial.metric import riemannian_metric, secant_metric
from pnp_tutorial.runtime import load_object, read_tensors, tensor_file
from pnp_tutorial.scalogram import Scalogram
from pnp_tutorial.scattering import JTFS, LogScattering
from pnp_tutorial.synthesizer import Parameter, Synthesizer, differs, sketch
from pnp_tutorial.training import TrainingConfig, fit

WHISTLE = '''
"""Outside the repository: two parameters, 16 kHz, a quarter of a second, and an ear of its own."""

import torch

from pnp_tutorial.synthesizer import Parameter, Synthesizer


def whistle(theta, n_samples, sample_rate, *, dtype):
    hz, level = theta.unsqueeze(-2).unbind(-1)
    t = torch.arange(n_samples, dtype=theta.dtype, device=theta.device) / sample_rate
    return (10 ** (level / 20) * torch.exp(-8 * t) * torch.sin(2 * torch.pi * hz * t)).to(dtype)


WHISTLE = Synthesizer(
    "whistle",
    (
        Parameter("hz", "f", "Hz", 300.0, 3000.0, "pitch", "log"),
        Parameter("level", "l", "dB", -30.0, 0.0, "level"),
    ),
    whistle,
    n_samples=4000,
    sample_rate=16000,
)


def spectrum(x):
    return torch.log1p(1000 * torch.fft.rfft(x).abs() / x.shape[-1])
'''
SMALL = ["--n_sounds=60", "--J=6", "--T=128", "--device=cpu"]
TRAINING = ["--backbone=test_efficientnet", "--n_epochs=2", "--batch_size=16", "--device=cpu"]


@pytest.fixture
def whistle(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "whistle.py").write_text(WHISTLE, encoding="utf-8")
    return load_object(f"{tmp_path}/whistle.py:WHISTLE")


def the_whole_way(options, sound, rate, names):
    """By command line alone: data set, training, evaluation, match."""
    for command in (
        ["dataset", "--data=x.zarr", *SMALL],
        ["dataset", "--data=x.zarr", "--verify"],
        ["train", "--data=x.zarr", "--output_folder=run", *TRAINING],
        ["evaluate", "--data=x.zarr", "--encoder=run/encoder.safetensors", "--output_folder=run", "--device=cpu"],
    ):
        assert main([*command, *options]) == 0, command
    soundfile.write("sound.wav", sound, rate, subtype="FLOAT")
    assert main(["match", "sound.wav", "--encoder=run/encoder.safetensors", "--device=cpu", *options]) == 0
    document = json.loads(open("sound_matched.json", encoding="utf-8").read())
    assert [p["name"] for p in document["theta"]] == names
    return document


def test_two_parameters_at_16_khz_by_command_line_alone(whistle, capfd):
    theta = torch.tensor([700.0, -12.0], dtype=torch.float64)
    x = whistle.function(theta, 4000, 16000, dtype=torch.float64).numpy()
    document = the_whole_way(["--synthesizer=whistle.py:WHISTLE"], x, 16000, ["hz", "level"])
    found = [p["value"] for p in document["theta"]]
    assert found[0] == pytest.approx(700, rel=1e-3)
    assert found[1] == pytest.approx(-12, abs=0.1), "its level has a meaning: the recording keeps it"
    assert document["level_db"] == 0
    y, rate = soundfile.read("sound_matched.wav")
    assert rate == 16000
    np.testing.assert_allclose(y, x, atol=0.02)
    assert set(pd.read_csv("run/evaluation.csv").columns) >= {"error_hz", "error_level", "ear", "ear_constant"}
    assert "Hz" in capfd.readouterr().out


def test_a_match_needs_no_encoder(whistle, capfd):
    """What is found without one is kept, too, until another ear is asked for."""
    x = whistle(whistle.to_nu(torch.tensor([700.0, -12.0], dtype=torch.float64))).numpy()
    soundfile.write("sound.wav", x, 16000, subtype="FLOAT")
    command = ["match", "sound.wav", "--synthesizer=whistle.py:WHISTLE"]
    assert main(command) == 0
    said = capfd.readouterr().out
    assert "in the middle of the ranges, " in said
    document = json.loads(open("sound_matched.json", encoding="utf-8").read())
    hz, level = (p["value"] for p in document["theta"])
    assert hz == pytest.approx(700, rel=1e-3)
    assert level == pytest.approx(-12, abs=0.1)
    assert document["encoder"] == document["constant"], "the centre"
    assert document["source"]["encoder"] == ""
    assert document["source"]["ear"] == "jtfs"
    written = os.stat("sound_matched.json").st_mtime_ns
    assert main(command) == 0
    assert (capfd.readouterr().out, os.stat("sound_matched.json").st_mtime_ns) == (said, written)
    assert main([*command, "--ear=coarse"]) == 0
    assert json.loads(open("sound_matched.json", encoding="utf-8").read())["source"]["ear"] == "coarse"


def test_a_synthesizer_that_breaks_a_promise_is_not_matched(whistle, capfd, tmp_path):
    text = (tmp_path / "whistle.py").read_text(encoding="utf-8").replace(".to(dtype)", ".float()")
    (tmp_path / "broken.py").write_text(text, encoding="utf-8")
    soundfile.write("sound.wav", np.ones(100), 16000)
    assert main(["match", "sound.wav", "--synthesizer=broken.py:WHISTLE"]) == 2
    assert "whistle breaks its promises: " in capfd.readouterr().err
    assert not (tmp_path / "sound_matched.json").exists()


def test_the_arpeggiator_by_command_line_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nu = torch.tensor([0.2, -0.3, 0.1], dtype=torch.float64)
    x = replace(ARPEGGIATOR, n_samples=4096)(nu).numpy()
    options = ["--synthesizer=arpeggiator"]
    (tmp_path / "short.yaml").write_text("n_samples: 4096\nsynthesizer: arpeggiator\n", encoding="utf-8")
    for command in (
        ["dataset", "--config=short.yaml", "--data=x.zarr", *SMALL],
        ["train", "--data=x.zarr", "--output_folder=run", "--known=[f_c]", *TRAINING, *options],
        ["train", "--data=x.zarr", "--output_folder=all", *TRAINING],
        ["evaluate", "--data=x.zarr", "--encoder=run/encoder.safetensors", "--output_folder=run", "--device=cpu"],
    ):
        assert main(command) == 0, command
    assert load_encoder("run/encoder.safetensors").known == ("f_c",)
    soundfile.write("sound.wav", x, 8192, subtype="FLOAT")
    assert main(["match", "sound.wav", "--encoder=all/encoder.safetensors", "--device=cpu"]) == 0
    document = json.loads((tmp_path / "sound_matched.json").read_text(encoding="utf-8"))
    found = torch.tensor([p["value"] for p in document["theta"]]).double()
    assert (ARPEGGIATOR.to_nu(found) - nu).abs().max() < 0.05


def test_a_store_of_an_unknown_synthesizer_is_refused_with_one_line(whistle, capfd):
    assert main(["dataset", "--data=x.zarr", "--synthesizer=whistle.py:WHISTLE", *SMALL]) == 0
    capfd.readouterr()
    assert main(["dataset", "--data=x.zarr", "--info"]) == 0, "what it was made with is told in any case"
    info = yaml.safe_load(capfd.readouterr().out)
    assert info["config"]["synthesizer"]["name"] == "whistle"
    assert [p["name"] for p in info["config"]["synthesizer"]["parameters"]] == ["hz", "level"]
    expected = (
        "x.zarr was made with the synthesizer 'whistle', which this library does not have: pass it, as --synthesizer"
    )
    for command in (["dataset", "--data=x.zarr", "--verify"], ["train", "--data=x.zarr", *TRAINING]):
        assert main(command) == 2
        message = capfd.readouterr().err
        assert expected in message
        assert message.count("\n") == 1
    assert main(["train", "--data=x.zarr", "--synthesizer=drum", *TRAINING]) == 2
    assert "made with the synthesizer 'whistle', and 'drum' is given" in capfd.readouterr().err


def test_names_in_headers_are_never_imported(whistle, tmp_path, monkeypatch):
    """A store, an encoder and a bank that name os:system."""
    monkeypatch.setattr("os.system", lambda command: pytest.fail("os.system was called"))
    build(DatasetConfig(data="x.zarr", synthesizer=whistle, n_sounds=20, J=6, T=128), progress=False)
    fit(
        TrainingConfig(
            data="x.zarr", output_folder="run", synthesizer=whistle, backbone="test_efficientnet", n_epochs=1
        )
    )
    save_bank("x.zarr", "bank.safetensors", whistle)
    store = zarr.open_group("x.zarr", mode="r+")
    del store.attrs["seal"]  # as in older ones
    for evil in ("os:system", {"name": "os:system"}):
        store.attrs["config"] = {**store.attrs["config"], "synthesizer": evil}
        with pytest.raises(ValueError, match="x.zarr was made with the synthesizer 'os:system', which"):
            read_config("x.zarr")
        for name, read, where in (
            ("run/encoder", load_encoder, lambda header: header["dataset"]),
            ("bank", load_bank, lambda header: header),
        ):
            header, tensors = read_tensors(Path(f"{name}.safetensors"), "a file")
            where(header)["synthesizer"] = evil
            Path("evil.safetensors").write_bytes(tensor_file(tensors, header))
            with pytest.raises(ValueError, match="evil.safetensors was made with the synthesizer 'os:system', which"):
                read("evil.safetensors")


def test_objects_go_the_same_way(whistle):
    config = DatasetConfig(data="x.zarr", synthesizer=whistle, n_sounds=40, J=6, T=128, features=True)
    build(config, progress=False)
    assert read_config("x.zarr", whistle).synthesizer == whistle
    assert verify("x.zarr", progress=False, synthesizer=whistle) == 0
    test = load("x.zarr", "test", ("metric", "features"))
    torch.testing.assert_close(test.metric, riemannian_metric(test.nu, ear(config), whistle), rtol=1e-4, atol=1e-2)
    training = TrainingConfig(data="x.zarr", output_folder="run", synthesizer=whistle, backbone="test_efficientnet")
    fit(replace(training, n_epochs=1, loss="spectral"), progress=False)
    with pytest.raises(ValueError, match="this library does not have: pass it"):
        load_encoder("run/encoder.safetensors")
    model = load_encoder("run/encoder.safetensors", synthesizer=whistle)
    nu = torch.tensor([0.1, 0.4], dtype=torch.float64)
    found = match(whistle(nu), model)
    assert (found.nu - nu).abs().max() < 0.02
    assert found.covariance.shape == (2, 2)


@pytest.mark.parametrize("name", ["mss", "coarse", "own"])
def test_any_ear(whistle, tmp_path, monkeypatch, name):
    own = load_object(f"{tmp_path}/whistle.py:spectrum")
    chosen = own if name == "own" else name
    config = DatasetConfig(data="x.zarr", synthesizer=whistle, ear=chosen, n_sounds=20, J=6, T=128)
    build(config, progress=False)
    rows = load("x.zarr", "test")
    torch.testing.assert_close(rows.metric, riemannian_metric(rows.nu, ear(config), whistle), rtol=1e-4, atol=1e-2)
    assert describe("x.zarr")["config"]["ear"] == ("spectrum" if name == "own" else name)
    training = TrainingConfig(
        data="x.zarr",
        output_folder="run",
        synthesizer=whistle,
        backbone="test_efficientnet",
        n_epochs=1,
        loss="spectral",
    )
    if name == "own":
        with monkeypatch.context() as patched:
            patched.setattr("pnp_tutorial.training.load", None)  # it is said before any sound is read
            with pytest.raises(ValueError, match="the ear 'spectrum' is not one of this library, .*: pass it"):
                fit(training, progress=False)
        with pytest.raises(ValueError, match="made with the ear 'spectrum', and 'mss' is given"):
            fit(replace(training, ear="mss"), progress=False)
    assert len(fit(replace(training, ear=chosen), progress=False)) == 1


def test_an_ear_for_another_sample_rate_is_refused(whistle):
    class Ear(torch.nn.Module):
        sample_rate = 22050.0

        def forward(self, x):
            return x

    with pytest.raises(ValueError, match="the ear is for 22050 Hz, and the synthesizer has 16000 Hz"):
        build(DatasetConfig(data="x.zarr", synthesizer=whistle, ear=Ear(), n_sounds=20, J=6, T=128), progress=False)


def test_an_ear_of_a_transform_says_its_sample_rate_if_it_was_told():
    assert find_ear(JTFS(4096, J=8), 4096, 16000.0).sample_rate is None
    assert find_ear(LogScattering(Scalogram(4096, J=8, sample_rate=16000.0)), 4096, 16000.0)
    with pytest.raises(ValueError, match="the ear is for 44100 Hz, and the synthesizer has 16000 Hz"):
        find_ear(LogScattering(JTFS(4096, J=8, sample_rate=44100.0)), 4096, 16000.0)


def test_the_papers_two_splits():
    """Drum: 82 224, 7 776, 10 000. Arpeggiator: 21 556, 2 744, 2 700."""
    drums = DatasetConfig(sampling="grid", n_sounds=100_000)
    arpeggios = replace(drums, synthesizer=ARPEGGIATOR, n_sounds=27_000, n_cells=30, n_inner=14, n_grid_test=2700)
    for config, sizes in ((drums, (82_224, 7_776, 10_000)), (arpeggios, (21_556, 2_744, 2_700))):
        nu, split = draw(config)
        assert tuple(np.bincount(split)) == sizes
        inner = nu[torch.from_numpy(split == SPLITS.index("validation"))]
        assert inner.abs().max() < config.n_inner / config.n_cells


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_inner": 31}, "a grid of 30 cells along each of 2 axes has no 31 inner ones"),
        ({"n_grid_test": 900}, "and 900 sounds around them for testing"),
        ({"n_cells": 10_000}, "expected a grid of 1 to 10,000,000 cells, got 10000 along each of 2 axes"),
        ({"n_sounds": 901}, "n_sounds from 10 to 900"),
        ({"n_inner": 0}, "n_inner = 0 and n_grid_test = 90 has no sounds for validation"),
        ({"n_grid_test": 0}, "has no sounds for test"),
        ({"metric": False, "secant_step": 0.1}, "secant_step is of the metric, and there is none"),
        ({"ear": "nose"}, "the ear 'nose' is not one of this library, jtfs, mss, mss-linear, coarse"),
    ],
)
def test_impossible_grids_and_ears_are_named(whistle, change, message):
    config = DatasetConfig(
        data="x.zarr",
        synthesizer=whistle,
        sampling="grid",
        n_cells=30,
        n_inner=14,
        n_grid_test=90,
        n_sounds=100,
        J=6,
        T=128,
    )
    with pytest.raises(ValueError, match=message):
        build(replace(config, **change), progress=False)


def test_synthesizers_are_listed(whistle, capfd):
    assert main(["synthesizers"]) == 0
    out = capfd.readouterr().out
    assert "drum: 2.97 s at 22050 Hz" in out
    assert "f_m  4 to 16 Hz, log: tempo" in out
    assert "alpha  1e-05 to 1, linear: shape" in out, "a ratio has no unit"
    assert main(["synthesizers", "--synthesizer=whistle.py:WHISTLE"]) == 0
    out = capfd.readouterr().out
    assert "level  -30 to 0 dB, linear: level" in out
    assert out.endswith("keeps what a synthesizer must promise\n")
    assert main(["synthesizers", "--synthesizer=whistle.py:spectrum"]) == 2
    assert "is no Synthesizer, but of type function" in capfd.readouterr().err


def test_a_synthesizer_that_does_not_work_is_told_in_one_line(whistle, tmp_path, capfd):
    """By its promises, and before it is measured how long its metrics would take."""
    broken = WHISTLE.replace("hz, level = theta.unsqueeze(-2).unbind(-1)", "hz, level = theta")
    (tmp_path / "broken.py").write_text(broken, encoding="utf-8")
    assert main(["dataset", "--data=x.zarr", "--synthesizer=broken.py:WHISTLE", *SMALL]) == 2
    assert capfd.readouterr().err.startswith(
        "pnp dataset: whistle breaks its promises: called as function(θ, n_samples, sample_rate, *, dtype)"
    )
    (tmp_path / "deaf.py").write_text("def deaf(x):\n    raise TypeError('of their own')\n", encoding="utf-8")
    options = ["--synthesizer=whistle.py:WHISTLE", "--ear=deaf.py:deaf", *SMALL]
    assert main(["dataset", "--data=x.zarr", *options]) == 2
    assert capfd.readouterr().err.endswith(", ear = deaf: TypeError: of their own (sounds come in float32, on cpu)\n")


def test_what_takes_hours_is_told_before_it_begins(whistle):
    config = DatasetConfig(data="x.zarr", synthesizer=whistle, n_sounds=40, device="cpu")
    assert propose(config) == "", "this takes seconds"
    words = propose(replace(config, n_sounds=10**8))
    hours = [float(number) for number in re.findall(r"about ([\d.e+]+)", words)]
    assert words.startswith("metrics of 100000000 sounds take about ")
    assert words.endswith("--secant_step 0.1")
    assert 1 < hours[1] < hours[0]
    assert propose(replace(config, n_sounds=10**8, metric=False)) == ""
    slow = replace(whistle, sample_rate=50.0)  # which coarse spectra cannot hear, and an ear of one's own can
    assert propose(replace(config, n_sounds=10**9, synthesizer=slow, ear=lambda x: x.abs())) == ""
    assert propose(replace(config, n_sounds=10**8, secant_step=0.1)) == ""


@pytest.mark.parametrize("n", [1, 100])
def test_from_one_parameter_to_a_hundred(tmp_path, n):
    """A chord of n partials, each with its own loudness, all the way."""

    def chord(theta, n_samples, sample_rate, *, dtype):
        t = torch.arange(n_samples, dtype=theta.dtype) / sample_rate
        hz = 100 + 30 * torch.arange(n, dtype=theta.dtype)[:, None]
        return (10 ** (theta / 20) @ (torch.exp(-5 * t) * torch.sin(2 * torch.pi * hz * t)) / n).to(dtype)

    parameters = tuple(Parameter(f"level_{k}", f"l{k}", "dB", -20.0, 0.0, "loudness") for k in range(n))
    synthesizer = Synthesizer("chord", parameters, chord, 2048, 8000)
    path = str(tmp_path / "x.zarr")
    build(DatasetConfig(data=path, synthesizer=synthesizer, ear="coarse", n_sounds=20, J=5, T=128), progress=False)
    training = TrainingConfig(data=path, output_folder=str(tmp_path), synthesizer=synthesizer, n_epochs=1, batch_size=8)
    fit(replace(training, backbone="test_efficientnet", damping_shape="mean"), progress=False)
    model = load_encoder(tmp_path / "encoder.safetensors", synthesizer=synthesizer)
    test = EvaluationConfig(f"{tmp_path}/encoder.safetensors", path, str(tmp_path), synthesizer, n_constant=2)
    assert sum(report(test, progress=False).index.str.startswith("error_")) == n
    quick = Budget(n_sounds=8, n_generations=2, n_runs=1, n_iterations=2)
    found = match(synthesizer(torch.zeros(n, dtype=torch.float64)), model, budget=quick)
    assert found.covariance.shape == (n, n)
    assert len(found.to_dict()["theta"]) == n


def test_names_of_the_library_are_its_own(whistle):
    """What is stored is a name, by which the library's would be taken later on."""
    config = DatasetConfig(data="x.zarr", synthesizer=replace(whistle, name="drum"), n_sounds=40, device="cpu")
    with pytest.raises(ValueError, match="'drum' is the name of a synthesizer of the library: give yours another"):
        build(config, progress=False)

    def mss(x):
        return x

    with pytest.raises(ValueError, match="'mss' is the name of an ear of the library: give yours another"):
        build(replace(config, synthesizer=whistle, ear=mss), progress=False)
    assert not Path("x.zarr").exists()


def louder(whistle):
    return lambda *args, **options: 1.5 * whistle(*args, **options)


def higher(whistle):
    return lambda theta, *args, **options: whistle(theta * theta.new_tensor([1.1, 1.0]), *args, **options)


@pytest.mark.parametrize("edit", [louder, higher])
def test_a_function_that_was_edited_is_noticed(whistle, edit):
    """In the middle of a data set, before a training, or after it: no file tells a function, but its sounds do."""
    config = DatasetConfig("x.zarr", synthesizer=whistle, n_sounds=40, J=6, T=128, metric=False, device="cpu")
    build(config, progress=False)
    zarr.open_group("x.zarr", mode="r+")["done"][-1] = False
    other = replace(whistle, function=edit(whistle.function))
    edited = "x.zarr was made when the synthesizer 'whistle' made other sounds: build it again"
    with pytest.raises(ValueError, match=edited):
        build(replace(config, synthesizer=other), progress=False)
    build(config, progress=False)
    training = TrainingConfig("x.zarr", "run", whistle, backbone="test_efficientnet", loss="parameter", n_epochs=1)
    with pytest.raises(ValueError, match=edited):
        fit(replace(training, synthesizer=other))
    assert not Path("run").exists()
    assert len(fit(training, progress=False)) == 1
    assert load_encoder("run/encoder.safetensors", synthesizer=whistle).known == ()
    with pytest.raises(ValueError, match="safetensors was made when the synthesizer 'whistle' made .*: train it again"):
        load_encoder("run/encoder.safetensors", synthesizer=other)
    with pytest.raises(ValueError, match="expected a Synthesizer, got 'whistle'"):
        load_encoder("run/encoder.safetensors", synthesizer="whistle")


def test_a_sketch_of_an_older_file_has_levels_alone(whistle):
    now = sketch(whistle)
    assert not any(differs(*pair) for pair in ((now, now[0]), (now[0], now), (now[0], now[0])))
    assert differs(sketch(replace(whistle, function=louder(whistle.function))), now[0])


def own_ear(factor):
    """Of one name, and hearing otherwise."""

    def nose(x):
        return factor * x.abs().reshape(*x.shape[:-1], 40, -1).mean(-1)

    return nose


def test_an_ear_that_was_edited_is_noticed(whistle):
    """In the middle of a data set, and of a training; files have its name only."""
    config = DatasetConfig("x.zarr", whistle, own_ear(1.0), n_sounds=40, J=6, T=128, features=True, device="cpu")
    build(config, progress=False)
    zarr.open_group("x.zarr", mode="r+")["done"][-1] = False
    with pytest.raises(ValueError, match="x.zarr was made when the ear 'nose' heard otherwise: build it again"):
        build(replace(config, ear=own_ear(3.0)), progress=False)
    build(config, progress=False)
    training = TrainingConfig("x.zarr", "run", whistle, own_ear(1.0), backbone="test_efficientnet", loss="spectral")
    training = replace(training, n_epochs=1, device="cpu")
    fit(training, progress=False)
    with pytest.raises(ValueError, match="x.zarr was made when the ear 'nose' heard otherwise"):
        fit(replace(training, ear=own_ear(3.0), n_epochs=2), progress=False)
    assert len(fit(replace(training, n_epochs=2), progress=False)) == 2


def matched(whistle, ear):
    """The row of a short search for a sound of the whistle."""
    soundfile.write("sound.wav", whistle(torch.tensor([0.1, 0.4])).numpy(), 16000, subtype="FLOAT")
    few = Budget(n_sounds=5, n_generations=2, n_runs=1, n_iterations=1)
    (row,) = match_files(["sound.wav"], ".", synthesizer=whistle, ear=ear, budget=few)
    return row


def test_an_ear_that_makes_pictures_is_refused(whistle):
    """In a data set with metrics, with features alone, and in a match: before anything is written or searched."""

    def picture(x):
        return x.abs().reshape(*x.shape[:-1], 40, -1)

    config = DatasetConfig("x.zarr", whistle, picture, n_sounds=20, J=6, T=128, device="cpu")
    said = r"a vector for each sound, got \(1, 40, 100\) for sounds of shape \(1, 4000\)"
    for changed in (config, replace(config, metric=False, features=True)):
        with pytest.raises(ValueError, match=said):
            build(changed, progress=False)
    with pytest.raises(ValueError, match=f"no match can be made by the ear picture: .*{said}"):
        matched(whistle, picture)
    with pytest.raises(ValueError, match=r"a vector for each sound, got \(4, 40, 100\)"):
        secant_metric(torch.zeros(1, 2), picture, lambda nu: whistle(nu).float())
    assert sorted(os.listdir()) == ["sound.wav", "whistle.py"]


def detached(x):
    return x[..., :64].detach()


def rounded(x):
    return x[..., :64].round()


class Weighed(torch.nn.Module):
    """Its own weights have a gradient, and what is heard has none."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(64, 8)

    def forward(self, x):
        return self.layer(x[..., :64].detach())


@pytest.mark.parametrize(
    ("ear", "message"),
    [
        (lambda x: torch.fft.rfft(x), "expected features as a tensor of real numbers, got torch.complex64"),
        (detached, "the metrics of three sounds are zero, as if no parameter were heard"),
        (rounded, "the metrics of three sounds are zero, as if no parameter were heard"),
    ],
)
def test_an_ear_without_a_metric_is_refused_before_anything_is_written(whistle, ear, message):
    config = DatasetConfig("x.zarr", whistle, ear, n_sounds=60, J=6, T=128, device="cpu")
    with pytest.raises(ValueError, match=message):
        build(config, progress=False)
    assert sorted(os.listdir()) == ["whistle.py"]


@pytest.mark.parametrize("ear", [detached, rounded, Weighed()])
def test_an_ear_that_passes_no_gradient_is_refused_before_a_training(whistle, ear):
    build(DatasetConfig("x.zarr", whistle, ear, n_sounds=60, J=6, T=128, metric=False, device="cpu"), progress=False)
    training = TrainingConfig("x.zarr", "run", whistle, ear, "spectral", backbone="test_efficientnet", device="cpu")
    with pytest.raises(ValueError, match="expected an ear and a synthesizer through which gradients pass"):
        fit(training, progress=False)
    assert not Path("run/checkpoint.pt").exists()


def test_a_sound_that_is_symmetric_in_the_middle_has_a_data_set(whistle):
    """There its metric is zero, and nowhere else."""

    def beat(theta, n_samples, sample_rate, *, dtype):
        t = torch.arange(n_samples, dtype=theta.dtype, device=theta.device) / sample_rate
        return (torch.exp(-8 * t) * torch.sin(600 * t) * (1 + torch.cos(20 * theta * t))).to(dtype)

    twofold = Synthesizer("beat", (Parameter("d", "d", "1", -1.0, 1.0, "half of the distance"),), beat, 4000, 16000)
    build(DatasetConfig("x.zarr", twofold, "coarse", n_sounds=10, J=6, T=128, device="cpu"), progress=False)
    metrics = load("x.zarr", "train", ("metric",)).metric
    assert riemannian_metric(torch.zeros(1, 1).double(), ear(read_config("x.zarr", twofold)), twofold).abs().max() == 0
    assert (metrics > 0).all()


def test_an_ear_with_weights_of_its_own_hears_float32_everywhere(whistle):
    """From the data set to the match, though it never heard a sound while that was built; one in float64 is refused."""
    ear = torch.nn.Linear(4000, 8)
    config = DatasetConfig("x.zarr", whistle, ear, n_sounds=60, J=6, T=128, metric=False, device="cpu")
    with pytest.raises(ValueError, match=r"ear = Linear: .*\(sounds come in float32, on cpu\)"):
        build(replace(config, ear=torch.nn.Linear(4000, 8).double()), progress=False)
    assert sorted(os.listdir()) == ["whistle.py"]
    for changed in (replace(config, data="m.zarr", metric=True, features=True), config):
        build(changed, progress=False)
    training = TrainingConfig("m.zarr", "run", whistle, ear, "spectral", backbone="test_efficientnet", device="cpu")
    fit(replace(training, n_epochs=1), progress=False)
    assert ear.weight.grad is None, "of a training, its weights are no part"
    evaluation = EvaluationConfig("run/encoder.safetensors", "x.zarr", "run", whistle, ear, device="cpu")
    assert report(evaluation, progress=False).loc["ear", "mean"] > 0
    assert not matched(whistle, ear)["error"]


def test_an_ear_for_batches_alone_makes_features_and_a_match(whistle):
    """What is given to an ear always has a batch axis."""

    def flat(x):
        return x.abs().reshape(len(x), 40, -1).mean(-1).flatten(1)

    build(DatasetConfig("x.zarr", whistle, flat, n_sounds=20, J=6, T=128, features=True, device="cpu"), progress=False)
    assert load("x.zarr", "train", ("features",)).features.shape == (16, 40)
    assert not matched(whistle, flat)["error"]


def test_an_ear_without_finite_derivatives_is_refused_before_a_search(whistle):
    def root(x):
        return (0 * x).abs().sqrt()

    with pytest.raises(ValueError, match="the ear root: .*their derivatives, are not finite"):
        matched(whistle, root)


def test_a_function_that_no_longer_works_is_named(whistle):
    """Of a data set that is there, too: its own error, in one line."""

    def broken(*given, **named):
        return forgotten  # noqa: F821

    ear = own_ear(1.0)
    build(DatasetConfig("x.zarr", whistle, ear, n_sounds=20, J=6, T=128, device="cpu"), progress=False)
    with pytest.raises(ValueError, match="whistle does not play: NameError: name 'forgotten' is not defined"):
        read_config("x.zarr", replace(whistle, function=broken))

    def nose(x):
        return forgotten  # noqa: F821

    with pytest.raises(ValueError, match="the ear 'nose' does not hear on cpu: NameError: name 'forgotten'"):
        read_config("x.zarr", whistle, nose)


def test_an_ear_by_numpy_is_refused_by_a_training_in_one_line(whistle):
    def ear(x):
        return torch.from_numpy(np.abs(np.fft.rfft(x.numpy(), 512)))

    config = DatasetConfig("x.zarr", whistle, ear, n_sounds=20, J=6, T=128, metric=False, device="cpu")
    build(config, progress=False)
    training = TrainingConfig("x.zarr", "run", whistle, ear, "spectral", backbone="test_efficientnet", device="cpu")
    with pytest.raises(ValueError, match="through which gradients pass: Can't call numpy"):
        fit(training, progress=False)


def test_a_training_does_not_go_on_with_other_sounds(whistle):
    """Of a data set that was built again, by a function of the same name, or with other metrics."""
    config = DatasetConfig("x.zarr", whistle, n_sounds=60, J=6, T=128, secant_step=0.1, device="cpu")
    build(config, progress=False)
    training = TrainingConfig("x.zarr", "run", whistle, backbone="test_efficientnet", n_epochs=1, device="cpu")
    fit(training, progress=False)
    kept = Path("run/encoder.safetensors").read_bytes()
    louder = replace(whistle, function=lambda *args, **options: 1.5 * whistle.function(*args, **options))
    for synthesizer, metric in ((louder, None), (whistle, torch.eye(2, dtype=torch.float64).repeat(60, 1, 1))):
        shutil.rmtree("x.zarr")
        build(replace(config, synthesizer=synthesizer), metric=metric, progress=False)
        with pytest.raises(ValueError, match="run holds a run on other sounds, features or metrics than x.zarr has by"):
            fit(replace(training, synthesizer=synthesizer, n_epochs=2), progress=False)
    assert Path("run/encoder.safetensors").read_bytes() == kept


def test_sounds_too_short_for_mss_are_evaluated_without_it(whistle):
    short = replace(whistle, n_samples=1000)
    build(DatasetConfig("x.zarr", short, n_sounds=60, J=5, T=32, metric=False, device="cpu"), progress=False)
    training = TrainingConfig("x.zarr", "run", short, loss="mss", backbone="test_efficientnet", device="cpu")
    with pytest.raises(ValueError, match="expected sounds of 1025 samples or more with the loss mss, got 1000"):
        fit(training, progress=False)
    fit(replace(training, loss="parameter", n_epochs=1), progress=False)
    evaluation = EvaluationConfig("run/encoder.safetensors", "x.zarr", "run", short, device="cpu")
    assert [*report(evaluation, progress=False).index[:3]] == ["ear", "ear_constant", "ear_gain"]


def test_a_time_axis_on_another_device_is_named(whistle):
    def here(theta, n_samples, sample_rate, *, dtype):
        t = torch.arange(n_samples, dtype=theta.dtype) / sample_rate  # on the CPU, always
        return torch.sin(theta[..., :1] * t).to(dtype)

    refuse_elsewhere(whistle, "meta")
    with pytest.raises(ValueError, match="whistle does not play with θ on meta: .*must lie on the device of θ"):
        refuse_elsewhere(replace(whistle, function=here), "meta")


def test_an_ear_that_draws_at_random_is_not_taken_for_an_edited_one(whistle):
    def dice(x):
        return torch.rand(*x.shape[:-1], 8) + 0 * x[..., :8]

    config = DatasetConfig("x.zarr", synthesizer=whistle, ear=dice, n_sounds=20, J=6, T=128, metric=False, device="cpu")
    build(config, progress=False)
    assert read_config("x.zarr", whistle, dice).ear is dice


def test_a_match_by_an_ear_that_was_edited_is_made_again(whistle):
    def distance(factor):
        row = matched(whistle, own_ear(factor))
        assert not row["error"]
        return row["constant"]

    once = distance(1.0)
    assert distance(1.0) == once
    assert distance(3.0) == pytest.approx(3 * once, rel=1e-3)


def test_a_module_and_its_neighbours_are_found_from_where_one_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [entry for entry in sys.path if entry])  # as the command `pnp` has it
    (tmp_path / "shelf").mkdir()
    (tmp_path / "shelf/neighbour_of_mine.py").write_text("VALUE = 3\n", encoding="utf-8")
    (tmp_path / "shelf/mine.py").write_text("from neighbour_of_mine import VALUE\n", encoding="utf-8")
    (tmp_path / "module_of_mine.py").write_text("VALUE = 4\n", encoding="utf-8")
    assert load_object("shelf/mine.py:VALUE") == 3
    assert load_object("module_of_mine:VALUE") == 4
