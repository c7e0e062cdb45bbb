"""What `make torture` is made of: trials, each of which holds a promise of the library to the test, and its figures."""

from collections.abc import Callable
from typing import Any, NamedTuple

from repository import ROOT

RESULTS = ROOT / "pnp_tutorial/results/torture"


class Trial(NamedTuple):
    """A promise, and what tests it.

    `run` returns figures: "trials", in how many of them the promise was "kept", and whatever else is worth knowing.
    `mended` says what the trial brought to light, and what was done about it.
    """

    promise: str
    how: str
    run: Callable[[], dict[str, Any]]
    mended: str = ""
