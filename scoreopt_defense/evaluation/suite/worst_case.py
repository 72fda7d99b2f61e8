"""Robust accuracy by a suite, and which of its attacks found it."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np

from scoreopt_defense._checks import check_choice
from scoreopt_defense.evaluation.record.figures import Cell, Figures
from scoreopt_defense.evaluation.suite.carry_over import Harm, harms

__all__ = ["Stage", "WorstCase", "by_image", "worst_case"]

_MAJORITY = 0.5


@dataclass(frozen=True)
class Stage:
    """What one attack of a suite did.

    Attributes:
        attack: its name in the plan.
        label: and within the suite.
        tried: images that it met, over all trials: those still in the queue.
        taken: images whose worst candidate is its own and is wrong in most purifications.
        alone: those among them that no other attack which met them took.
        left: share of images, in their worst candidate so far, that is right; chosen and judged on
            the same purifications, so that only the suite's own figure is unbiased.
    """

    attack: str
    label: str
    tried: int
    taken: int
    alone: int
    left: float


@dataclass(frozen=True)
class WorstCase:
    """Robust accuracy by a suite: the worst case of each image over its attacks.

    Attributes:
        cell: of the worst candidates, judged by purifications that chose none of them; None until
            that has been done.
        stages: in order; the first is no attack at all, in suites that begin so.
        untried: what could not be tried, and why.
    """

    defence: str
    suite: str
    cell: Cell | None
    stages: tuple[Stage, ...]
    untried: dict[str, str]


def worst_case(figures: Figures, defence: str, suite: str) -> WorstCase:
    """A suite's figure of one defence, and which attack found it."""
    plan = figures.plan
    check_choice("defence", defence, plan.defences)
    check_choice("suite", suite, plan.suites)
    attacks = plan.of_suite(suite, defence, "attack")
    found: dict[tuple[int, int], dict[str, Harm]] = defaultdict(dict)
    left = []
    for name in attacks:
        for place, done in by_image(figures, defence, name).items():
            found[place][name] = done
        left.append(float(np.mean([min(of.values()).left for of in found.values()] or [np.nan])))
    worst = [(min(of, key=lambda name: of[name]), of) for of in found.values()]
    taken = [(name, of) for name, of in worst if of[name].left < _MAJORITY]
    alone = Counter(
        name for name, of in taken
        if all(done.left >= _MAJORITY for other, done in of.items() if other != name)
    )  # fmt: skip
    by = Counter(name for name, _ in taken)
    stages = (
        Stage(name, task.label, figures.tried(defence, name), by[name], alone[name], share)
        for (name, task), share in zip(attacks.items(), left)
    )
    few = {
        task.label: f"images past the first {task.images}: the suite gives it no others"
        for task in attacks.values()
        if task.attacks and (task.images or plan.count) < plan.count
    }
    was_judged = figures.was_run(defence, suite)
    cell = figures.cell(defence, suite) if was_judged else None
    untried = few | dict(plan.suites[suite].get(defence, {}))
    return WorstCase(defence, suite, cell, tuple(stages), untried)


def by_image(figures: Figures, defence: str, attack: str) -> dict[tuple[int, int], Harm]:
    """What an attack left of each image that it met, by its index and the trial."""
    judged = figures.judged(defence, attack)
    return dict(zip(judged.places, harms(judged)))
