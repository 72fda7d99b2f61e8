"""The page's tables, from a run's figures."""

from __future__ import annotations

from dataclasses import dataclass

from scoreopt_defense.evaluation.plan import CLEAN, Plan
from scoreopt_defense.evaluation.results import Cell, Result, difference
from scoreopt_defense.evaluation.statistics import Difference, Proportion

__all__ = ["Compared", "Entry", "Standing", "across_runs", "standings", "times_sent", "within_run"]

_ALWAYS = (1, 8, 64)


def times_sent(plan: Plan) -> tuple[int, ...]:
    """How often an image may be sent: the numbers of the table, and what a plot needs between."""
    most = int(plan.judging["purifications"])
    powers = {2**k for k in range(most.bit_length()) if 2**k <= most}
    return tuple(sorted({*_ALWAYS, *powers, most}))


@dataclass(frozen=True)
class Entry:
    """One figure of the table of defences and attacks.

    Attributes:
        cell: None where nothing was run yet.
        lowest: of its row.
        above_clean: an attack that left more right than no attack at all.
    """

    attack: str
    cell: Cell | None
    lowest: bool = False
    above_clean: bool = False


@dataclass(frozen=True)
class Standing:
    """A defence's row: a figure an attack, and the weakest over all of them without a suite."""

    defence: str
    entries: tuple[Entry, ...]
    weakest: Proportion | None


def standings(result: Result) -> list[Standing]:
    """A row a defence."""
    return [_standing(result, defence) for defence in result.plan.defences]


def _standing(result: Result, defence: str) -> Standing:
    cells = {cell.attack: cell for cell in result.cells if cell.defence == defence}
    figures = {name: cell.robust.value for name, cell in cells.items() if cell.robust is not None}
    lowest, clean = min(figures.values(), default=None), figures.get(CLEAN)
    entries = tuple(
        Entry(
            attack,
            cells.get(attack),
            lowest=attack in figures and figures[attack] == lowest,
            above_clean=clean is not None and figures.get(attack, 0) > clean,
        )
        for attack in result.plan.columns
    )
    # suites make the stronger statement
    return Standing(defence, entries, None if result.plan.suites else result.weakest(defence))


@dataclass(frozen=True)
class Compared:
    """Two figures under one attack, and their paired difference, ``a`` less ``b``."""

    attack: str
    a: str
    b: str
    figure_a: Proportion
    figure_b: Proportion
    difference: Difference


def within_run(result: Result) -> list[Compared]:
    """Each later defence beside the first, on the same images."""
    first, *others = result.plan.defences
    return [
        compared
        for other in others
        for attack in result.plan.columns
        if (compared := _compared(result, first, result, other, attack))
    ]


def across_runs(a: Result, b: Result) -> list[Compared]:
    """Each defence and attack that both runs have; defences of other names if each has only one.

    Raises:
        ValueError: if the runs are of other images, or have nothing in common.
    """
    if a.plan.images != b.plan.images:
        raise ValueError(
            "two runs can be compared on the same images alone, and these differ: "
            f"{dict(a.plan.images)} and {dict(b.plan.images)}"
        )
    pairs = [(name, name) for name in a.plan.defences if name in b.plan.defences]
    if not pairs and len(a.plan.defences) == len(b.plan.defences) == 1:
        pairs = [(next(iter(a.plan.defences)), next(iter(b.plan.defences)))]
    found = [
        compared
        for mine, theirs in pairs
        for attack in a.plan.columns
        if (compared := _compared(a, mine, b, theirs, attack))
    ]
    if not found:
        raise ValueError(
            f"the runs have no figures of a defence and attack in common: {list(a.plan.defences)} "
            f"and {list(b.plan.defences)}, {a.plan.columns} and {b.plan.columns}"
        )
    return found


def _compared(a: Result, mine: str, b: Result, theirs: str, attack: str) -> Compared | None:
    figure_a, figure_b = _figure(a, mine, attack), _figure(b, theirs, attack)
    if figure_a is None or figure_b is None:
        return None
    shares = a.shares(mine, attack), b.shares(theirs, attack)
    if not shares[0].keys() & shares[1].keys():
        return None
    return Compared(attack, mine, theirs, figure_a, figure_b, difference(*shares))


def _figure(result: Result, defence: str, attack: str) -> Proportion | None:
    cells = (c for c in result.cells if (c.defence, c.attack) == (defence, attack))
    return next((cell.robust for cell in cells), None)
