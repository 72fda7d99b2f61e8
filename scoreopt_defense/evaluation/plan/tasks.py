"""What is done with a defence: attacks, probes and judgements, and what each of them begins from.

A suite is an object that names such tasks. Whoever carries them out knows tasks alone, so that an
order of attacks of one's own is one class:

.. code-block:: python

    class TwoInARow(Suite):
        def tasks(self, model, x):
            pgd = tasks.Attack(attack=attack("pgd-eot-linf"))
            spsa = tasks.Attack(attack=attack("spsa"), begins_from=["PGD"])
            worst = tasks.Judge(attack=Worst(norm="linf", eps=8 / 255), begins_from=["PGD", "SPSA"])
            return {"PGD": pgd, "SPSA": spsa, "": worst}

    evaluate(model, images, suites={"mine": TwoInARow()})
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

__all__ = ["CLEAN", "Attack", "Clean", "Judge", "Probe", "Suite", "Task", "Worst"]

#: Name of the task that every plan begins with: the clean images, judged.
CLEAN = "clean"


@dataclass(frozen=True)
class Clean:
    """No attack: the images as they are."""

    def run(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return x

    def as_dict(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True, kw_only=True)
class Worst:
    """No attack: the images that it begins from, held to this bound.

    Args:
        norm, eps: as of any attack.
    """

    norm: str
    eps: float
    takes_start = True

    def run(self, model: nn.Module, x: Tensor, y: Tensor, *, start: Tensor) -> Tensor:
        return start

    def as_dict(self) -> dict[str, Any]:
        return {"norm": self.norm, "eps": self.eps}


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is done once with one defence.

    Attributes:
        attack: is carried out and judged: see :mod:`scoreopt_defense.attacks.protocols`.
        begins_from: labels of tasks of the same suite. The attack meets of each image the worst
            that these found, and not the images that one of them took: those of which every
            purification was wrong. Empty: the clean images, all of them.
        images: how many it meets, the first ones; None: all.
        confirm: further purifications of an image that all judged ones got wrong, which count as
            well before it is taken.
        role: what a checklist knows it by.
        draws: what its random numbers go by: its name in the plan, by default. Tasks that are alike
            otherwise are one, unless they say here that they are not.
    """

    attack: Any
    begins_from: Sequence[str] = ()
    images: int | None = None
    confirm: int = 0
    role: str = ""
    draws: str = ""


class Attack(Task):
    """An attack: a table's column by itself, and within a suite a step on the way to its sum."""


class Probe(Task):
    """An attack or a measurement for the checks alone: its figure is in no table."""


class Judge(Task):
    """A suite's sum: the worst of each image that other tasks found, judged once more.

    It is judged by purifications that chose none of it, on every image.
    """


class Suite(ABC):
    """Base of suites: what is done with each defence, in which order."""

    @abstractmethod
    def tasks(self, model: nn.Module, x: Tensor) -> Mapping[str, Task]:
        """Tasks by label, each after those that it begins from; ``""`` is the suite's own figure.

        Args:
            model: the defence.
            x: some of the run's images, shape ``(B, C, H, W)``, that it may be asked about.
        """

    def untried(self, model: nn.Module) -> Mapping[str, str]:
        """What the suite cannot do with this defence, and why."""
        return {}
