"""The denoiser of a purifier that has none: it refuses to be called."""

from __future__ import annotations

import math

from torch import Tensor

from scoreopt_defense.denoisers.base import Denoiser

__all__ = ["NoDenoiser"]


class NoDenoiser(Denoiser):
    """No network: nothing is trained, moved, counted or called; a call is an error."""

    def __init__(self) -> None:
        super().__init__(sigma_range=(0.0, math.inf))

    def denoise(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        raise NotImplementedError("this purifier has no denoiser")
