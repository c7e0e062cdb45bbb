"""Where the book is published, which the publishing workflow knows and nothing hard-codes; at which commit; and a path
that a tool is given.
"""

import argparse
import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def git(*command: str) -> str:
    """What git answers; nothing if it cannot, for it is not needed."""
    try:
        return subprocess.run(["git", *command], cwd=ROOT, capture_output=True, encoding="utf-8").stdout.strip()
    except FileNotFoundError:
        return ""


def path_argument(about: str | None, meaning: str) -> Path:
    """The one argument of a command line, a path, which is described by the first paragraph of `about`."""
    parser = argparse.ArgumentParser(description=(about or "").partition("\n\n")[0])
    parser.add_argument("path", type=Path, help=meaning)
    return parser.parse_args().path


def commit() -> str | None:
    """Short hash of the commit, with "-dirty" if files differ from it; None without git."""
    return git("describe", "--always", "--dirty", "--exclude", "*") or None


def repository_url() -> str | None:
    """URL of the GitHub repository: from the environment, else the git remote, else None."""
    url = os.environ.get("BOOK_REPOSITORY_URL") or git("remote", "get-url", "origin")
    url = url.replace("git@github.com:", "https://github.com/").rstrip("/").removesuffix(".git")
    return url if url.startswith("https://github.com/") else None
