"""Where the book is published. Known to the publishing workflow; nothing hard-codes an owner."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def repository_url() -> str | None:
    """URL of the GitHub repository: from the environment, else the git remote, else None."""
    url = os.environ.get("BOOK_REPOSITORY_URL")
    if not url:
        command = ["git", "remote", "get-url", "origin"]
        try:
            url = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8").stdout.strip()
        except FileNotFoundError:  # git is not needed to build the book
            return None
        url = url.replace("git@github.com:", "https://github.com/")
    url = url.rstrip("/").removesuffix(".git")
    return url if url.startswith("https://github.com/") else None
