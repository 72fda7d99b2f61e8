"""Says how much memory is free, and counts what autograd keeps of a computation."""

from __future__ import annotations

import ctypes
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

__all__ = ["Recording", "free_bytes", "keep_freed_memory", "unwatched"]


def free_bytes(device: torch.device) -> int:
    """Bytes that a device can give now; of the host's memory where it does not say.

    What torch's allocator holds and does not use counts as free.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + held)
    return int(psutil.virtual_memory().available)


def keep_freed_memory() -> bool:
    """Have glibc keep what this process frees, as allocators made for large arrays do.

    By default it gives large pieces back to the system, and the page faults that bring them in
    again are a part of a network's time on a CPU: docs/speed.md. A program's own choice, so that
    only commands and workers make it. More than 1 GiB at the heap's end, and a single piece of that
    size, still go back.

    Returns:
        Whether it does: not where the C library is another one.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    trim_threshold, mmap_threshold = -1, -3  # of malloc.h
    return bool(mallopt and mallopt(trim_threshold, 2**30) and mallopt(mmap_threshold, 2**30))


def unwatched() -> AbstractContextManager[Any]:
    """For a graph that is used up inside: nobody's hooks on what autograd keeps see it.

    ``torch.utils.checkpoint`` would carry all of its function out again for each such graph, and
    ``save_on_cpu`` copy it there and back. Where there are no hooks, as there seldom are, it does
    nothing; nor before torch 2.8, which cannot say.
    """
    watching = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", lambda _: None)
    if watching(False) is None:
        return nullcontext()
    return saved_tensors_hooks(Tensor.detach, lambda kept: kept)


class Recording(saved_tensors_hooks):
    """A context that counts what autograd keeps of what is computed in it.

    It may be entered again, and counts on: what it counted must be alive still, or an address would
    stand for two tensors.

    Args:
        networks: whose weights are there anyway, and do not count.

    Attributes:
        bytes: so far.
    """

    def __init__(self, networks: nn.Module) -> None:
        super().__init__(self._count, lambda kept: kept)
        self.bytes = 0
        self._seen = {weight.untyped_storage().data_ptr() for weight in networks.parameters()}

    def _count(self, kept: Tensor) -> Tensor:
        storage = kept.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        return kept.detach()  # itself would lead back to the graph that holds it, for ever
