"""The networks, images and attacks themselves, which a plan describes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise

from torch import nn

from scoreopt_defense._checks import check_count
from scoreopt_defense.data import Source
from scoreopt_defense.evaluation.judging.criteria import Judging
from scoreopt_defense.evaluation.judging.threat_model import check_attack
from scoreopt_defense.evaluation.plan.tasks import Judge, Suite, Task

__all__ = ["ASKED", "Materials"]

#: How many images, the first ones, a suite may ask a defence about.
ASKED = 32


@dataclass(frozen=True, eq=False)
class Materials:
    """What is evaluated, and by what.

    Attributes:
        defences: modules from images in [0, 1] to logits, by name, in eval mode.
        tasks: by name, and of each by the defence that it is done with. Names are in the order of
            the work, and those that a task begins from come before it.
        images: with their labels, read where they are worked on.
        judging: how results are judged.
        suites: by name; what it could not do, by defence.
        owners: of a suite's task, by name, the suite and the label that it has there.
    """

    defences: Mapping[str, nn.Module]
    tasks: Mapping[str, Mapping[str, Task]]
    images: Source
    judging: Judging = field(default_factory=Judging)
    suites: Mapping[str, Mapping[str, Mapping[str, str]]] = field(default_factory=dict)
    owners: dict[str, tuple[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not len(self.images):
            raise ValueError("images must be at least one, got none")
        if not self.defences:
            raise ValueError("defences must name at least one, got none")
        for name in (*self.defences, *self.tasks):
            if not isinstance(name, str) or any("\ud800" <= c <= "\udfff" for c in name):
                raise ValueError(
                    "names of defences and attacks must be text, without bytes that are none, got "
                    f"{name!r}"
                )

    def with_suite(self, name: str, suite: Suite, *, what: str, listed: bool = True) -> Materials:
        """These, and what a suite does with each defence.

        Args:
            what: the suite, in words.
            listed: whether it is one that the user asked for, with a figure of its own.

        Raises:
            ValueError: if one of its tasks has a name that is taken, begins from what does not
                come before it, or would be held to nothing.
            TypeError: of what is no task, or no attack.
        """
        x, _ = self.images.batch(0, ASKED)
        labelled = {d: suite.tasks(model, x) for d, model in self.defences.items()}
        for given in labelled.values():
            if not isinstance(given, Mapping):
                raise TypeError(
                    f"tasks() of {what} must return a mapping of labels to tasks, got "
                    f"{type(given).__name__}"
                )
        labels = {_name(name, label): label for of_it in labelled.values() for label in of_it}
        by_defence = {d: _named(name, of_it, what) for d, of_it in labelled.items()}
        if listed and not all(isinstance(of_it.get(name), Judge) for of_it in by_defence.values()):
            raise ValueError(f"{what} must have a Judge called '', which is its figure")
        tasks: dict[str, dict[str, Task]] = {task: {} for task in _order(by_defence)}
        for defence, of_it in by_defence.items():
            for task, about in of_it.items():
                tasks[task][defence] = about
        if taken := sorted(tasks.keys() & self.tasks.keys()):
            raise ValueError(f"no attack may be called {taken[0]!r} beside {what}")
        untried = {d: dict(suite.untried(model)) for d, model in self.defences.items()}
        return replace(
            self,
            tasks={**self.tasks, **tasks},
            suites={**self.suites, name: untried} if listed else self.suites,
            owners=self.owners | {task: (name, label) for task, label in labels.items()},
        )


def _named(suite: str, tasks: Mapping[str, Task], what: str) -> dict[str, Task]:
    """The tasks by the names that they have in a plan."""
    named: dict[str, Task] = {}
    for label, task in tasks.items():
        if not isinstance(task, Task):
            raise TypeError(f"{label!r} of {what} must be a Task, got {type(task).__name__}")
        check_attack(f"{label!r} of {what}", task.attack)
        check_count(f"confirm of {label!r} of {what}", task.confirm, least=0)
        if isinstance(task, Judge) and not task.begins_from:
            raise ValueError(f"{label!r} of {what} must begin from at least one, which it judges")
        if task.images is not None:
            check_count(f"images of {label!r} of {what}", task.images)
        before = [_name(suite, earlier) for earlier in task.begins_from]
        if missing := [earlier for earlier in before if earlier not in named]:
            raise ValueError(
                f"{label!r} of {what} begins from {missing[0]!r}, which must come before it; there "
                f"are {list(named)}"
            )
        name = _name(suite, label)
        named[name] = replace(task, begins_from=tuple(before))
    return named


def _name(suite: str, label: str) -> str:
    return f"{suite}/{label}" if label else suite


def _order(by_defence: Mapping[str, Mapping[str, Task]]) -> list[str]:
    """All names, in an order that agrees with each defence's own, if there is one."""
    before: dict[str, set[str]] = {name: set() for of_it in by_defence.values() for name in of_it}
    for tasks in by_defence.values():
        for earlier, later in pairwise(tasks):
            before[later].add(earlier)
    try:
        return list(TopologicalSorter(before).static_order())
    except CycleError:  # of defences that are met in opposite orders
        return list(before)
