"""Figures that hold whenever one stops: images in random order, until a question is answered.

An interval of 95 % that is looked at after each batch, until it says what one hoped for, is wrong
far oftener than once in 20 times. A confidence sequence is a sequence of intervals that all hold at
once in 95 % of runs, so that any moment to stop is as good.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from scoreopt_defense._checks import check_positive
from scoreopt_defense.evaluation.evaluate import evaluate_plan
from scoreopt_defense.evaluation.plan import CLEAN, Materials, Plan
from scoreopt_defense.evaluation.record.results import Result

__all__ = ["Goal", "Reached", "evaluate_until", "sequence"]

_GRID = np.linspace(0, 1, 1001)
_MOST_BET = 0.5  # of what a bet may lose at most


def sequence(values: Any, *, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    r"""Ends of a confidence sequence for the mean of numbers in [0, 1], after each of them.

    For each candidate m of the mean two gamblers bet on the next number, one that it is above m and
    one that it is below. Their capital, the larger half of both,

    .. math:: K_t(m) = \tfrac12 \max\Bigl(\prod_{i \le t} (1 + \lambda_i^+ (x_i - m)),
        \prod_{i \le t} (1 - \lambda_i^- (x_i - m))\Bigr)

    grows beyond :math:`1 / \alpha` for the true mean in a share of at most :math:`\alpha` of runs,
    at any time (Ville's inequality), as long as each bet depends on earlier numbers alone. What is
    left are the m whose capital never did. Ends are rounded outwards to thousandths.

    Args:
        values: independent, of one distribution, in [0, 1], shape ``(n,)``.
        confidence: 1 less alpha.

    Returns:
        Lower and upper ends, shape ``(n,)`` each.

    Reference:
        Waudby-Smith and Ramdas, Estimating means of bounded random variables by betting, Journal of
        the Royal Statistical Society B 2024, theorem 3 (hedged, predictable plug-in).
    """
    values, alpha = np.asarray(values, dtype=float), 1 - confidence
    if values.ndim != 1 or not ((values >= 0) & (values <= 1)).all():
        raise ValueError("values must be numbers in [0, 1], of shape (n,)")
    above, below = np.zeros(len(_GRID)), np.zeros(len(_GRID))  # logarithms of capital
    left = np.ones(len(_GRID), dtype=bool)
    total, squares, variance = 0.5, 0.25, 0.25
    lows, highs = [], []
    with np.errstate(divide="ignore"):
        most_above, most_below = _MOST_BET / _GRID, _MOST_BET / (1 - _GRID)
    for t, x in enumerate(values, start=1):
        bet = math.sqrt(2 * math.log(2 / alpha) / (variance * t * math.log(1 + t)))
        above += np.log1p(np.minimum(bet, most_above) * (x - _GRID))
        below += np.log1p(-np.minimum(bet, most_below) * (x - _GRID))
        still = left & (np.maximum(above, below) + math.log(0.5) < -math.log(alpha))
        left = still if still.any() else left
        total += x
        squares += (x - total / (t + 1)) ** 2
        variance = squares / (t + 1)
        ends = _GRID[left]
        lows.append(max(0.0, ends[0] - _GRID[1]))
        highs.append(min(1.0, ends[-1] + _GRID[1]))
    return np.array(lows), np.array(highs)


@dataclass(frozen=True)
class Goal:
    """When enough images have been met.

    Args:
        until: as ``"robust < 30%"`` or ``"robust > 30%"``: when the answer is known, whichever it
            is; None for none.
        width: or when the interval is no wider, in points of per cent.

    Raises:
        ValueError: unless one of both is said, and in these words.
    """

    until: str | None = None
    width: float | None = None

    def __post_init__(self) -> None:
        if (self.until is None) == (self.width is None):
            raise ValueError("say --until or --width, one of both")
        if self.width is not None:
            check_positive("width", self.width)
        elif not 0 < self.bound < 1:
            raise ValueError(f"until must be of a bound between 0 % and 100 %, got {self.until!r}")

    @property
    def bound(self) -> float:
        """That is asked about, from 0 to 1."""
        found = re.fullmatch(r"\s*robust\s*[<>]\s*(\d+(?:\.\d+)?)\s*%\s*", self.until or "")
        if found is None:
            raise ValueError(f"until must be as in 'robust < 30%', got {self.until!r}")
        return float(found[1]) / 100

    def met(self, low: float, high: float) -> str:
        """What is known by an interval, in words; empty if that is not enough."""
        if self.width is not None:
            return f"no wider than {self.width:g} points" if high - low <= self.width / 100 else ""
        said = f"{100 * self.bound:g} %"
        return f"below {said}" if high < self.bound else f"above {said}" if low > self.bound else ""


@dataclass(frozen=True, kw_only=True)
class Reached:
    """What a run that may stop early found of a defence.

    Attributes:
        value: robust accuracy over ``images``, with the ends of its confidence sequence.
        images, planned: how many were met, and how many there are.
        answer: what is known; empty if all images did not say it.
        seconds: of the workers, that the images which were not met would have taken.
    """

    defence: str
    value: float
    low: float
    high: float
    images: int
    planned: int
    answer: str
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.defence}: {self.answer or 'not decided'} after {self.images} of {self.planned} "
            f"images: {100 * self.value:.1f} % stand, {100 * self.low:.1f} to "
            f"{100 * self.high:.1f} at whatever time one stops (95 % confidence sequence)"
        )


def evaluate_until(
    plan: Plan, materials: Materials, goal: Goal, *, workers: int = 1, **options: Any
) -> tuple[Result, list[Reached]]:
    """As :func:`~scoreopt_defense.evaluation.evaluate.evaluate_plan`, of as few images as it takes.

    A batch for each worker at a time, of all defences, until the goal is met for each. Of a suite
    the worst case of each image is what counts. What was recorded before is not done again.

    Args:
        plan, materials: of all images, in random order.
        options: of :func:`~scoreopt_defense.evaluation.evaluate.evaluate_plan`.

    Raises:
        ValueError: if there are several figures to go by.
    """
    columns = [name for name in plan.columns if name != CLEAN]
    if len(columns) != 1:
        raise ValueError(f"to stop early takes one suite or attack to go by, got {columns}")
    for part in _parts(plan, materials, workers):
        result = evaluate_plan(part, materials, workers=workers, **options)
        reached = [_reached(result, name, columns[0], goal, plan.count) for name in plan.defences]
        if all(one.answer for one in reached) or part.count == plan.count:
            return result, reached
        result.store.close()
    raise AssertionError("a plan has images")


def _parts(plan: Plan, materials: Materials, workers: int) -> Iterator[Plan]:
    step, digests = plan.batch * workers, materials.images.digests()
    for count in range(step, plan.count, step):
        yield plan.first(count, digests)
    yield plan


def _reached(result: Result, defence: str, column: str, goal: Goal, planned: int) -> Reached:
    shares = result.shares(defence, column)
    values = [shares[image] for image in sorted(shares)]
    lows, highs = sequence(values or [])
    low, high = (float(lows[-1]), float(highs[-1])) if values else (0.0, 1.0)
    count = result.plan.count
    spent = sum(found.seconds for unit, found in result.units() if unit.defence == defence)
    return Reached(
        defence=defence, value=float(np.mean(values)) if values else math.nan, low=low, high=high,
        images=count, planned=planned, answer=goal.met(low, high),
        seconds=spent * (planned / count - 1),
    )  # fmt: skip
