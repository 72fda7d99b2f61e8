"""What a run will take, before it is run."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass, replace

from scoreopt_defense.evaluation.plan import Materials, Plan, Unit
from scoreopt_defense.evaluation.units import Outcome, execute

__all__ = ["Estimate", "estimate"]


@dataclass(frozen=True)
class Estimate:
    """What one cell will take, of one worker.

    Attributes:
        denoiser_calls, classifier_calls: rows that the networks will see.
        error: of a cell that failed on its first image.
    """

    defence: str
    attack: str
    units: int
    denoiser_calls: int
    classifier_calls: int
    seconds: float
    error: str | None


def estimate(plan: Plan, materials: Materials) -> list[Estimate]:
    """Each cell on its first image, scaled up; and one whole unit, for what a batch saves.

    Calls are exact for attacks that spend the same on every image. Those of a suite's stages are an
    upper bound: as if each met every image, where an image that is taken leaves the queue. Times
    are those of this machine, now.
    """
    materials = replace(materials, defences=copy.deepcopy(dict(materials.defences)))
    firsts = [unit for unit in plan.units() if unit.trial == 0 and unit.images[0] == 0]
    execute(_of_one(firsts[0]), plan, materials)  # the first call of a network sets it up
    single = [execute(_of_one(unit), plan, materials) for unit in firsts]
    saving = _saving(plan, materials, single)
    units: Counter[tuple[str, str]] = Counter()
    images: Counter[tuple[str, str]] = Counter()  # a suite's probes meet the first ones alone
    for unit in plan.units():
        first, end = unit.images
        units[unit.defence, unit.attack] += 1
        images[unit.defence, unit.attack] += end - first
    return [
        Estimate(
            *cell, units[cell],
            images[cell] * outcome.calls.get("denoiser", 0),
            images[cell] * outcome.calls.get("classifier", 0),
            images[cell] * outcome.seconds * saving,
            outcome.error,
        )
        for outcome in single
        for cell in [(outcome.unit.defence, outcome.unit.attack)]
    ]  # fmt: skip


def _of_one(unit: Unit) -> Unit:
    return replace(unit, images=(unit.images[0], unit.images[0] + 1))


def _saving(plan: Plan, materials: Materials, single: list[Outcome]) -> float:
    """An image's share of a unit's time, as a multiple of its time alone."""
    size = min(plan.batch, plan.count)
    with_denoiser = [o for o in single if o.calls.get("denoiser") and not o.error]
    cheapest = min(with_denoiser or single, key=lambda outcome: outcome.seconds)
    whole = execute(replace(cheapest.unit, images=(0, size)), plan, materials)
    return whole.seconds / (size * cheapest.seconds) if not whole.error else 1.0
