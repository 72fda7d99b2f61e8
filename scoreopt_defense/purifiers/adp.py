"""ADP: climb a learned density with steps that its curvature sets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from scoreopt_defense._checks import check_count, check_positive, check_sigma
from scoreopt_defense.gradients import Runner, as_it_is
from scoreopt_defense.noise import Noise
from scoreopt_defense.purifiers.base import Purifier
from scoreopt_defense.purifiers.settings import PurifierSettings

__all__ = ["ADP", "ADPSettings", "adp"]

# Of the authors' purification/adp.py, whose images are in [0, 1], doubled for [-1, 1].
_DELTA = 2e-3  # how far along the score the next one is taken
_LEAST, _MOST = 2e-5, 0.2  # steps


def adp(x_a: Tensor, ascend: Callable, noise: Noise, sigma: tuple[float, float], N: int) -> Tensor:
    """Noise the image, and climb until the steps get short."""
    x = (x_a + noise.level(sigma, 0, x_a) * noise.eps_1(0, x_a)).clamp(-1, 1)
    climbs = torch.ones(len(x), 1, dtype=torch.bool, device=x.device)
    for _ in range(N):
        x, climbs = ascend(x, climbs)
    return x


@dataclass(frozen=True, kw_only=True)
class ADPSettings(PurifierSettings):
    """Settings of :class:`ADP`."""

    sigma: tuple[float, float] = (0.5, 0.5)
    level: float = 0.5
    steps: int = 10
    share: float = 0.3
    shortest: float = 2e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("sigma", check_sigma(self.sigma))
        self._set("level", check_positive("level", self.level))
        self._set("steps", check_count("steps", self.steps, least=0))
        self._set("share", check_positive("share", self.share))
        self._set("shortest", check_positive("shortest", self.shortest, zero=True))


class ADP(Purifier):
    r"""Noise the image, and climb along the score with adaptive steps.

    .. math::
        g(x) &= (D_\theta(x; s) - x) / s, \qquad
        \kappa = \frac{g(x) \cdot (g(x) - g(x + \delta g(x)))}{\delta\, \|g(x)\|^2} \\
        x &\leftarrow \Pi_{[-1, 1]}\big(x + \lambda \kappa^{-1} g(x)\big)

    :math:`g` is the score times its noise level s: the authors run a network that predicts noise,
    and set its own level to 1. The curvature :math:`\kappa` of the log density along :math:`g`
    makes a step a share :math:`\lambda` of Newton's, whatever g is scaled by; it is kept within
    [2e-5, 0.2], and is the least where the density curves upwards. An image whose step falls to
    ``shortest`` stays where it is from then on, by a mask, so that the number of steps depends on
    no image. A step is two calls of the denoiser.

    The authors average the logits of ten noised copies: ``DefendedModel(..., votes=10)``.

    Args:
        denoiser: the prior.
        sigma: of the noise that is put on first, or (low, high) to draw it from uniformly, on the
            [-1, 1] scale; one draw for the whole batch. The authors' 0.25 is on [0, 1].
        level: s, at which the score is taken.
        steps: at most so many.
        share: :math:`\lambda`: n steps leave :math:`(1 - \lambda)^n` of the way to a normal mode.
            The authors' 0.05 is for their network, which is told of no noise level and finds it in
            the image: its output keeps its length along the way, the curvature is near 0, and steps
            are long. At one level for all, 10 steps of 0.05 leave 60 % of the noise.
        shortest: an image stops at a step of this size, on the [-1, 1] scale; the authors' 1e-3 is
            on [0, 1].
        gradient, deterministic, max_batch, autocast, channels_last, size, seed: as in
            :class:`~scoreopt_defense.purifiers.PurifierSettings`.

    Raises:
        ValueError: if ``sigma`` or ``level`` is outside the denoiser's noise levels.

    Example:
        >>> import torch
        >>> from scoreopt_defense.denoisers import GaussianDenoiser
        >>> purifier = ADP(GaussianDenoiser(), sigma=0.5, steps=10)
        >>> purifier(torch.rand(8, 3, 32, 32)).shape
        torch.Size([8, 3, 32, 32])

    Reference:
        Yoon, Hwang and Lee, "Adversarial purification with score-based generative models", ICML
        2021, section 3; https://github.com/jmyoon1/adp.
    """

    Settings: ClassVar[type[PurifierSettings]] = ADPSettings

    settings: ADPSettings

    def purify(self, x_a: Tensor, noise: Noise, run: Runner = as_it_is) -> Tensor:
        return adp(x_a, run(self.ascend), noise, self.settings.sigma, self.settings.steps)

    def ascend(self, x: Tensor, climbs: Tensor) -> tuple[Tensor, Tensor]:
        """One step of the images that ``climbs`` marks, shape ``(B, 1)``, and which go on."""
        g = self.score(x)
        step = self.step_size(g, self.score(x + _DELTA * g))
        climbs = climbs & (step > self.settings.shortest)
        moves = (step * climbs).reshape(-1, 1, 1, 1)
        return (x + moves * g).clamp(-1, 1), climbs

    def score(self, x: Tensor) -> Tensor:
        """The score times its noise level."""
        level = x.new_full((1,), self.settings.level)  # where the images are: nothing to copy
        return (self.denoiser(x, level) - x) / level

    def step_size(self, g: Tensor, g_ahead: Tensor) -> Tensor:
        r""":math:`\lambda / \kappa`, shape ``(B, 1)``, within its bounds."""
        share = self.settings.share
        g, change = g.flatten(1), (g - g_ahead).flatten(1)
        square = g.square().sum(1, keepdim=True)
        # where the score is zero any step is none, but 0 / 0 would be no number
        curvature = (g * change).sum(1, keepdim=True) / (
            _DELTA * torch.where(square > 0, square, 1)
        )
        step = (share / curvature.clamp(min=share / _MOST)).clamp(min=_LEAST)
        return torch.where(curvature > 0, step, _LEAST)
