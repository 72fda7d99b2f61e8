"""What a run says of a defence over its attacks: no figure without what speaks against it."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scoreopt_defense.evaluation.plan.tasks import CLEAN
from scoreopt_defense.evaluation.record.figures import Figures
from scoreopt_defense.evaluation.record.statistics import Proportion
from scoreopt_defense.evaluation.suite.checklist import Checked, checklist
from scoreopt_defense.evaluation.suite.controls import CHECKS

__all__ = ["Overall", "html_table", "near_chance", "table"]


@dataclass(frozen=True, kw_only=True)
class Overall(Checked):
    """One defence under all that attacked it; the checks are of what stands by itself.

    Attributes:
        weakest: accuracy if each image meets whichever attack harms it most.
        absent: why there is no such figure; empty if there is.
        lacking: images, over all trials, that an attack has no figure of because it failed; by
            attack.
        warnings: what else speaks against the figures.
    """

    defence: str
    weakest: Proportion | None
    absent: str
    lacking: dict[str, int]
    warnings: tuple[str, ...]

    @property
    def reservations(self) -> list[str]:
        """All that the figure is not to be read without, each in a few words."""
        missing = [f"without {name} on {images} images" for name, images in self.lacking.items()]
        return [self.caution, *missing]

    def __str__(self) -> str:
        if self.weakest is None:
            return self.absent
        return f"{self.weakest} ({', '.join(self.reservations)})"


def near_chance(figures: Figures, defence: str) -> str | None:
    """Said where the clean images do not tell the model from a guess."""
    judged = figures.judged(defence, CLEAN)
    classes = np.union1d(judged.labels, judged.predicted)
    clean = figures.cell(defence).robust if len(judged.labels) else None
    if clean is None or len(classes) < 2:
        return None
    guess = 1 / len(classes)
    if clean.low > guess or clean.value > (1 + guess) / 2:  # of few images all may be right
        return None
    return (
        f"clean accuracy {clean} is near chance, one in {len(classes)} classes here: does the "
        "model normalise images in [0, 1] itself, and are the labels those of its classes?"
    )


def table(figures: Figures, every: Sequence[Overall]) -> str:
    """A run's table, and a line for all that it is not to be read without."""
    lines = _cells(figures, every)
    widths = [max(map(len, column)) for column in zip(*lines)]
    rows = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    return "\n".join(rows + _notes(figures, every))


def html_table(figures: Figures, every: Sequence[Overall]) -> str:
    """As :func:`table`, in HTML."""

    def row(cells: Sequence[str], kind: str) -> str:
        first, *others = map(html.escape, cells)
        rest = "".join(f"<{kind}>{text}</{kind}>" for text in others)
        return f"<tr><th>{first}</th>{rest}</tr>"

    names, *lines = _cells(figures, every)
    body = row(names, "th") + "".join(row(line, "td") for line in lines)
    notes = "".join(f"<p>{html.escape(line)}</p>" for line in _notes(figures, every))
    return f"<table>{body}</table>{notes}"


def _cells(figures: Figures, every: Sequence[Overall]) -> list[list[str]]:
    """The names of the columns, and a line a defence."""
    plan = figures.plan
    weakest = ["weakest"] if figures.competing or not plan.suites else []
    lines = [["", *plan.columns, *weakest]]
    for found in every:
        cells = {c.attack: c.robust for c in figures.cells if c.defence == found.defence}
        said = [str(cells.get(attack) or "-") for attack in plan.columns]
        for place, attack in enumerate(plan.columns):
            if attack in plan.suites:
                checked = Checked(checks=checklist(figures, found.defence, attack))
                said[place] += f" ({checked.caution})"
        lines.append([found.defence, *said, *([str(found)] if weakest else [])])
    return lines


def _notes(figures: Figures, every: Sequence[Overall]) -> list[str]:
    plan = figures.plan
    controlled = any(plan.of_suite(CHECKS, defence, "probe") for defence in plan.defences)
    against = [line for f in every for line in _against(f, asked=controlled)]
    return _failures(figures) + against


def _failures(figures: Figures) -> list[str]:
    failed: Counter[tuple[str, str, str]] = Counter()
    for failure in figures.failures:
        unit = failure.unit
        if figures.plan.tasks[unit.attack][unit.defence].suite != CHECKS:  # whose checks say so
            failed[unit.attack, unit.defence, failure.error] += failure.tried
    return [
        f"failed: {attack} on {defence}, {images} images: {error}"
        for (attack, defence, error), images in failed.items()
    ]


def _against(found: Overall, *, asked: bool) -> list[str]:
    checks = [*found.failing, *(found.not_run if asked else [])]
    said = [f"{check.status}: {found.defence}: {check.name} ({check.figure})" for check in checks]
    return [f"warning: {found.defence}: {text}" for text in found.warnings] + said
