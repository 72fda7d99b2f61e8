"""Curves as inline SVG has them: across in per cent of its width, down in its own units."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scoreopt_defense.evaluation.report.curves import Line, Plot, Point

__all__ = ["Drawing", "Mark", "Trace", "drawing"]

_LEFT, _RIGHT = 9.0, 96.0  # per cent of the width, which is the page's
_TOP, _BOTTOM = 12.0, 252.0
_MARKS = "●■◆▲▼★✚✖"  # they tell the lines apart without their colours
_CLOSEST = 7.0  # per cent between two numbers of the axis


@dataclass(frozen=True)
class Mark:
    """One point, the ends of its interval if it has one, and its figure in words."""

    x: float
    y: float
    said: str
    ends: tuple[float, float] | None


@dataclass(frozen=True)
class Trace:
    """One line; its colour and dashes are the style sheet's, by its place."""

    name: str
    sign: str
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Drawing:
    """One plot: its lines, all that they are at, and where its axes have their numbers."""

    traces: tuple[Trace, ...]
    values: tuple[float, ...]
    across: tuple[tuple[float, str], ...]
    down: tuple[tuple[float, str], ...]


def drawing(plot: Plot) -> Drawing:
    """Where all of a plot stands; its axis is logarithmic where it counts something."""
    lines = [line for line in plot.lines if not line.aside]
    scaled = (lambda x: x) if plot.name == "eps" else (lambda x: math.log(x))
    values = sorted({point.x for line in lines for point in line.points})
    low, high = scaled(values[0]), scaled(values[-1])

    def across(x: float) -> float:
        return round(_LEFT + (_RIGHT - _LEFT) * (scaled(x) - low) / ((high - low) or 1.0), 2)

    def trace(line: Line, place: int) -> Trace:
        marks = tuple(_mark(line.name, point, across(point.x)) for point in line.points)
        return Trace(line.name, _MARKS[place % len(_MARKS)], marks)

    numbers: list[tuple[float, str]] = []
    for value in values:
        if not numbers or across(value) - numbers[-1][0] >= _CLOSEST:
            numbers.append((across(value), f"{value:.3g}"))
    return Drawing(
        tuple(trace(line, place) for place, line in enumerate(lines)),
        tuple(sorted({point.x for line in plot.lines for point in line.points})),
        tuple(numbers),
        tuple((_down(percent / 100), str(percent)) for percent in range(0, 101, 25)),
    )


def _mark(name: str, point: Point, x: float) -> Mark:
    said, interval = f"{name}, at {point.x:.4g}: {100 * point.value:.1f} %", point.interval
    if interval is None:
        return Mark(x, _down(point.value), said, None)
    said += f" ({100 * interval.low:.1f} to {100 * interval.high:.1f})"
    return Mark(x, _down(point.value), said, (_down(interval.low), _down(interval.high)))


def _down(share: float) -> float:
    return round(_BOTTOM - (_BOTTOM - _TOP) * share, 1)
