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
    """Each cell on its first image, scaled up; and one whole unit, for what a batch saves.

    Attacks of this library are tried with few steps of one sample, in whose number they are linear.
    Calls are exact for attacks that spend the same on every step of every image, but for what
    chooses among restarts. Those of a suite's tasks are an upper bound: as if each met every image,
    where an image that is taken leaves the queue, which saves far more than the purifications that
    confirm it. Times are those of this machine, now.

    Args:
        most: seconds, after which no further cell is begun.
        told: is called with each unit that is tried, in words.
    """
    begun = time.monotonic()
    cheap = {
        name: {defence: _cheap(task) for defence, task in of.items()}
        for name, of in materials.tasks.items()
    }
    materials = replace(
        materials, tasks={n: {d: task for d, (task, _) in of.items()} for n, of in cheap.items()}
    )
    firsts = [unit for unit in plan.units() if unit.trial == 0 and unit.images[0] == 0]
    scaled = (unit for unit in firsts if cheap[unit.attack][unit.defence][1] > 1)
    for unit in (firsts[0], *islice(scaled, most > 0)):  # first calls set networks and libraries up
        _do(_of_one(unit), plan, materials)
    single: dict[tuple[str, str], UnitResult] = {}
    for unit in firsts:
        if unit.attack == CLEAN or time.monotonic() - begun < most:
            told(f"{unit.attack} on {unit.defence}")
            single[unit.defence, unit.attack] = _do(_of_one(unit), plan, materials)
    left = most - (time.monotonic() - begun)
    saving = _saving(firsts, plan, materials, single, left)
    units: Counter[tuple[str, str]] = Counter()
    images: Counter[tuple[str, str]] = Counter()  # probes meet the first ones alone
    for unit in plan.units():
        units[unit.defence, unit.attack] += 1
        images[unit.defence, unit.attack] += unit.size

    def of_one(defence: str, attack: str) -> tuple[np.ndarray, str | None]:
        """What an image takes: calls of both networks, and seconds."""
        found, judged = single[defence, attack], _spent(single[defence, CLEAN])
        times = cheap[attack][defence][1]
        return np.maximum(judged + times * (_spent(found) - judged), 0), found.error

    def guessed(defence: str, attack: str) -> np.ndarray:
        tried = {a: of_one(d, a)[0] for d, a in single if d == defence}
        asked = {a: _queries(plan, defence, a) for a in (*tried, attack)}
        judged = tried[CLEAN]
        if not asked[attack]:
            return np.max([*tried.values()], axis=0)
        rates = [(spent - judged) / asked[a] for a, spent in tried.items() if asked[a]]
        least = _QUERY * judged / plan.judging["purifications"]
        return judged + asked[attack] * np.max([*rates, least], axis=0)

    def foretold(unit: Unit) -> Estimate:
        cell = unit.defence, unit.attack
        spent, error = of_one(*cell) if cell in single else (guessed(*cell), None)
        denoiser, classifier, seconds = (images[cell] * spent).tolist()
        return Estimate(
            *cell, units[cell], round(denoiser), round(classifier), saving * seconds, error,
            guessed=cell not in single,
        )  # fmt: skip

    return [foretold(unit) for unit in firsts]


def _spent(result: UnitResult) -> np.ndarray:
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


def _do(unit: Unit, plan: Plan, materials: Materials) -> UnitResult:
    return execute(unit, materials, threads=plan.threads).result


def _of_one(unit: Unit) -> Unit:
    return replace(unit, images=(unit.images[0], unit.images[0] + 1))


def _saving(
    firsts: list[Unit],
    plan: Plan,
    materials: Materials,
    single: dict[tuple[str, str], UnitResult],
    left: float,
) -> float:
    """An image's share of a unit's time, as a multiple of its time alone; 1 without the time."""
    size = min(plan.batch, plan.count)
    tried = [(u, single[u.defence, u.attack]) for u in firsts if (u.defence, u.attack) in single]
    with_denoiser = [(u, r) for u, r in tried if r.denoiser_calls and not r.error]
    unit, alone = min(with_denoiser or tried, key=lambda pair: pair[1].seconds)
    if size * alone.seconds > left:
        return 1.0
    whole = _do(replace(unit, images=(0, size)), plan, materials)
    return whole.seconds / (size * alone.seconds) if not whole.error else 1.0
