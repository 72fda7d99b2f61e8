"""A question to a record: what is to be done with which defences, on which images.

The plan is JSON. Its units are known by keys, digests of all that a result depends on, so that a
record answers with what it has of them, whoever asked for it before.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any

from scoreopt_defense._checks import check_count
from scoreopt_defense.evaluation.plan.behaviour import behaviour
from scoreopt_defense.evaluation.plan.environment import versions
from scoreopt_defense.evaluation.plan.fingerprint import (
    as_json,
    described,
    digest,
    json_digest,
    key_of,
)
from scoreopt_defense.evaluation.plan.materials import Materials
from scoreopt_defense.evaluation.plan.parts import Defence, Planned, Unit
from scoreopt_defense.evaluation.plan.tasks import CLEAN
from scoreopt_defense.noise import derive

__all__ = ["MOST_THREADS", "Plan"]

_FORMAT = "3"  # of keys
_MOST_UNITS = 10**7  # of ImageNet's 50,000 images that is 6,000 cells of batches of 32
#: Of a worker; far more of them cannot be started, and torch does not survive it
MOST_THREADS = 1024


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that a run's figures depend on, as JSON has it.

    Args:
        defences: by name.
        tasks: by name, and of each by the defence that it is done with; in the order of the work.
        images: shape and digest of all, and a digest of each batch, labels included.
        trials: repetitions with other seeds.
        batch: images a unit. The batches are fixed: kernels differ in their last bits with the
            batch, and an attack's sign makes a pixel of it.
        seed: of everything random.
        threads: of each worker; sums differ in their last bits with it.
        judging: see :class:`Judging`.
        suites: by name; what each could not do, and why, by defence.
    """

    defences: Mapping[str, Defence]
    tasks: Mapping[str, Mapping[str, Planned]]
    images: Mapping[str, Any]
    judging: Mapping[str, Any]
    trials: int = 1
    batch: int = 32
    seed: int = 0
    threads: int = 1
    suites: Mapping[str, Mapping[str, Mapping[str, str]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, least in {"trials": 1, "batch": 1, "seed": 0}.items():
            check_count(name, getattr(self, name), least=least)
        check_count("threads", self.threads, most=MOST_THREADS)

    @classmethod
    def of(cls, materials: Materials, *, threads: int = 1, batch: int = 32, **numbers: int) -> Plan:
        """The plan for these materials; each defence is asked about two fixed images."""
        check_count("threads", threads, most=MOST_THREADS)
        check_count("batch", batch)
        images = materials.images
        digests = images.digests()
        ends = range(0, len(images), batch)
        return cls(
            defences={
                name: Defence(
                    about=described(model),
                    versions=versions(model),
                    behaviour=behaviour(model, images.shape, images.dtype, threads),
                )
                for name, model in materials.defences.items()
            },
            tasks={
                name: {
                    d: Planned.of(task, name, *materials.owners.get(name, ()))
                    for d, task in by_defence.items()
                }
                for name, by_defence in materials.tasks.items()
            },
            images={
                "shape": [len(images), *images.shape],
                "whole": digest(*digests),
                "sha256": [digest(*digests[first : first + batch]) for first in ends],
            },
            judging=as_json(materials.judging.as_dict()),
            suites=as_json(materials.suites),
            threads=threads,
            batch=batch,
            **numbers,
        )

    @property
    def count(self) -> int:
        """How many images there are."""
        return int(self.images["shape"][0])

    @property
    def attacks(self) -> dict[str, Mapping[str, Any]]:
        """Class and settings of each task's attack, by name."""
        return {name: next(iter(of.values())).attack for name, of in self.tasks.items()}

    @cached_property
    def columns(self) -> list[str]:
        """What tables show: the attacks that stand by themselves, and each suite's sums."""
        return [n for n, of in self.tasks.items() if any(task.stands for task in of.values())]

    @cached_property
    def sums(self) -> set[str]:
        """Names of the suites' sums."""
        return {n for n, of in self.tasks.items() if any(t.kind == "judge" for t in of.values())}

    def of_suite(self, suite: str, defence: str, kind: str) -> dict[str, Planned]:
        """A suite's tasks of one kind with one defence, by name, in its own order."""
        of_it = ((name, self.tasks[name][defence]) for name in self.contents(defence))
        return {name: t for name, t in of_it if (t.suite, t.kind) == (suite, kind)}

    def units(self) -> Iterator[Unit]:
        """All units, task by task."""
        return iter(self._units)

    @cached_property
    def _units(self) -> list[Unit]:
        shared = json_digest(_FORMAT, self.judging, self.threads, self.seed)
        contents = {defence: self.contents(defence) for defence in self.defences}
        tasks = [task for of in self.tasks.values() for task in of.values()]
        batches = {most: self._batches(most) for most in {task.images for task in tasks}}
        made: dict[tuple[str, str, int, int], Unit] = {}

        @cache  # defences share them
        def seeds(draws: str, trial: int, first: int) -> int:
            return derive(self.seed, trial, key_of(draws), first)

        def unit(name: str, defence: str, trial: int, place: int) -> Unit:
            if (where := (name, defence, trial, place)) not in made:
                task = self.tasks[name][defence]
                images, pixels = batches[task.images][place]
                needs = tuple(
                    unit(n, defence, trial, place).key
                    for n in task.begins_from
                    if place < len(batches[self.tasks[n][defence].images])
                )
                seed = seeds(task.draws, trial, images[0])
                who = self.defences[defence].id, contents[defence][name]
                text = " ".join([shared, *who, pixels, f"{images} {seed}", *needs])
                key = hashlib.sha256(text.encode()).hexdigest()
                made[where] = Unit(key, defence, name, *who, trial, images, seed, needs)
            return made[where]

        return [
            unit(name, defence, trial, place)
            for name, of in self.tasks.items()
            for defence, task in of.items()
            for trial in range(self.trials)
            for place in range(len(batches[task.images]))
        ]

    def _batches(self, most: int | None) -> list[tuple[tuple[int, int], str]]:
        """Each batch's first image and the one after the last, and the digest of the whole."""
        end = min(self.count, most or self.count)
        ends = ((first, min(first + self.batch, end)) for first in range(0, end, self.batch))
        return list(zip(ends, self.images["sha256"]))

    def contents(self, defence: str) -> dict[str, str]:
        """Digests of what each task does with a defence, by name, whatever it is called.

        Each stands after those that it begins from, also where the defences' orders differ.

        Raises:
            ValueError: if a task begins from itself, or from what is not done with the defence.
        """
        if defence not in self._contents:
            self._contents[defence] = self._contents_of(defence)
        return self._contents[defence]

    @cached_property
    def _contents(self) -> dict[str, dict[str, str]]:
        return {}

    def _contents_of(self, defence: str) -> dict[str, str]:
        found: dict[str, str] = {}
        under_way: set[str] = set()

        def content(name: str) -> str:
            if name not in found:
                task = self.tasks.get(name, {}).get(defence)
                if task is None or name in under_way:
                    raise ValueError(f"a task of {defence!r} begins from {name!r}")
                under_way.add(name)
                before = [content(earlier) for earlier in task.begins_from]
                about = task.attack, task.versions, task.bound, task.confirm, task.kind == "judge"
                found[name] = json_digest(*about, before, task.draws if task.repeats else None)
            return found[name]

        for name, of in self.tasks.items():
            if defence in of:
                content(name)
        return found

    def first(self, count: int, digests: Sequence[str]) -> Plan:
        """This plan, of the first images alone: whole batches.

        Args:
            digests: of all images.
        """
        shape = [count, *self.images["shape"][1:]]
        sha256 = self.images["sha256"][: -(-count // self.batch)]
        whole = digest(*digests[:count])
        return replace(self, images={"shape": shape, "whole": whole, "sha256": sha256})

    def known(self, defences: Mapping[str, str], draws: Mapping[tuple[str, str], str]) -> Plan:
        """This plan, by what a record calls its parts.

        Args:
            defences: their fingerprints there, by name.
            draws: what random numbers went by there, by defence and task.
        """
        return replace(
            self,
            defences={n: replace(d, id=defences.get(n, d.id)) for n, d in self.defences.items()},
            tasks={
                name: {
                    defence: replace(task, draws=draws.get((defence, name), task.draws))
                    for defence, task in by_defence.items()
                }
                for name, by_defence in self.tasks.items()
            },
        )

    def as_json(self) -> str:
        """As JSON; the order of attacks and defences is the user's."""
        return json.dumps(dataclasses.asdict(self), separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The inverse of :meth:`as_json`.

        Raises:
            ValueError, TypeError, LookupError, AttributeError: of what no plan says.
        """
        values = json.loads(text)
        defences = set(values["defences"])
        values["defences"] = {n: Defence(**of) for n, of in values["defences"].items()}
        values["tasks"] = {
            name: {defence: Planned.from_dict(of) for defence, of in by_defence.items()}
            for name, by_defence in values["tasks"].items()
        }
        plan = cls(**values)
        shape = plan.images["shape"]
        if len(shape) != 4 or not all(isinstance(n, int) and n > 0 for n in shape):
            raise ValueError(f"images of shape {shape}")
        batches = -(-plan.count // plan.batch)
        if not isinstance(plan.images["whole"], str):
            raise ValueError(f"a digest {plan.images['whole']!r} of all images")
        if len(plan.images["sha256"]) != batches:
            raise ValueError(f"{len(plan.images['sha256'])} digests of {batches} batches")
        cells = sum(len(by_defence) for by_defence in plan.tasks.values()) * plan.trials
        if (units := cells * batches) > _MOST_UNITS:
            raise ValueError(f"{units} units, where {_MOST_UNITS} are the most")
        if CLEAN not in plan.tasks or {d for of in plan.tasks.values() for d in of} - defences:
            raise ValueError("tasks of no defence")
        for defence in plan.defences:
            plan.contents(defence)
        return plan

    def summary(self) -> dict[str, Any]:
        """What it is about, for people and other programs."""
        defences = self.defences.items()
        tasks = [task for of in self.tasks.values() for task in of.values()]
        made_with = [d.versions for _, d in defences] + [task.versions for task in tasks]
        return {
            "defences": {name: dict(defence.about) for name, defence in defences},
            "attacks": self.attacks,
            "images": {"shape": self.images["shape"], "sha256": self.images["whole"]},
            "trials": self.trials, "batch": self.batch, "seed": self.seed, "threads": self.threads,
            "judging": self.judging, "suites": self.suites,
            "versions": {library: said for of in made_with for library, said in of.items()},
            "fingerprints": {name: defence.id for name, defence in defences},
        }  # fmt: skip

    @property
    def hash(self) -> str:
        """SHA-256 of its units' keys: two plans of one hash ask the same."""
        return json_digest(*(unit.key for unit in self.units()))
