"""Where data that can draw itself is drawn."""

from __future__ import annotations

from typing import Any

from scoreopt_defense._optional import optional

__all__ = ["axes_or_new"]


def axes_or_new(axes: Any) -> Any:
    """These matplotlib axes, or those of a new figure."""
    if axes is not None:
        return axes
    pyplot = optional("matplotlib.pyplot", extra="plots")
    return pyplot.subplots(layout="constrained")[1]
