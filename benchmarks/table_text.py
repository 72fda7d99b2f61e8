"""Result files read, and tables written as Markdown."""

from __future__ import annotations

import json
from typing import Any

from results_file import RESULTS

__all__ = ["markdown", "results"]


def results(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
