"""The noise of one call: each number a function of seed, repetition, image, step and use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from scoreopt_defense.noise.bits import threefry
from scoreopt_defense.noise.normal import normal_pair

__all__ = ["Noise"]

_ALL_IMAGES = 2**32 - 1  # stands in for an image's place where one value serves a whole batch
_LEVEL, _EPS_1, _EPS_2 = 0, 1, 2  # what the numbers of a step are used for
_AT_ONCE, _MOST_AT_ONCE = 2**14, 8  # numbers, as of five images of 32 x 32; and steps
_BITS = 16
_MOST = 2**_BITS  # steps, and uses in a step: together they are one 32-bit counter


@dataclass(frozen=True, eq=False)
class Noise:
    """Every random number of one call, as a pure function of where it is used.

    A value depends on the seed, the repetition, the image's place in the batch and the step, and on
    nothing else: not on the chunk an image is in, not on the device, not on how often or in which
    order it is asked for. So chunks give the whole batch's result, and a backward pass sees the
    forward pass's noise again without storing it. Its bits are the same wherever operations are
    rounded as IEEE 754 has it; but for compiled code, whose compiler may contract a multiplication
    and an addition (2e-6 then), and on Apple's MPS, which has no float64.

    Args:
        images: key of each row's own numbers, two int32 tensors of shape ``(B,)``.
        batches: key of the noise levels, likewise: one that all images of a repetition share, or
            each row's own.

    Reference:
        Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011; Box and Muller, 1958.
    """

    images: tuple[Tensor, Tensor]
    batches: tuple[Tensor, Tensor]
    _ahead: dict[int, tuple[Any, Tensor]] = field(default_factory=dict, repr=False)

    @classmethod
    def of_batch(
        cls,
        seed: int,
        images: int,
        samples: int = 1,
        *,
        shared: bool = False,
        apart: bool = False,
        device: torch.device | str = "cpu",
    ) -> Noise:
        """Noise of ``samples`` copies of a batch, one after the other.

        Args:
            seed: of the call, 0 to 2**64 - 1.
            images: in the batch, B.
            samples: independent repetitions of it.
            shared: all images of a repetition see the same values.
            apart: each image has noise levels of its own.
            device: on which the numbers are made.
        """
        rows = torch.arange(samples * images, dtype=torch.int32, device=device)
        repetition = rows // max(images, 1)
        place = rows - repetition * images
        key = _constant(seed >> 32, rows), _constant(seed, rows)
        each = threefry(*key, torch.zeros_like(place) if shared else place, repetition)
        every = each if apart else threefry(*key, _constant(_ALL_IMAGES, rows), repetition)
        return cls(images=each, batches=every)

    def __getitem__(self, rows: slice) -> Noise:
        """The noise of some of the rows."""
        (a, b), (c, d) = self.images, self.batches
        return Noise((a[rows], b[rows]), (c[rows], d[rows]))

    def seed(self) -> int:
        """For what draws its own noise of all images at once: their first one's key, 64 bits."""
        a, b = (int(key[0]) & 0xFFFFFFFF for key in self.images)
        return a << 32 | b

    def level(self, sigma: tuple[float, float], i: int, like: Tensor) -> Tensor:
        """Noise level of step ``i``, uniform in a range; a repetition may share it.

        Args:
            sigma: lowest and highest.
            i: the step.
            like: gives dtype and batch size, ``(B, C, H, W)``.

        Returns:
            Shape ``(B, 1, 1, 1)``.
        """
        low, high = sigma
        if low == high:
            return like.new_full((len(like), 1, 1, 1), low)
        one = like[:, :1, :1, :1]
        share = self._step(i, _LEVEL, one, lambda steps: self._shares(steps, one))
        return low + (high - low) * share

    def eps_1(self, i: int, like: Tensor) -> Tensor:
        r"""Step i's noise :math:`\epsilon_1`; see :meth:`eps_2`."""
        return self._normal(i, _EPS_1, like)

    def eps_2(self, i: int, j: int, like: Tensor) -> Tensor:
        r"""Noise :math:`\epsilon_2` of inner step j of step i: standard normal, as ``like``.

        Made in float32, so that float64 images see the same noise.
        """
        return self._normal(i, _EPS_2 + j, like)

    def _normal(self, i: int, use: int, like: Tensor) -> Tensor:
        return self._step(i, use, like, lambda steps: self._normals(steps, use, like))

    def _step(self, i: int, use: int, like: Tensor, make: Callable[[range], Tensor]) -> Tensor:
        """Step i's numbers; a small batch's are made for several steps at once.

        One by one, most of their time would be overhead. A use's last such block is kept: a step
        that is past is asked for no more.
        """
        if not (0 <= i < _MOST and 0 <= use < _MOST):
            raise ValueError(f"noise has {_MOST - _EPS_2} steps at most, got step {i}, {use}")
        at_once = min(_MOST_AT_ONCE, max(1, _AT_ONCE // max(1, like.numel())))
        if at_once == 1 or torch.compiler.is_compiling():
            return make(range(i, i + 1))[0]
        block = i // at_once
        key = block, like.shape, like.dtype, like.device
        kept, made = self._ahead.get(use, (None, None))
        if made is None or kept != key:
            made = make(range(block * at_once, min((block + 1) * at_once, _MOST)))
            self._ahead[use] = key, made
        return made[i % at_once].clone()

    def _shares(self, steps: range, like: Tensor) -> Tensor:
        """Uniform in [0, 1), shape ``(steps, B, 1, 1, 1)``, as ``like``'s."""
        counters = _counters(steps, _LEVEL, like.device)[:, None]
        bits, _ = threefry(*self.batches, torch.zeros_like(counters), counters)
        shares = ((bits >> 8) & 0xFFFFFF).to(like.dtype) * 2.0**-24
        return shares.reshape(len(steps), *like.shape)

    def _normals(self, steps: range, use: int, like: Tensor) -> Tensor:
        """Those of several steps, shape ``(steps, B, C, H, W)``."""
        size = like[0].numel() if len(like) else 0
        pairs = torch.arange((size + 1) // 2, dtype=torch.int32, device=like.device)
        key_0, key_1 = (part[:, None] for part in self.images)
        counters = _counters(steps, use, like.device)[:, None, None]
        bits = threefry(key_0, key_1, pairs, counters)
        values = torch.cat(normal_pair(*bits), dim=2)
        return values[..., :size].reshape(len(steps), *like.shape).to(like.dtype)


def _counters(steps: range, use: int, device: torch.device) -> Tensor:
    """A use's counter in each step, int32: the 32 bits that steps and uses share."""
    places = torch.arange(steps.start, steps.stop, dtype=torch.int32, device=device)
    return (places << _BITS) + use


def _constant(value: int, like: Any) -> Tensor:
    """The lowest 32 bits of ``value``, shaped as ``like``: filled in there, not copied over."""
    low = value & 0xFFFFFFFF
    return torch.full_like(like, low - 2**32 if low >= 2**31 else low)
