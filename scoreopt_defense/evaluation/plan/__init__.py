"""What is to be found out: a frozen plan, made of tasks, whose units are pure functions of it."""

from scoreopt_defense.evaluation.plan.materials import Materials
from scoreopt_defense.evaluation.plan.parts import Defence, Planned, Unit
from scoreopt_defense.evaluation.plan.plan import Plan
from scoreopt_defense.evaluation.plan.tasks import CLEAN

__all__ = ["CLEAN", "Defence", "Materials", "Plan", "Planned", "Unit"]
