"""The normalisation that published classifiers want, put inside, so that images are in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from scoreopt_defense.defended import DefendedModel
from scoreopt_defense.sizes import Fitted

__all__ = ["Normalized", "normalized", "wanted"]

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # of torchvision's weights
_CLASSES = 1000  # ImageNet's: another number is a head of the user's own


class Normalized(nn.Module):
    """What :func:`normalized` makes."""

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, mean: Any, std: Any) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32).reshape(-1, 1, 1))
        self.register_buffer("std", torch.as_tensor(std, dtype=torch.float32).reshape(-1, 1, 1))
        if not ((self.mean >= 0) & (self.mean <= 1)).all() or not (self.std > 0).all():
            raise ValueError(
                "mean must be within 0 and 1 and std above 0, of images in [0, 1], got "
                f"{mean!r} and {std!r}; divide those of 255 levels by 255"
            )
        self.training = getattr(net, "training", False)

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x - self.mean.to(x)) / self.std.to(x))


def normalized(
    net: nn.Module, mean: float | Sequence[float] | Tensor, std: float | Sequence[float] | Tensor
) -> nn.Module:
    r"""A network that wants normalised images, for images in [0, 1]: ``net((x - mean) / std)``.

    Args:
        net: from normalised images, shape ``(B, C, H, W)``, to logits.
        mean, std: one number for all channels, or one a channel, of images in [0, 1].

    Raises:
        ValueError: if they are of another scale.

    Example:
        >>> normalized(nn.Flatten(), 0.5, 0.25)(torch.tensor([[[[0.25, 1.0]]]]))
        tensor([[-1.,  2.]])
    """
    return Normalized(net, mean, std)


def wanted(model: nn.Module, classes: int) -> tuple[Any, Any] | None:
    """The mean and std that a model's published weights want, if nothing gives it them.

    Known of a network of timm or torchvision that is itself handed the images, without a hook, and
    has as many classes as those weights: one with a head of its own may have been trained on
    anything.

    Args:
        model: from images in [0, 1] to logits, behind a purifier and a change of size or not.
        classes: how many logits it answers with.
    """
    while isinstance(model, (DefendedModel, Fitted)):
        model = model.classifier if isinstance(model, DefendedModel) else model.net
    library = type(model).__module__.partition(".")[0]
    if library not in ("timm", "torchvision") or model._forward_pre_hooks:
        return None
    config = getattr(model, "pretrained_cfg", None)
    if config is None:
        return _IMAGENET if (library, classes) == ("torchvision", _CLASSES) else None
    mean, std = config.get("mean"), config.get("std")
    if not mean or not std or classes != config.get("num_classes"):
        return None
    return None if set(mean) == {0} and set(std) == {1} else (mean, std)
