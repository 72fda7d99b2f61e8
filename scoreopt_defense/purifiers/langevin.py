"""Langevin dynamics: long runs of a learned density's own Markov chain, from the image on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from scoreopt_defense._checks import check_count, check_flag, check_positive
from scoreopt_defense.gradients import BPDA, Gradient, Runner, as_it_is
from scoreopt_defense.noise import Noise
from scoreopt_defense.purifiers.base import Purifier
from scoreopt_defense.purifiers.settings import PurifierSettings

__all__ = ["Langevin", "LangevinSettings", "langevin"]


def langevin(x_a: Tensor, step: Callable, noise: Noise, K: int) -> Tensor:
    """K steps of the chain, each with noise of its own."""
    x = x_a
    for k in range(K):
        x = step(x, noise, k)
    return x


@dataclass(frozen=True, kw_only=True)
class LangevinSettings(PurifierSettings):
    """Settings of :class:`Langevin`."""

    gradient: Gradient = BPDA()
    level: float = 0.1
    step_size: float = 0.01
    steps: int = 1500
    denoise: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("level", check_positive("level", self.level))
        self._set("step_size", check_positive("step_size", self.step_size))
        self._set("steps", check_count("steps", self.steps, least=0))
        check_flag("denoise", self.denoise)


class Langevin(Purifier):
    r"""Steps of Langevin dynamics: the defence of energy-based models.

    .. math:: x \leftarrow x + \frac{\tau^2}{2} \nabla \log p(x) + \tau z, \qquad
              z \sim \mathcal N(0, I), \qquad
              \nabla \log p(x) = \frac{D_\theta(x; s) - x}{s^2}

    Of an energy network (:class:`~scoreopt_defense.denoisers.EnergyDenoiser`) the score is
    :math:`-\nabla U_\theta`, whatever s; of a diffusion model it is that of images noised by s. A
    long chain forgets the perturbation, and the class at last too. A step is a call of the
    denoiser, of an energy a forward and a backward pass. Nothing is clamped between steps.

    The authors average the logits of many chains, 150 of them where a decision counts, and attack
    by BPDA: ``DefendedModel(..., votes=150)``, and ``EOT`` for the attack. Their network returns
    :math:`\tau^2 / 2` times U, 5e-5 of it, so that a step subtracts its gradient as it is; through
    a network that is linear between kinks, as theirs, the exact gradient is BPDA's.

    Args:
        denoiser: the prior.
        level: s, at which the score is taken, on the [-1, 1] scale.
        step_size: :math:`\tau`, on the [-1, 1] scale; the authors'. A chain is stable while
            :math:`\tau < 2 s`, with s the noise that images of the density have.
        steps: K; the authors'.
        denoise: denoise once at the end, at s, so that the classifier does not see the noise that
            images of the density have (Saremi and Hyvärinen, 2019, call it a jump). The authors'
            images have little, 0.02, and they do not.
        gradient, deterministic, max_batch, autocast, channels_last, size, seed: as in
            :class:`~scoreopt_defense.purifiers.PurifierSettings`; the gradient is ``"bpda"``.

    Raises:
        ValueError: if ``level`` is outside the denoiser's noise levels.

    Example:
        >>> import torch
        >>> from scoreopt_defense.denoisers import GaussianDenoiser
        >>> purifier = Langevin(GaussianDenoiser(), step_size=0.05, steps=20)
        >>> purifier(torch.rand(8, 3, 32, 32)).shape
        torch.Size([8, 3, 32, 32])

    Reference:
        Hill, Mitchell and Zhu, "Stochastic security: adversarial defense using long-run dynamics of
        energy-based models", ICLR 2021; https://github.com/point0bar1/ebm-defense.
    """

    Settings: ClassVar[type[PurifierSettings]] = LangevinSettings

    settings: LangevinSettings

    def purify(self, x_a: Tensor, noise: Noise, run: Runner = as_it_is) -> Tensor:
        x = langevin(x_a, run(self.step), noise, self.settings.steps)
        return run(self.denoised)(x) if self.settings.denoise else x

    def step(self, x: Tensor, noise: Noise, k: int) -> Tensor:
        """The k-th step of the chain."""
        s, tau = self.settings.level, self.settings.step_size
        score = (self.denoised(x) - x) / s**2
        return x + tau**2 / 2 * score + tau * noise.eps_1(k, x)

    def denoised(self, x: Tensor) -> Tensor:
        """Images denoised at s."""
        level = x.new_full((1,), self.settings.level)  # where the images are: nothing to copy
        return self.denoiser(x, level)
