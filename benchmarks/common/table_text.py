"""Result files read, and tables written as Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from benchmarks.common.results_file import RESULTS
from scoreopt_defense.evaluation.record.differences import Difference, difference

__all__ = ["budget", "less", "markdown", "percent", "points", "results", "shares"]


def results(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def budget(attack: Mapping[str, Any]) -> str:
    """Steps and samples of an attack, or of a suite's."""
    return f"{attack['steps']} x {attack['eot']}"


def percent(share: Mapping[str, float] | None, digits: int = 1, *, missing: str = "-") -> str:
    """A share with its interval, in per cent."""
    if share is None:
        return missing
    low, high = (f"{100 * share[end]:.0f}" for end in ("low", "high"))
    return f"{100 * share['value']:.{digits}f} ({low} to {high})"


def points(found: Difference | Mapping[str, float]) -> str:
    """A difference with its interval, in points of per cent."""
    value, low, high = (
        100 * (found[name] if isinstance(found, Mapping) else getattr(found, name))
        for name in ("value", "low", "high")
    )
    ends = (f"{end:+d}" if end else "0" for end in (round(low), round(high)))
    return f"{round(value, 1) or 0.0:+.1f} ({' to '.join(ends)})"


def shares(cell: Mapping[str, Any]) -> dict[int, float]:
    """Of an exported cell or suite: how far each image is right, by its place, if it was judged."""
    counts = (count.partition("/") for count in cell["right"].split())
    return {
        i: int(right) / int(made or cell["of"])
        for i, (right, _, made) in enumerate(counts)
        if right != "-"
    }


def less(a: Mapping[str, Any], b: Mapping[str, Any]) -> Difference:
    """One exported cell or suite less another, over the images that both were judged on.

    Raises:
        ValueError: if they are of different selections of images, by their numbers.
    """
    ours, theirs = (len(cell["right"].split()) for cell in (a, b))
    if ours != theirs:
        raise ValueError(f"{ours} images cannot be paired with {theirs}")
    return difference(shares(a), shares(b))
