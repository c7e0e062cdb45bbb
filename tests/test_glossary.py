"""The glossary, and the links to it: each chapter links the terms that it uses, each once."""

import re

import jupytext
import pytest
from export_notebooks import BOOK, DIRECTIVE, chapters

CHAPTERS = [name for name in chapters() if re.match(r"\d|introduction", name)]
TERM = re.compile(r"\{term\}`([^`<]+?)(?: <([^>]+)>)?`")


def linked(text):
    """Terms of the glossary that a text links, in its order."""
    return [(target or words).replace("\n", " ") for words, target in TERM.findall(text)]


def prose(chapter):
    """The text of a chapter, cell by cell."""
    return [cell.source for cell in jupytext.read(BOOK / f"{chapter}.md").cells if cell.cell_type == "markdown"]


@pytest.fixture(scope="module")
def terms():
    """All terms of the glossary, the lines that are not indented."""
    text = (BOOK / "notation.md").read_text(encoding="utf-8")
    (glossary,) = [match["body"] for match in DIRECTIVE.finditer(text) if match["name"] == "glossary"]
    return [line for line in glossary.splitlines() if line.strip() and not line.startswith(" ")]


def test_every_term_is_linked_from_a_chapter(terms):
    assert set(terms) == {term for chapter in CHAPTERS for text in prose(chapter) for term in linked(text)}


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_links_its_terms_once_and_in_prose(chapter):
    found = [term for text in prose(chapter) for term in linked(text)]
    assert len(found) >= 4
    assert len(found) == len(set(found))
    whole = (BOOK / f"{chapter}.md").read_text(encoding="utf-8")
    assert len(linked(whole)) == len(found), "none in code, captions or alternative texts"
    assert not any(linked(line) for line in whole.splitlines() if line.startswith("#")), "none in headings"
