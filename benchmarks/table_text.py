"""Result files read, and tables written as Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from results_file import RESULTS

__all__ = ["markdown", "percent", "results"]


def results(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def percent(share: Mapping[str, float] | None, digits: int = 1, *, missing: str = "-") -> str:
    """A share with its interval, in per cent."""
    if share is None:
        return missing
    low, high = (f"{100 * share[end]:.0f}" for end in ("low", "high"))
    return f"{100 * share['value']:.{digits}f} ({low} to {high})"
