"""Check the rendered book as a reader meets it: python tools/check_html.py _build/html

Sphinx warns about what it cannot build, not about what came out wrong. Each fault is one line,
and any fault makes the exit status 1.
"""

import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlparse

from bs4 import BeautifulSoup
from export_notebooks import numbering

MAX_BYTES = 1_000_000
MAX_BYTES_WITH_AUDIO = 3_000_000  # one second of sound is 60 kB of HTML
# Code that a reader sees without opening anything, in lines that are not blank. A chapter is told in words, figures and
# calls of the library; the whole book shows at most so much, and checks are folded.
MAX_CODE_LINES_OF_CHAPTER = 120
MAX_CODE_LINES_OF_OTHER_PAGE = 80
MAX_CODE_LINES = 1_300
ASSERTION = re.compile(r"\s*(assert\b|[\w.]+\.assert_\w+\()")
RAW_MARKUP = re.compile(r"\{(eq|numref|ref|doc|term|cite:?\w*)\}`|:::|\[\?\?\]|^\$\$", re.MULTILINE)
FILE_NAME = re.compile(r"[\w./-]*([0-9a-f]{16,}|\.(png|svg|jpe?g))[\w.]*")
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "audio": "src"}


@cache
def identifiers(path: Path) -> set[str]:
    """Where in a page a link may lead."""
    return set(re.findall(r'\sid="([^"]+)"', path.read_text(encoding="utf-8")))


def visible_code(page: BeautifulSoup) -> list[str]:
    """Lines of the code cells that are not folded."""
    article = page.find("article") or page
    shown = [cell for cell in article.select(".cell_input") if not cell.find_parent("details", open=False)]
    return [line for cell in shown for line in cell.get_text().splitlines() if line.strip()]


def code_faults(name: str, code: list[str]) -> Iterator[str]:
    """Does the page `name` show more code than it may?"""
    lines, assertions = len(code), sum(bool(ASSERTION.match(line)) for line in code)
    is_chapter = re.match(r"\d", name)
    limit = MAX_CODE_LINES_OF_CHAPTER if is_chapter else MAX_CODE_LINES_OF_OTHER_PAGE
    if lines > limit:
        yield f"{lines} lines of code are not folded, more than {limit}"
    if assertions:
        yield f"{assertions} assertions are not folded"


def faults(path: Path, page: BeautifulSoup) -> Iterator[str]:
    article = page.find("article") or page

    n_bytes, limit = path.stat().st_size, MAX_BYTES_WITH_AUDIO if article.find("audio") else MAX_BYTES
    if n_bytes > limit:
        yield f"{n_bytes} bytes of HTML, more than {limit}"

    for output in article.select(".cell_output"):
        if "Traceback (most recent call last)" in output.get_text():
            yield "a cell's output is a traceback"
    if article.select(".cell_output .stderr"):
        yield "a cell's output is on stderr"
    for problem in article.select(".problematic, .system-message, span.error"):
        yield f"docutils error: {problem.get_text()[:80]!r}"

    for image in article.find_all("img"):
        alt = image.get("alt", "").strip()
        if len(alt) < 10 or FILE_NAME.fullmatch(alt):
            yield f"alt text {alt!r} of {image.get('src')} says nothing"

    for tag, attribute in LOADED.items():
        for element in page.find_all(tag):
            if urlparse(element.get(attribute, "")).netloc:
                yield f"loads {element[attribute]} from a third party"
    for element in page.find_all("link"):
        if element.get("rel") != ["canonical"] and urlparse(element["href"]).netloc:
            yield f"loads {element['href']} from a third party"

    for element in article.find_all("a", href=True):
        url = urlparse(element["href"])
        if not url.scheme and not url.netloc and url.path:
            target = (path.parent / unquote(url.path)).resolve()
            within = unquote(url.fragment) if target.suffix == ".html" else ""
            if not target.exists() or (within and within not in identifiers(target)):
                yield f"broken link to {element['href']}"
        elif not url.path and url.fragment and not page.find(id=unquote(url.fragment)):
            yield f"broken link to {element['href']}"

    # The exported notebooks count equations and figures on their own: hold them to the page.
    for number in article.select(".eqno, .caption-number"):
        owner = number.find_parent(id=True)
        label = owner["id"].removeprefix("equation-") if owner else ""
        shown = re.sub(r"[^\d.]", "", number.get_text()).strip(".")
        if label in numbering() and shown != numbering()[label]:
            yield f"{label} is {shown} here and {numbering()[label]} in the notebook"

    for element in article.select("pre, code, script, mjx-container, .math"):
        element.decompose()
    for raw in RAW_MARKUP.finditer(article.get_text()):
        yield f"raw mark-up {raw[0]!r}"


def main(site: Path) -> int:
    pages = {
        path: BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
        for path in sorted((site / "book").glob("*.html"))
    }
    found = []
    total = 0
    for path, page in pages.items():
        code = visible_code(page)
        total += len(code)
        page_faults = [*code_faults(path.stem, code), *faults(path, page)]
        found += [f"{path.relative_to(site)}: {fault}" for fault in page_faults]
    if total > MAX_CODE_LINES:
        found.append(f"{total} lines of code of the book are not folded, more than {MAX_CODE_LINES}")
    print("\n".join([*found, f"check_html: {len(pages)} pages, {len(found)} faults"]))
    return 1 if found or not pages else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
