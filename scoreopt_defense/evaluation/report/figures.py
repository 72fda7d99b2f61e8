"""Curves as plotly's own JSON: drawn by its script, which the page carries."""

from __future__ import annotations

import html
from typing import Any

from scoreopt_defense.evaluation.report.curves import Line, Plot

__all__ = ["figure"]

# Okabe and Ito's colours that stand out on white and on near-black; marks and dashes tell the lines
# apart without them.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#3a9bdc", "#8c6bb1", "#888888")
_MARKS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "star")
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")


def figure(curves: Plot) -> dict[str, Any]:
    """``data`` and ``layout`` of one plot; names are text, and plotly takes them for HTML."""
    return {
        "data": [_trace(line, place) for place, line in enumerate(_drawn(curves))],
        "layout": {
            "xaxis": _across(curves),
            "yaxis": {
                "title": {"text": "right, %"}, "range": [-2, 102], "zeroline": False,
                "automargin": True,
            },
            "legend": {"orientation": "h", "yanchor": "top", "y": -0.2},
            "margin": {"l": 48, "r": 12, "t": 12, "b": 48},
            "hovermode": "closest",
            "showlegend": True,
        },
    }  # fmt: skip


def _drawn(curves: Plot) -> list[Line]:
    return [line for line in curves.lines if not line.aside]


def _across(curves: Plot) -> dict[str, Any]:
    """The axis, marked at the values that there are; logarithmic where they are counts."""
    values = sorted({point.x for line in _drawn(curves) for point in line.points})
    return {
        "type": "linear" if curves.name == "eps" else "log",
        "tickvals": values,
        "ticktext": [f"{value:.3g}" for value in values],
        "title": {"text": curves.across},
        "zeroline": False,
        "automargin": True,
    }


def _trace(line: Line, place: int) -> dict[str, Any]:
    values = [100 * point.value for point in line.points]
    intervals = [point.interval for point in line.points]
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "lines+markers",
        "name": html.escape(line.name, quote=False),
        "x": [point.x for point in line.points],
        "y": values,
        "line": {"dash": _DASHES[place % len(_DASHES)], "color": _COLOURS[place % len(_COLOURS)]},
        "marker": {"symbol": _MARKS[place % len(_MARKS)], "size": 9},
        "hovertemplate": "%{fullData.name}<br>%{x:.4g}: %{y:.1f} %<extra></extra>",
    }
    if all(interval is not None for interval in intervals):
        trace["error_y"] = {
            "type": "data",
            "symmetric": False,
            "array": [100 * (i.high - i.value) for i in intervals if i],
            "arrayminus": [100 * (i.value - i.low) for i in intervals if i],
            "thickness": 1,
        }
        trace["customdata"] = [[100 * i.low, 100 * i.high] for i in intervals if i]
        trace["hovertemplate"] = (
            "%{fullData.name}<br>%{x:.4g}: %{y:.1f} % "
            "(%{customdata[0]:.1f} to %{customdata[1]:.1f})<extra></extra>"
        )
    return trace
