"""Which version this is: a release's number, and of a checkout the commit as well."""

from __future__ import annotations

import json
import subprocess
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import scoreopt_defense

__all__ = ["commit", "described"]


def described() -> str:
    """As in ``0.1.0 (commit 1a2b3c4d5e6f, changed)``."""
    of = commit()
    return scoreopt_defense.__version__ + (f" (commit {of})" if of else "")


def commit() -> str | None:
    """That of an editable install, or of one from a repository's address; None of a release.

    Of an editable install it is that of the checkout which was imported, be it another one by
    PYTHONPATH. ``changed`` follows where files of it differ from the commit.

    Reference:
        PEP 610, which says what an installer records of where a package came from.
    """
    try:
        origin = json.loads(distribution("scoreopt-defense").read_text("direct_url.json") or "{}")
    except PackageNotFoundError:
        return None
    if "vcs_info" in origin:
        return str(origin["vcs_info"]["commit_id"])[:12]
    if not origin.get("dir_info", {}).get("editable"):
        return None
    return _of_checkout(Path(scoreopt_defense.__file__).parents[1])


def _of_checkout(folder: Path) -> str | None:
    """None without git, or where the folder is no checkout."""
    ask = ["git", "-C", str(folder), "describe", "--always", "--abbrev=12", "--exclude=*"]
    try:
        found = subprocess.run([*ask, "--dirty=, changed"], capture_output=True, text=True)
    except OSError:
        return None
    return found.stdout.strip() or None
