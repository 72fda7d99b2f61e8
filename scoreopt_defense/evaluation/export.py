"""A run's rows for other programs."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scoreopt_defense.evaluation.store import Store

__all__ = ["to_csv", "to_parquet"]


def to_csv(store: Store, path: str | Path) -> int:
    """Write a line an image, trial and attack; returns how many.

    ``predicted_0``, ``margin_0`` and so on are the judged purifications; a cell is empty where the
    unit failed.
    """
    names, temporary = None, Path(f"{path}.part")
    count = 0
    with temporary.open("w", newline="", encoding="utf-8") as file:
        for row in _flat(store):
            if names is None:
                names = csv.DictWriter(file, list(row))
                names.writeheader()
            names.writerow(row)
            count += 1
    os.replace(temporary, path)
    return count


def to_parquet(store: Store, path: str | Path) -> int:
    """As :func:`to_csv`, in Parquet; needs pandas and pyarrow."""
    try:
        import pandas
        import pyarrow  # noqa: F401, pandas finds it by itself
    except ImportError as error:
        raise ImportError(
            f"Parquet needs pandas and pyarrow ({error}): pip install them"
        ) from error
    rows = list(_flat(store))
    pandas.DataFrame(rows).to_parquet(path, index=False)
    return len(rows)


def _flat(store: Store) -> Iterator[dict[str, Any]]:
    draws = store.plan.judging["purifications"]
    for row in store.rows():
        lists = {name: row.pop(name) for name in ("predicted", "margin")}
        for name, text in lists.items():
            values = json.loads(text) if text else [None] * draws
            row |= {f"{name}_{draw}": value for draw, value in enumerate(values)}
        yield row
