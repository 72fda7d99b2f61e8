"""What a run will take, and what it is of, said before it."""

from __future__ import annotations

from typing import Any

import typer

from scoreopt_defense.cli.output import print_table, say

__all__ = ["cost", "described", "foretell", "tried"]

MINUTE = 60.0  # seconds that a dry run tries attacks for, at most


def foretell(plan: Any, materials: Any, read: Any, workers: int) -> None:
    """The dry run: each attack on an image, for a minute at most.

    Raises:
        typer.Exit: if an attack can't run.
    """
    from scoreopt_defense.evaluation.record.allowances import allowances
    from scoreopt_defense.evaluation.run.progress import duration

    allowed = {a.attack: a for a in allowances(plan)}
    cells = tried(plan, materials, MINUTE)
    denoises = any(c.denoiser_calls for c in cells)
    lines = [["defence", "attack", "units", *["denoiser calls"] * denoises, "classifier calls",
              "queries an image", "in the paper", "threat model", "time"]]  # fmt: skip
    for c in cells:
        of = allowed.get(c.attack)
        calls = (c.denoiser_calls or None, c.classifier_calls)[not denoises :]
        counts = (*calls, *((of.queries, of.paper_queries) if of else (None, None)))
        lines.append(
            [c.defence, c.attack, str(c.units),
             *("-" if count is None else f"{count:,}" for count in counts),
             of.threat if of else "-",
             "FAILS" if c.error else "~ " * c.guessed + duration(c.seconds)]
        )  # fmt: skip
    print_table(lines)
    say(f"\n{described(plan, read)}\n{plan.trials} trials, batches of {plan.batch}, seed "
        f"{plan.seed}. {cost(plan, cells, workers)}")  # fmt: skip
    if guessed := sum(c.guessed for c in cells):
        say(f"~: the {guessed} that a minute did not reach, at the highest rate of the others.")
    if plan.suites:
        say(f"Stages of {', '.join(plan.suites)} are counted as if no image left the queue: an "
                "upper bound.")  # fmt: skip
    failed = [c for c in cells if c.error]
    for c in failed:
        say(f"scoreopt: {c.attack} cannot run on {c.defence}: {c.error}", error=True)
    if failed:
        raise typer.Exit(1)


def tried(plan: Any, materials: Any, most: float) -> list[Any]:
    """Each cell on an image, which a terminal is told of."""
    from scoreopt_defense.evaluation.run.estimate import estimate
    from scoreopt_defense.evaluation.run.progress import waiting

    with waiting(f"Trying each attack on one image, at most {most:.0f} s") as told:
        return estimate(plan, materials, most=most, told=told)


def described(plan: Any, read: Any) -> str:
    """The images, what each is attacked within, and what attacks compute in if it is not usual."""
    from scoreopt_defense.evaluation.judging.threat_model import level
    from scoreopt_defense.evaluation.plan.precision import in_words

    count, *shape = plan.images["shape"]
    images = f"{count} images of {read.images.source}, {' x '.join(map(str, shape))}"
    bounds: dict[tuple[str, float], dict[str, None]] = {}
    for name, of in plan.tasks.items():
        for task in of.values():
            if task.bound and task.kind != "probe":
                bounds.setdefault(task.bound, {})[task.suite or name] = None
    said = [f"{norm} {level(eps)} ({', '.join(names)})" for (norm, eps), names in bounds.items()]
    usual = [s for s in plan.suites if s not in read.suites or read.suites[s].eps is None]
    why = f"; eps of {', '.join(usual)} is the usual one of such images" if usual else ""
    bound = f"{images}; attacked within {'; '.join(said) or 'no bound'}{why}."
    return f"{bound} {in_words(plan)}".rstrip()


def cost(plan: Any, cells: list[Any], workers: int) -> str:
    """How long all of them take, and how sure that is."""
    from scoreopt_defense.evaluation.run.progress import duration

    total = sum(cell.seconds for cell in cells)
    kind = "At most" if plan.suites else "About"
    untried = sum(cell.guessed for cell in cells)
    high = f", {untried} of {len(cells)} tasks untried and guessed high" if untried else ""
    return f"{kind} {duration(total / workers)} with {workers} worker(s){high}."
