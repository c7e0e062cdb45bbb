"""The check of the rendered book finds what it is there to find."""

import check_html
import pytest

GOOD = '<p>Fine.</p><img src="data:," alt="A drum and its first three modes.">'
TRACEBACK = "<pre>Traceback (most recent call last)</pre>"


def check(site, html, name="page"):
    """Exit status of the check over a site of one page."""
    (site / "book").mkdir()
    (site / f"book/{name}.html").write_text(f"<html><article>{html}</article></html>", encoding="utf-8")
    return check_html.main(site)


@pytest.mark.parametrize(
    ("html", "status"),
    [
        (GOOD, 0),
        ('<link rel="canonical" href="https://example.org/">', 0),
        ('<a href="https://example.org/">a link may lead elsewhere</a>', 0),
        (f'<div class="cell_output">{TRACEBACK}</div>', 1),
        ('<div class="cell_output"><div class="stderr">noise</div></div>', 1),
        ('<img src="data:,">', 1),
        ('<img src="data:," alt="">', 1),
        ('<img src="data:," alt="../_images/0123456789abcdef0123456789abcdef.png">', 1),
        ('<script src="https://cdn.example.org/x.js"></script>', 1),
        ('<script src="//cdn.example.org/x.js"></script>', 1),
        ('<link rel="stylesheet" href="https://cdn.example.org/x.css">', 1),
        ('<iframe src="https://example.org/"></iframe>', 1),
        ('<a href="missing.html">nowhere</a>', 1),
        ('<a href="#missing">nowhere</a>', 1),
        ('<a href="page.html#here">itself</a><p id="here">Here.</p>', 0),
        ('<a href="page.html#missing">nowhere</a>', 1),
        ("<p>see {eq}`eq-metric`</p>", 1),
        ("<p>" + "x" * check_html.MAX_BYTES + "</p>", 1),
        ("<audio></audio>" + "x" * check_html.MAX_BYTES, 0),
        ("<audio></audio>" + "x" * check_html.MAX_BYTES_WITH_AUDIO, 1),
    ],
    ids=lambda value: str(value)[:60],
)
def test_faults(tmp_path, html, status):
    assert check(tmp_path, html) == status


@pytest.mark.parametrize(("shown", "status"), [("(2.1)", 0), ("(2.2)", 1)])
def test_page_and_notebook_number_alike(tmp_path, monkeypatch, shown, status):
    monkeypatch.setitem(check_html.numbering(), "eq-test", "2.1")
    html = f'<div id="equation-eq-test"><span class="eqno">{shown}</span></div>'
    assert check(tmp_path, html) == status


def cell(code, fold=""):
    """HTML of a code cell, as MyST-NB has it."""
    return f'<div class="cell">{fold}<div class="cell_input"><pre>{code}</pre></div></div>'


FOLD = '<details class="hide above-input"><summary>Show the checks</summary>'
LINES = check_html.MAX_CODE_LINES_OF_CHAPTER


@pytest.mark.parametrize(
    ("name", "html", "status"),
    [
        ("01_drum", cell("x = 1\n\n" * LINES), 0),
        ("01_drum", cell("x = 1\n" * LINES) + cell("x = 1"), 1),
        ("01_drum", cell("x = 1\n" * LINES) + cell("x = 1", FOLD), 0),
        ("01_drum", cell("x = 1\n" * LINES) + cell("x = 1", FOLD.replace(" class", " open class")), 1),
        ("introduction", cell("x = 1\n" * LINES), 1),
        ("01_drum", cell("for x in y:\n    assert x"), 1),
        ("01_drum", cell("np.testing.assert_allclose(x, y)"), 1),
        ("01_drum", cell("assert x", FOLD), 0),
        ("01_drum", cell("print('assert x')  # assert it"), 0),
    ],
)
def test_code_is_folded_and_checks_are(tmp_path, name, html, status):
    assert check(tmp_path, html, name) == status


def test_the_whole_book_shows_little_code(tmp_path):
    """Every page within its own limit, and the book is not."""
    (tmp_path / "book").mkdir()
    for i in range(check_html.MAX_CODE_LINES // LINES):
        (tmp_path / f"book/{i:02}_chapter.html").write_text(cell("x = 1\n" * LINES), encoding="utf-8")
    assert check_html.main(tmp_path) == 0
    (tmp_path / "book/99_chapter.html").write_text(cell("x = 1\n" * LINES), encoding="utf-8")
    assert check_html.main(tmp_path) == 1


def test_an_empty_site_is_a_fault(tmp_path):
    assert check_html.main(tmp_path) == 1
