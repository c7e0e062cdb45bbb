"""Test the library with the oldest versions of its dependencies that pyproject.toml allows, and with the newest.

    python tools/compat.py           # or: make compat

Each has an environment of its own in _build/compat: the newest versions for every Python of PYTHONS that is installed
(what is not is said), and the oldest for the oldest Python, which is as old as they are. The tests are those that need
no more than that: not those of the book, its pages and its packaging. An environment is a download of up to 3 GB, most
of it torch.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from repository import ROOT

PYTHONS = ("3.11", "3.12", "3.13")
FOLDER = ROOT / "_build/compat"
# Which the tests need besides.
TOOLS = ["pytest", "pytest-xdist", "beautifulsoup4", "hypothesis", "playwright", "tensorboard"]
LEFT_OUT = ["book", "test_packaging.py", "test_check_html.py", "test_export_notebooks.py", "test_weekly.py"]
LEFT_OUT += ["test_mutants.py", "test_glossary.py", "test_exercises.py", "test_explorables.py"]


def oldest() -> list[str]:
    """Every run-time dependency at its lower bound."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = [Requirement(text) for text in project["dependencies"]]
    return [f"{r.name}=={next(s.version for s in r.specifier if s.operator == '>=')}" for r in requirements]


def is_installed(python: str) -> bool:
    """Is there such a Python? (Of some managers of versions, the command is there without it.)"""
    command = shutil.which(f"python{python}")
    return command is not None and subprocess.run([command, "--version"], capture_output=True).returncode == 0


def install(python: str, which: str) -> Path:
    """Make the environment of one Python with the "oldest" or the "newest" versions, and return its Python."""
    folder = FOLDER / f"{python}-{which}"
    here = folder / "bin/python"
    constraints = folder.with_suffix(".txt")
    FOLDER.mkdir(parents=True, exist_ok=True)
    constraints.write_text("\n".join(oldest() if which == "oldest" else []) + "\n", encoding="utf-8")
    if not here.exists():
        subprocess.run([f"python{python}", "-m", "venv", str(folder)], check=True)
    pip = [str(here), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    options = ["--upgrade", "--upgrade-strategy", "eager", "--constraint", str(constraints)]
    subprocess.run([*pip, *options, "--editable", str(ROOT), *TOOLS], check=True)
    return here


def test(here: Path, jobs: int) -> bool:
    ignored = [f"--ignore={ROOT / 'tests' / name}" for name in LEFT_OUT]
    command = [str(here), "-m", "pytest", "-q", "-n", str(jobs), "--dist", "worksteal", *ignored]
    return subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode == 0


def main(asked: list[str], jobs: int) -> int:
    verdicts = {}
    for python in asked or PYTHONS:
        for which in ("oldest", "newest") if python == PYTHONS[0] else ("newest",):
            name = f"Python {python}, {which} versions"
            if not is_installed(python):
                verdicts[name] = f"{'FAILED' if asked else 'skipped'}: there is no python{python} here"
                continue
            print(f"{name} ...", flush=True)
            try:
                verdicts[name] = "passed" if test(install(python, which), jobs) else "FAILED"
            except subprocess.CalledProcessError:
                verdicts[name] = "FAILED: it cannot be installed"
    for name, verdict in verdicts.items():
        print(f"{name}: {verdict}")
    if "passed" not in verdicts.values():
        return 1
    return 1 if any(verdict.startswith("FAILED") for verdict in verdicts.values()) else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pythons", nargs="*", help=f"such as 3.12; {', '.join(PYTHONS)} if none is given")
    parser.add_argument("--jobs", type=int, default=2, help="tests side by side")
    arguments = parser.parse_args()
    sys.exit(main(arguments.pythons, arguments.jobs))
