"""What a suite's stage begins from: of each image the worst that the stages before it found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

__all__ = ["DRAWS", "LEFT", "Carried", "Harm", "Started", "WorstCase", "carried", "harm"]

#: What a stage measures of each image: the share of right purifications, of the judged ones and
#: those that are asked besides where all of these were wrong.
LEFT = "left"
#: And of how many purifications that is.
DRAWS = "draws"


@dataclass(frozen=True, eq=False)
class Carried:
    """What is handed from stage to stage, a pure function of what the store has of them.

    Attributes:
        images: the worst candidate of each image, shape ``(B, C, H, W)``, in [0, 1].
        standing: whether any purification of every stage's choice got it right, shape ``(B,)``;
            the others have left the queue.
    """

    images: np.ndarray
    standing: np.ndarray


@dataclass(frozen=True, kw_only=True)
class WorstCase:
    """A suite's last stage: no attack, but the judging of what the others found.

    Args:
        norm, eps: the suite's threat model.
    """

    norm: str
    eps: float
    takes_start = True
    takes_all = True

    def run(self, model: nn.Module, x: Tensor, y: Tensor, *, start: Tensor) -> Tensor:
        return start

    def as_dict(self) -> dict[str, Any]:
        return {"norm": self.norm, "eps": self.eps}


class Started:
    """An attack that begins from given images, as every other is called."""

    def __init__(self, attack: Any, start: Tensor) -> None:
        self.attack, self.start = attack, start

    def run(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return self.attack.run(model, x, y, start=self.start.clone())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.attack, name)


class Harm(NamedTuple):
    """What an attack left of an image; the lowest is the worst.

    Attributes:
        expected: see :func:`harm`.
        margin: mean over the judged purifications, which decides between equals.
        left: the share of right purifications, as it was counted.
    """

    expected: float
    margin: float
    left: float


def harm(row: Mapping[str, Any]) -> Harm:
    r"""What an attack left of an image, from its row.

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
    margin = float(np.mean(row["margin"]))
    if row["broken"] is not None:
        return Harm(1.0 - row["broken"], margin, 1.0 - row["broken"])
    right = np.array(row["predicted"]) == row["label"]
    left = float(row["measured"].get(LEFT, right.mean()))
    draws = row["measured"].get(DRAWS, len(right))
    return Harm((left * draws + 1) / (draws + 2), margin, left)


def carried(x: np.ndarray, stages: Iterable[tuple[list[dict[str, Any]], np.ndarray]]) -> Carried:
    """What a unit begins from.

    Args:
        x: its clean images.
        stages: of each one before it, the rows of the images that it met and the images that it
            left of all.
    """
    images, standing = x.copy(), np.ones(len(x), dtype=bool)
    least = [Harm(2.0, 0.0, 2.0)] * len(x)  # nothing found yet
    for rows, found in stages:
        for row in rows:
            place, done = row["place"], harm(row)
            standing[place] &= done.left > 0
            if done < least[place]:
                least[place], images[place] = done, found[place]
    return Carried(images, standing)
