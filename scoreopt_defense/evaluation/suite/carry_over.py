"""What a suite's attack begins from: of each image the worst that the ones before it found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from scoreopt_defense.evaluation.record.judged import Judged

__all__ = ["Carried", "Harm", "carried", "harms"]


@dataclass(frozen=True, eq=False)
class Carried:
    """What is handed from attack to attack, a pure function of what the record has of them.

    Attributes:
        images: the worst candidate of each image, shape ``(B, C, H, W)``, in [0, 1].
        standing: whether any purification of each candidate got it right, shape ``(B,)``; the
            others are taken.
    """

    images: np.ndarray
    standing: np.ndarray


class Harm(NamedTuple):
    """What an attack left of an image; the lowest is the worst.

    Attributes:
        expected: see :func:`harms`.
        lead: mean over the judged purifications, which decides between equals.
        left: the share of right purifications, as it was counted.
    """

    expected: float
    lead: float
    left: float


def harms(judged: Judged) -> list[Harm]:
    r"""What an attack left of each image that it met.

    Candidates of 8 purifications compete with such as were given 32 more because these 8 were all
    wrong. The share of 40 is then too low on average, as its first 8 were chosen for being wrong;
    the share of the other 32 alone is not, but beside it an 8 that was not chosen so is too high.
    So neither is compared: of c right ones in n, the candidate with the lowest

    .. math:: E[p \mid c, n] = \frac{c + 1}{n + 2}

    wins. That is the mean of what is left, p, given all that was seen, whatever rule ended the
    drawing: the rule depends on what was seen alone, so it is no part of the likelihood of p.

    Reference:
        Laplace's rule of succession, for a uniform prior; Berger and Wolpert, The Likelihood
        Principle, 1988, section 4.2.
    """
    leads = judged.lead.mean(1)
    if judged.whole is not None:
        expected = left = judged.whole
    else:
        left = judged.left
        expected = (left * judged.draws + 1) / (judged.draws + 2)
    return [Harm(*of) for of in zip(expected.tolist(), leads.tolist(), left.tolist())]


#: Images by their places in a batch, of those places that are asked for.
Found = Callable[[list[int]], Mapping[int, np.ndarray]]


def carried(x: np.ndarray, first: int, found: Iterable[tuple[Judged, Found]]) -> Carried:
    """What a unit begins from.

    Args:
        x: its clean images.
        first: index of the first of them in the run.
        found: of each unit before it, what was judged and the images that it left, but for those
            that are clean; one may have met fewer images, or more.
    """
    images, standing = x.copy(), np.ones(len(x), dtype=bool)
    least = [Harm(2.0, 0.0, 2.0)] * len(x)  # nothing found yet
    by: dict[int, Found] = {}
    for judged, attacked in found:
        for place, done in zip((judged.images - first).tolist(), harms(judged)):
            if place >= len(x):
                continue
            standing[place] &= done.left > 0
            if done < least[place]:
                least[place], by[place] = done, attacked
    for attacked in dict.fromkeys(by.values()):
        for place, image in attacked([place for place, of in by.items() if of is attacked]).items():
            images[place] = image
    return Carried(images, standing)
