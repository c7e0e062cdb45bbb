"""Feedback on answers: each kind of mistake has a sentence of its own."""

import math
import re

import jupytext
import numpy as np
import pytest
import torch
from export_notebooks import BOOK, DIRECTIVE, chapters

from pnp_tutorial.exercises import CONFUSED, TREND, check, trend

M = torch.tensor([[3.0, -3.0], [-3.0, 5.0]])
J = np.array([[1.0, 0.0], [1.0, -1.0], [1.0, -2.0]])
SQUARE = np.array([[1.0, 2.0], [3.0, 4.0]])


def said(capsys, answer, expected, **options):
    check("it", answer, expected, **options)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("it: ")
    assert line.endswith(".")
    return line.removeprefix("it: ")


@pytest.mark.parametrize("answer", [None, (None, 2.0), [1.0, None], (torch.ones(3), None)])
@pytest.mark.parametrize("expected", [np.ones(2), "grow"])
def test_no_answer_yet(capsys, answer, expected):
    assert said(capsys, answer, expected).startswith("no answer yet")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (36, 36),
        (36.0, torch.tensor(36)),
        (0.0, torch.tensor(0.0)),
        (1.02, 1.0),
        (torch.tensor(1.02, requires_grad=True), 1.0),
        ([torch.tensor(3.0), -3.0], M[0]),
        (M.numpy(), M),
        (M + 1e-9, M),
    ],
)
def test_right_numbers_of_any_type(capsys, answer, expected):
    assert said(capsys, answer, expected).startswith("right. The library finds ")


def test_what_is_counted_must_be_exact(capsys):
    assert said(capsys, 74, 75) == "right. The library finds 75."
    assert said(capsys, 74, 75, within=0) == "nearly right, off by -1.3%."


@pytest.mark.parametrize(
    ("answer", "expected", "unit", "sentence"),
    [
        (2.0, 1.0, "", "too large by a factor of 2."),
        (0.5 * M, M, "", "too small by a factor of 2."),
        (-M, M, "", "the sign is wrong."),
        (-2 * M, M, "", "the sign is wrong and too large by a factor of 2."),
        (12.0, 0.012, "s", "the unit seems to be ms, and should be s."),
        (-12.0, 0.012, "s", "the sign is wrong and the unit seems to be ms, and should be s."),
        (J.T, J, "", "the shape is (2, 3), and should be (3, 2)."),
        (1.0, J, "", "the shape is (), and should be (3, 2)."),
        (SQUARE.T, SQUARE, "", "the matrix is transposed."),
        (M.abs(), M, "", "2 of 4 numbers have the wrong sign."),
        ([3.0, math.nan], M[0], "", "1 of 2 numbers are not finite."),
        (SQUARE + [[0, 0], [0, 3]], SQUARE, "", "number 1, 1 is furthest off: you have 7, and the library finds 4."),
        (0, 3.0, "", "you have 0, and the library finds 3."),
        (3.0, 0.0, "", "you have 3, and the library finds 0."),
        ("three", 3.0, "", "the answer should be one real number."),
        (1j, 3.0, "", "the answer should be one real number."),
        (True, 3.0, "", "the answer should be one real number."),
        ([[1.0], [1.0, 2.0]], M, "", "the answer should be an array of real numbers."),
        (print, M, "", "the answer should be an array of real numbers."),
    ],
)
def test_what_is_off_is_named(capsys, answer, expected, unit, sentence):
    assert said(capsys, answer, expected, unit=unit) == sentence


@pytest.mark.parametrize("unit", CONFUSED)
def test_confused_units_are_told(capsys, unit):
    for other, many in CONFUSED[unit].items():
        assert said(capsys, 7 * many, 7.0, unit=unit) == f"the unit seems to be {other}, and should be {unit}."
        if other in CONFUSED:
            assert CONFUSED[other][unit] == pytest.approx(1 / many), "there and back"


@pytest.mark.parametrize(
    ("answer", "expected", "sentence"),
    [
        ("grow ", "grow", "right, grow."),
        ("shrink", "grow", "not right: shrink; missing: grow."),
        (["D", "p"], {"p", "D"}, "right, D, p."),
        (["p"], ["p", "D"], "missing: D."),
        (["p", "D"], "p", "not right: D."),
        ([], [], "right, nothing."),
        (["one row depends on another"], [], "not right: one row depends on another."),
        (3, "grow", "the answer should be a word in quotation marks, or a list of such words."),
    ],
)
def test_words(capsys, answer, expected, sentence):
    assert said(capsys, answer, expected) == sentence


def test_words_outside_the_choices_are_refused(capsys):
    assert said(capsys, "bigger", "grow", choices=TREND) == "bigger is no choice. Choose among grow, shrink, stay."


@pytest.mark.parametrize("expected", [math.nan, [1.0, math.inf], None, print, 1j, "falls"])
def test_a_cell_that_expects_nonsense_is_an_error(expected):
    with pytest.raises(ValueError, match=r"expected must be"):
        check("it", None, expected, choices=TREND)


def test_trend():
    assert [trend(2, after) for after in (2.1, 1.9, 2.01)] == ["grow", "shrink", "stay"]
    assert {trend(torch.tensor(2.0), after) for after in (1, 2, 3)} == set(TREND)


WITH_EXERCISES = [name for name in chapters() if "## Exercises" in (BOOK / f"{name}.md").read_text(encoding="utf-8")]


@pytest.mark.parametrize("name", WITH_EXERCISES)
def test_every_question_has_one_right_answer(name):
    directives = DIRECTIVE.finditer((BOOK / f"{name}.md").read_text(encoding="utf-8"))
    questions = [found for found in directives if found["title"].startswith("Question: ")]
    assert 1 <= len(questions) <= 2
    for question in questions:
        answers = [found["body"] for found in DIRECTIVE.finditer(question["body"]) if found["name"] == "dropdown"]
        assert len(answers) >= 2
        assert sum(answer.startswith("Right") for answer in answers) == 1, question["title"]


@pytest.mark.parametrize("name", WITH_EXERCISES)
def test_every_exercise_has_a_name_and_is_checked(name):
    """In the notebook, between its text and the next: a cell to answer in, a folded solution, and a check."""
    cells = jupytext.read(BOOK / f"{name}.md").cells
    text = "".join(f"\n{cell.source}\n{cell.metadata.get('tags', '')}" for cell in cells)
    exercises = re.split(r"\n```\{admonition\} (?=Exercise)", text.partition("## Exercises")[2])[1:]
    assert len(exercises) >= 2
    for number, exercise in enumerate(exercises, 1):
        assert re.match(rf"Exercise {number} \(★{{1,3}}\): \w", exercise), exercise[:60]
        turn, tag, rest = exercise.partition("['remove-cell']")
        assert tag, f"no cell for the reader in {exercise[:60]}"
        assert "\n# Your turn: " in turn
        assert "= None" in turn or ": None" in turn
        assert "\ncheck(" in exercise or "    check(" in exercise
        assert "['hide-cell']" in rest, "the solution"
    assert any(re.search(r"\b[Pp]redict", exercise) for exercise in exercises)
