"""JPEG compression as a purifier, by Pillow."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from scoreopt_defense._checks import check_count
from scoreopt_defense._optional import optional
from scoreopt_defense.gradients import Runner, as_it_is
from scoreopt_defense.noise import Noise
from scoreopt_defense.purifiers.settings import PurifierSettings
from scoreopt_defense.purifiers.without_network import WithoutNetwork, WithoutNetworkSettings

__all__ = ["JPEG", "JPEGSettings"]


@dataclass(frozen=True, kw_only=True)
class JPEGSettings(WithoutNetworkSettings):
    """Settings of :class:`JPEG`."""

    quality: int = 75

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("quality", check_count("quality", self.quality, most=100))


class JPEG(WithoutNetwork):
    """Compress the image and decompress it: a defence that white-box attacks undo.

    Rounds to 8 bits first; three channels are compressed as colours, any others one by one. No
    randomness: votes and seeds change nothing. On the CPU, an image at a time.

    Args:
        quality: 1 to 100, of Pillow's encoder.
        gradient, deterministic, max_batch, autocast, channels_last, size, seed: as in
            :class:`~scoreopt_defense.purifiers.PurifierSettings`; the gradient is ``"bpda"``.

    Raises:
        ImportError: from a call, if Pillow is missing.

    Reference:
        Dziugaite et al., 2016, arXiv:1608.00853; ART's ``JpegCompression``.
    """

    Settings: ClassVar[type[PurifierSettings]] = JPEGSettings
    differentiable: ClassVar[bool] = False

    settings: JPEGSettings

    def purify(self, x_a: Tensor, noise: Noise, run: Runner = as_it_is) -> Tensor:
        pillow = optional("PIL.Image", extra="data")
        levels = ((x_a.detach().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()
        planes = levels if levels.shape[1] == 3 else levels.flatten(0, 1)[:, None]
        compressed = np.stack([self._compressed(pillow, image) for image in planes.numpy()])
        return torch.from_numpy(compressed).reshape(x_a.shape).to(x_a) / 127.5 - 1

    def _compressed(self, pillow: Any, image: np.ndarray) -> np.ndarray:
        """Of levels of shape ``(C, H, W)``, C 1 or 3."""
        file, colours = BytesIO(), len(image) == 3
        pixels = image.transpose(1, 2, 0) if colours else image[0]
        pillow.fromarray(pixels).save(file, format="jpeg", quality=self.settings.quality)
        with pillow.open(file) as opened:
            found = np.array(opened)
        return found.transpose(2, 0, 1) if colours else found[None]
