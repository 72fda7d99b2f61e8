"""The tables of the README and of docs/, as Markdown, from the result files beside this script.

    python benchmarks/tables.py demo    # or another name of TABLES

A test holds the documents to them.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

from common import RESULTS

MODES = ("exact", "one-shot", "bpda")
NORMS = {"linf": "l-infinity 8/255", "l2": "l2 0.5"}


def _results(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _percent(share: dict[str, float], digits: int = 1) -> str:
    """A share with its interval, in per cent."""
    low, high = (f"{100 * share[end]:.0f}" for end in ("low", "high"))
    return f"{100 * share['value']:.{digits}f} ({low} to {high})"


def demo() -> str:
    """Accuracy of each defence under each attack."""
    found = _results("demo")
    accuracy = {(cell["defence"], cell["attack"]): cell["accuracy"] for cell in found["cells"]}
    attacks = list(dict.fromkeys(attack for _, attack in accuracy))
    return _markdown(
        ["accuracy, %", *attacks, "weakest"],
        [
            [
                defence,
                *(f"{100 * accuracy[defence, attack]['value']:.0f}" for attack in attacks),
                _percent(found["weakest"][defence], 0),
            ]
            for defence in dict.fromkeys(defence for defence, _ in accuracy)
        ],
    )


def transfer() -> str:
    """The tiny CIFAR-10 networks under transfer PGD, by defence."""
    rows = _results("cifar10_tiny")["rows"]
    columns = [name for name in rows[0] if name not in ("defence", "ms an image")]
    return _markdown(
        ["accuracy, %", *columns],
        [[row["defence"], *(_percent(row[column]) for column in columns)] for row in rows],
    )


def tuning() -> str:
    """The whole grid that the presets of cifar10-tiny were chosen from."""
    rows = _results("tune_presets_cifar10-tiny")["rows"]
    settings = ["purifier", "sigma", "lr", "steps"]
    columns = [name for name in rows[0] if name not in settings]

    def plain(value: object) -> str:
        if isinstance(value, list):
            return " to ".join(map(str, value))
        return "" if value is None else str(value)

    return _markdown(
        [*settings, *columns],
        [
            [*(plain(row[name]) for name in settings), *(_percent(row[name]) for name in columns)]
            for row in rows
        ],
    )


def attacks() -> str:
    """Attack success by steps, norm and gradient mode."""
    found = {
        (row["steps"], norm, row["gradient"]): row
        for norm in NORMS
        for row in _results(f"exact_gradient_attacks_{norm}")["rows"]
    }
    steps = sorted({key[0] for key in found})
    return _markdown(
        ["steps", "images", "norm", "exact", "one-shot", "BPDA"],
        [
            [str(count), str(found[count, norm, "exact"]["clean accuracy"]["n"]), NORMS[norm],
             *(_percent(found[count, norm, mode]["attack success"]) for mode in MODES)]
            for count in steps
            for norm in NORMS
        ],
    )  # fmt: skip


def cosines() -> str:
    """Cosine of each surrogate with the exact gradient, by variant, loss and steps."""
    found = {
        (row["variant"], row["loss"], mode, row["steps"]): row[f"{mode} cosine"]
        for row in _results("exact_gradient_cosines")["rows"]
        for mode in MODES[1:]
    }
    steps = sorted({key[-1] for key in found})

    def cell(mean: dict[str, float]) -> str:
        return f"{mean['value']:.2f} ({mean['high'] - mean['value']:.2f})"

    return _markdown(
        ["variant", "loss", "mode", *map(str, steps)],
        [
            [f"ScoreOpt-{variant}", loss, mode,
             *(cell(found[variant, loss, mode, count]) for count in steps)]
            for variant, loss, mode in dict.fromkeys(key[:3] for key in found)
        ],
    )  # fmt: skip


def costs() -> str:
    """Memory of the exact gradient and of naive autograd, and the ratio of their times."""
    found = {
        (row["variant"], row["steps"], row["how"]): row
        for row in _results("exact_gradient_costs")["rows"]
    }
    rows = []
    for variant, steps in dict.fromkeys(key[:2] for key in found):
        exact, naive = found[variant, steps, "exact"], found[variant, steps, "naive"]
        rows.append(
            [f"ScoreOpt-{variant}", str(steps), f"{exact['megabytes']:,}",
             f"{naive['megabytes']:,}", f"{exact['seconds'] / naive['seconds']:.2f}"]
        )  # fmt: skip
    return _markdown(
        ["variant", "steps", "exact, MB", "naive autograd, MB", "time, exact / naive"], rows
    )


def attack_search() -> str:
    """What each attack leaves of both defences, and that less what the reference leaves."""
    found = _results("attack_search")
    defences, images = list(found["plan"]["defences"]), found["plan"]["images"]["shape"][0]
    cells = {(cell["attack"], cell["defence"]): cell for cell in found["cells"]}
    less = {(row["attack"], row["defence"]): row for row in found["less_reference"]}

    def columns(attack: str, defence: str) -> list[str]:
        cell = cells.get((attack, defence))
        if cell is None or cell["accuracy"]["n"] < images:
            return [""] * 3
        row = less.get((attack, defence))
        return [_percent(cell["accuracy"]), _percent(cell["majority"]),
                "" if row is None else _points(row)]  # fmt: skip

    rows = [
        [attack, *(part for defence in defences for part in columns(attack, defence))]
        for attack in found["plan"]["attacks"]
    ]
    return _markdown(
        ["attack", *(f"{defence}{what}" for defence in defences
                     for what in (", %", ", by majority", ", less the reference"))],
        [row for row in rows if any(row[1:])],
    )  # fmt: skip


def _points(row: dict[str, float]) -> str:
    """A difference with its interval, in points of per cent."""
    low, high = round(100 * row["low"]), round(100 * row["high"])
    return f"{100 * row['value']:+.1f} ({low:+d} to {high:+d})"


OUTCOMES = {
    "runs": "runs",
    "fails also without a defence": "fails also without a defence",
    "needs what the defence does not give": "needs more",
    "stopped at the time limit": "stopped",
}


def every_attack() -> str:
    """How many attack classes of each library run."""
    rows = _results("every_attack")["rows"]
    counts = Counter((row["library"], row["outcome"]) for row in rows)
    return _markdown(
        ["library", "classes", *OUTCOMES.values()],
        [
            [library, str(sum(row["library"] == library for row in rows)),
             *(str(counts[library, outcome]) for outcome in OUTCOMES)]
            for library in dict.fromkeys(row["library"] for row in rows)
        ],
    )  # fmt: skip


def every_class() -> str:
    """Each attack class: does it run, what stops it, and what does it ask the model."""
    return _markdown(
        ["library", "attack", "outcome", "gradient", "queried values", "error"],
        [
            [row["library"], row["attack"], OUTCOMES[row["outcome"]],
             "yes" if row["DefendedModel"].get("asks for a gradient") else "no", _range(row),
             _error(row)]
            for row in sorted(_results("every_attack")["rows"], key=_by_library_and_name)
        ],
    )  # fmt: skip


def _by_library_and_name(row: dict[str, Any]) -> tuple[bool, str, str]:
    return row["library"] != "torchattacks", row["library"], row["attack"]


def _range(row: dict[str, Any]) -> str:
    """From where to where the images went that the attack asked the defended model about."""
    low, high = row["DefendedModel"].get("queried values", (math.inf, -math.inf))
    return f"{low:.1f} to {high:.1f}".replace("-0.0", "0.0") if low <= high else ""


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
    return _markdown(
        ["library", "class", "attacks"],
        [
            [library, name, what]
            for library, classes in _results("every_attack")["left_out"].items()
            for name, what in classes.items()
        ],
    )


TABLES: dict[str, Callable[[], str]] = {
    "demo": demo,
    "transfer": transfer,
    "tuning": tuning,
    "attacks": attacks,
    "cosines": cosines,
    "costs": costs,
    "attack_search": attack_search,
    "every_attack": every_attack,
    "every_class": every_class,
    "left_out": left_out,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=TABLES)
    print(TABLES[parser.parse_args().name]())


if __name__ == "__main__":
    main()
