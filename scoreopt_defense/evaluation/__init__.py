"""Honest evaluation of any defence by any library's attacks: resumable, on one machine or many."""

from scoreopt_defense.evaluation.evaluate import evaluate
from scoreopt_defense.evaluation.judging import AnyStep, Final, Judging, judge
from scoreopt_defense.evaluation.plan import Plan, Unit
from scoreopt_defense.evaluation.results import Cell, Result
from scoreopt_defense.evaluation.runner import Stopped
from scoreopt_defense.evaluation.store import Store, StoreError

__all__ = [
    "AnyStep",
    "Cell",
    "Final",
    "Judging",
    "Plan",
    "Result",
    "Stopped",
    "Store",
    "StoreError",
    "Unit",
    "evaluate",
    "judge",
]
