"""What a run will take, before it is run."""

from __future__ import annotations

import importlib
import math
import time
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from scoreopt_defense import attacks as library
from scoreopt_defense.evaluation.plan import CLEAN, Materials, Plan, Unit
from scoreopt_defense.evaluation.plan.tasks import Task
from scoreopt_defense.evaluation.record.rows import UnitResult
from scoreopt_defense.evaluation.run.unit import execute

__all__ = ["Estimate", "estimate"]


_LEAST_STEPS = 4  # that an attack is tried with: of fewer, what it does once counts for too much
_QUERY = 4  # judged purifications that a query of what was not tried takes, if no other takes more


@dataclass(frozen=True)
class Estimate:
    """What one cell will take, of one worker.

    Attributes:
        denoiser_calls, classifier_calls: rows that the networks will see.
        error: of a cell that failed on its first image.
        guessed: whether there was no time to try it: it is then what its queries would take at the
            highest rate of those that were tried on the defence, four purifications at least.
    """

    defence: str
    attack: str
    units: int
    denoiser_calls: int
    classifier_calls: int
    seconds: float
    error: str | None
    guessed: bool = False


def estimate(
    plan: Plan,
    materials: Materials,
    *,
    most: float = math.inf,
    told: Callable[[str], object] = lambda _: None,
) -> list[Estimate]:
    """Each cell on its first image, scaled up; and two whole units, for what a batch saves.

    Attacks of this library are tried with few steps of one sample, in whose number they are linear,
    and judged by one purification. A batch saves as much of every attack on a defence as of the
    first that asks its denoiser.
    Calls are exact for attacks that spend the same on every step of every image, but for what
    chooses among restarts. Those of a suite's tasks are an upper bound: as if each met every image,
    where an image that is taken leaves the queue, which saves far more than the purifications that
    confirm it. Times are those of this machine, now.

    Args:
        most: seconds, after which no further cell is begun.
        told: is called with each unit that is tried, in words.
    """
    tried = _Tried(plan, materials)
    tried.all(most, told)
    units: Counter[tuple[str, str]] = Counter()
    images: Counter[tuple[str, str]] = Counter()  # probes meet the first ones alone
    for unit in plan.units():
        units[unit.defence, unit.attack] += 1
        images[unit.defence, unit.attack] += unit.size

    def foretold(unit: Unit) -> Estimate:
        cell = unit.defence, unit.attack
        denoiser, classifier, seconds = (images[cell] * tried.takes(*cell)).tolist()
        found = tried.single.get(cell)
        return Estimate(
            *cell, units[cell], round(denoiser), round(classifier), seconds,
            None if found is None else found.error, guessed=found is None,
        )  # fmt: skip

    return [foretold(unit) for unit in tried.firsts]


class _Tried:
    """What was tried on the first image: calls of both networks and seconds, in arrays of three.

    Attributes:
        firsts: each cell's first unit.
        single: what came of a cell's, judged by one purification.
        judged: what judging an image takes, of each defence.
        savings: an image's share of a batch's time, as a multiple of its time alone, of a defence's
            judging and its attacks.
    """

    def __init__(self, plan: Plan, materials: Materials) -> None:
        self.plan, self.materials = plan, materials
        self.cheap = {
            name: {defence: _cheap(task) for defence, task in of.items()}
            for name, of in materials.tasks.items()
        }
        tasks = {n: {d: task for d, (task, _) in of.items()} for n, of in self.cheap.items()}
        self.tries = replace(
            materials, tasks=tasks, judging=materials.judging.replace(purifications=1)
        )
        self.firsts = [unit for unit in plan.units() if unit.trial == 0 and unit.images[0] == 0]
        self.single: dict[tuple[str, str], UnitResult] = {}
        self.judged: dict[str, np.ndarray] = {}
        self.savings: dict[tuple[str, str], float] = {}

    def all(self, most: float, told: Callable[[str], object]) -> None:
        """Each cell on one image, until so many seconds are over."""
        begun = time.monotonic()
        scaled = (unit for unit in self.firsts if self.cheap[unit.attack][unit.defence][1] > 1)
        # first calls set networks and libraries up
        for unit in (self.firsts[0], *islice(scaled, most > 0)):
            self.spent(unit, self.tries)
        for unit in self.firsts:
            left = most - (time.monotonic() - begun)
            if unit.attack != CLEAN and left <= 0:
                continue
            told(f"{unit.attack} on {unit.defence}")
            self.single[unit.defence, unit.attack] = found = self.spent(unit, self.tries)
            part, of = (unit.defence, "attack"), self.tries
            if unit.attack == CLEAN:
                part, of = (unit.defence, "judging"), self.materials
                found = self.spent(unit, of)
                self.judged[unit.defence] = _numbers(found)
            if part not in self.savings and _asked_more(found, self.single[unit.defence, CLEAN]):
                self.save(part, unit, of, found.seconds, left / 2)  # the rest is for the others

    def spent(self, unit: Unit, of: Materials, size: int = 1) -> UnitResult:
        some = replace(unit, images=(unit.images[0], unit.images[0] + size))
        return execute(some, of, threads=self.plan.threads).result

    def save(
        self, part: tuple[str, str], unit: Unit, of: Materials, alone: float, most: float
    ) -> None:
        """Try a whole batch, if that takes no more seconds than these."""
        size = min(self.plan.batch, self.plan.count)
        if size * alone <= most and not (whole := self.spent(unit, of, size)).error:
            self.savings[part] = whole.seconds / (size * alone)

    def takes(self, defence: str, attack: str) -> np.ndarray:
        """Of an image of a batch."""
        known = (defence, attack) in self.single
        attacking = (self.attacking if known else self.guessed)(defence, attack)
        judging, attacks = (
            np.array([1.0, 1.0, self.savings.get((defence, part), 1.0)])
            for part in ("judging", "attack")
        )
        return np.maximum(judging * self.judged[defence] + attacks * attacking, 0)

    def attacking(self, defence: str, attack: str) -> np.ndarray:
        """Of an image alone that is attacked as often as the plan says."""
        found, once = self.single[defence, attack], self.single[defence, CLEAN]
        return self.cheap[attack][defence][1] * (_numbers(found) - _numbers(once))

    def guessed(self, defence: str, attack: str) -> np.ndarray:
        """As :meth:`attacking`, of what was not tried."""
        tried = {a: self.attacking(d, a) for d, a in self.single if d == defence}
        asked = {a: _queries(self.plan, defence, a) for a in (*tried, attack)}
        if not asked[attack]:
            return np.max([*tried.values()], axis=0)
        rates = [took / asked[a] for a, took in tried.items() if asked[a]]
        least = _QUERY * self.judged[defence] / self.materials.judging.purifications
        return asked[attack] * np.max([*rates, least], axis=0)


def _asked_more(found: UnitResult, once: UnitResult) -> bool:
    """Whether it asked the networks more than judging once does: the dear one, if there is one."""
    calls = "denoiser_calls" if once.denoiser_calls else "classifier_calls"
    return not found.error and getattr(found, calls) > getattr(once, calls)


def _numbers(result: UnitResult) -> np.ndarray:
    return np.array([result.denoiser_calls, result.classifier_calls, result.seconds])


def _queries(plan: Plan, defence: str, attack: str) -> int:
    """What an attack of this library asks an image; 0 of others."""
    try:
        return library.from_dict(plan.tasks[attack][defence].attack).queries
    except (ValueError, TypeError, KeyError, AttributeError, ImportError):
        return 0


def _cheap(task: Task) -> tuple[Task, float]:
    """One of few steps and one sample, that confirms nothing; and how often the task is that."""
    attack, times = task.attack, 1.0
    if isinstance(attack, library.BoundedAttack) and attack.queries:
        for module in attack.libraries:  # which may take seconds, once
            with suppress(ImportError):
                importlib.import_module(module)
        with warnings.catch_warnings():  # of steps that go nowhere
            warnings.simplefilter("ignore")
            attack = attack.replace(eot=1, steps=min(attack.steps, _LEAST_STEPS))
        times = task.attack.queries / attack.queries
    return replace(task, attack=attack, confirm=0), times
