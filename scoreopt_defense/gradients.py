"""How a purifier is differentiated. Knows no algorithm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = [
    "GRADIENT_MODES",
    "Runner",
    "Step",
    "call",
    "differentiate_as",
    "recompute",
    "refuse_gradient",
]

#: What ``gradient=`` may be.
GRADIENT_MODES = ("one-shot", "bpda", "exact", "none")

TensorMap = Callable[[Tensor], Tensor]
#: A pure function of its tensors to tensors: one step of an algorithm.
Step = Callable[..., Sequence[Tensor]]
#: How an algorithm has its steps carried out: ``run(step, *tensors)``.
Runner = Callable[..., Sequence[Tensor]]


def call(step: Step, *tensors: Tensor) -> Sequence[Tensor]:
    """Carry a step out and record nothing that it does not record itself."""
    return step(*tensors)


def recompute(step: Step, *tensors: Tensor) -> Sequence[Tensor]:
    r"""Carry a step out; in the backward pass, carry it out again and differentiate it.

    .. math:: (\bar s, \bar x_a) = J_{step}(s, x_a)^\top \bar s'

    Only the step's inputs are kept, so the memory of many steps is that of one step and their
    states. The step must give the same result again: it may draw no noise of its own. The second
    pass takes attention kernels that have a second derivative.

    Raises:
        RuntimeError: from the backward pass, if something in the step has no second derivative.
    """
    return _Recompute.apply(step, *tensors)


class _Recompute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, step: Step, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*tensors)
        ctx.step = step
        ctx.autocast = _autocast_state(tensors[0].device.type)
        return tuple(step(*tensors))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[1:]
        inputs = [
            tensor.detach().requires_grad_(need) for tensor, need in zip(ctx.saved_tensors, needed)
        ]
        try:
            with (
                torch.enable_grad(),
                torch.autocast(**ctx.autocast),
                sdpa_kernel(SDPBackend.MATH),
            ):
                outputs = ctx.step(*inputs)
            _refuse_once_differentiable(outputs)
            wanted = [tensor for tensor in inputs if tensor.requires_grad]
            found = iter(torch.autograd.grad(outputs, wanted, grads, allow_unused=True))
        except RuntimeError as error:
            if not any(word in str(error) for word in ("not implemented", "differentiate")):
                raise
            raise RuntimeError(
                "gradient='exact' needs the denoiser's second derivative, and something in it has "
                f"none ({error}); the modes 'one-shot' and 'bpda' do without"
            ) from error
        return None, *(next(found) if need else None for need in needed)


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


def _refuse_once_differentiable(outputs: Sequence[Tensor]) -> None:
    """Raise where a function of the graph was differentiated that can be so only once.

    Autograd marks it by a node that raises, on a branch that leads to no input: a gradient with
    respect to the inputs alone never visits it, and would lack terms without a word.
    """
    waiting = [output.grad_fn for output in outputs]
    seen = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if node.name() == "torch::autograd::Error":
            raise RuntimeError("a function that can be differentiated once only")
        seen.add(node)
        waiting += [parent for parent, _ in node.next_functions]


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
