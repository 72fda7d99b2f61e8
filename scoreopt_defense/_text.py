"""Text that is not this library's own, such as a file's name or an error's message."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path

__all__ = ["as_file", "printable", "where"]

_OTHERS = (str(Path(__file__).parent), *sysconfig.get_paths().values(), "<frozen")


def as_file(name: str) -> str:
    """A name as a part of a file's, on any system."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)


def printable(text: str) -> str:
    r"""Text for a terminal: a character that none prints, such as ESC, as ``\x1b``."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


def where(error: BaseException) -> str:
    """The last line of a user's own code that an error passed, to append to what is said of it."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if not frame.filename.startswith(_OTHERS)]
    if not theirs:
        return ""
    last = theirs[-1]
    return printable(f" ({last.filename}, line {last.lineno}, in {last.name}: {last.line})")
