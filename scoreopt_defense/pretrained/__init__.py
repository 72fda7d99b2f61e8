"""Small networks that ship with the package, by name. These names never touch the network."""

from __future__ import annotations

import hashlib
import json
from importlib import resources
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from scoreopt_defense._checks import check_choice
from scoreopt_defense.denoisers import Denoiser, EDMDenoiser
from scoreopt_defense.pretrained.networks import TinyResNet, TinyUNet

__all__ = ["card", "classifier", "denoiser", "names"]

# SHA-256 of each weight file: a truncated or altered one must not pass for a model.
_CHECKSUMS = {
    (
        "denoiser",
        "cifar10-tiny",
    ): "c84e0c11a5e4a5c3340365c8b6e161ba36369d61167db76c9370bae1dcae009b",
    (
        "classifier",
        "mnist-tiny",
    ): "a634cfe3e61b22aa0b0a2f5b250109793d63f53047de9817ef2002d3a3ef2601",
    ("denoiser", "mnist-tiny"): "a374ee5d2a24a4b35dc5c778534db43aa6ccfcec813ed1778d9b66cf2d5b5516",
}


def names(kind: str) -> list[str]:
    """The names that :func:`denoiser` (``"denoiser"``) or :func:`classifier` knows."""
    check_choice("kind", kind, ("classifier", "denoiser"))
    return sorted(name for known, name in _CHECKSUMS if known == kind)


def denoiser(name: str) -> Denoiser:
    """A denoiser that ships with the package, on the CPU, in float32 and eval mode.

    Args:
        name: one of ``names("denoiser")``; an unknown name lists them.

    Raises:
        ValueError: if the name is unknown or the installed weight file is damaged.

    Example:
        >>> denoiser("mnist-tiny").sigma_range
        (0.1, 2.0)
    """
    weights, about = _load("denoiser", name)
    net = _restore(TinyUNet(**about["config"]), weights)
    return EDMDenoiser(net, sigma_range=tuple(about["sigma_range"]))


def classifier(name: str) -> nn.Module:
    """A classifier of images in [0, 1] that ships with the package, in float32 and eval mode.

    Args:
        name: one of ``names("classifier")``; an unknown name lists them.

    Raises:
        ValueError: if the name is unknown or the installed weight file is damaged.

    Example:
        >>> classifier("mnist-tiny")(torch.rand(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """
    weights, about = _load("classifier", name)
    return _restore(TinyResNet(**about["config"]), weights)


def card(name: str) -> str:
    """The model card of that name's denoiser and classifier, as Markdown."""
    check_choice("name", name, sorted({known for _, known in _CHECKSUMS}))
    return resources.files(__name__).joinpath(f"cards/{name}.md").read_text()


def _load(kind: str, name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    check_choice(kind, name, names(kind))
    resource = resources.files(__name__).joinpath(f"weights/{name}-{kind}.safetensors")
    blob = resource.read_bytes()
    if hashlib.sha256(blob).hexdigest() != _CHECKSUMS[kind, name]:
        raise ValueError(
            f"the weights of {kind} {name!r} are truncated or altered ({resource}): reinstall "
            "scoreopt-defense"
        )
    header = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
    return safetensors.torch.load(blob), json.loads(header["__metadata__"]["card"])


def _restore(net: nn.Module, weights: dict[str, torch.Tensor]) -> nn.Module:
    net.load_state_dict({name: value.float() if value.is_floating_point() else value
                         for name, value in weights.items()})  # fmt: skip
    return net.eval().requires_grad_(False).to(memory_format=torch.channels_last)
