"""Attacks of mister_ed, which recoloradv carries."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from typing import ClassVar
from unittest import mock

import torch
from torch import Tensor, nn

from scoreopt_defense._checks import check_positive
from scoreopt_defense._optional import optional
from scoreopt_defense.attacks.bounded import BoundedAttack

__all__ = ["StAdv"]


@dataclass(frozen=True, kw_only=True)
class StAdv(BoundedAttack):
    r"""Spatially transformed images: each pixel is looked up at a place nearby.

    Adam on the flow, descending the margin of the mean logits plus :math:`0.0025 / \varepsilon`
    times the flow's roughness, both as in DiffPure's code. Images must be square.

    Args:
        norm: ``"flow"``.
        eps: furthest that a pixel is looked up, along each axis, in units in which the image
            reaches from -1 to 1: 0.05 is 0.8 pixels of 32.
        gradient, eot, steps, restarts: as in
            :class:`~scoreopt_defense.attacks.bounded.BoundedAttack`.
        lr: Adam's, relative to eps.

    Reference:
        Xiao et al., ICLR 2018; Laidlaw and Feizi, NeurIPS 2019 (the code).
    """

    libraries: ClassVar[tuple[str, ...]] = ("recoloradv",)

    norms: ClassVar[tuple[str, ...]] = ("flow",)
    float32_only: ClassVar[bool] = True
    scale_free: ClassVar[bool] = False

    norm: str = "flow"
    eps: float = 0.05
    steps: int = 100
    lr: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("lr", check_positive("lr", self.lr))

    def attack(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        if x.shape[2] != x.shape[3]:
            raise ValueError(f"StAdv needs square images, got shape {tuple(x.shape)}")
        with (
            mock.patch.dict(os.environ, MISTER_ED_GPU=str(x.is_cuda)),  # how it chooses a device
            torch.cuda.device_of(x),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # it predates align_corners
            attacks, losses, perturbations, transformers, utils = (
                optional(f"recoloradv.mister_ed.{part}", extra="attacks")
                for part in (
                    "adversarial_attacks", "loss_functions", "adversarial_perturbations",
                    "spatial_transformers", "utils.pytorch_utils",
                )
            )  # fmt: skip
            threat = perturbations.ThreatModel(
                perturbations.ParameterizedXformAdv,
                perturbations.PerturbationParameters(
                    lp_style="inf", lp_bound=self.eps, use_stadv=True,
                    xform_class=transformers.FullSpatial,
                ),
            )  # fmt: skip
            as_they_are = utils.IdentityNormalize()
            loss = losses.RegularizedLoss(
                {
                    "adv": losses.CWLossF6(model, as_they_are, kappa=float("inf")),
                    "pert": losses.PerturbationNormLoss(lp=2),
                },
                {"adv": 1.0, "pert": 0.0025 / self.eps},
                negate=True,
            )
            perturbation = attacks.PGD(model, as_they_are, threat, loss).attack(
                x, y, num_iterations=self.steps, optimizer=torch.optim.Adam,
                optimizer_kwargs={"lr": self.lr * self.eps}, signed=False, keep_best=False,
                verbose=False,
            )  # fmt: skip
            return perturbation(x)
