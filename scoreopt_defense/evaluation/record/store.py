"""A record: results by the digests of what they are results of, and adversarial images beside.

A plan is a question to it: what it has of the plan's units is not done again, whoever asked before.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from scoreopt_defense.evaluation.plan.environment import machine
from scoreopt_defense.evaluation.plan.plan import Plan
from scoreopt_defense.evaluation.record.database import connected
from scoreopt_defense.evaluation.record.lock import Lock
from scoreopt_defense.evaluation.record.pixels import Packed, Pixels
from scoreopt_defense.evaluation.record.recognised import recognised
from scoreopt_defense.evaluation.record.rows import (
    KnownDefence,
    KnownTask,
    UnitResult,
    View,
    create,
    insert,
    reader,
)
from scoreopt_defense.evaluation.record.store_error import StoreError, said_plainly

__all__ = ["RECORD", "Store", "StoreError"]

RECORD = "record.sqlite"  #: in the record's folder
_FORMAT, _OLD = 3, "run.sqlite"  # of formats 1 and 2
_TABLES = {"units": UnitResult, "defences": KnownDefence, "tasks": KnownTask, "views": View}
_TOGETHER = 1.0  # second, within which what is added waits for the disk once
_FEW = 500  # keys that are asked for one by one; of more, all rows are looked through

Row = TypeVar("Row")


class Store:
    """A record; a run that is stopped keeps whole units, all but those of its last second.

    One process writes, until :meth:`close` or :meth:`unlock`; any may read meanwhile.

    Args:
        folder: of ``record.sqlite``; None keeps everything in memory.
        writing: whether to write it, and make it if it is not there.

    Raises:
        StoreError: if there is none, the folder can't be written, another process is writing it
            (:class:`~scoreopt_defense.evaluation.record.lock.Held`), or the file is none of ours,
            damaged or of another format.
    """

    def __init__(self, folder: str | Path | None = None, *, writing: bool = False) -> None:
        self.folder = None if folder is None else Path(folder)
        self.pixels = Pixels(self.folder, writing=writing)
        self._lock: Lock | None = None
        self._committed = self._waits = 0.0
        with self._errors(), ExitStack() as undo:
            undo.callback(self._release)
            self._database = self._open(writing=writing)
            undo.callback(self._database.close)
            self._begin(writing=writing or folder is None)
            undo.pop_all()

    def _open(self, *, writing: bool) -> sqlite3.Connection:
        if self.folder is None:
            return connected(None, writing=True)
        file = self.folder / RECORD
        if writing:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = Lock(self.folder)
        elif not file.is_file():
            if (self.folder / _OLD).is_file():
                raise StoreError(
                    f"{self.folder} holds a record of an earlier format ({_OLD}): the version that "
                    "made it reads it; to evaluate again begins a new record beside it"
                )
            raise StoreError(f"there is no record in {self.folder}: expected {RECORD}")
        return connected(file, writing=writing)

    def unlock(self) -> None:
        """Let others write, what is added being on the disk."""
        if self._lock is not None:
            try:
                with self._errors():
                    self.commit()
            finally:
                self._release()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _begin(self, *, writing: bool) -> None:
        damage = self._database.execute("PRAGMA quick_check").fetchone()[0]
        if damage != "ok":
            raise sqlite3.DatabaseError(damage)
        tables = {n for (n,) in self._database.execute("SELECT name FROM sqlite_master")}
        if not tables and writing:
            self._database.execute("PRAGMA journal_mode=WAL")  # kept in the file
            schema = ";".join(create(kind, table) for table, kind in _TABLES.items())
            with self._database:
                self._database.executescript(f"BEGIN;{schema};PRAGMA user_version={_FORMAT}")
            return
        (kind,) = self._database.execute("PRAGMA user_version").fetchone()
        if kind != _FORMAT or not tables >= _TABLES.keys():
            raise sqlite3.DatabaseError(f"format {kind}, this version reads {_FORMAT}")

    def adopt(self, plan: Plan, name: str = "evaluation") -> Plan:
        """Note a plan as the view of this name, and return it by what the record calls its parts.

        A defence that is declared to be the same and answers alike within rounding is the one that
        is known; an attack keeps what its random numbers went by when it was first met.
        """
        with self._errors():
            adopted, new = recognised(
                plan,
                list(self._rows(KnownDefence, "defences")),
                list(self._rows(KnownTask, "tasks")),
            )
            now = time.time()
            view = View(
                name=name, plan=adopted.as_json(), machine=machine(),
                started=self._started(name) or now, asked=now,
            )  # fmt: skip
            for row in (*new, view):
                self._insert(row)
            self.commit()
        return adopted

    def _insert(self, row: Any) -> None:
        (table,) = (name for name, kind in _TABLES.items() if isinstance(row, kind))
        self._database.execute(*insert(row, table))

    def _started(self, name: str) -> float | None:
        found = self._database.execute("SELECT started FROM views WHERE name = ?", [name])
        return next((started for (started,) in found), None)

    def views(self) -> dict[str, View]:
        """The plans that were put to it, by name, the last one last."""
        with self._errors():
            return {view.name: view for view in self._rows(View, "views", "ORDER BY asked")}

    def plan(self, name: str | None = None) -> Plan:
        """A view's plan; by default that of the last one that was put.

        Raises:
            ValueError: if there is no view of that name.
            StoreError: if it cannot be read.
        """
        views = self.views()
        if name is None and not views:
            raise StoreError(f"{self.folder}: its record holds no plan")
        if name is not None and name not in views:
            raise ValueError(f"view must be one of {list(views)}, got {name!r}")
        with self._errors():
            try:
                return Plan.from_json(views[name or list(views)[-1]].plan)
            except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
                raise sqlite3.DatabaseError(f"its plan: {error}") from error

    def defences(self) -> list[KnownDefence]:
        """All that it has results of, or was asked for."""
        with self._errors():
            return list(self._rows(KnownDefence, "defences"))

    def tasks(self) -> list[KnownTask]:
        """As :meth:`defences`, of what was done with them."""
        with self._errors():
            return list(self._rows(KnownTask, "tasks"))

    def _rows(self, kind: type[Row], table: str, where: str = "", given: Any = ()) -> Iterator[Row]:
        names, read = reader(kind)
        for row in self._database.execute(f"SELECT {names} FROM {table} {where}", given):
            try:
                yield read(row)
            except (ValueError, TypeError, LookupError, RecursionError) as error:
                raise sqlite3.DatabaseError(f"a row of {table}: {error}") from error

    def done(self) -> set[str]:
        """Keys of all units that are recorded, failures among them."""
        with self._errors():
            return {key for (key,) in self._database.execute('SELECT "key" FROM units')}

    def read(self, keys: Collection[str] | None = None) -> Iterator[UnitResult]:
        """Results, of these keys or all."""
        with self._errors():
            if keys is not None and len(keys) <= _FEW:
                holders = ", ".join("?" * len(keys))
                where = f'WHERE "key" IN ({holders})'
                yield from self._rows(UnitResult, "units", where, list(keys))
            else:
                wanted = None if keys is None else set(keys)
                for row in self._rows(UnitResult, "units"):
                    if wanted is None or row.key in wanted:
                        yield row

    def add(self, result: UnitResult, images: Packed | None = None, more: bool = False) -> None:
        """Record a unit, whole or not at all: its images first, then its row.

        What took, or was added within, less than a second waits for the disk with the next; where
        there is ``more`` at hand, however long it took.
        """
        with self._errors():
            if images:
                self.pixels.write(result.key, images)
            self._insert(result)
            self._waits = max(self._waits, result.seconds)
            if max(0 if more else self._waits, time.monotonic() - self._committed) > _TOGETHER:
                self.commit()

    def commit(self) -> None:
        """Wait until what was added is on the disk."""
        self.pixels.commit()
        self._database.commit()
        self._committed, self._waits = time.monotonic(), 0.0

    def adversarial(
        self, result: UnitResult, places: Sequence[int] | None = None
    ) -> dict[int, np.ndarray]:
        """Of a unit's adversarial images, or those, the ones that are kept, by place.

        Shape ``(C, H, W)``, in [0, 1].

        Raises:
            StoreError: naming what is missing or damaged.
        """
        if result.adversarial is None:
            return {}
        wanted = result.places.tolist() if places is None else places
        return self.pixels.read(result.key, wanted)

    def forget(self, keys: Iterable[str]) -> int:
        """Delete results, those that began from them, and what no other result has.

        Returns:
            How many results are gone.
        """
        with self._errors():
            rows = list(self._rows(UnitResult, "units"))
            lost = _with_dependents(keys, {row.key: row.needs for row in rows})
            gone = [row.key for row in rows if row.key in lost]
            self._database.executemany('DELETE FROM units WHERE "key" = ?', zip(gone))
            for table, key, of in (("defences", "id", "defence"), ("tasks", "content", "task")):
                self._database.execute(
                    f"DELETE FROM {table} WHERE {key} NOT IN (SELECT {of} FROM units)"
                )
            for key in gone:
                self.pixels.drop(key)
            self.commit()
        return len(gone)

    def forget_view(self, name: str) -> None:
        """Forget that this plan was put to it; results stay."""
        with self._errors():
            self._database.execute("DELETE FROM views WHERE name = ?", [name])
            self.commit()

    def close(self) -> None:
        """Close the file; nothing is lost without it."""
        try:
            self.unlock()
        finally:
            self._database.close()
            self.pixels.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """SQLite's and the system's errors, in a sentence that says what to do."""
        try:
            yield
        except StoreError:
            raise
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{self.folder}: {said_plainly(error, RECORD)}") from error


def _with_dependents(lost: Iterable[str], needs: Mapping[str, Collection[str]]) -> set[str]:
    """Keys, and those of what began, directly or not, from their results."""
    found = set(lost)
    while more := {k for k, of in needs.items() if k not in found and not found.isdisjoint(of)}:
        found |= more
    return found
