"""Execute notebooks as a reader on Colab does: python tools/run_on_colab.py FOLDER, inside Colab's image.

It needs nothing but what that image has. Each notebook runs in a fresh kernel and in an empty folder.
"""

import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

TIMEOUT_S = 1800  # of a cell
ON_COLAB = "import google.colab"  # so that a notebook's first cell installs the package


def fault(path: Path) -> str:
    """What went wrong in a notebook, or nothing."""
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(ON_COLAB))
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook, timeout=TIMEOUT_S, kernel_name="python3", resources={"metadata": {"path": folder}}
        )
        try:
            client.execute()
        except Exception as error:  # of a cell or of its kernel: the other notebooks go on
            return str(error)
    return ""


def main(folder: Path) -> int:
    faults = {}
    for path in sorted(folder.glob("*.ipynb")):
        faults[path.name] = fault(path)
        print(f"{path.name}: {faults[path.name] or 'executed'}", flush=True)
    failed = [name for name, said in faults.items() if said]
    print(f"{len(faults)} notebooks, not executed: {', '.join(failed) or 'none'}")
    return 1 if failed or not faults else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
