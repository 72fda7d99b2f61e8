"""What an attack can make of a gradient: whether it is right, how noisy it is, where it leads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from scoreopt_defense._checks import check_count, check_labels, check_positive
from scoreopt_defense._drawing import axes_or_new
from scoreopt_defense.attacks.losses import divisors
from scoreopt_defense.defended import DefendedModel
from scoreopt_defense.gradients import BPDA, GRADIENTS, Gradient, OneShotGradient
from scoreopt_defense.settings import Options, chosen, name_of

__all__ = [
    *("Agreement", "GradientNoise", "LossAlong"),
    *("gradient_agreement", "gradient_noise", "input_gradient", "loss_along"),
]


def input_gradient(
    model: DefendedModel, x: Tensor, y: Tensor, *, samples: int = 1, seed: int | None = None
) -> Tensor:
    r"""Gradient that PGD+EOT takes its sign of, image by image.

    .. math:: \nabla_x\, \mathrm{CE}\Big(\frac1k \sum_{r=1}^k f(P_r(x)),\, y\Big)

    of logits divided as :func:`~scoreopt_defense.attacks.losses.divisors` says, where these are
    very sure.

    Args:
        model: differentiated in its purifier's mode.
        x: images, shape ``(B, C, H, W)``, in [0, 1].
        y: labels, shape ``(B,)``, integers from 0.
        samples: purifications k that the logits are averaged over, times the model's votes.
        seed: of the noise; the same seed shows every mode the same function.

    Returns:
        Shape of ``x``.
    """
    y = check_labels(y, len(x))
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        logits = model(x, seed=seed, samples=samples)
        loss = F.cross_entropy(logits / divisors(logits.detach(), y), y, reduction="sum")
    return torch.autograd.grad(loss, x)[0]


@dataclass(frozen=True)
class Agreement:
    """How a mode's gradient agrees with a reference: by mode, one value an image.

    Attributes:
        cosine: of the angle between the two, in [-1, 1].
        sign: share of pixels on which both have the same sign; 0.5 is chance.
        reference: the mode that they are compared with.
    """

    cosine: dict[str, Tensor]
    sign: dict[str, Tensor]
    reference: str = "exact"

    def plot(self, axes: Any = None) -> Any:
        """Box plots of both, a box a mode; returns the matplotlib axes."""
        axes = axes_or_new(axes)
        values = [
            (f"{mode}\n{what}", data[mode].tolist())
            for what, data in (("cosine", self.cosine), ("sign", self.sign))
            for mode in data
        ]
        axes.boxplot([value for _, value in values], tick_labels=[name for name, _ in values])
        axes.set(ylabel=f"agreement with {self.reference}", ylim=(-1, 1))
        return axes


def gradient_agreement(
    model: DefendedModel,
    x: Tensor,
    y: Tensor,
    *,
    modes: Sequence[str | Gradient] = (OneShotGradient(), BPDA()),
    reference: str | Gradient = "exact",
    samples: int = 1,
    seed: int = 0,
) -> Agreement:
    """Compare gradients with a reference, on the same images and noise.

    Args:
        model: for most references its denoiser must be twice differentiable.
        x: images, shape ``(B, C, H, W)``, in [0, 1].
        y: labels, shape ``(B,)``, integers from 0.
        modes: which ones, by name or as objects.
        reference: what they are compared with, likewise.
        samples: purifications that each gradient is averaged over.
        seed: of the noise.
    """
    known = Options(GRADIENTS, Gradient)

    def gradient(mode: Gradient) -> Tensor:
        shown = model.with_gradient(mode)
        return input_gradient(shown, x, y, samples=samples, seed=seed).flatten(1)

    ideal = chosen("reference", reference, known)
    right = gradient(ideal)
    compared = [chosen("modes", mode, known) for mode in modes]
    found = {name_of(mode, GRADIENTS): gradient(mode) for mode in compared}
    return Agreement(
        cosine={mode: F.cosine_similarity(g, right, dim=1) for mode, g in found.items()},
        sign={mode: (g.sign() == right.sign()).float().mean(1) for mode, g in found.items()},
        reference=name_of(ideal, GRADIENTS),
    )


@dataclass(frozen=True)
class GradientNoise:
    r"""A gradient's noise against the number k of purifications that it is averaged over.

    Attributes:
        samples: the values of k.
        signal_to_noise: :math:`\|\mathbb E g\|^2 / (\mathrm{tr}\,\mathrm{Cov}(g) / k)`, shape
            ``(len(samples), B)``. Below 1, most of the gradient is noise.
        sign: share of pixels whose sign at k is that of an independent average over as many as
            were drawn in all, same shape; where it levels off, more purifications buy nothing.
    """

    samples: tuple[int, ...]
    signal_to_noise: Tensor
    sign: Tensor

    def plot(self, axes: Any = None) -> Any:
        """Mean sign agreement and median signal-to-noise against k."""
        axes = axes_or_new(axes)
        axes.plot(self.samples, self.sign.mean(1), marker="o")
        axes.set(xlabel="EOT samples", ylabel="share of settled signs", xscale="log")
        twin = axes.twinx()
        twin.plot(self.samples, self.signal_to_noise.median(1).values, marker="s", color="C1")
        twin.set(ylabel="signal to noise (median image)", yscale="log")
        return axes


def gradient_noise(
    model: DefendedModel,
    x: Tensor,
    y: Tensor,
    *,
    samples: Sequence[int] = (1, 2, 4, 8, 16),
    seed: int = 0,
) -> GradientNoise:
    """How many purifications an attack must average before its gradient's sign settles.

    Draws twice the largest k of single-purification gradients: one half is averaged, the other
    is what the averages are compared with.

    Args:
        model: differentiated in its purifier's mode.
        x: images, shape ``(B, C, H, W)``, in [0, 1].
        y: labels, shape ``(B,)``, integers from 0.
        samples: the values of k, each at least 1.
        seed: of the noise; gradient r uses ``seed + r``.
    """
    ks = tuple(check_count("samples", k) for k in samples)
    most = max(ks)
    draws = torch.stack(
        [input_gradient(model, x, y, seed=seed + r).flatten(1) for r in range(2 * most)]
    )
    half, reference = draws[:most], draws[most:].mean(0)
    variance = draws.var(0).sum(1)
    # The squared norm of a mean of n draws is too large by the mean's own variance.
    signal = (draws.mean(0).square().sum(1) - variance / len(draws)).clamp_min(0)
    return GradientNoise(
        samples=ks,
        signal_to_noise=torch.stack([signal / (variance / k) for k in ks]),
        sign=torch.stack(
            [(half[:k].mean(0).sign() == reference.sign()).float().mean(1) for k in ks]
        ),
    )


@dataclass(frozen=True)
class LossAlong:
    """Cross-entropy of the defended model on the way out from an image.

    Attributes:
        radii: l-infinity distances from the image, shape ``(R,)``.
        attack: along the sign of the gradient, shape ``(R, B)``.
        random: along a random sign vector, same shape. A gradient that does no better than this
            is no use to an attack.
    """

    radii: Tensor
    attack: Tensor
    random: Tensor

    def plot(self, axes: Any = None) -> Any:
        """Both means against the distance."""
        axes = axes_or_new(axes)
        axes.plot(self.radii, self.attack.mean(1), label="along the gradient's sign")
        axes.plot(self.radii, self.random.mean(1), label="along a random sign vector")
        axes.set(xlabel="l-infinity distance", ylabel="cross-entropy")
        axes.legend()
        return axes


def loss_along(
    model: DefendedModel,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    points: int = 9,
    samples: int = 4,
    seed: int = 0,
) -> LossAlong:
    """The loss along the attack's direction and along a random one.

    Args:
        model: differentiated in its purifier's mode, once, at ``x``.
        x: images, shape ``(B, C, H, W)``, in [0, 1].
        y: labels, shape ``(B,)``, integers from 0.
        eps: farthest l-infinity distance.
        points: distances from 0 to ``eps``.
        samples: purifications that gradient and logits are averaged over.
        seed: of the gradient's noise and the random direction; the loss is taken under other
            noise, the same at every distance.
    """
    y = check_labels(y, len(x))
    check_positive("eps", eps)
    attack = input_gradient(model, x, y, samples=samples, seed=seed).sign()
    generator = torch.Generator().manual_seed(seed)
    random = (torch.randint(2, x.shape, generator=generator) * 2 - 1).to(x)
    radii = torch.linspace(0, eps, check_count("points", points, least=2))

    @torch.no_grad()
    def loss(direction: Tensor, radius: float) -> Tensor:
        moved = (x + radius * direction).clamp(0, 1)
        logits = model(moved, seed=seed + 1, samples=samples)
        return F.cross_entropy(logits, y, reduction="none")

    return LossAlong(
        radii=radii,
        attack=torch.stack([loss(attack, radius) for radius in radii.tolist()]),
        random=torch.stack([loss(random, radius) for radius in radii.tolist()]),
    )
