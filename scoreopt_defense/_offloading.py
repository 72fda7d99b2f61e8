"""Weights that are elsewhere until their module runs, as accelerate and diffusers have it."""

from __future__ import annotations

from torch import nn

__all__ = ["may_bring_weights"]


def may_bring_weights(module: nn.Module) -> bool:
    """Whether something runs before the forward pass of a module, or of a part of it."""
    return any(part._forward_pre_hooks or "forward" in vars(part) for part in module.modules())
