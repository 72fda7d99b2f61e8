"""Figures with their uncertainty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from scoreopt_defense._optional import optional

__all__ = [
    "Difference",
    "Proportion",
    "Survival",
    "chance_of_more",
    "deviation",
    "majority",
    "paired",
    "proportion",
    "survival",
    "weakest",
]


def _scipy() -> Any:
    return optional("scipy.stats", extra="evaluate")


@dataclass(frozen=True)
class Proportion:
    """A share of ``n`` images with its interval."""

    value: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict[str, float]:
        """As JSON has it, to 4 digits."""
        return {name: round(value, 4) for name, value in asdict(self).items()}

    def __str__(self) -> str:
        """In per cent, with its interval."""
        return f"{100 * self.value:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def proportion(right: float, total: int, *, confidence: float = 0.95) -> Proportion:
    r"""A share with its Clopper-Pearson interval.

    .. math:: [B(\alpha/2;\, k, n-k+1),\; B(1-\alpha/2;\, k+1, n-k)]

    with B the quantile of the beta distribution. k need not be whole: where each image counts as
    the share of its purifications that are right, the sum varies less than a binomial one of the
    same mean (a convex function of a number in [0, 1] is largest at the ends), so the interval errs
    on the wide side.

    Args:
        right: k, from 0 to ``total``.
        total: n, the images.
        confidence: 1 less alpha.

    Example:
        >>> proportion(8, 10)
        Proportion(value=0.8, low=0.4439..., high=0.9747..., n=10)

    Reference:
        Clopper and Pearson, Biometrika 1934.
    """
    if not (0 <= right <= total and total > 0):
        raise ValueError(f"right must be between 0 and total, got {right!r} of {total!r}")
    beta, tail = _scipy().beta, (1 - confidence) / 2
    low = float(beta.ppf(tail, right, total - right + 1)) if right > 0 else 0.0
    high = float(beta.isf(tail, right + 1, total - right)) if right < total else 1.0
    return Proportion(right / total, low, high, total)


def deviation(values: Sequence[float]) -> float | None:
    """Sample standard deviation (n - 1) over trials; None of fewer than two."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def majority(predicted: np.ndarray, label: int) -> bool:
    """Whether more purifications say ``label`` than any other class; a tie is wrong."""
    classes, counts = np.unique(predicted, return_counts=True)
    others = counts[classes != label]
    return int((predicted == label).sum()) > int(others.max(initial=0))


@dataclass(frozen=True)
class Survival:
    """The share of images that survive ``resubmissions``; at most that, if ``bound``."""

    resubmissions: int
    value: float
    bound: bool


def survival(right: np.ndarray, resubmissions: int) -> Survival:
    r"""The share of images that are classified rightly in each of N independent purifications.

    The attacker may send an image again. With k purifications of an image, c of them right, the
    share of N-subsets without a wrong one is the unbiased estimate of :math:`p^N`:

    .. math:: \binom{c}{N} / \binom{k}{N}, \qquad N \le k

    No estimate from k < N draws is unbiased: then the value is that of k resubmissions, which more
    can only lower, and is marked as a bound. The plug-in :math:`(c/k)^N` would be too high.

    Args:
        right: booleans, shape ``(images, k)``.
        resubmissions: N, at least 1.

    Example:
        >>> survival(np.array([[True, True, False, True]]), 2)
        Survival(resubmissions=2, value=0.5, bound=False)
    """
    draws = right.shape[1]
    times = min(resubmissions, draws)
    count = right.sum(1).astype(float)
    steps = np.arange(times)
    shares = np.prod(np.clip(count[:, None] - steps, 0, None) / (draws - steps), axis=1)
    return Survival(resubmissions, float(shares.mean()), resubmissions > draws)


def weakest(right: np.ndarray, margin: np.ndarray) -> np.ndarray:
    """Each image's share of right purifications under the candidate that does it most harm.

    Several candidates (attacks, restarts) compete for an image. Chosen and judged on the same
    purifications, the lowest of several noisy shares is too low on average. So the candidate is
    chosen on one half of the purifications, by the share that is right and then by the mean margin,
    and judged on the other; the halves then change places, and the two results are averaged.

    Args:
        right: booleans, shape ``(candidates, images, k)``, k at least 2.
        margin: same shape; NaN where a candidate is missing, which is then never chosen.

    Returns:
        Shape ``(images,)``; NaN where all candidates are missing.
    """
    if right.shape[2] < 2:
        raise ValueError(
            f"purifications must be at least 2, to choose on one and judge on another, got "
            f"{right.shape[2]}"
        )
    there = ~np.isnan(margin).any(2)
    halves = np.arange(right.shape[2]) % 2 == 0
    images = np.arange(right.shape[1])
    results = []
    for selecting in (halves, ~halves):
        share = np.where(there, right[..., selecting].mean(2), np.inf)
        tied = share == share.min(0)
        lead = np.where(there & tied, margin[..., selecting].mean(2), np.inf)
        worst = lead.argmin(0)
        results.append(right[..., ~selecting].mean(2)[worst, images])
    return np.where(there.any(0), np.mean(results, axis=0), np.nan)


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


def paired(a: np.ndarray, b: np.ndarray, *, confidence: float = 0.95, seed: int = 0) -> Difference:
    """Two defences on the same images.

    Args:
        a, b: each image's share of right purifications, in [0, 1], shape ``(n,)``.
        confidence: of the interval, a percentile bootstrap over images (scipy's, 9,999 resamples).
        seed: of the bootstrap.

    Reference:
        McNemar, Psychometrika 1947; Efron, Annals of Statistics 1979.
    """
    gaps = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    if gaps.ndim != 1 or not len(gaps):
        raise ValueError(f"a and b must be of one shape (n,), n at least 1, got {gaps.shape}")
    low = high = float(gaps.mean())
    if np.ptp(gaps) > 0:
        interval = _scipy().bootstrap(
            (gaps,), np.mean, confidence_level=confidence, method="percentile",
            vectorized=True, batch=1000, rng=np.random.default_rng(seed),
        ).confidence_interval  # fmt: skip
        low, high = float(interval.low), float(interval.high)
    only_a = int(((np.asarray(a) > 0.5) & (np.asarray(b) <= 0.5)).sum())
    only_b = int(((np.asarray(b) > 0.5) & (np.asarray(a) <= 0.5)).sum())
    p = float(_scipy().binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    return Difference(float(gaps.mean()), low, high, len(gaps), only_a, only_b, p)


def chance_of_more(a: np.ndarray, b: np.ndarray, *, seed: int = 0) -> float:
    """How likely it is that ``a`` comes out so much higher than ``b``, if neither is higher.

    The share of the ways to swap the two of an image, some images' or none, in which the mean
    difference is as large: a sign-flip test, one-sided. It rejects no oftener than it says at any
    number of images, where a bootstrap's interval of few is too narrow.

    Args:
        a, b: of each image, shape ``(n,)``.
        seed: of the 9,999 ways that are tried where there are more.

    Reference:
        Fisher, The Design of Experiments, 1935, section 21.
    """
    gaps = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    if len(gaps) == 1:  # scipy asks for two, and an image that is equal changes nothing
        gaps = np.append(gaps, 0.0)
    found = _scipy().permutation_test(
        (gaps,), np.mean, permutation_type="samples", alternative="greater",
        vectorized=True, n_resamples=9999, batch=1000, rng=np.random.default_rng(seed),
    )  # fmt: skip
    return float(found.pvalue)
