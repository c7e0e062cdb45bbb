"""The command line, as a user runs it."""

import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import yaml

from pnp_tutorial import __version__
from pnp_tutorial.__main__ import main
from pnp_tutorial.dataset import DatasetConfig
from pnp_tutorial.synthesizer import find_synthesizer
from pnp_tutorial.training import TrainingConfig

PARAMETERS = Path(__file__).parents[1] / "book/parameters"


# The plainest terminal that there is.
ASCII = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}


def pnp(*argv, cwd=None, **environment):
    command = [sys.executable, "-m", "pnp_tutorial", *argv]
    return subprocess.run(command, capture_output=True, encoding="utf-8", cwd=cwd, env=os.environ | environment)


@pytest.fixture
def encoder(tiny_training):
    return f"{tiny_training.output_folder}/encoder.safetensors"


@pytest.fixture
def sound(tmp_path):
    path = tmp_path / "in" / "tom.wav"
    path.parent.mkdir()
    t = np.arange(44100) / 44100
    soundfile.write(path, 0.5 * np.exp(-5 * t) * np.sin(2 * np.pi * 200 * t), 44100)
    return path


def test_match(encoder, sound, tmp_path):
    run = pnp("match", sound, "--encoder", encoder, "--output_folder", tmp_path / "out")
    assert (run.returncode, run.stderr) == (0, "")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"tom_matched.wav", "tom_matched.json"}
    document = json.loads((tmp_path / "out/tom_matched.json").read_text(encoding="utf-8"))
    for parameter in document["theta"]:
        value, spread = parameter["value"], parameter["uncertainty"]
        unit = "" if parameter["unit"] == "1" else f" {parameter['unit']}"
        assert f"{value:.4g} ± {spread:.2g}{unit}\n" in run.stdout
    assert {"log_p", "log_D"} <= set(document["undetermined"]), "a sine has no second partial"
    assert f"\nnot determined by the sound: {'; '.join(document['undetermined'])}\n" in run.stdout
    assert " by the encoder, " in run.stdout
    x, rate = soundfile.read(tmp_path / "out/tom_matched.wav")
    assert (rate, len(x)) == (22050, 2048)
    assert np.abs(x).max() > 0.99


def test_match_of_a_sound_that_determines_all(monkeypatch, sound, capfd):
    row = {"file": "tom.wav", "error": "", "undetermined": "", "encoder": 2.0, "match": 1.0}
    theta = [{"name": "f_m", "value": 0.5, "uncertainty": 0.1, "unit": "Hz"}]
    (sound.parent / "tom_matched.json").write_text(
        json.dumps({"theta": theta, "source": {"encoder": "x"}}), encoding="utf-8"
    )
    monkeypatch.setattr("pnp_tutorial.__main__.match_files", lambda *options, **given: iter([row]))
    assert main(["match", str(sound), f"--output_folder={sound.parent}"]) == 0
    assert "\nthe sound determines all parameters\n" in capfd.readouterr().out


def test_match_a_folder(encoder, sound, tmp_path):
    """Sounds are matched into files and a table, whatever their names and headers and whatever the terminal; bad ones
    are reported, and what is no sound is left alone."""
    (sound.parent / "bad.flac").write_text("no sound", encoding="utf-8")
    (sound.parent / "bytes.raw").write_bytes(bytes(1000))
    (sound.parent / "notes.txt").write_text("no sound either", encoding="utf-8")
    latin = os.fsencode(sound.parent) + b"/dr\xfcm.wav"
    os.rename(sound, latin)
    soundfile.write(sound.with_name("long.flac"), soundfile.read(latin)[0], 44100)
    content = bytearray(sound.with_name("long.flac").read_bytes())
    content[21], content[22:26] = content[21] | 0x0F, b"\xff" * 4  # 2³⁶ − 1 samples, it says
    sound.with_name("long.flac").write_bytes(content)
    run = pnp("match", sound.parent, "--encoder", encoder, "--output_folder", tmp_path / "out", **ASCII)
    assert run.returncode == 0, run.stderr
    assert_one_line(2, "", run.stderr, "match", "bad.flac cannot be read as audio")
    assert "dr\\xfcm.wav\n log_omega" in run.stdout
    assert " +- " in run.stdout
    assert " log10 rad/s\n" in run.stdout
    names = {f"{stem}_matched.{kind}".encode("latin-1") for stem in ("drüm", "long") for kind in ("wav", "json")}
    assert set(os.listdir(os.fsencode(tmp_path / "out"))) == names | {b"matches.csv"}
    table = pd.read_csv(tmp_path / "out/matches.csv", keep_default_na=False, encoding="utf-8")
    assert [Path(name).name for name in table.file] == ["bad.flac", "dr\\xfcm.wav", "long.flac"]
    assert table.error.astype(bool).tolist() == [True, False, False]
    document = json.loads((tmp_path / "out/long_matched.json").read_text(encoding="utf-8"))
    assert float(table.match[2]) == document["distance"]["match"]


def test_a_folder_of_ten_thousand_names(tmp_path, capfd):
    """None of which is a sound: each has its row and a line of its own, in a few milliseconds."""
    folder = tmp_path / "in"
    folder.mkdir()
    names = [f"{i} – ü, <b>&{i % 7}.wav" for i in range(10_000)]
    for i, name in enumerate(names):
        (folder / name).write_bytes(b"RIFF" * (i % 2))
    assert main(["match", str(folder), f"--output_folder={tmp_path / 'out'}"]) == 2
    table = pd.read_csv(tmp_path / "out/matches.csv", encoding="utf-8")
    assert {Path(name).name for name in table.file} == set(names)
    assert table.error.str.contains("cannot be read as audio").all()
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == len(names) + 1
    assert all(line.startswith("pnp match: ") for line in lines)
    assert lines[-1] == f"pnp match: none of the 10000 sound files of {folder} could be matched"


def test_an_interrupted_folder_has_a_table_of_what_is_done(sound, tmp_path, monkeypatch, capfd):
    def interrupted(*options, **given):
        yield {"file": "bad.wav", "error": "bad.wav is silent"}
        raise KeyboardInterrupt

    monkeypatch.setattr("pnp_tutorial.__main__.match_files", interrupted)
    assert main(["match", str(sound.parent), "--output_folder", str(tmp_path / "out")]) == 130
    assert pd.read_csv(tmp_path / "out/matches.csv").file.tolist() == ["bad.wav"]
    assert capfd.readouterr().err == "pnp match: interrupted; the same command goes on from here\n"
    whole = "file,error\none.wav,\ntwo.wav,\n"
    (tmp_path / "out/matches.csv").write_text(whole, encoding="utf-8")
    (sound.parent / "three.wav").write_bytes(b"")
    assert main(["match", str(sound.parent), "--output_folder", str(tmp_path / "out")]) == 130
    assert (tmp_path / "out/matches.csv").read_text(encoding="utf-8") == whole, "no part takes its place"
    (tmp_path / "out/matches.csv").write_text("file,error\none.wav,\n", encoding="utf-8")
    assert main(["match", str(sound.parent), "--output_folder", str(tmp_path / "out")]) == 130
    assert pd.read_csv(tmp_path / "out/matches.csv").file.tolist() == ["bad.wav"], "as many rows"
    for content in (b"", "file,error\none.wav,\n".encode("utf-16"), b'"\n'):  # which are no tables
        (tmp_path / "out/matches.csv").write_bytes(content)
        assert main(["match", str(sound.parent), "--output_folder", str(tmp_path / "out")]) == 130
        assert pd.read_csv(tmp_path / "out/matches.csv").file.tolist() == ["bad.wav"]


def test_a_folder_in_a_folder_is_no_sound_whatever_its_name(tmp_path, capfd):
    (tmp_path / "in/take.wav").mkdir(parents=True)
    assert main(["match", str(tmp_path / "in")]) == 2
    assert "is a folder without sound files" in capfd.readouterr().err


@pytest.mark.parametrize(("letter", "plain"), [("±", "+-"), ("λ", "lambda"), ("ü", "\\xfc"), ("\udcfc", "\\udcfc")])
def test_letters_that_a_terminal_lacks(letter, plain):
    assert f"a{letter}b".encode("ascii", "plain") == f"a{plain}b".encode()


def test_a_folder_without_sounds(encoder, tmp_path, capfd):
    (tmp_path / "in").mkdir()
    status = main(["match", str(tmp_path / "in"), "--encoder", encoder])
    assert_one_line(status, *capfd.readouterr(), "match", "is a folder without sound files")


def make(path, case):
    """The bad input of a case."""
    if case == "text":
        path.write_text("not a sound\n" * 100, encoding="utf-8")
    elif case == "zero bytes":
        path.write_bytes(b"")
    elif case != "missing":
        x = {"empty": [], "silent": np.zeros(1000), "nan": [0.1, np.nan], "infinite": [0.1, np.inf]}[case]
        soundfile.write(path, np.asarray(x, dtype=float), 22050, subtype="FLOAT")


BAD = {
    "missing": "does not exist",
    "text": "cannot be read as audio",
    "zero bytes": "cannot be read as audio",
    "empty": "is empty",
    "silent": "is silent",
    "nan": "NaN or infinite",
    "infinite": "NaN or infinite",
}


@pytest.mark.parametrize("case", BAD)
def test_bad_sounds(case, encoder, tmp_path, capfd):
    """One line, status 2, nothing written. In this process, to save its start; below, the real thing."""
    path = tmp_path / "in.wav"
    make(path, case)
    status = main(["match", str(path), "--encoder", encoder, "--output_folder", str(tmp_path / "out")])
    assert_one_line(status, *capfd.readouterr(), "match", BAD[case])
    assert not (tmp_path / "out").exists()


def test_a_missing_sound_is_told_before_the_encoder_is_read(tmp_path, capfd):
    status = main(["match", str(tmp_path / "none.wav"), "--encoder", str(tmp_path / "none.safetensors")])
    assert_one_line(status, *capfd.readouterr(), "match", "none.wav does not exist")


def assert_one_line(status, stdout, stderr, stage, message):
    assert (status, stdout) == (2, "")
    assert stderr.startswith(f"pnp {stage}: ")
    assert stderr.count("\n") == 1
    assert stderr.endswith("\n")
    assert message in stderr


@pytest.mark.parametrize("case", ["missing", "nan"])
def test_bad_sounds_for_real(case, encoder, tmp_path):
    make(tmp_path / "in.wav", case)
    before = sorted(tmp_path.rglob("*"))
    run = pnp("match", "in.wav", "--encoder", encoder, cwd=tmp_path)
    assert_one_line(run.returncode, run.stdout, run.stderr, "match", BAD[case])
    assert sorted(tmp_path.rglob("*")) == before


def test_unwritable_output(encoder, sound, tmp_path):
    (tmp_path / "out").write_text("a file, not a folder", encoding="utf-8")
    before = sorted(tmp_path.rglob("*"))
    run = pnp("match", sound, "--encoder", encoder, "--output_folder", tmp_path / "out")
    assert_one_line(run.returncode, run.stdout, run.stderr, "match", str(tmp_path / "out"))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["match"], "audio"),
        (["match", "x.wav", "--loud"], "--loud"),
        (["match", __file__, "--encoder", "nowhere"], "there is no encoder at nowhere"),
        (["dataset", "--n_sounds", "many"], "many"),
        (["dataset", "--n_sound", "10"], "--n_sound"),
        (["dataset", "--sampling", "gaussian"], "gaussian"),
        (["train", "--data", "nowhere.zarr"], "there is no data set at nowhere.zarr"),
        (["train", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["train", "--config", ""], "a file after --config"),
        (["train", "--learning_rate", "1" + 400 * "0"], "a number is too large"),
        (["evaluate", "--data", "nowhere.zarr", "--encoder", "nowhere"], "there is no encoder"),
    ],
)
def test_bad_options(argv, message, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_one_line(main(argv), *capfd.readouterr(), argv[0], message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n_sounds: many", "many"),
        ("n_drums: 3", "no stage has an option 'n_drums'"),
        ("just words", "expected lines of the form"),
        ("a: [", "expected"),
    ],
)
def test_bad_files(text, message, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(text, encoding="utf-8")
    assert_one_line(main(["dataset", "--config", "c.yaml"]), *capfd.readouterr(), "dataset", message)


@pytest.mark.parametrize(
    ("argv", "word"),
    [(["--version"], __version__), (["train", "--help"], "largest eigenvalue"), (["--help"], "recording")],
)
def test_version_and_help(argv, word, capfd):
    with pytest.raises(SystemExit) as leave:
        main(argv)
    assert leave.value.code == 0
    assert word in " ".join(capfd.readouterr().out.split())


def test_one_file_for_data_set_and_training(tmp_path, monkeypatch, capfd):
    """Each stage takes its own keys, and an option given on the command line comes first."""
    monkeypatch.chdir(tmp_path)
    values = {"data": "d.zarr", "n_sounds": 99, "n_samples": 2048, "J": 6, "T": 64, "loss": "parameter"}
    values |= {"metric": False, "backbone": "test_efficientnet", "n_epochs": 1, "output_folder": "run", "device": "cpu"}
    values |= {"synthesizer": None, "ear": None}  # as if they were not given
    Path("c.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    assert main(["dataset", "--config", "c.yaml", "--n_sounds", "20"]) == 0
    assert main(["train", "--config=c.yaml", "--batch_size", "4"]) == 0
    assert main(["evaluate", "--data=d.zarr", "--encoder=run/encoder.safetensors", "--output_folder=run"]) == 0
    results = json.loads(Path("run/results.json").read_text(encoding="utf-8"))
    assert (results["dataset"]["n_sounds"], results["config"]["loss"], results["config"]["batch_size"]) == (
        20,
        "parameter",
        4,
    )
    said = capfd.readouterr().out
    assert "ear_gain" in said
    assert re.search(r"\nthe encoder of epoch \d: run/encoder.safetensors\n", said)
    assert said.endswith("the encoder, with these results: run/encoder.safetensors\n")
    assert {"evaluation.json", "evaluation.csv"} <= {p.name for p in Path("run").iterdir()}


@pytest.mark.parametrize("name", ["paper", "laptop", "arpeggiator"])
def test_parameter_files_fit_the_stages(name):
    values = yaml.safe_load((PARAMETERS / f"{name}.yaml").read_text(encoding="utf-8"))
    names = {stage: {field.name for field in fields(stage)} for stage in (DatasetConfig, TrainingConfig)}
    assert set(values) <= set.union(*names.values())
    for stage, own in names.items():
        stage(**{key: value for key, value in values.items() if key in own - {"synthesizer"}})


def test_paper_file_is_the_papers_setting():
    values = yaml.safe_load((PARAMETERS / "paper.yaml").read_text(encoding="utf-8"))
    assert int(values["epoch_share"] * 82_224) // values["batch_size"] * values["batch_size"] == 25_600
    assert (values["n_sounds"], values["sampling"], values["n_epochs"]) == (100_000, "grid", 70)


def test_arpeggiator_file_is_the_papers_setting():
    values = yaml.safe_load((PARAMETERS / "arpeggiator.yaml").read_text(encoding="utf-8"))
    assert find_synthesizer(values["synthesizer"]).n_samples == values["n_samples"]
    assert (values["n_sounds"], values["n_cells"], values["n_inner"], values["n_grid_test"]) == (27_000, 30, 14, 2700)


def test_no_sound_file_of_a_folder_is_passed_over_in_silence(encoder, sound, tmp_path):
    """Neither what is no match of ours, whatever its name, nor what nobody here can read."""
    folder = sound.parent
    sound.rename(folder / "tom_matched.wav")
    (folder / "phone.m4a").write_bytes(b"not read anyway")
    run = pnp("match", folder, "--encoder", encoder, "--output_folder", tmp_path / "out")
    assert run.returncode == 0
    assert "phone.m4a" in run.stderr
    assert (tmp_path / "out/tom_matched_matched.json").exists()


def test_only_one_thing_is_asked_of_a_data_set(tmp_path):
    run = pnp("dataset", "--data", tmp_path / "x.zarr", "--info", "--verify")
    assert (run.returncode, run.stderr) == (2, "pnp dataset: expected --info or --verify, got both\n")


def test_an_empty_name_is_no_default():
    run = pnp("synthesizers", "--synthesizer=")
    assert (run.returncode, run.stdout) == (2, "")
    assert "there is no synthesizer ''" in run.stderr


def test_a_reader_who_has_read_enough_is_no_error():
    command = f"{sys.executable} -m pnp_tutorial synthesizers | head -1"
    run = subprocess.run(command, shell=True, capture_output=True, encoding="utf-8")
    assert (run.stdout, run.stderr) == ("drum: 2.97 s at 22050 Hz\n", "")


def test_where_no_encoder_ships_there_is_none_to_evaluate():
    run = pnp("evaluate", "--synthesizer", "round_drum")
    assert run.returncode == 2
    assert run.stderr == "pnp evaluate: no encoder ships for the synthesizer 'round_drum': give the file of one\n"
