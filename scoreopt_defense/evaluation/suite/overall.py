"""What a run says of a defence over its attacks: no figure without what speaks against it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scoreopt_defense.evaluation.checklist import Checked, checklist
from scoreopt_defense.evaluation.statistics import Proportion

if TYPE_CHECKING:
    from scoreopt_defense.evaluation.results import Result

__all__ = ["Overall", "as_text", "overall"]


@dataclass(frozen=True, kw_only=True)
class Overall(Checked):
    """One defence under the attacks that stand by themselves.

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


def overall(result: Result, defence: str) -> Overall:
    """The figures of one defence, put together."""
    weakest, attacks = result.weakest(defence), result.attacks
    tried = [result.cell(defence, name) for name in attacks if result.rows(defence, name)]
    absent = ""
    if not attacks:
        absent = "not attacked"
    elif not tried:
        absent = "not attacked yet"
    elif not any(cell.accuracy for cell in tried):
        absent = "attack failed"
    elif weakest is None:
        absent = "nothing to choose on: one purification"
    near = _near_chance(result, defence)
    return Overall(
        defence=defence,
        weakest=weakest,
        absent=absent,
        lacking={cell.attack: cell.failed for cell in tried if cell.failed},
        checks=checklist(result, defence),
        warnings=(near,) if near else (),
    )


def _near_chance(result: Result, defence: str) -> str | None:
    """Said where the clean images do not tell the model from a guess."""
    rows = [row for row in result.rows(defence) if row["predicted"] is not None]
    classes = {row["label"] for row in rows}.union(*(row["predicted"] for row in rows))
    clean = result.cell(defence).robust if rows else None
    if clean is None or len(classes) < 2:
        return None
    guess = 1 / len(classes)
    if clean.low > guess or clean.value > (1 + guess) / 2:  # of few images all may be right
        return None
    return (
        f"clean accuracy {clean} is near chance, one in {len(classes)}: does the model normalise "
        "images in [0, 1] itself, and are the labels those of its classes?"
    )


def as_text(result: Result) -> str:
    """The run's table, and a line for all that it is not to be read without."""
    plan = result.plan
    every = [overall(result, defence) for defence in plan.defences]
    weakest = [] if plan.suites else ["weakest"]  # which is the weaker statement
    lines = [["", *plan.columns, *weakest]]
    for found in every:
        cells = {c.attack: c.robust for c in result.cells if c.defence == found.defence}
        figures = [str(cells.get(attack) or "-") for attack in plan.columns]
        for place, attack in enumerate(plan.columns):
            if attack in plan.suites:
                checked = Checked(checks=checklist(result, found.defence, attack))
                figures[place] += f" ({checked.caution})"
        lines.append([found.defence, *figures, *([str(found)] if weakest else [])])
    widths = [max(map(len, column)) for column in zip(*lines)]
    table = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    against = [line for f in every for line in _against(f, asked=bool(plan.controls))]
    return "\n".join(table + _failures(result) + against)


def _failures(result: Result) -> list[str]:
    controls = result.plan.controlled.parts
    failed: Counter[tuple[str, str, str]] = Counter()
    for unit in result.failures:
        if unit["attack"] not in controls:  # whose checks say so
            failed[unit["attack"], unit["defence"], unit["error"]] += unit["tried"]
    return [
        f"failed: {attack} on {defence}, {images} images: {error}"
        for (attack, defence, error), images in failed.items()
    ]


def _against(found: Overall, *, asked: bool) -> list[str]:
    checks = [*found.failing, *(found.not_run if asked else [])]
    said = [f"{check.status}: {found.defence}: {check.name} ({check.figure})" for check in checks]
    return [f"warning: {found.defence}: {text}" for text in found.warnings] + said
