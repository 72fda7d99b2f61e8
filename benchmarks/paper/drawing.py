"""The paper's tables as Markdown and its figures as pictures, from the result files alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.adaptive.figures import of_one_suite, paired, suite_of
from benchmarks.common import table_text
from benchmarks.common.results_file import RESULTS
from benchmarks.common.table_text import markdown, points
from benchmarks.common.timing import slope
from benchmarks.paper.cells import Row, rows, specification
from scoreopt_defense._optional import optional

NOT_YET, NOT_RUN = "not run yet", "not run"
WORST = "worst case"


def measured(table: str, scale: str) -> dict[str, Any]:
    """What was exported of a table; no cells if nothing was."""
    path = RESULTS / f"paper_{table}_{scale}.json"
    nothing: dict[str, Any] = {"cells": [], "rows": []}
    return nothing | (json.loads(path.read_text()) if path.exists() else {})


def keyed(written: Mapping[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """The cells of what :func:`measured` gave, each by its :attr:`Cell.key`."""
    return {(c["run"], c["attack"]): c for c in written["cells"]}


#: A share with its interval, in per cent; an attack that failed has none.
percent = partial(table_text.percent, missing="failed")


def table(name: str, scale: str = "cpu") -> str:
    """The paper's own table: its figures, ours, and the worst case of the same defence."""
    spec = specification(name)
    if spec.get("kind") == "timing":
        return _timing(name, scale)
    written = measured(name, scale)
    found = keyed(written)
    every, columns = rows(name, scale), list(spec["columns"])
    has_group = any(row.group for row in every)
    printed = [c for c in columns if any(row.published.get(c) for row in every)]
    beside = [c for c in columns if any(c in r.cells and r.cells[c].worst for r in every)]
    head = ["type"] * has_group + ["method"] + [f"paper: {c}" for c in printed]
    for column in columns:
        head += [f"{column}, %"] + [f"{WORST}, %", f"{column} less {WORST}"] * (column in beside)
    lines = []
    for row in every:
        line = [row.group] * has_group + [row.name]
        line += [row.published.get(column, "-") for column in printed]
        for column in columns:
            line.append(_cell(spec, row, column, found))
            if column in beside:
                line += _beside(row, column, found)
        lines.append(line)
    return markdown(head, lines)


def _cell(
    spec: dict[str, Any], row: Row, column: str, found: Mapping[tuple[str, str], dict[str, Any]]
) -> str:
    if not row.cells:
        return NOT_RUN
    if spec["columns"][column] == "mean":
        both = [_ours(row, c, found) for c in ("standard", "robust")]
        shares = [c["accuracy"]["value"] for c in both if c and c["accuracy"]]
        return f"{50 * sum(shares):.1f}" if len(shares) == len(both) else NOT_YET
    if column not in row.cells:
        return "-"
    ours = _ours(row, column, found)
    return percent(ours["accuracy"]) if ours else NOT_YET


def _ours(
    row: Row, column: str, found: Mapping[tuple[str, str], dict[str, Any]]
) -> dict[str, Any] | None:
    cell = row.cells.get(column)
    return found.get(cell.key) if cell else None


def _beside(row: Row, column: str, found: Mapping[tuple[str, str], dict[str, Any]]) -> list[str]:
    """The adaptive suite's figure of the same defence, and ours less it."""
    cell = row.cells.get(column)
    if cell is None or cell.worst is None:
        return ["-", "-"]
    about, ours = suite_of(cell.worst), _ours(row, column, found)
    if about is None:
        return [NOT_YET, NOT_YET]
    if ours is None or ours["accuracy"] is None:
        return [percent(about["accuracy"]), NOT_YET]
    if gap := paired(ours, about):
        return [percent(about["accuracy"]), points(gap)]
    unpaired = 100 * (ours["accuracy"]["value"] - about["accuracy"]["value"])
    return [percent(about["accuracy"]), f"{unpaired:+.1f}"]


def budgets(name: str) -> str:
    """What each attack of a table was allowed at cpu scale, and the paper's, in a sentence."""
    from scoreopt_defense.attacks import attack, paper_budget

    said = []
    for label, sections in _attacks(name).items():
        settings = {k: v for k, v in sections.items() if k != "attack"}
        if sections["attack"] == "corruptions":
            continue
        if isinstance(settings.get("eps"), str):
            settings.pop("eps")
        used, paper = attack(sections["attack"], **settings), paper_budget(sections["attack"])
        cut = f" (the paper's: {paper['queries']:,})" if used.queries != paper["queries"] else ""
        said.append(f"{label}: {used.queries:,} queries{cut}")
    return "; ".join(said)


def _attacks(name: str) -> dict[str, Mapping[str, Any]]:
    every = (cell for row in rows(name, "cpu") for cell in row.cells.values())
    cells = [c for c in every if "purifier" in c.section]  # a classifier needs one sample
    found = {label: section for cell in cells for label, section in cell.attacks.items()}
    return dict(sorted(found.items()))


def _timing(name: str, scale: str) -> str:
    spec = specification(name)
    found = {(r["name"], r["steps"]): r["seconds"] for r in measured(name, scale)["rows"]}
    steps = list(dict.fromkeys(step for row in spec["timed"] for step in row["steps"]))
    lines = []
    for row in spec["timed"]:
        if row["published"]:
            lines.append([row["name"].partition(",")[0], "paper", *row["published"]])
        ours = [found.get((row["name"], step)) for step in row["steps"]]
        said = [NOT_YET if s is None else f"{s:.4f}" for s in ours]
        lines.append([row["name"], scale, *said])
    return markdown(["steps", "seconds an image", *map(str, steps)], lines)


def slopes() -> dict[str, float]:
    """Seconds a step of Table 6, by curve: least squares over the steps; the paper's first."""
    spec, found = specification("table06"), measured("table06", "cpu")["rows"]
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in spec["timed"]:
        curve = [(s, float(t)) for s, t in zip(row["steps"], row["published"])]
        curves |= {f"paper: {row['name'].partition(',')[0]}": curve} if curve else {}
    for row in found:
        curves.setdefault(row["name"], []).append((row["steps"], row["seconds"]))
    return {curve: slope(*zip(*at))["slope"]["value"] for curve, at in curves.items()}


def draw(name: str, scale: str) -> None:
    """Print the table; of a figure, write its picture beside the result file too."""
    print(table(name, scale))
    if name.startswith("figure") and measured(name, scale)["cells"]:
        print(picture(name, scale))


def picture(name: str, scale: str) -> Path:
    """``results/paper_<figure>_<scale>.svg``: accuracy in per cent, a panel each."""
    matplotlib = optional("matplotlib", extra="plots")
    figures = optional("matplotlib.figure", extra="plots")
    spec, found = specification(name), keyed(measured(name, scale))
    curves: dict[str, list[Row]] = {}
    for row in rows(name, scale):
        curves.setdefault(row.curve, []).append(row)
    settings = {"svg.hashsalt": "paper", "font.size": 9}  # the same bytes each time
    with matplotlib.rc_context(settings):
        panels = spec["panels"]
        figure = figures.Figure(figsize=(3.4 * len(panels), 3), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for axis, names in zip(axes, panels):
            for curve in names:
                _curve(axis, curves[curve], found, spec)
            axis.set_xlabel(_x_label(spec, names[0]))
            axis.set_ylim(0, 100)
            axis.grid(alpha=0.3)
            if axis.lines:
                axis.legend(fontsize=7, ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
        axes[0].set_ylabel("accuracy, %")
        path = RESULTS / f"paper_{name}_{scale}.svg"
        figure.savefig(path, metadata={"Date": None})
    return path


_X = {"steps": "optimization steps", "eot": "EOT replicates", "weight": "lambda"}


def _x_label(spec: dict[str, Any], curve: str) -> str:
    (vary,) = {row["vary"] for row in spec["rows"] if row["name"] == curve}
    return _X[vary]


def _curve(axis: Any, of: list[Row], found: Mapping[Any, Any], spec: dict[str, Any]) -> None:
    """Standard accuracy dashed, robust solid with its interval, the worst case dotted."""
    vary = next(row["vary"] for row in spec["rows"] if row["name"] == of[0].curve)
    colour = None
    for column, style in {"robust": "-", "standard": "--"}.items():
        there = [(row.at, o["accuracy"]) for row in of if (o := _ours(row, column, found))]
        if not there:
            continue
        x = [at for at, _ in there]
        y = [100 * share["value"] for _, share in there]
        label = f"{of[0].curve}, {column}"
        (line,) = axis.plot(x, y, style, marker="o", ms=3, color=colour, label=label)
        colour = line.get_color()
        low, high = ([100 * share[end] for _, share in there] for end in ("low", "high"))
        axis.fill_between(x, low, high, color=colour, alpha=0.12, lw=0)
    axis.set_xscale("log" if vary != "eot" else "linear")
    beside = of_one_suite([str(row.cells["robust"].worst) for row in of])
    worst = [(row.at, 100 * about["accuracy"]["value"]) for row, about in zip(of, beside) if about]
    if worst and colour:  # of the same defence: other steps are another
        axis.plot(*zip(*worst), ":", marker="x", ms=5, color=colour, label=WORST)
