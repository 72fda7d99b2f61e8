"""What attacks compute in that leave it to the hardware: settled once, before the plan is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from scoreopt_defense._half_precision import half_precision
from scoreopt_defense.attacks.bounded import BoundedAttack
from scoreopt_defense.evaluation.judging.asking import answers
from scoreopt_defense.evaluation.judging.fresh import placed
from scoreopt_defense.evaluation.plan.materials import Materials
from scoreopt_defense.evaluation.plan.plan import Plan
from scoreopt_defense.evaluation.plan.tasks import Task

__all__ = ["in_words", "settled"]


def settled(materials: Materials, before: Callable[[], Plan | None]) -> Materials:
    """These materials, whose attacks of ``autocast="auto"`` say what that comes to.

    That is what the same attack, or the others of its suite, had in the plan ``before``, so that a
    run goes on as it began, on whatever machine. Otherwise bfloat16 where the defence's device has
    instructions for it and the defence answers in it.

    Args:
        before: reads that plan, if there is one; not called where nothing is to be settled.
    """
    if not any(_is_open(task.attack) for of in materials.tasks.values() for task in of.values()):
        return materials
    known: dict[str, str | None] = {}
    began = before()
    for name, of in began.tasks.items() if began else ():
        for task in of.values():
            if "autocast" in task.attack:  # some of a suite never have it
                owner = task.suite or name
                known[owner] = known.get(owner) or task.attack["autocast"]
    found: dict[str, str | None] = {}

    def of_task(name: str, defence: str, task: Task) -> Task:
        if not _is_open(attack := task.attack):
            return task
        owner, _ = materials.owners.get(name, (name, ""))
        if owner not in known and defence not in found:
            x, _ = materials.images.batch(0, 1)
            found[defence] = _quick(materials.defences[defence], x)
        autocast = known[owner] if owner in known else found[defence]
        return replace(task, attack=attack.replace(autocast=autocast))

    return replace(
        materials,
        tasks={
            name: {defence: of_task(name, defence, task) for defence, task in of.items()}
            for name, of in materials.tasks.items()
        },
    )


def _is_open(attack: Any) -> bool:
    return isinstance(attack, BoundedAttack) and attack.autocast == "auto"


def _quick(model: nn.Module, x: Tensor) -> str | None:
    x = placed(model, x)
    if (autocast := half_precision(x.device)) is None:
        return None
    try:
        with torch.autocast(x.device.type, getattr(torch, autocast)):
            answers(model, x)
    except Exception:  # somebody's module that has but one precision
        return None
    return autocast


def in_words(plan: Plan) -> str:
    """Which attacks compute in half precision, a sentence; empty if none does."""
    names = {
        task.suite or name: None
        for name, of in plan.tasks.items()
        for task in of.values()
        if task.kind == "attack" and task.attack.get("autocast")
    }
    return f"{', '.join(names)}: attacks in bfloat16, judged in float32." if names else ""
