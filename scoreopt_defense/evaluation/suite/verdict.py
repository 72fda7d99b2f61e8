"""What a run says of a defence in one sentence, and why that may be too kind."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from scoreopt_defense.evaluation.plan import CLEAN
from scoreopt_defense.evaluation.record.allowances import Allowance, allowances
from scoreopt_defense.evaluation.record.figures import Cell, Figures
from scoreopt_defense.evaluation.record.statistics import Proportion
from scoreopt_defense.evaluation.suite.checklist import Checked, checklist
from scoreopt_defense.evaluation.suite.controls import CHECKS
from scoreopt_defense.evaluation.suite.overall import near_chance

__all__ = ["Verdict", "judge", "verdict"]

_WITHIN = "black box", "transfer", "boundary"  # probes that keep to the ball


@dataclass(frozen=True)
class Verdict:
    """One defence's.

    Attributes:
        defence: its name.
        worst: the attack or suite that left least; None if none has a figure.
        sentence: without its full stop.
        is_broken: whether at most half of what is right without an attack survived.
        doubts: why the figure may be wrong, a few words each.
        untried: what might have lowered it and was not done; nothing where nothing is left.
    """

    defence: str
    worst: Cell | None
    sentence: str
    is_broken: bool = False
    doubts: tuple[str, ...] = ()
    untried: tuple[str, ...] = ()

    def __str__(self) -> str:
        """One line. What is broken needs nothing more to be tried."""
        return (
            "; ".join([self.sentence, *self.doubts, *(() if self.is_broken else self.untried)])
            + "."
        )


def verdict(figures: Figures, defence: str) -> str:
    """What a run says of a defence, in one line: that it is broken, or what did not break it.

    Never that it is robust: a stronger attack may follow. Its interval is in per cent.
    """
    return str(judge(figures, defence))


def judge(
    figures: Figures,
    defence: str,
    *,
    checks: Iterable[Checked] | None = None,
    budgets: Iterable[Allowance] | None = None,
) -> Verdict:
    """As :func:`verdict`, in its parts.

    Args:
        figures: of the run, complete or not.
        defence: its name there.
        checks, budgets: of the attacks and suites, and of the plan, where they are known already.
    """
    plan = figures.plan
    cells = [figures.cell(defence, n) for n in plan.columns if figures.was_run(defence, n)]
    shares = {cell: cell.robust for cell in cells if cell.robust}
    clean = next((share for cell, share in shares.items() if cell.attack == CLEAN), None)
    attacked = {cell: share for cell, share in shares.items() if cell.attack != CLEAN}
    if not attacked:
        return Verdict(defence, None, _unattacked(figures, defence, clean))
    if checks is None:
        names = [None, *plan.suites]
        checks = [Checked(checks=checklist(figures, defence, name)) for name in names]
    found = Checked(checks=tuple(check for of in checks for check in of.checks))
    worst, share = min(attacked.items(), key=lambda item: item[1].value)
    by = f"the suite {worst.attack}" if worst.attack in plan.suites else worst.attack
    is_broken = share.value <= (clean.value if clean else 1.0) / 2
    if is_broken:
        said = f"{defence} is not robust: {_survive(share)} {by} ({_range(share)} %)"
    else:
        least = math.floor(100 * share.value + 1e-9)  # it is said that nothing went below
        said = f"{defence}: no attack run here brings it below {least} % ({_range(share)})"
        check, left = _by_a_check(figures, defence)
        is_broken = left is not None and left.value <= (clean.value if clean else 1.0) / 2
        if left is not None and is_broken:
            said = (
                f"{defence} is not robust: {_survive(left)} the checks' {check} "
                f"({_range(left)} %), though {least} % survive the attacks"
            )
        elif found.failing:  # and one of the checks' own may have
            said = (
                f"{defence} may not be robust: {least} % survive ({_range(share)}), by attacks "
                "that fail their checks"
            )
    allowed = allowances(plan) if budgets is None else budgets
    untried = _untried(figures, worst, found, allowed) if share.value else ()
    return Verdict(
        defence, worst, said, is_broken,
        doubts=tuple(_doubts(figures, cells, found)),
        untried=tuple(untried),
    )  # fmt: skip


def _by_a_check(figures: Figures, defence: str) -> tuple[str, Proportion | None]:
    """What the strongest of a checklist's own attacks within the ball left of what it met."""
    plan = figures.plan
    probes = [
        (task.role, figures.cell(defence, name).robust)
        for suite in (CHECKS, *plan.suites)
        for name, task in plan.of_suite(suite, defence, "probe").items()
        if task.role in _WITHIN and figures.was_run(defence, name)
    ]
    judged = [(role, left) for role, left in probes if left is not None]
    return min(judged, key=lambda item: item[1].value, default=("", None))


def _doubts(figures: Figures, cells: list[Cell], found: Checked) -> Iterator[str]:
    if count := len(found.failing):
        yield f"{count} {'check' if count == 1 else 'checks'} failed"
    plan, defence = figures.plan, cells[0].defence
    if any(figures.tried(defence, name) < plan.count * plan.trials for name in plan.columns):
        yield "not complete"
    if missing := sum(cell.failed for cell in cells):
        yield f"{missing} results missing"
    stages = {n for suite in plan.suites for n in plan.of_suite(suite, defence, "attack")}
    lost = {f.unit.attack for f in figures.failures if f.unit.defence == defence} & stages
    if lost:
        yield f"{len(lost)} of {len(stages)} attacks of a suite failed on some images"
    if near_chance(figures, defence):
        yield "clean accuracy near chance"


def _untried(
    figures: Figures, worst: Cell, found: Checked, budgets: Iterable[Allowance]
) -> Iterator[str]:
    if count := len(found.not_run):
        yield f"{count} {'check' if count == 1 else 'checks'} not run"
    suites = figures.plan.suites
    unjudged = [name for name in suites if not figures.was_run(worst.defence, name)]
    if unjudged or not suites:
        yield " ".join(["suite", *unjudged, "not run"])
    elif [*suites] == ["quick"]:
        yield "suite adaptive not run"
    budgets = [budget for budget in budgets if not budget.is_probe]
    cut = [budget for budget in budgets if budget.is_cut]
    own = next((budget for budget in cut if budget.attack == worst.attack), None)
    if own is not None:
        yield f"reduced budget: {own.queries:,} of {own.paper_queries:,} queries"
    elif cut:
        yield f"reduced budget: {len(cut)} of {len(budgets)} attacks"


def _unattacked(figures: Figures, defence: str, right: Proportion | None) -> str:
    names = [name for name in figures.plan.columns if name != CLEAN]
    if any(figures.was_run(defence, name) for name in names):
        return f"{defence}: no attack on it has a figure, so nothing is known of its robustness"
    said = f"{defence} was not attacked{' yet' if names else ''}"
    return f"{said}; unattacked, {100 * right.value:.0f} % of images are right" if right else said


def _survive(share: Proportion) -> str:
    left = round(share.value * share.n)
    count = "fewer than 1" if share.value and not left else f"{left:,}"
    return f"{count} of {share.n:,} images {'survives' if left == 1 else 'survive'}"


def _range(share: Proportion) -> str:
    digits = 0 if share.n <= 1000 else 1
    return f"{100 * share.low:.{digits}f} to {100 * share.high:.{digits}f}"
