"""A cell's judged rows as arrays, and means of them over images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from scoreopt_defense.evaluation.statistics import Proportion, proportion

__all__ = ["Judged", "of_images", "over_images"]


@dataclass(frozen=True, eq=False)
class Judged:
    """A cell's rows that have figures.

    Attributes:
        images, trials, labels: shape ``(n,)``.
        predicted, right, margin: of each judged purification, shape ``(n, k)``.
        whole: 0 where the criterion saw it broken and 1 where not; None if it does not say.
    """

    images: np.ndarray
    trials: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    margin: np.ndarray
    whole: np.ndarray | None

    @classmethod
    def of(cls, rows: list[dict[str, Any]]) -> Judged:
        def column(name: str, kind: type) -> np.ndarray:
            return np.array([row[name] for row in rows], dtype=kind)

        draws = len(rows[0]["predicted"]) if rows else 1
        broken = [row["broken"] for row in rows if row["broken"] is not None]
        return cls(
            images=column("image", int),
            trials=column("trial", int),
            labels=column("label", int),
            predicted=column("predicted", int).reshape(len(rows), draws),
            margin=column("margin", float).reshape(len(rows), draws),
            whole=1.0 - np.array(broken) if broken else None,
        )

    @property
    def right(self) -> np.ndarray:
        return self.predicted == self.labels[:, None]

    @cached_property
    def places(self) -> list[tuple[int, int]]:
        """Each row's image and trial."""
        return list(zip(self.images.tolist(), self.trials.tolist()))


def of_images(images: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The images that there are, and the mean of each one's values, however many trials it had."""
    found, place = np.unique(images, return_inverse=True)
    return found, np.bincount(place, values, len(found)) / np.bincount(place, minlength=len(found))


def over_images(images: np.ndarray, values: np.ndarray) -> Proportion | None:
    """A mean over images, each of which counts once."""
    found, means = of_images(images, values)
    return proportion(min(float(means.sum()), len(found)), len(found)) if len(found) else None
