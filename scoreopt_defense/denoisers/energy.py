"""An adapter for energy networks: by Tweedie's formula they are denoisers of one noise level."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor

from scoreopt_defense._checks import check_positive
from scoreopt_defense.denoisers.base import Denoiser
from scoreopt_defense.denoisers.precision import network_precision
from scoreopt_defense.steps.recording import unwatched

__all__ = ["EnergyDenoiser"]


class EnergyDenoiser(Denoiser):
    r"""A network that gives images an energy, the negative log density of images noised by s.

    .. math:: D(x_t; \sigma) = x_t - \sigma^2\, \nabla U_\theta(x_t), \qquad \sigma \le s

    At :math:`\sigma = s` that is Tweedie's formula. Below it is a shorter step the same way, so
    that the score :math:`(D - x_t) / \sigma^2 = -\nabla U_\theta(x_t)` is the same at every level.

    Args:
        net: from images ``(B, C, H, W)`` in [-1, 1] to energies ``(B,)``.
        sigma: s, on the [-1, 1] scale: the noise of its training images.
        channels: image channels; by default ``net.img_channels``, or any.

    Raises:
        ValueError: from a call, if there is not one energy an image.

    Example:
        >>> import torch
        >>> denoiser = EnergyDenoiser(lambda x: x.square().sum((1, 2, 3)) / 2, sigma=0.5)
        >>> denoiser(torch.ones(2, 3, 8, 8), sigma=0.5).mean().item()
        0.75

    Reference:
        Efron, "Tweedie's formula and selection bias", JASA 2011.
    """

    def __init__(
        self, net: Callable[[Tensor], Tensor], *, sigma: float, channels: int | None = None
    ) -> None:
        super().__init__(
            sigma_range=(0.0, check_positive("sigma", sigma)),
            channels=channels or getattr(net, "img_channels", None),
        )
        self.net = net

    def denoise(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        recorded = torch.is_grad_enabled() and x_t.requires_grad
        kept = nullcontext() if recorded else unwatched()
        with torch.enable_grad(), kept, network_precision(self.net, x_t, sigma) as (x, _):
            x = x if recorded else x.detach().requires_grad_()
            energies = self.net(x)
            if energies.numel() != len(x):
                raise ValueError(
                    f"an energy network must return one energy an image, shape ({len(x)},), got "
                    f"{tuple(energies.shape)}"
                )
            (slope,) = torch.autograd.grad(energies.sum(), x, create_graph=recorded)
        return x_t - sigma**2 * slope
