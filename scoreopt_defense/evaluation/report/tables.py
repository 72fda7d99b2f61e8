"""The page's tables, from a run's figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from scoreopt_defense.evaluation.plan import CLEAN, Plan
from scoreopt_defense.evaluation.plan.behaviour import unlike
from scoreopt_defense.evaluation.record.differences import Difference, aligned, paired_all
from scoreopt_defense.evaluation.record.figures import Cell
from scoreopt_defense.evaluation.record.results import Result
from scoreopt_defense.evaluation.record.statistics import Proportion
from scoreopt_defense.evaluation.suite.overall import Overall

__all__ = [
    "Compared",
    "Entry",
    "Standing",
    "across_runs",
    "differences",
    "standings",
    "times_sent",
    "within_run",
]

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
        lowest: of its row's attacks.
        above_clean: an attack that left more right than no attack at all.
    """

    attack: str
    cell: Cell | None
    lowest: bool = False
    above_clean: bool = False

    @property
    def left(self) -> float:
        """The share that is right; 2 where there is no figure."""
        return self.cell.robust.value if self.cell and self.cell.robust else 2.0


@dataclass(frozen=True)
class Standing:
    """A defence's row: a figure an attack, and what is said of all together."""

    defence: str
    entries: tuple[Entry, ...]
    overall: Overall

    @property
    def drawn(self) -> list[Entry]:
        """What has a figure, worst first."""
        return sorted((e for e in self.entries if e.left <= 1), key=lambda entry: entry.left)


def standings(result: Result) -> list[Standing]:
    """A row a defence, worst first; so are the attacks, by what they leave of all defences."""
    cells: dict[str, dict[str, Cell]] = {defence: {} for defence in result.plan.defences}
    for cell in result.cells:
        cells[cell.defence][cell.attack] = cell

    def left(attack: str) -> tuple[bool, float]:
        return attack == CLEAN, sum(Entry(attack, of.get(attack)).left for of in cells.values())

    attacks = sorted(result.plan.columns, key=left)
    rows = [_standing(result, defence, of_it, attacks) for defence, of_it in cells.items()]
    return sorted(rows, key=lambda row: min(e.left + 2 * (e.attack == CLEAN) for e in row.entries))


def _standing(result: Result, defence: str, cells: dict[str, Cell], attacks: list[str]) -> Standing:
    figures = {name: cell.robust.value for name, cell in cells.items() if cell.robust is not None}
    clean = figures.pop(CLEAN, None)
    lowest = min(figures.values(), default=None)
    entries = tuple(
        Entry(
            attack,
            cells.get(attack),
            lowest=attack in figures and figures[attack] == lowest,
            above_clean=clean is not None and figures.get(attack, 0) > clean,
        )
        for attack in attacks
    )
    return Standing(defence, entries, result.overall(defence))


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
    """Each later defence less the first, on the same images."""
    first, *others = result.plan.defences
    return _compared(
        (attack, result, other, result, first) for other in others for attack in result.plan.columns
    )


def across_runs(a: Result, b: Result) -> list[Compared]:
    """Each defence and attack that both runs have; defences of other names if each has only one.

    Raises:
        ValueError: if the runs are of other images, or have nothing in common.
    """
    if any(a.plan.images[what] != b.plan.images[what] for what in ("shape", "whole")):
        raise ValueError(
            "two runs can be compared on the same images alone, and these differ: "
            f"{a.plan.images['shape']} and {b.plan.images['shape']} by their shape"
        )
    pairs = [(name, name) for name in a.plan.defences if name in b.plan.defences]
    if not pairs and len(a.plan.defences) == len(b.plan.defences) == 1:
        pairs = [(next(iter(a.plan.defences)), next(iter(b.plan.defences)))]
    found = _compared(
        (attack, a, mine, b, theirs) for mine, theirs in pairs for attack in a.plan.columns
    )
    if not found:
        raise ValueError(
            f"the runs have no figures of a defence and attack in common: {list(a.plan.defences)} "
            f"and {list(b.plan.defences)}, {a.plan.columns} and {b.plan.columns}"
        )
    return found


def _compared(pairs: Iterable[tuple[str, Result, str, Result, str]]) -> list[Compared]:
    """Of each attack and two defences, those that have figures of the same images."""
    found, shares = [], []
    for attack, a, mine, b, theirs in pairs:
        figure_a, figure_b = _figure(a, mine, attack), _figure(b, theirs, attack)
        if figure_a is None or figure_b is None:
            continue
        of_both = aligned(a.shares(mine, attack), b.shares(theirs, attack))
        if len(of_both[0]):
            found.append((attack, mine, theirs, figure_a, figure_b))
            shares.append(of_both)
    return [Compared(*of, gap) for of, gap in zip(found, paired_all(shares))]


def _figure(result: Result, defence: str, attack: str) -> Proportion | None:
    there = attack in result.plan.columns and result.was_run(defence, attack)
    return result.cell(defence, attack).robust if there else None


def differences(a: Plan, b: Plan) -> list[str]:
    """What differs between two plans, a line each; of answers, what is more than rounding."""
    lines = _differences(a.summary(), b.summary(), "plan")
    for name in a.defences.keys() & b.defences.keys():
        moved = unlike(a.defences[name].behaviour, b.defences[name].behaviour)
        lines += [f"plan.defences.{name}: {moved}"] if moved else []
    return lines


def _differences(was: Any, is_now: Any, name: str) -> list[str]:
    if isinstance(was, Mapping) and isinstance(is_now, Mapping):
        lines = [
            line
            for key in {**was, **is_now}
            for line in _differences(was.get(key), is_now.get(key), f"{name}.{key}")
        ]
        in_order = list(was) == list(is_now)
        return lines or ([] if in_order else [f"{name}: the order was {list(was)}"])
    return [] if was == is_now else [f"{name} was {was!r} and is {is_now!r}"]
