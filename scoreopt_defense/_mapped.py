"""Objects whose tensors are mapped from one place and not copied, mostly for other processes.

Pages are copied once they are written to: no process changes what another has.
"""

from __future__ import annotations

import io
import mmap
import multiprocessing
import os
import pickle
import sys
import tempfile
from collections.abc import MutableMapping
from multiprocessing import reduction
from typing import Any, BinaryIO
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.storage import TypedStorage, UntypedStorage

__all__ = ["Mapped", "map_weights", "packed", "unpacked", "unwritten"]

_ALIGNED = 64  # bytes, as torch's allocator has it
_LAST = 8  # bytes, that say where the numbers end
# What this process mapped and works with, as long as it does: where that lies, and the same once
# more, which nothing writes to.
_MAPS: MutableMapping[mmap.mmap, tuple[range, UntypedStorage]] = WeakKeyDictionary()


class Mapped:
    """An object as an argument of new processes of this machine, which :func:`unpacked` reads.

    On Linux it is in memory that has no name, elsewhere in a file that has none left, so that it is
    gone with the processes; on Windows in shared memory that each copies.

    Raises:
        Exception: what pickle raises of what it cannot take.
    """

    def __init__(self, thing: Any) -> None:
        if sys.platform == "win32":
            data = packed(thing)
            self._block = multiprocessing.RawArray("B", len(data))
            memoryview(self._block).cast("B")[:] = data
        else:
            self._file = _nameless()
            _pack(thing, self._file)

    def __reduce__(self) -> Any:
        if sys.platform == "win32":
            return bytearray, (self._block,)
        return _maps, (reduction.DupFd(self._file.fileno()),)


def _nameless() -> Any:
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("scoreopt"), "w+b")
    return tempfile.TemporaryFile()


def _maps(file: Any) -> tuple[mmap.mmap, mmap.mmap]:
    number = file.detach()
    try:
        return _twice(number)
    finally:
        os.close(number)


def _twice(number: int) -> tuple[mmap.mmap, mmap.mmap]:
    first, second = (mmap.mmap(number, 0, access=mmap.ACCESS_COPY) for _ in range(2))
    return first, second


def map_weights(module: nn.Module) -> None:
    """Have a module's weights and buffers lie in mapped memory, for :func:`unwritten`.

    For a module that nobody else has; it stays the same but for where its numbers lie. What is not
    in ordinary memory stays there, as everything does on Windows.
    """
    if sys.platform == "win32":
        return
    every = (t for t in (*module.parameters(), *module.buffers()) if not nn.parameter.is_lazy(t))
    tensors = [t for t in every if _is_ordinary(t) and type(t.data) is Tensor]
    there = Mapped([tensor.data for tensor in tensors])
    for tensor, mapped in zip(tensors, unpacked(_twice(there._file.fileno())), strict=True):
        tensor.data = mapped


def packed(thing: Any) -> bytearray:
    """An object for :func:`unpacked`, in one piece.

    Raises:
        Exception: what pickle raises of what it cannot take.
    """
    file = io.BytesIO()
    _pack(thing, file)
    return bytearray(file.getbuffer())


def unpacked(data: bytearray | tuple[mmap.mmap, mmap.mmap]) -> Any:
    """The object; its tensors lie in what is mapped, or in a copy of the data."""
    given = (data,) if isinstance(data, bytearray) else data
    whole, *twin = (torch.frombuffer(one, dtype=torch.uint8).untyped_storage() for one in given)
    if isinstance(data, bytearray):
        whole = whole.clone()  # aligned
    else:
        first = whole.data_ptr()
        _MAPS[data[0]] = range(first, first + whole.nbytes()), twin[0]
    content = memoryview(given[0])
    start = int.from_bytes(content[-_LAST:], "little")
    return _Unpickler(io.BytesIO(content[start:-_LAST]), whole).load()


def unwritten(tensor: Tensor) -> Tensor | None:
    """A mapped tensor's numbers where nothing writes to them, while it still has the same ones.

    None of a tensor that is not mapped, or has other numbers.
    """
    if not _is_ordinary(tensor):
        return None
    place = tensor.data_ptr()
    for whole, twin in _MAPS.values():
        if place in whole:
            numbers = torch.empty(0, dtype=tensor.dtype)
            offset = whole.index(place) // tensor.itemsize
            numbers.set_(twin, offset, tensor.shape, tensor.stride())
            return numbers if torch.equal(tensor, numbers) else None
    return None


def _is_ordinary(tensor: Tensor) -> bool:
    return (
        tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
    )


def _pack(thing: Any, file: BinaryIO) -> None:
    """Numbers first, and then the rest as a pickle, which knows them by their places."""
    rest = io.BytesIO()
    _Pickler(rest, file).dump(thing)
    start = file.tell()
    file.write(rest.getbuffer())
    file.write(start.to_bytes(_LAST, "little"))
    file.flush()


class _Pickler(pickle.Pickler):
    def __init__(self, rest: BinaryIO, numbers: Any) -> None:
        super().__init__(rest)
        self.numbers = numbers
        self.seen: dict[tuple[int, int], tuple[int, UntypedStorage]] = {}

    def persistent_id(self, thing: Any) -> Any:
        storage = thing._untyped_storage if isinstance(thing, TypedStorage) else thing
        if not isinstance(storage, UntypedStorage) or storage.device.type != "cpu":
            return None
        which = storage.data_ptr(), storage.nbytes()
        if which not in self.seen:
            start = -(-self.numbers.tell() // _ALIGNED) * _ALIGNED
            self.numbers.seek(start)
            self.numbers.write(torch.empty(0, dtype=torch.uint8).set_(storage).numpy())
            self.seen[which] = start, storage  # held, or another would come to lie there
        return self.seen[which][0], storage.nbytes(), getattr(thing, "dtype", torch.uint8)


class _Unpickler(pickle.Unpickler):
    def __init__(self, rest: BinaryIO, numbers: UntypedStorage) -> None:
        super().__init__(rest)
        self.numbers = numbers
        self.made: dict[tuple[int, int], UntypedStorage] = {}

    def persistent_load(self, which: Any) -> TypedStorage:
        start, size, dtype = which
        if (start, size) not in self.made:
            storage = self.numbers[start : start + size]
            # one that gains nothing is an ordinary one, which can grow
            self.made[start, size] = storage if size >= mmap.PAGESIZE else storage.clone()
        return TypedStorage(wrap_storage=self.made[start, size], dtype=dtype, _internal=True)
