"""Two defences or attacks on the same images, compared image by image."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scoreopt_defense.evaluation.record.statistics import scipy_stats

__all__ = ["Difference", "aligned", "chance_of_more", "difference", "paired", "paired_all"]

_RESAMPLES, _AT_ONCE = 9999, 1000
_SEED = 0  # of resamples, and of the ways that are tried
_MANY = 2000  # images, from which on equal gaps are resampled together: the same law, in less time


@dataclass(frozen=True)
class Difference:
    """Mean of a - b over the same images, its interval, and a p-value for "no difference".

    Attributes:
        only_a, only_b: images that only the one gets right, by majority: McNemar's two counts.
        p: of McNemar's exact test on them.
    """

    value: float
    low: float
    high: float
    n: int
    only_a: int
    only_b: int
    p: float


def paired(a: np.ndarray, b: np.ndarray, *, confidence: float = 0.95) -> Difference:
    """Two defences on the same images.

    Args:
        a, b: each image's share of right purifications, in [0, 1], shape ``(n,)``.
        confidence: of the interval, a percentile bootstrap over images (9,999 resamples).

    Reference:
        McNemar, Psychometrika 1947; Efron, Annals of Statistics 1979.
    """
    return paired_all([(a, b)], confidence=confidence)[0]


def paired_all(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]], *, confidence: float = 0.95
) -> list[Difference]:
    """As :func:`paired`, of many; those of as many images share their resamples."""
    both = [tuple(np.asarray(side, dtype=float) for side in pair) for pair in pairs]
    gaps = [a - b for a, b in both]
    for gap in gaps:
        if gap.ndim != 1 or not len(gap):
            raise ValueError(f"a and b must be of one shape (n,), n at least 1, got {gap.shape}")
    ends = [(float(gap.mean()),) * 2 for gap in gaps]  # of gaps that are all equal
    sizes: dict[int, list[int]] = defaultdict(list)
    tails = [50 * (1 - confidence), 50 * (1 + confidence)]
    for place, gap in enumerate(gaps):
        if np.ptp(gap) > 0 and len(gap) > _MANY:
            values, counts = np.unique(gap, return_counts=True)
            drawn = np.random.default_rng(_SEED).multinomial(
                len(gap), counts / len(gap), _RESAMPLES
            )
            low, high = np.percentile(drawn @ values / len(gap), tails).tolist()
            ends[place] = low, high
        elif np.ptp(gap) > 0:
            sizes[len(gap)].append(place)
    for size, places in sizes.items():
        of_size = np.stack([gaps[place] for place in places], axis=1)
        means = np.concatenate([counts @ of_size / size for counts in _resampled(size)])
        found = np.percentile(means, tails, axis=0)
        for place, (low, high) in zip(places, found.T.tolist()):
            ends[place] = low, high
    return [_difference(a, b, *end) for (a, b), end in zip(both, ends)]


def _resampled(size: int) -> Iterator[np.ndarray]:
    """How often each of so many images is drawn, a row a resample."""
    generator = np.random.default_rng(_SEED)
    for first in range(0, _RESAMPLES, _AT_ONCE):
        rows = min(_AT_ONCE, _RESAMPLES - first)
        cells = generator.integers(0, size, (rows, size)) + size * np.arange(rows)[:, None]
        counts = np.bincount(cells.ravel(), minlength=rows * size)
        yield counts.reshape(rows, size).astype(float)


def _difference(a: np.ndarray, b: np.ndarray, low: float, high: float) -> Difference:
    only_a = int(((a > 0.5) & (b <= 0.5)).sum())
    only_b = int(((b > 0.5) & (a <= 0.5)).sum())
    p = float(scipy_stats().binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    return Difference(float((a - b).mean()), low, high, len(a), only_a, only_b, p)


def difference(a: dict[int, float], b: dict[int, float], *, confidence: float = 0.95) -> Difference:
    """Shares by image less others, over the images that both have.

    Raises:
        ValueError: if they have none in common.
    """
    return paired(*aligned(a, b), confidence=confidence)


def aligned(a: dict[int, float], b: dict[int, float]) -> tuple[np.ndarray, np.ndarray]:
    """The shares of the images that both have, in one order; empty if there are none."""
    both = sorted(a.keys() & b.keys())
    return np.array([a[image] for image in both]), np.array([b[image] for image in both])


def chance_of_more(gaps: Sequence[np.ndarray]) -> list[float]:
    """How likely it is that so large a mean gap comes out, if neither side is higher; of many.

    The share of the ways to swap the two of an image, some images' or none, in which the mean
    difference is as large: a sign-flip test, one-sided. It rejects no oftener than it says at any
    number of images, where a bootstrap's interval of few is too narrow. Of more than 9,999 ways so
    many are tried, the same for all of one n.

    Args:
        gaps: one side less the other, of each image, shape ``(n,)``.

    Reference:
        Fisher, The Design of Experiments, 1935, section 21.
    """
    found = [0.0] * len(gaps)
    sizes: dict[int, list[int]] = defaultdict(list)
    for place, gap in enumerate(gaps):
        if len(gap) > _MANY:
            found[place] = _of_many(gap)
        else:
            sizes[len(gap)].append(place)
    for size, places in sizes.items():
        of_size = np.stack([gaps[place] for place in places], axis=1)
        least, ways = _least(of_size), 2**size
        if ways <= _RESAMPLES:
            flips = np.arange(ways)[:, None] >> np.arange(size) & 1
            above = ((1.0 - 2 * flips) @ of_size >= least).sum(0)
        else:
            above, ways = np.ones(len(places)), _RESAMPLES + 1  # the one that is there
            generator = np.random.default_rng(_SEED)
            for first in range(0, _RESAMPLES, _AT_ONCE):
                rows = min(_AT_ONCE, _RESAMPLES - first)
                flips = generator.integers(0, 2, (rows, size))
                above += ((1.0 - 2 * flips) @ of_size >= least).sum(0)
        for place, share in zip(places, (above / ways).tolist()):
            found[place] = share
    return found


def _of_many(gap: np.ndarray) -> float:
    values, counts = np.unique(gap, return_counts=True)
    more = np.random.default_rng(_SEED).binomial(counts, 0.5, (_RESAMPLES, len(counts)))
    above = 1 + int(((2 * more - counts) @ values >= _least(gap)).sum())
    return above / (_RESAMPLES + 1)


def _least(gaps: np.ndarray) -> Any:
    """The sum that is there, less what another order of the same numbers may make of it."""
    return gaps.sum(0) - 1e-9 * np.abs(gaps).sum(0)
