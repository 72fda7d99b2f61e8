"""What a suite found of a defence, for people: its accuracy is never said without its checks."""

from __future__ import annotations

from dataclasses import dataclass

from scoreopt_defense.evaluation.chain import harm
from scoreopt_defense.evaluation.checklist import Checked, checklist
from scoreopt_defense.evaluation.plan import CLEAN
from scoreopt_defense.evaluation.results import Result, Stage, WorstCase

__all__ = ["Summary", "part_of", "summaries", "summary"]


@dataclass(frozen=True, kw_only=True)
class Summary(Checked):
    """One suite on one defence.

    Attributes:
        worst: its figure, and which attack took what.
        raised: stages that left more right than no attack at all, of the images that they met.
        failed: images, over all trials, that a stage has no figure of because its unit failed; by
            stage.
        denoiser_calls, classifier_calls: rows that the networks saw, the probes' among them.
        seconds: of the workers, summed.
    """

    worst: WorstCase
    raised: tuple[str, ...]
    failed: dict[str, int]
    denoiser_calls: int
    classifier_calls: int
    seconds: float

    @property
    def taking(self) -> list[Stage]:
        """The attacks that took images."""
        return [stage for stage in self.worst.stages if stage.taken and stage.attack != CLEAN]

    def __str__(self) -> str:
        """A few lines of plain text."""
        worst = self.worst
        lines = [f"{worst.suite} on {worst.defence}: {self.verdict}"]
        if (cell := worst.cell) is not None and cell.robust:
            sent = (
                f"right {s.resubmissions} {'time' if s.resubmissions == 1 else 'times'} "
                f"{'<= ' if s.bound else ''}{100 * s.value:.1f}"
                for s in cell.survival
            )
            said = f"robust accuracy {cell.robust}, majority {cell.majority}"
            lines.append(", ".join([said, *sent]))
        else:
            lines.append("robust accuracy: not judged yet")
        by = (
            f"{s.taken} by {part_of(s.attack, worst.suite)} ({s.alone} by it alone)"
            for s in self.taking
        )
        lines.append(f"images taken: {'; '.join(by) or 'none'}")
        lines += [f"{c.status}: {c.name} ({c.figure})" for c in self.failing + self.not_run]
        lines += [f"not tried: {what} ({why})" for what, why in worst.untried.items()]
        lines += [
            f"failed: {part_of(name, worst.suite)}, {n} images" for name, n in self.failed.items()
        ]
        return "\n  ".join(lines)


def summaries(result: Result) -> dict[tuple[str, str], Summary]:
    """Every suite on every defence, by ``(defence, suite)``, the suites in their order."""
    return {
        (defence, suite): summary(result, defence, suite)
        for suite in result.plan.suites
        for defence in result.plan.defences
    }


def summary(result: Result, defence: str, suite: str) -> Summary:
    """One suite on one defence, complete or not."""
    worst, chain = result.worst_case(defence, suite), result.plan.chains[suite]
    stages = [stage.attack for stage in worst.stages if stage.attack != CLEAN]
    names = {*chain.parts, *chain.stages[defence]}
    cells = [result.cell(defence, name) for name in names if result.rows(defence, name)]
    failed = {cell.attack: cell.failed for cell in cells if cell.failed}
    return Summary(
        worst=worst,
        checks=checklist(result, defence, suite),
        raised=tuple(name for name in stages if _raises(result, defence, name)),
        failed={name: failed[name] for name in stages if name in failed},
        denoiser_calls=sum(cell.denoiser_calls for cell in cells),
        classifier_calls=sum(cell.classifier_calls for cell in cells),
        seconds=sum(cell.seconds for cell in cells),
    )


def part_of(name: str, suite: str) -> str:
    """A stage's name within its suite: ``"PGD+EOT, exact"`` of ``"adaptive/PGD+EOT, exact"``."""
    return "no attack" if name == CLEAN else name.removeprefix(f"{suite}/").removeprefix("check/")


def _raises(result: Result, defence: str, stage: str) -> bool:
    """Whether a stage left more right than there was, of the images that it met."""
    before, after = (
        {
            (row["image"], row["trial"]): harm(row).left
            for row in result.rows(defence, name)
            if row["predicted"] is not None
        }
        for name in (CLEAN, stage)
    )
    return sum(after[place] - before.get(place, 0) for place in after) > 0
