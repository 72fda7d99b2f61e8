"""Gradient descent as pure functions: a new point and a new state from the old ones.

``torch.optim`` changes tensors in place and keeps its state to itself, so a step cannot be computed
again or differentiated. These can.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from scoreopt_defense._checks import check_positive

__all__ = ["OPTIMIZERS", "SGD", "Adam", "Optimizer", "SmoothedAdam", "ascended"]


@runtime_checkable
class Optimizer(Protocol):
    """An update rule without memory of its own. A user's own stands where a name does.

    It may have a method ``smoothed(c)``: the rule that ``gradient="smoothed"`` differentiates in
    its place. Without one, that is the rule itself.
    """

    def init(self, x: Tensor) -> tuple[Tensor, ...]:
        """State before the first step."""

    def step(
        self, count: int, lr: float, x: Tensor, grad: Tensor, *state: Tensor
    ) -> tuple[Tensor, ...]:
        """The new ``x`` and the new state; ``count`` is 1 at the first step."""


@dataclass(frozen=True)
class SGD:
    r"""Plain gradient descent.

    .. math:: x \leftarrow x - \eta \nabla
    """

    def init(self, x: Tensor) -> tuple[Tensor, ...]:
        return ()

    def step(
        self, count: int, lr: float, x: Tensor, grad: Tensor, *state: Tensor
    ) -> tuple[Tensor, ...]:
        return (x - lr * grad,)


@dataclass(frozen=True)
class Adam:
    r"""Adam, step for step as ``torch.optim.Adam``.

    .. math::
        m &\leftarrow \beta_1 m + (1 - \beta_1) \nabla, \quad
        v \leftarrow \beta_2 v + (1 - \beta_2) \nabla^2 \\
        x &\leftarrow x - \eta\, \frac{m / (1 - \beta_1^k)}
            {\sqrt{v / (1 - \beta_2^k)} + \varepsilon}

    Reference:
        Kingma and Ba, ICLR 2015.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be at least 0 and below 1, got {getattr(self, name)}"
                )
        check_positive("epsilon", self.epsilon)

    def init(self, x: Tensor) -> tuple[Tensor, ...]:
        return torch.zeros_like(x), torch.zeros_like(x)

    def step(
        self, count: int, lr: float, x: Tensor, grad: Tensor, *state: Tensor
    ) -> tuple[Tensor, ...]:
        m, v = state
        m = m.lerp(grad, 1 - self.beta1)
        v = (self.beta2 * v).addcmul_(grad, grad, value=1 - self.beta2)
        divisor = self._divisor(_root(v).div_((1 - self.beta2**count) ** 0.5))
        return x - (lr / (1 - self.beta1**count) * m).div_(divisor), m, v

    def _divisor(self, root: Tensor) -> Tensor:
        return root + self.epsilon

    def smoothed(self, c: float) -> Adam:
        """The rule that ``gradient="smoothed"`` differentiates in place of this one."""
        return SmoothedAdam(self.beta1, self.beta2, self.epsilon, c)


@dataclass(frozen=True)
class SmoothedAdam(Adam):
    r"""Adam whose divisor has a floor, so that its derivative is not nearly zero.

    .. math:: \sqrt{\hat v} + \varepsilon + c\, \mathrm{rms}(\sqrt{\hat v})

    the root mean square being over an image's pixels. Adam divides each pixel's gradient by its own
    size, so its first step is the gradient's sign; this one keeps the pixels' proportions.

    Args:
        c: 0 is Adam itself; the larger, the closer to gradient descent of normalised steps.
    """

    c: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("c", self.c, zero=True)

    def _divisor(self, root: Tensor) -> Tensor:
        pixels = tuple(range(1, root.ndim))
        return super()._divisor(root) + self.c * _root(root.square().mean(pixels, keepdim=True))


def ascended(x: Tensor, grad: Tensor, rho: float) -> Tensor:
    r"""Where sharpness-aware minimisation takes its gradient: uphill, at a distance of ``rho``.

    .. math:: x + \rho\, \nabla / \|\nabla\|_2

    the norm being an image's. No update rule of one gradient a step can do it: it wants two.

    Args:
        x, grad: shape ``(B, C, H, W)``; where an image's gradient is zero, it stays.
        rho: on the scale of ``x``.

    Reference:
        Foret et al., "Sharpness-aware minimization", ICLR 2021, eq. (2).
    """
    length = torch.linalg.vector_norm(grad, dim=tuple(range(1, grad.ndim)), keepdim=True)
    return x + rho * grad / length.clamp(min=torch.finfo(grad.dtype).tiny)


def _root(v: Tensor) -> Tensor:
    """Square root, of derivative zero at zero: there v's own is zero and the root's infinite."""
    positive = v > 0
    return torch.where(positive, v, 1).sqrt_().where(positive, 0)


#: What ``optimizer=`` may be by name.
OPTIMIZERS: dict[str, type] = {"adam": Adam, "sgd": SGD}
