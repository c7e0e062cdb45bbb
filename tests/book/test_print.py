"""The whole book as one page for paper, and what Chromium makes of it."""

import re
from collections import Counter
from pathlib import Path
from urllib.parse import urlparse

import print_book
import pytest
from bs4 import BeautifulSoup
from export_notebooks import pages
from repository import ROOT

SITE = ROOT / "_build/html"


@pytest.fixture(scope="module")
def book():
    return BeautifulSoup(print_book.assemble(SITE), "html.parser")


def test_all_pages_are_there_in_the_order_of_the_book(book):
    names = [Path(page).name for page in pages()]
    assert [section["id"] for section in book.select("main > section")] == names
    assert [link["href"] for link in book.select("nav a")] == [f"#{name}" for name in names]


def test_names_are_unique_and_links_lead_somewhere(book):
    names = Counter(element["id"] for element in book.find_all(id=True))
    assert max(names.values()) == 1
    inside = [link["href"][1:] for link in book.find_all("a", href=re.compile("^#."))]
    assert len(inside) > 100
    assert not set(inside) - set(names)


def test_pictures_are_there_and_nothing_is_left_that_paper_cannot_do(book):
    files = [image["src"] for image in book.find_all("img") if not urlparse(image["src"]).scheme]
    assert len(files) > 50
    assert [file for file in files if not (SITE / file).exists()] == []
    assert not book.select("audio, button, main script, details.hide")


def test_the_book_is_printed_with_its_outline(browser, tmp_path, monkeypatch):
    """Of one page: the whole book takes minutes."""
    monkeypatch.setattr(print_book, "pages", lambda: ["book/notation"])
    print_book.print_book(browser, SITE, tmp_path / "book.pdf")
    content = (tmp_path / "book.pdf").read_bytes()
    assert content.startswith(b"%PDF")
    assert len(re.findall(rb"/Type /Page\b", content)) >= 3  # title, contents, notation
    assert b"/Outlines" in content
    assert not list(SITE.glob("tmp*.html"))
