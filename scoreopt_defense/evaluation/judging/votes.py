"""Fresh purifications of an image, classified: what every figure consists of.

They are never those that an attack or a choice among candidates has seen: the lowest of several
noisy figures is too low, and an attack that stops at a lucky draw looks better than it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from scoreopt_defense.attacks.losses import margin
from scoreopt_defense.defended import DefendedModel
from scoreopt_defense.evaluation.judging.asking import answer
from scoreopt_defense.evaluation.judging.fresh import as_deployed, reseeded

__all__ = ["Verdict", "judge", "vote"]


@torch.no_grad()
def vote(model: nn.Module, x: Tensor, *, times: int, rows: int, seed: int) -> Tensor:
    """Mean logits over ``times`` fresh purifications, shape ``(B, K)``.

    Args:
        rows: purify at most so many images at a time, or one repetition.
    """
    model = reseeded(model, seed)
    total, left = torch.zeros(()), times
    # A module that is not ours may share its noise within a call: there, a call a repetition.
    at_once = max(1, rows // len(x)) if isinstance(model, DefendedModel) else 1
    with as_deployed(x, seed):
        while left:
            samples = min(at_once, left)
            asked = partial(model, samples=samples) if samples > 1 else model
            logits = answer(asked, x)
            total, left = total.to(logits) + samples * logits, left - samples
    return total / times


@dataclass(frozen=True)
class Verdict:
    """What each purification of each image was taken for.

    Attributes:
        predicted: classes, shape ``(B, purifications)``.
        lead: the true class's logit less the highest other one's, same shape.
    """

    predicted: Tensor
    lead: Tensor


@torch.no_grad()
def judge(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    purifications: int,
    seed: int,
    told: Callable[[int], object] = lambda _: None,
) -> Verdict:
    """Classify each image by so many fresh purifications, independent of all others.

    Args:
        model: from images in [0, 1] to logits; a :class:`~scoreopt_defense.DefendedModel` is given
            a new seed, any other is driven by the global generators, which stay as they were.
        x: shape ``(B, C, H, W)``, in [0, 1].
        y: shape ``(B,)``.
        told: is called with B whenever each image has had another purification.

    Raises:
        ValueError: if they are no logits, or are not finite.
    """
    model = reseeded(model, seed)
    answers = []
    with as_deployed(x, seed):
        for _ in range(purifications):
            answers.append(answer(model, x))
            told(len(x))
    logits = torch.stack(answers, dim=1)
    leads = [-margin(of_draw, y).float() for of_draw in logits.unbind(1)]
    return Verdict(logits.argmax(2).cpu(), torch.stack(leads, dim=1).cpu())
