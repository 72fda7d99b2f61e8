"""What the commands print, which may hold names out of files."""

from __future__ import annotations

import sys

from scoreopt_defense._text import printable

__all__ = ["print_table", "say"]


def say(text: object, *, error: bool = False) -> None:
    """Print a line; commands to a terminal that are in it are escaped."""
    stream = sys.stderr if error else sys.stdout
    encoding = stream.encoding or "utf-8"
    print(printable(str(text)).encode(encoding, "backslashreplace").decode(encoding), file=stream)


def print_table(lines: list[list[str]]) -> None:
    """Print lines of cells, of which the first are the heads of the columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        say("  ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)).rstrip())
