"""Hold what the library promises to the test, for as long as that takes.

    python tools/torture.py                    # every trial that is missing
    python tools/torture.py killed damaged-bank  # those whose names begin so

A trial is done once, and its figures are kept as JSON in pnp_tutorial/results/torture, with machine, versions and
commit; delete a file to do its trial again. The exit status tells whether all promises were kept.
"""

import os
import sys

import torch
import torture_damaged
import torture_killed
import torture_rubbish
import torture_starved
from rows import refuse_unknown
from trials import RESULTS, Trial, do

from pnp_tutorial.runtime import read_results

PARTS: dict[str, dict[str, Trial]] = {
    "killed": torture_killed.TRIALS,
    "starved": torture_starved.TRIALS,
    "damaged": torture_damaged.TRIALS,
    "rubbish": torture_rubbish.TRIALS,
}


def named() -> dict[str, tuple[str, str, Trial]]:
    """By the name of its file: part, name and trial."""
    return {
        f"{part}-{name.replace(', ', '-').replace(' ', '_')}": (part, name, trial)
        for part, trials in PARTS.items()
        for name, trial in trials.items()
    }


def main(prefixes: list[str]) -> int:
    torch.set_num_threads(1)  # what is compared bit for bit is computed in one
    broken = []
    refuse_unknown(prefixes, named())
    wanted = {file: trial for file, trial in named().items() if file.startswith(tuple(prefixes) or ("",))}
    missing = [file for file in wanted if not (RESULTS / f"{file}.json").exists()]
    if any(wanted[file][0] == "starved" for file in missing) and os.geteuid():
        raise SystemExit(f"expected root, which mounts disks for the starved trials, got user {os.geteuid()}")
    for file, (part, name, trial) in wanted.items():
        path = RESULTS / f"{file}.json"
        row = read_results(path) if path.exists() else do(file, part, name, trial)
        print(f"{file}: {row['kept']} of {row['trials']} kept, {row['seconds']:.0f} s", flush=True)
        if row["kept"] < row["trials"]:
            broken.append(file)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
