"""What memory there is and is used, and what the C library does with what is freed."""

from __future__ import annotations

import ctypes
import sys
import weakref
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["Alive", "free_bytes", "give_back_freed_memory", "keep_freed_memory", "shared_by"]

_GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
_sharing = 1


def shared_by(processes: int) -> None:
    """Have this process take its part alone, as one of so many that are at the same work."""
    global _sharing
    _sharing = processes


def free_bytes(device: torch.device) -> int:
    """Bytes that a device can give this process now; of the host's memory where it does not say.

    What torch's allocator holds and does not use counts as free.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free / _sharing + held)
    return min([psutil.virtual_memory().available, *_left_in_groups(*_GROUPS)]) // _sharing


def _left_in_groups(own: Path, mounted: Path) -> list[int]:
    """Bytes that the control groups of this process still give it, as of a container.

    What they hold of files that can be dropped counts as free.

    Args:
        own: names the groups, as /proc/self/cgroup does.
        mounted: the folder of all groups, of version 1 or 2; within a container, of its own.
    """
    found = []
    with suppress(OSError):
        for line in own.read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            if kinds and "memory" not in kinds.split(","):
                continue
            root = mounted / kinds
            names = (
                ("limit_in_bytes", "usage_in_bytes", "total_") if kinds else ("max", "current", "")
            )
            group = root / path.lstrip("/")
            for folder in (group, *group.parents):
                if folder.is_relative_to(root):
                    found += _left(folder, *names)
    return found


def _left(group: Path, limit: str, usage: str, total: str) -> list[int]:
    with suppress(OSError, ValueError, StopIteration):  # no such group, or "max"
        most, used = (int((group / f"memory.{name}").read_text()) for name in (limit, usage))
        lines = (group / "memory.stat").read_text().splitlines()
        cached = next(line for line in lines if line.startswith(f"{total}inactive_file "))
        return [max(0, most - used + int(cached.split()[1]))]
    return []


class Alive(TorchDispatchMode):
    """A context that counts the bytes of the tensors that are made in it, at most at once.

    Args:
        known: tensors that are there anyway, such as a network's weights, and do not count.

    Attributes:
        most: bytes, so far.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self._sizes = {tensor.untyped_storage().data_ptr(): 0 for tensor in known}
        self.now = self.most = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.layout is torch.strided:
                self._follow(tensor.untyped_storage())
        return made

    def _follow(self, storage: torch.UntypedStorage) -> None:
        place = storage.data_ptr()
        if place in self._sizes:
            return
        self._sizes[place] = storage.nbytes()
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._freed, place)

    def _freed(self, place: int) -> None:
        self.now -= self._sizes.pop(place)


def keep_freed_memory() -> bool:
    """Have glibc keep what this process frees, as allocators made for large arrays do.

    By default it gives large pieces back to the system, and the page faults that bring them in
    again are a part of a network's time on a CPU: docs/results/speed.md. A program's own choice, so
    that only commands and workers make it. More than 1 GiB at the heap's end, and a single piece of
    that size, still go back.

    Returns:
        Whether it does: not where the C library is another one.
    """
    mallopt = _of_libc("mallopt")
    trim_threshold, mmap_threshold = -1, -3  # of malloc.h
    return bool(mallopt and mallopt(trim_threshold, 2**30) and mallopt(mmap_threshold, 2**30))


def give_back_freed_memory() -> None:
    """Have glibc give the system all that this process has freed.

    After networks were made and tried, that is more than they take.
    """
    if trim := _of_libc("malloc_trim"):
        trim(0)


def _of_libc(name: str) -> Any:
    """A function of glibc's; None where the C library is another one."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
