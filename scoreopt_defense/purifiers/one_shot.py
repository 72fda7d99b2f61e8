"""One-shot denoising: noise an image once, and denoise it once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from scoreopt_defense._checks import check_sigma
from scoreopt_defense.gradients import Runner, as_it_is
from scoreopt_defense.noise import Noise
from scoreopt_defense.purifiers.base import Purifier
from scoreopt_defense.purifiers.settings import PurifierSettings

__all__ = ["OneShot", "OneShotSettings"]


@dataclass(frozen=True, kw_only=True)
class OneShotSettings(PurifierSettings):
    """Settings of :class:`OneShot`."""

    sigma: tuple[float, float] = (0.25, 0.25)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("sigma", check_sigma(self.sigma))


class OneShot(Purifier):
    r"""Noise the image once and denoise it once: the first baseline, and the attacks' surrogate.

    .. math:: \hat x = D_\theta(x_a + \sigma\epsilon; \sigma)

    Args:
        denoiser: the prior.
        sigma: noise level, or (low, high) to draw it from uniformly, on the [-1, 1] scale; one draw
            for the whole batch.
        gradient, deterministic, max_batch, autocast, channels_last, size, seed: as in
            :class:`~scoreopt_defense.purifiers.PurifierSettings`.

    Example:
        >>> import torch
        >>> from scoreopt_defense.denoisers import GaussianDenoiser
        >>> purifier = OneShot(GaussianDenoiser(), sigma=0.25)
        >>> purifier(torch.rand(8, 3, 32, 32)).shape
        torch.Size([8, 3, 32, 32])

    Reference:
        Carlini et al., ICLR 2023; Zhang et al., NeurIPS 2023, eq. (5).
    """

    Settings: ClassVar[type[PurifierSettings]] = OneShotSettings

    settings: OneShotSettings

    @classmethod
    def surrogate_of(cls, purifier: Purifier) -> OneShot:
        """One-shot denoising with a purifier's denoiser, noise levels and settings.

        Raises:
            AttributeError: for a purifier without a noise level ``sigma``.
        """
        if "one-shot" not in purifier.modes:
            raise AttributeError(
                f"{type(purifier).__name__} has no noise level sigma, and so no one-shot surrogate"
            )
        own = purifier.replace()
        shared = {name: getattr(own, name) for name in cls.Settings.names() if name != "gradient"}
        return cls(purifier.denoiser, **shared)

    def purify(
        self, x_a: Tensor, noise: Noise, run: Runner = as_it_is, *, noised: bool = False
    ) -> Tensor:
        """The algorithm; arguments as of every purifier's, and

        Args:
            noised: ``x_a`` is noised already: it is x + sigma eps.
        """
        if noised:
            sigma = noise.level(self.settings.sigma, 0, x_a)
            return run(lambda x_t: self.denoiser(x_t, sigma))(x_a)
        return run(lambda x_a: self.one_shot(x_a, noise))(x_a)
