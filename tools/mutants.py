"""Plant bugs in the library, one at a time, and see whether its unit tests find them.

    python tools/mutants.py                # of every module that is missing from the results
    python tools/mutants.py metric losses  # of these, again if they are there
    python tools/mutants.py --sample 8 training

cosmic-ray knows the bugs: another operator, comparison or number, a condition turned round, a loop that does not run.
Of the places of a module where it could plant one, 16 are drawn, and one bug for each: the same for the same code.
Each is planted in a copy of the last commit, and the module's tests run there, the quickest first, until one fails, or
for three times the processor's time that they take without the bug. Bugs in annotations are none, and are not drawn.

What was found is kept in pnp_tutorial/results/mutants.json, module by module.
Each bug that survives wants a verdict, "equivalent: why", or "killed since by" and the name of a test:

    python tools/mutants.py --verdict metric 75 "killed since by tests/test_metric.py::test_gram"

The exit status tells whether each has one.
"""

import argparse
import ast
import difflib
import importlib
import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names
from measured import about
from repository import ROOT

from pnp_tutorial.runtime import read_results, write_results

RESULTS = ROOT / "pnp_tutorial/results/mutants.json"
SEED = 21
ROOMS = {  # files that are one module here; of others, the name is the file
    "dataset": "dataset_config store dataset",
    "training": "training_config objective checkpoint training",
    "matching": "search uncertainty matching",
}
WAIT = 10  # times its seconds of a processor a test may take on a busy machine
# Of each module: the files of its tests, in the order in which they run.
TESTS = {
    "damping": "damping",
    "losses": "losses borders",
    "synthesizer": "synthesizer borders",
    "metric": "metric",
    "drum": "drum",
    "path_sums": "scattering scattering_properties",
    "scattering": "scattering scattering_properties",
    "dataset": "dataset",
    "training": "training",
    "matching": "matching",
}
PYTEST = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
CONTEXT = multiprocessing.get_context("fork")  # torch and others are imported once


class Mutant(NamedTuple):
    room: str  # file without its ending
    line: int
    operator: str
    code: str  # of the whole file


def meaning(code: str) -> str | None:
    """What a module does: its syntax tree without annotations; None if it is no Python, as {%this} for {**this}."""
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return None
    for node in ast.walk(tree):
        if getattr(node, "annotation", None):
            node.annotation = ast.Constant(None)
        if getattr(node, "returns", None):
            node.returns = None
    return ast.dump(tree)


def draw(name: str, codes: dict[str, str], size: int) -> tuple[int, list[Mutant]]:
    """How many places of the files of a module could hold a bug, and a sample of bugs at different places."""
    places = defaultdict(list)
    for room, code in codes.items():
        nodes = list(ast_nodes(get_ast(code)))
        for operator in operator_names():
            kind = get_operator(operator)
            if not kind.arguments():
                found = (span for node in nodes for span in kind().mutation_positions(node))
                for occurrence, span in enumerate(found):
                    places[room, span].append((operator, occurrence))
    generator, sample = random.Random(f"{SEED} {name}"), []
    for (room, (start, _)), bugs in generator.sample(sorted(places.items()), len(places)):
        operator, occurrence = generator.choice(bugs)
        mutated = mutate_code(codes[room], get_operator(operator)(), occurrence)
        if mutated and meaning(mutated) not in (None, meaning(codes[room])):
            sample.append(Mutant(room, start[0], operator.removeprefix("core/"), mutated))
        if len(sample) == size:
            break
    return len(places), sample


class QuickestFirst:
    """Plugin of pytest: the quickest tests first, by the seconds that each took when there was no bug."""

    def __init__(self, file: Path) -> None:
        self.file, self.is_new = file, not file.exists()
        self.seconds: dict[str, float] = defaultdict(float)
        if not self.is_new:
            self.seconds |= json.loads(file.read_text(encoding="utf-8"))

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=lambda item: self.seconds[item.nodeid])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += report.duration

    def pytest_sessionfinish(self) -> None:
        if self.is_new:
            self.file.write_text(json.dumps(self.seconds), encoding="utf-8")


def pytest_in(copy: Path, tests: list[str], limit: int) -> None:
    """Run tests on the library of a copy, in a process of its own, and end it with their status, or by SIGXCPU."""
    os.setsid()
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
    output = os.open(copy / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    here = (f"{ROOT}/pnp_tutorial", f"{ROOT}/tools")
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(here):
            del sys.modules[name]
    sys.path[:] = [str(copy), *(path for path in sys.path if path not in (str(ROOT), f"{ROOT}/tools"))]
    os.environ |= {"PYTHONPATH": str(copy), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # plugins take longer than tests
    os.chdir(copy)
    library = importlib.import_module("pnp_tutorial")
    assert Path(library.__file__ or "").is_relative_to(copy)
    status = pytest.main([*PYTEST, *tests], [QuickestFirst(copy / "seconds.json")])
    os._exit(int(status))


def run(copy: Path, tests: list[str], limit: int = 3600) -> int | None:
    """Exit status of pytest: 0 if all tests passed; None if they took longer than `limit` seconds of a processor."""
    process = CONTEXT.Process(target=pytest_in, args=(copy, tests, limit))
    process.start()
    try:
        process.join(WAIT * limit)
    finally:  # also if somebody interrupts, which a group of its own does not hear
        if process.exitcode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
    return None if process.exitcode in (-signal.SIGXCPU, -signal.SIGKILL) else process.exitcode


def changed(code: str, mutated: str) -> list[str]:
    lines = difflib.unified_diff(code.splitlines(), mutated.splitlines(), n=0, lineterm="")
    return [line for line in lines if line[0] in "+-" and line[:3] not in ("+++", "---")]


def try_module(name: str, copy: Path, size: int) -> dict[str, Any]:
    files = {room: copy / f"pnp_tutorial/{room}.py" for room in ROOMS.get(name, name).split()}
    codes = {room: file.read_text(encoding="utf-8") for room, file in files.items()}
    tests = [f"tests/test_{test}.py" for test in TESTS[name].split()]
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    (copy / "seconds.json").unlink(missing_ok=True)
    if run(copy, tests) != 0:
        raise RuntimeError(f"the tests of {name} fail without a bug, too")
    limit = 10 + 3 * int(resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before)
    places, sample = draw(name, codes, size)
    outcomes, survivors = [], []
    for mutant in sample:
        files[mutant.room].write_text(mutant.code, encoding="utf-8")
        outcomes.append(run(copy, tests, limit))
        files[mutant.room].write_text(codes[mutant.room], encoding="utf-8")
        if outcomes[-1] == 0:
            row = {"file": f"pnp_tutorial/{mutant.room}.py", "line": mutant.line, "operator": mutant.operator}
            survivors.append(row | {"diff": changed(codes[mutant.room], mutant.code), "verdict": None})
        print(f"{mutant.room}:{mutant.line} {mutant.operator}: {outcomes[-1]}", flush=True)
    return {
        "tests": tests,
        "places": places,
        "planted": len(sample),
        "killed": len(sample) - len(survivors),
        "timed_out": outcomes.count(None),
        "survivors": survivors,
        "seconds": round(time.monotonic() - start),
        **about(),
        "commit": subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=copy, text=True).strip(),
    }


def results() -> dict[str, dict[str, Any]]:
    return read_results(RESULTS) if RESULTS.exists() else {}


def judge(name: str, line: str, verdict: str) -> None:
    """Keep what is said of the survivors of a line."""
    kept = results()
    judged = [each for each in kept.get(name, {"survivors": []})["survivors"] if str(each["line"]) == line]
    if not judged:
        raise SystemExit(f"no bug of line {line} of {name} has survived")
    for survivor in judged:
        survivor["verdict"] = verdict
    write_results(RESULTS, kept, indent=1)


def main(names: list[str], size: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["git", "clone", "--quiet", str(ROOT), folder], check=True)
        for name in names or TESTS:
            if names or name not in results():
                row = try_module(name, Path(folder), size)
                write_results(RESULTS, results() | {name: row}, indent=1)  # with the verdicts of meanwhile
    for name, row in results().items():
        print(f"{name}: {row['killed']} of {row['planted']} killed")
    return 0 if all(survivor["verdict"] for row in results().values() for survivor in row["survivors"]) else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", help=f"all that are missing, if none is given: {', '.join(TESTS)}")
    parser.add_argument("--sample", type=int, default=16, help="bugs that are planted in each")
    parser.add_argument("--verdict", nargs=3, metavar=("MODULE", "LINE", "WORDS"), help="on a bug that has survived")
    arguments = parser.parse_args()
    if arguments.verdict:
        judge(*arguments.verdict)
        sys.exit()
    if unknown := set(arguments.modules) - set(TESTS):
        parser.error(f"expected modules of {', '.join(TESTS)}, got {', '.join(sorted(unknown))}")
    sys.exit(main(arguments.modules, arguments.sample))
