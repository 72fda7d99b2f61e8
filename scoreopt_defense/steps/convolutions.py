"""Convolutions whose weights count as constants: a third less work in the second derivative."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["FixedWeights"]


class FixedWeights(TorchFunctionMode):
    r"""A context in which the weights of convolutions count as constants.

    Then a convolution and its adjoint are each other's derivative,

    .. math:: y = Wx + b, \qquad \bar x = W^\top \bar y, \qquad \bar{\bar y} = W \bar{\bar x},

    and that is all a gradient with respect to images needs. torch's own second derivative computes
    the weights' part too, whether or not it is asked for. Values are the same. Gradients with
    respect to the weights are not there.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        how = _HOW[func](*args, **kwargs) if func in _HOW else None
        if how is None or not how.is_usual:
            return func(*args, **kwargs)
        return _Convolution.apply(*how.operands(), how.geometry)


class _How(NamedTuple):
    """One call of a convolution."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    stride: Any
    padding: Any
    dilation: Any
    transposed: bool
    output_padding: Any
    groups: int

    @property
    def is_usual(self) -> bool:
        """Whether it is one that torch's general convolution takes as it is."""
        return self.x.ndim == self.weight.ndim and not isinstance(self.padding, str)

    @property
    def geometry(self) -> tuple[Any, ...]:
        """What torch's general convolution takes after its operands."""
        axes = self.weight.ndim - 2
        return (
            _each(self.stride, axes), _each(self.padding, axes), _each(self.dilation, axes),
            self.transposed, _each(self.output_padding, axes), self.groups,
        )  # fmt: skip

    def operands(self) -> list[Tensor | None]:
        """Images, weight and bias in the type that autocast, where it is on, gives them."""
        given = [self.x, self.weight, self.bias]
        device = self.x.device.type
        if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
            return given
        dtype = torch.get_autocast_dtype(device)
        return [t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in given]


def _conv(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> _How:  # fmt: skip
    return _How(input, weight, bias, stride, padding, dilation, False, 0, groups)


def _conv_transpose(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
    output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
) -> _How:  # fmt: skip
    return _How(input, weight, bias, stride, padding, dilation, True, output_padding, groups)


# torch's functions by the names and order of their arguments
_HOW: dict[Any, Callable[..., _How]] = {
    torch.conv1d: _conv,
    torch.conv2d: _conv,
    torch.conv3d: _conv,
    torch.conv_transpose1d: _conv_transpose,
    torch.conv_transpose2d: _conv_transpose,
    torch.conv_transpose3d: _conv_transpose,
}


def _each(value: Any, axes: int) -> list[int]:
    """One number an axis."""
    values = list(value) if isinstance(value, Sequence) else [value]
    return values * axes if len(values) == 1 else values


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: tuple[Any, ...]
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.geometry = x.shape, geometry
        return torch.ops.aten.convolution(x, weight, bias, *geometry)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors
        return _Adjoint.apply(grad, weight, ctx.shape, ctx.geometry), None, None, None


class _Adjoint(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, weight: Tensor, shape: torch.Size, geometry: tuple[Any, ...]
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.geometry = geometry
        x = grad.new_empty(1).expand(shape)  # of whose values nothing depends
        parts = True, False, False  # the images', not the weight's, not the bias's
        return torch.ops.aten.convolution_backward(grad, x, weight, None, *geometry, parts)[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors
        return _Convolution.apply(grad, weight, None, ctx.geometry), None, None, None
