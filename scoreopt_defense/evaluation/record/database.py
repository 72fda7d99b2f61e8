"""A file of SQLite's: opened for the one process that writes it, or for any that read meanwhile."""

from __future__ import annotations

import sqlite3
from pathlib import Path

__all__ = ["connected"]


def connected(file: Path | None, *, writing: bool) -> sqlite3.Connection:
    """A connection; without a file one to memory.

    Raises:
        sqlite3.Error: if it cannot be opened.
    """
    if file is None:
        return sqlite3.connect(":memory:")
    if writing:
        database = sqlite3.connect(file, timeout=60)
        database.execute("PRAGMA synchronous=FULL")
        return database
    where = file.absolute().as_uri()
    try:
        database = sqlite3.connect(f"{where}?mode=ro", uri=True)
        database.execute("SELECT name FROM sqlite_master")
        return database
    except sqlite3.OperationalError:  # a log cannot be made on a medium that is read-only
        return sqlite3.connect(f"{where}?immutable=1", uri=True)
