"""Measurements that a checklist rests on: each a value an image, and no attack.

A measurement is called as an attack is, and leaves the images as they are; what it measures is
recorded beside their figures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoreopt_defense.attacks.foolbox import RandomNoise
from scoreopt_defense.attacks.losses import divisors
from scoreopt_defense.defended import DefendedModel
from scoreopt_defense.diagnostics import input_gradient, optimization_curves
from scoreopt_defense.evaluation.judging.asking import answer
from scoreopt_defense.purifiers import Purifier, ScoreOpt
from scoreopt_defense.purifiers.settings import PER_IMAGE

__all__ = [
    "Bare",
    "Convergence",
    "Gradients",
    "Measurement",
    "check_divisible",
    "check_reachable",
    "gradient_modes",
    "strongest_mode",
    "untried",
]

# The modes by what they found here, strongest first: docs/results/robustness.md.
_STRONGEST = ("smoothed", "exact", "one-shot", "bpda", "as-it-is")


def check_reachable(model: nn.Module) -> None:
    """That a suite can set the modes of the model's purifier.

    Raises:
        ValueError: of one inside another module.
    """
    if not isinstance(model, DefendedModel) and any(
        isinstance(part, Purifier) for part in model.modules()
    ):
        raise ValueError(
            f"the suite cannot set the gradient modes of a purifier inside a "
            f"{type(model).__name__}: pass the DefendedModel itself"
        )


def check_divisible(model: nn.Module) -> None:
    """That some images of a batch are purified as all are.

    Raises:
        ValueError: of a purifier whose noise goes by the place in the batch.
    """
    if isinstance(model, DefendedModel) and model.purifier.deterministic == PER_IMAGE:
        raise ValueError(
            "deterministic='per-image' draws by an image's place in the batch, and a suite attacks "
            "parts of a batch, which it would purify otherwise: take deterministic=True, one draw "
            "for all"
        )


def gradient_modes(model: nn.Module) -> tuple[str, ...]:
    """The modes that differ: without an optimiser to smooth, smoothed is exact."""
    if not isinstance(model, DefendedModel):
        return ("as-it-is",)
    optimizer = getattr(model.purifier.settings, "optimizer", None)
    return tuple(
        mode
        for mode in model.purifier.modes
        if mode != "smoothed" or hasattr(optimizer, "smoothed")
    )


def strongest_mode(model: nn.Module) -> str:
    """Of :func:`gradient_modes` the one that an attack finds most in."""
    modes = gradient_modes(model)
    return next((mode for mode in _STRONGEST if mode in modes), modes[0])


def untried(model: nn.Module) -> dict[str, str]:
    """What no suite can do with a defence, and why."""
    modes = gradient_modes(model)
    if isinstance(model, DefendedModel):
        return {
            mode: f"{type(model.purifier).__name__} has no such gradient"
            for mode in ("bpda", "one-shot", "exact")
            if mode not in modes
        }
    return {
        "gradient modes, transfer, boundary, surrogate and the purifier's descent": (
            f"{type(model).__name__} is one module, in which no purifier is known apart from the "
            "classifier; DefendedModel(classifier, ThirdParty(function)) says both, if the "
            "purification is a function of images"
        )
    }


@dataclass(frozen=True)
class Measurement:
    """Base of measurements: :meth:`measure` says what of each image."""

    def run(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return x

    def measure(self, model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Values by name, each of shape ``(B,)``."""
        raise NotImplementedError

    def as_dict(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True)
class Gradients(Measurement):
    """The input gradient in each mode: is it finite, and of how many pixels is it zero."""

    def measure(self, model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        found = {}
        for mode in gradient_modes(model):
            if isinstance(model, DefendedModel):
                gradient = input_gradient(model.with_gradient(mode), x, y)
            else:
                gradient = _own_gradient(model, x, y)
            flat = gradient.flatten(1)
            found[f"{mode}: zero"] = (flat == 0).float().mean(1)
            found[f"{mode}: finite"] = flat.isfinite().all(1).float()
        return found


def _own_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Zero where the model cuts the graph."""
    leaf = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        logits = model(leaf.clone())
        loss = F.cross_entropy(logits / divisors(logits.detach(), y), y, reduction="sum")
    if not loss.requires_grad:
        return torch.zeros_like(x)
    (found,) = torch.autograd.grad(loss, leaf, allow_unused=True)
    return torch.zeros_like(x) if found is None else found


@dataclass(frozen=True)
class Convergence(Measurement):
    """The loss that the purifier minimises, at its first step and after its last.

    Of images with random noise of an attack's size: a clean one is near the minimum, from which
    steps of a given length, as Adam's first is, lead away. ScoreOpt-N has one draw of noise, and
    its own loss under it is followed from the first step to the last. ScoreOpt-O draws anew each
    step; its image's Diff loss is taken under fixed noise.
    """

    norm: str
    eps: float

    @staticmethod
    def fits(model: nn.Module) -> bool:
        """Whether the model has a purifier that descends."""
        return (
            isinstance(model, DefendedModel)
            and isinstance(model.purifier, ScoreOpt)
            and model.purifier.steps > 1
        )

    def measure(self, model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        assert isinstance(model, DefendedModel)
        assert isinstance(model.purifier, ScoreOpt)
        x = RandomNoise(norm=self.norm, eps=self.eps).run(model, x, y)
        if model.purifier.variant == "O":
            loss = optimization_curves(model.purifier, model.classifier, x, y).loss
            return {"loss before": loss[0], "loss after": loss[-1]}
        steps: list[dict[str, Any]] = []
        model.purifier.replace(max_batch=None)(x, callback=steps.append)
        first = [step["loss"] for step in steps if step["i"] == 0]
        return {"loss before": first[0], "loss after": first[-1]}


@dataclass(frozen=True)
class Bare(Measurement):
    """Whether the classifier alone gets an image right."""

    def measure(self, model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        assert isinstance(model, DefendedModel)
        with torch.no_grad():
            return {"right": (answer(model.classifier, x).argmax(1) == y).float()}
