"""Which devices are used, for the tests of what stays on one."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Devices(TorchDispatchMode):
    """Which devices the operations' tensors are on, but for numbers, which any device takes."""

    def __init__(self):
        super().__init__()
        self.seen, self.count = set(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        leaves = tree_leaves((args, kwargs, result))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.ndim]
        self.seen |= {tensor.device.type for tensor in tensors}
        self.count += 1
        return result
