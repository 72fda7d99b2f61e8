r"""A claim checked: the same images, the same defence, fresh purifications; nothing is attacked.

Image i of the n of a bundle is right in a share :math:`p_i` of all purifications that could be
drawn. The images are given, so that only the draws are random: of each image k by whoever claims,
and m by whoever checks. Both estimate a mean :math:`\theta = \sum_i p_i / n`; the claim's may be of
another defence, of luckier draws, or made up. With D the difference of both estimates, s its
standard error and :math:`\delta` the margin that is nobody's concern,

- *confirmed* rejects the null hypothesis that the means differ by :math:`\delta` or more, by two
  one-sided tests at 2.5 % each: a claim that is off by the margin is confirmed once in 40 times;
- *refuted* rejects the null hypothesis that they differ by :math:`\delta` or less, at 2.5 % on
  either side: a claim that holds to the margin is refuted no oftener than that;
- *undecided* rejects neither. That a difference is not shown confirms nothing.

Both are one comparison, of :math:`z = (|D| - \delta) / s` with -1.96 and 1.96. The margin is also
what a deterministic defence needs, whose images lie at its border, where another machine's rounding
decides.

Draws of different images are independent unless a module shares its noise within a call. So s is
the larger of what the images' own shares say, each drawn half a draw towards one half so that no
image seems certain, and of what the repetitions' means vary by.

Reference:
    Schuirmann, Journal of Pharmacokinetics and Biopharmaceutics 1987 (two one-sided tests).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from scoreopt_defense._checks import check_count, check_positive
from scoreopt_defense.data import Source
from scoreopt_defense.evaluation.bundle.asking import check_inside, judged, unforeseen
from scoreopt_defense.evaluation.bundle.file import Bundle, said
from scoreopt_defense.evaluation.bundle.making import chosen
from scoreopt_defense.evaluation.plan.environment import machine
from scoreopt_defense.evaluation.plan.fingerprint import digest
from scoreopt_defense.evaluation.plan.same import another
from scoreopt_defense.evaluation.record.differences import Difference, paired
from scoreopt_defense.evaluation.record.statistics import Proportion, proportion
from scoreopt_defense.noise import derive

__all__ = ["Challenge", "Verification", "challenge", "decided", "verify"]

Outcome = Literal["confirmed", "refuted", "undecided", "another defence"]
_LIMIT = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What came of a check.

    Attributes:
        outcome: see :mod:`scoreopt_defense.evaluation.bundle.verifying`.
        why: it is another defence; empty if it is not.
        bundle: that was checked.
        found: robust accuracy by the fresh purifications, its interval over images; None of
            another defence.
        difference, low, high: of ``found`` less the claim on these images, from -1 to 1, with its
            95 % interval over draws.
        p: of the test that decides, the smaller one of both where neither does.
        margin: that the figures may differ by, from 0 to 1.
        purifications, seed: that it was judged by.
    """

    outcome: Outcome
    bundle: Bundle
    why: str = ""
    found: Proportion | None = None
    difference: float = 0.0
    low: float = 0.0
    high: float = 0.0
    p: float = 1.0
    margin: float = 0.0
    purifications: int = 0
    seed: int = 0

    def __str__(self) -> str:
        if self.found is None:
            return f"another defence: {self.why}."
        bundle, low, high = self.bundle, 100 * self.low, 100 * self.high
        to = f"{100 * self.margin:g} points"
        fewer = "fewer" if self.difference < 0 else "more"
        meaning = {
            "confirmed": f"less than {to} apart, which is not that no other images do more",
            "refuted": f"{fewer} images stand than is claimed, by more than {to}",
            "undecided": f"neither less nor more than {to} apart is shown; more purifications may",
        }[self.outcome]
        return (
            f"{self.outcome}: {said(self.found, bundle.norm, bundle.eps)}, judged by "
            f"{self.purifications} fresh purifications of each (seed {self.seed}).\n"
            f"Claimed: {100 * bundle.share.value:.1f} %, by {bundle.predicted.shape[1]} of each. "
            f"The difference is {100 * self.difference:+.1f} points ({low:+.1f} to {high:+.1f}): "
            f"{meaning} (two one-sided tests, p = {self.p:.2g}, each at 0.025)."
        )


@dataclass(frozen=True, kw_only=True)
class Challenge:
    """What came of other images.

    Attributes:
        bundle: of each image the worst; its claim is by purifications that chose none of them.
        fall: robust accuracy on the challenged images less that, paired over images, from -1 to 1.
        taken: how many images are the challenger's.
    """

    bundle: Bundle
    fall: Difference
    taken: int

    def __str__(self) -> str:
        fall, low, high = (100 * v for v in (self.fall.value, self.fall.low, self.fall.high))
        verb = "falls" if self.fall.low > 0 else "is not shown to fall"
        return (
            f"The claim {verb}: by {fall:.1f} points ({low:.1f} to {high:.1f}). {self.taken} of "
            f"{self.fall.n} images are the challenger's.\nNow {self.bundle.claim}."
        )


def verify(
    bundle: Bundle,
    model: nn.Module,
    images: Source,
    *,
    margin: float = 0.05,
    purifications: int = 32,
    batch: int = 32,
    seed: int | None = None,
    told: Callable[[int], object] = lambda _: None,
) -> Verification:
    """Check a claim on a defence of one's own: see the head of this module for the tests.

    *Confirmed* is that these images do to this defence what is said, not that no others do more.

    Args:
        bundle: see :meth:`Bundle.read`.
        model: the defence, from images in [0, 1] to logits, in eval mode.
        images: the clean ones, from a source of one's own: those of the run, in its order; more may
            follow.
        margin: from 0 to 1, that the figures may differ by.
        purifications: fresh ones of each image.
        batch: images at a time.
        seed: of the purifications; by default one that nobody could choose images for.
        told: is called with how many more purifications of an image are judged, of
            ``purifications`` of each.

    Raises:
        ValueError: if the images are others than the bundle's, or one of the bundle's is outside
            its ball.
    """
    check_positive("margin", margin)
    check_count("purifications", purifications)
    seed = unforeseen(seed)
    images = _same_images(bundle, images)
    if why := _another(bundle, model, images):
        return Verification(outcome="another defence", bundle=bundle, why=why)
    found = judged(
        model, torch.from_numpy(bundle.images), images.labels, purifications=purifications,
        batch=batch, seed=seed, told=told,
    )  # fmt: skip
    right = found.predicted.numpy() == images.labels[:, None]
    outcome, gap, error, p = decided(bundle.right, right, margin)
    return Verification(
        outcome=outcome, bundle=bundle, found=_share(right), difference=gap,
        low=gap - _LIMIT * error, high=gap + _LIMIT * error, p=p, margin=margin,
        purifications=purifications, seed=seed,
    )  # fmt: skip


def decided(
    claimed: np.ndarray, found: np.ndarray, margin: float
) -> tuple[Outcome, float, float, float]:
    """The outcome, the difference of means, its standard error, and p.

    Args:
        claimed, found: whether each purification was right, shapes ``(n, k)`` and ``(n, m)``, of
            the same images.
    """
    sides = claimed, found
    count = sum(side.shape[1] for side in sides)
    share = (sum(side.sum(1) for side in sides) + 0.5) / (count + 1)
    variance = 0.0
    for side in sides:
        draws = side.shape[1]
        own = float((share * (1 - share)).sum()) / len(side) ** 2
        together = float(side.mean(0).var(ddof=1)) if draws > 1 else 0.0
        variance += max(own, together) / draws
    gap, error = float(found.mean() - claimed.mean()), variance**0.5
    z = (abs(gap) - margin) / error
    outcome: Outcome = "undecided"
    if abs(z) >= _LIMIT:
        outcome = "refuted" if z > 0 else "confirmed"
    return outcome, gap, error, math.erfc(abs(z) / 2**0.5) / 2


def challenge(
    bundle: Bundle,
    model: nn.Module,
    images: Source,
    theirs: Tensor,
    *,
    purifications: int = 32,
    batch: int = 32,
    seed: int | None = None,
    told: Callable[[int], object] = lambda _: None,
) -> Challenge:
    """Of each image the worst of both, chosen by some purifications and judged by others.

    Args:
        theirs: other attacked images of the same clean ones, shape ``(n, C, H, W)``, in [0, 1].
        bundle, model, images, purifications, batch, seed, told: as of :func:`verify`; four times as
            many are judged, of both images to choose and of both to compare.

    Raises:
        ValueError: as :func:`verify`; or if it is another defence, or one of their images is
            outside its ball.
    """
    seed = unforeseen(seed)
    images = _same_images(bundle, images)
    check_inside(images, theirs, norm=bundle.norm, eps=bundle.eps, what="the challenger's images")
    if why := _another(bundle, model, images):
        raise ValueError(f"the bundle is of another defence: {why}")
    both = torch.from_numpy(bundle.images), theirs.float()

    def asked(attacked: Tensor, part: int) -> tuple[np.ndarray, np.ndarray]:
        found = judged(model, attacked, images.labels, purifications=purifications, batch=batch,
                       seed=derive(seed, part), told=told)  # fmt: skip
        return found.predicted.numpy(), found.lead.numpy()

    first = [asked(attacked, 0) for attacked in both]
    labels = images.labels[:, None]
    taken = chosen(np.stack([predicted == labels for predicted, _ in first]),
                   np.stack([lead for _, lead in first])) == 1  # fmt: skip
    worst = torch.where(torch.from_numpy(taken).reshape(-1, 1, 1, 1), both[1], both[0])
    was, now = (asked(attacked, 1)[0] for attacked in (both[0], worst))
    made = {
        "by": "a challenge", "taken": int(taken.sum()), "seed": seed, "machine": machine(),
        "challenged": bundle.made,
    }  # fmt: skip
    return Challenge(
        bundle=replace(bundle, images=worst.numpy(), predicted=now, made=made),
        fall=paired((was == labels).mean(1), (now == labels).mean(1)),
        taken=int(taken.sum()),
    )


def _share(right: np.ndarray) -> Proportion:
    return proportion(float(right.mean(1).sum()), len(right))


def _same_images(bundle: Bundle, images: Source) -> Source:
    """The clean images of a bundle.

    Raises:
        ValueError: if they are others, or an attacked one is outside its ball.
    """
    count = len(bundle.labels)
    part = images if len(images) == count else images.take(np.arange(min(count, len(images))))
    if digest(*part.digests()) != bundle.clean or (part.labels != bundle.labels).any():
        raise ValueError(
            f"the {count} clean images and labels of the bundle are not the first ones of these "
            f"{len(images)}: source, split, seed and order must be the run's"
        )
    check_inside(part, torch.from_numpy(bundle.images), norm=bundle.norm, eps=bundle.eps,
                 what="the bundle's images")  # fmt: skip
    return part


def _another(bundle: Bundle, model: nn.Module, images: Source) -> str | None:
    return another(bundle.fingerprint, model, images.shape, dtype=images.dtype)
