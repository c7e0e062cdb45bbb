"""What `make torture` is made of: trials, each of which holds a promise of the library to the test, and its figures."""

import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from measured import about
from repository import ROOT

from pnp_tutorial.runtime import write_results

RESULTS = ROOT / "pnp_tutorial/results/torture"
STATM = Path("/proc/self/statm")  # what this process takes, in pages


class Trial(NamedTuple):
    """A promise, and what tests it.

    `run` returns figures: "trials", in how many of them the promise was "kept", and whatever else is worth knowing.
    `mended` says what the trial brought to light, and what was done about it.
    """

    promise: str
    how: str
    run: Callable[[], dict[str, Any]]
    mended: str = ""


def do(file: str, part: str, name: str, trial: Trial) -> dict[str, Any]:
    """Run a trial, and keep its row under the name of a file."""
    start = time.monotonic()
    figures = trial.run()
    row: dict[str, Any] = {"part": part, "name": name, "promise": trial.promise, "how": trial.how}
    row |= {"mended": trial.mended, **figures, "seconds": round(time.monotonic() - start, 1), **about()}
    write_results(RESULTS / f"{file}.json", row, indent=1)
    return row


def limit_memory(more: int) -> tuple[int, int]:
    """Let this process take so many bytes more than it has, if the system says how much that is: Linux does.

    Returns its limits of before.
    """
    before = resource.getrlimit(resource.RLIMIT_AS)
    if not STATM.exists():
        return before
    pages = int(STATM.read_text(encoding="utf-8").split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, before[1]))
    return before
