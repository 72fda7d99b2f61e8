"""Random bits: a counter-based generator, whose every number is a function of its place."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["threefry"]

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


def threefry(
    key_0: Tensor, key_1: Tensor, count_0: Tensor, count_1: Tensor
) -> tuple[Tensor, Tensor]:
    """Threefry-2x32 of 20 rounds: 64 random bits of a key and a counter.

    Args:
        key_0, key_1: int32, any shapes that broadcast.
        count_0, count_1: likewise.

    Returns:
        Two int32 tensors of the broadcast shape.

    Reference:
        Salmon et al., SC 2011; jax.random has the same generator.
    """
    keys = key_0, key_1, key_0 ^ key_1 ^ _PARITY
    a, b = torch.broadcast_tensors(count_0 + keys[0], count_1 + keys[1])
    a, b = a.clone(), b.clone()  # from here on in place: half the time of new tensors
    for block in range(5):
        for bits in _ROTATIONS[block % 2]:
            a += b
            # int32 shifts to the right drag the sign along: keep the bits that came round
            rest = (b >> (32 - bits)).bitwise_and_((1 << bits) - 1)
            b <<= bits
            b |= rest
            b ^= a
        a += keys[(block + 1) % 3]
        b += keys[(block + 2) % 3] + (block + 1)
    return a, b
