"""What is read is never executed, and what runs on GitHub may do no more than it must."""

import ast
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "pnp_tutorial").rglob("*.py"))
WORKFLOWS = {
    path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in (ROOT / ".github/workflows").glob("*.yml")
}

# Modules whose readers execute what they read, or that start programs.
UNSAFE_MODULES = {"pickle", "marshal", "shelve", "dill", "joblib", "cloudpickle", "subprocess", "pty", "code", "runpy"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__", "system", "popen", "spawnv", "execv", "load_module"}
UNSAFE_CALLS |= {"exec_module", "import_module", "full_load", "unsafe_load", "load_all", "read_pickle", "to_pickle"}
# By module and function. An object that the user names on the command line, or in a file of options, is imported.
ALLOWED = {("runtime", "load_object", "exec_module"), ("runtime", "load_object", "import_module")}
# Those two alone may pass a name to it: the user's own.
ASKS = {("__main__", "_object"), ("synthesizer", "find_synthesizer")}


def calls(path):
    """(function that it stands in, name of what is called, the call itself) of every call in a module."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    for call in ast.walk(tree):
        if isinstance(call, ast.Call):
            inside = [each.name for each in functions if each.lineno <= call.lineno <= each.end_lineno]
            name = getattr(call.func, "id", None) or getattr(call.func, "attr", "")
            yield inside[0] if inside else "", name, call


def unsafe(path):
    """What a module does that it may not, in words."""
    said = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        said += [f"imports {name}" for name in names if name.split(".")[0] in UNSAFE_MODULES]
    for inside, name, call in calls(path):
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        what = ast.unparse(call.func)
        bare_method = name == "eval" and not call.args  # that of a network
        if (
            name in UNSAFE_CALLS
            and not bare_method
            and not what.startswith("re.")
            and (path.stem, inside, name) not in ALLOWED
        ):
            said.append(f"calls {what}")
        if what == "torch.load" and given.get("weights_only") != "True":
            said.append("calls torch.load without weights_only")
        if what in ("yaml.load", "np.load") or "allow_pickle" in given or given.get("shell", "False") != "False":
            said.append(f"calls {ast.unparse(call)}")
        if name == "load_object" and (path.stem, inside) not in ASKS:
            said.append(f"calls load_object in {inside}")
    return said


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_no_module_executes_what_it_reads(path):
    assert unsafe(path) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from subprocess import run",
        "eval(text)",
        "os.system(text)",
        "torch.load(path)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, Loader)",
        "run(text, shell=True)",
        "load_object(header['synthesizer'])",
        "importlib.import_module(name)",
    ],
)
def test_what_would_execute_is_seen(tmp_path, code):
    (tmp_path / "module.py").write_text(f"def f():\n    return 0\n\n{code}\n", encoding="utf-8")
    assert unsafe(tmp_path / "module.py")


def test_those_who_may_import_are_there():
    """Else what is allowed would be allowed to nobody, and the tests above to a name that has changed."""
    found = {(path.stem, inside, name) for path in MODULES for inside, name, _ in calls(path)}
    assert found >= ALLOWED
    assert found >= {(module, inside, "load_object") for module, inside in ASKS}


# Of jobs, by workflow, what they may write, and why: all else is read-only.
WRITES = {
    ("compat", "compat"): {"issues"},  # one is opened where dependencies fail
    ("weekly", "weekly"): {"issues"},  # the same
    ("publish", "publish"): {"contents", "pages", "id-token"},  # the branch of notebooks, and the site
    ("release", "release"): {"id-token"},  # by which PyPI knows the workflow
}
JOBS = [(workflow, job) for workflow, content in WORKFLOWS.items() for job in content["jobs"]]


def steps(workflow, job):
    return WORKFLOWS[workflow]["jobs"][job].get("steps", [])


@pytest.mark.parametrize(("workflow", "job"), JOBS)
def test_jobs_may_write_what_they_must(workflow, job):
    content = WORKFLOWS[workflow]
    assert content["permissions"] == {"contents": "read"}
    own = content["jobs"][job].get("permissions", {})
    assert {name for name, access in own.items() if access != "read"} == WRITES.get((workflow, job), set())
    assert "pull_request_target" not in content[True], "YAML takes `on` for true"


@pytest.mark.parametrize(("workflow", "job"), JOBS)
def test_actions_are_pinned_to_a_commit(workflow, job):
    """A tag can be moved to other code; the commit of another action cannot."""
    used = [step["uses"] for step in [WORKFLOWS[workflow]["jobs"][job], *steps(workflow, job)] if "uses" in step]
    elsewhere = [action for action in used if not action.startswith("./")]
    assert [action for action in elsewhere if not re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", action)] == []
    for step in steps(workflow, job):
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False, "what the job runs would find its token"


@pytest.mark.parametrize(("workflow", "job"), JOBS)
def test_no_command_of_a_job_is_made_of_what_strangers_write(workflow, job):
    """A title, a branch or a message is no part of a command: of expressions, only those of the matrix are."""
    commands = [step["run"] for step in steps(workflow, job) if "run" in step]
    expressions = [each for command in commands for each in re.findall(r"\$\{\{(.*?)\}\}", command)]
    assert [each for each in expressions if not each.strip().startswith("matrix.")] == []
