"""Whether a purifier's own optimisation converges, followed step by step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scoreopt_defense._checks import check_labels
from scoreopt_defense._drawing import axes_or_new
from scoreopt_defense.attacks.losses import margin
from scoreopt_defense.noise import Noise
from scoreopt_defense.objectives import denoising_error
from scoreopt_defense.purifiers import ScoreOpt
from scoreopt_defense.sizes import resized

__all__ = ["Curves", "optimization_curves"]


@dataclass(frozen=True)
class Curves:
    """A purifier's optimisation, step by step; step 0 is before the first.

    Attributes:
        loss: Diff loss of the image at each step under one fixed set of noise draws, shape
            ``(outer_steps * steps + 1, B)``: it falls if the optimisation converges.
        distance: l2 distance from the attacked image, images in [-1, 1], same shape.
        lead: logit of the true label less the largest other; negative where misclassified.
    """

    loss: Tensor
    distance: Tensor
    lead: Tensor

    def plot(self, axes: Any = None) -> Any:
        """The three means, each divided by its largest absolute value, against the step."""
        axes = axes_or_new(axes)
        for name in ("loss", "distance", "lead"):
            mean = getattr(self, name).mean(1)
            axes.plot(mean / mean.abs().max(), label=f"{name} (largest {mean.abs().max():.3g})")
        axes.set(xlabel="step", ylabel="mean, relative to its largest")
        axes.legend()
        return axes


@torch.no_grad()
def optimization_curves(
    purifier: ScoreOpt,
    classifier: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    probes: int = 4,
    seed: int = 0,
) -> Curves:
    """Follow ScoreOpt over its steps: the convergence that the paper leaves open.

    The image at a step is the one that would be returned if the purifier stopped there, so for
    ScoreOpt-N the denoised ``x_t``.

    Args:
        purifier: a ScoreOpt.
        classifier: from images in [0, 1] to logits.
        x: images, shape ``(B, C, H, W)``, in [0, 1].
        y: labels, shape ``(B,)``, integers from 0.
        probes: noise draws, within the purifier's noise levels, that the loss is averaged over.
        seed: of the noise.
    """
    y, sides = check_labels(y, len(x)), x.shape[-2:]
    x = resized(x, purifier.size)  # the steps are of that size
    x_a = 2 * x - 1
    probe = Noise.of_batch(seed + 1, len(x), device=x.device)
    steps: list[dict[str, Any]] = []
    alone = purifier.replace(max_batch=None, size=None)
    purified = 2 * alone(x, seed=seed, callback=steps.append) - 1
    kept = {"O": "x", "N": "denoised"}[purifier.variant]
    states = [*(step[kept] for step in steps), purified]

    def loss(image: Tensor) -> Tensor:
        values = []
        for i in range(probes):
            level = probe.level(purifier.sigma, i, image)
            denoised = purifier.denoiser(image + level * probe.eps_1(i, image), level)
            values.append(denoising_error(denoised, image))
        return torch.stack(values).mean(0)

    def lead(image: Tensor) -> Tensor:
        return -margin(classifier(resized(((image + 1) / 2).clamp(0, 1), sides)), y)

    return Curves(
        loss=torch.stack([loss(image) for image in states]),
        distance=torch.stack([(image - x_a).flatten(1).norm(dim=1) for image in states]),
        lead=torch.stack([lead(image) for image in states]),
    )
