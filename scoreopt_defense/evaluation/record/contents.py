"""What a record holds, for people: its runs, defences and tasks, and how to take them out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from datetime import datetime, timezone

from scoreopt_defense._checks import check_choice
from scoreopt_defense.evaluation.plan.plan import Plan
from scoreopt_defense.evaluation.record.store import Store

__all__ = ["contents", "take_out"]

_SHORT = 12  # letters of a fingerprint


def contents(store: Store) -> list[list[list[str]]]:
    """Three tables: the runs, the defences and what was done with them."""
    plans = {name: store.plan(name) for name in store.views()}
    done = store.done()
    runs = [["run", "begun", "units", "done", "defences", "images", "trials"]]
    for name, view in store.views().items():
        plan, begun = plans[name], datetime.fromtimestamp(view.started, timezone.utc)
        keys = {unit.key for unit in plan.units()}
        runs.append([name, begun.strftime("%Y-%m-%d %H:%M UTC"), str(len(keys)),
                     str(len(keys & done)), ", ".join(plan.defences), str(plan.count),
                     str(plan.trials)])  # fmt: skip
    units: dict[str, Counter[str]] = {"defences": Counter(), "tasks": Counter()}
    failed, images = Counter[str](), Counter[str]()
    held = store.pixels.held()
    for result in store.read():
        for kind, of in (("defences", result.defence), ("tasks", result.task)):
            units[kind][of] += 1
            failed[of] += result.error is not None
            images[of] += held[result.key][1] if result.key in held else 0
    called = _names(plans)
    defences = [["defence", "fingerprint", "units", "failed", "images, MB", "versions"]] + [
        [", ".join(called.get(row.id, ["(of no run)"])), row.id[:_SHORT],
         str(units["defences"][row.id]), str(failed[row.id]), f"{images[row.id] / 1e6:.1f}",
         ", ".join(f"{library} {said}" for library, said in row.versions.items())]
        for row in store.defences()
    ]  # fmt: skip
    tasks = [["attack", "digest", "units", "failed", "images, MB"]] + [
        [", ".join(called.get(row.content, [row.draws])), row.content[:_SHORT],
         str(units["tasks"][row.content]), str(failed[row.content]),
         f"{images[row.content] / 1e6:.1f}"]
        for row in store.tasks()
    ]  # fmt: skip
    return [runs, defences, tasks]


def _names(plans: dict[str, Plan]) -> dict[str, list[str]]:
    """What the runs call defences and tasks, by fingerprint and digest."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for plan in plans.values():
        for label, defence in plan.defences.items():
            found[defence.id].append(label)
            for task, content in plan.contents(label).items():
                found[content].append(task)
    return {of: list(dict.fromkeys(names)) for of, names in found.items()}


def take_out(
    store: Store,
    *,
    defences: Sequence[str] = (),
    attacks: Sequence[str] = (),
    views: Sequence[str] = (),
    failed: bool = False,
) -> int:
    """Forget results, and those that began from them; returns how many.

    Args:
        defences: of these alone: by what any run calls them, or the start of a fingerprint.
        attacks: of these alone, by name or the start of a digest.
        views: runs, whose results stay.
        failed: of what failed alone.

    Raises:
        ValueError: if the record knows none of such a name.
    """
    plans = {name: store.plan(name) for name in store.views()}
    called = _names(plans)
    whose = _meant("defence", defences, [row.id for row in store.defences()], called)
    which = _meant("attack", attacks, [row.content for row in store.tasks()], called)
    for name in views:
        check_choice("view", name, plans)
    for name in views:
        store.forget_view(name)
    return store.forget(
        result.key
        for result in list(store.read())
        if (defences or attacks or failed)
        and (not defences or result.defence in whose)
        and (not attacks or result.task in which)
        and (not failed or result.error)
    )


def _meant(
    what: str, said: Sequence[str], known: Collection[str], called: dict[str, list[str]]
) -> set[str]:
    """The digests of these names."""
    found: set[str] = set()
    for name in said:
        names = {digest: called.get(digest, []) for digest in known}
        meant = {d for d in known if name in names[d] or (len(name) >= 4 and d.startswith(name))}
        if not meant:
            every = sorted({n for of in names.values() for n in of})
            raise ValueError(f"{what} must be one of {every}, or a fingerprint, got {name!r}")
        found |= meant
    return found
