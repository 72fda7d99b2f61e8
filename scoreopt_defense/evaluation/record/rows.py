"""What a record consists of, as frozen dataclasses; its tables are written from them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np

__all__ = [
    "KnownDefence",
    "KnownTask",
    "UnitResult",
    "View",
    "create",
    "insert",
    "reader",
]

Row = TypeVar("Row")


class Column(NamedTuple):
    """How a field is kept: SQLite's type, and functions to it and from it; None stays None."""

    kind: str
    write: Callable[[Any], Any]
    read: Callable[[Any], Any]


def _as_is(value: Any) -> Any:
    return value


def _typed(kind: type) -> Callable[[Any], Any]:
    """A value as it is, which SQLite keeps whatever its type: another's is an error."""

    def read(value: Any) -> Any:
        if not isinstance(value, kind):
            raise TypeError(f"{value!r:.40} where {kind.__name__} belongs")
        return value

    return read


def _mapping(text: str) -> dict[str, Any]:
    return _typed(dict)(json.loads(text))


def _keys(text: str) -> tuple[str, ...]:
    return tuple(_typed(str)(text).split())


def _numbers(kind: str) -> Column:
    """One-dimensional, little-endian."""
    return Column(
        "BLOB",
        lambda values: np.ascontiguousarray(values, dtype=kind).tobytes(),
        lambda blob: np.frombuffer(blob, dtype=kind),
    )


def _table(kind: str) -> Column:
    """Two-dimensional: its number of columns, then its numbers, row by row."""

    def write(values: np.ndarray) -> bytes:
        width = np.array([values.shape[1]], dtype="<i4").tobytes()
        return width + np.ascontiguousarray(values, dtype=kind).tobytes()

    def read(blob: bytes) -> np.ndarray:
        width = int(np.frombuffer(blob, dtype="<i4", count=1)[0])
        return np.frombuffer(blob, dtype=kind, offset=4).reshape(-1, width)

    return Column("BLOB", write, read)


def _as(column: Column) -> dict[str, Column]:
    """A field's metadata: how it is kept, where its type does not say it."""
    return {"column": column}


_PLAIN = {kind.__name__: Column(of, _as_is, _typed(kind))
          for kind, of in {str: "TEXT", int: "INTEGER", float: "REAL"}.items()}  # fmt: skip
_JSON = _as(Column("TEXT", json.dumps, _mapping))  # what is measured may be NaN
_KEYS = _as(Column("TEXT", " ".join, _keys))
_INTEGERS, _FLAGS, _FLOATS = _as(_numbers("<i4")), _as(_numbers("?")), _as(_numbers("<f4"))
_CLASSES, _LEADS = _as(_table("<i4")), _as(_table("<f4"))


@dataclass(frozen=True, eq=False, kw_only=True)
class UnitResult:
    """What came of a unit of work.

    Attributes:
        key: digest of all that it depends on; see :class:`~scoreopt_defense.evaluation.plan.Unit`.
        defence, task: the defence's fingerprint, and the digest of the task's content.
        needs: keys of the results that it began from.
        trial, first, images: which trial, and which images of the run: the first and how many.
        places: which of them the attack met, from 0 on.
        labels: theirs, as are the next five.
        predicted: the class that each judged purification got, shape ``(n, k)``.
        lead: in each, the true class's logit less the highest other one's, same shape.
        broken: by a criterion that says so itself; None under others.
        left: the share of right purifications, of those judged and such as were asked besides
            because all of these were wrong; None where none would be.
        draws: of how many that is.
        measured: by name, a value an image.
        adversarial: digest of the adversarial images, all of them together.
        denoiser_calls, classifier_calls: rows that the networks saw, attack and judging together; a
            module that is no defended model counts as a classifier.
        parts: how many pieces it was carried out in; above 1 where memory ran out.
        error: of a unit that failed, which then has no figures.
        finished: seconds since 1970.
    """

    key: str
    defence: str
    task: str
    needs: tuple[str, ...] = field(metadata=_KEYS, default=())
    trial: int = 0
    first: int = 0
    images: int
    places: np.ndarray = field(metadata=_INTEGERS)
    labels: np.ndarray = field(metadata=_INTEGERS)
    predicted: np.ndarray | None = field(metadata=_CLASSES, default=None)
    lead: np.ndarray | None = field(metadata=_LEADS, default=None)
    broken: np.ndarray | None = field(metadata=_FLAGS, default=None)
    left: np.ndarray | None = field(metadata=_FLOATS, default=None)
    draws: np.ndarray | None = field(metadata=_INTEGERS, default=None)
    measured: dict[str, list[float]] | None = field(metadata=_JSON, default=None)
    adversarial: str | None = None
    denoiser_calls: int = 0
    classifier_calls: int = 0
    parts: int = 1
    seconds: float = 0.0
    error: str | None = None
    finished: float = 0.0

    def __post_init__(self) -> None:
        """Of other lengths than its images a row is damaged.

        Raises:
            ValueError: naming what does not fit.
        """
        for name in ("labels", "predicted", "lead", "broken", "left", "draws"):
            value = getattr(self, name)
            if value is not None and len(value) != self.tried:
                raise ValueError(f"{len(value)} {name} of {self.tried} images")
        one, other = (None if t is None else t.shape for t in (self.predicted, self.lead))
        if one != other:
            raise ValueError(f"predicted of shape {one}, lead of {other}")
        if self.tried and not 0 <= self.places.min() <= self.places.max() < self.images:
            raise ValueError(f"places beside the {self.images} images")
        for name, values in (self.measured or {}).items():
            if not isinstance(values, list) or len(values) != self.tried:
                raise ValueError(f"{name} was not measured of {self.tried} images")

    @property
    def tried(self) -> int:
        """How many images the attack met."""
        return len(self.places)


@dataclass(frozen=True, kw_only=True)
class KnownDefence:
    """A defence that the record has results of; see :class:`~..plan.Defence`."""

    id: str
    declared: str
    about: Mapping[str, Any] = field(metadata=_JSON)
    versions: Mapping[str, str] = field(metadata=_JSON)
    behaviour: Mapping[str, Any] | None = field(metadata=_JSON)


@dataclass(frozen=True, kw_only=True)
class KnownTask:
    """A task that the record has results of.

    Attributes:
        content: a digest of what is done; see :meth:`~..plan.Plan.contents`.
        draws: what its random numbers went by when it was first met.
        about: the attack's class and settings.
    """

    content: str
    draws: str
    about: Mapping[str, Any] = field(metadata=_JSON)
    versions: Mapping[str, str] = field(metadata=_JSON)


@dataclass(frozen=True, kw_only=True)
class View:
    """A plan that was put to the record.

    Attributes:
        name: of its configuration.
        started, asked: when it was put to it first, and last, in seconds since 1970.
    """

    name: str
    plan: str
    machine: Mapping[str, Any] = field(metadata=_JSON)
    started: float
    asked: float


def _columns(kind: Any) -> dict[str, Column]:
    return {
        part.name: part.metadata.get("column") or _PLAIN[str(part.type).removesuffix(" | None")]
        for part in dataclasses.fields(kind)
    }


def create(kind: type, table: str) -> str:
    """SQL that makes the table of a dataclass, whose first field is its key."""
    first, *rest = (f'"{name}" {column.kind}' for name, column in _columns(kind).items())
    return f"CREATE TABLE {table} ({', '.join([f'{first} PRIMARY KEY NOT NULL', *rest])})"


def insert(row: Any, table: str) -> tuple[str, list[Any]]:
    """SQL that adds a row or replaces it, and its values."""
    columns = _columns(type(row))
    given = ((column, getattr(row, name)) for name, column in columns.items())
    values = [None if value is None else column.write(value) for column, value in given]
    return f"INSERT OR REPLACE INTO {table} VALUES ({', '.join('?' * len(values))})", values


def reader(kind: type[Row]) -> tuple[str, Callable[[Sequence[Any]], Row]]:
    """Names of a table's columns, and what makes a dataclass of a row of them."""
    columns = _columns(kind)

    def read(values: Sequence[Any]) -> Row:
        return kind(
            **{
                name: None if value is None else column.read(value)
                for (name, column), value in zip(columns.items(), values, strict=True)
            }
        )

    return ", ".join(f'"{name}"' for name in columns), read
