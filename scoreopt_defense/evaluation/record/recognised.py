"""Which parts of a plan a record knows already, whatever they are called there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from scoreopt_defense.evaluation.plan.behaviour import unlike
from scoreopt_defense.evaluation.plan.plan import Plan
from scoreopt_defense.evaluation.record.rows import KnownDefence, KnownTask

__all__ = ["changed", "recognised"]


def recognised(
    plan: Plan, defences: Iterable[KnownDefence], tasks: Iterable[KnownTask]
) -> tuple[Plan, list[KnownDefence | KnownTask]]:
    """The plan by what the record calls its parts, and those that are new to it.

    A defence that is declared to be the same and answers alike within rounding is the one that is
    known; an attack keeps what its random numbers went by when it was first met.
    """
    known = list(defences)
    went_by = {task.content: task.draws for task in tasks}
    new: list[KnownDefence | KnownTask] = []
    ids: dict[str, str] = {}
    draws: dict[tuple[str, str], str] = {}
    for label, defence in plan.defences.items():
        alike = (row for row in known if row.declared == defence.declared)
        same = next((row for row in alike if not unlike(row.behaviour, defence.behaviour)), None)
        if same is None:
            same = KnownDefence(
                id=defence.id, declared=defence.declared, about=defence.about,
                versions=defence.versions, behaviour=defence.behaviour,
            )  # fmt: skip
            known.append(same)
            new.append(same)
        ids[label] = same.id
        for task, content in plan.contents(label).items():
            about = plan.tasks[task][label]
            if content not in went_by:
                went_by[content] = about.draws
                new.append(KnownTask(
                    content=content, draws=about.draws, about=about.attack,
                    versions=about.versions,
                ))  # fmt: skip
            draws[label, task] = went_by[content]
    return plan.known(ids, draws), new


def changed(before: Plan, now: Plan) -> Iterator[str]:
    """Of two plans of one name: which defences are others than before, and why."""
    for label in before.defences.keys() & now.defences.keys():
        was, is_now = before.defences[label], now.defences[label]
        if was.id == is_now.id:
            continue
        if was.about != is_now.about:
            why = "other settings or weights"
        elif was.versions != is_now.versions:
            other = {*was.versions.items()} ^ {*is_now.versions.items()}
            why = f"other versions of {', '.join(sorted({library for library, _ in other}))}"
        else:
            why = str(unlike(was.behaviour, is_now.behaviour))
        yield f"{label} is another defence than before ({why}): what is recorded of that stays"
