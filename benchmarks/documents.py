"""The tables of the README and of docs/, as Markdown, from the result files beside this script.

    python -m benchmarks.documents demo                               # or another name of TABLES
    python -m benchmarks.documents --refresh README.md docs/*/*.md benchmarks/README.md

The second makes anew what stands between a document's marks. A test holds the documents to it.
"""

from __future__ import annotations

import argparse
import itertools
import re
import textwrap
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import leaderboard
from benchmarks.adaptive.tables import ADAPTIVE_TABLES
from benchmarks.certify.tables import CERTIFY_TABLES
from benchmarks.common.reference import command_line, configuration
from benchmarks.common.results_file import RESULTS
from benchmarks.common.table_text import budget, less, markdown, percent, points, results
from benchmarks.speed.tables import SPEED_TABLES

SURROGATES = ("one-shot", "bpda")
_SCOREOPT = ("ScoreOpt-N", "ScoreOpt-O")
_SUITE = "the adaptive suite before momentum"


def demo() -> str:
    """Accuracy of each defence under each attack, and under whichever harms an image most."""
    weakest = results("demo")["weakest"]
    attacks, rows = _accuracies("demo", lambda share: f"{100 * share['value']:.0f}")
    return markdown(
        ["accuracy, %", *attacks, "weakest"],
        [[defence, *cells, percent(weakest[defence], 0)] for defence, *cells in rows],
    )


def left(name: str) -> str:
    """What each attack of an exported run leaves of each defence."""
    attacks, rows = _accuracies(name, percent)
    return markdown(["accuracy, %", *attacks], rows)


def minimum_norms() -> str:
    """What the nearest images leave at each radius, beside momentum PGD at one."""
    rows, radii = [], (0.1, 0.2, 0.3, 0.4)
    for cell in results("minimum_norm")["cells"]:
        if curve := cell.get("curve"):
            at = [max(point for point in curve if point[0] <= eps)[1] for eps in radii]
        elif cell["attack"] == "clean":
            continue
        else:
            at = [cell["accuracy"]["value"] if eps == 0.3 else None for eps in radii]
        rows.append(
            [cell["attack"], *("-" if value is None else f"{100 * value:.0f}" for value in at)]
        )
    return markdown(["left, %", *(f"at {eps}" for eps in radii)], rows)


def _accuracies(
    name: str, said: Callable[[dict[str, float]], str]
) -> tuple[list[str], list[list[str]]]:
    """The attacks of an exported run, and a row a defence."""
    found, attacks, defences = _of_a_run(name)
    return attacks, [
        [defence, *(said(found[attack, defence]["accuracy"]) for attack in attacks)]
        for defence in defences
    ]


def tuning() -> str:
    """The whole grid that the presets of cifar10-tiny were chosen from."""
    rows = results("tune_presets_cifar10-tiny")["rows"]
    columns = dict.fromkeys(column for row in rows for column in row["accuracy"])
    return markdown(
        ["kind", "settings", *columns],
        [
            [row["kind"], _settings(row["settings"]),
             *(percent(row["accuracy"].get(column)) for column in columns)]
            for row in rows
        ],
    )  # fmt: skip


def _settings(settings: dict[str, Any]) -> str:
    """In words; a pair of numbers is a range."""
    return ", ".join(
        f"{name} {' to '.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in settings.items()
    )


def cosines() -> str:
    """Cosine of each surrogate with the exact gradient, by variant, loss and steps."""
    found = {
        (row["variant"], row["loss"], mode, row["steps"]): row[f"{mode} cosine"]
        for row in results("exact_gradient_cosines")["rows"]
        for mode in SURROGATES
    }
    steps = sorted({key[-1] for key in found})

    def cell(mean: dict[str, float]) -> str:
        return f"{mean['value']:.2f} ({mean['high'] - mean['value']:.2f})"

    return markdown(
        ["variant", "loss", "mode", *map(str, steps)],
        [
            [f"ScoreOpt-{variant}", loss, mode,
             *(cell(found[variant, loss, mode, count]) for count in steps)]
            for variant, loss, mode in dict.fromkeys(key[:3] for key in found)
        ],
    )  # fmt: skip


def attack_search(name: str = "attack_search") -> str:
    """What each attack leaves of both defences, and that less what the reference leaves."""
    found = results(name)
    defences, images = list(found["plan"]["defences"]), found["plan"]["images"]["shape"][0]
    cells, attacks, _ = _of_a_run(name)
    beside = {(row["attack"], row["defence"]): row for row in found["less_reference"]}

    def columns(attack: str, defence: str) -> list[str]:
        cell = cells.get((attack, defence))
        if cell is None or cell["accuracy"]["n"] < images:
            return [""] * 3
        row = beside.get((attack, defence))
        return [percent(cell["accuracy"]), percent(cell["majority"]),
                "" if row is None else points(row)]  # fmt: skip

    def place(attack: str) -> float:
        """No attack first, the reference next, then the strongest on the first defence."""
        row = beside.get((attack, defences[0]))
        return row["value"] if row else -2.0 if attack == "clean" else -1.5

    rows = [
        [attack, *(part for defence in defences for part in columns(attack, defence))]
        for attack in sorted(attacks, key=place)
    ]
    return markdown(
        ["attack", *(f"{defence}{what}" for defence in defences
                     for what in (", %", ", by majority", ", less the reference"))],
        [row for row in rows if any(row[1:])],
    )  # fmt: skip


def half_precision() -> str:
    """What is left by each attack in either precision, and the difference of the same images."""
    found, attacks, defences = _of_a_run("bfloat16")
    kinds = [name.removesuffix(", float32") for name in attacks if name.endswith(", float32")]
    pairs = [
        (name, kind, *(found[f"{kind}, {of}", name] for of in ("float32", "bfloat16")))
        for name in defences
        for kind in kinds
    ]
    return markdown(
        ["defence", "attack", "float32, %", "bfloat16, %", "bfloat16 less float32"],
        [
            [name, kind, percent(whole["accuracy"]), percent(half["accuracy"]),
             points(less(half, whole))]
            for name, kind, whole, half in pairs
        ],
    )  # fmt: skip


def gradient_modes() -> str:
    """Robust accuracy by gradient mode and number of optimisation steps."""
    columns, modes = _gradient_modes()
    budgets = [budget(attack) for attack, _ in columns.values()]
    return markdown(
        ["backward pass", *columns],
        [["steps x samples of PGD", *budgets]] + [
            [mode, *(percent(cells[mode]["accuracy"]) for _, cells in columns.values())]
            for mode in ("clean", *modes)
        ],
    )  # fmt: skip


def gradient_modes_less_smoothed() -> str:
    """What each mode leaves, less what the smoothed gradient leaves of the same images.

    Beside it the whole suite's worst case, of the presets.
    """
    columns, modes = _gradient_modes()
    paired = {name: cells for name, (_, cells) in columns.items()}
    for defence in _SCOREOPT:
        row = defence.lower()
        suite = results(f"adaptive_{row}_linf")["suites"]["adaptive"][row]
        paired[f"{defence}, 5 steps"][_SUITE] = suite

    def gap(cells: dict[str, Any], mode: str) -> str:
        return points(less(cells[mode], cells["smoothed"])) if mode in cells else "-"

    return markdown(
        ["less smoothed, points", *paired],
        [[mode, *(gap(cells, mode) for cells in paired.values())]
         for mode in (*modes, _SUITE) if mode != "smoothed"],
    )  # fmt: skip


def _gradient_modes() -> tuple[dict[str, tuple[Any, dict[str, Any]]], list[str]]:
    """By defence and its steps, PGD's settings and the cells by mode; and the modes."""
    columns = {}
    for defence, steps in itertools.product(_SCOREOPT, (1, 5, 20)):
        name = f"gradient_modes_{steps}_steps"
        found, modes, _ = _of_a_run(name)
        columns[f"{defence}, {steps} step{'s' * (steps > 1)}"] = (
            results(name)["plan"]["attacks"]["smoothed"],
            {mode: found[mode, defence] for mode in modes},
        )
    return columns, [mode for mode in modes if mode != "clean"]


def mode_cosines() -> str:
    """How far each mode points from the smoothed one, and how many samples settle its signs."""
    rows = results("gradient_modes_cosines")["rows"]
    samples = list(rows[0]["settled signs by samples"])
    return markdown(
        ["defence", "steps", "mode", "cosine", "equal signs",
         *(f"signs settled by {k}" for k in samples)],
        [
            [row["defence"], str(row["steps"]), row["mode"],
             f"{row['cosine']['value']:.2f} ({row['cosine']['high'] - row['cosine']['value']:.2f})",
             f"{row['sign']['value']:.2f}",
             *(f"{row['settled signs by samples'][k]:.2f}" for k in samples)]
            for row in rows
        ],
    )  # fmt: skip


OUTCOMES = {
    "runs": "runs",
    "fails also without a defence": "fails also without a defence",
    "needs what the defence does not give": "needs more",
    "stopped at the time limit": "stopped",
}


def every_attack() -> str:
    """How many attack classes of each library run."""
    rows = results("every_attack")["rows"]
    counts = Counter((row["library"], row["outcome"]) for row in rows)
    return markdown(
        ["library", "classes", *OUTCOMES.values()],
        [
            [library, str(sum(row["library"] == library for row in rows)),
             *(str(counts[library, outcome]) for outcome in OUTCOMES)]
            for library in dict.fromkeys(row["library"] for row in rows)
        ],
    )  # fmt: skip


def every_class() -> str:
    """Each attack class: does it run, what stops it, and what does it ask the model."""
    return markdown(
        ["library", "attack", "outcome", "gradient", "queried values", "error"],
        [
            [row["library"], row["attack"], OUTCOMES[row["outcome"]],
             "yes" if row["DefendedModel"].get("asks for a gradient") else "no", _range(row),
             _error(row)]
            for row in sorted(results("every_attack")["rows"], key=_by_library_and_name)
        ],
    )  # fmt: skip


def _by_library_and_name(row: dict[str, Any]) -> tuple[bool, str, str]:
    return row["library"] != "torchattacks", row["library"], row["attack"]


def _range(row: dict[str, Any]) -> str:
    """From where to where the images went that the attack asked the defended model about."""
    asked = row["DefendedModel"].get("queried values", ())
    return " to ".join(f"{value:.1f}" for value in asked).replace("-0.0", "0.0")


def _error(row: dict[str, Any]) -> str:
    """The library's own words where it is stopped, and who says them."""
    if row["outcome"] == "runs":
        return ""
    failed = next(
        tried for door, tried in row.items() if isinstance(tried, dict) and "error" in tried
    )
    error = failed["error"].replace("|", "/").replace("`", "'")
    return f"`{error}` ({failed.get('raised in', '').rsplit('/', 1)[-1]})"


def left_out() -> str:
    """The classes that attack something else than a classifier of images."""
    return markdown(
        ["library", "class", "attacks"],
        [
            [library, name, what]
            for library, classes in results("every_attack")["left_out"].items()
            for name, what in classes.items()
        ],
    )


def _of_a_run(name: str) -> tuple[dict[tuple[str, str], Any], list[str], list[str]]:
    """An exported run's cells by attack and defence, and the names of both, in their order."""
    found = {(cell["attack"], cell["defence"]): cell for cell in results(name)["cells"]}
    attacks, defences = (list(dict.fromkeys(names)) for names in zip(*found))
    return found, attacks, defences


def settings_compared(name: str) -> str:
    """What is left of a defence at several settings, paired over the images with the first's."""
    found, attacks, (first, *others) = _of_a_run(name)
    settings = [name.rpartition(", ")[2] for name in (first, *others)]
    return markdown(
        ["attack", *settings, *(f"{other} less {settings[0]}" for other in settings[1:])],
        [
            [attack, *(percent(found[attack, name]["accuracy"]) for name in (first, *others)),
             *(points(less(found[attack, other], found[attack, first])) for other in others)]
            for attack in attacks
        ],
    )  # fmt: skip


def attacks_compared(name: str) -> str:
    """What each attack leaves of a defence, less what the last one does, paired over the images."""
    found, attacks, defences = _of_a_run(name)
    *others, last = (attack for attack in attacks if attack != "clean")
    return markdown(
        ["defence", *(f"{attack}, less {last}" for attack in others)],
        [[defence, *(points(less(found[attack, defence], found[last, defence]))
                     for attack in others)] for defence in defences],
    )  # fmt: skip


def _of_the_paper(name: str) -> str:
    """A table of the paper beside ours at cpu scale, its picture, and what differs by design."""
    # what it needs is not needed for the others
    from benchmarks.paper import drawing as paper_drawing

    parts = [paper_drawing.table(name)]
    if (RESULTS / f"paper_{name}_cpu.svg").exists():
        parts.append(f"![{name}](../../benchmarks/results/paper_{name}_cpu.svg)")
    parts.append(textwrap.fill(paper_drawing.specification(name)["differs"], 108))
    return "\n\n".join(parts)


def _answers(part: str, *told: str) -> str:
    from benchmarks.paper import answers as paper_answers

    return getattr(paper_answers, part)(*told)


PAPER = sorted(path.stem for path in (RESULTS.parent / "paper/tables").glob("*.toml"))
TABLES: dict[str, Callable[[], str]] = {
    "command_line": command_line,
    "configuration": configuration,
    "demo": demo,
    "transfer": partial(left, "cifar10_tiny"),
    "losses": partial(left, "losses"),
    "minimum_norms": minimum_norms,
    "tuning": tuning,
    "cosines": cosines,
    "attack_search": attack_search,
    "attack_search_long": partial(attack_search, "attack_search_long"),
    "attack_search_80": partial(attack_search, "attack_search_80"),
    "attack_search_grafted": partial(attack_search, "attack_search_grafted"),
    "attack_search_momentum": partial(attack_search, "attack_search_momentum"),
    "attack_search_l2": partial(attack_search, "attack_search_l2"),
    "attack_search_diffpure_l2": partial(attack_search, "attack_search_diffpure_l2"),
    "attack_search_lm": partial(attack_search, "attack_search_lm"),
    "attack_search_20_steps": partial(attack_search, "attack_search_20_steps"),
    "half_precision": half_precision,
    "gradient_modes": gradient_modes,
    "gradient_modes_less_smoothed": gradient_modes_less_smoothed,
    "mode_cosines": mode_cosines,
    "every_attack": every_attack,
    "every_class": every_class,
    "left_out": left_out,
    "more_steps": partial(settings_compared, "more_steps"),
    "more_steps_attacks": partial(attacks_compared, "more_steps"),
    "leaderboard": leaderboard.table,
    "until": leaderboard.until,
    **ADAPTIVE_TABLES,
    **CERTIFY_TABLES,
    **SPEED_TABLES,
    **{f"paper_{part}": partial(_answers, part)
       for part in ("summary", "verdicts", "commands", "allowed")},
    **{f"paper_{name}": partial(_answers, "compared", name) for name in (
        *(f"question_{n}" for n in range(1, 7)),
        *(f"{table}_differences" for table in ("table03", "table05", "section43", "section441")))},
    **{f"paper_{name}": partial(_of_the_paper, name) for name in PAPER},
}  # fmt: skip


#: Tables that a page is about, which stay open.
OPEN = ("adaptive_summary",)


def folded(text: str) -> str:
    """The same with tables of more than nine rows behind a line that opens them."""

    def fold(found: re.Match[str]) -> str:
        lines = found[0].rstrip("\n").split("\n")
        if len(lines) - 2 <= 9:
            return found[0]
        by = lines[0].split("|")[1].strip()
        summary = f"The table: {len(lines) - 2} rows{f', by {by}' if by else ''}"
        inner = "\n".join(lines)
        return f'<details markdown="1">\n<summary>{summary}</summary>\n\n{inner}\n\n</details>\n'

    return re.sub(r"(?:^\|.*(?:\n|\Z))+", fold, text, flags=re.MULTILINE).rstrip("\n")


def refreshed(text: str) -> str:
    """A document with each table between its marks made anew."""

    def table(found: re.Match[str]) -> str:
        name = found["name"]
        made = TABLES[name]()
        return f"<!-- {name} -->\n\n{made if name in OPEN else folded(made)}\n\n<!-- /{name} -->"

    return re.sub(r"<!-- (?P<name>\w+) -->.*?<!-- /(?P=name) -->", table, text, flags=re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", nargs="?", choices=TABLES)
    parser.add_argument(
        "--refresh", type=Path, nargs="+", default=[], help="documents to make the tables of anew"
    )
    args = parser.parse_args()
    if args.name:
        print(TABLES[args.name]())
    for document in args.refresh:
        document.write_text(refreshed(document.read_text()))


if __name__ == "__main__":
    main()
