"""Write every chapter as a plain .ipynb, for Jupyter and Colab, which do not know MyST.

    python tools/export_notebooks.py _build/notebooks

Cells keep their code and tags, and what the book folds is folded under the same title. In the prose,
directives become plain Markdown, and references become the numbers that the book shows. What this
file cannot translate is an error, so that no raw mark-up reaches a reader.
"""

import os
import re
from functools import cache
from pathlib import Path
from textwrap import indent
from typing import Any

import jupytext
import nbformat
import yaml
from pybtex.database import parse_file
from repository import ROOT, path_argument, repository_url

BOOK = ROOT / "book"
ADMONITIONS = ["admonition", "note", "tip", "important", "warning"]

DIRECTIVE = re.compile(
    r"^(?P<fence>`{3,}|:{3,})\{(?P<name>[\w-]+)\} *(?P<title>[^\n]*)\n"
    r"(?P<options>(?::[\w-]+:[^\n]*\n)*)(?P<body>.*?)^(?P=fence) *$",
    re.MULTILINE | re.DOTALL,
)
EQUATION = re.compile(r"\$\$(?P<tex>.*?)\$\$ *\((?P<label>[\w-]+)\)", re.DOTALL)
SECTION = re.compile(r"^\((?P<label>[\w-]+)\)=\n(?P<heading>#+ (?P<title>[^\n]+))$", re.MULTILINE)

# What JupyterLab reads of a cell that the book folds.
FOLDED = {
    "hide-input": {"source_hidden": True},
    "hide-cell": {"source_hidden": True, "outputs_hidden": True},
}

# An installed torch or numpy stays: the package states lower bounds only.
INSTALL = """\
import sys

if "google.colab" in sys.modules:
    %pip install --quiet "{requirement}\""""


@cache
def pages() -> list[str]:
    """All pages of the book, in its order."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    return [toc["root"]] + [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]


@cache
def chapters() -> list[str]:
    """Names of the pages that are notebooks."""
    is_notebook = {
        page: (ROOT / f"{page}.md").read_text(encoding="utf-8").startswith("---\njupytext") for page in pages()
    }
    return [Path(page).name for page in pages() if is_notebook[page]]


def requirement() -> str:
    if url := repository_url():
        return f"pnp-tutorial @ git+{url}@{os.environ.get('BOOK_REVISION', 'main')}"
    return "pnp-tutorial"


def page_url(name: str) -> str:
    """Address of another chapter, seen from a notebook."""
    if url := repository_url():
        path = url.removeprefix("https://github.com")
        return f"https://colab.research.google.com/github{path}/blob/notebooks/book/{name}.ipynb"
    return f"{name}.ipynb"


def image_url(path: str) -> str:
    if url := repository_url():
        return f"{url}/raw/{os.environ.get('BOOK_REVISION', 'main')}/book/{path}"
    return f"../../book/{path}"


def options(match: re.Match) -> dict[str, str]:
    return dict(re.findall(r"^:([\w-]+): *(.*)$", match["options"], re.MULTILINE))


@cache
def numbering() -> dict[str, str]:
    """The number of every labelled equation and figure, as Sphinx counts them."""
    numbers: dict[str, str] = {}
    counts: dict[tuple[str, str], int] = {}
    for page in pages():
        match = re.match(r"(\d+)_", Path(page).name)
        chapter = f"{int(match[1])}." if match else ""

        def count(kind: str, label: str, chapter: str = chapter) -> None:
            counts[kind, chapter] = counts.get((kind, chapter), 0) + 1
            numbers[label] = f"{chapter}{counts[kind, chapter]}"

        for cell in jupytext.read(ROOT / f"{page}.md").cells:
            for match in EQUATION.finditer(cell.source):
                count("equation", match["label"])
            for match in DIRECTIVE.finditer(cell.source):
                if match["name"] == "figure":
                    count("figure", options(match).get("name", f"{page} {match['title']}"))
            figure = cell.metadata.get("mystnb", {}).get("figure", {})
            if "caption" in figure:
                count("figure", figure["name"])
    return numbers


@cache
def sections() -> dict[str, tuple[str, str]]:
    """Of every labelled section, the name of its page, and its anchor in a notebook."""
    texts = {Path(page).name: (ROOT / f"{page}.md").read_text(encoding="utf-8") for page in pages()}
    return {m["label"]: (name, anchor(m["title"])) for name, text in texts.items() for m in SECTION.finditer(text)}


def anchor(title: str) -> str:
    """As JupyterLab makes it of a heading."""
    return title.replace(" ", "-")


@cache
def references() -> Any:
    return parse_file(str(BOOK / "references.bib")).entries


def citation(keys: str, textual: bool) -> str:
    """Markdown of {cite:t}`keys` or {cite:p}`keys`."""
    papers = []
    for key in keys.split(","):
        entry = references()[key.strip()]
        names = [" ".join(p.prelast_names + p.last_names) for p in entry.persons["author"]]
        who = names[0] + (f" and {names[1]}" if len(names) == 2 else " et al." * (len(names) > 2))
        text = f"{who} ({entry.fields['year']})" if textual else f"{who}, {entry.fields['year']}"
        text = re.sub(r"[{}]", "", text)
        doi = entry.fields.get("doi")
        url = f"https://doi.org/{doi}" if doi else entry.fields.get("url")
        papers.append(f"[{text}]({url})" if url else text)
    return ", ".join(papers) if textual else f"({'; '.join(papers)})"


def directive(match: re.Match) -> str:
    name, title, body = match["name"], match["title"], match["body"].strip()
    if name in ADMONITIONS:
        text = f"**{title or name.capitalize()}**\n\n{DIRECTIVE.sub(directive, body)}"
        return indent(text, "> ", lambda line: True)
    if name == "dropdown":  # an answer to a question
        return f"<details>\n<summary>{title}</summary>\n\n{DIRECTIVE.sub(directive, body)}\n\n</details>"
    if name == "figure":
        given = options(match)
        number = numbering()[given["name"]]
        return f"![{given['alt']}]({image_url(title)})\n\n*Figure {number}. {body}*"
    if name == "container":  # whose class says where a page puts it
        return body
    if name == "image":  # of a picture with a light and a dark form, the light one
        given = options(match)
        return "" if given.get("class") == "only-dark" else f"![{given['alt']}]({image_url(title)})"
    raise ValueError(f"no plain Markdown for the directive {{{name}}}")


def role(match: re.Match) -> str:
    name, target = match["name"], match["target"]
    if name == "eq":
        return f"({numbering()[target]})"
    if name == "numref":
        return f"Figure {numbering()[target]}"
    if name == "term":  # of the glossary, on a page that is no notebook
        return target.partition(" <")[0]
    if name in ("cite:p", "cite:t"):
        return citation(target, textual=name == "cite:t")
    raise ValueError(f"no plain Markdown for the role {{{name}}}")


def link(match: re.Match) -> str:
    text, name = match["text"], match["page"]
    return f"[{text}]({page_url(name)})" if name in chapters() else text


def section_link(match: re.Match, chapter: str) -> str:
    name, place = sections()[match["label"]]
    page = page_url(name) if name != chapter else ""
    return f"[{match['text']}]({page}#{place})" if name in chapters() else match["text"]


def section(match: re.Match) -> str:
    """The heading of a labelled section, with an anchor, since Colab makes none of headings."""
    return f'<a name="{anchor(match["title"])}"></a>\n\n{match["heading"]}'


def plain_markdown(source: str, chapter: str = "") -> str:
    """Without the mark-up of MyST; a section of the chapter itself is linked within the notebook."""
    source = DIRECTIVE.sub(directive, source)
    source = re.sub(r"\[(?P<text>[^\]]+)\]\((?P<label>[a-z][a-z-]*)\)", lambda m: section_link(m, chapter), source)
    source = SECTION.sub(section, source)
    source = EQUATION.sub(lambda m: f"$${m['tex'].rstrip()} \\tag{{{numbering()[m['label']]}}}\n$$", source)
    source = re.sub(r"\{(?P<name>[\w:]+)\}`(?P<target>[^`]+)`", role, source)
    return re.sub(r"\[(?P<text>[^\]]+)\]\((?P<page>\w+)\.md\)", link, source)


def form(parameters: str) -> str:
    """The cell of parameters such that Colab shows a field for each, which takes any Python expression."""
    lines = []
    for line in parameters.splitlines():
        assignment, _, comment = line.partition("  # ")
        if line.startswith("# "):
            lines.append(f"# @markdown **{line.removeprefix('# ')}**")
            continue
        if comment:
            lines.append(f"# @markdown `{assignment.split()[0]}`: {comment}")
        lines.append(f'{assignment}  # @param {{type:"raw"}}')
    return "\n".join(lines)


def fold(cell: nbformat.NotebookNode, title: str) -> None:
    """Fold a code cell in JupyterLab and in Colab, as its tags say."""
    if "parameters" in cell.metadata["tags"]:
        cell.source = form(cell.source)
    if cell.source.startswith("%%"):
        raise ValueError(
            f"{cell.source.splitlines()[0]} must stay the first line: no title, so the cell cannot be folded"
        )
    cell.source = f"# @title {title}\n{cell.source}"
    cell.metadata["cellView"] = "form"
    cell.metadata["jupyter"] = {}
    for tag in FOLDED.keys() & set(cell.metadata["tags"]):
        cell.metadata["jupyter"] |= FOLDED[tag]


def export(chapter: str) -> nbformat.NotebookNode:
    """The notebook of one chapter, without outputs."""
    notebook = jupytext.read(BOOK / f"{chapter}.md")
    cells = []
    for cell in notebook.cells:
        cells.append(cell)
        if cell.cell_type == "markdown":
            cell.source = plain_markdown(cell.source, chapter)
            continue
        settings = cell.metadata.pop("mystnb", {})
        if FOLDED.keys() & set(cell.metadata.get("tags", [])):
            fold(cell, settings["code_prompt_show"])
        if "caption" in settings.get("figure", {}):
            figure = settings["figure"]
            caption = plain_markdown(f"*Figure {numbering()[figure['name']]}. {figure['caption']}*", chapter)
            cells.append(nbformat.v4.new_markdown_cell(caption))
    install = nbformat.v4.new_code_cell(INSTALL.format(requirement=requirement()))
    notebook.cells = [cells[0], install, *cells[1:]]
    for i, cell in enumerate(notebook.cells):
        cell.id = f"{chapter}-{i}"  # nbformat's own ids are random: every export would differ
    notebook.metadata = {
        "kernelspec": notebook.metadata["kernelspec"],
        "language_info": {"name": "python"},
    }
    notebook.nbformat_minor = 5
    nbformat.validate(notebook)
    return notebook


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for chapter in chapters():
        path = folder / f"{chapter}.ipynb"
        nbformat.write(export(chapter), path)
        print(path)


if __name__ == "__main__":
    main(path_argument(__doc__, "folder of the notebooks"))
