"""What a run found: figures with their intervals, from its store."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from scoreopt_defense._checks import check_choice
from scoreopt_defense.evaluation.chain import Harm, harm
from scoreopt_defense.evaluation.judged import Judged, of_images, over_images
from scoreopt_defense.evaluation.overall import Overall, as_text, overall
from scoreopt_defense.evaluation.plan import CLEAN
from scoreopt_defense.evaluation.statistics import (
    Difference,
    Proportion,
    Survival,
    deviation,
    difference,
    majority,
    survival,
    weakest,
)
from scoreopt_defense.evaluation.store import Store

__all__ = ["Cell", "Result", "Stage", "WorstCase"]

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
        self._units: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
        for unit in store.units():
            self._units[unit["defence"], unit["attack"]].append(unit)
        self._judged: dict[tuple[str, str], Judged] = {}
        self._figures: dict[tuple[str, str], Cell] = {}
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
        if (defence, attack) not in self._figures:
            self._figures[defence, attack] = self._figured(defence, attack)
        return self._figures[defence, attack]

    def _figured(self, defence: str, attack: str) -> Cell:
        rows, judged = self._rows[defence, attack], self._judged_of(defence, attack)
        shares = judged.right.mean(1)
        of_trials = [float(shares[judged.trials == t].mean()) for t in np.unique(judged.trials)]
        return Cell(
            defence,
            attack,
            accuracy=over_images(judged.images, shares),
            majority=over_images(judged.images, majority(judged.predicted, judged.labels)),
            unbroken=None if judged.whole is None else over_images(judged.images, judged.whole),
            survival=tuple(survival(judged.right, n) for n in self.resubmissions if len(shares)),
            deviation=deviation(of_trials),
            failed=len(rows) - len(shares),
            denoiser_calls=round(sum(row["denoiser_calls"] for row in rows)),
            classifier_calls=round(sum(row["classifier_calls"] for row in rows)),
            seconds=sum(row["seconds"] for row in rows),
        )

    def _judged_of(self, defence: str, attack: str) -> Judged:
        if (defence, attack) not in self._judged:
            rows = [row for row in self.rows(defence, attack) if row["predicted"] is not None]
            self._judged[defence, attack] = Judged.of(rows)
        return self._judged[defence, attack]

    @property
    def attacks(self) -> list[str]:
        """The attacks that stand by themselves, no attack not among them."""
        return [n for n in self.plan.columns if n != CLEAN and n not in self.plan.suites]

    def weakest(self, defence: str) -> Proportion | None:
        """Accuracy if each image meets whichever attack harms it most, or none if that does.

        Of the attacks that stand by themselves; a suite has its own :meth:`worst_case`. An attack
        is chosen on other purifications than it is judged on, and the figure is never above that
        of the lowest single attack: see :func:`~scoreopt_defense.evaluation.statistics.weakest`,
        which says how far it is off. Under the criterion ``any-step`` it is the share of images
        that no attack broke. Of the images alone that some attack has a figure of.

        None without such an image, and where an image has but one purification: there is none to
        choose on and another to judge on. :meth:`overall` says why, what the figure lacks, and
        whether it can be believed.
        """
        names = [CLEAN, *self.attacks]
        cells = [self._judged_of(defence, name) for name in names]
        places = sorted({place for cell in cells[1:] for place in cell.places})
        order = {place: index for index, place in enumerate(places)}
        shape = (len(names), len(places), self.plan.judging["purifications"])
        right, margin = np.zeros(shape, dtype=bool), np.full(shape, np.nan)
        whole = np.ones(shape[:2])
        for index, cell in enumerate(cells):
            there = [row for row, place in enumerate(cell.places) if place in order]
            at = [order[cell.places[row]] for row in there]
            right[index, at], margin[index, at] = cell.right[there], cell.margin[there]
            if cell.whole is not None:
                whole[index, at] = cell.whole[there]
        if not places:
            return None
        images = np.array([image for image, _ in places])
        if any(cell.whole is not None for cell in cells):
            return over_images(images, whole.min(0))
        return over_images(images, weakest(right, margin)) if shape[2] > 1 else None

    def overall(self, defence: str) -> Overall:
        """:meth:`weakest`, with what it lacks and what the checks say of it."""
        check_choice("defence", defence, self.plan.defences)
        return overall(self, defence)

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
        for unit in self._units[defence, probe]:
            if unit["measured"]:
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
        judged = self._judged_of(defence, attack)
        shares = judged.right.mean(1) if judged.whole is None else judged.whole
        return dict(zip(*(part.tolist() for part in of_images(judged.images, shares))))

    def counts(self, defence: str, attack: str = CLEAN) -> dict[int, tuple[int, int]]:
        """How often an image was judged rightly, and how often at all, by its index.

        Over all trials that did not fail; under the criterion ``any-step`` each judges once.
        """
        self._check_run(defence, attack)
        judged = self._judged_of(defence, attack)
        every = judged.right if judged.whole is None else judged.whole[:, None] == 1
        found: dict[int, tuple[int, int]] = {}
        for image, made in zip(judged.images.tolist(), every):
            right, of = found.get(image, (0, 0))
            found[image] = right + int(made.sum()), of + len(made)
        return found

    def adversarial(self, defence: str, attack: str, trial: int = 0) -> np.ndarray:
        """The adversarial images; NaN where there are none because their unit failed."""
        images = np.full(self.plan.images["shape"], np.nan, dtype=np.float32)
        for unit in self._units[defence, attack]:
            if unit["trial"] == trial and unit["adversarial"]:
                rows = slice(unit["first"], unit["first"] + unit["images"])
                images[rows] = self.store.adversarial(unit["unit"])
        return images

    @cached_property
    def failures(self) -> list[dict[str, Any]]:
        """The units that failed, each with its ``error``."""
        units = (unit for of_cell in self._units.values() for unit in of_cell if unit["error"])
        return sorted(units, key=lambda unit: unit["unit"])

    def __str__(self) -> str:
        """A table: the criterion's figure of each cell, in per cent, with its 95 % interval.

        Below it what failed and why, and what the checks say: no figure is to be read without them.
        """
        return as_text(self)
