"""Weights, while code that is not this library's computes with them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["untouched"]


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """No weight's gradient is reset or added to meanwhile, whatever is done with the model."""
    weights = [(p, p.requires_grad, p.grad) for p in model.parameters() if p.is_leaf]
    for weight, *_ in weights:
        weight.grad = None
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight, required, grad in weights:
            weight.requires_grad_(required)
            weight.grad = grad
