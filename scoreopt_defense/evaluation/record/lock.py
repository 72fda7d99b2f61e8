"""One process writes a record: the others wait, or are told who it is."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sqlite3
import time
from pathlib import Path

from scoreopt_defense.evaluation.record.store_error import StoreError

__all__ = ["Held", "Lock"]

_LOCK, _HOLDER = "record.lock", "record.holder"


class Held(StoreError):
    """Another process is writing the record."""


class Lock:
    """An empty database, locked: that ends with its process, on every system.

    So no lock is stale. Who holds it is written beside it, for people.

    Raises:
        Held: if another process has it, and who that is.
    """

    def __init__(self, folder: Path) -> None:
        self._holder = folder / _HOLDER
        self._database = sqlite3.connect(folder / _LOCK, timeout=0)
        try:
            self._database.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            self._database.close()
            if "locked" not in str(error):
                raise
            raise Held(
                f"{folder}: another process is writing this record{_said(self._holder)}: wait "
                "until it has ended, or give another folder"
            ) from error
        about = {
            "pid": os.getpid(),
            "host": platform.node(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        }
        self._holder.write_text(json.dumps(about), encoding="utf-8")

    def release(self) -> None:
        with contextlib.suppress(OSError):
            self._holder.unlink()
        self._database.close()


def _said(holder: Path) -> str:
    try:
        about = json.loads(holder.read_text(encoding="utf-8"))
        return f" (process {about['pid']} on {about['host']}, since {about['since']})"
    except (OSError, ValueError, LookupError, TypeError):
        return ""
