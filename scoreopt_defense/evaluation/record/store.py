"""The record of a run: one SQLite file, and the adversarial images beside it."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from scoreopt_defense._files import replacing
from scoreopt_defense.evaluation.about import machine, versions
from scoreopt_defense.evaluation.plan import Plan, Unit, differences
from scoreopt_defense.evaluation.units import Outcome

__all__ = ["Store", "StoreError"]

_FILE, _IMAGES, _LOCK = "run.sqlite", "images", "run.lock"

# A row of `results` is an image under one trial of one attack; its calls and seconds are its share
# of its unit's. predicted and margin are JSON lists, a value a judged purification. `tried` counts
# a unit's rows: fewer than its images in a suite, whose attacks leave out what others took.
# `measured` is a JSON object, a list of a value an image under each name.
_SCHEMA = """
CREATE TABLE run (
    format INTEGER NOT NULL, plan TEXT NOT NULL, hash TEXT NOT NULL, versions TEXT NOT NULL,
    machine TEXT NOT NULL, started REAL NOT NULL
);
CREATE TABLE units (
    unit INTEGER PRIMARY KEY, defence TEXT NOT NULL, attack TEXT NOT NULL, trial INTEGER NOT NULL,
    first INTEGER NOT NULL, images INTEGER NOT NULL, tried INTEGER NOT NULL, parts INTEGER NOT NULL,
    denoiser_calls INTEGER NOT NULL, classifier_calls INTEGER NOT NULL, seconds REAL NOT NULL,
    adversarial TEXT, error TEXT, measured TEXT
);
CREATE TABLE images (
    unit INTEGER NOT NULL REFERENCES units, image INTEGER NOT NULL, label INTEGER NOT NULL,
    predicted TEXT, margin TEXT, broken INTEGER, PRIMARY KEY (unit, image)
) WITHOUT ROWID;
CREATE VIEW results AS
    SELECT defence, attack, trial, image, label, predicted, margin, broken,
        1.0 * denoiser_calls / tried AS denoiser_calls,
        1.0 * classifier_calls / tried AS classifier_calls,
        seconds / tried AS seconds, parts, error, adversarial, image - first AS place
    FROM images JOIN units USING (unit) ORDER BY unit, image;
"""
_FORMAT = 2


class StoreError(OSError):
    """A store that cannot be opened, read or written, and what to do about it."""


class Store:
    """Units' outcomes; a transaction each, so that a run stopped at any moment keeps whole ones.

    One process writes, until :meth:`close` or :meth:`unlock`; any may read meanwhile (write-ahead
    log).

    Args:
        folder: of ``run.sqlite``, made if it is not there; None keeps everything in memory.
        plan: of the run; None to read what there is.

    Raises:
        StoreError: if the folder can't be written, another process is writing it, or the file is
            none of ours or damaged.
        ValueError: if it holds a run of another plan, other weights or another version; the error
            says what differs.
    """

    def __init__(self, folder: str | Path | None, plan: Plan | None = None) -> None:
        self.folder = None if folder is None else Path(folder)
        self._in_memory: dict[int, np.ndarray] = {}
        self._lock: sqlite3.Connection | None = None
        with self._errors(), contextlib.ExitStack() as undo:
            undo.callback(self.unlock)
            self._database = self._open(writing=plan is not None)
            undo.callback(self._database.close)
            self.plan = self._begin(plan)
            undo.pop_all()

    def _open(self, *, writing: bool) -> sqlite3.Connection:
        if self.folder is None:
            return sqlite3.connect(":memory:")
        file = self.folder / _FILE
        if writing:
            (self.folder / _IMAGES).mkdir(parents=True, exist_ok=True)
            self._lock_folder(self.folder)
            for left in (self.folder / _IMAGES).glob("*.part"):  # of a run that was killed
                left.unlink()
            database = sqlite3.connect(file, timeout=60)
            database.execute("PRAGMA synchronous=FULL")
            return database
        if not file.is_file():
            raise StoreError(f"there is no run in {self.folder}: expected {_FILE}")
        try:
            database = sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)
            database.execute("SELECT format FROM run")
        except sqlite3.OperationalError:  # a log cannot be made on a medium that is read-only
            database = sqlite3.connect(f"{file.absolute().as_uri()}?immutable=1", uri=True)
        return database

    def _lock_folder(self, folder: Path) -> None:
        """An empty database, locked: that ends with its process, on every system."""
        self._lock = sqlite3.connect(folder / _LOCK, timeout=0)
        try:
            self._lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
            raise StoreError(
                f"{folder}: another process is writing this run: wait until it has ended, or give "
                "another folder"
            ) from error

    def unlock(self) -> None:
        """Let others write."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _begin(self, plan: Plan | None) -> Plan:
        """The plan that is stored, or this one from now on."""
        damage = self._database.execute("PRAGMA quick_check").fetchone()[0]
        if damage != "ok":
            raise sqlite3.DatabaseError(damage)
        tables = self._database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if not tables and plan is not None:
            about = (
                *(_FORMAT, plan.as_json(), plan.hash),
                *(json.dumps(versions()), json.dumps(machine()), time.time()),
            )
            self._database.execute("PRAGMA journal_mode=WAL")  # kept in the file
            with self._database:
                self._database.executescript("BEGIN;" + _SCHEMA)
                self._database.execute("INSERT INTO run VALUES (?, ?, ?, ?, ?, ?)", about)
            return plan
        row = self._database.execute("SELECT format, plan, versions FROM run").fetchone()
        if row is None:
            raise sqlite3.DatabaseError("it has no plan")
        kind, text, made_by = row
        if kind != _FORMAT:
            raise sqlite3.DatabaseError(f"format {kind}, this version reads {_FORMAT}")
        try:
            stored = Plan.from_json(text)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise sqlite3.DatabaseError(f"its plan: {error}") from error
        if plan is not None:
            was, is_now = (
                {"plan": json.loads(plan_text), "versions": made}
                for plan_text, made in (
                    (text, json.loads(made_by)), (plan.as_json(), versions()),
                )
            )  # fmt: skip
            if other := differences(was, is_now):
                raise ValueError(
                    f"{self.folder} holds another run: {'; '.join(other)}. Run with the same, or "
                    "give another folder"
                )
        return stored

    def done(self) -> set[int]:
        """Indices of the units that are recorded, failures among them."""
        with self._errors():
            return {index for (index,) in self._database.execute("SELECT unit FROM units")}

    def forget_failed(self) -> None:
        """Delete the units that failed, and those of a suite that began from one that did."""
        with self._errors():
            failed = {
                unit for (unit,) in self._database.execute(
                    "SELECT unit FROM units WHERE error IS NOT NULL"
                )
            }  # fmt: skip
            lost = [
                (unit.index,)
                for unit in self.plan.units()
                if failed & {unit.index, *(earlier.index for earlier in self.plan.before(unit))}
            ]
            with self._database:
                for table in ("images", "units"):
                    self._database.executemany(f"DELETE FROM {table} WHERE unit = ?", lost)

    def add(self, outcome: Outcome, labels: np.ndarray) -> None:
        """Record a unit, whole or not at all: its images first, then its rows at once."""
        unit = outcome.unit
        first, end = unit.images
        with self._errors():
            file = None if outcome.images is None else self._write(unit, outcome.images)
            calls = (outcome.calls.get(name, 0) for name in ("denoiser", "classifier"))
            tried = range(end - first) if outcome.tried is None else outcome.tried.tolist()
            measured = json.dumps(outcome.measured) if outcome.measured else None
            with self._database:
                self._database.execute(
                    f"INSERT OR REPLACE INTO units VALUES ({', '.join('?' * 14)})",
                    (
                        *(unit.index, unit.defence, unit.attack, unit.trial, first, end - first),
                        *(len(tried), outcome.parts, *calls, outcome.seconds),
                        *(file, outcome.error, measured),
                    ),
                )
                self._database.executemany(
                    "INSERT OR REPLACE INTO images VALUES (?, ?, ?, ?, ?, ?)",
                    [
                        (
                            *(unit.index, first + place, int(labels[place])),
                            _listed(outcome.predicted, row),
                            _listed(outcome.margin, row),
                            None if outcome.broken is None else int(outcome.broken[row]),
                        )
                        for row, place in enumerate(tried)
                    ],
                )

    def _write(self, unit: Unit, images: np.ndarray) -> str:
        """The adversarial images, under a temporary name until they are on the disk."""
        name = f"{_IMAGES}/{unit.index:06d}.safetensors"
        if self.folder is None:
            self._in_memory[unit.index] = images
            return name
        content = safetensors.numpy.save({"x": images})
        with replacing(self.folder / name) as temporary, temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        return name

    def adversarial(self, unit: int) -> np.ndarray:
        """A unit's adversarial images, shape ``(B, C, H, W)``, in [0, 1].

        Raises:
            StoreError: naming the file, if it is missing or damaged.
        """
        if self.folder is None:
            return self._in_memory[unit]
        path = self.folder / _IMAGES / f"{unit:06d}.safetensors"
        (row,) = self._select(f"SELECT images FROM units WHERE unit = {int(unit)}")
        expected = (row["images"], *self.plan.images["shape"][1:])
        try:
            images = safetensors.numpy.load_file(path)["x"]
            if images.shape != expected:
                raise ValueError(f"shape {images.shape} in place of {expected}")
        except (OSError, KeyError, ValueError, safetensors.SafetensorError) as error:
            raise StoreError(
                f"{path} is missing or damaged ({error}): restore a copy, or run again into "
                "another folder"
            ) from error
        return images

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows of the view ``results``: an image, trial and attack each."""
        return self._select("SELECT * FROM results")

    def read(self, unit: Unit | None = None) -> Iterator[dict[str, Any]]:
        """As :meth:`rows`, of one unit or all, with lists of ``predicted`` and ``margin``.

        Beside them what is ``measured`` of an image, by name.
        """
        rows = self._select(
            "SELECT results.*, unit, measured FROM results JOIN units "
            "USING (defence, attack, trial) WHERE image - place = first "
            f"{'' if unit is None else f'AND unit = {unit.index}'} ORDER BY unit, image"
        )
        for _, group in itertools.groupby(rows, key=lambda row: row.pop("unit")):
            of_unit = list(group)
            found = json.loads(of_unit[0]["measured"] or "{}")
            lists = {  # a unit's at once: to parse each by itself takes thrice as long
                name: json.loads(f"[{','.join(row[name] or 'null' for row in of_unit)}]")
                for name in ("predicted", "margin")
            }
            for i, row in enumerate(of_unit):
                judged = {name: values[i] for name, values in lists.items()}
                yield row | judged | {"measured": {n: values[i] for n, values in found.items()}}

    def units(self) -> Iterator[dict[str, Any]]:
        """The rows of the table ``units``."""
        return self._select("SELECT * FROM units ORDER BY unit")

    def about(self) -> dict[str, Any]:
        """Hash of the plan, versions and machine."""
        (row,) = self._select("SELECT hash, versions, machine, started FROM run")
        return row | {name: json.loads(row[name]) for name in ("versions", "machine")}

    def _select(self, query: str) -> Iterator[dict[str, Any]]:
        with self._errors():
            cursor = self._database.execute(query)
            names = [column[0] for column in cursor.description]
            for row in cursor:
                yield dict(zip(names, row, strict=True))

    def close(self) -> None:
        """Close the file; nothing is lost without it."""
        self.unlock()
        self._database.close()

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
            said = str(error)
            denied = isinstance(error, (OSError, sqlite3.OperationalError))
            if "disk is full" in said or "No space left" in said:
                what = "the disk is full: free some space and start again; what is stored is kept"
            elif denied and "no such" not in said:
                what = f"cannot be read or written ({said}): check its permissions and free space"
            else:
                what = (
                    f"its {_FILE} is damaged or none of this program's ({said}): it was left as it "
                    "is; move it elsewhere and start again, or restore a copy"
                )
            raise StoreError(f"{self.folder}: {what}") from error


def _listed(values: np.ndarray | None, row: int) -> str | None:
    return None if values is None else json.dumps(values[row].tolist())
