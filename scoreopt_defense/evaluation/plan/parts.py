"""What a plan consists of: defences, what is done with them, and units of that work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scoreopt_defense.evaluation.judging.threat_model import named_bound
from scoreopt_defense.evaluation.plan.environment import versions
from scoreopt_defense.evaluation.plan.fingerprint import json_digest, of_attack
from scoreopt_defense.evaluation.plan.tasks import Judge, Probe, Task

__all__ = ["Defence", "Planned", "Unit"]


@dataclass(frozen=True, kw_only=True)
class Defence:
    """What tells a defence from others.

    Attributes:
        about: kind, settings, digests of weights.
        versions: of the distributions that it is made of.
        behaviour: what it answers; see :mod:`scoreopt_defense.evaluation.plan.behaviour`.
        id: its fingerprint: that of what a record has of it, if it answers alike within rounding.
    """

    about: Mapping[str, Any]
    versions: Mapping[str, str]
    behaviour: Mapping[str, Any] | None
    id: str = ""

    def __post_init__(self) -> None:
        if not self.id:
            object.__setattr__(self, "id", json_digest(self.declared, self.behaviour))

    @property
    def declared(self) -> str:
        """A digest of all but what it answers."""
        return json_digest(self.about, self.versions)


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A task as JSON has it.

    Attributes:
        kind: ``"attack"``, ``"probe"`` or ``"judge"``.
        attack: its class and settings, and a digest of code that is not this library's.
        versions: of the distributions that it is made of.
        bound: norm and eps that it is held to; None: it may return any image.
        begins_from, images, confirm, role, draws: as of
            :class:`~scoreopt_defense.evaluation.plan.tasks.Task`, by the plan's names.
        repeats: whether its ``draws`` tell it from tasks that are like it otherwise.
        suite, label: what it is part of, and what it is called there; empty if it stands by itself.
    """

    kind: str
    attack: Mapping[str, Any]
    versions: Mapping[str, str]
    bound: tuple[str, float] | None
    begins_from: tuple[str, ...] = ()
    images: int | None = None
    confirm: int = 0
    role: str = ""
    draws: str = ""
    repeats: bool = False
    suite: str = ""
    label: str = ""

    @classmethod
    def of(cls, task: Task, name: str, suite: str = "", label: str = "") -> Planned:
        kind = "judge" if isinstance(task, Judge) else "probe" if isinstance(task, Probe) else ""
        return cls(
            kind=kind or "attack",
            attack=of_attack(task.attack),
            versions=versions(task.attack),
            bound=named_bound(task.attack),
            begins_from=tuple(task.begins_from),
            images=task.images,
            confirm=task.confirm,
            role=task.role,
            draws=task.draws or name,
            repeats=bool(task.draws),
            suite=suite,
            label=label,
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Planned:
        """The inverse of ``dataclasses.asdict``, after JSON.

        Raises:
            TypeError, LookupError: of what is no such task.
        """
        bound = values["bound"]
        given = {"begins_from": tuple(values["begins_from"]), "bound": bound and tuple(bound)}
        return cls(**{**values, **given})

    @property
    def stands(self) -> bool:
        """Whether tables have a column of it: an attack by itself, or a suite's sum."""
        return self.kind == "judge" or (self.kind == "attack" and not self.suite)

    @property
    def attacks(self) -> bool:
        """Whether it does anything to the images."""
        return self.kind != "judge" and self.attack != {"kind": "Clean"}


@dataclass(frozen=True)
class Unit:
    """The unit of work: one task, done with one defence on one batch of images.

    Attributes:
        key: a digest of all that its result depends on.
        defence, attack: their names; an attack is any task here.
        fingerprint, content: what a record knows these two by, whatever they are called.
        images: first image and the one after the last.
        seed: of everything random in it.
        needs: keys of the units that it begins from.
    """

    key: str
    defence: str
    attack: str
    fingerprint: str
    content: str
    trial: int
    images: tuple[int, int]
    seed: int
    needs: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """How many images it has."""
        return self.images[1] - self.images[0]

    def __str__(self) -> str:
        first, end = self.images
        return f"{self.attack} on {self.defence}, trial {self.trial}, images {first} to {end - 1}"
