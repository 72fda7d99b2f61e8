"""Honest evaluation of any defence by any library's attacks: resumable, on one machine or many."""

from scoreopt_defense.evaluation.decomposed import Decomposition
from scoreopt_defense.evaluation.decomposition import decompose
from scoreopt_defense.evaluation.evaluate import evaluate
from scoreopt_defense.evaluation.judging import AnyStep, Final, Judging, judge
from scoreopt_defense.evaluation.plan import Plan, Unit
from scoreopt_defense.evaluation.plan.tasks import Suite
from scoreopt_defense.evaluation.record.figures import Cell
from scoreopt_defense.evaluation.record.results import Result
from scoreopt_defense.evaluation.record.store import Store, StoreError
from scoreopt_defense.evaluation.run.scheduler import Stopped

__all__ = [
    "AnyStep",
    "Cell",
    "Decomposition",
    "Final",
    "Judging",
    "Plan",
    "Result",
    "Stopped",
    "Store",
    "StoreError",
    "Suite",
    "Unit",
    "decompose",
    "evaluate",
    "judge",
]
