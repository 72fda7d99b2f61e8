"""Adapters for networks of yang-song/score_sde_pytorch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scoreopt_defense.denoisers.base import Denoiser
from scoreopt_defense.denoisers.data_range import on_data_range
from scoreopt_defense.denoisers.precision import network_dtype
from scoreopt_defense.denoisers.vp import DDPMDenoiser
from scoreopt_defense.denoisers.vp_schedule import VPSchedule

__all__ = ["ScoreSDEVEDenoiser", "ScoreSDEVPDenoiser", "score_sde_denoiser"]


def score_sde_denoiser(
    net: Callable[..., Tensor], sde: Any, *, continuous: bool, centered: bool
) -> Denoiser:
    """The right adapter for a score_sde network, told by its SDE and its configuration.

    Args:
        net: the model, called as ``net(x, labels)``.
        sde: a ``VPSDE``, ``subVPSDE`` or ``VESDE`` of that library.
        continuous: ``config.training.continuous``.
        centered: ``config.data.centered``: True for images in [-1, 1], False for [0, 1]. The VP
            configurations of that library are centred, the VE ones are not.

    Raises:
        TypeError: if the SDE is none of the three.
    """
    kind = type(sde).__name__
    if kind == "VESDE":
        return ScoreSDEVEDenoiser(
            net,
            sigma_min=sde.sigma_min,
            sigma_max=sde.sigma_max,
            steps=None if continuous else sde.N,
            centered=centered,
        )
    if kind not in ("VPSDE", "subVPSDE"):
        raise TypeError(f"sde must be a VPSDE, subVPSDE or VESDE of score_sde, got {kind}")
    if not centered:
        raise ValueError("centered must be True for a VP network, whose images are in [-1, 1]")
    if kind == "VPSDE" and not continuous:
        return DDPMDenoiser(net, sde.alphas_cumprod)
    return ScoreSDEVPDenoiser(net, beta_min=sde.beta_0, beta_max=sde.beta_1, sub=kind == "subVPSDE")


class ScoreSDEVPDenoiser(Denoiser):
    r"""A VP or sub-VP network trained at continuous times.

    .. math:: D(x_t; \sigma) = x_t - \sigma F_\theta(\alpha_t x_t;\, 999 t)

    with the time and scale of :class:`~scoreopt_defense.denoisers.vp_schedule.VPSchedule`.

    Args:
        net: called as ``net(z, labels)``, images in [-1, 1].
        beta_min, beta_max: of the SDE.
        sub: whether it is the sub-VP SDE.
        time_min: lowest time that the network was trained at.

    Example:
        >>> denoiser = ScoreSDEVPDenoiser(lambda z, labels: 0 * z)
        >>> denoiser(torch.ones(2, 3, 8, 8), sigma=0.25).mean().item()
        1.0

    Reference:
        Song et al., "Score-based generative modeling through SDEs", ICLR 2021, eqs. (29), (33).
    """

    def __init__(
        self,
        net: Callable[..., Tensor],
        *,
        beta_min: float = 0.1,
        beta_max: float = 20.0,
        sub: bool = False,
        time_min: float = 1e-5,
    ) -> None:
        schedule = VPSchedule(beta_max - beta_min, beta_min, sub)
        super().__init__(sigma_range=(schedule.sigma(time_min), schedule.sigma(1.0)))
        self.net = net
        self.schedule = schedule

    def denoise(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        alpha, time = self.schedule.alpha(sigma), self.schedule.time(sigma)
        dtype = network_dtype(self.net, x_t.dtype)
        eps = self.net((alpha * x_t).to(dtype), 999 * time.flatten().float())
        return x_t - sigma * eps.to(sigma.dtype)


class ScoreSDEVEDenoiser(Denoiser):
    r"""A VE network: NCSN++ and its like.

    .. math:: D(x_t; \sigma) = x_t + \sigma^2 s_\theta(x_t;\, \sigma)

    In the library's VE configurations images are in [0, 1], so that their noise levels, 0.01 to 50,
    are 0.02 to 100 here.

    Args:
        net: called as ``net(x, labels)``, returns the score. Labels are the noise levels on the
            network's own scale; or, with ``steps``, whole numbers, 0 the highest level.
        sigma_min, sigma_max: of the SDE, on the network's own scale.
        steps: of a network trained at discrete levels, which takes no level in between: it is told
            the nearest one in ln(sigma), and its noise prediction there is used.
        centered: whether its images are in [-1, 1].

    Example:
        >>> denoiser = ScoreSDEVEDenoiser(lambda x, labels: 0 * x)
        >>> denoiser.sigma_range
        (0.02, 100.0)

    Reference:
        Song et al., "Score-based generative modeling through SDEs", ICLR 2021, eq. (31).
    """

    def __init__(
        self,
        net: Callable[..., Tensor],
        *,
        sigma_min: float = 0.01,
        sigma_max: float = 50.0,
        steps: int | None = None,
        centered: bool = False,
    ) -> None:
        scale = 1 if centered else 2
        super().__init__(sigma_range=(scale * sigma_min, scale * sigma_max))
        self.data_range = (-1.0, 1.0) if centered else (0.0, 1.0)
        self.net = net
        self.sigma_min, self.sigma_max, self.steps = sigma_min, sigma_max, steps

    def denoise(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        return on_data_range(self._denoise, x_t, sigma, self.data_range)

    def _denoise(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        labels, level = self._labels(sigma)
        dtype = network_dtype(self.net, x_t.dtype)
        score = self.net(x_t.to(dtype, copy=True), labels)  # it may write into its images
        return x_t + sigma * level * score.to(sigma.dtype)

    def _labels(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """What the network is told, and the level that it then stands for."""
        if self.steps is None:
            return sigma.flatten().to(torch.float32, copy=True), sigma
        span = math.log(self.sigma_max / self.sigma_min)
        labels = ((self.sigma_max / sigma).log() / span * (self.steps - 1)).round()
        level = self.sigma_max * (-labels / (self.steps - 1) * span).exp()
        return labels.flatten().long(), level
