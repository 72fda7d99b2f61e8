"""An adapter for networks of openai/guided-diffusion and improved-diffusion."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scoreopt_defense._checks import check_choice
from scoreopt_defense.denoisers.vp import DDPMDenoiser

__all__ = ["GuidedDiffusionDenoiser", "linear_alphas_cumprod"]

# The library's names of what a network predicts, and ours.
_PREDICTIONS = {"EPSILON": "epsilon", "START_X": "sample"}


class GuidedDiffusionDenoiser(DDPMDenoiser):
    r"""A network of openai/guided-diffusion: :math:`\epsilon`, with or without a learned variance.

    The variance, if there is one, is the second half of the channels; a denoiser has no use for it.
    A respaced schedule has fewer noise levels, and the network is told the original times.

    Args:
        net: called as ``net(z, t)``, or ``net(z, t, y=labels)`` with ``class_label``.
        diffusion: the library's ``GaussianDiffusion`` or ``SpacedDiffusion`` (only its
            ``alphas_cumprod``, ``model_mean_type``, ``rescale_timesteps``, ``timestep_map`` and
            ``original_num_steps`` are read); or None for 1,000 steps of the linear schedule, which
            all the published 256x256 models have.
        class_label: of a class-conditional network; one, or one an image.

    Raises:
        ValueError: if the network predicts neither the noise nor the image, or, from a call, has
            neither as many channels as the images nor twice as many.

    Example:
        >>> net = lambda z, t: torch.zeros(len(z), 6, *z.shape[2:])
        >>> GuidedDiffusionDenoiser(net)(torch.ones(2, 3, 8, 8), sigma=0.25).shape
        torch.Size([2, 3, 8, 8])

    Reference:
        Nichol and Dhariwal, ICML 2021; Dhariwal and Nichol, NeurIPS 2021.
    """

    def __init__(
        self,
        net: Callable[..., Tensor],
        diffusion: Any = None,
        *,
        class_label: int | Tensor | None = None,
    ) -> None:
        predicts, times = "EPSILON", None
        alphas_cumprod = linear_alphas_cumprod()
        if diffusion is not None:
            predicts = getattr(diffusion.model_mean_type, "name", diffusion.model_mean_type)
            alphas_cumprod = torch.as_tensor(diffusion.alphas_cumprod)
            times = _times(diffusion, len(alphas_cumprod))
        check_choice("the diffusion's model_mean_type", predicts, _PREDICTIONS)
        super().__init__(
            net,
            alphas_cumprod,
            prediction_type=_PREDICTIONS[predicts],
            timesteps=times,
            channels=getattr(net, "in_channels", None),
            class_label=class_label,
        )

    def predict(self, z: Tensor, timestep: Tensor) -> Tensor:
        labels = self.labels(z)
        prediction = self.raw(z, timestep, **({} if labels is None else {"y": labels}))
        if prediction.shape[1] not in (z.shape[1], 2 * z.shape[1]):
            raise ValueError(
                f"the network must return {z.shape[1]} channels, or twice as many with a learned "
                f"variance, got shape {tuple(prediction.shape)}"
            )
        return prediction[:, : z.shape[1]]

    def raw(self, z: Tensor, timestep: Tensor, **labels: Tensor) -> Tensor:
        """The network itself, all its channels."""
        return self.net(z, timestep, **labels)


def linear_alphas_cumprod(steps: int = 1000) -> Tensor:
    r""":math:`\bar\alpha_t` of the linear schedule, from 0.0001 to 0.02 at 1,000 steps.

    Args:
        steps: how many; the betas are scaled by ``1000 / steps``, as in guided-diffusion.

    Returns:
        Shape ``(steps,)``, float64.

    Reference:
        Ho et al., NeurIPS 2020.
    """
    scale = 1000 / steps
    betas = torch.linspace(scale * 1e-4, scale * 0.02, steps, dtype=torch.float64)
    return (1 - betas).cumprod(0)


def _times(diffusion: Any, steps: int) -> Tensor:
    original = getattr(diffusion, "original_num_steps", steps)
    times = torch.as_tensor(getattr(diffusion, "timestep_map", range(steps))).double()
    return times * (1000 / original if getattr(diffusion, "rescale_timesteps", False) else 1)
