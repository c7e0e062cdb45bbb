"""Check the rendered book as a reader meets it: python tools/check_html.py _build/html

Sphinx warns about what it cannot build, not about what came out wrong. Each fault is one line,
and any fault makes the exit status 1.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlparse

from bs4 import BeautifulSoup
from export_notebooks import numbering

MAX_BYTES = 1_000_000
MAX_BYTES_WITH_AUDIO = 3_000_000  # one second of sound is 60 kB of HTML
RAW_MARKUP = re.compile(r"\{(eq|numref|ref|doc|cite:?\w*)\}`|:::|\[\?\?\]|^\$\$", re.MULTILINE)
FILE_NAME = re.compile(r"[\w./-]*([0-9a-f]{16,}|\.(png|svg|jpe?g))[\w.]*")
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "audio": "src"}


def faults(path: Path, site: Path) -> Iterator[str]:
    html = path.read_text(encoding="utf-8")
    page = BeautifulSoup(html, "html.parser")
    article = page.find("article") or page

    limit = MAX_BYTES_WITH_AUDIO if article.find("audio") else MAX_BYTES
    if len(html.encode()) > limit:
        yield f"{len(html.encode())} bytes of HTML, more than {limit}"

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
            if not (path.parent / unquote(url.path)).resolve().exists():
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
    pages = sorted((site / "book").glob("*.html"))
    found = [f"{page.relative_to(site)}: {fault}" for page in pages for fault in faults(page, site)]
    print("\n".join([*found, f"check_html: {len(pages)} pages, {len(found)} faults"]))
    return 1 if found or not pages else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
