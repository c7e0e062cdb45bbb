"""Every chapter as a notebook: exported, executed by papermill with small parameters, then
executed again by nbval, which compares the cells tagged `nbval-check-output`.

One chapter alone: pytest tests/test_notebooks.py -k 01_drum
"""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest
import yaml
from export_notebooks import BOOK, CHAPTERS, ROOT, export

SMOKE = yaml.safe_load((BOOK / "parameters/smoke.yaml").read_text())
OUTPUT = ROOT / "_build/executed"
RAW_MYST = re.compile(r"^(`{3,}|:{3,})\{|\{[\w:]+\}`|^\([\w-]+\)=$|\.md\)", re.MULTILINE)


def nbval(path: Path) -> subprocess.CompletedProcess:
    """Execute a notebook anew and compare its tagged cells with the outputs that it holds."""
    options = ["--nbval-lax", "--nbval-current-env", "-p", "no:cacheprovider", "-p", "no:xdist"]
    # The project's own pytest settings are for the outer run.
    command = [sys.executable, "-m", "pytest", "-q", "-c", "/dev/null", *options, str(path)]
    return subprocess.run(command, capture_output=True, text=True, cwd=path.parent)


def parameters(path: Path) -> set[str]:
    return set(papermill.inspect_notebook(path))


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_chapter_runs_and_its_numbers_do_not_drift(chapter):
    OUTPUT.mkdir(parents=True, exist_ok=True)
    source, executed = OUTPUT / f"{chapter}.source.ipynb", OUTPUT / f"{chapter}.ipynb"
    nbformat.write(export(chapter), source)
    small = SMOKE.get(chapter, {})
    assert set(small) <= parameters(source), "smoke.yaml sets what the chapter does not have"
    papermill.execute_notebook(
        source, executed, parameters=small, cwd=OUTPUT, progress_bar=False, execution_timeout=600
    )
    run = nbval(executed)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_exported_prose_is_plain_markdown(chapter):
    prose = [cell.source for cell in export(chapter).cells if cell.cell_type == "markdown"]
    assert not RAW_MYST.findall("\n".join(prose))


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_export_is_reproducible(chapter):
    assert nbformat.writes(export(chapter)) == nbformat.writes(export(chapter))


def test_smoke_parameters_name_chapters():
    assert set(SMOKE) <= set(CHAPTERS)


def test_paper_parameters_are_those_of_the_training_chapter(tmp_path):
    paper = yaml.safe_load((BOOK / "parameters/paper.yaml").read_text())
    nbformat.write(export("07_training"), tmp_path / "training.ipynb")
    assert set(paper) <= parameters(tmp_path / "training.ipynb")


@pytest.mark.parametrize(("stored", "verdict"), [("2", 0), ("3", 1)])
def test_nbval_sees_drift(tmp_path, stored, verdict):
    # Guards the guard: the comparison must fail when a tagged number has changed.
    output = nbformat.v4.new_output("stream", name="stdout", text=f"{stored}\n")
    cell = nbformat.v4.new_code_cell(
        "print(1 + 1)",
        execution_count=1,
        outputs=[output],
        metadata={"tags": ["nbval-check-output"]},
    )
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path = tmp_path / "drift.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=kernel), path)
    assert nbval(path).returncode == verdict
