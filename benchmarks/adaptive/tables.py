"""The tables of the adaptive benchmark, from its result files."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

from benchmarks.adaptive.figures import (
    NORMS,
    ROWS,
    accuracy,
    calls,
    clean,
    measured,
    paired,
    passes,
    restricted,
    right_8_times,
    settings,
    suite_of,
)
from benchmarks.common.results_file import RESULTS
from benchmarks.common.table_text import budget, less, markdown, percent, points, results
from benchmarks.speed.frontier import point_of


def _adaptive(norm: str) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """What met the suite in a norm: the row's name, its export, and its suite's part of that."""
    found = []
    for row, name in ROWS.items():
        if export := measured(f"{row}_{norm}", ["suite"]):
            found.append((name, export, export["suites"]["adaptive"][row]))
    return found


def _worst_cases(norm: str) -> str:
    rows = []
    for name, export, suite in _adaptive(norm):
        rows.append(
            [name, str(suite["accuracy"]["n"]), percent(clean(export)),
             f"**{percent(suite['accuracy'])}**", percent(suite["majority"]),
             right_8_times(suite), suite["checks"], f"{calls(suite):,.0f}"]
        )  # fmt: skip
    head = ["defence", "images", "clean, %", "robust, %", "majority, %", "of 8 tries, %",
            "checks", "calls"]  # fmt: skip
    return markdown(head, rows)


def adaptive_linf() -> str:
    """Worst cases over the adaptive suite, l-infinity."""
    return _worst_cases("linf")


def adaptive_l2() -> str:
    """Worst cases over the adaptive suite, l2."""
    return _worst_cases("l2")


def adaptive_summary() -> str:
    """What the suite leaves of each defence, most in l-infinity first."""
    met = {norm: {n: of for n, *of in _adaptive(norm)} for norm in NORMS}
    rows = []
    for name, (export, _) in sorted(
        met["linf"].items(), key=lambda of: -of[1][1]["accuracy"]["value"]
    ):
        left = []
        for of_norm in met.values():
            _, suite = of_norm.get(name, (None, None))
            left += [percent(suite["accuracy"], 0), right_8_times(suite)] if suite else ["-", "-"]
        rows.append([name, percent(clean(export), 0), *left, f"{passes(export):.3g}"])
    head = [part for said in NORMS.values() for part in (f"{said}, %", "of 8 tries, %")]
    return markdown(["defence", "clean, %", *head, "passes"], rows)


#: What the others are compared with.
COMPARED = ("one-shot", "ScoreOpt-O", "ScoreOpt-N", "DiffPure", "adversarial training")


def adaptive_pairs() -> str:
    """Worst cases less others' of the same images, where the suite left any."""
    rows = []
    for norm, said in NORMS.items():
        suites = {name: suite for name, _, suite in _adaptive(norm)}
        for name, suite in suites.items():
            pairs = [
                points(less(suite, suites[other])) if other in suites and other != name else "-"
                for other in COMPARED
            ]
            if suite["accuracy"]["value"]:
                rows.append([name, said, *pairs])
    return markdown(["defence", "norm", *(f"less {other}" for other in COMPARED)], rows)


def adaptive_rows() -> str:
    """What each row is called, its settings, and how long it takes."""
    rows = []
    for row, name in ROWS.items():
        exports = [of for norm in NORMS if (of := measured(f"{row}_{norm}"))]
        minutes = [f"{of['suites']['adaptive'][row]['seconds'] / 60:.0f}" for of in exports]
        rows.append([name, f"`{row}`", settings(exports[0], row), " and ".join(minutes)])
    return markdown(["defence", "`ROW`", "settings", "minutes of a core, in each norm"], rows)


def adaptive_stages() -> str:
    """What each stage of the suite took, over all rows of random defences."""
    return _stages("suite_*_l*.json")


def adaptive_stages_before() -> str:
    """Likewise of the suite before it was one of momentum."""
    return _stages("adaptive_*.json")


def _stages(files: str) -> str:
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for path in RESULTS.glob(files):
        for suite in results(path.stem)["suites"]["adaptive"].values():
            for stage in suite["stages"] if _is_random(suite) else ():
                label = stage["attack"].rpartition("/")[2]
                found[label] += Counter({n: stage[n] for n in ("tried", "taken", "alone")})
    rows = [
        [label, *(f"{count[n]:,}" for n in ("tried", "taken", "alone"))]
        for label, count in sorted(found.items(), key=lambda item: -item[1]["taken"])
        if label not in ("clean", "no attack")
    ]
    return markdown(["attack", "images met", "taken", "by it alone"], rows)


def _is_random(suite: dict[str, Any]) -> bool:
    """As the suite before says by its labels, and as it is by leaving out APGD."""
    labels = [stage["attack"] for stage in suite["stages"]]
    return any("+EOT" in label for label in labels) or not any("/APGD" in label for label in labels)


def adaptive_momentum() -> str:
    """The suite of momentum, less what it was before, over the same images.

    Where a former file has no record an image, its accuracy is of its own 128, unpaired.
    """
    rows = []
    for path in sorted(RESULTS.glob("suite_*_l*.json")):
        name = path.stem.removeprefix("suite_")
        now, before = (suite_of(name, [of]) for of in ("suite", "adaptive"))
        if now is None or before is None:
            continue
        row, _, norm = name.rpartition("_")
        same, gap = before["accuracy"], "-"
        if "right" in before:
            same = accuracy(restricted(before, len(now["right"].split())))
            gap = points(paired(now, before))
        rows.append(
            [ROWS[row], NORMS[norm], percent(same), f"{calls(before):,.0f}",
             f"**{percent(now['accuracy'])}**", f"{calls(now):,.0f}", gap]
        )  # fmt: skip
    head = ["defence", "norm", "before, %", "calls", "now, %", "calls", "points"]
    return markdown(head, rows)


def adaptive_found_by() -> str:
    """Which attacks took the images that the suite took."""
    rows = []
    for norm, said in NORMS.items():
        for name, _, suite in _adaptive(norm):
            taking = sorted(suite["stages"], key=lambda stage: -stage["taken"])
            by = [
                f"{stage['attack'].removeprefix('adaptive/')} {stage['taken']} ({stage['alone']})"
                for stage in taking
                if stage["taken"] and stage["attack"] not in ("clean", "adaptive/no attack")
            ]
            rows.append([name, said, "; ".join(by)])
    return markdown(["defence", "norm", "images taken (by it alone), most first"], rows)


def adaptive_failed() -> str:
    """The checks that failed, with their figures."""
    rows = [
        [name, said, check["name"], check["figure"]]
        for norm, said in NORMS.items()
        for name, _, suite in _adaptive(norm)
        for check in suite["checklist"]
        if check["status"] == "FAIL"
    ]
    if not rows:
        return "No check failed."
    return markdown(["defence", "norm", "failed check", "found"], rows)


def second_pair() -> str:
    """Single attacks beside the suite, on networks that nothing was tuned to."""
    found = results("second_pair")
    suite = found["suites"]["adaptive"]["ScoreOpt-N"]
    lines = [
        ["none", "-", percent(clean(found)), "-"],
        ["the whole suite", "-", f"**{percent(suite['accuracy'])}**", "-"],
    ]
    for cell in found["cells"]:
        if cell["attack"] not in ("clean", "adaptive"):
            asked = found["plan"]["attacks"][cell["attack"]]
            lines.append(
                [cell["attack"], budget(asked | {"eot": asked.get("eot", 1)}),
                 percent(cell["accuracy"]), points(less(cell, suite))]
            )  # fmt: skip
    return markdown(["attack", "steps x samples", "left, %", "less the suite"], lines)


def digits() -> str:
    """What the suite leaves of defences of digits, and less one denoising of the same images."""
    return _digits("digits", "digits_rounded")


def digits_l2() -> str:
    """Likewise in l2."""
    return _digits("digits_l2")


def _digits(*names: str) -> str:
    found = [results(name) for name in names]
    suites = {name: of for run in found for name, of in run["suites"]["adaptive"].items()}
    cells = [cell for run in found for cell in run["cells"]]
    clean = {cell["defence"]: cell for cell in cells if cell["attack"] == "clean"}
    rows = [
        [name, percent(clean[name]["accuracy"]), f"**{percent(suite['accuracy'])}**",
         "-" if name == "one-shot" else points(less(suite, suites["one-shot"])), suite["checks"]]
        for name, suite in suites.items()
    ]  # fmt: skip
    return markdown(["defence", "clean, %", "robust, %", "less one-shot", "checks"], rows)


#: Presets of the frontier, and their rows of the adaptive benchmark.
PRESET_ROWS = {
    "fast": "scoreopt-n-no-jacobian",
    "balanced": "scoreopt-n-stopped",
    "strong": "scoreopt-n-no-jacobian-5",
}


def frontier_presets() -> str:
    """Each preset's point, and what the adaptive suite leaves of it."""
    lines = []
    for name, row in PRESET_ROWS.items():
        point = point_of(name)
        export = measured(f"{row}_linf")
        assert export, row
        suite = export["suites"]["adaptive"][row]
        lines.append(
            [name, ", ".join(f"{key} {value}" for key, value in point["settings"].items()
                             if key != "variant"),
             f"{point['ms']['value']:.1f}",
             *(percent(point["accuracy"][column], 0) for column in ("clean", "lowest")),
             percent(clean(export), 0), percent(suite["accuracy"], 0)]
        )  # fmt: skip
    return markdown(
        ["preset", "settings of ScoreOpt-N", "ms an image", "clean, %", "lowest, %",
         "clean, test, %", "worst case, test, %"], lines,
    )  # fmt: skip


def decomposition() -> str:
    """Where each defence's robust accuracy comes from, as a picture and as a table."""
    if not (RESULTS / "decomposition.json").exists():
        return "Not measured yet."
    lines = []
    for of in results("decomposition")["rows"]:
        accuracy, parts, moved = of["accuracy"], of["parts"], of["contraction"]
        known = ("deployed", "draw known", "one draw for all, known", "classifier")
        ratios = [moved.get(direction) for direction in ("attack", "random")]
        lines.append(
            [ROWS[of["name"]], percent(of["gradients"][of["claim"]], 0),
             *(percent(accuracy[name], 0) for name in known),
             *(points(parts[name]) for name in ("contraction", "randomness", "masking")),
             *(percent(of["votes"][k], 0) for k in ("8", "64")),
             " and ".join(f"{ratio['value']:.2f}" if ratio else "-" for ratio in ratios)]
        )  # fmt: skip
    table = markdown(
        ["defence", "under BPDA, %", "worst case, %", "draw known, %", "one draw for all, known, %",
         "classifier alone, %", "contraction", "randomness", "masking", "majority of 8, %",
         "majority of 64, %", "length left, attack and random"], lines,
    )  # fmt: skip
    return f"![A bar a defence](../../benchmarks/results/decomposition.png)\n\n{table}"


ADAPTIVE_TABLES: dict[str, Callable[[], str]] = {
    table.__name__: table
    for table in (
        adaptive_summary, adaptive_rows, adaptive_linf, adaptive_l2, adaptive_pairs,
        adaptive_stages, adaptive_stages_before,
        adaptive_momentum, adaptive_found_by, adaptive_failed, second_pair, digits,
        digits_l2, frontier_presets, decomposition,
    )
}  # fmt: skip
