"""What memory there is, and what the C library does with what is freed."""

from __future__ import annotations

import ctypes
import sys

import psutil
import torch

__all__ = ["free_bytes", "keep_freed_memory"]


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
