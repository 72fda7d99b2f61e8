"""Adapters for networks of the diffusers library."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from scoreopt_defense._checks import check_choice
from scoreopt_defense.denoisers.base import Denoiser
from scoreopt_defense.denoisers.labels import ClassConditionalDenoiser
from scoreopt_defense.denoisers.precision import network_dtype
from scoreopt_defense.denoisers.vp import DDPMDenoiser

__all__ = ["DiffusersDDPMDenoiser", "DiffusersEDMDenoiser", "diffusers_denoiser", "of_pipeline"]


def diffusers_denoiser(
    unet: nn.Module, scheduler: Any, *, class_label: int | Tensor | None = None
) -> Denoiser:
    """The right adapter for a diffusers network, told by its scheduler.

    Args:
        unet: a ``UNet2DModel``, or anything called as ``unet(x, timestep).sample``.
        scheduler: one with ``alphas_cumprod`` (DDPM, DDIM and their like) or an EDM scheduler
            (``EDMEulerScheduler``, ``EDMDPMSolverMultistepScheduler``).
        class_label: of a class-conditional network; one, or one an image.

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


def of_pipeline(given: Any) -> Any:
    """The denoiser of a diffusers pipeline, its ``unet`` and ``scheduler``; else what is given.

    Raises:
        ValueError: of a pipeline of latents, which purifies no pixels.
        TypeError: as :func:`diffusers_denoiser`.
    """
    unet, scheduler = getattr(given, "unet", None), getattr(given, "scheduler", None)
    if isinstance(given, Denoiser) or unet is None or scheduler is None:
        return given
    if any(getattr(given, part, None) is not None for part in ("vae", "vqvae", "movq")):
        raise ValueError(f"{type(given).__name__} denoises latents: take a pipeline of pixels")
    return diffusers_denoiser(unet, scheduler)


class DiffusersDDPMDenoiser(DDPMDenoiser):
    """A network of diffusers under DDPM and every scheduler with ``alphas_cumprod``.

    Args:
        unet: called as ``unet(z, t).sample`` with fractional ``t`` of shape ``(B,)``.
        scheduler: gives ``alphas_cumprod`` and ``config.prediction_type``.
        class_label: of a class-conditional network; one, or one an image.

    Raises:
        ValueError: from a call, if a ``UNet2DModel`` cannot take images of that size.

    See :class:`~scoreopt_defense.denoisers.vp.DDPMDenoiser` for the equations.
    """

    def __init__(
        self, unet: nn.Module, scheduler: Any, *, class_label: int | Tensor | None = None
    ) -> None:
        super().__init__(
            unet,
            scheduler.alphas_cumprod,
            prediction_type=scheduler.config.prediction_type,
            channels=_channels(unet),
            class_label=class_label,
        )
        self._multiple = _multiple(unet)

    def predict(self, z: Tensor, timestep: Tensor) -> Tensor:
        _check_size(z, self._multiple)
        return self.net(z, timestep, **_named(self.labels(z))).sample


class DiffusersEDMDenoiser(ClassConditionalDenoiser):
    r"""A network trained under diffusers' EDM schedulers.

    .. math:: D(x_t; \sigma) = c_{skip} x_t + c_{out} F(c_{in} x_t;\, \tfrac14 \ln\sigma)

    Args:
        unet: called as ``unet(x, t).sample`` with ``t`` of shape ``(B,)``.
        scheduler: does the preconditioning; gives ``config.sigma_min``, ``config.sigma_max``.
        class_label: of a class-conditional network; one, or one an image.

    Raises:
        ValueError: from a call, if a ``UNet2DModel`` cannot take images of that size.

    Reference:
        Karras et al., NeurIPS 2022, Table 1.
    """

    def __init__(
        self, unet: nn.Module, scheduler: Any, *, class_label: int | Tensor | None = None
    ) -> None:
        prediction_type = scheduler.config.prediction_type
        check_choice(
            "the scheduler's prediction_type", prediction_type, ("epsilon", "v_prediction")
        )
        super().__init__(
            sigma_range=(scheduler.config.sigma_min, scheduler.config.sigma_max),
            channels=_channels(unet),
            class_label=class_label,
        )
        self.net = unet
        self.scheduler = scheduler
        self._multiple = _multiple(unet)

    def denoise(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        _check_size(x_t, self._multiple)
        c_noise = self.scheduler.precondition_noise(sigma.flatten())
        x = self.scheduler.precondition_inputs(x_t, sigma).to(network_dtype(self.net, x_t.dtype))
        prediction = self.net(x, c_noise, **_named(self.labels(x))).sample.to(sigma.dtype)
        return self.scheduler.precondition_outputs(x_t, prediction, sigma)


def _channels(unet: nn.Module) -> int | None:
    return getattr(getattr(unet, "config", None), "in_channels", None)


def _named(labels: Tensor | None) -> dict[str, Tensor]:
    return {} if labels is None else {"class_labels": labels}


def _multiple(unet: nn.Module) -> int:
    """Of what height and width must be multiples; 1 where nothing is known of it.

    A ``UNet2DModel`` halves images at each level but the last, and doubles them again.
    """
    unet = getattr(unet, "_orig_mod", unet)  # torch.compile's wrapper
    levels = getattr(getattr(unet, "config", None), "down_block_types", ())
    return 2 ** (len(levels) - 1) if type(unet).__name__ == "UNet2DModel" else 1


def _check_size(x: Tensor, multiple: int) -> None:
    if x.shape[-2] % multiple or x.shape[-1] % multiple:
        raise ValueError(
            f"image height and width must be multiples of {multiple} for this UNet2DModel, got "
            f"{tuple(x.shape[-2:])}"
        )
