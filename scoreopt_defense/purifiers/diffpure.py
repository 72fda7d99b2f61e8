"""DiffPure: noise an image, and take it back by the reverse diffusion in many steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from scoreopt_defense._checks import check_choice, check_count, check_sigma
from scoreopt_defense.denoisers.vp_schedule import VPSchedule
from scoreopt_defense.gradients import Runner, as_it_is
from scoreopt_defense.noise import Noise
from scoreopt_defense.purifiers.base import Purifier
from scoreopt_defense.purifiers.settings import PurifierSettings

__all__ = ["DiffPure", "DiffPureSettings", "ddim", "ddpm", "diffpure"]

SAMPLERS = ("ddpm", "ddim")
VP = VPSchedule()  # Song et al., ICLR 2021, appendix C

#: One step of the reverse process: ``(x_t, t, s, noise, m, j) -> x_s``.
Reverse = Callable[..., Tensor]


def diffpure(
    x: Tensor, reverse: Reverse, noise: Noise, times: list[Tensor], m: int = 0, *,
    noised: bool = False,
) -> Tensor:  # fmt: skip
    """Diffuse to the first of the times, and reverse through the others.

    Args:
        reverse: one step; it makes its own noise of what it is given, so that none need be kept.
        m: which of a call's rounds this is: each has noise of its own.
        noised: x is diffused already, but for its scale.
    """
    alpha, sigma = VP.scales(times[0])
    x_t = alpha * x if noised else alpha * x + sigma * noise.eps_1(m, x)
    for j, (t, s) in enumerate(pairwise(times)):
        x_t = reverse(x_t, t, s, noise, m, j)
    return x_t


def ddpm(x_t: Tensor, denoised: Tensor, t: Tensor, s: Tensor, eps: Tensor) -> Tensor:
    r"""An ancestral step from time t to s, of the denoised image and new noise.

    .. math:: x_s = \alpha_s D + \frac{\sigma_s}{\sigma_t} \sqrt{1 - \tau}\, (x_t - \alpha_t D)
              + \sigma_s \sqrt{\tau}\, \epsilon, \qquad
              \tau = 1 - \Big(\frac{\alpha_t \sigma_s}{\alpha_s \sigma_t}\Big)^2

    Reference:
        Ho et al., "Denoising diffusion probabilistic models", NeurIPS 2020.
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = VP.scales(t), VP.scales(s)
    tau = 1 - (alpha_t / alpha_s * sigma_s / sigma_t) ** 2
    kept = sigma_s * (1 - tau).sqrt() / sigma_t * (x_t - alpha_t * denoised)
    return alpha_s * denoised + kept + sigma_s * tau.sqrt() * eps


def ddim(x_t: Tensor, denoised: Tensor, t: Tensor, s: Tensor) -> Tensor:
    r"""The deterministic step from time t to s: :func:`ddpm` with :math:`\tau = 0`.

    Reference:
        Song et al., "Denoising diffusion implicit models", ICLR 2021.
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = VP.scales(t), VP.scales(s)
    return alpha_s * denoised + sigma_s / sigma_t * (x_t - alpha_t * denoised)


@dataclass(frozen=True, kw_only=True)
class DiffPureSettings(PurifierSettings):
    """Settings of :class:`DiffPure`."""

    sigma: tuple[float, float] = (0.34, 0.34)
    steps: int = 100
    sampler: str = "ddpm"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("sigma", check_sigma(self.sigma))
        self._set("steps", check_count("steps", self.steps))
        check_choice("sampler", self.sampler, SAMPLERS)


class DiffPure(Purifier):
    r"""Noise the image to a time t*, and sample the reverse process from there.

    .. math:: x_{t^*} = \alpha_{t^*} x_a + \sigma_{t^*} \epsilon, \qquad
              x_s \sim q(x_s \mid x_t), \quad t^* = t_0 > t_1 > \dots > t_n = 0

    A step is one call of the denoiser; nothing is clamped between them. Times are
    evenly spaced on the variance-preserving SDE; where the last step would start below the lowest
    noise level that the denoiser is valid for, it starts at that, and the others are evenly spaced
    above. One step is one-shot denoising.

    Args:
        denoiser: the prior.
        sigma: noise level :math:`\sigma_{t^*} / \alpha_{t^*}`, or (low, high) to draw it from
            uniformly, on the [-1, 1] scale; one draw for the whole batch. The paper's t* = 0.1 on
            CIFAR-10 is 0.34, and its 0.15 on ImageNet 0.55.
        steps: n; the paper's are 1e-3 apart, 100 from t* = 0.1.
        sampler: ``"ddpm"``, ancestral sampling, a discretisation of the reverse SDE; or ``"ddim"``,
            deterministic but for the first noise.
        gradient, deterministic, max_batch, autocast, channels_last, size, seed: as in
            :class:`~scoreopt_defense.purifiers.PurifierSettings`.

    Example:
        >>> import torch
        >>> from scoreopt_defense.denoisers import GaussianDenoiser
        >>> purifier = DiffPure(GaussianDenoiser(), sigma=0.34, steps=5)
        >>> purifier(torch.rand(8, 3, 32, 32)).shape
        torch.Size([8, 3, 32, 32])

    Reference:
        Nie et al., "Diffusion models for adversarial purification", ICML 2022.
    """

    Settings: ClassVar[type[PurifierSettings]] = DiffPureSettings

    settings: DiffPureSettings

    def purify(
        self, x_a: Tensor, noise: Noise, run: Runner = as_it_is, *, noised: bool = False
    ) -> Tensor:
        """The algorithm; arguments as of every purifier's, and

        Args:
            noised: ``x_a`` is noised already: it is x + sigma eps.
        """
        times = self.times(x_a, noise)
        return diffpure(x_a, run(self.reverse), noise, times, noised=noised)

    def times(self, x: Tensor, noise: Noise, m: int = 0) -> list[Tensor]:
        """From t* to 0, ``steps + 1`` of them, each of shape ``(B, 1, 1, 1)``."""
        n = self.settings.steps
        first = VP.time(noise.level(self.settings.sigma, m, x))
        valid = VP.time(first.new_tensor(self.denoiser.sigma_range[0]))
        last = torch.maximum(first / n, valid)  # where the step to 0 starts
        between = [torch.lerp(first, last, j / (n - 1)) for j in range(1, n)]
        return [first, *between, torch.zeros_like(first)]

    def reverse(self, x_t: Tensor, t: Tensor, s: Tensor, noise: Noise, m: int, j: int) -> Tensor:
        """The step from time t to s, the j-th of round m."""
        alpha, sigma = VP.scales(t)
        level = (sigma / alpha).clamp(*self.denoiser.sigma_range)  # its ends, but for rounding
        denoised = self.denoiser(x_t / alpha, level)
        if self.settings.sampler == "ddim":
            return ddim(x_t, denoised, t, s)
        return ddpm(x_t, denoised, t, s, noise.eps_2(m, j, x_t))
