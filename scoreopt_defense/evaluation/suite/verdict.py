"""What a run says of a defence, in a sentence; and what that is not to be believed without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scoreopt_defense.evaluation.plan.tasks import CLEAN
from scoreopt_defense.evaluation.record.allowances import allowances
from scoreopt_defense.evaluation.record.results import Result
from scoreopt_defense.evaluation.record.statistics import Proportion
from scoreopt_defense.evaluation.suite.checklist import Checked
from scoreopt_defense.evaluation.suite.summary import summary

__all__ = ["Verdict", "verdict", "worded"]


@dataclass(frozen=True)
class Verdict:
    """A defence's verdict; ``str`` is the whole.

    Attributes:
        sentence: the figure, and what follows from it.
        doubts: why the defence may be weaker than that, each in a few words.
        robust: False where the defence was broken; None otherwise, since that no attack was found
            is no proof that there is none.
    """

    sentence: str
    doubts: tuple[str, ...] = ()
    robust: bool | None = None

    def __str__(self) -> str:
        return f"{self.sentence} {_listed(self.doubts)}".strip()


def verdict(result: Result, defence: str) -> Verdict:
    """Of one defence: by the suite that left least, or without one by all attacks together."""
    plan = result.plan
    clean = result.cell(defence).robust if result.was_run(defence, CLEAN) else None
    found = [summary(result, defence, suite) for suite in plan.suites]
    judged = [(s, s.worst.cell.robust) for s in found if s.worst.cell and s.worst.cell.robust]
    doubts: list[str] = []
    left: Proportion | None
    checked: Checked
    if judged:
        checked, left = min(judged, key=lambda pair: pair[1].value)
        against = f"the suite {checked.worst.suite}"
        doubts += [f"{stage} failed on {n} images" for stage, n in checked.failed.items()]
        if set(plan.suites) == {"quick"}:
            doubts.append("the quick suite has few attacks, the adaptive suite was not run")
        attacks = [*plan.of_suite(checked.worst.suite, defence, "attack")]
    else:
        checked = overall = result.overall(defence)
        left, attacks = overall.weakest, result.attacks
        run = [name for name in attacks if result.was_run(defence, name)]
        against = run[0] if len(run) == 1 else f"the worst of {len(run)} attacks"
        doubts += [f"{name} failed on {n} images" for name, n in overall.lacking.items()]
        doubts.append("no suite of attacks was run")
    spent = [a for a in allowances(plan) if a.attack in attacks and a.is_cut]
    if spent:
        least = min(spent, key=lambda a: (a.queries or 0) / (a.paper_queries or 1))
        doubts.append(f"{least.label} had {least.queries:,} of {least.paper_queries:,} queries")
    for checks, how in ((checked.failing, "failed"), (checked.not_run, "could not be run")):
        if checks:
            doubts.append(f"{len(checks)} check{'s' * (len(checks) > 1)} {how}")
    return worded(defence, clean=clean, left=left, against=against, doubts=doubts)


def worded(
    defence: str,
    *,
    clean: Proportion | None,
    left: Proportion | None,
    against: str,
    doubts: Sequence[str] = (),
) -> Verdict:
    """The words for these figures.

    A defence is called not robust where even the upper end of the interval is below half of what is
    right without an attack, and hardly robust where the figure alone is. It is never called robust:
    a figure under attacks is an upper bound.

    Args:
        clean: accuracy without an attack; None if it is not known.
        left: accuracy under attack; None if nothing was attacked.
        against: what left it.
        doubts: why it may be less; what broke a defence needs none of them.

    Example:
        >>> print(worded("mine", clean=Proportion(0.9, 0.82, 0.95, 100),
        ...              left=Proportion(0.19, 0.1, 0.31, 100), against="PGD+EOT"))
        mine is not robust: 19 of 100 images survive PGD+EOT (10 to 31 %).
    """
    if left is None:
        said = f"; without an attack {_counted(clean)} are right" if clean else ""
        return Verdict(f"{defence} was not attacked: nothing is known of its robustness{said}.")
    half = (clean.value if clean else 1.0) / 2
    survive = _counted(left, f" survive {against}")
    if left.high < half:
        return Verdict(f"{defence} is not robust: {survive}.", robust=False)
    if left.value < half:
        return Verdict(f"{defence} hardly is robust: {survive}; more images would tell.")
    return Verdict(
        f"No attack run here brings {defence} below {_counted(left)}; {against} comes there.",
        tuple(doubts),
    )


def _counted(share: Proportion, verb: str = "") -> str:
    """As in ``19 of 100 images survive (10 to 31 %)``; the interval is of the share."""
    interval = f"({100 * share.low:.0f} to {100 * share.high:.0f} %)"
    return f"{share.value * share.n:.0f} of {share.n} images{verb} {interval}"


def _listed(doubts: Sequence[str]) -> str:
    return f"It may be less robust: {'; '.join(doubts)}." if doubts else ""
