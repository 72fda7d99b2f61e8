"""The floating-point types of a network's weights, of its images and of its noise levels."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["network_dtype"]


def network_dtype(net: object, default: torch.dtype) -> torch.dtype:
    """Type of a network's weights: what its images are cast to."""
    parameters = net.parameters() if isinstance(net, nn.Module) else iter(())
    return next((p.dtype for p in parameters if p.is_floating_point()), default)
