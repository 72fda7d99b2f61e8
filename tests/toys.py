"""Small networks with known answers, shared by the tests."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn

from scoreopt_defense.denoisers import EDMDenoiser, GaussianDenoiser
from scoreopt_defense.noise import Noise

MEAN, STD = 0.1, 0.5


def gaussian() -> GaussianDenoiser:
    return GaussianDenoiser(mean=MEAN, std=STD)


def shrinkage(sigma: Tensor | float, std: float = STD) -> Tensor | float:
    """The factor k of the Gaussian denoiser, D(x_t) = mean + k (x_t - mean)."""
    return std**2 / (std**2 + sigma**2)


class BentNet(nn.Module):
    """A denoiser that is not linear, so that its Jacobian depends on the image and the noise."""

    img_channels = 3

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        sigma = sigma.reshape(-1, 1, 1, 1)
        return 0.5 * x_t / (1 + sigma**2) + 0.3 * sigma * torch.tanh(2 * self.conv(x_t))


def bent(dtype: torch.dtype = torch.float64) -> EDMDenoiser:
    return EDMDenoiser(BentNet().to(dtype).eval(), sigma_range=(0.01, 2.0))


def smooth_classifier(
    dtype: torch.dtype = torch.float64, *, channels: int = 3, size: int = 8, classes: int = 4
) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(11)
        net = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels * size * size, 12),
            nn.Tanh(),
            nn.Linear(12, classes),
        )
    return net.to(dtype).eval()


def mid_images(
    count: int = 4, *, size: int = 8, channels: int = 3, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Images in [0.4, 0.6], far enough from 0 and 1 that no clamp is active."""
    generator = torch.Generator().manual_seed(5)
    shape = (count, channels, size, size)
    return 0.4 + 0.2 * torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype)


def labels(count: int = 4, classes: int = 4) -> Tensor:
    return torch.arange(count) % classes


def draws(
    seed: int, sigma: tuple[float, float], x: Tensor, i: int = 0, *, apart: bool = False
) -> SimpleNamespace:
    """The noise level and noises that a purifier uses at outer step ``i`` of a seeded call."""
    noise = Noise.of_batch(seed, len(x), apart=apart)
    return SimpleNamespace(
        sigma=noise.level(sigma, i, x),
        eps_1=noise.eps_1(i, x),
        eps_2=lambda j: noise.eps_2(i, j, x),
    )


def to_unit(x: Tensor) -> Tensor:
    return (x + 1) / 2


def to_symmetric(x: Tensor) -> Tensor:
    return 2 * x - 1
