"""The command ``scoreopt``: what can go wrong with it is said in a line, never a traceback."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Any

from scoreopt_defense._optional import optional
from scoreopt_defense.cli.edm import convert
from scoreopt_defense.cli.output import say

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments; those of the process by default.

    Returns:
        The exit status: 0; 1 after an error and 2 after a wrong call, which are said on stderr; 3
        after a run whose units failed in part or all, which has a record; 4, 5 and 6 after
        ``verify``, of a claim that is refuted, of another defence, or undecided; 75 after SIGTERM,
        and 130 after Ctrl-C: the same call goes on.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _say_warning
            return _run(arguments)
    except (OSError, ValueError, TypeError, ImportError, RuntimeError) as error:
        say(f"scoreopt: {error}", error=True)
        return 1
    except KeyboardInterrupt as error:
        say(f"scoreopt: {error or 'stopped'}", error=True)
        return 130


def _say_warning(message: Warning | str, *where: Any, **file: Any) -> None:
    """A line, without the place in the code."""
    say(f"scoreopt: {message}", error=True)


def _run(arguments: list[str]) -> int:
    try:
        optional("typer", extra="evaluate")
    except ImportError:
        match arguments:
            case ["convert-edm", snapshot, output]:  # which needs nothing but the core
                convert(snapshot, output)
                return 0
        raise
    from scoreopt_defense.cli.app import run

    return run(arguments)
