"""What the numbers do not show, said with the run's own numbers."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from scoreopt_defense.evaluation.report.budgets import Budget
from scoreopt_defense.evaluation.report.reload import Reloaded
from scoreopt_defense.evaluation.results import Result

__all__ = ["caveats"]


def caveats(result: Result, budgets: Iterable[Budget], loaded: Reloaded) -> list[str]:
    """Sentences, those that hold of every run first."""
    plan = result.plan
    said = [
        "Each figure is an upper bound: it says that these attacks, at these budgets, broke no "
        "more. A stronger or better adapted attack can only lower it.",
        f"{plan.count} images were judged. {_widest(result)} The intervals are over images: they "
        "leave out other data, other seeds of training and attacks that were not run.",
    ]
    cut = [f"{b.attack} ({b.queries:,} of {b.paper_queries:,})" for b in budgets if b.is_cut]
    if cut:
        said.append(
            "These attacks had fewer queries an image than the paper gives them, which makes a "
            f"defence look stronger than it is: {', '.join(cut)}."
        )
    if any(budget.changed is None for budget in budgets):
        own = ", ".join(budget.attack for budget in budgets if budget.changed is None)
        said.append(f"No budget of the paper's is known for: {own}.")
    said.append(_sizes(loaded.models.values()))
    for cell in result.cells:
        clean = next((c for c in result.cells if c.defence == cell.defence), cell)
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
