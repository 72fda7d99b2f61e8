"""The denoiser of Gaussian images, in closed form."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoreopt_defense.denoisers.base import Denoiser

__all__ = ["GaussianDenoiser"]


class GaussianDenoiser(Denoiser):
    r"""Exact denoiser where images are normal with independent pixels: for tests and docs.

    .. math:: x \sim \mathcal N(\mu, s^2) \;\Rightarrow\;
              D(x_t; \sigma) = \mu + \frac{s^2}{s^2 + \sigma^2} (x_t - \mu)

    Args:
        mean: :math:`\mu`, in [-1, 1]; a number or any shape that broadcasts to ``(B, C, H, W)``.
        std: :math:`s > 0`, likewise.

    Example:
        >>> import torch
        >>> denoiser = GaussianDenoiser(mean=0.0, std=1.0)
        >>> denoiser(torch.ones(1, 1, 1, 1), sigma=1.0).item()
        0.5
    """

    mean: Tensor
    std: Tensor

    def __init__(self, *, mean: float | Tensor = 0.0, std: float | Tensor = 0.5) -> None:
        super().__init__(sigma_range=(0.0, math.inf))
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float64))
        self.register_buffer("std", torch.as_tensor(std, dtype=torch.float64))
        if not (self.std > 0).all():
            raise ValueError(f"std must be above 0, got {std!r}")

    def denoise(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        mean, variance = self.mean.to(x_t), self.std.to(x_t) ** 2
        return mean + variance / (variance + sigma**2) * (x_t - mean)
