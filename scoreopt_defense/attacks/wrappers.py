"""What stands between a model and the library that attacks it, so that the library goes right.

Libraries count on float32, on logits of which the cross-entropy has a gradient, and on a gradient
of some length. Each function here is one way of asking the model, for :class:`Around`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from scoreopt_defense._checks import check_logits
from scoreopt_defense._half_precision import in_range
from scoreopt_defense.attacks.losses import divisors

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Around", "Checked", "autocast", "cast", "default_dtype", "finite", "stretched"]


class Around(nn.Module):
    """A model that is asked in another way; it is in the model's mode, and cannot be moved.

    Args:
        model: from images in [0, 1] to logits.
        ask: called as ``ask(model, x)``; returns logits.
    """

    def __init__(self, model: nn.Module, ask: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.ask = model, ask
        self.training = getattr(model, "training", False)

    def forward(self, x: Tensor) -> Tensor:
        return self.ask(self.model, x)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Libraries move what they attack, which is on its device, or brought there by a hook."""
        return self


def finite(model: nn.Module, x: Tensor) -> Tensor:
    """With a gradient of finite entries.

    An infinite one, as a square root's at a black pixel, becomes as large as the image's largest,
    and NaN becomes 0: else one pixel stops a step that divides by the gradient's size, and a memory
    of gradients for good. One without a finite entry but 0 is in a random direction, which leads
    away from the image where it has none.
    """
    return _with_gradient(model, x, _finite)


def stretched(model: nn.Module, x: Tensor) -> Tensor:
    """With such a gradient whose largest entry is 1, of each image: of it l2 takes the direction.

    A very sure classifier's is shorter than the 1e-12 and more that libraries add to its length, or
    its squares are 0 in float32: their steps would be short.
    """
    return _with_gradient(model, x, lambda gradient: _over_its_largest(_finite(gradient)))


def _with_gradient(model: nn.Module, x: Tensor, hook: Callable[[Tensor], Tensor]) -> Tensor:
    if x.requires_grad:
        x = x.view_as(x)
        x.register_hook(hook)
    return model(x)


def _finite(gradient: Tensor) -> Tensor:
    is_finite = gradient.isfinite()
    if is_finite.all():
        return gradient
    largest = _largest(gradient.where(is_finite, 0))
    found = gradient.nan_to_num(0.0).clamp(-largest, largest)
    lost = (largest == 0) & ~is_finite.flatten(1).all(1).reshape(-1, 1, 1, 1)
    return torch.where(lost, torch.rand_like(gradient).sub(0.5).sign(), found)


def _over_its_largest(gradient: Tensor) -> Tensor:
    largest = _largest(gradient)
    return gradient / torch.where(largest > 0, largest, 1)


def _largest(gradient: Tensor) -> Tensor:
    """Of each image's entries."""
    return gradient.flatten(1).abs().amax(1).reshape(-1, 1, 1, 1)


def cast(model: nn.Module, x: Tensor, *, dtype: torch.dtype) -> Tensor:
    """In the model's own dtype, which is not the library's."""
    return model(x.to(dtype))


def autocast(model: nn.Module, x: Tensor, *, dtype: torch.dtype) -> Tensor:
    """Computing in ``dtype`` where torch holds that to be safe."""
    with torch.autocast(x.device.type, dtype):
        return model(x)


class Checked:
    """Checked logits, of which the cross-entropy has a gradient: what an attack is shown.

    They are of the images' precision, or their own if that is higher.

    An image that a differentiated call finds the model too sure of has its logits divided by
    :func:`~scoreopt_defense.attacks.losses.divisors`, and by the same ones in all later calls, so
    that losses stay comparable from step to step, until one draw is surer still. Any other image's
    logits are divided by 1, which is exact, and so is its gradient: their bits are those of the
    model. So are all logits of a call that is not differentiated, or of another number of images
    than there are labels. What goes back into the model is
    :func:`~scoreopt_defense._half_precision.in_range`, since that may compute in float16.

    Args:
        y: labels of the images, shape ``(B,)``.
        of: the attack's name, for errors.
        classes: fewest that its loss is defined of.
        scale_free: whether very sure logits are divided.
        by_direction: whether the size of an image's gradient is nothing to it.
    """

    def __init__(
        self, y: Tensor, *, of: str, classes: int, scale_free: bool, by_direction: bool
    ) -> None:
        self.y, self.of, self.classes = y, of, classes
        self.scale_free, self.by_direction = scale_free, by_direction
        self.highest = int(y.max())
        self.divisors: Tensor | float = 1.0
        self.default = torch.get_default_dtype()  # the model's; meanwhile it is the library's

    def __call__(self, model: nn.Module, x: Tensor) -> Tensor:
        with default_dtype(self.default):
            logits = check_logits(model(x), len(x))
        logits = logits.to(torch.promote_types(logits.dtype, x.dtype))
        if (classes := logits.shape[1]) < self.classes:
            raise ValueError(
                f"{self.of} needs at least {self.classes} classes, got {classes}; of two, take "
                "APGD with loss 'ce'"
            )
        if self.highest >= classes:
            raise ValueError(
                f"labels must be from 0 to {classes - 1}, the model's classes, got {self.highest}"
            )
        if not (self.scale_free and logits.requires_grad and len(x) == len(self.y)):
            return logits
        self.divisors = self.divisors * divisors(logits.detach() / self.divisors, self.y)
        if self.by_direction:
            logits = logits.view_as(logits)  # a model may keep its own
            logits.register_hook(lambda gradient: in_range(gradient)[0])
        return logits / self.divisors


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Tensors are of this type unless they say: libraries count on float32."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
