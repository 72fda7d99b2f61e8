r"""The losses that ScoreOpt minimises: objects, and their terms, plain functions of tensors.

.. math::
    \mathcal L_{Diff} &= \| D_\theta(x_t; \sigma) - x \|_2^2 \\
    \mathcal L_{MSE} &= \mathcal L_{Diff} + \lambda \| x - x_a \|_2^2 \\
    \mathcal L_{SR} &= \mathcal L_{Diff}
        + \lambda \| D_\theta(x_t; \sigma) - D_\theta(x_{a,t}; \sigma) \|_2^2

Every term is a sum over an image's pixels, one value an image, so that no image's result depends on
the others in its batch. Images are on the denoiser's scale, [-1, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from torch import Tensor

from scoreopt_defense._checks import check_positive

__all__ = [
    "LOSSES",
    "MSE",
    "SR",
    "Diff",
    "Loss",
    "NoisePrediction",
    "denoising_error",
    "noise_error",
    "reconstruction",
    "score_regularization",
]


@runtime_checkable
class Loss(Protocol):
    """A loss: one value an image. A user's own, any such callable, stands where a name does.

    It may have an attribute ``compares``; where that is true it is given ``denoised_a``, which
    costs one more pass of the network a step.
    """

    def __call__(
        self,
        denoised: Tensor,
        x: Tensor,
        *,
        x_a: Tensor,
        denoised_a: Tensor | None,
        sigma: Tensor,
    ) -> Tensor:
        r"""The loss, summed over an image's pixels.

        Args:
            denoised: :math:`D_\theta(x_t; \sigma)`, shape ``(B, C, H, W)``, in [-1, 1].
            x: the image that ``x_t`` stands for, same shape.
            x_a: the attacked image, same shape.
            denoised_a: :math:`D_\theta(x_{a,t}; \sigma)`, or None.
            sigma: noise level, shape ``(B, 1, 1, 1)``.

        Returns:
            Shape ``(B,)``.
        """


@dataclass(frozen=True)
class Diff:
    """:func:`denoising_error`, eq. (6)."""

    def __call__(self, denoised: Tensor, x: Tensor, **_: object) -> Tensor:
        return denoising_error(denoised, x)


@dataclass(frozen=True)
class NoisePrediction:
    """:func:`noise_error`, the authors' own loss for ScoreOpt-N."""

    def __call__(self, denoised: Tensor, x: Tensor, *, sigma: Tensor, **_: object) -> Tensor:
        return noise_error(denoised, x, sigma)


@dataclass(frozen=True)
class MSE:
    r"""Diff with :func:`reconstruction`, eq. (7); ``weight`` is :math:`\lambda`."""

    weight: float = 1.0

    def __post_init__(self) -> None:
        check_positive("weight", self.weight, zero=True)

    def __call__(self, denoised: Tensor, x: Tensor, *, x_a: Tensor, **_: object) -> Tensor:
        return denoising_error(denoised, x) + self.weight * reconstruction(x, x_a)


@dataclass(frozen=True)
class SR:
    r"""Diff with :func:`score_regularization`, eq. (8); ``weight`` is :math:`\lambda`."""

    weight: float = 1.0
    compares: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_positive("weight", self.weight, zero=True)

    def __call__(self, denoised: Tensor, x: Tensor, *, denoised_a: Tensor, **_: object) -> Tensor:
        consistency = score_regularization(denoised, denoised_a)
        return denoising_error(denoised, x) + self.weight * consistency


#: What ``loss=`` may be by name.
LOSSES: dict[str, type] = {"diff": Diff, "mse": MSE, "sr": SR, "noise": NoisePrediction}


def denoising_error(denoised: Tensor, x: Tensor) -> Tensor:
    r"""The Diff loss: how far an image is from what the denoiser makes of its noised copy.

    .. math:: \| D_\theta(x_t; \sigma) - x \|_2^2

    Args:
        denoised: :math:`D_\theta(x_t; \sigma)`, shape ``(B, C, H, W)``.
        x: the image that ``x_t`` stands for, same shape.

    Returns:
        Shape ``(B,)``.

    Reference:
        Zhang et al., NeurIPS 2023, eq. (6).
    """
    return _squared_norm(denoised - x)


def noise_error(denoised: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    r"""The authors' loss for ScoreOpt-N: the error of the noise that the denoiser implies.

    .. math:: \left\| \frac{x_t - D_\theta(x_t; \sigma)}{\sigma} - \epsilon \right\|_2^2
        = \frac{1}{\sigma^2} \| D_\theta(x_t; \sigma) - x \|_2^2
        \quad\text{where}\quad x_t = x + \sigma\epsilon

    Args:
        denoised: :math:`D_\theta(x_t; \sigma)`, shape ``(B, C, H, W)``.
        x: the image that ``x_t`` stands for, same shape.
        sigma: noise level, shape ``(B, 1, 1, 1)``.

    Returns:
        Shape ``(B,)``.

    Reference:
        The authors' code; the paper does not print it.
    """
    return _squared_norm((denoised - x) / sigma)


def reconstruction(x: Tensor, x_a: Tensor) -> Tensor:
    r"""Consistency term of the MSE loss, one value per image.

    .. math:: \| x - x_a \|_2^2

    Args:
        x: the image being optimised, shape ``(B, C, H, W)``.
        x_a: the attacked image, same shape.

    Returns:
        Shape ``(B,)``.

    Reference:
        Zhang et al., NeurIPS 2023, eq. (7).
    """
    return _squared_norm(x - x_a)


def score_regularization(denoised: Tensor, denoised_a: Tensor) -> Tensor:
    r"""Consistency term of the SR loss, one value per image.

    .. math:: \| D_\theta(x_t; \sigma) - D_\theta(x_{a,t}; \sigma) \|_2^2

    Args:
        denoised: :math:`D_\theta(x_t; \sigma)`, shape ``(B, C, H, W)``.
        denoised_a: the same for the attacked image; carries no gradient to ``x_t``.

    Returns:
        Shape ``(B,)``.

    Reference:
        Zhang et al., NeurIPS 2023, eq. (8).
    """
    return _squared_norm(denoised - denoised_a)


def _squared_norm(difference: Tensor) -> Tensor:
    return difference.square().flatten(1).sum(1)
