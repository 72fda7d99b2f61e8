"""A cell's judgements as arrays, and means of them over images."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from scoreopt_defense.evaluation.record.rows import UnitResult
from scoreopt_defense.evaluation.record.statistics import Proportion, proportion

__all__ = ["Judged", "of_images", "over_images"]


@dataclass(frozen=True, eq=False)
class Judged:
    """What was judged of one task with one defence, an image and trial each.

    Attributes:
        images, trials, labels: shape ``(n,)``.
        predicted, right, lead: of each judged purification, shape ``(n, k)``.
        whole: 0 where the criterion saw it broken and 1 where not; None if it does not say.
        left, draws: the share of right purifications, those among them that were asked for
            because all judged ones were wrong, and their number.
    """

    images: np.ndarray
    trials: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    lead: np.ndarray
    whole: np.ndarray | None
    left: np.ndarray
    draws: np.ndarray

    @classmethod
    def of(cls, results: Iterable[UnitResult]) -> Judged:
        """Of units; those that failed have none."""
        found = [r for r in results if r.predicted is not None and len(r.places)]
        if not found:
            nothing = np.zeros(0, dtype=int)
            table = np.zeros((0, 1), dtype=int)
            none = np.zeros(0)
            return cls(nothing, nothing, nothing, table, table * 1.0, None, none, none)

        def joined(of: Callable[[UnitResult], np.ndarray]) -> np.ndarray:
            return np.concatenate([of(result) for result in found])

        predicted = joined(lambda r: r.predicted)  # type: ignore[arg-type, return-value]
        labels = joined(lambda r: r.labels)
        right = predicted == labels[:, None]
        left = np.concatenate([r.left if r.left is not None else np.full(r.tried, np.nan)
                               for r in found]).astype(float)  # fmt: skip
        draws = np.concatenate([r.draws if r.draws is not None else np.full(r.tried, np.nan)
                                for r in found]).astype(float)  # fmt: skip
        says = found[0].broken is not None
        return cls(
            images=joined(lambda r: r.first + r.places.astype(int)),
            trials=joined(lambda r: np.full(r.tried, r.trial)),
            labels=labels,
            predicted=predicted,
            lead=joined(lambda r: r.lead).astype(float),  # type: ignore[arg-type, return-value]
            whole=1.0 - joined(lambda r: r.broken) if says else None,  # type: ignore[arg-type, return-value]
            left=np.where(np.isnan(left), right.mean(1), left),
            draws=np.where(np.isnan(draws), right.shape[1], draws),
        )

    @cached_property
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
