"""pyproject.toml, requirements.lock, environment.yml and CITATION.cff say the same thing."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import pnp_tutorial

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
REQUIREMENTS = [Requirement(r) for r in sum(EXTRAS.values(), PROJECT["dependencies"])]
LOCK = [
    Requirement(line)
    for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    if line and not line.lstrip().startswith("#")
]
MACHINES = [
    {"python_full_version": f"{python}.0", "python_version": python, "sys_platform": "linux"}
    for python in ("3.11", "3.12", "3.13")
]


def locked(name: str, machine: dict[str, str]) -> str:
    """The one version of a package that the lock gives to a machine."""
    pins = [pin for pin in LOCK if pin.name == name and (pin.marker is None or pin.marker.evaluate(machine))]
    assert len(pins) == 1, f"{name} has {len(pins)} pins for {machine}"
    return str(pins[0].specifier).removeprefix("==")


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine["python_version"])
@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_lock_holds_every_dependency_in_its_range(requirement, machine):
    assert requirement.specifier.contains(locked(requirement.name, machine))


def test_lock_pins_exactly():
    assert all(re.fullmatch(r"==[^*,]+", str(pin.specifier)) for pin in LOCK)


@pytest.mark.parametrize("dependency", PROJECT["dependencies"])
def test_library_sets_no_upper_bound(dependency):
    # Colab and clusters bring their own torch and numpy, which `pip install` must not replace.
    assert {bound.operator for bound in Requirement(dependency).specifier} == {">="}


# What Colab had on 2026-08-19. `pip install` of this package must leave it as it is.
COLAB = {"torch": "2.11.0", "numpy": "2.1.3", "matplotlib": "3.10.0", "ipywidgets": "7.7.1"}


@pytest.mark.parametrize("name", COLAB)
def test_what_colab_has_stays(name):
    requirement = next(r for r in REQUIREMENTS if r.name == name)
    assert requirement.specifier.contains(COLAB[name])
    assert SpecifierSet(PROJECT["requires-python"]).contains("3.13.0")


def test_conda_environment_installs_the_lock():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    *packages, pip = conda["dependencies"]
    python = next(p.removeprefix("python=") for p in packages if p.startswith("python="))
    assert SpecifierSet(PROJECT["requires-python"]).contains(f"{python}.0")
    assert "pip" in packages
    assert pip == {"pip": ["-r requirements.lock", f"-e .[{','.join(sorted(EXTRAS))}]"]}


def test_one_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    (latest, *_) = re.findall(r"^## (\d+\.\d+\.\d+)", changes, re.MULTILINE)
    assert {latest, str(citation["version"]), version("pnp-tutorial")} == {pnp_tutorial.__version__}
    assert "version" in PROJECT["dynamic"]


def test_wheel_holds_every_file_of_the_package(tmp_path):
    # Built from a copy, for the build leaves files behind.
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "pnp_tutorial", tmp_path / "pnp_tutorial", ignore=shutil.ignore_patterns("__pycache__"))
    package = {str(path.relative_to(tmp_path)) for path in (tmp_path / "pnp_tutorial").rglob("*") if path.is_file()}
    assert "pnp_tutorial/drum_instrument.js" in package
    build = [sys.executable, "-c", "from setuptools.build_meta import build_wheel; build_wheel('.')"]
    run = subprocess.run(build, cwd=tmp_path, capture_output=True, encoding="utf-8")
    assert run.returncode == 0, run.stderr
    (wheel,) = tmp_path.glob("*.whl")
    held = {name for name in ZipFile(wheel).namelist() if not name.split("/")[0].endswith(".dist-info")}
    assert held == package


def test_every_text_file_names_its_encoding():
    """Else that of the user's locale is taken. (Ruff sees this only where it knows that a name is a path.)"""
    nameless = []
    for path in [
        *(ROOT / "pnp_tutorial").glob("*.py"),
        *(ROOT / "tools").glob("*.py"),
        *(ROOT / "tests").rglob("*.py"),
    ]:
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and getattr(call.func, "attr", "") in ("read_text", "write_text"):
                if not any(keyword.arg == "encoding" for keyword in call.keywords):
                    nameless.append(f"{path.relative_to(ROOT)}:{call.lineno}")
    assert nameless == []
