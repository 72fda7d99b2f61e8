"""What an attack is shown of a defence, and how that is differentiated.

``gradient=`` of an attack is a mode of :mod:`scoreopt_defense.gradients`, in which it attacks the
real defence; or one of the objects here, by which it attacks something else, and the defence is met
only when it judges the result. One of your own has the method ``shown``.
"""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import nn

from scoreopt_defense.defended import DefendedModel
from scoreopt_defense.gradients import GRADIENTS, Gradient
from scoreopt_defense.purifiers import Purifier
from scoreopt_defense.settings import Options

__all__ = ["AsItIs", "Classifier", "GradientOrView", "Surrogate", "View", "shown", "views"]


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
    own = {"classifier": Classifier, "surrogate": Surrogate, "as-it-is": AsItIs}
    return Options(GRADIENTS | own, GradientOrView)


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
