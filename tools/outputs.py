"""The numbers of the chapters, kept as text beside their sources: what executing must put out again.

    python tools/outputs.py              # write book/outputs/*.txt anew; a change then shows in the diff
    python tools/outputs.py 03_metric

Kept is the text that a cell prints or shows, and of its pictures the mean grey of 12 × 6 tiles. A cell tagged
`nbval-ignore-output`, which tells the time, say, is left out. Numbers may differ by 10⁻⁴ of their size; a cell whose
numbers depend more on the machine states by how much, as the option `tolerance` of its source.
"""

import base64
import io
import re
import sys
from itertools import zip_longest

import numpy as np
from bs4 import BeautifulSoup
from execute import code_cells, execute, with_outputs
from export_notebooks import BOOK, chapters
from nbformat import NotebookNode
from nbformat.v4 import new_output
from PIL import Image

OUTPUTS = BOOK / "outputs"
HEAD = "=== "
TOLERANCE = 1e-4
TILES = (12, 6)  # of a picture, across and down
PICTURE = "picture "
GREYS = 4.0  # of 255, by which a tile may differ
ADDRESS = re.compile(r" at 0x[0-9a-f]+")
NUMBER = re.compile(r"(\d+(?:\.\d+)?(?:e[-+]?\d+)?)")


def picture(png: str) -> str:
    """Mean grey, from 0 to 255, of the tiles of a PNG in base64, a line a row."""
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("L").resize(TILES, Image.Resampling.BOX)
    return "\n".join(PICTURE + " ".join(f"{value:3}" for value in row) for row in np.asarray(image))


def table(html: str) -> str:
    """The cells of a table, a line a row."""
    rows = BeautifulSoup(html, "html.parser").find_all("tr")
    return "\n".join(" | ".join(" ".join(cell.stripped_strings) for cell in row.find_all(["th", "td"])) for row in rows)


def text(cell: NotebookNode) -> str:
    """What a cell has put out, as lines of text."""
    parts = []
    for output in cell.outputs:
        if output.output_type == "stream":
            parts.append(output.text)
            continue
        data = output.get("data", {})
        if "image/png" in data:
            parts.append(picture(data["image/png"]))
        elif "<table" in data.get("text/html", ""):
            parts.append(table(data["text/html"]))
        elif "text/plain" in data:
            parts.append(data["text/plain"])
    lines = ADDRESS.sub("", "\n".join(part.rstrip("\n") for part in parts if part.strip())).splitlines()
    return "\n".join(line.rstrip() for line in lines)


def is_kept(cell: NotebookNode) -> bool:
    """Does a cell put out anything that must not drift?"""
    return "nbval-ignore-output" not in cell.metadata.get("tags", []) and text(cell) != ""


def title(cell: NotebookNode) -> str:
    """The last statement of a cell, as far as its first line tells it: what most often puts something out."""
    return [line for line in cell.source.splitlines() if line[:1].isalpha()][-1]


def write(chapter: str) -> None:
    """Keep what a chapter puts out now."""
    OUTPUTS.mkdir(exist_ok=True)
    cells = code_cells(with_outputs(chapter, execute(chapter)))
    sections = "\n".join(f"{HEAD}{title(cell)}\n{text(cell)}\n" for cell in cells if is_kept(cell))
    (OUTPUTS / f"{chapter}.txt").write_text(sections, encoding="utf-8")


def read(chapter: str) -> list[str]:
    """What each cell of a chapter of which something is kept must put out."""
    content = (OUTPUTS / f"{chapter}.txt").read_text(encoding="utf-8")
    return [section.split("\n", 1)[1].strip("\n") for section in f"\n{content}".split(f"\n{HEAD}")[1:]]


def as_before(new: str, old: str, tolerance: float) -> str:
    """A line with the old numbers in place of those that differ from them no more than is allowed.

    Where a tolerance is stated, the last digit of a decimal fraction may differ by one, as rounding makes it. If the
    words differ, the line stays as it is.
    """
    parts, old_parts = NUMBER.split(new), NUMBER.split(old)  # words and numbers take turns
    if [word.split() for word in parts[::2]] != [word.split() for word in old_parts[::2]]:
        return new
    for i in range(1, len(parts), 2):
        a, b = float(parts[i]), float(old_parts[i])
        allowed = max(abs(a), abs(b)) * tolerance
        if old.startswith(PICTURE):
            allowed = max(GREYS, 255 * tolerance)
        elif tolerance > TOLERANCE and "." in old_parts[i]:
            digits, _, exponent = old_parts[i].partition(".")[2].partition("e")
            allowed = max(allowed, 1.01 * 10.0 ** (int(exponent or 0) - len(digits)))
        if abs(a - b) > allowed:
            return new
    return old


def pair(chapter: str) -> tuple[NotebookNode, list[str]]:
    """A notebook whose cells hold the outputs that are kept of them, and what each puts out now.

    Both are empty for a cell that is not compared. Raises ValueError if there are more or fewer cells than are kept.
    """
    executed = with_outputs(chapter, execute(chapter))
    cells, kept = code_cells(executed), read(chapter)
    if sum(map(is_kept, cells)) != len(kept):
        n = sum(map(is_kept, cells))
        raise ValueError(f"{chapter}: {n} cells put out something, and {len(kept)} are kept: run `make outputs`")
    now, texts = [], iter(kept)
    for cell in cells:
        old = next(texts) if is_kept(cell) else ""
        lines = zip_longest(text(cell).splitlines() if old else [], old.splitlines(), fillvalue="")
        tolerance = cell.metadata.get("tolerance", TOLERANCE)
        now.append("\n".join(as_before(line, old_line, tolerance) for line, old_line in lines))
        cell.outputs = [new_output("stream", name="stdout", text=old)] if old else []
    return executed, now


if __name__ == "__main__":
    for chapter in sys.argv[1:] or chapters():
        write(chapter)
