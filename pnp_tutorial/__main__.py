"""Command line: `pnp dataset`, `pnp train`, `pnp evaluate`, `pnp match`, `pnp synthesizers`.

The fields of a stage's configuration are its options. `--config FILE` takes a flat YAML file, the same that papermill
gives to the training chapter: a stage takes the keys that are its own and leaves those of the others.
Bad input ends in one line on standard error and exit status 2. Of a folder that `pnp match` is given, each bad file
has such a line, and the status is 2 only if no file could be matched.
"""

import argparse
import codecs
import io
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import soundfile
import yaml
from jsonargparse import ArgumentParser, Namespace
from tqdm import TqdmMonitorWarning

from . import __version__
from .checks import refuse_broken
from .dataset import DatasetConfig, build, describe, propose, verify
from .dataset import check as check_data
from .ears import EARS
from .evaluation import EvaluationConfig, report
from .match_files import match_files
from .metric import Map
from .runtime import lacks_means, load_object, lost_another, readable, select_device, write_atomically
from .synthesizer import REGISTRY, Synthesizer, find_synthesizer, with_unit
from .training import TrainingConfig, fit
from .uncertainty import verdict


@dataclass(frozen=True)
class MatchConfig:
    """Which recordings are matched.

    Parameters
    ----------
    audio
        Sound file, of any number of channels and any sample rate, or folder of such files; folders in it are left out.
    output_folder
        Where NAME_matched.wav and NAME_matched.json are written; of a folder, matches.csv too.
    encoder
        File of the encoder; if not given, the one that ships for synthesizer and ear, or none: a search alone.
    seed
        Of the search.
    device
        "cpu", "cuda", "mps", or "auto": cuda if there is one, else mps if there is one, else cpu.
    synthesizer
        By which sounds are matched: a name of the library, module:OBJECT or file.py:OBJECT. If not given, that of the
        encoder, or the drum.
    ear
        By which they are heard, likewise. If not given, that of the encoder, or jtfs.
    """

    audio: str
    output_folder: str = "."
    encoder: str | None = None
    seed: int = 0
    device: str = "auto"
    synthesizer: Synthesizer | None = None
    ear: str | Map | None = None


@dataclass(frozen=True)
class ListConfig:
    """Which synthesizer is shown; those of the library, if none is given."""

    synthesizer: Synthesizer | None = None


def _first_process() -> bool:
    """Of those that torchrun or srun started, the one that speaks."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0))) == 0


def run_dataset(
    config: DatasetConfig, info: bool = False, check: bool = False, objects: Mapping[str, Any] | None = None
) -> None:
    """Draw sounds; compute what the encoder sees of them, and their metrics. Resumes what was begun."""
    if check:
        error = verify(config.data, device=config.device, **(objects or {}))
        given = describe(config.data)["made_with"].get("metric_given")
        but = " (but for the metrics, which were given and not computed)" if given else ""
        print(f"{config.data}: checksums are right; computed again, two chunks differ by {error:.1g} at most{but}")
    elif info:
        print(yaml.safe_dump(describe(config.data), sort_keys=False, default_flow_style=None), end="")
    else:
        if _first_process() and not Path(config.data).exists():
            check_data(config)
            if words := propose(config):
                print(words, file=sys.stderr)
        path = build(config)
        if _first_process():
            print(path)


def run_train(config: TrainingConfig) -> None:
    """Train an encoder on a data set. Resumes what was begun."""
    history = fit(config)
    if _first_process():
        print(history.drop(columns="record").to_string(index=False))
        _say_where(config.output_folder, f"the encoder of epoch {history.validation_loss.idxmin()}")


def run_evaluate(config: EvaluationConfig) -> None:
    """Compare an encoder with the best constant prediction, on the test split of a data set."""
    print(report(config).to_string())
    print("errors are |ν̃ − ν|, where a range is 2 wide; gains, how much closer than the best constant answer")
    _say_where(config.output_folder, "the encoder, with these results")


def _say_where(folder: str, what: str) -> None:
    print(f"{what}: {Path(folder, 'encoder.safetensors')}")


def run_match(config: MatchConfig) -> None:
    """Find the parameters that sound like recordings; write them, and their sounds. Resumes what was begun.

    Of a folder, a bad file is named on standard error, and the others go on; the exit status is 2 only if none could be
    matched.
    """
    path = Path(config.audio)
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    kinds = {kind.lower() for kind in soundfile.available_formats()} - {"raw"}  # which tells no rate
    kinds |= {"aif", "aifc", "oga", "opus", "snd"}
    kinds |= {"aac", "m4a", "mp4", "wma"}  # which are then reported, for nobody here can read them
    files, folder = [path], path.is_dir()
    if folder:
        files = sorted(file for file in path.iterdir() if file.suffix[1:].lower() in kinds and not file.is_dir())
        files = [file for file in files if not (file.stem.endswith("_matched") and file.with_suffix(".json").exists())]
        if not files:
            raise ValueError(f"{path} is a folder without sound files")
    rows: list[dict[str, Any]] = []
    try:
        device, out = select_device(config.device), config.output_folder
        given: dict[str, Any] = {"synthesizer": config.synthesizer, "ear": config.ear}
        for file, row in zip(files, match_files(files, out, config.encoder, config.seed, device, **given), strict=True):
            rows.append(row)
            if not row["error"]:
                _say_match(row, Path(out, f"{file.stem}_matched.json"))
    finally:  # interrupted, too
        table = Path(config.output_folder, "matches.csv")
        # no table gives way to a part of it
        if folder and rows and (len(rows) == len(files) or len(rows) >= _n_rows(table)):
            write_atomically({table: pd.DataFrame(rows).to_csv(index=False).encode()})
    errors = [row["error"] for row in rows if row["error"]]
    if errors and not folder:
        raise ValueError(errors[0])
    for error in errors:
        print(f"pnp match: {error}", file=sys.stderr)
    if len(errors) == len(rows):
        raise ValueError(f"none of the {len(rows)} sound files of {path} could be matched")


def _n_rows(table: Path) -> int:
    try:
        return len(pd.read_csv(table)) if table.exists() else 0
    except ValueError:  # no table
        return 0


def _say_match(row: dict[str, Any], document: Path) -> None:
    print(row["file"])
    said = json.loads(document.read_text(encoding="utf-8"))
    for p in said["theta"]:
        spread = with_unit(f"{p['uncertainty']:.2g}", p["unit"])
        print(f"{p['name']:>10} {p['value']:10.4g} ± {spread}")
    print(verdict(row["undetermined"]))
    by = "by the encoder" if said["source"]["encoder"] else "in the middle of the ranges"
    print(f"distance of features {row['encoder']:.4g} {by}, {row['match']:.4g} refined", flush=True)


def run_synthesizers(config: ListConfig) -> None:
    """List the synthesizers of the library, or show one of your own and try whether it keeps its promises."""
    for synthesizer in [config.synthesizer] if config.synthesizer else map(find_synthesizer, REGISTRY):
        seconds = synthesizer.n_samples / synthesizer.sample_rate
        print(f"{synthesizer.name}: {seconds:.3g} s at {synthesizer.sample_rate:g} Hz")
        for p in synthesizer.parameters:
            print(f"{p.name:>12}  {with_unit(f'{p.low:g} to {p.high:g}', p.unit)}, {p.scale}: {p.meaning}")
    if config.synthesizer:
        refuse_broken(config.synthesizer)
        print("keeps what a synthesizer must promise")


STAGES: dict[str, tuple[Any, Any]] = {
    "dataset": (DatasetConfig, run_dataset),
    "train": (TrainingConfig, run_train),
    "evaluate": (EvaluationConfig, run_evaluate),
    "match": (MatchConfig, run_match),
    "synthesizers": (ListConfig, run_synthesizers),
}
OWN = "or your own: file.py:OBJECT or module:OBJECT"
OBJECTS = {  # the names of the library, and what is taken where none is given
    "synthesizer": (", ".join(REGISTRY), "that of the encoder or the data set, or drum"),
    "ear": (", ".join(EARS), "that of the encoder or the data set, or jtfs"),
}


def _from_file(stage: str, path: str) -> list[str]:
    """The keys of a YAML file that are fields of a stage, as options; raises ValueError on a key that no stage has."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        for event in yaml.parse(text, yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("expected no aliases: a few lines of them stand for more than memory holds")
            if getattr(event, "tag", None):
                raise ValueError(f"expected no tags, got {event.tag}")
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: bytes that are no UTF-8, 2024-99-99
        raise ValueError(f"{path} cannot be read as YAML ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected lines of the form `key: value`")
    known = {name: {field.name for field in fields(config)} for name, (config, _) in STAGES.items()}
    for key in values:
        if not any(key in names for names in known.values()):
            raise ValueError(f"{path}: no stage has an option {key!r}")
    not_given = {key for key in OBJECTS if values.get(key) is None}  # null, too
    own = {key: value for key, value in values.items() if key in known[stage] - not_given}
    try:
        return [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in own.items()]
    except (TypeError, ValueError, RecursionError) as error:  # dates, sets, bytes, and lists that hold themselves
        raise ValueError(f"{path}: expected numbers, words and lists ({error})") from error


def _object(option: str, name: str) -> Any:
    """The synthesizer or ear that the command line names."""
    if option == "synthesizer":
        return find_synthesizer(name)
    return load_object(name) if ":" in name else name


def _parser() -> ArgumentParser:
    whole: dict[str, Any] = {"exit_on_error": False, "allow_abbrev": False}  # abbreviations print a warning
    parser = ArgumentParser(prog="pnp", description="Perceptual-neural-physical sound matching.", **whole)
    parser.add_argument("--version", action="version", version=f"pnp {__version__}")
    stages = parser.add_subcommands()
    for name, (config, run) in STAGES.items():
        stage = ArgumentParser(description=run.__doc__, **whole)
        if name not in ("match", "synthesizers"):
            stage.add_argument(
                "--config", metavar="FILE", help="YAML file of options; one on the command line replaces the file's"
            )
        stage.add_class_arguments(config, as_positional=True, skip=set(OBJECTS))
        for option, (names, usual) in OBJECTS.items():
            if option in {field.name for field in fields(config)}:
                words = f"{names}, {OWN}; if not given, {'all are listed' if name == 'synthesizers' else usual}"
                stage.add_argument(f"--{option}", metavar="NAME", default=argparse.SUPPRESS, help=words)
        if name == "dataset":
            stage.add_argument("--info", action="store_true", help="print what the data set at DATA is, and stop")
            stage.add_argument("--verify", action="store_true", help="check its sums, compute a sample anew, and stop")
        stages.add_subcommand(name, stage, help=run.__doc__.partition("\n")[0])
    return parser


# For terminals that lack them. What is not here is escaped.
PLAIN = {"±": "+-", "−": "-", "–": "-", "·": "*", "×": "x", "≥": ">=", "…": "...", "√": "sqrt", "₀": "0", "₁": "1"}
PLAIN |= {
    "ν": "nu",
    "λ": "lambda",
    "ω": "omega",
    "Φ": "Phi",
    "τ": "tau",
    "α": "alpha",
    "γ": "gamma",
    "Δ": "Delta",
    "θ": "theta",
    "ⁿ": "^n",
}


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Error handler of a text stream: for a character that its encoding lacks, some that every encoding has."""
    assert isinstance(error, UnicodeEncodeError)
    character = error.object[error.start]
    return PLAIN.get(character, ascii(character)[1:-1]), error.start + 1


codecs.register_error("plain", _plain)


def _forget(error: BaseException | None) -> None:
    """Let go of what an error came from, before it is told.

    A bar of progress then draws its last line, and Python says nothing of what other libraries had half begun.
    """
    hook, sys.unraisablehook = sys.unraisablehook, lambda unraisable: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            while error is not None:
                traceback.clear_frames(error.__traceback__)
                error = error.__cause__ or error.__context__
    finally:
        sys.unraisablehook = hook


def _command(argv: list[str]) -> Callable[[], object]:
    """What a command line asks for, ready to run; raises ArgumentError, ValueError or OSError if it cannot be."""
    files = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    files.add_argument("--config")
    path = files.parse_known_args(argv)[0].config
    if path == "":  # of a variable of the shell that is not set
        raise ValueError("expected a file after --config, got nothing")
    if path and argv[0] in STAGES:  # what the file says comes before what the command line says
        argv = [argv[0], *_from_file(argv[0], path), *argv[1:]]
    try:
        chosen: Namespace = _parser().parse_args(argv)
    except OverflowError as error:
        raise ValueError(f"a number is too large ({error})") from error
    config, run = STAGES[chosen.subcommand]
    options = chosen[chosen.subcommand].as_dict()
    actions = {"info": options["info"], "check": options["verify"]} if chosen.subcommand == "dataset" else {}
    given = {field.name: options.get(field.name) for field in fields(config)}
    objects = {name: _object(name, given.pop(name)) for name in OBJECTS if given.get(name) is not None}
    given = {name: value for name, value in given.items() if name not in OBJECTS}
    if actions and all(actions.values()):
        raise ValueError("expected --info or --verify, got both")
    if actions.get("check"):
        actions["objects"] = objects
    return partial(run, config(**given, **objects), **actions)


def main(argv: list[str] | None = None) -> int:
    """Run a command line and return its exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="plain")
    warnings.simplefilter("ignore", TqdmMonitorWarning)  # of bars that do without a thread that cannot be had
    argv = sys.argv[1:] if argv is None else argv
    stage = f"pnp {argv[0]}" if argv and argv[0] in STAGES else "pnp"
    try:
        _command(argv)()
    except BrokenPipeError:  # whoever reads has read enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python still flushes as it ends
        return 1
    except (argparse.ArgumentError, ValueError, OSError) as error:
        _forget(error)
        print(f"{stage}: {readable(' '.join(str(error).split()))}", file=sys.stderr)
        return 2
    except Exception as error:
        if lacks_means(error):
            _forget(error)
            reason = readable(str(error).partition("\n")[0])
            print(f"{stage}: not enough memory" + (f" ({reason})" if reason else ""), file=sys.stderr)
            return 2
        if not lost_another(error):
            raise
        _forget(error)
        reason = str(error).partition("\n")[0]
        print(f"{stage}: another process has ended or does not answer ({reason})", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        _forget(error)
        goes_on = argv and argv[0] in ("dataset", "train", "match") and "--verify" not in argv
        print(f"{stage}: interrupted" + ("; the same command goes on from here" if goes_on else ""), file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
