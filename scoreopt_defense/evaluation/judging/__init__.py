"""When an image counts as broken, and by what it is judged."""

from scoreopt_defense.evaluation.judging.criteria import AnyStep, Criterion, Final, Judging
from scoreopt_defense.evaluation.judging.votes import Verdict, judge, vote

__all__ = ["AnyStep", "Criterion", "Final", "Judging", "Verdict", "judge", "vote"]
