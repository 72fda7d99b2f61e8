"""Networks with the EDM signature."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from scoreopt_defense.denoisers.base import Denoiser

__all__ = ["EDMDenoiser"]

# Noise levels that EDM trains and samples between: Karras et al., 2022, Table 1.
_EDM_SIGMA_RANGE = (0.002, 80.0)


class EDMDenoiser(Denoiser):
    """A network that already is a denoiser: ``net(x_t, sigma)``, images in [-1, 1].

    Fits NVIDIA's ``EDMPrecond``, ``VPPrecond`` and ``VEPrecond``, and whatever else takes one noise
    level an image.

    Args:
        net: called as ``net(x_t, sigma)`` with ``sigma`` of shape ``(B,)``, or as
            ``net(x_t, sigma, class_labels)`` if ``class_labels`` is given.
        sigma_range: noise levels it was trained for. By default the network's own ``sigma_min`` and
            ``sigma_max``, narrowed to EDM's 0.002 to 80.
        channels: image channels; by default ``net.img_channels``, or any.
        class_labels: one-hot label of shape ``(1, classes)`` for a class-conditional network.

    Example:
        >>> net = lambda x_t, sigma: x_t / (1 + sigma.reshape(-1, 1, 1, 1) ** 2)
        >>> denoiser = EDMDenoiser(net)
        >>> denoiser(torch.ones(2, 3, 8, 8), sigma=1.0).mean().item()
        0.5
    """

    class_labels: Tensor | None

    def __init__(
        self,
        net: Callable[..., Tensor],
        *,
        sigma_range: tuple[float, float] | None = None,
        channels: int | None = None,
        class_labels: Tensor | None = None,
    ) -> None:
        low, high = _EDM_SIGMA_RANGE
        low = max(low, float(getattr(net, "sigma_min", 0.0)))
        high = min(high, float(getattr(net, "sigma_max", math.inf)))
        super().__init__(
            sigma_range=sigma_range or (low, high),
            channels=channels or getattr(net, "img_channels", None),
        )
        self.net = net
        self.register_buffer("class_labels", class_labels, persistent=False)

    def denoise(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        dtype = network_dtype(self.net, x_t.dtype)
        args = [x_t.to(dtype), sigma.flatten().to(dtype)]
        if self.class_labels is not None:
            args.append(self.class_labels.to(args[0]).expand(len(x_t), -1))
        return self.net(*args)


def network_dtype(net: object, default: torch.dtype) -> torch.dtype:
    """Type of a network's weights: what its input is cast to."""
    parameters = net.parameters() if isinstance(net, nn.Module) else iter(())
    return next((p.dtype for p in parameters if p.is_floating_point()), default)
