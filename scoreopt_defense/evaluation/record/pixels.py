"""Adversarial images of a record: each kept once, by its digest, whichever units made it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np

from scoreopt_defense.evaluation.record.database import connected
from scoreopt_defense.evaluation.record.packing import digest_of, unpack
from scoreopt_defense.evaluation.record.store_error import StoreError, said_plainly

__all__ = ["IMAGES", "Packed", "Pixels"]

IMAGES = "images.sqlite"  #: in the record's folder
_SCHEMA = """
    PRAGMA auto_vacuum=FULL;
    PRAGMA journal_mode=WAL;
    CREATE TABLE IF NOT EXISTS images (digest TEXT PRIMARY KEY NOT NULL, content BLOB NOT NULL);
    CREATE TABLE IF NOT EXISTS held (
        unit TEXT NOT NULL, place INTEGER NOT NULL, digest TEXT NOT NULL, PRIMARY KEY (unit, place)
    ) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS holders ON held (digest);
"""


#: Images by their places in a unit: digest, and what ``pack`` makes of it.
Packed = Mapping[int, tuple[str, bytes]]


class Pixels:
    """What is kept, on the disk or in memory.

    Args:
        folder: of ``images.sqlite``; None for memory.
        writing: whether to write it, and make it if it is not there.
    """

    def __init__(self, folder: Path | None, *, writing: bool = False) -> None:
        self.folder, self.writing = folder, writing

    @cached_property
    def _database(self) -> sqlite3.Connection:
        """Opened when first asked for: a run's figures can be read without its images."""
        file = None if self.folder is None else self.folder / IMAGES
        if not self.writing and file and not file.is_file():
            file = None  # there are none
        database = connected(file, writing=self.writing)
        if file is None or self.writing:
            database.executescript(_SCHEMA)
        return database

    def write(self, unit: str, images: Packed) -> None:
        """Keep a unit's images: see :meth:`commit`."""
        with self._errors():
            self._database.executemany(
                "INSERT INTO images VALUES (?, ?) ON CONFLICT (digest) DO UPDATE "
                "SET content = excluded.content WHERE content != excluded.content",
                images.values(),
            )
            self._database.executemany(
                "INSERT OR REPLACE INTO held VALUES (?, ?, ?)",
                [(unit, place, digest) for place, (digest, _) in images.items()],
            )

    def commit(self) -> None:
        """Wait until what was written is on the disk."""
        with self._errors():
            self._database.commit()

    def read(self, unit: str, places: Sequence[int]) -> dict[int, np.ndarray]:
        """Those of a unit's images that are kept, by place: shape ``(C, H, W)``, in [0, 1].

        Raises:
            StoreError: naming one that is missing or damaged.
        """
        one = (
            "SELECT digest, content FROM held LEFT JOIN images USING (digest) "
            "WHERE unit = ? AND place = ?"
        )
        found = {}
        for place in places:
            with self._errors():
                rows = self._database.execute(one, [unit, place]).fetchall()
            for digest, content in rows:
                with _damaged(f"image {digest} of {self.folder}/{IMAGES}"):
                    found[place] = _checked(unpack(content or b""), digest)
        return found

    def drop(self, unit: str, places: Sequence[int] | None = None) -> None:
        """Keep a unit's images no longer, all or those; what others made as well stays."""
        with self._errors():
            held = self._database.execute("SELECT place, digest FROM held WHERE unit = ?", [unit])
            gone = [of for of in held.fetchall() if places is None or of[0] in places]
            self._database.executemany(
                "DELETE FROM held WHERE unit = ? AND place = ?",
                [(unit, place) for place, _ in gone],
            )
            self._database.executemany(
                "DELETE FROM images WHERE digest = ? "
                "AND digest NOT IN (SELECT digest FROM held WHERE digest = ?)",
                [(digest, digest) for _, digest in gone],
            )

    def held(self) -> dict[str, tuple[int, int]]:
        """How many images are kept of each unit, and their bytes; one of several counts in each."""
        with self._errors():
            rows = self._database.execute(
                "SELECT unit, count(*), sum(length(content)) FROM held JOIN images USING (digest) "
                "GROUP BY unit"
            )
            return {unit: (count, size) for unit, count, size in rows}

    def close(self) -> None:
        """Close the file, if it was opened."""
        if "_database" in vars(self):
            self._database.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """SQLite's errors, in a sentence that says what to do."""
        try:
            yield
        except sqlite3.Error as error:
            raise StoreError(f"{self.folder}: {said_plainly(error, IMAGES)}") from error


def _checked(images: np.ndarray, digest: str) -> np.ndarray:
    if digest_of(images) != digest:
        raise ValueError("other pixels than were recorded")
    return images


@contextmanager
def _damaged(what: str) -> Iterator[None]:
    """Whatever a damaged image raises, in a sentence that says what to do."""
    try:
        yield
    except (OSError, LookupError, TypeError, ValueError) as error:
        raise StoreError(
            f"{what} is missing or damaged ({error}): restore a copy, or forget the result and "
            "evaluate again"
        ) from error
