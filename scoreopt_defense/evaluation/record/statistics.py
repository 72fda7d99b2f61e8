"""Figures with their uncertainty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from scoreopt_defense._optional import optional

__all__ = [
    "Proportion",
    "Survival",
    "deviation",
    "majority",
    "proportion",
    "survival",
    "weakest",
]


def scipy_stats() -> Any:
    return optional("scipy.stats", extra="evaluate")


@dataclass(frozen=True)
class Proportion(float):
    """A share of ``n`` images with its interval: a float that is true, of no image too.

    Example:
        >>> share = proportion(8, 10)
        >>> share == 0.8, 100 * share, f"{share:.0%}", str(share), bool(proportion(0, 10))
        (True, 80.0, '80%', '80.0 [44.4, 97.5]', True)
    """

    value: float
    low: float
    high: float
    n: int

    def __new__(cls, value: float, low: float, high: float, n: int) -> Proportion:
        return super().__new__(cls, value)

    def __getnewargs__(self) -> tuple[float, ...]:  # type: ignore[override]
        return self.value, self.low, self.high, self.n

    def __bool__(self) -> bool:  # where there is none, there is None
        return True

    def __format__(self, spec: str) -> str:
        return format(self.value, spec) if spec else str(self)

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
    beta, tail = scipy_stats().beta, (1 - confidence) / 2
    low = float(beta.ppf(tail, right, total - right + 1)) if right > 0 else 0.0
    high = float(beta.isf(tail, right + 1, total - right)) if right < total else 1.0
    return Proportion(right / total, low, high, total)


def deviation(values: Sequence[float]) -> float | None:
    """Sample standard deviation (n - 1) over trials; None of fewer than two."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def majority(predicted: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether more purifications say the label than any other class; a tie is wrong.

    Args:
        predicted: classes, shape ``(n, k)``.
        labels: shape ``(n,)``.

    Returns:
        Booleans, shape ``(n,)``.
    """
    votes = (predicted[:, :, None] == predicted[:, None, :]).sum(2)
    right = predicted == labels[:, None]
    return right.sum(1) > np.where(right, 0, votes).max(1, initial=0)


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


def weakest(right: np.ndarray, lead: np.ndarray) -> np.ndarray:
    """Each image's share of right purifications under the candidate that does it most harm.

    Several candidates (attacks, restarts) compete for an image. Chosen and judged on the same
    purifications, the lowest of several noisy shares is too low on average. So each purification is
    judged under the candidate that the others choose, by the share that is right and then by the
    mean lead: that is no candidate's luck, but the choice is noisy, and the mean too high. The
    same candidate for every image is a choice too, and the lowest of all those means is taken: so
    it is never above that of the lowest single candidate.

    Simulated, of 8 purifications, 2 to 20 candidates and 60 to 256 images, the mean is at most 3.5
    points too high (candidates that differ by image) and 3.5 too low (equal ones, of few images).

    Args:
        right: booleans, shape ``(candidates, images, k)``, k at least 2.
        lead: the true class's, same shape; NaN where a candidate is missing, which is then never
            chosen.

    Returns:
        Shape ``(images,)``; NaN where all candidates are missing.
    """
    draws = right.shape[2]
    if draws < 2:
        raise ValueError(
            f"purifications must be at least 2, to choose on one and judge on another, got {draws}"
        )
    there = ~np.isnan(lead).any(2)
    images, judged = np.arange(right.shape[1]), []
    for draw in range(draws):
        others = np.arange(draws) != draw
        share = np.where(there, right[..., others].mean(2), np.inf)
        least = np.where(there & (share == share.min(0)), lead[..., others].mean(2), np.inf)
        judged.append(right[least.argmin(0), images, draw])
    by_image = np.where(there.any(0), np.mean(judged, axis=0), np.nan)
    if not there.any():
        return by_image
    singly = np.where(there, right.mean(2), by_image)
    choices = np.concatenate([by_image[None], singly])
    return choices[np.nanmean(choices, axis=1).argmin()]
