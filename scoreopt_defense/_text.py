"""Text that is not this library's own, such as a file's name or an error's message."""

from __future__ import annotations

__all__ = ["printable"]


def printable(text: str) -> str:
    r"""Text for a terminal: a character that none prints, such as ESC, as ``\x1b``."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)
