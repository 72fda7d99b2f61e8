"""GDMP: reverse diffusion that is guided towards the attacked image, several rounds of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from scoreopt_defense._checks import check_count, check_positive
from scoreopt_defense.gradients import Runner, as_it_is
from scoreopt_defense.noise import Noise
from scoreopt_defense.purifiers.diffpure import VP, DiffPure, DiffPureSettings, diffpure
from scoreopt_defense.purifiers.settings import PurifierSettings

__all__ = ["GDMP", "GDMPSettings"]


@dataclass(frozen=True, kw_only=True)
class GDMPSettings(DiffPureSettings):
    """Settings of :class:`GDMP`."""

    sigma: tuple[float, float] = (0.129, 0.129)  # of step 36 of 1000, as configs/cifar10_MSE.yml
    steps: int = 36
    rounds: int = 4
    # There 2 / (B C H W) from the mean squared error of a batch of 100, over 8/255 * 2 / 3 / 60000.
    scale: float = 18.7

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("rounds", check_count("rounds", self.rounds))
        self._set("scale", check_positive("scale", self.scale, zero=True))


class GDMP(DiffPure):
    r"""DiffPure whose every step is shifted towards the attacked image, noised alike.

    .. math:: x_s \leftarrow x_s + \lambda\, \frac{\sigma_t}{\alpha_t}
              \Big(1 - \frac{\alpha_t^2}{\alpha_s^2}\Big) (x_{a,t} - x_t), \qquad
              x_{a,t} = \alpha_t x_a + \sigma_t \epsilon'

    That is the gradient of :math:`-\|x_t - x_{a,t}\|_2^2 / 2`, times the variance of the step and a
    scale that grows with the noise, as the authors guide by the mean squared error. Each step draws
    its own :math:`\epsilon'`; each round starts at the image that the one before it ended with, and
    is guided by the attacked one. The authors clamp the denoised image of each step to [-1, 1];
    these steps do not.

    Args:
        denoiser: the prior.
        sigma, steps, sampler: of each round, as in :class:`~scoreopt_defense.DiffPure`.
        rounds: how often the image is noised and taken back; the authors' M.
        scale: :math:`\lambda`; 0 is no guidance. The default is that of the authors' configuration
            for CIFAR-10, as it works on an image in a batch of theirs.
        gradient, deterministic, max_batch, autocast, channels_last, size, seed: as in
            :class:`~scoreopt_defense.purifiers.PurifierSettings`.

    Example:
        >>> import torch
        >>> from scoreopt_defense.denoisers import GaussianDenoiser
        >>> purifier = GDMP(GaussianDenoiser(), sigma=0.13, steps=4, rounds=2)
        >>> purifier(torch.rand(8, 3, 32, 32)).shape
        torch.Size([8, 3, 32, 32])

    Reference:
        Wang et al., "Guided diffusion model for adversarial purification", 2022, arXiv:2205.14969;
        https://github.com/JinyiW/GuidedDiffusionPur.
    """

    Settings: ClassVar[type[PurifierSettings]] = GDMPSettings

    settings: GDMPSettings

    def purify(  # type: ignore[override]  # it reads x_a itself: noised is no option of its
        self, x_a: Tensor, noise: Noise, run: Runner = as_it_is
    ) -> Tensor:
        guided = run(self.guided)
        x = x_a
        for m in range(self.settings.rounds):
            x = diffpure(
                x, lambda x_t, *rest: guided(x_t, x_a, *rest), noise, self.times(x_a, noise, m), m
            )
        return x

    def guided(
        self,
        x_t: Tensor,
        x_a: Tensor,
        t: Tensor,
        s: Tensor,
        noise: Noise,
        m: int,
        j: int,
    ) -> Tensor:
        """The step from time t to s, and its shift."""
        (alpha, sigma), (alpha_s, _) = VP.scales(t), VP.scales(s)
        x_at = alpha * x_a + sigma * noise.eps_2(m, self.settings.steps + j, x_a)
        pull = self.settings.scale * sigma / alpha * (1 - (alpha / alpha_s) ** 2)
        return self.reverse(x_t, t, s, noise, m, j) + pull * (x_at - x_t)
