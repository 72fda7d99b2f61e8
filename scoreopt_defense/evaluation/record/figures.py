"""Figures of single cells, one task on one defence each, with their intervals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from scoreopt_defense._checks import check_choice
from scoreopt_defense.evaluation.plan.parts import Unit
from scoreopt_defense.evaluation.plan.plan import Plan
from scoreopt_defense.evaluation.plan.tasks import CLEAN
from scoreopt_defense.evaluation.record.differences import Difference, difference
from scoreopt_defense.evaluation.record.judged import Judged, of_images, over_images
from scoreopt_defense.evaluation.record.rows import UnitResult, View
from scoreopt_defense.evaluation.record.statistics import (
    Proportion,
    Survival,
    deviation,
    majority,
    survival,
)
from scoreopt_defense.evaluation.record.store import Store
from scoreopt_defense.evaluation.record.store_error import NotKept, StoreError

__all__ = ["Cell", "Failure", "Figures"]


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
class Failure:
    """A unit that failed, how, and how many images it was to meet."""

    unit: Unit
    tried: int
    error: str


class Figures:
    """What a record has of a plan, complete or not.

    Args:
        store: of the record; stays open, for :meth:`adversarial`.
        plan: whose figures these are; by default the one that was put to it last.
        resubmissions: how many to report survival of.

    Attributes:
        cells: of the attacks that stand by themselves, and each suite's sum.
    """

    def __init__(
        self,
        store: Store,
        plan: Plan | None = None,
        *,
        resubmissions: tuple[int, ...] = (1, 8, 64),
    ) -> None:
        self.store, self.resubmissions = store, resubmissions
        self.plan = store.plan() if plan is None else plan
        units = list(self.plan.units())
        found = {result.key: result for result in store.read({unit.key for unit in units})}
        self._units: dict[tuple[str, str], list[tuple[Unit, UnitResult]]] = defaultdict(list)
        for unit in units:
            if unit.key in found:
                self._units[unit.defence, unit.attack].append((unit, found[unit.key]))
        self._judged: dict[tuple[str, str], Judged] = {}
        self._figures: dict[tuple[str, str], Cell] = {}
        self.cells = [
            self._cell(defence, attack)
            for attack in self.plan.columns
            for defence in self.plan.defences
            if self.was_run(defence, attack)
        ]

    def units(self) -> Iterator[tuple[Unit, UnitResult]]:
        """What is recorded, in the order of the work."""
        return (pair for of_cell in self._units.values() for pair in of_cell)

    def was_run(self, defence: str, attack: str) -> bool:
        """Whether anything of this is recorded, be it that it failed."""
        return self.tried(defence, attack) > 0

    def tried(self, defence: str, attack: str) -> int:
        """How many images were met, over all trials."""
        return sum(result.tried for _, result in self._units.get((defence, attack), ()))

    def cell(self, defence: str, attack: str = CLEAN) -> Cell:
        """The figures of one attack on one defence."""
        self._check_run(defence, attack)
        return self._cell(defence, attack)

    def _check_known(self, defence: str, attack: str) -> None:
        check_choice("defence", defence, self.plan.defences)
        check_choice("attack", attack, self.plan.tasks)

    def _check_run(self, defence: str, attack: str) -> None:
        self._check_known(defence, attack)
        if not self.was_run(defence, attack):
            raise ValueError(f"{attack} on {defence} has not been run yet")

    def _cell(self, defence: str, attack: str) -> Cell:
        if (defence, attack) not in self._figures:
            self._figures[defence, attack] = self._figured(defence, attack)
        return self._figures[defence, attack]

    def _figured(self, defence: str, attack: str) -> Cell:
        results = [result for _, result in self._units[defence, attack]]
        judged = self.judged(defence, attack)
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
            failed=sum(result.tried for result in results) - len(judged.images),
            denoiser_calls=sum(result.denoiser_calls for result in results),
            classifier_calls=sum(result.classifier_calls for result in results),
            seconds=sum(result.seconds for result in results),
        )

    def judged(self, defence: str, attack: str = CLEAN) -> Judged:
        """All judgements of one cell, as arrays."""
        if (defence, attack) not in self._judged:
            self._check_known(defence, attack)
            units = self._units.get((defence, attack), ())
            unattacked = self._unattacked(defence, attack)
            self._judged[defence, attack] = Judged.of(
                result for _, result in units if (result.trial, result.first) not in unattacked
            )
        return self._judged[defence, attack]

    def _unattacked(self, defence: str, attack: str) -> set[tuple[int, int]]:
        """Of a suite's sum, the batches of which all that it begins from failed: no figures."""
        tasks = self.plan.tasks[attack]
        if defence not in tasks or tasks[defence].kind != "judge":
            return set()
        before = [
            name for name in tasks[defence].begins_from if self.plan.tasks[name][defence].attacks
        ]
        units = [result for name in before for _, result in self._units.get((defence, name), ())]
        met = {(of.trial, of.first) for of in units if of.tried}
        return met - {(of.trial, of.first) for of in units if of.tried and not of.error}

    @cached_property
    def view(self) -> View | None:
        """What the record says of when and where the plan was put to it."""
        text = self.plan.as_json()
        return next((view for view in self.store.views().values() if view.plan == text), None)

    @property
    def attacks(self) -> list[str]:
        """The attacks that stand by themselves, no attack not among them."""
        return [n for n in self.plan.columns if n != CLEAN and n not in self.plan.sums]

    @property
    def competing(self) -> list[str]:
        """The columns that ``weakest`` is of: all but no attack; none where one suite is alone."""
        columns = [name for name in self.plan.columns if name != CLEAN]
        return [] if len(columns) == 1 and self.plan.suites else columns

    def measured(self, defence: str, probe: str) -> dict[str, dict[int, float]]:
        """What a probe measured: by name, each image's value, a mean over trials."""
        found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
        for _, result in self._units.get((defence, probe), ()):
            for name, values in (result.measured or {}).items():
                for place, value in zip(result.places.tolist(), values):
                    found[name][result.first + place].append(value)
        return {
            name: {image: float(np.mean(values)) for image, values in of_image.items()}
            for name, of_image in found.items()
        }

    def compare(self, a: str, b: str, attack: str = CLEAN) -> Difference:
        """Defence ``a`` less defence ``b`` under one attack, over the images that both have."""
        return difference(self.shares(a, attack), self.shares(b, attack))

    def shares(self, defence: str, attack: str = CLEAN) -> dict[int, float]:
        """How far each image is right, by its index: what its cell's ``robust`` is the mean of."""
        self._check_run(defence, attack)
        judged = self.judged(defence, attack)
        shares = judged.right.mean(1) if judged.whole is None else judged.whole
        return dict(zip(*(part.tolist() for part in of_images(judged.images, shares))))

    def counts(self, defence: str, attack: str = CLEAN) -> dict[int, tuple[int, int]]:
        """How often an image was judged rightly, and how often at all, by its index.

        Over all trials that did not fail; under the criterion ``any-step`` each judges once.
        """
        self._check_run(defence, attack)
        judged = self.judged(defence, attack)
        every = judged.right if judged.whole is None else judged.whole[:, None] == 1
        found: dict[int, tuple[int, int]] = {}
        for image, made in zip(judged.images.tolist(), every):
            right, of = found.get(image, (0, 0))
            found[image] = right + int(made.sum()), of + len(made)
        return found

    def adversarial(
        self, defence: str, attack: str, trial: int = 0, images: Sequence[int] | None = None
    ) -> np.ndarray:
        """The adversarial images, shape ``(n, C, H, W)``.

        NaN where there are none: their unit failed or did not meet them, they were not kept, or
        nothing was done to images past the first 256, which are those of the source.

        Args:
            images: by their indices; all by default.

        Raises:
            NotKept: if these were made, and none of them was kept.
            StoreError: naming what is missing or damaged.
        """
        self._check_known(defence, attack)
        if trial not in range(self.plan.trials):
            raise ValueError(f"trial must be from 0 to {self.plan.trials - 1}, got {trial!r}")
        places = {image: place for place, image in enumerate(images or range(self.plan.count))}
        shape = tuple(self.plan.images["shape"][1:])
        found = np.full((len(places), *shape), np.nan, dtype=np.float32)
        made, there = 0, 0
        for unit, result in self._units.get((defence, attack), ()):
            met = [p for p in result.places.tolist() if unit.images[0] + p in places]
            if unit.trial == trial and result.adversarial and met:
                kept = self.store.adversarial(result, met)
                made, there = made + len(met), there + len(kept)
                for place, image in kept.items():
                    if image.shape != shape:
                        raise StoreError(f"an image of {attack} is of shape {image.shape}, of "
                                         f"{shape} by the plan")  # fmt: skip
                    found[places[unit.images[0] + place]] = image
        if made and not there:
            raise NotKept(f"the images of {attack} on {defence} were not kept: a run says keep = "
                          '"all" to have them, in a record that has no result of it')  # fmt: skip
        return found

    @property
    def failures(self) -> list[Failure]:
        """The units that failed, in the order of the work."""
        return [
            Failure(unit, result.tried, result.error)
            for unit, result in self.units()
            if result.error
        ]
