"""Attacked images put to a defence: within their balls, and judged by fresh purifications."""

from __future__ import annotations

import secrets
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from scoreopt_defense._checks import check_count
from scoreopt_defense._foreign import as_it_was, contained
from scoreopt_defense.data import Source
from scoreopt_defense.evaluation.judging import judge
from scoreopt_defense.evaluation.judging.fresh import placed
from scoreopt_defense.evaluation.judging.threat_model import inside, level
from scoreopt_defense.evaluation.judging.votes import Verdict
from scoreopt_defense.evaluation.plan.tasks import Worst
from scoreopt_defense.noise import derive

__all__ = ["check_inside", "judged", "unforeseen"]


def unforeseen(seed: int | None) -> int:
    """The seed, or one that nobody knew when the images were chosen: they could be made for it."""
    return secrets.randbits(53) if seed is None else check_count("seed", seed, least=0)


def check_inside(images: Source, attacked: Tensor, *, norm: str, eps: float, what: str) -> None:
    """That each attacked image is in [0, 1] and in the ball around its clean one.

    A ball reaches 1e-5 further than it says, as for every attack here: x + delta and a projection
    are rounded to float32, by some 1e-7 a pixel, in l2 to 1e-5 for 200,000 of them. It is a 400th
    of a level of 255, with which no attack gains anything.

    Args:
        attacked: shape ``(n, C, H, W)``.
        what: they are, in words.

    Raises:
        ValueError: naming an image that is not.
    """
    expected = (len(images), *images.shape)
    if tuple(attacked.shape) != expected:
        raise ValueError(f"{what} must have shape {expected}, got {tuple(attacked.shape)}")
    ball = Worst(norm=norm, eps=eps)
    parts = (inside(ball, images.batch(n, n + 256)[0], part)
             for n, part in zip(range(0, len(attacked), 256), attacked.split(256)))  # fmt: skip
    if outside := (~torch.cat(list(parts))).nonzero().flatten().tolist():
        raise ValueError(
            f"{len(outside)} of {len(attacked)} of {what} are outside [0, 1] or the ball of {norm} "
            f"{level(eps)} around their clean ones, such as image {outside[0]}"
        )


def judged(
    model: nn.Module,
    attacked: Tensor,
    labels: np.ndarray,
    *,
    purifications: int,
    batch: int,
    seed: int,
    told: Callable[[int], object],
) -> Verdict:
    """As :func:`~scoreopt_defense.evaluation.judge`, so many images at a time.

    Nothing of the model is changed by that.
    """
    y = torch.from_numpy(labels)
    found = []
    for first in range(0, len(y), batch):
        x = placed(model, attacked[first : first + batch])
        with contained(), as_it_was(model):
            found.append(judge(model, x, y[first : first + batch].to(x.device),
                               purifications=purifications, seed=derive(seed, first),
                               told=told))  # fmt: skip
    return Verdict(*(torch.cat([getattr(v, n) for v in found]) for n in ("predicted", "lead")))
