"""Attacks of Foolbox."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from scoreopt_defense._checks import check_choice
from scoreopt_defense._optional import optional
from scoreopt_defense.attacks.bounded import BoundedAttack, ProjectedGradientAttack
from scoreopt_defense.attacks.losses import LOSSES
from scoreopt_defense.attacks.views import View
from scoreopt_defense.gradients import Gradient, NoGradient

__all__ = ["FoolboxPGD", "RandomNoise"]


@dataclass(frozen=True, kw_only=True)
class FoolboxPGD(ProjectedGradientAttack):
    """As :class:`~scoreopt_defense.attacks.PGD`, by Foolbox, whose random start is uniform in l2.

    The authors' code takes it for transfer PGD. It can begin at images that are passed to
    :meth:`run` as ``start``, and raise another loss than the cross-entropy.

    Args:
        norm, eps, gradient, eot, steps, restarts, step_size, random_start: as in
            :class:`~scoreopt_defense.attacks.bounded.ProjectedGradientAttack`.
        loss: of the mean logits: ``"cross-entropy"``, ``"margin"`` or ``"dlr"``; see
            :mod:`scoreopt_defense.attacks.losses`.
    """

    libraries: ClassVar[tuple[str, ...]] = ("foolbox",)

    takes_start: ClassVar[bool] = True

    loss: str = "cross-entropy"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("loss", self.loss, LOSSES)

    def attack(
        self, model: nn.Module, x: Tensor, y: Tensor, *, start: Tensor | None = None
    ) -> Tensor:
        foolbox = optional("foolbox", extra="attacks")
        kind = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}[self.norm]
        attack = _hooked(kind, self.loss, start)(
            rel_stepsize=self.step_size,
            steps=self.steps,
            random_start=self.random_start or start is not None,
        )
        bounded = foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)
        return attack.run(bounded, x, y, epsilon=self.eps)


def _hooked(kind: Any, loss: str, start: Tensor | None) -> Any:
    """The library's class, by the two methods that it has for others to override."""
    astensor = optional("eagerpy", extra="attacks").astensor

    class Hooked(kind):
        def get_loss_fn(self, model: Any, labels: Any) -> Any:
            return lambda x: astensor(LOSSES[loss](model(x).raw, labels.raw).sum())

        def get_random_start(self, x0: Any, epsilon: float) -> Any:
            if start is None:
                return super().get_random_start(x0, epsilon)
            return self.project(astensor(start), x0, epsilon)

    return Hooked


@dataclass(frozen=True, kw_only=True)
class RandomNoise(BoundedAttack):
    """Random noise of an attack's size, which an attack must outdo: uniform, and Gaussian in l2.

    Args:
        norm, eps, restarts: as in :class:`~scoreopt_defense.attacks.bounded.BoundedAttack`; the
            model is asked only to choose among restarts.
    """

    libraries: ClassVar[tuple[str, ...]] = ("foolbox",)

    gradient: Gradient | View = NoGradient()
    eot: int = 1
    steps: int = 1

    @property
    def calls(self) -> int:
        return 0

    @property
    def differentiated(self) -> int:
        return 0

    def attack(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        foolbox = optional("foolbox", extra="attacks")
        kind = {
            "linf": foolbox.attacks.LinfAdditiveUniformNoiseAttack,
            "l2": foolbox.attacks.L2AdditiveGaussianNoiseAttack,
        }[self.norm]
        bounded = foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)
        noised = kind().run(bounded, x, y, epsilon=self.eps)
        # it scales by the largest value, and the lowest may be further from 0
        return noised if self.norm == "l2" else x + (noised - x).clamp(-self.eps, self.eps)
