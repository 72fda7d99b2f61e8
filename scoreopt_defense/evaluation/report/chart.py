"""Dots and whiskers, defence by defence and worst first: the page's chart for matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scoreopt_defense._drawing import axes_or_new
from scoreopt_defense.evaluation.plan import CLEAN
from scoreopt_defense.evaluation.report.tables import Standing

__all__ = ["chart"]


def chart(rows: Sequence[Standing], axes: Any = None) -> Any:
    """What is right of each defence under each attack, in per cent, with its 95 % interval.

    Args:
        rows: whose figures are drawn, the first one at the top.
        axes: matplotlib's, to draw on; those of a new figure by default.
    """
    count = sum(1 + len(row.drawn) for row in rows)
    if axes is None:
        axes = axes_or_new(None)
        axes.figure.set_figheight(1 + count / 4)
    labels: list[str] = []
    heads = []
    for row in rows:
        heads.append(len(labels))
        labels.append(row.defence)
        for entry in row.drawn:
            share = entry.cell.robust  # type: ignore[union-attr]  # which what is drawn has
            assert share is not None
            ends = [100 * (share.value - share.low)], [100 * (share.high - share.value)]
            colour = "gray" if entry.attack == CLEAN else "C3" if entry.lowest else "C0"
            axes.errorbar(100 * share.value, len(labels), xerr=ends, fmt="o", color=colour)
            labels.append("no attack" if entry.attack == CLEAN else entry.attack)
    axes.set_yticks(range(count), labels, parse_math=False)
    for place in heads:
        axes.get_yticklabels()[place].set_fontweight("bold")
    axes.set_ylim(count - 0.5, -0.5)
    axes.set_xlim(-2, 102)
    axes.set_xlabel("images that are right, %, with 95 % intervals")
    return axes
