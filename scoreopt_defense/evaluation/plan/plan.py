"""What a run is: a frozen plan, and its units, each a pure function of it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from scoreopt_defense._checks import check_count, check_labels, check_unit_images
from scoreopt_defense.evaluation.identity import (
    as_json,
    behaviour,
    described,
    digest,
    of_attack,
    unlike,
)
from scoreopt_defense.evaluation.judging import Judging
from scoreopt_defense.evaluation.seeding import key_of
from scoreopt_defense.noise import derive

__all__ = ["CLEAN", "Chain", "Clean", "Materials", "Plan", "Unit", "differences"]

CLEAN = "clean"
_MOST_UNITS = 10**7  # of ImageNet's 50,000 images that is 6,000 cells of batches of 32
MOST_THREADS = (
    1024  # of a worker; far more of them cannot be started, and torch does not survive it
)


@dataclass(frozen=True)
class Clean:
    """No attack: the images as they are."""

    def run(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return x

    def as_dict(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class Unit:
    """The unit of work: one batch of images, attacked once at one defence.

    Attributes:
        index: its place among the plan's units; nothing random depends on it.
        images: first image and the one after the last.
    """

    index: int
    defence: str
    attack: str
    trial: int
    images: tuple[int, int]

    def __str__(self) -> str:
        first, end = self.images
        return f"{self.attack} on {self.defence}, trial {self.trial}, images {first} to {end - 1}"


@dataclass(frozen=True, kw_only=True)
class Chain:
    """A suite of attacks, made out for each defence that it is about.

    Attributes:
        stages: by defence, names of attacks in their order. Each begins where those before it came
            to and leaves out the images that they took; the last judges what they found.
        probes: by defence, names of what the suite's checks rest on besides, attacks by themselves
            and measurements, by what they are to the checks.
        probed: how many images are probed, the first ones.
        confirm: further purifications of an image that a stage's judged ones all got wrong: it
            leaves the queue if these do too.
        untried: by defence, what could not be tried, and why.
    """

    stages: Mapping[str, Sequence[str]]
    probes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    probed: int = 32
    confirm: int = 0
    untried: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @property
    def parts(self) -> set[str]:
        """Names of what belongs to the suite alone: all but the last stages, and the probes."""
        stages = (name for names in self.stages.values() for name in names[:-1])
        return {*stages, *(name for names in self.probes.values() for name in names.values())}


@dataclass(frozen=True, eq=False)
class Materials:
    """The networks, images and attacks that a plan describes.

    Attributes:
        defences: modules from images in [0, 1] to logits, by name, in eval mode.
        attacks: objects with ``run(model, x, y)`` and ``as_dict()``, by name.
        x: images, shape ``(n, C, H, W)``, in [0, 1].
        y: labels, shape ``(n,)``.
        judging: how results are judged.
        suites: by name; their attacks are among ``attacks``.
        controls: what the checks of the other attacks rest on, if they are asked for: a chain of
            probes alone, which are among ``attacks``.
    """

    defences: Mapping[str, nn.Module]
    attacks: Mapping[str, Any]
    x: Tensor
    y: Tensor
    judging: Judging = field(default_factory=Judging)
    suites: Mapping[str, Chain] = field(default_factory=dict)
    controls: Chain | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "x", check_unit_images(self.x))
        if not len(self.x):
            raise ValueError("images must be at least one, got none")
        object.__setattr__(self, "y", check_labels(self.y, len(self.x)))
        if not self.defences:
            raise ValueError("defences must name at least one, got none")
        for name in (*self.defences, *self.attacks):
            if not isinstance(name, str) or any("\ud800" <= c <= "\udfff" for c in name):
                raise ValueError(
                    "names of defences and attacks must be text, without bytes that are none, got "
                    f"{name!r}"
                )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that a run's figures depend on, as JSON has it.

    Args:
        defences: by name: what each is, and a digest of its weights.
        attacks: by name, the settings of each, and a digest of code that is not this library's.
        images: how many, of what shape, and their digest.
        trials: repetitions with other seeds.
        batch: images a unit. The batches are fixed: kernels differ in their last bits with the
            batch, and an attack's sign makes a pixel of it.
        seed: of everything random.
        threads: of each worker; sums differ in their last bits with it.
        judging: see :class:`Judging`.
        suites: by name, each a :class:`Chain`.
        behaviour: by defence, what it answered; see
            :func:`~scoreopt_defense.evaluation.identity.behaviour`. No part of the hash.
        controls: a :class:`Chain` of probes alone; empty if none were asked for.
    """

    defences: Mapping[str, Any]
    attacks: Mapping[str, Any]
    images: Mapping[str, Any]
    trials: int = 1
    batch: int = 32
    seed: int = 0
    threads: int = 1
    judging: Mapping[str, Any] = field(default_factory=lambda: Judging().as_dict())
    suites: Mapping[str, Any] = field(default_factory=dict)
    behaviour: Mapping[str, Any] = field(default_factory=dict)
    controls: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, least in {"trials": 1, "batch": 1, "seed": 0}.items():
            check_count(name, getattr(self, name), least=least)
        check_count("threads", self.threads, most=MOST_THREADS)

    @classmethod
    def of(cls, materials: Materials, *, threads: int = 1, **numbers: int) -> Plan:
        """The plan for these materials; each defence is asked about the first two images."""
        check_count("threads", threads, most=MOST_THREADS)
        return cls(
            defences={name: described(model) for name, model in materials.defences.items()},
            attacks={name: of_attack(attack) for name, attack in materials.attacks.items()},
            images={"shape": list(materials.x.shape), "sha256": digest(materials.x, materials.y)},
            judging=materials.judging.as_dict(),
            suites={n: as_json(dataclasses.asdict(c)) for n, c in materials.suites.items()},
            behaviour={
                name: behaviour(model, materials.x[:2], threads)
                for name, model in materials.defences.items()
            },
            threads=threads,
            controls=as_json(dataclasses.asdict(materials.controls)) if materials.controls else {},
            **numbers,
        )

    @property
    def count(self) -> int:
        """How many images there are."""
        return int(self.images["shape"][0])

    @cached_property
    def chains(self) -> dict[str, Chain]:
        """The suites."""
        return {name: Chain(**values) for name, values in self.suites.items()}

    @cached_property
    def controlled(self) -> Chain:
        """What the checks rest on of the attacks that stand by themselves."""
        return Chain(**self.controls) if self.controls else Chain(stages={})

    @cached_property
    def parts(self) -> set[str]:
        """What stands by itself in no table: the suites' parts, and the controls."""
        chains = (*self.chains.values(), self.controlled)
        return {part for chain in chains for part in chain.parts}

    @cached_property
    def columns(self) -> list[str]:
        """The attacks that stand by themselves, and each suite's last stage, which is its sum."""
        return [name for name in self.attacks if name not in self.parts]

    def units(self) -> Iterator[Unit]:
        """All units, attack by attack; those of a suite after the ones that they begin from."""
        return iter(self._units.values())

    @cached_property
    def _units(self) -> dict[tuple[str, str, int, int], Unit]:
        cells = (
            (defence, attack, trial, (first, min(first + self.batch, end)))
            for attack in self.attacks
            for defence in self.defences
            for end in [self._extent(attack, defence)]
            for trial in range(self.trials)
            for first in range(0, end, self.batch)
        )
        units = (Unit(index, *cell) for index, cell in enumerate(cells))
        return {(u.defence, u.attack, u.trial, u.images[0]): u for u in units}

    def _extent(self, attack: str, defence: str) -> int:
        """How many of the images an attack meets a defence on."""
        for chain in (*self.chains.values(), self.controlled):
            if any(attack in names for names in chain.stages.values()):
                return self.count if attack in chain.stages.get(defence, ()) else 0
            if any(attack in names.values() for names in chain.probes.values()):
                meets = attack in chain.probes.get(defence, {}).values()
                return min(chain.probed, self.count) if meets else 0
        return self.count

    def before(self, unit: Unit) -> list[Unit]:
        """The units that one begins from: the clean images, and its suite's earlier stages."""
        for chain in self.chains.values():
            stages = list(chain.stages.get(unit.defence, ()))
            if unit.attack in stages:
                names = [CLEAN, *stages[: stages.index(unit.attack)]]
                return [
                    self._units[unit.defence, name, unit.trial, unit.images[0]] for name in names
                ]
        return []

    def confirm(self, unit: Unit) -> int:
        """Further purifications by which images leave a suite's queue after this unit."""
        return max(
            (
                chain.confirm
                for chain in self.chains.values()
                if unit.attack in (CLEAN, *chain.stages.get(unit.defence, ())[:-1])
            ),
            default=0,
        )

    def seed_of(self, unit: Unit) -> int:
        """Of (seed, trial, attack, batch) alone: a cell is the same alone as within any run."""
        return derive(self.seed, unit.trial, key_of(unit.attack), unit.images[0])

    def as_json(self) -> str:
        """Canonical JSON, but for the order of attacks and defences, which is the user's."""
        return json.dumps(dataclasses.asdict(self), separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The inverse of :meth:`as_json`.

        Raises:
            ValueError, TypeError: of what no plan says.
        """
        plan = cls(**json.loads(text))
        shape = plan.images["shape"]
        if len(shape) != 4 or not all(isinstance(n, int) and n > 0 for n in shape):
            raise ValueError(f"images of shape {shape}")
        cells = len(plan.defences) * len(plan.attacks) * plan.trials
        if (units := cells * -(-plan.count // plan.batch)) > _MOST_UNITS:
            raise ValueError(f"{units} units, where {_MOST_UNITS} are the most")
        return plan

    @property
    def hash(self) -> str:
        """SHA-256 of the canonical JSON, but for what was measured."""
        declared = dataclasses.replace(self, behaviour={})
        return hashlib.sha256(declared.as_json().encode()).hexdigest()


def differences(was: Any, is_now: Any, name: str = "") -> list[str]:
    """What differs between two plans, a line each; of answers, what is more than rounding."""
    if name == "plan.behaviour":
        both = ((key, unlike(was[key], is_now.get(key))) for key in was or {})
        return [f"plan.defences.{key}: {what}" for key, what in both if what]
    if isinstance(was, Mapping) and isinstance(is_now, Mapping):
        lines = [
            line
            for key in {**was, **is_now}
            for line in differences(was.get(key), is_now.get(key), f"{name}.{key}".lstrip("."))
        ]
        in_order = list(was) == list(is_now)
        return lines or ([] if in_order else [f"{name}: the order was {list(was)}"])
    return [] if was == is_now else [f"{name} was {was!r} and is {is_now!r}"]
