"""The ImageNet networks of Tables 9 and 13 with random weights, the same in every process.

What a run of such a table takes needs no download:

    python -m benchmarks.paper.run table13 IMAGES --scale paper --random-weights --images 200

A processor takes an hour an image for the diffusion network. What is left of a run without it, such
as its memory and its record, is seen with a small one of three layers in its place, by
``python -m benchmarks.speed.imagenet_files``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from scoreopt_defense._optional import optional
from scoreopt_defense.denoisers import EDMDenoiser
from scoreopt_defense.denoisers.deepinv import DiffUNetDenoiser
from scoreopt_defense.normalization import normalized

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def named(name: str) -> str:
    """What a configuration calls the network of random weights in place of a published one.

    A user's own stays.

    Raises:
        ValueError: if there is none.
    """
    if name.startswith("python:"):
        return name
    if name not in _NAMES:
        raise ValueError(f"there are random weights of {list(_NAMES)}, not of {name!r}")
    return f"python:{__name__}:{_NAMES[name]}"


def resnet50() -> nn.Module:
    return _classifier("resnet50")


def resnet152() -> nn.Module:
    return _classifier("resnet152")


def wide_resnet50_2() -> nn.Module:
    return _classifier("wide_resnet50_2")


def guided_diffusion() -> DiffUNetDenoiser:
    models: Any = optional("deepinv.models", extra="deepinv")
    return DiffUNetDenoiser(_drawn(lambda: models.DiffUNet(large_model=True, pretrained=None)))


class _Small(nn.Module):
    img_channels = 3

    def __init__(self) -> None:
        super().__init__()
        first, wide, last = (nn.Conv2d(a, b, 3, padding=1) for a, b in ((3, 8), (8, 8), (8, 3)))
        self.layers = nn.Sequential(first, nn.SiLU(), wide, nn.SiLU(), last)

    def forward(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        sigma = sigma.reshape(-1, 1, 1, 1)
        return (x_t + sigma * self.layers(x_t)) / (1 + sigma**2)


def small_denoiser() -> EDMDenoiser:
    return EDMDenoiser(_drawn(_Small))


_NAMES = {
    "timm:resnet50.tv_in1k": "resnet50",
    "timm:resnet152.tv_in1k": "resnet152",
    "timm:wide_resnet50_2.tv_in1k": "wide_resnet50_2",
    "guided-diffusion-imagenet-256-uncond": "guided_diffusion",
}


def _classifier(name: str) -> nn.Module:
    models: Any = optional("torchvision.models", extra="data")
    return normalized(_drawn(lambda: models.get_model(name)), _MEAN, _STD).eval()


def _drawn(build: Callable[[], nn.Module]) -> nn.Module:
    """Layers that begin at zero, as the last of a diffusion network, are drawn too."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        net = build()
        for weights in net.parameters():
            if weights.ndim > 1 and not weights.any():
                weights.normal_(std=0.02)
    return net.eval().requires_grad_(False)
