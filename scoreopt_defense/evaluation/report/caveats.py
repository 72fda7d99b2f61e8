"""What the numbers do not show, said with the run's own numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from torch import nn

from scoreopt_defense.evaluation.plan import CLEAN
from scoreopt_defense.evaluation.record.allowances import Allowance
from scoreopt_defense.evaluation.record.results import Result
from scoreopt_defense.evaluation.report.reload import Reloaded
from scoreopt_defense.evaluation.report.tables import Standing
from scoreopt_defense.evaluation.suite.summary import Summary

__all__ = ["caveats"]


def caveats(
    result: Result,
    budgets: Iterable[Allowance],
    loaded: Reloaded,
    suites: Mapping[tuple[str, str], Summary],
    standings: Iterable[Standing],
) -> list[str]:
    """Sentences, those that hold of every run first."""
    plan = result.plan
    said = [
        "Each figure is an upper bound: it says that these attacks, at these budgets, broke no "
        "more. A stronger or better adapted attack can only lower it.",
        f"{plan.count} images were judged. {_widest(result)} The intervals are over images: they "
        "leave out other data, other seeds of training and attacks that were not run.",
    ]
    said += [f"{row.defence}: {warning}" for row in standings for warning in row.overall.warnings]
    said += [sentence for found in suites.values() for sentence in _of_suite(found)]
    budgets = list(budgets)
    alone = [b for b in budgets if not b.suite and not b.is_probe]
    if cut := _cut(alone):
        said.append(
            "These attacks had fewer queries an image than the paper gives them, which makes a "
            f"defence look stronger than it is: {cut}."
        )
    if own := ", ".join(budget.attack for budget in alone if budget.changed is None):
        said.append(f"No budget of the paper's is known for: {own}.")
    for suite in plan.suites:
        stages = [b for b in budgets if b.suite == suite and not b.is_probe]
        if cut := _cut(stages, most=3):
            said.append(
                f"The suite {suite} ran below the paper's budget, which makes a defence look "
                f"stronger than it is: {sum(b.is_cut for b in stages)} of its {len(stages)} "
                "attacks had fewer queries an image than the paper gives one of their kind. The "
                f"shortest: {cut}."
            )
    said.append(_sizes(loaded.models.values()))
    unattacked = {cell.defence: cell for cell in result.cells if cell.attack == CLEAN}
    for cell in result.cells:
        clean = unattacked.get(cell.defence, cell)
        if cell.robust and clean.robust and cell.robust.value > clean.robust.value:
            said.append(
                f"{cell.attack} left {cell.defence} above its accuracy without an attack. That is "
                "an attack that failed, or chance; it is no sign of robustness."
            )
    failed = sum(cell.failed for cell in result.cells)
    if failed:
        said.append(
            f"{failed} results are missing because their attack failed; the figures are of the "
            "rest, which need not be like them."
        )
    return said


def _cut(budgets: Iterable[Allowance], *, most: int | None = None) -> str:
    """The attacks with fewer queries than in the paper; of ``most``, those with the least share."""
    cut = [b for b in budgets if b.is_cut]
    if most is not None:
        cut = sorted(cut, key=lambda b: (b.queries or 0) / (b.paper_queries or 1))[:most]
    return ", ".join(f"{b.label} ({b.queries:,} of {b.paper_queries:,})" for b in cut)


def _of_suite(found: Summary) -> Iterator[str]:
    """What takes from a suite's figure, if anything does."""
    suite, defence = found.worst.suite, found.worst.defence
    if found.raised:
        names = "; ".join(stage.label for stage in found.raised)
        yield (
            f"Stages of {suite} that left more right of {defence} than no attack at all, of the "
            f"images that they met: {names}. Those are attacks that failed, or chance; it is no "
            "sign of robustness."
        )
    if found.failed:
        names = "; ".join(f"{label}: {n}" for label, n in found.failed.items())
        yield f"Images of {defence} that stages of {suite} failed on, with an error: {names}."


def _widest(result: Result) -> str:
    widths = [cell.robust.high - cell.robust.low for cell in result.cells if cell.robust]
    if not widths:
        return "There is no figure yet."
    return f"The widest interval spans {100 * max(widths):.0f} points."


def _sizes(models: Iterable[nn.Module]) -> str:
    sizes = {
        round(sum(p.numel() for p in part.parameters()) / 1e6, 2)
        for model in models
        for part in (getattr(model, "classifier", model), getattr(model, "purifier", None))
        if part is not None
    }
    paper = (
        "The paper's networks on CIFAR-10 have 36.5 million weights (classifier) and 56 million "
        "(denoiser)"
    )
    if not sizes:
        return f"{paper}; figures of smaller networks say little about those, in either direction."
    here = f"The networks here have {min(sizes):g} to {max(sizes):g} million weights. "
    return f"{here}{paper}: neither these figures nor their order need hold there."
