"""What a run found: figures with their intervals, from its store."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np

from scoreopt_defense._checks import check_choice
from scoreopt_defense.evaluation.chain import Harm, harm
from scoreopt_defense.evaluation.plan import CLEAN
from scoreopt_defense.evaluation.statistics import (
    Difference,
    Proportion,
    Survival,
    deviation,
    majority,
    paired,
    proportion,
    survival,
    weakest,
)
from scoreopt_defense.evaluation.store import Store

__all__ = ["Cell", "Result", "Stage", "WorstCase", "aligned", "difference"]

_MAJORITY = 0.5


@dataclass(frozen=True)
class Cell:
    """One attack on one defence.

    Attributes:
        accuracy: mean over trials and judged purifications; its interval is over images.
        majority: the share of images that most of their purifications get right.
        unbroken: the share that the criterion ``any-step`` did not see broken; None under others.
        survival: of resubmissions, each more of them.
        deviation: of the accuracy, over trials; None of a single one.
        failed: images without a figure, over all trials, because their unit failed.
        denoiser_calls, classifier_calls: rows that the networks saw.
        seconds: of the workers, summed.
    """

    defence: str
    attack: str
    accuracy: Proportion | None
    majority: Proportion | None
    unbroken: Proportion | None
    survival: tuple[Survival, ...]
    deviation: float | None
    failed: int
    denoiser_calls: int
    classifier_calls: int
    seconds: float

    @property
    def robust(self) -> Proportion | None:
        """The criterion's own figure; None where every unit failed."""
        return self.unbroken or self.accuracy


@dataclass(frozen=True)
class Stage:
    """What one attack of a suite did.

    Attributes:
        tried: images that it met, over all trials: those still in the queue.
        taken: images whose worst candidate is its own and is wrong in most purifications.
        alone: those among them that no other attack which met them took.
        left: share of images, in their worst candidate so far, that is right; chosen and judged on
            the same purifications, so that only the suite's own figure is unbiased.
    """

    attack: str
    tried: int
    taken: int
    alone: int
    left: float


@dataclass(frozen=True)
class WorstCase:
    """Robust accuracy by a suite: the worst case of each image over its attacks.

    Attributes:
        cell: of the worst candidates, judged by purifications that chose none of them; None until
            the last stage has run.
        stages: in order; the first is no attack at all.
        untried: what could not be tried, and why.
    """

    defence: str
    suite: str
    cell: Cell | None
    stages: tuple[Stage, ...]
    untried: dict[str, str]


class Result:
    """A run's figures, complete or not.

    Args:
        store: of the run; stays open, for :meth:`adversarial`.
        resubmissions: how many to report survival of.

    Attributes:
        cells: of the attacks that stand by themselves, and each suite's sum.
    """

    def __init__(self, store: Store, *, resubmissions: tuple[int, ...] = (1, 8, 64)) -> None:
        self.store, self.plan, self.resubmissions = store, store.plan, resubmissions
        self._rows: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
        for row in store.read():
            self._rows[row["defence"], row["attack"]].append(row)
        self.cells = [
            self._cell(defence, attack)
            for attack in self.plan.columns
            for defence in self.plan.defences
            if (defence, attack) in self._rows
        ]

    def cell(self, defence: str, attack: str = CLEAN) -> Cell:
        """The figures of one attack on one defence."""
        self._check_run(defence, attack)
        return self._cell(defence, attack)

    def _check_run(self, defence: str, attack: str) -> None:
        check_choice("defence", defence, self.plan.defences)
        check_choice("attack", attack, self.plan.attacks)
        if (defence, attack) not in self._rows:
            raise ValueError(f"{attack} on {defence} has not been run yet")

    def _cell(self, defence: str, attack: str) -> Cell:
        rows = self._rows[defence, attack]
        judged = [row for row in rows if row["predicted"] is not None]
        right = np.array([_right(row) for row in judged])
        broken = [row["broken"] for row in judged if row["broken"] is not None]
        trials = sorted({row["trial"] for row in judged})
        of_trials = [
            float(np.mean([part.mean() for row, part in zip(judged, right) if row["trial"] == t]))
            for t in trials
        ]
        voted = [float(majority(np.array(row["predicted"]), row["label"])) for row in judged]
        return Cell(
            defence,
            attack,
            accuracy=_over_images(judged, [part.mean() for part in right]),
            majority=_over_images(judged, voted),
            unbroken=_over_images(judged, [1.0 - b for b in broken]) if broken else None,
            survival=tuple(survival(right, n) for n in self.resubmissions) if judged else (),
            deviation=deviation(of_trials),
            failed=len(rows) - len(judged),
            denoiser_calls=round(sum(row["denoiser_calls"] for row in rows)),
            classifier_calls=round(sum(row["classifier_calls"] for row in rows)),
            seconds=sum(row["seconds"] for row in rows),
        )

    def weakest(self, defence: str) -> Proportion | None:
        """Accuracy if each image meets whichever attack harms it most (no attack among them).

        Of the attacks that stand by themselves; a suite has its own :meth:`worst_case`.

        An attack is chosen on other purifications than it is judged on; see
        :func:`~scoreopt_defense.evaluation.statistics.weakest`. Under the criterion ``any-step`` it
        is the share of images that no attack broke. None if there is nothing to choose on: of one
        purification an image, there is no other to judge on.
        """
        names = [name for name in self.plan.columns if name not in self.plan.suites]
        rows = [row for attack in names for row in self._rows.get((defence, attack), [])]
        places = sorted({(row["image"], row["trial"]) for row in rows})
        shape = (len(names), len(places), self.plan.judging["purifications"])
        right, margin = np.zeros(shape), np.full(shape, np.nan)
        broken: dict[tuple[int, int], bool] = defaultdict(bool)
        order = {place: index for index, place in enumerate(places)}
        attacks = {attack: index for index, attack in enumerate(names)}
        for row in rows:
            if row["predicted"] is not None:
                place = row["image"], row["trial"]
                right[attacks[row["attack"]], order[place]] = _right(row)
                margin[attacks[row["attack"]], order[place]] = row["margin"]
                if row["broken"] is not None:
                    broken[place] |= bool(row["broken"])
        if broken:
            shares = [1.0 - broken[place] if place in broken else np.nan for place in places]
        elif self.plan.judging["purifications"] > 1:
            shares = weakest(right, margin).tolist()
        else:
            return None
        there = [(place, share) for place, share in zip(places, shares) if not np.isnan(share)]
        return _over_images([{"image": place[0]} for place, _ in there], [s for _, s in there])

    def worst_case(self, defence: str, suite: str) -> WorstCase:
        """A suite's figure of one defence, and which attack found it."""
        check_choice("defence", defence, self.plan.defences)
        check_choice("suite", suite, self.plan.suites)
        chain = self.plan.chains[suite]
        found: dict[tuple[int, int], dict[str, Harm]] = defaultdict(dict)
        names = [CLEAN, *chain.stages[defence][:-1]]
        left = []
        for name in names:
            for row in self.rows(defence, name):
                if row["predicted"] is not None:
                    found[row["image"], row["trial"]][name] = harm(row)
            left.append(
                float(np.mean([min(of.values()).left for of in found.values()] or [np.nan]))
            )
        worst = [(min(of, key=lambda name: of[name]), of) for of in found.values()]
        taken = [(name, of) for name, of in worst if of[name].left < _MAJORITY]
        alone = Counter(
            name for name, of in taken
            if all(done.left >= _MAJORITY for other, done in of.items() if other != name)
        )  # fmt: skip
        by = Counter(name for name, _ in taken)
        stages = (
            Stage(name, len(self.rows(defence, name)), by[name], alone[name], share)
            for name, share in zip(names, left)
        )
        last = chain.stages[defence][-1]
        cell = self._cell(defence, last) if self.rows(defence, last) else None
        return WorstCase(defence, suite, cell, tuple(stages), dict(chain.untried.get(defence, {})))

    def measured(self, defence: str, probe: str) -> dict[str, dict[int, float]]:
        """What a probe measured: by name, each image's value, a mean over trials."""
        found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
        for unit in self.store.units():
            if (unit["defence"], unit["attack"]) == (defence, probe) and unit["measured"]:
                for name, values in json.loads(unit["measured"]).items():
                    for image, value in enumerate(values, start=unit["first"]):
                        found[name][image].append(value)
        return {
            name: {image: float(np.mean(values)) for image, values in of_image.items()}
            for name, of_image in found.items()
        }

    def compare(self, a: str, b: str, attack: str = CLEAN) -> Difference:
        """Defence ``a`` less defence ``b`` under one attack, over the images that both have."""
        return difference(self.shares(a, attack), self.shares(b, attack))

    def rows(self, defence: str, attack: str = CLEAN) -> list[dict[str, Any]]:
        """The record's rows of one cell, with lists of ``predicted`` and ``margin``."""
        return self._rows.get((defence, attack), [])

    def shares(self, defence: str, attack: str = CLEAN) -> dict[int, float]:
        """How far each image is right, by its index: what its cell's ``robust`` is the mean of."""
        self._check_run(defence, attack)
        of_image: dict[int, list[float]] = defaultdict(list)
        for row in self._rows[defence, attack]:
            if row["predicted"] is not None:
                known = row["broken"]
                of_image[row["image"]].append(
                    float(np.mean(_right(row))) if known is None else 1.0 - known
                )
        return {image: float(np.mean(values)) for image, values in of_image.items()}

    def counts(self, defence: str, attack: str = CLEAN) -> dict[int, tuple[int, int]]:
        """How often an image was judged rightly, and how often at all, by its index.

        Over all trials that did not fail; under the criterion ``any-step`` each judges once.
        """
        self._check_run(defence, attack)
        found: dict[int, tuple[int, int]] = {}
        for row in self._rows[defence, attack]:
            if row["predicted"] is not None:
                known = row["broken"]
                made = _right(row) if known is None else np.array([not known])
                right, of = found.get(row["image"], (0, 0))
                found[row["image"]] = right + int(made.sum()), of + len(made)
        return found

    def adversarial(self, defence: str, attack: str, trial: int = 0) -> np.ndarray:
        """The adversarial images; NaN where there are none because their unit failed."""
        images = np.full(self.plan.images["shape"], np.nan, dtype=np.float32)
        for unit in self.store.units():
            cell = unit["defence"], unit["attack"], unit["trial"]
            if cell == (defence, attack, trial) and unit["adversarial"]:
                rows = slice(unit["first"], unit["first"] + unit["images"])
                images[rows] = self.store.adversarial(unit["unit"])
        return images

    @property
    def failures(self) -> list[dict[str, Any]]:
        """The units that failed, each with its ``error``."""
        return [unit for unit in self.store.units() if unit["error"]]

    def __str__(self) -> str:
        """A table: the criterion's figure of each cell, in per cent, with its 95 % interval.

        Below it, what failed and why: a figure over the attacks that are left flatters.
        """
        attacks = self.plan.columns
        weakest = [] if self.plan.suites else ["weakest"]  # which is the weaker statement
        lines = [["", *attacks, *weakest]]
        for defence in self.plan.defences:
            cells = {c.attack: c for c in self.cells if c.defence == defence}
            figures = [cells[a].robust if a in cells else None for a in attacks]
            if weakest:
                figures.append(self.weakest(defence))
            lines.append([defence, *map(_percent, figures)])
        widths = [max(map(len, column)) for column in zip(*lines)]
        table = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
        failed: Counter[tuple[str, str, str]] = Counter()
        for unit in self.failures:
            failed[unit["attack"], unit["defence"], unit["error"]] += unit["tried"]
        said = [
            f"failed: {attack} on {defence}, {images} images: {error}"
            for (attack, defence, error), images in failed.items()
        ]
        return "\n".join(table + said)


def difference(a: dict[int, float], b: dict[int, float], *, confidence: float = 0.95) -> Difference:
    """One set of :meth:`Result.shares` less another, over the images that both have.

    Raises:
        ValueError: if they have none in common.
    """
    return paired(*aligned(a, b), confidence=confidence)


def aligned(a: dict[int, float], b: dict[int, float]) -> tuple[np.ndarray, np.ndarray]:
    """The shares of the images that both have, in one order; empty if there are none."""
    both = sorted(a.keys() & b.keys())
    return np.array([a[image] for image in both]), np.array([b[image] for image in both])


def _right(row: dict[str, Any]) -> np.ndarray:
    return np.array(row["predicted"]) == row["label"]


def _percent(share: Proportion | None) -> str:
    return "-" if share is None else str(share)


def _over_images(rows: list[dict[str, Any]], shares: list[float]) -> Proportion | None:
    """A mean over images, each of which counts once however many trials it had."""
    of_image: dict[int, list[float]] = defaultdict(list)
    for row, share in zip(rows, shares, strict=True):
        of_image[row["image"]].append(float(share))
    if not of_image:
        return None
    total = sum(float(np.mean(values)) for values in of_image.values())
    return proportion(min(total, len(of_image)), len(of_image))
