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

__all__ = ["OPTIMIZERS", "SGD", "Adam", "Optimizer"]


@runtime_checkable
class Optimizer(Protocol):
    """An update rule without memory of its own. A user's own stands where a name does."""

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
        v = (self.beta2 * v).addcmul(grad, grad, value=1 - self.beta2)
        # Where v is zero so is its derivative, but that of its square root is infinite.
        root = torch.where(v > 0, v, 1).sqrt().where(v > 0, 0)
        scale = root / (1 - self.beta2**count) ** 0.5 + self.epsilon
        return x - lr / (1 - self.beta1**count) * m / scale, m, v


#: What ``optimizer=`` may be by name.
OPTIMIZERS: dict[str, type] = {"adam": Adam, "sgd": SGD}
