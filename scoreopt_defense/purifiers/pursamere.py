"""PurSAMERE: go to where the expected reconstruction error is small, and flat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from scoreopt_defense._checks import check_count, check_positive, check_sigma
from scoreopt_defense.gradients import Runner, as_it_is
from scoreopt_defense.noise import Noise
from scoreopt_defense.objectives import Diff
from scoreopt_defense.optimizers import OPTIMIZERS, Adam, Optimizer, ascended
from scoreopt_defense.purifiers.base import Purifier
from scoreopt_defense.purifiers.descent import Descent
from scoreopt_defense.purifiers.settings import PurifierSettings
from scoreopt_defense.settings import Options

__all__ = ["PurSAMERE", "PurSAMERESettings", "pursamere"]


def pursamere(
    x_a: Tensor, descent: Descent, bank: Sequence[Tensor], sigma: Tensor, N: int, rho: float
) -> Tensor:
    """N sharpness-aware steps down the mean reconstruction error under the noises of a bank."""
    x, state = x_a, descent.start(x_a)

    def gradient(x: Tensor) -> Tensor:
        each = (descent.gradient(x + sigma * eps, x, x_a, None, sigma, state)[0] for eps in bank)
        return sum(each, x.new_zeros(())) / len(bank)

    for i in range(N):
        x_worst = ascended(x, gradient(x), rho) if rho else x
        x, state = descent.update(i + 1, x, gradient(x_worst), state)
    return x


@dataclass(frozen=True, kw_only=True)
class PurSAMERESettings(PurifierSettings):
    """Settings of :class:`PurSAMERE`."""

    sigma: tuple[float, float] = (0.25, 0.25)
    bank: int = 4
    steps: int = 5
    lr: float = 0.05
    rho: float = 0.5
    optimizer: Optimizer = Adam()
    deterministic: bool | str = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("sigma", check_sigma(self.sigma))
        self._set("bank", check_count("bank", self.bank))
        self._set("steps", check_count("steps", self.steps, least=0))
        self._set("lr", check_positive("lr", self.lr))
        self._set("rho", check_positive("rho", self.rho, zero=True))

    @classmethod
    def options(cls) -> dict[str, Options]:
        return super().options() | {"optimizer": Options(OPTIMIZERS, Optimizer)}


class PurSAMERE(Purifier):
    r"""Minimise the expected reconstruction error of an image by sharpness-aware steps.

    .. math::
        R(x) &= \frac1K \sum_k \| D_\theta(x + \sigma\epsilon_k; \sigma) - x \|_2^2 \\
        x &\leftarrow x - \eta\, \mathrm{step}\Big(
            \nabla R\big(x + \rho\, \nabla R(x) / \|\nabla R(x)\|_2\big)\Big)

    from the attacked image on. It is deterministic: the bank of noises :math:`\epsilon_k` is the
    same in each step and, by default, for every image. A step takes 2K gradients through the
    denoiser, or K where ``rho`` is 0.

    Read from the paper's abstract, which is all of it that was at hand: that the method is
    deterministic and looks near the attacked image for one of small expected reconstruction error
    under noise, of which a score model is trained; and that sharpness-aware minimisation leads it
    to where that error is flat. Ours: the bank, Adam as the base step (as in ScoreOpt), that the
    neighbourhood is what so many steps reach, and every default.

    Args:
        denoiser: the prior.
        sigma: noise level, or (low, high) to draw it from uniformly, once for all steps, on the
            [-1, 1] scale.
        bank: K, noises in it.
        steps: sharpness-aware steps.
        lr: learning rate :math:`\eta`, on the [-1, 1] scale.
        rho: how far ahead, in l2 of an image on [-1, 1], the gradient is taken: uphill, where the
            error is worst to first order. 0 is plain descent.
        optimizer: of the step: ``"adam"``, ``"sgd"``, or an object, as of
            :class:`~scoreopt_defense.ScoreOpt`.
        deterministic: as in :class:`~scoreopt_defense.purifiers.PurifierSettings`, but by default
            True. False draws a new bank each call.
        gradient, max_batch, autocast, channels_last, size, seed: as in
            :class:`~scoreopt_defense.purifiers.PurifierSettings`.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is allowed.

    Example:
        >>> import torch
        >>> from scoreopt_defense.denoisers import GaussianDenoiser
        >>> purifier, x = PurSAMERE(GaussianDenoiser(), sigma=0.25), torch.rand(8, 3, 32, 32)
        >>> torch.equal(purifier(x), purifier(x))
        True

    Reference:
        Hoang, Krumscheid, Rauhut and Tempone, "PurSAMERE: reliable adversarial purification via
        sharpness-aware minimization of expected reconstruction error", arXiv 2602.06269, 2026.
    """

    Settings: ClassVar[type[PurifierSettings]] = PurSAMERESettings

    settings: PurSAMERESettings

    def purify(self, x_a: Tensor, noise: Noise, run: Runner = as_it_is) -> Tensor:
        s = self.settings
        descent = Descent(self.denoiser, Diff(), s.optimizer, s.lr, run=run)
        bank = [noise.eps_1(k, x_a) for k in range(s.bank)]
        return pursamere(x_a, descent, bank, noise.level(s.sigma, 0, x_a), s.steps, s.rho)
