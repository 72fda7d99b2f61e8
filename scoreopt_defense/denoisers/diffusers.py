"""Networks of the diffusers library."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from scoreopt_defense._checks import check_choice
from scoreopt_defense.denoisers.base import Denoiser
from scoreopt_defense.denoisers.edm import network_dtype

__all__ = ["DiffusersDDPMDenoiser", "DiffusersEDMDenoiser", "diffusers_denoiser"]


def diffusers_denoiser(
    unet: nn.Module, scheduler: Any, *, class_label: int | None = None
) -> Denoiser:
    """The right adapter for a diffusers network, told by its scheduler.

    Args:
        unet: a ``UNet2DModel``, or anything called as ``unet(x, timestep).sample``.
        scheduler: one with ``alphas_cumprod`` (DDPM, DDIM and their like) or an EDM scheduler
            (``EDMEulerScheduler``, ``EDMDPMSolverMultistepScheduler``).
        class_label: of a class-conditional network.

    Raises:
        TypeError: if the scheduler is of neither kind.
    """
    if hasattr(scheduler, "alphas_cumprod"):
        return DiffusersDDPMDenoiser(unet, scheduler, class_label=class_label)
    if hasattr(scheduler, "precondition_outputs"):
        return DiffusersEDMDenoiser(unet, scheduler, class_label=class_label)
    raise TypeError(
        "scheduler must have alphas_cumprod (DDPM and its like) or be an EDM scheduler, "
        f"got {type(scheduler).__name__}"
    )


class _DiffusersDenoiser(Denoiser):
    def __init__(
        self,
        unet: nn.Module,
        *,
        sigma_range: tuple[float, float],
        prediction_type: str,
        known: tuple[str, ...],
        class_label: int | None,
    ) -> None:
        check_choice("the scheduler's prediction_type", prediction_type, known)
        channels = getattr(getattr(unet, "config", None), "in_channels", None)
        super().__init__(sigma_range=sigma_range, channels=channels)
        self.unet = unet
        self.prediction_type = prediction_type
        self.class_label = class_label

    def _predict(self, x: Tensor, timestep: Tensor) -> Tensor:
        labels = {}
        if self.class_label is not None:
            labels["class_labels"] = torch.full((len(x),), self.class_label, device=x.device)
        dtype = network_dtype(self.unet, x.dtype)
        prediction = self.unet(x.to(dtype), timestep, **labels).sample
        return prediction.to(x.dtype)


class DiffusersDDPMDenoiser(_DiffusersDenoiser):
    r"""A variance-preserving network: DDPM and every scheduler with ``alphas_cumprod``.

    Such a network sees :math:`z = \alpha x + \sqrt{1 - \alpha^2}\,\epsilon`, which is :math:`x_t`
    scaled by :math:`\alpha = 1 / \sqrt{1 + \sigma^2}`, at the time :math:`t` whose
    :math:`\sqrt{1 - \alpha_t^2} / \alpha_t` is :math:`\sigma`; between two steps, t is interpolated
    linearly in :math:`\ln \sigma`. Its prediction becomes the denoised image by

    ============== =========================================
    prediction     :math:`D(x_t; \sigma)`
    ============== =========================================
    epsilon        :math:`x_t - \sigma \hat\epsilon`
    sample         :math:`\hat x`
    v_prediction   :math:`\alpha z - \alpha\sigma \hat v`
    ============== =========================================

    Args:
        unet: called as ``unet(z, t).sample`` with fractional ``t`` of shape ``(B,)``.
        scheduler: gives ``alphas_cumprod`` and ``config.prediction_type``.
        class_label: of a class-conditional network.

    Reference:
        Ho et al., NeurIPS 2020; Salimans and Ho, ICLR 2022 (v prediction).
    """

    log_sigmas: Tensor

    def __init__(self, unet: nn.Module, scheduler: Any, *, class_label: int | None = None) -> None:
        alphas_cumprod = scheduler.alphas_cumprod.double()
        log_sigmas = ((1 - alphas_cumprod) / alphas_cumprod).log() / 2
        finite = log_sigmas[log_sigmas.isfinite()]  # a zero-SNR schedule ends at sigma = inf
        super().__init__(
            unet,
            sigma_range=(finite[0].exp().item(), finite[-1].exp().item()),
            prediction_type=scheduler.config.prediction_type,
            known=("epsilon", "sample", "v_prediction"),
            class_label=class_label,
        )
        self.register_buffer("log_sigmas", finite, persistent=False)

    def denoise(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        alpha = (1 + sigma**2).rsqrt()
        prediction = self._predict(alpha * x_t, self.timestep(sigma.flatten()))
        if self.prediction_type == "epsilon":
            return x_t - sigma * prediction
        if self.prediction_type == "sample":
            return prediction
        return alpha**2 * x_t - alpha * sigma * prediction

    def timestep(self, sigma: Tensor) -> Tensor:
        """The fractional time of each noise level: shape ``(B,)`` to ``(B,)``, float32."""
        knots, target = self.log_sigmas, sigma.double().log()
        after = torch.searchsorted(knots, target).clamp(1, len(knots) - 1)
        before = after - 1
        fraction = (target - knots[before]) / (knots[after] - knots[before])
        return (before + fraction.clamp(0, 1)).float()


class DiffusersEDMDenoiser(_DiffusersDenoiser):
    r"""A network trained under diffusers' EDM schedulers.

    .. math:: D(x_t; \sigma) = c_{skip} x_t + c_{out} F(c_{in} x_t;\, \tfrac14 \ln\sigma)

    Args:
        unet: called as ``unet(x, t).sample`` with ``t`` of shape ``(B,)``.
        scheduler: does the preconditioning; gives ``config.sigma_min``, ``config.sigma_max``.
        class_label: of a class-conditional network.

    Reference:
        Karras et al., NeurIPS 2022, Table 1.
    """

    def __init__(self, unet: nn.Module, scheduler: Any, *, class_label: int | None = None) -> None:
        super().__init__(
            unet,
            sigma_range=(scheduler.config.sigma_min, scheduler.config.sigma_max),
            prediction_type=scheduler.config.prediction_type,
            known=("epsilon", "v_prediction"),
            class_label=class_label,
        )
        self.scheduler = scheduler

    def denoise(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        c_noise = self.scheduler.precondition_noise(sigma.flatten())
        prediction = self._predict(self.scheduler.precondition_inputs(x_t, sigma), c_noise)
        return self.scheduler.precondition_outputs(x_t, prediction, sigma)
