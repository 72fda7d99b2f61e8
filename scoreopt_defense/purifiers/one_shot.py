"""One-shot denoising."""

from __future__ import annotations

from torch import Tensor

from scoreopt_defense.gradients import Runner, call
from scoreopt_defense.noise import Noise
from scoreopt_defense.purifiers.base import Purifier

__all__ = ["OneShot"]


class OneShot(Purifier):
    r"""Noise the image once and denoise it once: the first baseline, and the attacks' surrogate.

    .. math:: \hat x = D_\theta(x_a + \sigma\epsilon; \sigma)

    Args:
        denoiser, sigma, gradient, deterministic, max_batch, seed: as in
            :class:`~scoreopt_defense.purifiers.base.Purifier`.

    Example:
        >>> import torch
        >>> from scoreopt_defense.denoisers import GaussianDenoiser
        >>> purifier = OneShot(GaussianDenoiser(), sigma=0.25)
        >>> purifier(torch.rand(8, 3, 32, 32)).shape
        torch.Size([8, 3, 32, 32])

    Reference:
        Carlini et al., ICLR 2023; Zhang et al., NeurIPS 2023, eq. (5).
    """

    @classmethod
    def surrogate_of(cls, purifier: Purifier) -> OneShot:
        """One-shot denoising with a purifier's denoiser, noise levels and settings."""
        twin = cls(
            purifier.denoiser,
            sigma=purifier.sigma,
            deterministic=purifier.deterministic,
            max_batch=purifier.max_batch,
        )
        twin._stream = purifier._stream.spawn(1)[0]
        twin._fixed_seed = purifier._fixed_seed
        return twin

    def purify(self, x_a: Tensor, noise: Noise, run: Runner = call) -> Tensor:
        (x,) = run(lambda x_a: [self._one_shot(x_a, noise)], x_a)
        return x
