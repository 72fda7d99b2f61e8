"""Attacks of Foolbox."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from scoreopt_defense._optional import optional
from scoreopt_defense.attacks.base import ProjectedGradientAttack

__all__ = ["FoolboxPGD"]


@dataclass(frozen=True, kw_only=True)
class FoolboxPGD(ProjectedGradientAttack):
    """As :class:`~scoreopt_defense.attacks.PGD`, by Foolbox, whose random start is uniform in l2.

    The authors' code takes it for transfer PGD.
    """

    def attack(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        foolbox = optional("foolbox", extra="foolbox")
        kind = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}[self.norm]
        attack = kind(rel_stepsize=self.step_size, steps=self.steps, random_start=self.random_start)
        bounded = foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)
        return attack.run(bounded, x, y, epsilon=self.eps)
