"""Tests that `make compat` runs find all that they import in its environments."""

import ast
import re
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions

import compat
import pytest
from compat import LEFT_OUT, TOOLS
from packaging.requirements import Requirement
from repository import ROOT

TESTS, SCRIPTS = ROOT / "tests", ROOT / "tools"
OWNERS = packages_distributions()


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


@cache
def imported(path):
    """Top-level packages that a script imports, and those of the scripts that it imports."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.partition(".")[0])
    for name in sorted(found):
        for folder in (TESTS, SCRIPTS):
            if (folder / f"{name}.py").exists():
                found = (found - {name}) | imported(folder / f"{name}.py")
    return found


def test_nothing_that_could_be_tested_is_no_success(monkeypatch):
    monkeypatch.setattr(compat, "is_installed", lambda python: False)
    assert compat.main([], 1) == 1
    monkeypatch.setattr(compat, "is_installed", lambda python: python == "3.12")
    monkeypatch.setattr(compat, "install", lambda *_: None)
    for passes in (True, False):
        monkeypatch.setattr(compat, "test", lambda *_, passes=passes: passes)
        assert compat.main([], 1) == (not passes)


@pytest.mark.parametrize("path", sorted(TESTS.glob("*.py")), ids=lambda path: path.stem)
def test_what_a_test_imports_is_there(path):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    there = {normal(Requirement(text).name) for text in [*project["dependencies"], *TOOLS]}
    there |= {"packaging", "traitlets", "ipython", "pnp-tutorial"}  # of pytest and ipywidgets, and itself
    others = {
        name
        for name in imported(path) - set(sys.stdlib_module_names)
        if not there & {normal(each) for each in OWNERS.get(name, [])}
    }
    assert not others or path.name in LEFT_OUT
