"""Bit-depth reduction: a purifier that keeps fewer bits of each pixel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from scoreopt_defense._checks import check_count
from scoreopt_defense.gradients import Runner, as_it_is
from scoreopt_defense.noise import Noise
from scoreopt_defense.purifiers.settings import PurifierSettings
from scoreopt_defense.purifiers.without_network import WithoutNetwork, WithoutNetworkSettings

__all__ = ["BitDepth", "BitDepthSettings"]


@dataclass(frozen=True, kw_only=True)
class BitDepthSettings(WithoutNetworkSettings):
    """Settings of :class:`BitDepth`."""

    bits: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("bits", check_count("bits", self.bits, most=16))


class BitDepth(WithoutNetwork):
    r"""Round pixels to fewer levels: a defence that white-box attacks undo.

    .. math:: \hat x = \frac{\mathrm{round}(x (2^b - 1))}{2^b - 1}, \qquad x \in [0, 1]

    No randomness: votes and seeds change nothing.

    Args:
        bits: b, 1 to 16.
        gradient, deterministic, max_batch, autocast, channels_last, size, seed: as in
            :class:`~scoreopt_defense.purifiers.PurifierSettings`; the gradient is ``"bpda"``.

    Reference:
        Xu et al., "Feature squeezing", NDSS 2018; ART's ``FeatureSqueezing``.
    """

    Settings: ClassVar[type[PurifierSettings]] = BitDepthSettings
    differentiable: ClassVar[bool] = False

    settings: BitDepthSettings

    def purify(self, x_a: Tensor, noise: Noise, run: Runner = as_it_is) -> Tensor:
        highest = 2**self.settings.bits - 1
        return 2 * ((x_a.detach() + 1) / 2 * highest).round() / highest - 1
