"""A folder of recordings becomes a folder of drums, whatever one of them does."""

import hashlib
import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

from pnp_tutorial import match_files as rooms
from pnp_tutorial.arpeggiator import ARPEGGIATOR
from pnp_tutorial.bank import shipped
from pnp_tutorial.drum import DRUM, rectangular_drum
from pnp_tutorial.encoder import AudioEncoder, Encoder, load_encoder, save
from pnp_tutorial.match_files import match_files, save_match
from pnp_tutorial.matching import Budget, match
from pnp_tutorial.round_drum import ROUND_DRUM
from pnp_tutorial.runtime import seal
from pnp_tutorial.synthesizer import Parameter, Synthesizer, sketch
from pnp_tutorial.uncertainty import undetermined

QUICK = Budget(n_sounds=8, n_generations=4, n_runs=1, n_iterations=3)
THETA = torch.tensor([3.0, 0.4, -2.0, -2.0, 0.6], dtype=torch.float64)


def drum(n):
    return rectangular_drum(THETA, n).numpy()


@pytest.fixture
def encoder(tiny_training):
    return f"{tiny_training.output_folder}/encoder.safetensors"


def table_of(paths, folder, encoder, **options):
    return pd.DataFrame(match_files(paths, folder, encoder, progress=False, budget=QUICK, **options))


def test_written_files_say_the_same(encoder, tmp_path):
    result = match(rectangular_drum(THETA, 2048), load_encoder(encoder), budget=QUICK)
    save_match(result, tmp_path / "new/x.wav", tmp_path / "new/x.json")
    wav, rate = soundfile.read(tmp_path / "new/x.wav")
    assert rate == 22050
    assert np.abs(wav - result.x_hat.numpy()).max() < 2**-14
    document = json.loads((tmp_path / "new/x.json").read_text(encoding="utf-8"))
    assert [p["unit"] for p in document["theta"]] == [p.unit for p in DRUM.parameters]
    assert [p["value"] for p in document["theta"]] == result.theta.tolist()
    widths = [(p.high - p.low) / 2 for p in DRUM.parameters]
    expected = [u * width for u, width in zip(result.uncertainty.tolist(), widths, strict=True)]
    assert [p["uncertainty"] for p in document["theta"]] == pytest.approx(expected)
    assert document["distance"] == result.distance
    spreads, directions = result.directions
    assert [direction.pop("spread") for direction in document["directions"]] == spreads.tolist()
    assert [list(direction) for direction in document["directions"]] == [list(DRUM.names)] * 5
    assert [list(direction.values()) for direction in document["directions"]] == directions.T.tolist()
    assert document["undetermined"] == undetermined(spreads, directions, DRUM.names)


def tone(theta, n_samples, sample_rate, *, dtype):
    t = torch.arange(n_samples, dtype=theta.dtype) / sample_rate
    return torch.sin(2 * torch.pi * theta * t).to(dtype)


TONE = Synthesizer("tone", (Parameter("hz", "f", "Hz", 200.0, 900.0, "pitch", "log"),), tone, 4096, 8192)


def deaf(x):
    """An ear without derivatives."""
    return torch.from_numpy(np.abs(np.fft.rfft(x.detach().numpy())))


def write_tone(folder):
    path = folder / "tone.wav"
    soundfile.write(path, TONE(torch.zeros(1, dtype=torch.float64)).numpy(), 8192, subtype="FLOAT")
    return path


def test_a_match_of_another_length_is_another_match(tmp_path):
    """A steady tone sounds alike at any length, and without an encoder no file says which."""
    path = write_tone(tmp_path)
    for n in (4096, 2048):
        (row,) = match_files([path], tmp_path, budget=QUICK, progress=False, synthesizer=replace(TONE, n_samples=n))
        assert row["error"] == ""
        assert len(soundfile.read(tmp_path / "tone_matched.wav")[0]) == n


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"synthesizer": TONE, "ear": deaf}, "no match can be made by the ear .*deaf: "),
        ({"synthesizer": TONE, "ear": "nose"}, "the ear 'nose' is not one of this library"),
        ({"synthesizer": replace(TONE, name="round_drum")}, "'round_drum' is the name of a synthesizer of the library"),
        ({"synthesizer": replace(ARPEGGIATOR, n_samples=4096)}, "'arpeggiator' is for 32768 samples, got 4096"),
    ],
)
def test_what_cannot_be_matched_is_refused_before_any_search(tmp_path, monkeypatch, options, message):
    monkeypatch.setattr(rooms, "match", lambda *given, **named: pytest.fail("searched"))
    with pytest.raises(ValueError, match=message):
        list(match_files([write_tone(tmp_path)], tmp_path, progress=False, **options))


def test_an_encoder_that_is_given_a_parameter_is_refused_before_any_search(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(rooms, "match", lambda *given, **named: pytest.fail("searched"))
    model = load_encoder(encoder)
    known = AudioEncoder(Encoder(4, model.encoder.name), model.config, ("log_omega",))
    save(known, tmp_path / "known.safetensors")
    with pytest.raises(ValueError, match="known log_omega: it cannot match a sound alone"):
        list(match_files(write_drums(tmp_path / "in", 2), tmp_path / "out", str(tmp_path / "known.safetensors")))
    assert not (tmp_path / "out").exists()


def test_which_encoder_ships():
    """One for the drum and one for the arpeggiator, each with one ear; else the search is alone."""
    for synthesizer, name in ((None, "encoder"), (ARPEGGIATOR, "arpeggiator")):
        model, found = rooms._model(None, "cpu", synthesizer, None)
        assert model.config.synthesizer == (synthesizer or DRUM)
        assert found == hashlib.sha256(shipped(f"{name}.safetensors").read_bytes()).hexdigest()
    assert rooms._model(None, "cpu", None, "coarse") == (DRUM, "")
    assert rooms._model(None, "cpu", ROUND_DRUM, None) == (ROUND_DRUM, "")


def write_drums(folder, n):
    folder.mkdir()
    for i in range(n):
        soundfile.write(folder / f"drum{i}.wav", drum(4000 + i), 22050)
    return sorted(folder.iterdir())


def test_a_bad_file_does_not_stop_the_others(encoder, tmp_path):
    paths = write_drums(tmp_path / "in", 2)
    bad = tmp_path / "in/bad.wav"
    bad.write_text("no sound", encoding="utf-8")
    table = table_of([paths[0], bad, paths[1]], tmp_path / "out", encoder)
    assert table.file.tolist() == [str(paths[0]), str(bad), str(paths[1])]
    assert [bool(error) for error in table.error] == [False, True, False]
    assert "cannot be read as audio" in table.error[1]
    good = table.drop(1)
    assert good[list(DRUM.names)].notna().all(axis=None)
    assert (good.match <= good.encoder).all()
    assert good.undetermined.map(type).eq(str).all()
    assert len(list((tmp_path / "out").iterdir())) == 4


@pytest.mark.parametrize("error", [MemoryError("no room"), RuntimeError("a library's own"), RecursionError()])
def test_nor_does_anything_else_that_one_file_does(encoder, tmp_path, monkeypatch, error):
    paths = write_drums(tmp_path / "in", 2)

    def fail(path, *rest, **options):
        if path == paths[0]:
            raise error
        return match(path, *rest, **options)

    monkeypatch.setattr(rooms, "match", fail)
    table = table_of(paths, tmp_path / "out", encoder)
    assert table.error[0] == f"{paths[0]} cannot be matched ({type(error).__name__}: {error})"
    assert table.error[1] == ""


def test_a_file_that_may_not_be_read(encoder, tmp_path, monkeypatch):
    paths = write_drums(tmp_path / "in", 2)

    def denied(file, *rest):
        if file.name == str(paths[0]):
            raise PermissionError(13, "Permission denied", file.name)
        return digest(file, *rest)

    digest = rooms.hashlib.file_digest
    monkeypatch.setattr(rooms.hashlib, "file_digest", denied)
    table = table_of(paths, tmp_path / "out", encoder)
    assert table.error.tolist() == [f"{paths[0]} cannot be read (Permission denied)", ""]


@pytest.fixture
def made(monkeypatch):
    """Paths of the sounds that are matched, and not taken from before."""
    paths = []
    monkeypatch.setattr(
        rooms, "match", lambda path, *rest, **options: paths.append(path) or match(path, *rest, **options)
    )
    return paths


def test_matches_that_are_there_are_not_made_again(encoder, tmp_path, made):
    paths = write_drums(tmp_path / "in", 2)
    first = table_of(paths[:1], tmp_path / "out", encoder)
    made.clear()
    both = table_of(paths, tmp_path / "out", encoder)
    assert made == paths[1:]
    assert both.iloc[0].to_dict() == first.iloc[0].to_dict()


def another_sound(paths, encoder, folder):
    soundfile.write(paths[0], drum(5000), 22050)
    return {}


def another_encoder(paths, encoder, folder):
    """At the same path."""
    model = load_encoder(encoder)
    with torch.no_grad():
        model.encoder.output_norm.bias += 0.01
    save(model, encoder)
    return {}


def another_version(paths, encoder, folder):
    change(folder, lambda content: content | {"source": content["source"] | {"version": "0.0.1"}})
    return {}


def an_older_one(paths, encoder, folder):
    """Of before its source was told so closely."""
    change(folder, lambda content: content | {"source": {"sha256": content["source"]["sound"], "seed": 0}})
    return {}


def less_than_is_wanted(paths, encoder, folder):
    change(folder, lambda content: {"source": content["source"]})
    return {}


def another_seed(paths, encoder, folder):
    return {"seed": 1}


def change(folder, how):
    """A match as if another version had written it: with a seal that is right."""
    document, wav = (folder / f"drum0_matched.{kind}" for kind in ("json", "wav"))
    content = json.loads(document.read_text(encoding="utf-8"))
    content.pop("seal")
    content = how(content)
    document.write_text(json.dumps(content | {"seal": seal(content, wav.read_bytes())}), encoding="utf-8")


def a_digit_less(paths, encoder, folder):
    document = folder / "drum0_matched.json"
    content = document.read_text(encoding="utf-8")
    document.write_text(content.replace("0.1", "0.2", 1), encoding="utf-8")
    assert document.read_text(encoding="utf-8") != content
    return {}


def brackets(paths, encoder, folder):
    (folder / "drum0_matched.json").write_text("[" * 10**5, encoding="utf-8")
    return {}


def half_a_sound(paths, encoder, folder):
    wav = folder / "drum0_matched.wav"
    wav.write_bytes(wav.read_bytes()[:1000])
    return {}


CHANGES = [another_sound, another_encoder, another_version, an_older_one, less_than_is_wanted, another_seed]
CHANGES += [a_digit_less, half_a_sound, brackets]


@pytest.mark.parametrize("change", CHANGES)
def test_a_match_is_made_again_if_it_would_be_another(encoder, tmp_path, made, change):
    paths = write_drums(tmp_path / "in", 1)
    mine = shutil.copy(encoder, tmp_path / "encoder.safetensors")
    table_of(paths, tmp_path / "out", mine)
    made.clear()
    options = change(paths, mine, tmp_path / "out")
    table_of(paths, tmp_path / "out", mine, **options)
    assert made == paths
    made.clear()
    table_of(paths, tmp_path / "out", mine, **options)
    assert made == []


def test_a_match_by_a_function_that_was_edited_is_made_again(encoder, tmp_path, made):
    """Without an encoder; with one, it is refused until that has been trained again."""
    paths = write_drums(tmp_path / "in", 1)

    def softer(*args, **options):
        return 0.5 * rectangular_drum(*args, **options)

    for function in (rectangular_drum, softer):
        mine = replace(DRUM, name="mine", n_samples=2048, function=function, peak_normalized=False)
        for again in (paths, []):
            made.clear()
            table_of(paths, tmp_path / "out", None, synthesizer=mine, ear="coarse")
            assert made == again
    edited = replace(load_encoder(encoder).config.synthesizer, function=softer)
    with pytest.raises(ValueError, match="was made when the synthesizer 'drum' made other sounds: train it again"):
        table_of(paths, tmp_path / "out", encoder, synthesizer=edited)


def test_a_match_of_before_its_sketch_said_more_is_not_made_again(encoder, tmp_path, made):
    paths = write_drums(tmp_path / "in", 1)
    table_of(paths, tmp_path / "out", encoder)
    made.clear()
    levels = {"sketch": sketch(load_encoder(encoder).config.synthesizer)[0]}
    change(tmp_path / "out", lambda content: content | {"source": content["source"] | levels})
    table_of(paths, tmp_path / "out", encoder)
    assert made == []


def test_names_that_would_collide(encoder, tmp_path):
    """The first is matched, the others are bad; of two that differ in case only, some systems keep one."""
    paths = [tmp_path / name for name in ("kick.flac", "Kick.wav", "tom.wav")]
    for path in paths:
        soundfile.write(path, drum(4000), 22050)
    table = table_of(paths, tmp_path / "out", encoder)
    assert table.error.astype(bool).tolist() == [False, True, False]
    assert table.error[1].startswith(f"{paths[1]} would have its match under the same name as {paths[0]}")
    with pytest.raises(ValueError, match="at least one sound file"):
        table_of([], tmp_path, encoder)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"dr\xfcm.wav", "dr\\xfcm.wav"),
        ("trömmel.wav".encode(), "trömmel.wav"),
        (b"two\nlines.wav", "two\\nlines.wav"),
        (b'-o, "q".wav', '-o, "q".wav'),
    ],
)
def test_names_are_bytes(encoder, tmp_path, name, shown):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    soundfile.write(str(tmp_path / "x.wav"), drum(4000), 22050)
    os.rename(tmp_path / "x.wav", path)
    table = table_of([path], tmp_path / "out", encoder)
    assert table.error.tolist() == [""]
    assert table.file.tolist() == [f"{tmp_path}/{shown}"]
    assert path.with_name(f"{path.stem}_matched.wav").name in os.listdir(tmp_path / "out")
    table.to_csv(tmp_path / "matches.csv", index=False, encoding="utf-8")
    assert pd.read_csv(tmp_path / "matches.csv").file.tolist() == table.file.tolist()


def test_a_name_that_leaves_no_room_for_its_match(encoder, tmp_path):
    paths = [*write_drums(tmp_path / "in", 1), tmp_path / ("x" * 250 + ".wav")]
    soundfile.write(paths[1], drum(4000), 22050)
    table = table_of(paths, tmp_path / "out", encoder)
    assert table.error[0] == ""
    assert "would have a name of more than 255 bytes: rename it" in table.error[1]


def test_a_folder_that_cannot_be_written_to_is_known_before_work(encoder, tmp_path, made):
    (tmp_path / "out").write_text("a file", encoding="utf-8")
    with pytest.raises(OSError, match="out"):
        table_of(write_drums(tmp_path / "in", 1), tmp_path / "out", encoder)
    assert made == []


def test_a_folder_is_matched_side_by_side(encoder, tmp_path, monkeypatch):
    """As many files at once as torch has threads; each is what it is alone, and the rows keep their order."""
    paths = write_drums(tmp_path / "in", 3)
    alone = pd.concat([table_of([path], tmp_path / "alone", encoder) for path in paths], ignore_index=True)
    both = Barrier(2, timeout=60)

    def meet(path, *rest, **options):
        if path != paths[2]:
            both.wait()  # breaks, and fails, unless two are at work
        return match(path, *rest, **options)

    n_threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(rooms, "match", meet)
    together = table_of(paths, tmp_path / "together", encoder)
    monkeypatch.undo()
    assert (together.error == "").all()
    pd.testing.assert_frame_equal(together, alone, rtol=1e-3)
    torch.set_num_threads(n_threads)


def test_who_stops_reading_rows_waits_for_no_other_file(encoder, tmp_path, monkeypatch):
    paths = write_drums(tmp_path / "in", 6)
    begun = []

    def count(path, *rest, **options):
        begun.append(path)
        raise ValueError("not this one")

    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(rooms, "match", lambda path, *rest, **options: count(path) if not time.sleep(0.3) else None)
    rows = match_files(paths, tmp_path / "out", encoder, progress=False)
    next(rows)
    rows.close()
    assert len(begun) < 6
    assert begun[:2] == paths[:2] or begun[:2] == paths[1::-1]


def test_a_seed_that_will_not_do_is_told_once(encoder, tmp_path, made):
    with pytest.raises(ValueError, match="seed must be a whole number"):
        table_of(write_drums(tmp_path / "in", 2), tmp_path / "out", encoder, seed=-1)
    assert made == []


def test_a_recording_whose_name_looks_like_a_match_is_not_replaced(encoder, tmp_path, made):
    paths = write_drums(tmp_path / "in", 1)
    mine = tmp_path / "in/drum0_matched.wav"
    mine.write_bytes(b"a recording")
    table = table_of(paths, tmp_path / "in", encoder)
    assert table.error.tolist() == [
        f"{paths[0]}: its match would replace {mine}, which is none of this library: rename that"
    ]
    assert (mine.read_bytes(), made) == (b"a recording", [])
