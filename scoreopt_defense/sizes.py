"""Networks of another size than the images that an attack moves."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import interpolate

from scoreopt_defense._checks import check_count

__all__ = ["Fitted", "resized"]


def resized(x: Tensor, size: int | Sequence[int] | None) -> Tensor:
    """Images of this height and width, shape ``(B, C, *size)``, by linear interpolation.

    Without antialiasing, as DiffPure's code resizes for its ImageNet network. Every pixel is a
    weighted mean of some: none leaves the range of the others.

    Args:
        x: shape ``(B, C, H, W)``.
        size: (height, width), or one number for both; None leaves the size.
    """
    if size is None:
        return x
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if sides == tuple(x.shape[-2:]):
        return x
    return interpolate(x, size=sides, mode="bilinear", align_corners=False)


class Fitted(nn.Module):
    """A network for images of another size than its own, which are made to fit first.

    A classifier of 224 pixels behind a purifier of 256, as ImageNet's published ones are, is
    ``DefendedModel(Fitted(classifier, crop=224), purifier)``, for images of 256: there the attack
    moves. For an attack on images of 224, set the purifier's ``size`` in place of this.

    Args:
        net: from images to logits; its train or eval mode is this module's too.
        resize: both sides, in pixels, that images are resized to; see :func:`resized`.
        crop: the sides of the square that is then cut out of the middle.

    Raises:
        ValueError: if a side is no whole number from 1; from a call, if images are smaller than
            the crop.

    Example:
        >>> import torch
        >>> Fitted(torch.nn.Flatten(), crop=2)(torch.arange(16.0).reshape(1, 1, 4, 4))
        tensor([[ 5.,  6.,  9., 10.]])
    """

    def __init__(
        self, net: nn.Module, *, resize: int | None = None, crop: int | None = None
    ) -> None:
        super().__init__()
        self.net = net
        self.resize = None if resize is None else check_count("resize", resize)
        self.crop = None if crop is None else check_count("crop", crop)
        self.training = getattr(net, "training", False)

    def forward(self, x: Tensor) -> Tensor:
        """What the network gives of images of shape ``(B, C, H, W)``."""
        x = resized(x, self.resize)
        if self.crop is not None:
            height, width = x.shape[-2:]
            if min(height, width) < self.crop:
                raise ValueError(f"crop must be at most {height} x {width} pixels, got {self.crop}")
            top, left = (round((side - self.crop) / 2) for side in (height, width))
            x = x[..., top : top + self.crop, left : left + self.crop]
        return self.net(x)

    def extra_repr(self) -> str:
        return f"resize={self.resize}, crop={self.crop}"
