"""The gradient of a purification in each mode, and as autograd alone would have it."""

from __future__ import annotations

import torch
from torch import Tensor

from scoreopt_defense import ScoreOpt
from scoreopt_defense.gradients import Exact, Gradient, OneShotGradient, Smoothed
from scoreopt_defense.noise import Noise

__all__ = ["gradient_of", "modes", "naive_gradient"]

_ALL = 1e6  # megabytes: more than any step here records


def modes() -> dict[str, Gradient]:
    """The gradient modes that are timed, by name."""
    return {
        "exact": Exact(),
        "exact, kept": Exact(keep_mb=_ALL),
        "smoothed": Smoothed(),
        "smoothed, kept": Smoothed(keep_mb=_ALL),
        "one-shot": OneShotGradient(),
    }


def gradient_of(purifier: ScoreOpt, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(purifier(leaf, seed=0).square().sum(), leaf)[0]


def naive_gradient(purifier: ScoreOpt, x: Tensor) -> Tensor:
    """The same, every step recorded whole by autograd."""
    leaf = x.clone().requires_grad_()
    purified = purifier.purify(2 * leaf - 1, Noise.of_batch(0, len(x)))
    purified = (purified.clamp(-1, 1) + 1) / 2
    return torch.autograd.grad(purified.square().sum(), leaf)[0]
