"""An adapter for networks with the EDM signature, and EDM's own noise levels and scalings."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from scoreopt_defense.denoisers.labels import ClassConditionalDenoiser
from scoreopt_defense.denoisers.precision import network_precision

__all__ = ["EDM_SIGMA_RANGE", "EDMDenoiser", "edm_scalings"]

#: Noise levels that EDM samples between, images in [-1, 1]: Karras et al., 2022, Table 1.
EDM_SIGMA_RANGE = (0.002, 80.0)


def edm_scalings(sigma: Tensor, sigma_data: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""EDM's preconditioning of a raw network F.

    .. math:: D_\theta(x_t; \sigma) = c_{skip} x_t + c_{out} F_\theta(c_{in} x_t;\, c_{noise})

    .. math:: c_{skip} = s^2/\rho^2, \quad c_{out} = \sigma s/\rho, \quad c_{in} = 1/\rho, \quad
              c_{noise} = \tfrac14 \ln\sigma, \qquad \rho^2 = \sigma^2 + s^2

    Args:
        sigma: noise levels, any shape, above 0, images in [-1, 1].
        sigma_data: s, the standard deviation of the training images, on the same scale.

    Returns:
        c_skip, c_out, c_in and c_noise, each of the shape and type of ``sigma``.

    Example:
        >>> import torch
        >>> [round(c.item(), 4) for c in edm_scalings(torch.tensor(3.0), 4.0)]
        [0.64, 2.4, 0.2, 0.2747]

    Reference:
        Karras et al., NeurIPS 2022, Table 1.
    """
    total = (sigma**2 + sigma_data**2).sqrt()
    return sigma_data**2 / total**2, sigma * sigma_data / total, 1 / total, sigma.log() / 4


class EDMDenoiser(ClassConditionalDenoiser):
    """A network that already is a denoiser: ``net(x_t, sigma)``, images in [-1, 1].

    Fits NVIDIA's ``EDMPrecond``, ``VPPrecond`` and ``VEPrecond``, and whatever else takes one noise
    level an image.

    Args:
        net: called as ``net(x_t, sigma)`` with ``sigma`` of shape ``(B,)``, or as
            ``net(x_t, sigma, class_labels)`` if ``class_labels`` is given.
        sigma_range: noise levels it was trained for. By default the network's own ``sigma_min`` and
            ``sigma_max``, narrowed to EDM's 0.002 to 80.
        channels: image channels; by default ``net.img_channels``, or any.
        class_labels: one-hot label of shape ``(1, classes)`` for a class-conditional network; zeros
            where it is told none. :meth:`with_class_label` has it told another.

    Example:
        >>> import torch
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
        low, high = EDM_SIGMA_RANGE
        low = max(low, float(getattr(net, "sigma_min", 0.0)))
        high = min(high, float(getattr(net, "sigma_max", math.inf)))
        super().__init__(
            sigma_range=sigma_range or (low, high),
            channels=channels or getattr(net, "img_channels", None),
        )
        self.net = net
        self.label_dim = 0 if class_labels is None else class_labels.shape[1]
        self.register_buffer("class_labels", class_labels, persistent=False)

    def denoise(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        with network_precision(self.net, x_t, sigma.flatten()) as (x, level):
            if self.class_labels is None:
                return self.net(x, level)
            if self.class_label is None:
                return self.net(x, level, self.class_labels.to(x).repeat(len(x), 1))
            return self.net(x, level, self.one_hot(x))
