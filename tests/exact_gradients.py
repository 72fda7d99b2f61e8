"""Settings whose gradient is compared, and the routes to it: autograd's and the library's own."""

from __future__ import annotations

import itertools

import torch
from tolerances import rounding
from torch import Tensor
from toys import bent, mid_images

from scoreopt_defense import ScoreOpt
from scoreopt_defense.noise import Noise
from scoreopt_defense.purifiers import Purifier

SETTINGS = [
    {"variant": variant, "loss": loss, "optimizer": optimizer, "sigma": sigma}
    for variant, loss, optimizer, sigma in itertools.product(
        "ON", ("diff", "mse", "sr", "noise"), ("adam", "sgd"), (0.3, (0.2, 0.4))
    )
]


OUTER = [
    {"variant": "N", "loss": "sr", "optimizer": "adam", "sigma": (0.2, 0.4), "outer_steps": 3},
    {"variant": "N", "loss": "noise", "optimizer": "sgd", "sigma": 0.3, "outer_steps": 2},
    {"variant": "N", "loss": "sr", "optimizer": "adam", "sigma": 0.3, "anchor": "fixed"},
]


def purifier_of(settings: dict, *, dtype: torch.dtype = torch.float64, steps: int = 4) -> ScoreOpt:
    return ScoreOpt(bent(dtype), steps=steps, lr=0.02, gradient="exact", **settings)


def naive(purifier: Purifier, x: Tensor, seed: int) -> Tensor:
    """The purifier with every step recorded whole by autograd."""
    noise = Noise.of_batch(seed, len(x), **purifier.settings.drawn)
    return ((purifier.purify(2 * x - 1, noise) + 1) / 2).clamp(0, 1)


def gradient_of(purified: Tensor, x: Tensor) -> Tensor:
    weight = torch.linspace(-1, 1, purified.numel(), dtype=x.dtype).reshape(purified.shape)
    return torch.autograd.grad((weight * purified).sum() + purified.square().sum(), x)[0]


def assert_same_gradient(found: Tensor, expected: Tensor) -> None:
    """Up to 12 Adam steps of 64 roundings; the smallest of 768 gradients counts (tolerances.py)."""
    tolerance = rounding(torch.float64, 64 * 12, 768 * expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def label_of(settings: dict) -> str:
    return "-".join(str(value) for value in settings.values())


def found(purifier: Purifier, gradient: object) -> Tensor:
    x = mid_images().requires_grad_()
    return gradient_of(purifier.with_gradient(gradient)(x, seed=1), x)
