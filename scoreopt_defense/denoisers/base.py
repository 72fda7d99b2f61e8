"""A denoiser ``D(x_t, sigma)``: the class that an adapter for a network subclasses."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from scoreopt_defense._offloading import may_bring_weights
from scoreopt_defense.denoisers.precision import first_of
from scoreopt_defense.settings import Twinned

__all__ = ["Denoiser"]


class Denoiser(Twinned, ABC):
    r"""The posterior mean of a clean image given a noised one.

    .. math:: D_\theta(x_t; \sigma) \approx \mathbb E[x \mid x_t], \qquad
              x_t = x + \sigma\epsilon,\ \epsilon \sim \mathcal N(0, I)

    By Tweedie's formula the score is :math:`(D_\theta(x_t; \sigma) - x_t) / \sigma^2`. Images are
    in [-1, 1], the paper's and EDM's scale, where :math:`\sigma = 0.25` is 32/255 on pixels.

    An adapter for a new kind of network subclasses this and writes :meth:`denoise`, which only
    rescales. The network keeps its own mode: ``train()`` and ``eval()`` do not reach it.

    Args:
        sigma_range: lowest and highest noise level that the network was trained for.
        channels: image channels, or None where any number will do.
    """

    def __init__(self, *, sigma_range: tuple[float, float], channels: int | None = None) -> None:
        super().__init__()
        low, high = sigma_range
        if not 0 <= low < high:
            raise ValueError(f"sigma_range must satisfy 0 <= low < high, got {sigma_range!r}")
        self.sigma_range = (float(low), float(high))
        self.channels = channels
        self.training = False
        self._has_warned = False

    def forward(self, x_t: Tensor, sigma: float | Tensor) -> Tensor:
        """Denoise a batch.

        Args:
            x_t: noised images, shape ``(B, C, H, W)``, in [-1, 1] plus noise.
            sigma: noise level on that scale: a number, or one an image, shape ``(B,)`` or
                ``(B, 1, 1, 1)``. The values of a tensor on an accelerator are not checked: to read
                them would make the host wait for the device at every call.

        Returns:
            Shape, dtype and device of ``x_t``.

        Raises:
            ValueError: if ``sigma`` is outside ``sigma_range``, the shapes do not fit, or the
                network is on another device and has no hook that could bring it.
        """
        if x_t.ndim != 4 or self.channels not in (None, x_t.shape[1]):
            raise ValueError(
                f"x_t must have shape (B, {self.channels or 'C'}, H, W), got {tuple(x_t.shape)}"
            )
        if not torch.compiler.is_compiling():
            self._warn_of_size(x_t)
        device = first_of((p.device for p in self.parameters()), x_t.device)
        if device != x_t.device and not any(map(may_bring_weights, self.children())):
            raise ValueError(
                f"the denoiser's network is on {device} and the images are on {x_t.device}: move "
                "one of them, as in denoiser.to(images.device)"
            )
        # in float32 at least: rounded to half precision, a noise level is another one
        exact = torch.promote_types(x_t.dtype, torch.float32)
        levels = torch.as_tensor(sigma, dtype=exact).flatten()
        if len(levels) not in (1, len(x_t)):
            raise ValueError(f"sigma must be one value or {len(x_t)}, got {len(levels)}")
        if levels.device.type == "cpu" and not torch.compiler.is_compiling():
            self._check(levels)
        levels = levels.to(x_t.device).expand(len(x_t)).reshape(-1, 1, 1, 1)
        denoised = self.denoise(x_t, levels)
        if not isinstance(denoised, Tensor) or denoised.shape != x_t.shape:
            is_tensor = isinstance(denoised, Tensor)
            got = tuple(denoised.shape) if is_tensor else type(denoised).__name__
            raise ValueError(
                f"the denoiser's network must return images of shape {tuple(x_t.shape)}, as it was "
                f"given, got {got}: a learned variance or an output object has to be taken off"
            )
        return denoised.to(x_t.dtype)

    def _warn_of_size(self, x_t: Tensor) -> None:
        """Once, of images of another size than the network says it was made for, if it does."""
        net = getattr(self, "net", None)
        config = getattr(getattr(net, "_orig_mod", net), "config", None)  # torch.compile's wrapper
        stated = getattr(config, "sample_size", None) or getattr(net, "img_resolution", None)
        sides = stated if isinstance(stated, (tuple, list)) else (stated, stated)
        height, width = x_t.shape[-2:]
        if self._has_warned or type(sides[0]) is not int or tuple(sides) == (height, width):
            return
        self._has_warned = True
        warnings.warn(
            f"the denoiser's network was made for images of {' x '.join(map(str, sides))} pixels, "
            f"and is given {height} x {width}: set the purifier's size, as in "
            f"ScoreOpt(denoiser, size={sides[0]}), or take another network",
            stacklevel=4,
        )

    def _check(self, levels: Tensor) -> None:
        low, high = self.sigma_range
        slack = 1e-6  # rounding of the range's own ends
        if not ((levels >= low * (1 - slack)) & (levels <= high * (1 + slack))).all():
            raise ValueError(
                f"sigma must be within [{low:g}, {high:g}], the noise levels this denoiser is "
                f"valid for, got values from {levels.min():g} to {levels.max():g}"
            )

    @abstractmethod
    def denoise(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        """As :meth:`forward`, with ``sigma`` checked and of shape ``(B, 1, 1, 1)``."""

    def train(self, mode: bool = True) -> Denoiser:
        """Change nothing: the network inside keeps the mode its owner gave it."""
        return self

    def extra_repr(self) -> str:
        low, high = self.sigma_range
        return f"sigma_range=({low:g}, {high:g}), channels={self.channels}"
