"""An adapter for wrapped models of the k-diffusion library."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from scoreopt_defense.denoisers.base import Denoiser
from scoreopt_defense.denoisers.data_range import check_data_range, on_data_range
from scoreopt_defense.denoisers.precision import network_precision

__all__ = ["KDiffusionDenoiser"]


class KDiffusionDenoiser(Denoiser):
    r"""A wrapper of k-diffusion, which already is :math:`D(x_t; \sigma)`.

    Fits ``K.Denoiser``, ``K.external.VDenoiser``, ``OpenAIDenoiser`` and the rest. Those with a
    discrete schedule must not round to the nearest step (``quantize=False``, the default there).

    Args:
        wrapper: called as ``wrapper(x_t, sigma, **conditioning)`` with sigma of shape ``(B,)``.
        sigma_range: noise levels it was trained for, on [-1, 1]. By default the wrapper's own
            ``sigma_min`` and ``sigma_max``, which discrete schedules have.
        data_range: of the images it was trained on.
        conditioning: further keyword arguments of each call, such as ``class_cond``.
        channels: image channels, or None where any number will do.

    Raises:
        ValueError: if the range is neither given nor known, or the wrapper rounds noise levels.

    Example:
        >>> import torch
        >>> wrapper = lambda x_t, sigma: x_t / (1 + sigma.reshape(-1, 1, 1, 1) ** 2)
        >>> denoiser = KDiffusionDenoiser(wrapper, sigma_range=(0.01, 80))
        >>> denoiser(torch.ones(2, 3, 8, 8), sigma=1.0).mean().item()
        0.5

    Reference:
        https://github.com/crowsonkb/k-diffusion
    """

    def __init__(
        self,
        wrapper: Any,
        *,
        sigma_range: tuple[float, float] | None = None,
        data_range: tuple[float, float] = (-1.0, 1.0),
        conditioning: dict[str, Any] | None = None,
        channels: int | None = None,
    ) -> None:
        data_range = check_data_range(data_range)
        if sigma_range is None:
            if not (hasattr(wrapper, "sigma_min") and hasattr(wrapper, "sigma_max")):
                raise ValueError(
                    "sigma_range must be given: this wrapper does not say which noise levels it "
                    "was trained for"
                )
            scale = (data_range[1] - data_range[0]) / 2
            sigma_range = (float(wrapper.sigma_min) / scale, float(wrapper.sigma_max) / scale)
        if getattr(wrapper, "quantize", False):
            raise ValueError(
                "the wrapper rounds noise levels to whole steps (quantize=True): build it with "
                "quantize=False"
            )
        super().__init__(sigma_range=sigma_range, channels=channels)
        self.net = wrapper
        self.data_range = data_range
        self.conditioning = conditioning or {}

    def denoise(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        return on_data_range(self._denoise, x_t, sigma, self.data_range)

    def _denoise(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        with network_precision(self.net, x_t, sigma.flatten()) as (x, level):
            return self.net(x, level, **self.conditioning)
