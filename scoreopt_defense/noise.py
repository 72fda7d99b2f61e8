"""The one place where randomness is drawn."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

__all__ = ["Draw", "Noise"]

_ALL_IMAGES = 2**64 - 1  # stands in for an image index where one value serves a whole batch


@dataclass(frozen=True)
class Noise:
    """Every random number of one call, as a pure function of where it is used.

    A value depends on the seed, the repetition, the image's place in the batch and the step, and on
    nothing else: not on the chunk an image is in, not on the device, not on how often or in which
    order it is asked for. So chunks give the whole batch's result, and a backward pass sees the
    forward pass's noise again without storing it. Counter-based generation (Philox) makes it so.

    Args:
        seed: of the call, 0 to 2**64 - 1.
        sigma: lowest and highest noise level.
        rows: for each row of the batch, its repetition and its image's place.

    Reference:
        Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """

    seed: int
    sigma: tuple[float, float]
    rows: tuple[tuple[int, int], ...]

    @classmethod
    def of_batch(
        cls, seed: int, sigma: tuple[float, float], images: int, repeats: int, *, shared: bool
    ) -> Noise:
        """Noise of ``repeats`` copies of a batch, one after the other.

        With ``shared``, all images of a repetition see the same values.
        """
        places = [0] * images if shared else range(images)
        return cls(seed, sigma, tuple((r, place) for r in range(repeats) for place in places))

    def __getitem__(self, chunk: slice) -> Noise:
        return replace(self, rows=self.rows[chunk])

    def at(self, i: int) -> Draw:
        """What outer step ``i`` of an algorithm draws."""
        return Draw(self, i)


@dataclass(frozen=True)
class Draw:
    """The noise level and the noise of outer step ``i``."""

    noise: Noise
    i: int

    @property
    def sigma(self) -> Tensor:
        """Noise level of each row, shape (B, 1, 1, 1), float64 on the CPU.

        Uniform in the range; one draw for all images of a repetition, as in Algorithms 1 and 2.
        """
        low, high = self.noise.sigma
        levels = {
            r: low if low == high else self._generator(r, _ALL_IMAGES, 0).uniform(low, high)
            for r in {r for r, _ in self.noise.rows}
        }
        per_row = [levels[r] for r, _ in self.noise.rows]
        return torch.tensor(per_row, dtype=torch.float64).reshape(-1, 1, 1, 1)

    def eps_1(self, like: Tensor) -> Tensor:
        r"""The outer step's noise :math:`\epsilon_1`; see :meth:`eps_2`."""
        return self._normal(1, like)

    def eps_2(self, j: int, like: Tensor) -> Tensor:
        r"""Inner step j's noise :math:`\epsilon_2`: standard normal, of the kind of ``like``.

        Drawn in float32, so that float64 images see the same noise.
        """
        return self._normal(2 + j, like)

    def _normal(self, use: int, like: Tensor) -> Tensor:
        values = np.empty(like.shape, dtype=np.float32)
        for value, (r, image) in zip(values, self.noise.rows, strict=True):
            self._generator(r, image, use).standard_normal(dtype=np.float32, out=value)
        return torch.from_numpy(values).to(like)

    def _generator(self, repetition: int, image: int, use: int) -> np.random.Generator:
        key = np.array([self.noise.seed, image], dtype=np.uint64)
        counter = np.array([0, self.i, use, repetition], dtype=np.uint64)
        return np.random.Generator(np.random.Philox(key=key, counter=counter))
