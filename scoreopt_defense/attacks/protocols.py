"""What an object has to offer to be evaluated as an attack, and what it may offer besides.

:class:`~scoreopt_defense.attacks.Attack` has all of it that an attack needs. An attack of your own
need not be one: any object with the methods of :class:`Attacking` will do. They must be attributes
of the object or its class: from Python 3.12 on, what ``__getattr__`` answers does not count.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeGuard, runtime_checkable

from torch import Tensor, nn

__all__ = ["Attacking", "Measuring", "Nearest", "Startable", "can_start"]


@runtime_checkable
class Attacking(Protocol):
    """An attack: it changes images, and its settings say how."""

    def run(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Attacked images.

        Args:
            model: from images in [0, 1] to logits.
            x: clean images, shape ``(B, C, H, W)``, in [0, 1].
            y: their labels, shape ``(B,)``.

        Returns:
            Images of the shape of ``x``, in [0, 1].
        """

    def as_dict(self) -> dict[str, Any]:
        """The settings, as JSON has them: by them a result is found again."""


@runtime_checkable
class Startable(Protocol):
    """An attack that can begin from other images than the clean ones; see :func:`can_start`."""

    @property
    def takes_start(self) -> bool:
        """Whether it really can: a class may have the argument for its subclasses alone."""

    def run(self, model: nn.Module, x: Tensor, y: Tensor, *, start: Tensor) -> Tensor:
        """As :meth:`Attacking.run`, from images such as another attack found.

        Args:
            start: of the shape of ``x``, in [0, 1].
        """

    def as_dict(self) -> dict[str, Any]:
        """As :meth:`Attacking.as_dict`."""


@runtime_checkable
class Measuring(Protocol):
    """What has numbers to record of each image, beside those of its attack."""

    def measure(self, model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Values by name, each of shape ``(B,)``; arguments are ``run``'s, ``start`` if asked."""


@runtime_checkable
class Nearest(Protocol):
    """An attack that seeks the nearest image that is wrong: how far it went is recorded."""

    def distances(self, x: Tensor, attacked: Tensor) -> Tensor:
        """Of each image to its clean one, in the attack's norm, shape ``(B,)``."""


def can_start(attack: object) -> TypeGuard[Startable]:
    """Whether an attack can begin from images that it is given.

    Example:
        >>> from scoreopt_defense.attacks import PGD, FoolboxPGD
        >>> can_start(FoolboxPGD()), can_start(PGD())
        (True, False)
    """
    return isinstance(attack, Startable) and attack.takes_start
