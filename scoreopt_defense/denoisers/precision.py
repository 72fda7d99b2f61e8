"""The floating-point types of a network's weights, of its images and of its noise levels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor, nn

__all__ = ["first_of", "most_exact", "network_dtype", "network_precision"]

T = TypeVar("T")


def first_of(values: Iterable[T], default: T) -> T:
    """``next(iter(values), default)``, in a form that torch 2.7 compiles."""
    for value in values:
        return value
    return default


def most_exact(device: torch.device) -> torch.dtype:
    """The most exact type of a device: MPS has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def network_dtype(net: object, default: torch.dtype) -> torch.dtype:
    """Type of a network's weights: what its images are cast to."""
    parameters = net.parameters() if isinstance(net, nn.Module) else iter(())
    return first_of((p.dtype for p in parameters if p.is_floating_point()), default)


@contextmanager
def network_precision(net: object, x: Tensor, level: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and noise levels as a network takes them, for as long as it runs.

    Images get the type of its weights. Noise levels get float32 at least: rounded to bfloat16, 0.3
    is 0.30078. A network with half-precision weights may multiply the two before its first layer,
    which makes float32 of both, and so it runs under autocast to the type of its weights. Both are
    copies: it may write into them.

    Args:
        net: whose weights they are.
        x: images, shape ``(B, C, H, W)``.
        level: noise levels or times, as the network is told them, shape ``(B,)``.

    Example:
        >>> net = nn.Conv2d(3, 3, 1).bfloat16()
        >>> with network_precision(net, torch.zeros(1, 3, 8, 8), torch.ones(1)) as (x, level):
        ...     net(x * level).dtype, x.dtype, level.dtype
        (torch.bfloat16, torch.bfloat16, torch.float32)
    """
    dtype = network_dtype(net, x.dtype)
    exact = torch.promote_types(dtype, torch.float32)
    with nullcontext() if dtype == exact else torch.autocast(x.device.type, dtype):
        yield x.to(dtype, copy=True), level.to(exact, copy=True)
