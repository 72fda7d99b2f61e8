"""How well a denoiser denoises, as an error and in decibels."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["denoising_errors", "psnr"]


@torch.no_grad()
def denoising_errors(
    denoiser: Callable[..., Tensor], x: Tensor, sigma: float, *, seed: int = 0, batch: int = 200
) -> Tensor:
    r"""How well a denoiser denoises: the mean squared error of each image.

    .. math:: \frac1n \| D(x + \sigma\epsilon; \sigma) - x \|_2^2

    Args:
        denoiser: called as ``denoiser(x_t, levels)``, levels of shape ``(B,)``, images in [-1, 1].
        x: images, shape ``(B, C, H, W)``, in [0, 1].
        sigma: noise level on [-1, 1].
        seed: of the noise.
        batch: images at a time, on the device of the denoiser's weights.

    Returns:
        Shape ``(B,)``, on the CPU.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = denoiser.parameters() if isinstance(denoiser, nn.Module) else iter(())
    device = next((p.device for p in weights), x.device)
    errors = []
    for chunk in x.split(batch):
        clean = 2 * chunk - 1
        noised = clean + sigma * torch.randn(clean.shape, generator=generator).to(clean)
        levels = torch.full((len(chunk),), sigma, device=device)
        denoised = denoiser(noised.to(device), levels).to(clean)
        errors.append((denoised - clean).square().mean((1, 2, 3)).cpu())
    return torch.cat(errors)


def psnr(error: float) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error of images in [-1, 1]: peak 2."""
    return 10 * math.log10(4 / error)
