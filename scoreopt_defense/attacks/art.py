"""Attacks of the Adversarial Robustness Toolbox."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from scoreopt_defense._optional import optional
from scoreopt_defense.attacks.bounded import ProjectedGradientAttack

__all__ = ["ARTPGD"]


@dataclass(frozen=True, kw_only=True)
class ARTPGD(ProjectedGradientAttack):
    """As :class:`~scoreopt_defense.attacks.PGD`, by ART, in float32."""

    libraries: ClassVar[tuple[str, ...]] = ("art",)

    float32_only: ClassVar[bool] = True

    @property
    def calls(self) -> int:
        return self.steps + 2  # it logs how many images it broke

    def attack(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        attacks = optional("art.attacks.evasion", extra="art")
        estimators = optional("art.estimators.classification", extra="art")
        with torch.cuda.device_of(x):
            estimator = estimators.PyTorchClassifier(
                model=model,
                loss=nn.CrossEntropyLoss(),
                input_shape=tuple(x.shape[1:]),
                nb_classes=max(2, int(y.max()) + 1),  # to write the labels with; it asks no more
                clip_values=(0, 1),
                device_type="gpu" if x.is_cuda else "cpu",
            )
            attack = attacks.ProjectedGradientDescentPyTorch(
                estimator, norm={"linf": np.inf, "l2": 2}[self.norm], eps=self.eps,
                eps_step=self.step_size * self.eps, max_iter=self.steps,
                num_random_init=int(self.random_start), batch_size=len(x), verbose=False,
            )  # fmt: skip
            return torch.from_numpy(attack.generate(x.cpu().numpy(), y.cpu().numpy())).to(x.device)
