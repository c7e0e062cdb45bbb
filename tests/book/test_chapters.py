"""Every chapter as a notebook: what it puts out is what is kept of it in book/outputs.

papermill executes a chapter (tools/execute.py, once: the book shows the same outputs), and nbval compares.
One chapter alone: pytest tests/book/test_chapters.py -k 01_drum
"""

import io
import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import outputs
import papermill
import pytest
import soundfile
import summaries
import yaml
from execute import code_cells, source
from export_notebooks import BOOK, ROOT, chapters, export

RAW_MYST = re.compile(r"^(`{3,}|:{3,})\{|\{[\w:]+\}`|^\([\w-]+\)=$|\.md\)", re.MULTILINE)


def nbval(reference: nbformat.NotebookNode, now: list[str], folder: Path) -> subprocess.CompletedProcess:
    """Compare outputs with those of a reference, cell by cell, by nbval and a kernel that puts them out again."""
    nbformat.write(reference, folder / "reference.ipynb")
    (folder / "now.json").write_text(json.dumps(now), encoding="utf-8")
    kernel = folder / "kernels/replay/kernel.json"
    kernel.parent.mkdir(parents=True)
    argv = [sys.executable, str(ROOT / "tools/replay_kernel.py"), "-f", "{connection_file}"]
    kernel.write_text(json.dumps({"argv": argv, "display_name": "replay", "language": "python"}), encoding="utf-8")
    options = ["--nbval", "--nbval-kernel-name", "replay", "-p", "no:cacheprovider", "-p", "no:xdist", "--color=no"]
    # The project's own pytest settings are for the outer run.
    command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, *options, "reference.ipynb"]
    environment = os.environ | {"JUPYTER_PATH": str(folder), "REPLAY": str(folder / "now.json")}
    return subprocess.run(command, capture_output=True, encoding="utf-8", cwd=folder, env=environment)


def parameters(path: Path) -> set[str]:
    return set(papermill.inspect_notebook(path))


@pytest.mark.parametrize("chapter", chapters())
def test_what_a_chapter_puts_out_does_not_drift(chapter, tmp_path):
    run = nbval(*outputs.pair(chapter), tmp_path)
    assert run.returncode == 0, (
        f"{chapter} puts out something else: right, or `make outputs`?\n{run.stdout}{run.stderr}"
    )


@pytest.mark.parametrize("chapter", chapters())
def test_every_stated_tolerance_is_of_a_cell_that_is_compared(chapter):
    cells = code_cells(source(chapter))
    stated = [cell for cell in cells if "tolerance" in cell.metadata]
    assert all(outputs.TOLERANCE < cell.metadata["tolerance"] < 1 for cell in stated)
    assert not any("nbval-ignore-output" in cell.metadata.get("tags", []) for cell in stated)


def test_where_a_kernel_cuts_what_a_cell_prints_makes_no_difference():
    def cell(*texts):
        return nbformat.v4.new_code_cell(outputs=[nbformat.v4.new_output("stream", text=text) for text in texts])

    assert outputs.text(cell("one line", ", two\n", "three\n")) == outputs.text(cell("one line, two\nthree\n"))
    table = nbformat.v4.new_output("display_data", {"text/plain": "shown"})
    mixed = cell("a\n", "b")
    mixed.outputs.insert(1, table)
    assert outputs.text(mixed) == "a\nshown\nb"


@cache
def prose(chapter: str) -> str:
    return "\n".join(cell.source for cell in export(chapter).cells if cell.cell_type == "markdown")


@pytest.mark.parametrize("chapter", chapters())
def test_exported_prose_is_plain_markdown(chapter):
    assert not RAW_MYST.findall(prose(chapter))


@pytest.mark.parametrize("chapter", chapters())
def test_exported_links_lead_somewhere(chapter):
    """To the web, to a picture, or to a notebook and a heading that it has."""
    for target in re.findall(r"\]\(([^()\s]+)\)", prose(chapter)):
        page, _, place = target.partition("#")
        if not page or page.endswith(".ipynb"):
            name = Path(page).stem or chapter
            assert name in chapters(), target
            assert not place or f'<a name="{place}"></a>' in prose(name), target
        else:
            assert target.startswith(("https://", "../../book/_static/")), target


@pytest.mark.parametrize("chapter", chapters())
def test_export_is_reproducible(chapter):
    assert nbformat.writes(export(chapter)) == nbformat.writes(export(chapter))


@pytest.mark.parametrize("chapter", chapters())
def test_what_the_book_folds_is_folded_in_notebooks(chapter):
    """JupyterLab reads `jupyter`, Colab `cellView` and the title in the first line."""
    _, *exported = code_cells(export(chapter))  # the first installs the package on Colab
    for cell, now in zip(code_cells(source(chapter)), exported, strict=True):
        tags = set(cell.metadata.get("tags", []))
        folded = bool(tags & {"hide-input", "hide-cell"})
        hidden = {"source_hidden": True} | ({"outputs_hidden": True} if "hide-cell" in tags else {})
        assert now.metadata.get("jupyter", {}) == (hidden if folded else {})
        assert now.metadata.get("cellView") == ("form" if folded else None)
        title, _, code = now.source.partition("\n") if folded else ("", "", now.source)
        assert title == (f"# @title {cell.metadata['mystnb']['code_prompt_show']}" if folded else "")
        assert set(now.metadata.get("tags", [])) == tags
        if "parameters" not in tags:  # in their cell, comments change
            assert code == cell.source


@pytest.mark.parametrize(
    "chapter", [name for name in chapters() if "parameters]" in (BOOK / f"{name}.md").read_text(encoding="utf-8")]
)
def test_parameters_are_found_by_papermill_and_editable_in_colab(chapter, tmp_path):
    notebook = export(chapter)
    nbformat.write(notebook, tmp_path / "chapter.ipynb")
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assigned = {line.split(" = ")[0] for line in cell.source.splitlines() if not line.startswith("#")}
    assert parameters(tmp_path / "chapter.ipynb") == assigned != set()
    if "cellView" in cell.metadata:
        fields = [line for line in cell.source.splitlines() if line.endswith('  # @param {type:"raw"}')]
        assert len(fields) == len(assigned)


MINE = """from dataclasses import replace

from pnp_tutorial.arpeggiator import ARPEGGIATOR

MINE = replace(ARPEGGIATOR, name="mine")
"""


@pytest.mark.parametrize("synthesizer", ["arpeggiator", "mine.py:MINE"])
def test_full_training_takes_parameters(tmp_path, synthesizer):
    """As a reader gives them: papermill with a file, from the exported notebook; with a synthesizer of his own, too."""
    (tmp_path / "mine.py").write_text(MINE, encoding="utf-8")
    nbformat.write(export("07_training"), tmp_path / "training.ipynb")
    for name in ("smoke", "laptop", "paper", "arpeggiator"):
        values = yaml.safe_load((BOOK / f"parameters/{name}.yaml").read_text(encoding="utf-8"))
        assert set(values) <= parameters(tmp_path / "training.ipynb"), name
    small = yaml.safe_load((BOOK / "parameters/smoke.yaml").read_text(encoding="utf-8"))
    small["synthesizer"] = synthesizer
    done = papermill.execute_notebook(
        tmp_path / "training.ipynb", tmp_path / "done.ipynb", parameters=small, cwd=tmp_path, progress_bar=False
    )
    printed = "".join(output.get("text", "") for cell in code_cells(done) for output in cell.outputs)
    assert f"scalograms ({small['n_sounds'] // 10}, " in printed
    tables = [output.data["text/plain"] for cell in code_cells(done) for output in cell.outputs if "data" in output]
    assert any("f_c" in table and "answer 2" in table and "truth 2" in table for table in tables)


def one_cell(text: str) -> nbformat.NotebookNode:
    output = nbformat.v4.new_output("stream", name="stdout", text=text)
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    cell = nbformat.v4.new_code_cell("print(1 + 1)", execution_count=1, outputs=[output])
    return nbformat.v4.new_notebook(cells=[cell], metadata=kernel)


@pytest.mark.parametrize(("now", "verdict"), [("2", 0), ("3", 1)])
def test_nbval_sees_drift(tmp_path, now, verdict):
    """Guards the guard: what has changed is named, with the cell that put it out."""
    run = nbval(one_cell("2"), [now], tmp_path)
    assert run.returncode == verdict
    assert ("print(1 + 1)" in run.stdout) == bool(verdict)


@pytest.mark.parametrize(
    ("new", "old", "tolerance", "same"),
    [
        ("mean 0.12340", "mean 0.12341", 1e-4, True),
        ("mean 0.1234", "mean 0.1236", 1e-4, False),
        ("mean 0.1234", "mean 0.1235", 1e-4, True),  # as rounding makes it
        ("mean 0.123", "mean 0.124", 1e-4, False),
        ("mean 1234.", "mean 1235.", 1e-4, True),
        ("1234 drums", "1235 drums", 1e-4, False),
        ("mean 0.13", "mean 0.12", 0.01, True),  # 0.1251 and 0.1249
        ("mean 0.14", "mean 0.12", 0.01, False),
        ("1.3e+05", "1.2e+05", 0.01, True),
        ("1.4e+05", "1.2e+05", 0.01, False),
        ("4 drums", "5 drums", 0.01, False),
        ("12 drums of 200", "12 drums of 201", 0.01, True),
        ("12 cats", "12 dogs", 0.5, False),
        ("-0.5", "0.5", 0.5, False),
        ("  0.5   1", "0.5 1", 1e-4, True),
    ],
)
def test_numbers_within_the_tolerance_are_the_same(new, old, tolerance, same):
    assert outputs.as_before(new, old, tolerance) == (old if same else new)


def test_all_that_a_reader_sees_is_compared():
    """Text, tables, and the text form of all else, but no address in memory."""
    cell = nbformat.v4.new_code_cell("f()")
    html = "<table><tr><th>a</th><td>1.50</td></tr></table>"
    data = [{"text/plain": "<Styler>", "text/html": html}, {"text/plain": "<Widget at 0x7f3a>", "image/png": "A"}]
    cell.outputs = [nbformat.v4.new_output("stream", text="x = 1\n")]
    cell.outputs += [nbformat.v4.new_output("display_data", data=each) for each in data]
    assert outputs.text(cell) == "x = 1\na | 1.50\n<Widget>"


def test_summary_of_a_figure():
    """Words and numbers; another number, and it is another."""

    def summary(height, title="drum: 159 Hz"):
        figure, axes = plt.subplots()
        axes.plot([0, 1, 2], [0, height, np.nan])
        axes.bar([0, 1], [height, 1])
        axes.imshow([[0, height]])
        axes.set(title=title, xlabel="time (s)")
        plt.close(figure)
        return summaries.of_figure(figure)

    assert summary(0.5).splitlines() == [
        "figure: drum: 159 Hz | time (s)",
        "line 3 1.000 0.000 2.000, 2 0.2500 0.000 0.5000",
        "colours 2 0.2500 0.000 0.5000",
        "bars 2 0.7500 0.5000 1.000",
    ]
    assert len({summary(0.5), summary(0.501), summary(0.5, "drum: 160 Hz")}) == 3


def test_summary_of_a_sound():
    t = np.arange(22050) / 22050
    x = np.sin(2 * np.pi * 440 * t) * (t < 0.5)
    buffer = io.BytesIO()
    soundfile.write(buffer, 0.5 * x, 22050, format="WAV")
    assert summaries.of_wav(buffer.getvalue()) == (
        "sound: 1.000 s, -9.0 -9.0 -9.0 -9.0 -120.0 -120.0 -120.0 -120.0 dB, 439.8 Hz"
    )
