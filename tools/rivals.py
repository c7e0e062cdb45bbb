"""Losses of full length that a GPU trains in minutes and two cores in a day: JTFS, and one path of it at a time.

    python tools/rivals.py --minutes 12  # the next rows, in the order of what to know first

They have the drums, the network, the number of steps and the falling rate of the small rows of chapter 8
(tools/study.py), beside whose roots they belong. Their learning rate is the best of three, by one epoch each. At the
end of the minutes the row in hand stops; called again, it goes on with the epoch that it was in. What a row is, and how
it is kept: tools/rows.py.
"""

import argparse
import signal
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import random_paths  # noqa: F401  # the ear "paths"
import study
from rows import Study

from pnp_tutorial.dataset import build
from pnp_tutorial.runtime import select_device
from pnp_tutorial.training import TrainingConfig

PATHS = "data/study-paths.zarr"  # the drums of the study, of that ear
SEEDS = (0, 1)
RATES = (1e-3, 3e-3, 1e-2)
# Each Δ, in features, is small beside the distances that are left.
LOSSES: dict[str, dict[str, Any]] = {
    "jtfs": {"loss": "spectral", "root": 1.0},
    "paths": {"loss": "spectral", "root": 0.1, "ear": "paths", "data": PATHS},
}


def prepare(path: str) -> None:
    if path == PATHS:
        build(replace(RIVALS.data, data=PATHS, ear="paths", metric=False))
    else:
        study.prepare(path)


RIVALS = Study("rivals", "study.yaml", prepare)


def rows() -> Iterator[dict[str, TrainingConfig]]:
    """What is done, one after another: short runs of a loss, then its row; the rates are read when they are known."""
    base = replace(RIVALS.of(TrainingConfig), **study.SMALL)
    for seed in SEEDS:
        for loss, change in LOSSES.items():
            of_loss = replace(base, **change)
            for rate in RATES:
                name = f"tune-{loss}-{rate:g}"
                yield RIVALS.in_folders({name: replace(of_loss, n_epochs=1, learning_rate=rate)})
            best = RIVALS.tuned(loss, RATES)
            row = replace(of_loss, **study.FALLING, learning_rate=best, seed=seed)
            yield RIVALS.in_folders({f"{loss}-{seed}": row})


def refuse_cpu() -> None:
    """Two cores need an hour for an epoch of JTFS: in a few minutes they would begin it again and again."""
    if select_device(RIVALS.data.device).type == "cpu":
        raise SystemExit("rivals: expected a GPU, and there is none: in its minutes, a CPU finishes no epoch")


class Late(BaseException):
    """The minutes are over."""


def late(*_: object) -> None:
    raise Late


def main(minutes: float) -> None:
    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, 60 * minutes)
    try:
        for row in rows():
            RIVALS.do_all(row)
    except Late:
        print("stopped; called again, it goes on")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=12, help="after which it stops; it goes on when called again")
    arguments = parser.parse_args()
    refuse_cpu()
    main(arguments.minutes)
