"""JPEG compression, by ART."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from scoreopt_defense._checks import check_count
from scoreopt_defense._optional import optional
from scoreopt_defense.gradients import Runner, as_it_is
from scoreopt_defense.noise import Noise
from scoreopt_defense.purifiers.base import PurifierSettings
from scoreopt_defense.purifiers.without_network import WithoutNetwork, WithoutNetworkSettings

__all__ = ["JPEG", "JPEGSettings"]


@dataclass(frozen=True, kw_only=True)
class JPEGSettings(WithoutNetworkSettings):
    """Settings of :class:`JPEG`."""

    quality: int = 75

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("quality", check_count("quality", self.quality))
        if self.quality > 100:
            raise ValueError(f"quality must be a whole number from 1 to 100, got {self.quality}")


class JPEG(WithoutNetwork):
    """Compress the image and decompress it: a defence that white-box attacks undo.

    Rounds to 8 bits first. No randomness: votes and seeds change nothing. On the CPU, an image at a
    time.

    Args:
        quality: 1 to 100, of PIL's encoder.
        gradient, deterministic, max_batch, autocast, channels_last, seed: as in
            :class:`~scoreopt_defense.purifiers.base.PurifierSettings`; the gradient is ``"bpda"``.

    Raises:
        ImportError: from a call, if ART is missing.

    Reference:
        Dziugaite et al., 2016, arXiv:1608.00853; ART's ``JpegCompression``.
    """

    Settings: ClassVar[type[PurifierSettings]] = JPEGSettings
    differentiable: ClassVar[bool] = False

    settings: JPEGSettings

    def purify(self, x_a: Tensor, noise: Noise, run: Runner = as_it_is) -> Tensor:
        art = optional("art.defences.preprocessor", extra="art")
        # levels instead of [0, 1]: ART cuts those off to whole numbers, which rounding may undercut
        levels = ((x_a.detach().clamp(-1, 1) + 1) * 127.5).round()
        compress = art.JpegCompression((0, 255), self.settings.quality, channels_first=True)
        compressed, _ = compress(levels.cpu().numpy())
        return torch.from_numpy(compressed).to(x_a) / 127.5 - 1
