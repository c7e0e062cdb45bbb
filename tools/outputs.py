"""The numbers of the chapters, kept as text beside their sources: what executing must put out again.

    python tools/outputs.py              # write book/outputs/*.txt anew; a change then shows in the diff
    python tools/outputs.py 03_metric

Kept is the text that a cell prints or shows, and what `summaries` tells of its figures and sounds. A cell tagged
`nbval-ignore-output` is left out: it tells the time, say, or the course of a tiny training. Numbers may differ by 10⁻⁴
of their size, or by one in the last of four decimal digits or more; a cell whose numbers depend more on the machine
states by how much, as the option `tolerance` of its source.
"""

import re
import sys
from itertools import zip_longest

from bs4 import BeautifulSoup
from execute import code_cells, execute, with_outputs
from export_notebooks import BOOK, chapters
from nbformat import NotebookNode
from nbformat.v4 import new_output

OUTPUTS = BOOK / "outputs"
HEAD = "=== "
TOLERANCE = 1e-4
ADDRESS = re.compile(r" at 0x[0-9a-f]+")
NUMBER = re.compile(r"(\d+(?:\.\d*)?(?:e[-+]?\d+)?)")


def table(html: str) -> str:
    """The cells of a table, a line a row."""
    rows = BeautifulSoup(html, "html.parser").find_all("tr")
    return "\n".join(" | ".join(" ".join(cell.stripped_strings) for cell in row.find_all(["th", "td"])) for row in rows)


def text(cell: NotebookNode) -> str:
    """What a cell has put out, as lines of text."""
    parts, printing = [], False
    for output in cell.outputs:
        was_printing, printing = printing, output.output_type == "stream"
        if printing and was_printing:  # one text: where a kernel cuts it depends on the time
            parts[-1] += output.text
            continue
        if printing:
            parts.append(output.text)
            continue
        data = output.get("data", {})
        if "<table" in data.get("text/html", ""):
            parts.append(table(data["text/html"]))
        elif "text/plain" in data:
            parts.append(data["text/plain"])
    lines = ADDRESS.sub("", "\n".join(part.strip("\n") for part in parts if part.strip())).splitlines()
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

    If the words differ, or one number differs by more, the line stays as it is.
    """
    parts, old_parts = NUMBER.split(new), NUMBER.split(old)  # words and numbers take turns
    if [word.split() for word in parts[::2]] != [word.split() for word in old_parts[::2]]:
        return new
    pairs = zip(parts[1::2], old_parts[1::2], strict=True)
    return old if all(abs(float(a) - float(b)) <= allowed(b, tolerance) for a, b in pairs) else new


def allowed(number: str, tolerance: float) -> float:
    """By how much a number, as it is printed, may differ.

    By a share of it; and of a decimal fraction of four digits or more, as of all in a cell that states a tolerance, the
    last digit by one, as rounding makes it.
    """
    mantissa, _, exponent = number.partition("e")
    n_digits, decimals = len(mantissa.replace(".", "").lstrip("0")), mantissa.partition(".")[2]
    last_digit = 10.0 ** (int(exponent or 0) - len(decimals))
    may_round = "." in mantissa and (n_digits >= 4 or tolerance > TOLERANCE)
    return max(abs(float(number)) * tolerance, 1.01 * last_digit if may_round else 0.0)


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
