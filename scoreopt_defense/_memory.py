"""How many images fit into memory."""

from __future__ import annotations

from collections.abc import Callable

import psutil
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

__all__ = ["free_bytes", "recorded_bytes"]


def free_bytes(device: torch.device) -> int:
    """Bytes that a device can give now; of the host's memory where it does not say.

    What torch's allocator holds and does not use counts as free.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + held)
    return int(psutil.virtual_memory().available)


def recorded_bytes(compute: Callable[[], object], networks: nn.Module) -> int:
    """Bytes that autograd keeps of what ``compute`` does, without the networks' own weights."""
    sizes: dict[int, int] = {}

    def count(kept: Tensor) -> Tensor:
        storage = kept.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return kept

    with saved_tensors_hooks(count, lambda kept: kept):
        result = compute()
    del result  # until here what was counted was alive, and no address stood for two tensors
    for weight in networks.parameters():
        sizes.pop(weight.untyped_storage().data_ptr(), None)
    return sum(sizes.values())
