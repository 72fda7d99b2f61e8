"""Images of the classifier alone, moved onto its decision boundary."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scoreopt_defense._checks import check_count
from scoreopt_defense.attacks.torchattacks import PGD
from scoreopt_defense.attacks.views import Classifier, View
from scoreopt_defense.gradients import Gradient

__all__ = ["Boundary"]


@dataclass(frozen=True, kw_only=True)
class Boundary(PGD):
    """PGD on the classifier, then as far back towards the clean image as it stays wrong.

    A purifier may see a confident adversarial image and undo it, and miss one that is barely wrong;
    or push an image that is barely right over the boundary. So the result of a transfer attack is
    moved, by bisection on the way to the clean image, to where the classifier begins to err.

    Args:
        norm, eps, gradient, eot, steps, restarts, step_size, random_start: as in
            :class:`~scoreopt_defense.attacks.bounded.ProjectedGradientAttack`.
        bisections: halvings of the way, one query each.

    Reference:
        Croce et al., "Evaluating the adversarial robustness of adaptive test-time defenses",
        ICML 2022.
    """

    gradient: Gradient | View = Classifier()
    eot: int = 1
    steps: int = 40
    random_start: bool = True
    bisections: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("bisections", check_count("bisections", self.bisections))

    @property
    def calls(self) -> int:
        return self.steps + self.bisections

    def attack(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        attacked = super().attack(model, x, y).detach()
        right, wrong = torch.zeros_like(x[:, :1, :1, :1]), torch.ones_like(x[:, :1, :1, :1])
        with torch.no_grad():
            for _ in range(self.bisections):
                middle = (right + wrong) / 2
                errs = model(torch.lerp(x, attacked, middle)).argmax(1) != y
                errs = errs.reshape(middle.shape)
                right, wrong = torch.where(errs, right, middle), torch.where(errs, middle, wrong)
        return torch.lerp(x, attacked, wrong)
