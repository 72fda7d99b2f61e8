"""What every attack is: frozen settings, and one method that hands them to a library."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from scoreopt_defense._checks import check_labels, check_unit_images
from scoreopt_defense._foreign import untouched
from scoreopt_defense._offloading import may_bring_weights
from scoreopt_defense.settings import Settings

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Attack"]


@dataclass(frozen=True, kw_only=True)
class Attack(Settings, ABC):
    """Settings of an attack, and :meth:`run`. A subclass writes :meth:`perturb`, a few lines.

    Args:
        preset: the named configuration that this one began as, whose budget is the paper's.
    """

    #: Whether it can begin elsewhere than its library does: :meth:`perturb` then has ``start=``.
    takes_start: ClassVar[bool] = False
    #: Modules of the libraries that it hands its work to: their versions tell results apart.
    libraries: ClassVar[tuple[str, ...]] = ()

    preset: str | None = None

    def run(self, model: nn.Module, x: Tensor, y: Tensor, *, start: Tensor | None = None) -> Tensor:
        """Attacked images.

        Random numbers are the library's, which draws them from the global generators of torch,
        numpy and ``random``: seed those, and the model's own, for the same result again.

        Args:
            model: from images in [0, 1] to logits: a :class:`~scoreopt_defense.DefendedModel`,
                which is shown as ``gradient`` says, or any other module, randomised or not. Nothing
                of it is changed, and it is attacked in the train or eval mode that it is in.
            x: clean images, shape ``(B, C, H, W)``, float32 or float64, in [0, 1].
            y: their labels, shape ``(B,)``, integers from 0.
            start: images to begin from, of the shape of ``x``, in [0, 1], such as those that
                another attack found: for a class that :attr:`takes_start`. What is outside the ball
                about ``x`` is projected onto it, and a random start is left out.

        Returns:
            Images of the shape, dtype and device of ``x``, in [0, 1], without a graph.

        Raises:
            TypeError, ValueError: if ``x``, ``y`` or ``start`` is no such batch, a ``start`` is
                given to an attack that takes none, or the model is on another device.
            ImportError: without the library; the error names the extra that brings it.
        """
        x = check_unit_images(x)
        y = check_labels(y, len(x))
        if start is not None:
            start = self._checked_start(start, x)
        devices = {part.device for part in model.parameters()}
        is_offloaded = devices == {torch.device("meta")} and may_bring_weights(model)
        if devices and x.device not in devices and not is_offloaded:  # libraries would move it
            raise ValueError(
                f"the model is on {', '.join(map(str, devices))} and the images are on {x.device}: "
                "move one of them, as in model.to(images.device)"
            )
        if not len(x):
            return x.clone()
        with torch.inference_mode(False), torch.enable_grad(), untouched(model):
            begin = {} if start is None else {"start": start.detach().clone().to(x)}
            x_adv = self.perturb(model, x.detach().clone(), y.detach().clone(), **begin)
            return x_adv.detach().to(x)

    def _checked_start(self, start: Tensor, x: Tensor) -> Tensor:
        if not self.takes_start:
            raise ValueError(
                f"start must be None for {type(self).__name__}, which begins where its library "
                "does; a class that takes one says takes_start = True, as FoolboxPGD does"
            )
        start = check_unit_images(start)
        if start.shape != x.shape:
            raise ValueError(
                f"start must have the images' shape {tuple(x.shape)}, got {tuple(start.shape)}"
            )
        return start

    @abstractmethod
    def perturb(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """As :meth:`run`, on checked arguments, gradients being recorded."""

    @property
    @abstractmethod
    def queries(self) -> int:
        """Most images that :meth:`run` has the model classify for each of its own.

        Exact unless the attack stops early on an image that it has broken. Of a defended model each
        is ``votes`` purifications; of a surrogate or a classifier that is shown, none.
        """

    @property
    def gradients(self) -> int:
        """How many of the :attr:`queries` are differentiated."""
        return 0

    @property
    @abstractmethod
    def threat(self) -> str:
        """What the attacker may do to an image, in a few words."""

    def budget(self) -> dict[str, Any]:
        """The settings, the threat and what it all costs, as JSON has it."""
        cost = {"threat": self.threat, "queries": self.queries, "gradients": self.gradients}
        return self.as_dict() | cost

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it, with the class under ``"kind"``."""
        return {"kind": type(self).__name__} | super().as_dict()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`as_dict`."""
        return super().from_dict({name: value for name, value in values.items() if name != "kind"})
