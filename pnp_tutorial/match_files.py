"""Matches of sound files, on disk: a folder of recordings becomes a folder of matched sounds.

A match is kept with what it was made from, and so not made again. Whatever one file does, the others go on.
"""

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import soundfile
import torch
from tqdm.auto import tqdm

from . import __version__
from .bank import shipped
from .checks import refuse_broken, refuse_elsewhere
from .dataset_config import MOST_SEED
from .drum import DRUM
from .ears import ear_name, ear_sketch, find_ear
from .encoder import SHIPPED, AudioEncoder, load_encoder
from .matching import Match, match, parts_of
from .metric import Map, jacobian
from .runtime import (
    as_stored,
    check_whole,
    check_writable,
    float64_device,
    readable,
    seal,
    threads,
    told,
    write_atomically,
)
from .search import Budget, usual_budget
from .synthesizer import REGISTRY, SKETCHES, Synthesizer, other_functions, refuse_taken_name, sketch

LONGEST_NAME = 255  # of a file, in bytes: most systems have no longer ones


def save_match(result: Match, wav: str | Path, document: str | Path, source: dict[str, Any] | None = None) -> None:
    """Write the matched sound as WAV and `Match.to_dict` as JSON: both whole, or an OSError and neither.

    The WAV has 16 bits, or floats where a level has a meaning. `source` tells what it was made from, and is kept
    in the JSON, and so is a seal of both files, by which damage to either is noticed.
    """
    sound = io.BytesIO()
    rate, subtype = round(result.synthesizer.sample_rate), "PCM_16" if result.synthesizer.peak_normalized else "FLOAT"
    soundfile.write(sound, result.x_hat.numpy(), rate, format="WAV", subtype=subtype)
    content = {"source": source or {}, **result.to_dict()}
    text = json.dumps(content | {"seal": seal(content, sound.getvalue())}, indent=2, ensure_ascii=False)
    write_atomically({Path(document): text.encode(), Path(wav): sound.getvalue()})  # no WAV without its JSON


def match_files(
    paths: Sequence[str | Path],
    output_folder: str | Path,
    encoder: str | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = True,
    budget: Budget | None = None,
    synthesizer: Synthesizer | None = None,
    ear: str | Map | None = None,
) -> Iterator[dict[str, Any]]:
    """Match recordings, on a CPU as many side by side as torch has threads; a bad one is reported, the others go on.

    Synthesizer and ear are those of the encoder, as in `load_encoder`. Where no encoder is given, and none ships for
    them, sounds are searched for without one.

    Of each, NAME_matched.wav and NAME_matched.json are written to the output folder. A recording whose JSON is there,
    made from the same sound with the same encoder, synthesizer, ear, seed, budget and version of this package, is not
    matched again: what was interrupted goes on from there. Of several recordings of one NAME, all but the first are
    bad.

    Yields
    ------
    row : dict, in the order of the recordings, as soon as one is done
        file; error (empty if there was none: a row with an error has these two alone); the parameters, in their units,
        and their uncertainties, as <parameter>_uncertainty; what is undetermined, in words; the distances in features
        of "constant", "encoder" (without one: of the centre, as "constant"), "scan" and "match"; level_db, noise_db,
        n_heard (sounds) and n_iterations (steps of all refinements, each of which ends with one).
        Names are as `readable` has them.

    Raises
    ------
    ValueError
        If there is no recording, the encoder, the ear or the synthesizer is of no use (see `load_encoder`, `find_ear`
        and `check_synthesizer`), or the seed is no whole number from 0 to 2⁵³.
    OSError
        If the output folder cannot be written to.
    """
    stems = [Path(path).stem.casefold() for path in paths]  # of two that differ in case, some systems keep one
    if not stems:
        raise ValueError("expected at least one sound file, got none")
    seed = check_whole("seed", seed, 0, MOST_SEED)
    model, encoder_sum = _model(encoder, device, synthesizer, ear)
    synthesizer, own_ear, _ = parts_of(model, device)
    ear = own_ear if ear is None else ear
    features = find_ear(ear, synthesizer.n_samples, synthesizer.sample_rate, device)
    refuse_elsewhere(synthesizer, device)
    if isinstance(model, Synthesizer) or not isinstance(ear, str):  # of an encoder, what the library has was heard
        _try(synthesizer, features, ear_name(ear), device)
    budget = budget or usual_budget(len(synthesizer.parameters))
    check_writable(output_folder)
    made_with = {"encoder": encoder_sum, "seed": seed, "budget": as_stored(budget), "version": __version__}
    made_with |= _heard_with(synthesizer, ear, features, device)
    made_with |= {} if encoder_sum else {"n_samples": synthesizer.n_samples}
    alone = len(paths) == 1

    def work(i: int) -> dict[str, Any]:
        path, stem = paths[i], stems[i]
        wav, document = (Path(output_folder, f"{Path(path).stem}_matched.{kind}") for kind in ("wav", "json"))
        row: dict[str, Any] = {"file": readable(path), "error": ""}
        result, source = None, {}
        try:
            first = stems.index(stem)
            _refuse_name(path, paths[first] if first < i else None, wav, document)
            source = {"sound": _sum(Path(path)), **made_with}
            if done := _row(wav, document, source):
                return row | done
            result = match(path, model, features, seed, progress and alone, budget=budget, device=device)
        except ValueError as error:
            row["error"] = readable(error)
        except Exception as error:  # whatever one file does, the others go on
            row["error"] = readable(f"{path} cannot be matched ({type(error).__name__}: {error})")
        if result is not None:
            save_match(result, wav, document, source)
            row |= _row(wav, document, source)
        return row

    rows = map(work, range(len(paths))) if alone else _side_by_side(work, len(paths), device)
    yield from tqdm(rows, total=len(paths), unit="file", disable=True if alone or not progress else None)


def _model(
    encoder: str | None, device: torch.device | str, synthesizer: Synthesizer | None, ear: str | Map | None
) -> tuple[AudioEncoder | Synthesizer, str]:
    """By which recordings are matched: an encoder and the sum of its file, or a synthesizer alone and no sum."""
    found = synthesizer or DRUM
    if encoder is not None:
        return load_encoder(encoder, device, synthesizer, ear), _sum(Path(encoder))
    refuse_taken_name(found)
    if found.name not in SHIPPED or (ear is not None and ear != "jtfs"):  # by which those that ship were trained
        if found.name not in REGISTRY:
            refuse_broken(found)
        return found, ""
    model = load_encoder(None, device, synthesizer, ear)
    n = model.config.n_samples
    if n != found.n_samples:
        raise ValueError(f"the encoder that ships for {found.name!r} is for {n} samples, got {found.n_samples}")
    return model, _sum(shipped(SHIPPED[found.name]))


def _heard_with(synthesizer: Synthesizer, ear: str | Map, features: Map, device: torch.device | str) -> dict[str, Any]:
    """What a match keeps of a synthesizer and an ear: their functions may have been edited since."""
    made_with = {"synthesizer": synthesizer.to_dict(), "ear": ear_name(ear), "sketch": sketch(synthesizer)}
    return made_with | ({} if isinstance(ear, str) else {"ear_sketch": ear_sketch(features, synthesizer, device)})


def _refuse_name(path: str | Path, taken_by: str | Path | None, wav: Path, document: Path) -> None:
    """Raise ValueError if a match cannot have its names: another recording has them, or a system or a file forbids."""
    if taken_by is not None:
        raise ValueError(f"{path} would have its match under the same name as {taken_by}: rename it")
    if len(os.fsencode(document.name)) > LONGEST_NAME:
        raise ValueError(f"{path}: its match would have a name of more than {LONGEST_NAME} bytes: rename it")
    if wav.exists() and not document.exists():
        raise ValueError(f"{path}: its match would replace {wav}, which is none of this library: rename that")


def _try(synthesizer: Synthesizer, features: Map, name: str, device: torch.device | str) -> None:
    """Raise ValueError if an ear cannot hear a synthesizer, or has no derivatives: before the search is over."""
    nu = torch.zeros(1, len(synthesizer.parameters), dtype=torch.float64, device=float64_device(device))
    with told(f"no match can be made by the ear {name}", f" (sounds come in float32, on {device})"):
        values = jacobian(nu, features, lambda nu: synthesizer(nu, torch.float32).to(device))  # as in a search
        if not all(each.isfinite().all() for each in values):
            raise ValueError("its features of the sound of ν = 0, or their derivatives, are not finite")


def _side_by_side(
    work: Callable[[int], dict[str, Any]], n: int, device: torch.device | str
) -> Iterator[dict[str, Any]]:
    """The rows of n files, in order; on a CPU as many files at once as torch has threads, each in one thread."""
    n_threads = torch.get_num_threads() if torch.device(device).type == "cpu" else 1
    if n_threads == 1:
        yield from map(work, range(n))
        return
    with threads(n_threads) as pool:  # whoever interrupts waits for those that have begun, and no other
        yield from pool.map(work, range(n))


def _sum(path: Path) -> str:
    """SHA-256 of a file, empty if there is none; raises ValueError if it cannot be read."""
    try:
        if not path.is_file():
            return ""
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from error


def _is_same(stored: dict[str, Any], source: dict[str, Any]) -> bool:
    """Whether two matches were made from the same; of functions, sketches are compared as elsewhere."""
    one, other = ({name: each[name] for name in each.keys() - SKETCHES} for each in (stored, source))
    return one == other and not other_functions(stored, source)


def _row(wav: Path, document: Path, source: dict[str, Any]) -> dict[str, Any]:
    """What two files that `save_match` made from `source` say, side by side; empty if they are not as it wrote them."""
    try:
        content = json.loads(document.read_text(encoding="utf-8"))
        if content.pop("seal") != seal(content, wav.read_bytes()) or not _is_same(content["source"], source):
            return {}
        values = {p["name"]: p["value"] for p in content["theta"]}
        spreads = {f"{p['name']}_uncertainty": p["uncertainty"] for p in content["theta"]}
        words = {"undetermined": "; ".join(content["undetermined"])}
        effort = {name: content[name] for name in ("level_db", "noise_db", "n_heard", "n_iterations")}
        return values | spreads | words | content["distance"] | effort
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError):  # KeyError: of an older version
        return {}
