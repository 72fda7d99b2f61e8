"""How a purifier is differentiated. Knows no algorithm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["GRADIENT_MODES", "differentiate_as", "refuse_gradient"]

#: What ``gradient=`` may be.
GRADIENT_MODES = ("one-shot", "bpda", "none")

TensorMap = Callable[[Tensor], Tensor]


def differentiate_as(x: Tensor, value: TensorMap, surrogate: TensorMap) -> Tensor:
    r"""``value(x)`` bit for bit, whose backward pass is that of ``surrogate`` at the same ``x``.

    .. math:: y = f(x), \qquad
        \frac{\partial L}{\partial x} := J_s(x)^\top \frac{\partial L}{\partial y}

    The surrogate is evaluated in the backward pass only: a forward pass pays nothing for it, keeps
    no graph, and the backward pass runs under the forward pass's autocast.

    Args:
        x: any floating-point tensor.
        value: ``f``; called without recording a graph.
        surrogate: ``s``, differentiable, with outputs of the same shape as ``f``'s.
    """
    return _DifferentiateAs.apply(x, value, surrogate)


class _DifferentiateAs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, value: TensorMap, surrogate: TensorMap) -> Tensor:
        ctx.save_for_backward(x)
        ctx.surrogate = surrogate
        ctx.autocast = _autocast_state(x.device.type)
        return value(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        x = x.detach().requires_grad_()
        with torch.enable_grad(), torch.autocast(**ctx.autocast):
            y = ctx.surrogate(x)
        return torch.autograd.grad(y, x, grad)[0], None, None


def refuse_gradient(x: Tensor, value: TensorMap) -> Tensor:
    """``value(x)``, whose backward pass is an error that names the modes that have one."""
    return _RefuseGradient.apply(x, value)


class _RefuseGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, value: TensorMap) -> Tensor:
        return value(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        usable = [mode for mode in GRADIENT_MODES if mode != "none"]
        raise RuntimeError(
            f"this purifier was set to gradient='none'; to attack it by gradients choose one of "
            f"{usable}, as in purifier.with_gradient('{usable[0]}')"
        )


def _autocast_state(device_type: str) -> dict[str, Any]:
    return {
        "device_type": device_type,
        "enabled": torch.is_autocast_enabled(device_type),
        "dtype": torch.get_autocast_dtype(device_type),
    }
