"""The study of the arpeggiator: every loss and every damping on a third of the papers' data set, tested all alike.

    python tools/arpeggiator_study.py            # every row that is missing
    python tools/arpeggiator_study.py adaptive   # those whose names begin so

What a row is, and how it is kept: tools/rows.py. The losses keep the learning rate of the short run that came closest.
"""

import sys
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from rows import Row, Study, beginning, refuse_unknown

from pnp_tutorial.dataset import build
from pnp_tutorial.training import TrainingConfig

SEEDS = (0, 1, 2)
RATES = (3e-3, 1e-2, 3e-2)
SECANT = "data/arpeggiator-secant.zarr"  # the same sounds, with metrics of coarse spectra for steps of 0.1
LOSSES: dict[str, dict[str, Any]] = {
    "parameter": {"loss": "parameter"},
    "pnp": {"loss": "pnp"},
    "secant": {"loss": "pnp", "data": SECANT},
    "mss": {"loss": "mss"},
}
# Of which loss, and in what it differs from it.
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "parameter": ("parameter", {}),
    "adaptive": ("pnp", {"damping": "adaptive"}),
    "undamped": ("pnp", {"damping": "constant", "lambda_0": 0.0}),
    "scheduled": ("pnp", {"damping": "scheduled"}),
    "constant": ("pnp", {"damping": "constant"}),
    "secant": ("secant", {"damping": "scheduled"}),
    "mss": ("mss", {}),
}


def prepare(path: str) -> None:
    build(STUDY.data if path != SECANT else replace(STUDY.data, data=SECANT, secant_step=0.1))


STUDY = Study("arpeggiator", "arpeggiator_study.yaml", prepare)


def tuning(losses: Collection[str] = LOSSES) -> dict[str, TrainingConfig]:
    """Short runs of losses at every learning rate."""
    base = replace(STUDY.of(TrainingConfig), n_epochs=2)
    runs = {f"tune-{loss}-{{}}": replace(base, **change) for loss, change in LOSSES.items() if loss in losses}
    return STUDY.at_rates(runs, RATES)


def rows() -> dict[str, Row]:
    """The rows in the order in which they are done: loss, and configuration without a learning rate."""
    base = STUDY.of(TrainingConfig)
    return {
        f"{name}-{seed}": (loss, replace(base, **LOSSES[loss], **change, seed=seed))
        for seed in SEEDS
        for name, (loss, change) in ROWS.items()
    }


def main(prefixes: list[str]) -> None:
    named, short = rows(), tuning()
    refuse_unknown(prefixes, [*named, *short])
    wanted = beginning(named, prefixes)
    STUDY.do_all(beginning(short, prefixes) | tuning({loss for loss, _ in wanted.values()}))
    if wanted:
        STUDY.do_constant()
        STUDY.do_all(STUDY.with_rates(wanted, RATES))


if __name__ == "__main__":
    main(sys.argv[1:])
