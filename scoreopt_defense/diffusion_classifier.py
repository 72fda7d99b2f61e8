"""A classifier that is a denoiser: an image is of the class that denoises it best."""

from __future__ import annotations

import math
from statistics import NormalDist

import torch
from torch import Tensor, nn

from scoreopt_defense._checks import (
    check_count,
    check_flag,
    check_images,
    check_positive,
    check_sigma,
)
from scoreopt_defense.denoisers import ClassConditionalDenoiser, Denoiser
from scoreopt_defense.noise import Noise, Stream
from scoreopt_defense.objectives import denoising_error
from scoreopt_defense.steps.recomputation import recompute

__all__ = ["DiffusionClassifier"]

# Two standard deviations of EDM's law either way, e^(-1.2 +- 2.4): Karras et al., 2022, Table 1.
_EDM = 0.027, 3.3


class DiffusionClassifier(nn.Module):
    r"""Logits of images in [0, 1]: how well each class's denoiser denoises them.

    .. math::
        \mathrm{logit}_y(x) = -\frac{1}{2K} \sum_{k=1}^K \sum_{\pm} w(\sigma_k)\,
            \| D_\theta(x \pm \sigma_k\epsilon_k; \sigma_k, y) - x \|_2^2, \qquad
        w(\sigma) = \frac{\sigma^2 + s^2}{(\sigma s)^2}

    By Bayes' rule with classes that are equally frequent: the weighted denoising error of a class
    bounds minus its log likelihood, up to a constant. All classes see the same noise. The robust
    diffusion classifier (RDC) purifies first, by LM:
    ``DefendedModel(DiffusionClassifier(...), ScoreOpt.from_preset("rdc/lm", denoiser))``.

    It can be differentiated with respect to images, at the memory of one pass of the denoiser; a
    call is 2 K passes a class.

    .. warning:: A class leads by tens of nats, and by more the larger the images: in float32 the
       cross-entropy has no gradient there, which looks like robustness. Attacks of this library
       divide such logits (:func:`~scoreopt_defense.attacks.losses.divisors`). Of another library's
       take a loss that is free of the logits' scale, such as the difference-of-logits ratio.

    Weights are those of the authors' code. Ours, to keep the cost down: its grid of 1,000 levels
    (126 in the example) under EDM's log-normal density, whose standard deviation is 1 / 1.2 there
    for 1.2, is K quantiles of that law here; noise comes in pairs of either sign, so that what is
    linear in it cancels; and errors are summed over pixels, where it takes means.

    Args:
        denoiser: of a class-conditional network.
        classes: how many it was told of, unless it says so; labels are 0 to ``classes - 1``.
        levels: K.
        sigma: (low, high), to which two standard deviations of the levels' log-normal law reach, on
            the [-1, 1] scale; by default EDM's (0.027, 3.3), as far as the denoiser is valid. The
            class shows at high levels: a small network wants (0.5, 5).
        sigma_data: s, the standard deviation of the images on [-1, 1].
        deterministic: every image and every call has the same noise. Otherwise each has its own.
        seed: where the stream of noise starts; without one at the operating system's entropy, and
            if ``deterministic`` at 0.

    Raises:
        TypeError: if ``denoiser`` takes no class label.
        ValueError: naming the argument, its value and what is allowed.

    Example:
        >>> from scoreopt_defense import data, pretrained
        >>> x, y, _ = data.mnist(n=2)
        >>> denoiser = pretrained.denoiser("mnist-tiny-labelled")
        >>> DiffusionClassifier(denoiser, levels=4)(x).shape
        torch.Size([2, 10])

    Reference:
        Chen et al., "Robust classification via a single diffusion model", ICML 2024, section 3;
        https://github.com/huanranchen/DiffusionClassifier (EDMDC.py).
    """

    def __init__(
        self,
        denoiser: Denoiser,
        classes: int | None = None,
        *,
        levels: int = 16,
        sigma: tuple[float, float] | None = None,
        sigma_data: float = 0.5,
        deterministic: bool = True,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(denoiser, ClassConditionalDenoiser):
            raise TypeError(
                "denoiser must be a ClassConditionalDenoiser, such as an EDMDenoiser of a network "
                f"that takes labels, got {type(denoiser).__name__}"
            )
        check_flag("deterministic", deterministic)
        self.denoiser: ClassConditionalDenoiser = denoiser
        known = denoiser.label_dim
        self.classes = check_count(
            "classes", known if classes is None else classes, least=2, most=known or None
        )
        least, most = denoiser.sigma_range
        ends = sigma or (max(least, _EDM[0]), min(most, _EDM[1]))
        self.sigmas = quantiles(
            *check_sigma(ends, valid=(least, most)), check_count("levels", levels)
        )
        self.sigma_data = check_positive("sigma_data", sigma_data)
        self.deterministic = deterministic
        if deterministic and seed is None:
            seed = 0
        self.seed = seed if seed is None else check_count("seed", seed, least=0)
        self.training = False
        # only fresh noise has a stream, which a judge starts anew: fixed noise is the defence's own
        self._stream = None if deterministic else Stream(self.seed)

    def forward(self, x: Tensor, *, seed: int | None = None) -> Tensor:
        """Logits, shape ``(B, classes)``.

        Args:
            x: images, shape ``(B, C, H, W)``, in [0, 1].
            seed: makes this call's noise reproducible.
        """
        check_images(x, channels=self.denoiser.channels)
        if seed is None:
            seed = self._stream.next_call() if self._stream else self.seed
        seed = check_count("seed", seed, least=0)
        noise = Noise.of_batch(seed, len(x), shared=self.deterministic, device=x.device)
        x, s = 2 * x - 1, self.sigma_data
        told = [self.denoiser.with_class_label(y) for y in range(self.classes)]
        logits = x.new_zeros(len(x), self.classes)
        for k, sigma in enumerate(self.sigmas):
            weight = (sigma**2 + s**2) / (sigma * s) ** 2
            shift = sigma * noise.eps_1(k, x)

            errors = [recompute(mean_error)(x, denoiser, sigma, shift) for denoiser in told]
            logits = logits - weight / len(self.sigmas) * torch.stack(errors, 1)
        return logits

    def extra_repr(self) -> str:
        low, high = self.sigmas[0], self.sigmas[-1]
        return (
            f"classes={self.classes}, levels={len(self.sigmas)} from {low:g} to {high:g}, "
            f"sigma_data={self.sigma_data:g}, deterministic={self.deterministic}, seed={self.seed}"
        )


def mean_error(x: Tensor, denoiser: nn.Module, sigma: float, shift: Tensor) -> Tensor:
    """Of both signs of the noise, shape ``(B,)``."""
    denoised = denoiser(torch.cat([x + shift, x - shift]), sigma)
    return denoising_error(denoised, torch.cat([x, x])).unflatten(0, (2, -1)).mean(0)


def quantiles(low: float, high: float, count: int) -> list[float]:
    """Noise levels that part a log-normal law evenly, clipped to the two ends, lowest first."""
    law = NormalDist(math.log(low * high) / 2, math.log(high / low) / 4 or 1.0)
    levels = (math.exp(law.inv_cdf((k + 0.5) / count)) for k in range(count))
    return [min(max(level, low), high) for level in levels]
