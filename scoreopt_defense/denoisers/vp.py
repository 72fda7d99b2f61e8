"""An adapter for variance-preserving networks trained at discrete times: DDPM and its like."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from scoreopt_defense._checks import check_choice
from scoreopt_defense.denoisers.labels import ClassConditionalDenoiser
from scoreopt_defense.denoisers.precision import most_exact, network_dtype

__all__ = ["DDPMDenoiser"]


class DDPMDenoiser(ClassConditionalDenoiser):
    r"""A network trained to see images at the discrete times of a variance-preserving schedule.

    Such a network sees :math:`z = \alpha x + \sqrt{1 - \alpha^2}\,\epsilon`, which is :math:`x_t`
    scaled by :math:`\alpha = 1 / \sqrt{1 + \sigma^2}`, at the time :math:`t` whose
    :math:`\sqrt{1 - \alpha_t^2} / \alpha_t` is :math:`\sigma`; between two steps, t is interpolated
    linearly in :math:`\ln \sigma`. Its prediction becomes the denoised image by

    | prediction | :math:`D(x_t; \sigma)` |
    | --- | --- |
    | epsilon | :math:`x_t - \sigma \hat\epsilon` |
    | sample | :math:`\hat x` |
    | v_prediction | :math:`\alpha z - \alpha\sigma \hat v` |

    Args:
        net: called as ``net(z, t)`` with fractional ``t`` of shape ``(B,)``, images in [-1, 1].
        alphas_cumprod: :math:`\alpha_t^2` of each step, falling, shape ``(T,)``.
        prediction_type: ``"epsilon"``, ``"sample"`` or ``"v_prediction"``.
        timesteps: the time that the network is told at each step; 0, 1, ..., T - 1 by default. A
            respaced schedule keeps the times of the original one.
        channels: image channels, or None where any number will do.
        class_label: of a class-conditional network, then called as ``net(z, t, labels)``.

    Raises:
        ValueError: if ``prediction_type`` is unknown or the schedule does not fall.

    Example:
        >>> import torch
        >>> denoiser = DDPMDenoiser(lambda z, t: 0 * z, torch.linspace(0.999, 0.01, 1000))
        >>> denoiser(torch.ones(2, 3, 8, 8), sigma=0.25).mean().item()
        1.0

    Reference:
        Ho et al., NeurIPS 2020; Salimans and Ho, ICLR 2022 (v prediction).
    """

    net: Any

    def __init__(
        self,
        net: Callable[..., Tensor],
        alphas_cumprod: Tensor,
        *,
        prediction_type: str = "epsilon",
        timesteps: Sequence[float] | Tensor | None = None,
        channels: int | None = None,
        class_label: int | Tensor | None = None,
    ) -> None:
        check_choice("prediction_type", prediction_type, ("epsilon", "sample", "v_prediction"))
        alphas_cumprod = torch.as_tensor(alphas_cumprod, dtype=torch.float64)
        times = torch.arange(len(alphas_cumprod)) if timesteps is None else timesteps
        times = torch.as_tensor(times, dtype=torch.float64)
        log_sigmas = ((1 - alphas_cumprod) / alphas_cumprod).log() / 2
        finite = log_sigmas.isfinite()  # a zero-SNR schedule ends at sigma = inf
        log_sigmas, times = log_sigmas[finite], times[finite]
        if len(log_sigmas) < 2 or not (log_sigmas.diff() > 0).all():
            raise ValueError("alphas_cumprod must fall at every step and have at least two steps")
        super().__init__(
            sigma_range=(log_sigmas[0].exp().item(), log_sigmas[-1].exp().item()),
            channels=channels,
            class_label=class_label,
        )
        self.net = net
        self.prediction_type = prediction_type
        # No buffers: half() and bfloat16() would round them, and the times with them.
        self.log_sigmas, self.times = log_sigmas, times

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DDPMDenoiser:
        """Move the table with the network: copied at each step it would keep CUDA graphs away."""
        super()._apply(fn, recurse)
        self.log_sigmas, self.times = self._table(fn(torch.empty(0)).device)
        return self

    def _table(self, device: torch.device) -> list[Tensor]:
        """The noise levels and their times, on a device."""
        return [part.to(device, most_exact(device)) for part in (self.log_sigmas, self.times)]

    def denoise(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        alpha = (1 + sigma**2).rsqrt()
        z = (alpha * x_t).to(network_dtype(self.net, x_t.dtype))
        prediction = self.predict(z, self.timestep(sigma.flatten())).to(sigma.dtype)
        if self.prediction_type == "epsilon":
            return x_t - sigma * prediction
        if self.prediction_type == "sample":
            return prediction
        return alpha**2 * x_t - alpha * sigma * prediction

    def predict(self, z: Tensor, timestep: Tensor) -> Tensor:
        """What the network says of ``z`` at fractional times of shape ``(B,)``."""
        labels = self.labels(z)
        args: list[Any] = [z, timestep] if labels is None else [z, timestep, labels]
        return self.net(*args)

    def timestep(self, sigma: Tensor) -> Tensor:
        """The fractional time of each noise level: shape ``(B,)`` to ``(B,)``, float32."""
        knots, times = self._table(sigma.device)
        target = sigma.to(knots).log()
        after = torch.searchsorted(knots, target).clamp(1, len(knots) - 1)
        before = after - 1
        fraction = (target - knots[before]) / (knots[after] - knots[before])
        return torch.lerp(times[before], times[after], fraction.clamp(0, 1)).float()
