"""Attacks of mister_ed, which recoloradv carries."""

from __future__ import annotations

import os
import warnings
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar
from unittest import mock

import torch
from torch import Tensor, nn

from scoreopt_defense._checks import check_positive
from scoreopt_defense._optional import optional
from scoreopt_defense.attacks.bounded import BoundedAttack

__all__ = ["ReColorAdv", "StAdv"]


@dataclass(frozen=True, kw_only=True)
class _OfMisterEd(BoundedAttack):
    """Adam on the parameters of a change of images, by which the margin of mean logits falls."""

    libraries: ClassVar[tuple[str, ...]] = ("recoloradv",)

    float32_only: ClassVar[bool] = True
    scale_free: ClassVar[bool] = False

    steps: int = 100
    lr: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("lr", check_positive("lr", self.lr))

    @abstractmethod
    def _change(self) -> tuple[Any, dict[str, Any], float]:
        """Of the library: a kind of perturbation, its parameters, and the weight of its norm."""

    def attack(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with (
            mock.patch.dict(os.environ, MISTER_ED_GPU=str(x.is_cuda)),  # how it chooses a device
            torch.cuda.device_of(x),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # it predates align_corners
            attacks, losses, perturbations, utils = (
                _part(f"mister_ed.{part}")
                for part in (
                    "adversarial_attacks", "loss_functions", "adversarial_perturbations",
                    "utils.pytorch_utils",
                )
            )  # fmt: skip
            kind, parameters, weight = self._change()
            threat = perturbations.ThreatModel(
                kind,
                perturbations.PerturbationParameters(
                    lp_style="inf", lp_bound=self.eps, **parameters
                ),
            )
            as_they_are = utils.IdentityNormalize()
            loss = losses.RegularizedLoss(
                {
                    "adv": losses.CWLossF6(model, as_they_are, kappa=float("inf")),
                    "pert": losses.PerturbationNormLoss(lp=2),
                },
                {"adv": 1.0, "pert": weight},
                negate=True,
            )
            perturbation = attacks.PGD(model, as_they_are, threat, loss).attack(
                x, y, num_iterations=self.steps, optimizer=torch.optim.Adam,
                optimizer_kwargs={"lr": self.lr * self.eps}, signed=False, keep_best=False,
                verbose=False,
            )  # fmt: skip
            return perturbation(x)


@dataclass(frozen=True, kw_only=True)
class StAdv(_OfMisterEd):
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

    norms: ClassVar[tuple[str, ...]] = ("flow",)

    norm: str = "flow"
    eps: float = 0.05

    def attack(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        if x.shape[2] != x.shape[3]:
            raise ValueError(f"StAdv needs square images, got shape {tuple(x.shape)}")
        return super().attack(model, x, y)

    def _change(self) -> tuple[Any, dict[str, Any], float]:
        kind = _part("mister_ed.adversarial_perturbations").ParameterizedXformAdv
        spatial = _part("mister_ed.spatial_transformers").FullSpatial
        return kind, {"use_stadv": True, "xform_class": spatial}, 0.0025 / self.eps


@dataclass(frozen=True, kw_only=True)
class ReColorAdv(_OfMisterEd):
    """Recoloured images: pixels of one colour all become another colour nearby.

    Adam on a grid of 16 x 32 x 32 colours in CIELUV, between which it interpolates, descending the
    margin of the mean logits plus a twentieth of the grid's roughness. Images must be of three
    channels.

    Args:
        norm: ``"color"``.
        eps: furthest that a colour moves, along each axis of CIELUV, each of length 1.
        gradient, eot, steps, restarts: as in
            :class:`~scoreopt_defense.attacks.bounded.BoundedAttack`.
        lr: Adam's, relative to eps: 1/60 comes to the authors' 0.001.

    Reference:
        Laidlaw and Feizi, "Functional adversarial attacks", NeurIPS 2019, and its code for all but
        ``lr``.
    """

    norms: ClassVar[tuple[str, ...]] = ("color",)

    norm: str = "color"
    eps: float = 0.06

    def attack(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        if x.shape[1] != 3:
            raise ValueError(f"ReColorAdv needs three channels, got shape {tuple(x.shape)}")
        return super().attack(model, x, y)

    def _change(self) -> tuple[Any, dict[str, Any], float]:
        grid = {"resolution_x": 16, "resolution_y": 32, "resolution_z": 32}
        colours = _part("color_spaces").CIELUVColorSpace()
        parameters = {"xform_params": grid, "use_smooth_loss": True, "cspace": colours}
        parameters["xform_class"] = _part("color_transformers").FullSpatial
        return _part("perturbations").ReColorAdv, parameters, 0.05


def _part(name: str) -> Any:
    return optional(f"recoloradv.{name}", extra="attacks")
