"""What an attack is shown of a defence, and how that is differentiated.

``gradient=`` of an attack is a mode of :mod:`scoreopt_defense.gradients`, in which it attacks the
real defence; or one of the objects here, by which it attacks something else, and the defence is met
only when it judges the result. One of your own has the method ``shown``.
"""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import nn

from scoreopt_defense._checks import check_count
from scoreopt_defense.defended import DefendedModel
from scoreopt_defense.gradients import GRADIENTS, Gradient, Smoothed
from scoreopt_defense.purifiers import Purifier
from scoreopt_defense.settings import Options

__all__ = [
    *("AsItIs", "Classifier", "GradientOrView", "Shortened", "Surrogate", "View"),
    *("shown", "views"),
]


@runtime_checkable
class View(Protocol):
    """Another model than the real defence."""

    def shown(self, model: DefendedModel) -> nn.Module:
        """What is attacked in place of ``model``, from images in [0, 1] to logits."""


@dataclass(frozen=True)
class Classifier:
    """The classifier alone: a transfer attack, which knows of no purifier (appendix B)."""

    def shown(self, model: DefendedModel) -> nn.Module:
        return model.classifier


@dataclass(frozen=True)
class Surrogate:
    """Forward and backward through one-shot denoising: what the authors' code attacks."""

    def shown(self, model: DefendedModel) -> nn.Module:
        return model.surrogate()


@dataclass(frozen=True)
class Shortened:
    """The same defence of fewer steps, differentiated by the smoothed gradient.

    A call costs what its steps do. Against ScoreOpt-N of many steps it finds as much as the real
    gradient, against ScoreOpt-O much less (docs/results/gradients.md). A defence that takes no more
    steps than these is attacked as it is.

    Args:
        steps: of the purifier, at most.
        c, keep_mb: as of :class:`~scoreopt_defense.gradients.Smoothed`.

    Raises:
        ValueError: when shown a purifier without a setting ``steps``.
    """

    steps: int = 2
    c: float = 1.0
    keep_mb: float = field(default=0.0, compare=False)  # which changes no gradient

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        Smoothed(self.c, self.keep_mb)

    def shown(self, model: DefendedModel) -> nn.Module:
        taken = getattr(model.purifier.settings, "steps", None)
        if taken is None:
            raise ValueError(f"{type(model.purifier).__name__} has no number of steps to shorten")
        gradient = Smoothed(self.c, self.keep_mb)
        return model.replace(steps=min(self.steps, taken), gradient=gradient)


@dataclass(frozen=True)
class AsItIs:
    """The very module that was passed in, differentiated as its owner set it."""

    def shown(self, model: nn.Module) -> nn.Module:
        return model


class GradientOrView(ABC):  # noqa: B024, a union of two protocols
    """What an attack's ``gradient`` may be: an object that has the method of either."""

    @classmethod
    def __subclasshook__(cls, other: type) -> Any:
        return hasattr(other, "differentiate") or hasattr(other, "shown")


def views() -> Options:
    """What an attack's ``gradient`` may be, and by which name."""
    own = {"classifier": Classifier, "surrogate": Surrogate, "shortened": Shortened}
    return Options(GRADIENTS | own | {"as-it-is": AsItIs}, GradientOrView)


def shown(gradient: Gradient | View, model: nn.Module) -> nn.Module:
    """The model as an attack sees it.

    A module without a purifier is what it is, and is attacked so.

    Raises:
        ValueError: if a purifier is inside another module than a
            :class:`~scoreopt_defense.DefendedModel`, where no mode can be set.
    """
    if isinstance(gradient, AsItIs):
        return model
    if isinstance(model, DefendedModel):
        if isinstance(gradient, View):
            return gradient.shown(model)
        return model.with_gradient(gradient)
    if any(isinstance(module, Purifier) for module in model.modules()):
        raise ValueError(
            f"{gradient} cannot be set of a purifier inside a {type(model).__name__}: attack the "
            "DefendedModel itself, or choose gradient='as-it-is'"
        )
    return model
