"""What a run will take, before it is run."""

from __future__ import annotations

import copy
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

    Calls are exact for attacks that spend the same on every image. Times are those of this machine,
    now.
    """
    materials = replace(materials, defences=copy.deepcopy(dict(materials.defences)))
    firsts = [unit for unit in plan.units() if unit.trial == 0 and unit.images[0] == 0]
    execute(_of_one(firsts[0]), plan, materials)  # the first call of a network sets it up
    single = [execute(_of_one(unit), plan, materials) for unit in firsts]
    saving = _saving(plan, materials, single)
    images = plan.count * plan.trials
    batches = sum(1 for _ in plan.units()) // len(firsts)
    return [
        Estimate(
            outcome.unit.defence, outcome.unit.attack, batches,
            images * outcome.calls.get("denoiser", 0),
            images * outcome.calls.get("classifier", 0),
            images * outcome.seconds * saving,
            outcome.error,
        )
        for outcome in single
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
