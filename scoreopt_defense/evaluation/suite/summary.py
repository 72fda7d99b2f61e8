"""What a suite found of a defence, for people: its accuracy is never said without its checks."""

from __future__ import annotations

from dataclasses import dataclass

from scoreopt_defense.evaluation.plan.tasks import CLEAN
from scoreopt_defense.evaluation.record.figures import Figures
from scoreopt_defense.evaluation.suite.checklist import Checked, checklist
from scoreopt_defense.evaluation.suite.worst_case import Stage, WorstCase, by_image, worst_case

__all__ = ["Summary", "summaries", "summary"]


@dataclass(frozen=True, kw_only=True)
class Summary(Checked):
    """One suite on one defence.

    Attributes:
        worst: its figure, and which attack took what.
        taking: the attacks that took images.
        raised: stages that left more right than no attack at all, of the images that they met.
        failed: images, over all trials, that a stage has no figure of because its unit failed; by
            stage.
        denoiser_calls, classifier_calls: rows that the networks saw, the probes' among them.
        seconds: of the workers, summed.
    """

    worst: WorstCase
    taking: tuple[Stage, ...]
    raised: tuple[Stage, ...]
    failed: dict[str, int]
    denoiser_calls: int
    classifier_calls: int
    seconds: float

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
        by = (f"{s.taken} by {s.label} ({s.alone} by no other)" for s in self.taking)
        lines.append(f"images broken: {'; '.join(by) or 'none'}")
        lines += [f"{c.status}: {c.name} ({c.figure})" for c in self.failing + self.not_run]
        lines += [f"not tried: {what} ({why})" for what, why in worst.untried.items()]
        lines += [f"failed: {label}, {n} images" for label, n in self.failed.items()]
        return "\n  ".join(lines)


def summaries(figures: Figures) -> dict[tuple[str, str], Summary]:
    """Every suite on every defence, by ``(defence, suite)``, the suites in their order."""
    return {
        (defence, suite): summary(figures, defence, suite)
        for suite in figures.plan.suites
        for defence in figures.plan.defences
    }


def summary(figures: Figures, defence: str, suite: str) -> Summary:
    """One suite on one defence, complete or not."""
    plan = figures.plan
    worst = worst_case(figures, defence, suite)
    stages = [s for s in worst.stages if plan.tasks[s.attack][defence].attacks]
    clean = next((stage.attack for stage in worst.stages if stage not in stages), CLEAN)
    names = [
        n for kind in ("attack", "probe", "judge") for n in plan.of_suite(suite, defence, kind)
    ]
    cells = {n: figures.cell(defence, n) for n in names if figures.was_run(defence, n)}
    return Summary(
        worst=worst,
        checks=checklist(figures, defence, suite),
        taking=tuple(stage for stage in stages if stage.taken),
        raised=tuple(stage for stage in stages if _raises(figures, defence, stage.attack, clean)),
        failed={
            stage.label: cells[stage.attack].failed
            for stage in stages
            if stage.attack in cells and cells[stage.attack].failed
        },
        denoiser_calls=sum(cell.denoiser_calls for cell in cells.values()),
        classifier_calls=sum(cell.classifier_calls for cell in cells.values()),
        seconds=sum(cell.seconds for cell in cells.values()),
    )


def _raises(figures: Figures, defence: str, stage: str, unattacked: str) -> bool:
    """Whether a stage left more right than there was, of the images that it met."""
    before, after = (by_image(figures, defence, name) for name in (unattacked, stage))
    return sum(after[place].left - before[place].left for place in after if place in before) > 0
