"""Functions of the user's own, which configurations and arguments name."""

from __future__ import annotations

import os
import sys

__all__ = ["find_own_modules"]


def find_own_modules() -> None:
    """Modules of this folder can be named, as in ``python:mine:defence``; for what runs a file."""
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)  # the last, so that no file there stands in for a library
