"""What a suite's stage begins from: of each image the worst that the stages before it found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

__all__ = ["LEFT", "Carried", "Started", "WorstCase", "carried", "harm"]

#: What a stage measures of each image: the share of right purifications, of the judged ones and
#: those that are asked besides where all of these were wrong.
LEFT = "left"


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


def harm(row: Mapping[str, Any]) -> tuple[float, float]:
    """What an attack left of an image: share of right purifications, then mean margin."""
    if row["broken"] is not None:
        share = 1 - row["broken"]
    elif LEFT in row["measured"]:
        share = row["measured"][LEFT]
    else:
        share = np.mean(np.array(row["predicted"]) == row["label"])
    return float(share), float(np.mean(row["margin"]))


def carried(x: np.ndarray, stages: Iterable[tuple[list[dict[str, Any]], np.ndarray]]) -> Carried:
    """What a unit begins from.

    Args:
        x: its clean images.
        stages: of each one before it, the rows of the images that it met and the images that it
            left of all.
    """
    images, standing = x.copy(), np.ones(len(x), dtype=bool)
    least: list[tuple[float, float]] = [(2.0, 0.0)] * len(x)  # nothing found yet
    for rows, found in stages:
        for row in rows:
            place, left = row["place"], harm(row)
            standing[place] &= left[0] > 0
            if left < least[place]:
                least[place], images[place] = left, found[place]
    return Carried(images, standing)
