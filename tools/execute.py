"""Execute the chapters, each of them once: the book shows, and the tests compare, what this one run has put out.

    python tools/execute.py              # every chapter that has changed, or all if the library has
    python tools/execute.py 03_metric    # some of them

papermill executes the notebooks that `export_notebooks` writes for Colab and Jupyter. Each has one thread, so that its
numbers do not depend on how many cores there are; as many chapters as there are cores run side by side. What they put
out is kept in _build/executed, and given to Jupyter Book as its cache.
"""

import argparse
import hashlib
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from multiprocessing import get_context

import nbformat
import papermill
from export_notebooks import BOOK, chapters, export
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from myst_nb.core.read import read_myst_markdown_notebook
from repository import ROOT
from workers import end_with_parent

from pnp_tutorial.runtime import write_atomically

EXECUTED = ROOT / "_build/executed"
CACHES = ROOT / "_build/execution_cache"
TIMEOUT_S = 600  # of a cell
# The text forms of figures and sounds, which the tests compare and nobody sees.
SUMMARIES = "import sys; sys.path.append({!r}); import summaries; summaries.register()"


@cache
def library_key() -> str:
    """Hash of everything that a chapter's outputs depend on, besides its own cells."""
    digest = hashlib.sha256((ROOT / "requirements.lock").read_bytes())
    for path in [ROOT / "tools/summaries.py", *sorted((ROOT / "pnp_tutorial").rglob("*"))]:
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def source(chapter: str) -> nbformat.NotebookNode:
    """A chapter's notebook as MyST-NB reads it."""
    return read_myst_markdown_notebook((BOOK / f"{chapter}.md").read_text(encoding="utf-8"))


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def key(chapter: str) -> str:
    cells = "\0".join(cell.source for cell in code_cells(source(chapter)))
    return hashlib.sha256(f"{library_key()}\0{cells}".encode()).hexdigest()


def execute(chapter: str) -> nbformat.NotebookNode:
    """The executed notebook of a chapter: the last one, if nothing that it depends on has changed since."""
    path, wanted = EXECUTED / f"{chapter}.ipynb", key(chapter)
    if path.exists():
        notebook = nbformat.read(path, as_version=4)
        if notebook.metadata.get("key") == wanted:
            return notebook
    os.environ["OMP_NUM_THREADS"] = "1"
    EXECUTED.mkdir(parents=True, exist_ok=True)
    notebook = export(chapter)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(SUMMARIES.format(str(ROOT / "tools"))))
    notebook = papermill.execute_notebook(notebook, None, cwd=EXECUTED, progress_bar=False, execution_timeout=TIMEOUT_S)
    notebook.metadata["key"] = wanted
    write_atomically({path: nbformat.writes(notebook).encode()})
    return notebook


def worker() -> None:
    """Keep what kernels say of themselves, which is nothing to a reader, in a file."""
    end_with_parent()
    EXECUTED.mkdir(parents=True, exist_ok=True)
    log = os.open(EXECUTED / "kernels.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, sys.stderr.fileno())


def seconds(notebook: nbformat.NotebookNode) -> float:
    return notebook.metadata.papermill.duration


def with_outputs(chapter: str, executed: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A chapter's notebook as MyST-NB reads it, with the outputs of the executed one."""
    notebook = source(chapter)
    notebook.metadata |= {name: value for name, value in executed.metadata.items() if name == "widgets"}
    _, _, *cells = code_cells(executed)  # those that register summaries, and install the package on Colab
    for cell, done in zip(code_cells(notebook), cells, strict=True):
        cell.outputs, cell.execution_count = done.outputs, done.execution_count
    return notebook


def give_to_jupyter_book(chapter: str, executed: nbformat.NotebookNode) -> None:
    """Put a chapter into the cache in which Jupyter Book looks before it would execute the chapter itself."""
    bundle = CacheBundleIn(
        with_outputs(chapter, executed), str(BOOK / f"{chapter}.md"), data={"execution_seconds": seconds(executed)}
    )
    get_cache(CACHES / library_key()).cache_notebook_bundle(bundle, check_validity=False, overwrite=True)


def main(names: list[str], jobs: int) -> int:
    failed = []
    largest_first = sorted(names, key=lambda chapter: -(BOOK / f"{chapter}.md").stat().st_size)
    pool = ProcessPoolExecutor(jobs, get_context("spawn"), worker)
    try:
        tasks = {pool.submit(execute, chapter): chapter for chapter in largest_first}
        for task in as_completed(tasks):
            chapter = tasks[task]
            try:
                notebook = task.result()
            except Exception as error:  # of a cell, of a kernel, of this file: the other chapters go on
                failed.append(chapter)
                print(f"{chapter}: {error}", file=sys.stderr, flush=True)
                continue
            give_to_jupyter_book(chapter, notebook)
            print(f"{chapter}: {seconds(notebook):.0f} s", flush=True)
    finally:
        pool.shutdown(cancel_futures=True)  # whoever interrupts waits for what has begun, and no more
    if failed:
        print(f"not executed: {', '.join(sorted(failed))}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("chapters", nargs="*", help="names such as 03_metric; all, if none is given")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="chapters side by side")
    arguments = parser.parse_args()
    if unknown := set(arguments.chapters) - set(chapters()):
        parser.error(f"expected chapters of {', '.join(chapters())}, got {', '.join(sorted(unknown))}")
    sys.exit(main(arguments.chapters or chapters(), arguments.jobs))
