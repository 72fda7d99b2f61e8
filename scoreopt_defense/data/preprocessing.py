"""Image files of any size made to fit a network, as its authors did it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scoreopt_defense._checks import check_choice, check_count
from scoreopt_defense._optional import optional
from scoreopt_defense._pixels import as_colours

__all__ = ["Preprocessing", "in_unit"]


@dataclass(frozen=True)
class Preprocessing:
    """What a classifier's authors did with its images; the normalisation is left to the classifier.

    Args:
        resize: the shorter side, in pixels; None leaves the size.
        crop: the sides of the square that is cut out of the middle; None leaves all of it.
        interpolation: of the resizing: ``"bilinear"`` or ``"bicubic"``, both without aliasing.

    Raises:
        ValueError: naming what is out of range.
    """

    resize: int | None = None
    crop: int | None = None
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        for name in ("resize", "crop"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        check_choice("interpolation", self.interpolation, ("bilinear", "bicubic"))

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of what comes out of so much.

        Raises:
            ValueError: of less than what is to be cut out of it.
        """
        sides = (height, width) if self.resize is None else self._resized(height, width)
        if self.crop is None:
            return sides
        if min(sides) < self.crop:
            raise ValueError(f"crop must be at most its {sides[0]} x {sides[1]} pixels")
        return self.crop, self.crop

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        assert self.resize is not None
        short = min(height, width)
        return int(self.resize * height / short), int(self.resize * width / short)

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 pixels, shape ``(H, W)`` or ``(H, W, C)``, as torchvision does it on PIL images.

        Raises:
            ValueError: as :meth:`size`.
        """
        self.size(*pixels.shape[:2])
        if self.resize is not None:
            pillow = optional("PIL.Image", extra="data")
            height, width = self._resized(*pixels.shape[:2])
            kind = pillow.Resampling[self.interpolation.upper()]
            flat = pixels.squeeze(2) if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
            pixels = np.asarray(pillow.fromarray(flat).resize((width, height), kind))
        if self.crop is not None:
            top, left = (round((side - self.crop) / 2) for side in pixels.shape[:2])
            pixels = pixels[top : top + self.crop, left : left + self.crop]
        return pixels


def in_unit(pixels: Sequence[np.ndarray]) -> Tensor:
    """float32 images in [0, 1], shape ``(n, C, H, W)``, from uint8 pixels of one size.

    Grey ones among coloured ones become coloured.
    """
    if any(image.ndim == 3 for image in pixels):
        pixels = [as_colours(image) for image in pixels]
    stacked = np.stack(pixels)
    stacked = stacked if stacked.ndim == 4 else stacked[..., None]
    return torch.from_numpy(np.ascontiguousarray(stacked.transpose(0, 3, 1, 2))).float() / 255
