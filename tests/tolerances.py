"""How far two routes to one value may part: every tolerance of the tests is computed here.

A tolerance that one machine printed fails on the next, whose vector width, thread count or library
orders the sums otherwise. These come from the forward error that any order obeys.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

__all__ = [
    "adam_rounding",
    "default_dtype",
    "depth_of",
    "everything_in_float64",
    "half_rounding",
    "rounding",
]


def rounding(dtype: torch.dtype, depth: float, scale: float = 1.0) -> float:
    r"""Bound on the distance of two computations of one value.

    .. math:: |a - b| \le 2 \cdot d\,u\,s = d\,\varepsilon\,s

    One rounding errs by at most :math:`u = \varepsilon/2` of what it rounds; d of them in sequence,
    none of which magnifies what came before, by :math:`d u`; and each of the two routes may err.

    Args:
        dtype: the coarsest in which any part is computed.
        depth: d, roundings in sequence on the longer route. A sum of n products counts as
            :math:`\sqrt n`, whatever its order, since its errors have either sign; a worst case
            would count n.
        scale: s, largest magnitude on the way, which a difference of large numbers keeps, times
            the condition number where a step magnifies (a division by sigma, say).

    Reference:
        Higham, Accuracy and Stability of Numerical Algorithms, 3.1; Higham and Mary, SIAM J. Sci.
        Comput. 41(5), 2019 (the square root).
    """
    return depth * torch.finfo(dtype).eps * float(scale)


def depth_of(net: nn.Module) -> float:
    r"""Roundings in sequence through a network: :math:`\sum_l (\sqrt{n_l} + 8)` over its layers.

    :math:`n_l` products are summed by layer l; 8 stands for its bias, normalisation, activation and
    residual. Layers are added, not taken in squares, since a layer passes on what it was given with
    a gain about 1.
    """
    weights = [p for p in net.parameters() if p.ndim > 1]
    return sum(math.sqrt(p[0].numel()) + 8 for p in weights)


def half_rounding(dtype: torch.dtype, net: nn.Module, scale: float) -> float:
    r"""Bound on what half precision does to a network's output: :math:`4 \sqrt L\,\varepsilon s`.

    Each of L layers rounds its own output; sums inside are kept in float32 by every CPU's kernels.
    The bound of :func:`rounding` with :func:`depth_of` exceeds the output itself there, so errors
    of either sign are added in squares: :math:`\varepsilon / 2` a layer, for its input and its
    output; and 4 times that standard deviation is seldom exceeded among some thousand pixels.

    Args:
        scale: s, largest magnitude of what the network adds to its input.
    """
    layers = sum(p.ndim > 1 for p in net.parameters())
    return rounding(dtype, 4 * math.sqrt(layers), scale)


def adam_rounding(dtype: torch.dtype, *, lr: float, steps: int, pixels: int) -> float:
    r"""Bound on the distance of two runs of a purifier under Adam.

    .. math:: 32\,k\,n\,\eta\,\varepsilon

    Adam divides a gradient by its own size, so that the relative error of the smallest counts: of n
    pixels, some gradient is about n times smaller than the typical one, and its error is typical.
    Each of k steps of size :math:`\eta` adds that, with 32 roundings in the gradient of a loss
    through the toy networks (two layers of a few dozen products).

    Args:
        pixels: n, of the whole batch.
    """
    return rounding(dtype, 32, steps * lr * pixels)


class _NoFloat32(TorchFunctionMode):
    """Each cast to float32, and each tensor made in it, is in float64 instead."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        func = torch.Tensor.double if func is torch.Tensor.float else func
        args = [torch.float64 if arg is torch.float32 else arg for arg in args]
        kwargs = {
            key: torch.float64 if value is torch.float32 else value
            for key, value in (kwargs or {}).items()
        }
        return func(*args, **kwargs)


@contextlib.contextmanager
def everything_in_float64() -> Iterator[None]:
    """Networks built and called inside compute in float64 alone.

    Foreign networks cast to float32 in places (embeddings of the time, group normalisation,
    softmax, grids of noise levels), which bounds every comparison with them by float32's rounding
    times their depth: too coarse to see a small mistake in a deep one.
    """
    with default_dtype(torch.float64), _NoFloat32():
        yield


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """What ``torch.set_default_dtype`` does, for a while."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
