"""What a module answers: asked so that neither it nor the images are changed by that."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from scoreopt_defense._checks import check_logits
from scoreopt_defense._foreign import as_it_was, contained, said
from scoreopt_defense._text import where
from scoreopt_defense.defended import DefendedModel
from scoreopt_defense.evaluation.judging.fresh import placed, reseeded
from scoreopt_defense.noise import seeded
from scoreopt_defense.normalization import wanted
from scoreopt_defense.purifiers import ThirdParty

__all__ = ["answer", "answers", "check_defence"]

_FEW = 4  # images


def answer(model: Callable[[Tensor], Any], x: Tensor) -> Tensor:
    """Checked logits, shape ``(B, K)``, of a copy of the images: a module may write into its own.

    Raises:
        ValueError: if they are no logits, or are not finite.
    """
    logits = check_logits(model(x.clone()), len(x))
    if not torch.isfinite(logits).all():
        raise ValueError("the model returned logits that are not finite")
    return logits


@torch.no_grad()
def answers(model: nn.Module, x: Tensor, *, seed: int = 0) -> Tensor:
    """As :func:`answer`, seeded, of images on any device; nothing of the model is changed."""
    with contained(), as_it_was(model), seeded(seed):
        return answer(reseeded(model, seed), placed(model, x))


def check_defence(name: str, model: nn.Module, x: Tensor, y: Tensor) -> int:
    """Ask a defence about a few images, before anything is attacked; returns its classes K.

    Warns of probabilities in place of logits, of a published network that seems to be given images
    without its normalisation, and of a purification that looks at an image's neighbours.

    Args:
        x, y: all images and labels of the run, checked.

    Raises:
        ValueError: if it fails, does not answer with logits, a label is none of its classes, or
            autograd does not go through a purification that says so.
    """
    if any(nn.parameter.is_lazy(part) for part in (*model.parameters(), *model.buffers())):
        raise ValueError(
            f"the defence {name!r} has lazy weights, made by its first call: call it before, on "
            "a batch"
        )
    few = x[:_FEW]
    try:
        logits = answers(model, few)
    except Exception as error:
        types = {part.dtype for part in model.parameters() if part.is_floating_point()}
        other = ", ".join(sorted(str(kind) for kind in types - {x.dtype}))
        hint = f"; its weights are {other}, the images {x.dtype}: call model.to(images.dtype)"
        raise ValueError(
            f"the defence {name!r} cannot classify images of shape {tuple(few.shape)}: "
            f"{said(error)}{where(error)}{hint if other else ''}"
        ) from error
    classes = logits.shape[1]
    if wrong := (y >= classes).nonzero().flatten().tolist():
        raise ValueError(
            f"labels must be from 0 to {classes - 1}, the {classes} classes of the defence "
            f"{name!r}, got {int(y[wrong[0]])} of image {wrong[0]}, and {len(wrong)} such in all"
        )
    if _are_probabilities(logits):
        warnings.warn(
            f"the defence {name!r} returns probabilities, not logits: attacks take the softmax "
            "again, and their gradients all but vanish; leave its softmax out",
            stacklevel=4,
        )
    if isinstance(model, DefendedModel) and isinstance(model.purifier, ThirdParty):
        _check_purification(name, model, placed(model, few))
    if missing := wanted(model, classes):
        mean, std = (tuple(round(float(value), 4) for value in values) for values in missing)
        warnings.warn(
            f"the classifier of the defence {name!r} is given images in [0, 1], and its published "
            f"weights want normalised ones: if it has those, pass normalized(net, {mean}, {std})",
            stacklevel=4,
        )
    return classes


def _check_purification(name: str, model: DefendedModel, x: Tensor) -> None:
    """Somebody's: its gradient, and that each image is purified by itself, if it draws nothing."""
    with contained(), as_it_was(model), seeded(0):
        if "exact" in model.purifier.modes:
            try:
                model.purifier.with_gradient("exact")(x.clone().requires_grad_(), seed=0)
            except RuntimeError as error:
                if "autograd does not go through" not in str(error):  # its units record it
                    return
                raise ValueError(f"the defence {name!r}: {error}") from None
        with torch.no_grad():
            together, again = (model.purify(x.clone(), seed=seed) for seed in (0, 1))
            if not torch.equal(together, again):
                return
            alone = torch.cat([model.purify(image.clone(), seed=0) for image in x.split(1)])
    if (alone - together).abs().amax() > torch.finfo(alone.dtype).eps ** 0.5:
        warnings.warn(
            f"the purification of {name!r} answers an image by its neighbours in the batch, as its "
            "images alone are purified otherwise: it is attacked among some and judged among "
            "others. Treat each image by itself",
            stacklevel=5,
        )


def _are_probabilities(logits: Tensor) -> bool:
    """Rows within [0, 1] that sum to 1, within the rounding of a sum of K."""
    rounding = logits.shape[1] * torch.finfo(logits.dtype).eps
    sums = logits.float().sum(1)
    return bool((logits.min() >= 0) & ((sums - 1).abs() <= rounding).all())
