"""What a run will take, before it is run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from scoreopt_defense.evaluation.plan import CLEAN, Materials, Plan, Unit
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
    upper bound: as if each met every image, where an image that is taken leaves the queue, which
    saves far more than the purifications that confirm it. A suite's many attacks are run with one
    sample of EOT, in whose number they are linear. Times are those of this machine, now.
    """
    samples = {name: getattr(materials.attacks[name], "eot", 1) for name in plan.parts}
    attacks = {
        name: materials.attacks[name].replace(eot=1) for name in plan.parts if samples[name] > 1
    }
    materials = replace(materials, attacks={**materials.attacks, **attacks})
    alone = replace(plan, suites={n: {**of, "confirm": 0} for n, of in plan.suites.items()})
    firsts = [unit for unit in plan.units() if unit.trial == 0 and unit.images[0] == 0]
    execute(_of_one(firsts[0]), alone, materials)  # the first call of a network sets it up
    single = [execute(_of_one(unit), alone, materials) for unit in firsts]
    saving = _saving(alone, materials, single)
    units: Counter[tuple[str, str]] = Counter()
    images: Counter[tuple[str, str]] = Counter()  # a suite's probes meet the first ones alone
    for unit in plan.units():
        first, end = unit.images
        units[unit.defence, unit.attack] += 1
        images[unit.defence, unit.attack] += end - first
    judging = {o.unit.defence: o for o in single if o.unit.attack == CLEAN}

    def foretold(outcome: Outcome) -> Estimate:
        cell = defence, attack = outcome.unit.defence, outcome.unit.attack
        times, judged = samples.get(attack, 1), judging[defence]

        def whole(one: float, of_judging: float) -> float:
            return images[cell] * (times * one - (times - 1) * of_judging)

        denoiser, classifier = (
            int(whole(outcome.calls.get(name, 0), judged.calls.get(name, 0)))
            for name in ("denoiser", "classifier")
        )
        seconds = saving * max(0.0, whole(outcome.seconds, judged.seconds))
        return Estimate(defence, attack, units[cell], denoiser, classifier, seconds, outcome.error)

    return [foretold(outcome) for outcome in single]


def _of_one(unit: Unit) -> Unit:
    return replace(unit, images=(unit.images[0], unit.images[0] + 1))


def _saving(plan: Plan, materials: Materials, single: list[Outcome]) -> float:
    """An image's share of a unit's time, as a multiple of its time alone."""
    size = min(plan.batch, plan.count)
    with_denoiser = [o for o in single if o.calls.get("denoiser") and not o.error]
    cheapest = min(with_denoiser or single, key=lambda outcome: outcome.seconds)
    whole = execute(replace(cheapest.unit, images=(0, size)), plan, materials)
    return whole.seconds / (size * cheapest.seconds) if not whole.error else 1.0
