"""What can go wrong with a record, in sentences that say what to do about it."""

from __future__ import annotations

import sqlite3

__all__ = ["NotKept", "StoreError", "said_plainly"]


class StoreError(OSError):
    """A record that cannot be opened, read or written, and what to do about it."""


class NotKept(StoreError):
    """Images that a run was told not to keep."""


def said_plainly(error: sqlite3.Error | OSError, file: str) -> str:
    """An error of SQLite's or the system's."""
    said = str(error)
    denied = isinstance(error, (OSError, sqlite3.OperationalError))
    if "disk is full" in said or "No space left" in said:
        return "the disk is full: free some space and start again; what is stored is kept"
    if denied and not any(sign in said for sign in ("no such", "decode")):
        return f"cannot be read or written ({said}): check its permissions and free space"
    return (
        f"its {file} is damaged or none of this program's ({said}): it was left as it is; move it "
        "elsewhere and start again, or restore a copy"
    )
