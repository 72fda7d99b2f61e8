"""The front table of docs/results/paper.md, and the answers to its questions, from result files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

from benchmarks.adaptive.figures import ROWS, clean, of_one_suite, paired, suite_of
from benchmarks.adaptive.figures import measured as left
from benchmarks.common.table_text import markdown, points
from benchmarks.paper.cells import Row, rows, specification
from benchmarks.paper.cost import downloads, hours
from benchmarks.paper.drawing import (
    NOT_RUN,
    NOT_YET,
    budgets,
    keyed,
    measured,
    percent,
    slopes,
)
from scoreopt_defense.evaluation.record.differences import Difference

#: In the paper's order.
ORDER = (
    *("table01", "table02", "table03", "section422", "table04", "table05", "section43"),
    *("section441", "figure2", "figure3", "table06", "table07", "table08", "table09"),
    *("figure4", "figure5", "table11", "table12", "table13"),
)


def _short(table: str) -> str:
    return specification(table)["title"].partition(":")[0].partition(" (")[0]


def summary() -> str:
    """Paper, ours at cpu scale, why they differ: a headline a table."""
    return markdown(
        ["", "what", "paper", "ours at cpu scale", "its worst case", "why they differ"],
        [[f"[{_short(table)}](#{_anchor(table)})", *_headline(table), specification(table)["why"]]
         for table in ORDER],
    )  # fmt: skip


def _anchor(table: str) -> str:
    kept = (c for c in _short(table).lower() if c.isalnum() or c in " -")
    return "".join(kept).replace(" ", "-")


def _headline(table: str) -> list[str]:
    spec = specification(table)
    if spec.get("kind") == "timing":
        found = slopes()
        ours = _ratio(found, "Optimization, ScoreOpt-N", "Denoising")
        return ["time of an optimisation step over a denoising one", spec["claim"], ours, "-"]
    if "headline" not in spec:
        row = rows(table, "paper")[0]
        return [f"{row.group}, {row.name}", f"{row.published['robust']} %", NOT_RUN, "-"]
    name, column = spec["headline"]
    row = next(row for row in rows(table, "cpu") if row.name == name)
    printed = row.published.get(column) or row.published.get("robust")
    said = printed + ("" if printed and "%" in printed else " %") if printed else spec["claim"]
    cell = row.cells[column]
    written = measured(table, "cpu")
    ours, worst = keyed(written).get(cell.key), cell.worst and suite_of(cell.worst)
    return [
        f"{name}: {column}", said,
        percent(ours["accuracy"]) + " %" if ours else NOT_YET,
        "-" if cell.worst is None else percent(worst["accuracy"]) + " %" if worst else NOT_YET,
    ]  # fmt: skip


def _ratio(found: dict[str, float], over: str, under: str) -> str:
    return f"{found[over] / found[under]:.2f} times" if over in found else NOT_YET


def verdicts() -> str:
    """What BPDA+EOT leaves of each defence, and what the adaptive suite does: Table 1's rows."""
    return markdown(
        ["defence", "clean, %", "BPDA+EOT, %", "worst case, %", "BPDA+EOT less worst case"],
        [
            [name, percent(clear, 0), percent(left, 0), f"**{percent(least, 0)}**", points(gap)]
            for name, clear, left, least, gap in verdict_rows()
        ],
    )


def verdict_rows() -> list[tuple[Any, ...]]:
    """By defence: clean accuracy, what BPDA+EOT leaves, what the suite does, and the difference."""
    written, found = measured("table01", "cpu"), []
    ours = keyed(written)
    for row in rows("table01", "cpu"):
        cell = row.cells.get("robust")
        export = left(cell.worst) if cell and cell.worst else None
        if cell is None or export is None or cell.key not in ours:
            continue
        worst, bpda = suite_of(str(cell.worst)), ours[cell.key]
        if worst and (gap := paired(bpda, worst)):
            shares = clean(export), bpda["accuracy"], worst["accuracy"]
            found.append((ROWS[str(cell.worst).rpartition("_")[0]], *shares, gap))
    return sorted(found, key=lambda row: -row[3]["value"])


def commands() -> str:
    """Of each table: the command, its downloads, and what it would take."""
    lines = []
    for table in ORDER:
        named = ", ".join(f"`{name}`" for name in downloads(table))
        cost = hours(table)
        said = "minutes" if cost < 0.05 else f"{cost:,.0f}" if cost >= 10 else f"{cost:.1f}"
        lines.append([_short(table), f"`make paper-table TABLE={table} SCALE=paper`", named, said])
    return markdown(["", "command", "networks that it loads", "GPU hours"], lines)


def allowed() -> str:
    """Queries an image of each attack at cpu scale, where they are not the paper's."""
    lines = []
    for table in ORDER:
        said = [part for part in budgets(table).split("; ") if "paper's" in part]
        if said:
            lines.append([_short(table), "; ".join(said)])
    return markdown(["", "attacks that are cut at cpu scale"], lines)


def compared(name: str) -> str:
    """Differences, paired over images: those of a question, or of a table by itself."""
    return COMPARED[name]()


def _listed(lines: Callable[[], Lines]) -> str:
    return markdown(
        ["compared", "difference, points (95 %)", "at this scale"],
        [[what, _said(found), _verdict(found)] for what, found in lines()],
    )


def _said(found: Difference | str | None) -> str:
    return points(found) if isinstance(found, Difference) else found or NOT_YET


def _verdict(found: Difference | str | None) -> str:
    """What an interval says; of a figure without one, nothing."""
    if found is None:
        return "not measured yet"
    if isinstance(found, str):
        return "-"
    return "higher" if found.low > 0 else "lower" if found.high < 0 else "no difference seen"


def _row(table: str, name: str, group: str = "") -> Row:
    return next(r for r in rows(table, "cpu") if r.name == name and r.group.startswith(group))


def _gap(
    a: tuple[str, str, str], b: tuple[str, str, str], group: str = "", *, worst: bool = False
) -> Difference | None:
    """One (table, row, column) less another; None until both are measured.

    Of the worst cases that stand beside the two, if so asked: by one suite, as it is if that met
    both.
    """
    if not worst:
        return _between(_figures(*a, group), _figures(*b, group))
    cells = [_row(table, name, group).cells[column] for table, name, column in (a, b)]
    return _between(*of_one_suite([str(cell.worst) for cell in cells]))


def _figures(table: str, name: str, column: str, group: str = "") -> dict[str, Any] | None:
    """What is written of a cell."""
    return keyed(measured(table, "cpu")).get(_row(table, name, group).cells[column].key)


def _between(a: dict[str, Any] | None, b: dict[str, Any] | None) -> Difference | None:
    return paired(a, b) if a and b and a["accuracy"] and b["accuracy"] else None


def _at(name: str, row: str, other: str) -> Difference | None:
    """A row of the adaptive benchmark less another, both at one budget, in l-infinity."""

    def suite(row: str) -> dict[str, Any] | None:
        before = ["adaptive"]
        return suite_of(f"{row}_linf-at-{name}", before) or suite_of(f"{row}_linf", before)

    return _between(suite(row), suite(other))


Lines = Iterator[tuple[str, Difference | str | None]]
#: Steps and samples of the worst cases at another row's budget.
AT = {"least": "10 x 1", "smallest": "10 x 2", "small": "20 x 2"}
OURS_O, OURS_N = "Ours (o), ScoreOpt-O", "Ours (n), ScoreOpt-N"
ALONE = "Wang et al. [64] alone"
ONE, DIFFPURE, ADP = "one-shot denoising", "Nie et al. [40], DiffPure", "Yoon et al. [69], ADP"


def _against_denoising() -> Lines:
    for name, said in {ONE: "one-shot", DIFFPURE: "DiffPure of 10 steps"}.items():
        yield (f"ScoreOpt-N less {said}, BPDA+EOT",
               _gap(("table01", OURS_N, "robust"), ("table01", name, "robust")))  # fmt: skip
    ours = "table02", OURS_N, "robust"
    twenty = "table02", "Diffusion-based purification, steps 20", "robust"
    yield "ScoreOpt-N less DiffPure of 20 steps, BPDA+EOT", _gap(ours, twenty)
    yield "ScoreOpt-N less DiffPure of 20 steps, worst case", _gap(ours, twenty, worst=True)
    yield ("ScoreOpt-N less DiffPure of 10 steps, PGD+EOT",
           _gap(("table03", "Ours, ScoreOpt-N", "robust"), ("table03", DIFFPURE, "robust"),
                "l-inf"))  # fmt: skip
    for name, said in {ONE: "one-shot", "DiffPure": "DiffPure of 10 steps"}.items():
        both = ("table07", OURS_N, "robust"), ("table07", name, "robust")
        yield f"ScoreOpt-N less {said}, transfer PGD", _gap(*both)
        yield f"ScoreOpt-N less {said}, worst case", _gap(*both, worst=True)


def _losses() -> Lines:
    for loss in ("Diff", "MSE", "SR"):
        for column in ("standard", "robust"):
            last, before = (("figure2", f"{loss}, steps {n}", column) for n in (100, 5))
            yield f"{loss}: 100 steps less 5, {column}", _gap(last, before)
    for loss, row in {"Diff": "scoreopt-o", "SR": "scoreopt-o-sr"}.items():
        for steps, name in {20: "smallest", 100: "least"}.items():
            gap, met = _at(name, f"{row}-{steps}-steps", row), AT[name]
            yield f"{loss}: {steps} steps less 5, worst case, both at {met}", gap
    for steps in (20, 100):  # of five, Diff met four times the samples
        both = (("figure2", f"{loss}, steps {steps}", "robust") for loss in ("SR", "Diff"))
        yield f"SR less Diff, {steps} steps, worst case", _gap(*both, worst=True)
    for loss in ("MSE", "SR"):
        ends = [("figure2", f"{loss} at 20 steps, lambda {n}", "robust") for n in ("10", "0.01")]
        yield f"{loss}: lambda 10 less 0.01, robust", _gap(*ends)
        yield f"{loss}: lambda 10 less 0.01, worst case", _gap(*ends, worst=True)


def _speed() -> Lines:
    found, times = slopes(), {(r["name"], r["steps"]): r["seconds"]
                              for r in measured("table06", "cpu")["rows"]}  # fmt: skip
    for curve in ("Optimization, ScoreOpt-N", "Optimization, ScoreOpt-O"):
        ratio = _ratio(found, curve, "Denoising") if times else None
        yield f"{curve}: time of a step over a denoising step (the paper: about 2)", ratio
    five, hundred = times.get(("Optimization, ScoreOpt-N", 5)), times.get(("Denoising", 100))
    said = f"{hundred / five:.1f} times as fast" if five and hundred else None
    yield "ScoreOpt-N's 5 steps against 100 denoising steps (the paper: 9.2)", said
    denoised = {n: ("table02", f"Diffusion-based purification, steps {n}", "robust")
                for n in (10, 40, 80, 100)}  # fmt: skip
    yield ("ScoreOpt-N's 5 steps less 100 denoising steps, BPDA+EOT",
           _gap(("table02", OURS_N, "robust"), denoised[100], "1 replicate"))  # fmt: skip
    for n in (40, 80, 100):
        gap = _gap(denoised[n], denoised[10], "1 replicate")
        yield f"DiffPure: {n} less 10 steps, BPDA+EOT", gap
    for n, name in {20: "small", 40: "smallest", 80: "least", 100: "least"}.items():
        gap, met = _at(name, f"diffpure-{n}-steps", "diffpure"), AT[name]
        yield f"DiffPure: {n} less 10 steps, worst case, both at {met}", gap


def _replicates() -> Lines:
    for table, curves, most in (
        ("figure4", ("ScoreOpt-N, l-infinity", "ScoreOpt-N, l2"), 20),
        ("figure5", ("ScoreOpt-N", "ScoreOpt-O"), 8),
    ):
        for curve in curves:
            ends = ((table, f"{curve}, replicates {n}", "robust") for n in (most, 1))
            yield f"{_short(table)}, {curve}: {most} replicates less 1", _gap(*ends)
    ten = "table02", "Diffusion-based purification, steps 10", "robust"
    gap = _between(*(_figures(*ten, group) for group in ("", "1 replicate")))
    yield "Table 2, DiffPure of 10 steps: 4 replicates, votes of 50, less 1, votes of 10", gap


def _surrogates() -> str:
    pairs = [("surrogate", "exact"), ("surrogate", "smoothed"), ("two steps", "smoothed")]

    def gap(name: str, norm: str, columns: tuple[str, str]) -> str:
        return _said(_gap(*(("section422", name, column) for column in columns), norm))

    lines = []
    for norm, taken in {"l-infinity": (1, 5, 20), "l2": (1, 5)}.items():
        for variant, steps in product(("ScoreOpt-N", "ScoreOpt-O"), taken):
            asked = pairs if steps > 1 else pairs[:2]  # of one step the last is the defence itself
            gaps = [gap(f"{variant}, steps {steps}", norm, columns) for columns in asked]
            lines.append([f"{variant}, {norm}", str(steps), *gaps, *["-"] * (3 - len(gaps))])
    return markdown(["defence", "steps", *(f"{a} less {b}" for a, b in pairs)], lines)


def _hyper_parameters() -> Lines:
    twenty, ten = (("figure3", f"ScoreOpt-N, steps {n}", "robust") for n in (20, 10))
    yield "ScoreOpt-N: 20 less 10 steps, BPDA+EOT", _gap(twenty, ten)
    twenty, five = (("figure3", f"ScoreOpt-O, steps {n}", "robust") for n in (20, 5))
    yield "ScoreOpt-O: 20 less 5 steps, BPDA+EOT", _gap(twenty, five)
    for variant, steps in product(("ScoreOpt-N", "ScoreOpt-O"), (1, 2)):
        both = (("figure3", f"{variant}, steps {n}", "robust") for n in (steps, 5))
        yield f"{variant}: {steps} less 5 steps, worst case", _gap(*both, worst=True)
    for row, steps, name in (
        ("ScoreOpt-N", 10, "small"), ("ScoreOpt-N", 20, "smallest"), ("ScoreOpt-O", 20, "smallest"),
    ):  # fmt: skip
        gap, met = _at(name, f"{row.lower()}-{steps}-steps", row.lower()), AT[name]
        yield f"{row}: {steps} less 5 steps, worst case, both at {met}", gap
    for variant in ("ScoreOpt-N", "ScoreOpt-O"):
        both = (("section422", f"{variant}, steps {n}", "surrogate") for n in (1, 5))
        yield f"{variant}, l2: 1 less 5 steps, worst case", _gap(*both, "l2", worst=True)
    high, low = (("table12", f"ScoreOpt-N, sigma {n}", "robust") for n in ("0.60", "0.40"))
    said = "ScoreOpt-N: noise level 0.18 less 0.12"
    yield f"{said}, BPDA+EOT", _gap(high, low)
    yield f"{said}, worst case", _gap(high, low, worst=True)
    faster = "table12", "ScoreOpt-O, learning rate 0.1, 10 steps", "robust"
    preset = "table07", OURS_O, "robust"
    said = "ScoreOpt-O: 10 steps at twice the learning rate less the preset, worst case"
    yield said, _gap(faster, preset, worst=True)
    high = "table12", "ScoreOpt-O, sigma [0.20, 0.40]", "robust"
    preset = "table08", OURS_O, "robust"
    yield "ScoreOpt-O, l2: more noise less the preset's, worst case", _gap(high, preset, worst=True)
    ten, noisier = (("table12", f"ScoreOpt-N, 10 steps{n}", "robust") for n in ("", ", sigma 0.30"))
    five = ("table08", OURS_N, "robust")
    yield "ScoreOpt-N, l2: 10 less 5 steps, worst case", _gap(ten, five, worst=True)
    said = "ScoreOpt-N of 10 steps, l2: noise level 0.18 less 0.15, worst case"
    yield said, _gap(noisier, ten, worst=True)


def _conventions() -> Lines:
    """Table 3: against the others, and the authors' convention against the paper's."""
    ours, real, authors = "Ours, ScoreOpt-N", "robust", "robust, authors' code"
    for norm in ("l-infinity", "l2"):
        for other, said in {DIFFPURE: "DiffPure", ADP: "ADP"}.items():
            gap = _gap(("table03", ours, real), ("table03", other, real), norm)
            yield f"ScoreOpt-N less {said}, {norm}", gap
        both = ("table03", ours, authors), ("table03", DIFFPURE, authors)
        yield f"ScoreOpt-N less DiffPure, {norm}, authors' code", _gap(*both, norm)
        for name, said in {ours: "ScoreOpt-N", DIFFPURE: "DiffPure", ADP: "ADP"}.items():
            both = ("table03", name, authors), ("table03", name, real)
            yield f"{said}, {norm}: by the authors' code less by the paper", _gap(*both, norm)


def _corruptions() -> str:
    ours, bare = "Ours, ScoreOpt-N", "Base WRN-70-16"
    at_its_level = f"{ONE} at ScoreOpt-N's noise level"
    pairs = {
        "ScoreOpt-N less the classifier": (ours, bare),
        "one pass at 0.15 less the classifier": (at_its_level, bare),
        "one pass at 0.25 less the classifier": (ONE, bare),
        "one pass at 0.15 less ScoreOpt-N": (at_its_level, ours),
    }

    def gap(column: str, names: tuple[str, str]) -> str:
        return _said(_gap(*(("table05", name, column) for name in names)))

    return markdown(
        ["", *pairs],
        [[column, *(gap(column, names) for names in pairs.values())]
         for column in specification("table05")["columns"]],
    )  # fmt: skip


def _queries() -> Lines:
    ours = "section43", "Ours, ScoreOpt-N"
    yield "ScoreOpt-N: under SPSA less clean", _gap((*ours, "robust"), (*ours, "standard"))


def _before_adversarial_training() -> Lines:
    for norm in ("l-infinity", "l2"):
        both = [("section441", name, "robust") for name in ("ScoreOpt-N before it", ALONE)]
        yield f"ScoreOpt-N before it less it alone, {norm}, PGD+EOT", _gap(*both, norm)
        gap = _gap(*both, norm, worst=True)
        yield f"ScoreOpt-N before it less it alone, {norm}, worst case", gap


COMPARED: dict[str, Callable[[], str]] = {
    "question_1": partial(_listed, _against_denoising),
    "question_2": partial(_listed, _losses),
    "question_3": partial(_listed, _speed),
    "question_4": partial(_listed, _replicates),
    "question_5": _surrogates,
    "question_6": partial(_listed, _hyper_parameters),
    "table03_differences": partial(_listed, _conventions),
    "table05_differences": _corruptions,
    "section43_differences": partial(_listed, _queries),
    "section441_differences": partial(_listed, _before_adversarial_training),
}
