"""Promises that a test of `make test` holds: what it counts, for the page that tells of them all."""

import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from repository import ROOT
from trials import Trial


def tests(*chosen: str) -> dict[str, Any]:
    """How many tests of some files there are, and how many of them pass; one that is skipped is no trial."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *chosen]
        subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
        cases = ElementTree.parse(report).getroot().findall(".//testcase")
    run = [case for case in cases if case.find("skipped") is None]
    failed = [str(case.get("name")) for case in run if len(case.findall("failure") + case.findall("error"))]
    return {"trials": len(run), "kept": len(run) - len(failed), "broken": failed}


PARTS = {
    "ways": {
        "seldom": Trial(
            "Ways that are seldom taken lead to the same numbers",
            "`--info`, `--verify`, Ctrl-C, two tasks as SLURM starts them, branches for a GPU on tensors that say they are "
            "on one, vmap of jvp, workers of a DataLoader by fork and by spawn, workers of a study that is killed",
            partial(tests, "tests/test_ways.py"),
        )
    }
}
