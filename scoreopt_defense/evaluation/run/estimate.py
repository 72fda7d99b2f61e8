"""What a run will take, before it is run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from scoreopt_defense.evaluation.plan import CLEAN, Materials, Plan, Unit
from scoreopt_defense.evaluation.plan.tasks import Task
from scoreopt_defense.evaluation.run.unit import Outcome, execute
from scoreopt_defense.settings import Settings

__all__ = ["Estimate", "estimate", "samples_of"]


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

    Calls are exact for attacks that spend the same on every image. Those of a suite's tasks are an
    upper bound: as if each met every image, where an image that is taken leaves the queue, which
    saves far more than the purifications that confirm it. A suite's many attacks are run with one
    sample of EOT, in whose number they are linear. Times are those of this machine, now.
    """
    samples = {
        (name, defence): samples_of(task) if plan.tasks[name][defence].suite else 1
        for name, of in materials.tasks.items()
        for defence, task in of.items()
    }
    tasks = {
        name: {defence: _cheap(task, samples[name, defence]) for defence, task in of.items()}
        for name, of in materials.tasks.items()
    }
    materials = replace(materials, tasks=tasks)
    firsts = [unit for unit in plan.units() if unit.trial == 0 and unit.images[0] == 0]
    _do(_of_one(firsts[0]), plan, materials)  # the first call of a network sets it up
    single = [_do(_of_one(unit), plan, materials) for unit in firsts]
    saving = _saving(plan, materials, single)
    units: Counter[tuple[str, str]] = Counter()
    images: Counter[tuple[str, str]] = Counter()  # probes meet the first ones alone
    for unit in plan.units():
        units[unit.defence, unit.attack] += 1
        images[unit.defence, unit.attack] += unit.size
    judging = {o.unit.defence: o.result for o in single if o.unit.attack == CLEAN}

    def foretold(outcome: Outcome) -> Estimate:
        cell = defence, attack = outcome.unit.defence, outcome.unit.attack
        found, judged, times = outcome.result, judging[defence], samples[attack, defence]

        def whole(one: float, of_judging: float) -> float:
            return images[cell] * (times * one - (times - 1) * of_judging)

        return Estimate(
            defence,
            attack,
            units[cell],
            int(whole(found.denoiser_calls, judged.denoiser_calls)),
            int(whole(found.classifier_calls, judged.classifier_calls)),
            saving * max(0.0, whole(found.seconds, judged.seconds)),
            found.error,
        )

    return [foretold(outcome) for outcome in single]


def samples_of(task: Task) -> int:
    """Of EOT; 1 where it is not known how to take fewer, as of somebody's own attack."""
    return getattr(task.attack, "eot", 1) if isinstance(task.attack, Settings) else 1


def _cheap(task: Task, samples: int) -> Task:
    """With one sample of EOT, and without what confirms."""
    attack = task.attack.replace(eot=1) if samples > 1 else task.attack
    return replace(task, attack=attack, confirm=0)


def _do(unit: Unit, plan: Plan, materials: Materials) -> Outcome:
    return execute(unit, materials, threads=plan.threads)


def _of_one(unit: Unit) -> Unit:
    return replace(unit, images=(unit.images[0], unit.images[0] + 1))


def _saving(plan: Plan, materials: Materials, single: list[Outcome]) -> float:
    """An image's share of a unit's time, as a multiple of its time alone."""
    size = min(plan.batch, plan.count)
    with_denoiser = [o for o in single if o.result.denoiser_calls and not o.result.error]
    cheapest = min(with_denoiser or single, key=lambda outcome: outcome.result.seconds)
    whole = _do(replace(cheapest.unit, images=(0, size)), plan, materials).result
    return whole.seconds / (size * cheapest.result.seconds) if not whole.error else 1.0
