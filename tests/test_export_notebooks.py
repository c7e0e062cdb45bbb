"""Notebooks for Jupyter and Colab: what the book folds, they fold."""

import export_notebooks
import nbformat
import papermill
from export_notebooks import fold, form, plain_markdown

PARAMETERS = """\
# the data set
n_sounds = 10_000  # of the grid
audio = None  # path; None: a drum
ear = "jtfs"
known = ()"""


def test_form_assigns_the_same_values():
    values, expected = {}, {}
    exec(form(PARAMETERS), values)
    exec(PARAMETERS, expected)
    del values["__builtins__"], expected["__builtins__"]
    assert values == expected
    assert form(PARAMETERS).splitlines()[:3] == [
        "# @markdown **the data set**",
        "# @markdown `n_sounds`: of the grid",
        'n_sounds = 10_000  # @param {type:"raw"}',
    ]


def test_folded_parameters_are_injected(tmp_path):
    """papermill puts given values behind a folded cell of parameters, and executes."""
    cell = nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters", "hide-cell"]})
    fold(cell, "Show the parameters of this notebook")
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    shown = nbformat.v4.new_code_cell("print(n_sounds, ear)")
    notebook = nbformat.v4.new_notebook(cells=[cell, shown], metadata=kernel)
    nbformat.validate(notebook)
    nbformat.write(notebook, tmp_path / "in.ipynb")
    assert set(papermill.inspect_notebook(tmp_path / "in.ipynb")) == {"n_sounds", "audio", "ear", "known"}
    done = papermill.execute_notebook(
        tmp_path / "in.ipynb", tmp_path / "out.ipynb", parameters={"n_sounds": 3}, cwd=tmp_path, progress_bar=False
    )
    assert done.cells[-1].outputs[0].text == "3 jtfs\n"


def test_terms_of_the_glossary_are_words():
    """The glossary is on a page that is no notebook."""
    text = "The **{term}`metric`** of two {term}`modes <mode>`, and *{term}`stiffer <stiff>`* ones."
    assert plain_markdown(text) == "The **metric** of two modes, and *stiffer* ones."


def test_sections_are_linked_within_a_notebook_and_from_another(monkeypatch):
    """By the anchor that JupyterLab makes of a heading, and that Colab is given."""
    monkeypatch.setattr(export_notebooks, "sections", lambda: {"results-own": ("08_results", "One-metric-for-all")})
    monkeypatch.setattr(export_notebooks, "repository_url", lambda: None)
    heading = "(results-own)=\n### One metric for all\n\nSee [there](results-own)."
    shown = '<a name="One-metric-for-all"></a>\n\n### One metric for all\n\nSee [there]({}#One-metric-for-all).'
    assert plain_markdown(heading, "08_results") == shown.format("")
    assert plain_markdown(heading, "09_matching") == shown.format("08_results.ipynb")


def test_a_section_of_a_page_that_is_no_notebook_is_text():
    assert plain_markdown("the [glossary](glossary), of course") == "the glossary, of course"


def test_only_what_hide_cell_says_hides_outputs():
    for tag, hidden in (("hide-input", False), ("hide-cell", True)):
        cell = nbformat.v4.new_code_cell("x = 1", metadata={"tags": [tag]})
        fold(cell, "Show the checks")
        assert cell.source == "# @title Show the checks\nx = 1"
        assert cell.metadata["cellView"] == "form"
        assert cell.metadata["jupyter"]["source_hidden"]
        assert cell.metadata["jupyter"].get("outputs_hidden", False) == hidden


def test_answers_of_a_question_fold():
    """As HTML that Jupyter, Colab and GitHub open and close, with Markdown inside."""
    question = "````{admonition} Question: which?\n:class: hint\n\nOf *two*.\n\n```{dropdown} The first\nNo.\n```\n````"
    assert plain_markdown(question).splitlines() == [
        "> **Question: which?**",
        "> ",
        "> Of *two*.",
        "> ",
        "> <details>",
        "> <summary>The first</summary>",
        "> ",
        "> No.",
        "> ",
        "> </details>",
    ]
