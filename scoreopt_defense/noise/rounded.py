"""Rounded normal numbers, drawn in integers, which a proof may rest on where floats will not do."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from scoreopt_defense._optional import optional
from scoreopt_defense.noise.bits import threefry

__all__ = ["RoundedNormal"]

_BITS = 62  # of a uniform number; a 63rd is the sign
_FARTHEST = 9.1  # standard deviations, of which P(|eps| > 9.1) < 2^-62
# Of P(|K| >= k), relatively: ndtr itself, and that of its argument, whose square is at most 83, in
# units of 2^-53.
_ERROR = 1e-14


class RoundedNormal:
    r"""Whole numbers :math:`K = \lfloor s \epsilon + 1/2 \rfloor` of normal :math:`\epsilon`.

    The distribution function is inverted in integers: |K| is how many of the thresholds
    :math:`2^{62} P(|K| \ge k)` are above 62 random bits. To sum K and an integer is exact, as it is
    not of floats, whose rounding tells what was summed (Voráček and Hein, ICLR 2023).

    Args:
        scale: s, the standard deviation before it is rounded.

    Attributes:
        error: total variation distance, at most, of a number from K's distribution, if the bits
            are as good as fair coins.
    """

    def __init__(self, scale: float) -> None:
        k = torch.arange(1, math.ceil(_FARTHEST * scale) + 2, dtype=torch.float64)
        tails: Any = 2 * optional("scipy.special", extra="evaluate").ndtr((0.5 - k.numpy()) / scale)
        thresholds = torch.from_numpy(tails * 2.0**_BITS).long().flip(0)
        self.thresholds = thresholds[thresholds > 0]  # rising, as they are looked up
        self.error = len(self.thresholds) * 2.0**-_BITS + scale * _ERROR

    def draw(self, key: tuple[Tensor, Tensor], draws: range, size: int) -> Tensor:
        """Numbers that are functions of key, draw and place.

        Args:
            key: of each row, two int32 tensors of shape ``(B,)``; see
                :class:`~scoreopt_defense.noise.Noise`.
            draws: which ones, below 2**31.
            size: numbers of each.

        Returns:
            int64, shape ``(len(draws), B, size)``.
        """
        device = key[0].device
        place = torch.arange(size, dtype=torch.int32, device=device)
        draw = torch.arange(draws.start, draws.stop, dtype=torch.int32, device=device)
        high, low = threefry(key[0][:, None], key[1][:, None], place, draw[:, None, None])
        bits = (high.long() & (2 ** (_BITS - 32) - 1)) << 32 | (low.long() & 0xFFFFFFFF)
        thresholds = self.thresholds.to(device)
        sizes = len(thresholds) - torch.searchsorted(thresholds, bits, right=True)
        return torch.where(high < 0, -sizes, sizes)
