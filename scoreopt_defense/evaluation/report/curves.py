"""Accuracy against one setting of an attack, where the run has several that differ in it alone."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from scoreopt_defense.evaluation.plan import CLEAN
from scoreopt_defense.evaluation.record.results import Result
from scoreopt_defense.evaluation.record.statistics import Proportion

__all__ = ["Plot", "Line", "Point", "resubmissions", "sweeps"]

_SETTINGS = {
    "eps": "\N{GREEK SMALL LETTER EPSILON}, the largest change",
    "steps": "steps of the attack",
    "eot": "EOT samples of the attack",
}
_RADII = 17  # that a curve of one run is drawn at


@dataclass(frozen=True)
class Point:
    """A share, in [0, 1], with its interval if it has one."""

    x: float
    value: float
    interval: Proportion | None = None


@dataclass(frozen=True)
class Line:
    """One defence under one kind of attack; ``aside``: in the table alone."""

    name: str
    points: tuple[Point, ...]
    aside: bool = False


@dataclass(frozen=True)
class Plot:
    """One plot: its title, what is across, and its lines."""

    name: str
    title: str
    across: str
    lines: tuple[Line, ...]


def sweeps(result: Result) -> list[Plot]:
    """A plot for each of eps, steps and EOT samples that some attacks differ in alone."""
    return [
        Plot(setting, f"Accuracy against {_SETTINGS[setting]}", _SETTINGS[setting], lines)
        for setting in _SETTINGS
        if (lines := _lines(result, setting))
    ]


def _lines(result: Result, setting: str) -> tuple[Line, ...]:
    families: dict[str, dict[float, str]] = defaultdict(dict)
    for name in result.plan.columns:  # a suite's stage meets but the images that are left to it
        values = result.plan.attacks[name]
        value = values.get(setting)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            rest = {key: other for key, other in values.items() if key not in (setting, "preset")}
            families[json.dumps(rest, sort_keys=True)][value] = name
    cells = {(cell.defence, cell.attack): cell.robust for cell in result.cells}
    lines = []
    for family in families.values():
        if len(family) < 2:
            continue
        at = dict(sorted((family | ({0.0: CLEAN} if setting == "eps" else {})).items()))
        for defence in result.plan.defences:
            points = tuple(
                Point(x, figure.value, figure)
                for x, attack in at.items()
                if (figure := cells.get((defence, attack)))
            )
            if len(points) > 1:
                lines.append(Line(f"{defence}: {', '.join(family.values())}", points))
    return (*lines, *_nearest(result)) if setting == "eps" else tuple(lines)


def _nearest(result: Result) -> Iterator[Line]:
    """Of attacks that seek the nearest wrong image: one is a line by itself."""
    for attack in result.plan.columns:
        for defence in result.plan.defences:
            if "distance" in result.measured(defence, attack):
                eps = result.plan.attacks[attack]["eps"]
                found = result.curve(defence, attack, np.linspace(0, eps, _RADII).tolist())
                points = tuple(Point(at, figure.value, figure) for at, figure in found.items())
                yield Line(f"{defence}: {attack}", points)


def resubmissions(result: Result, verdicts: Mapping[tuple[str, str], str] | None = None) -> Plot:
    """The share of images that survive being sent again and again; bounds are left out.

    Of each defence, no attack and the one that leaves least are drawn; the others stand aside.

    Args:
        verdicts: of suites' checks, by ``(defence, suite)``, to stand beside their lines' names.
    """
    verdicts = verdicts or {}
    lowest: dict[str, tuple[float, str]] = {}
    for cell in result.cells:
        if cell.robust:
            here = cell.robust.value, cell.attack
            lowest[cell.defence] = min(lowest.get(cell.defence, here), here, key=lambda f: f[0])
    title = "Share of images right every time, against how often each is sent"
    lines = []
    for cell in result.cells:
        points = tuple(Point(s.resubmissions, s.value) for s in cell.survival if not s.bound)
        if cell.robust and len(points) > 1:
            name = "no attack" if cell.attack == CLEAN else cell.attack
            if verdict := verdicts.get((cell.defence, cell.attack)):
                name += f" ({verdict})"
            drawn = cell.attack == CLEAN or cell.attack == lowest[cell.defence][1]
            lines.append(Line(f"{cell.defence}: {name}", points, aside=not drawn))
    return Plot("resubmissions", title, "times that an image is sent", tuple(lines))
