"""Reads pickles without running them.

Python's ``pickle.load`` calls whatever a file names. Here the standard library's reader takes the
file apart, cut down to the operations that data needs: each object that the file would make stays a
:class:`Record` of what it was to be made from. Nothing is imported, and nothing is called.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections.abc import Collection
from typing import IO, Any, ClassVar

import torch
from torch import Tensor

__all__ = ["Record", "RefusedError", "load", "tensor"]

# NVIDIA's CIFAR-10 networks take about 80,000; each creates at most one object of some 200 bytes.
_MAX_OPCODES = 500_000
_MAX_HEADER = 1024  # bytes of a storage before its numbers: torch writes about 350

_PLAIN = {
    *("PROTO", "FRAME", "STOP", "MARK", "MEMOIZE", "BINPUT", "LONG_BINPUT", "BINGET"),
    *("LONG_BINGET", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1"),
    *("BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES"),
    *("BINBYTES8", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "APPEND"),
    *("APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "GLOBAL", "STACK_GLOBAL", "BINPERSID"),
}
_CONTAINERS = {"collections.OrderedDict", "builtins.set"}
_TENSORS = {
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_tensor_v2",
    "torch.storage._load_from_bytes",
}
_STORAGES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}


class RefusedError(ValueError):
    """A pickle that holds more than data, or is no such pickle at all."""


class Record(dict[str, Any]):
    """An object of the file, inert: what it was called, built from, and set to; and its items.

    A dictionary is one named ``dict``; a set one named ``set``, whose items are the keys.
    """

    __slots__ = ("args", "name", "state")

    def __init__(self, name: str, args: tuple[Any, ...] = ()) -> None:
        self.name, self.args = name, args
        self.state: Any = None

    def __setitem__(self, key: Any, value: Any) -> None:
        # A nested tuple takes exponential time to hash, and numbers may all have the same hash.
        if type(key) is not str:
            raise TypeError(f"{type(key).__name__} as a key")
        super().__setitem__(key, value)

    def add(self, key: Any) -> None:
        self[key] = None


class _Name(str):
    """A global name of the file. Only this can be called."""

    __slots__ = ()


class _Reader(pickle._Unpickler):
    """The standard library's reader, of these operations and no others."""

    stack: list[Any]

    def __init__(self, stream: IO[bytes], known: Collection[str]) -> None:
        super().__init__(stream)
        self.known = known

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full not in self.known:
            raise RefusedError(f"{full[:100]}, which is neither a tensor nor a plain container")
        return _Name(full)

    def persistent_load(self, pid: Any) -> Any:
        return pid

    def call(self) -> None:
        args, name = self.stack.pop(), self.stack.pop()
        if type(args) is not tuple or type(name) is not _Name:
            raise TypeError("a call of what has no name")
        if name in _CONTAINERS and any(args):  # not so since protocol 2; a set, since 4
            raise RefusedError(f"a {name} that is filled by its call")
        self.stack.append(Record(name, args))

    def build(self) -> None:
        state, record = self.stack.pop(), self.stack[-1]
        if type(record) is not Record:
            raise TypeError(f"{type(record).__name__} in place of an object")
        record.state = state

    # where the standard library looks an operation up, by its code
    dispatch: ClassVar[dict[int, Any]] = {
        **{
            ord(operation.code): pickle._Unpickler.dispatch[ord(operation.code)]
            for operation in pickletools.opcodes
            if operation.name in _PLAIN
        },
        pickle.EMPTY_DICT[0]: lambda self: self.stack.append(Record("dict")),
        pickle.EMPTY_SET[0]: lambda self: self.stack.append(Record("set")),
        pickle.REDUCE[0]: call,
        pickle.NEWOBJ[0]: call,
        pickle.BUILD[0]: build,
    }


def load(stream: IO[bytes], *, known: Collection[str], max_opcodes: int = _MAX_OPCODES) -> Any:
    """The data in a pickle: numbers, texts, bytes, lists, tuples, and a record of all else.

    Args:
        stream: positioned at the pickle.
        known: the global names that may occur, ``"module.name"``; those of containers and tensors
            need no mention.
        max_opcodes: operations that the pickle may take.

    Raises:
        RefusedError: naming what was refused.
    """
    start = stream.tell()
    try:
        for count, (operation, _, _) in enumerate(pickletools.genops(stream)):
            if count >= max_opcodes:
                raise RefusedError("more operations than any network takes")
            if ord(operation.code) not in _Reader.dispatch:
                raise RefusedError(f"the operation {operation.name}")
        stream.seek(start)
        return _Reader(stream, {*known, *_CONTAINERS, *_TENSORS}).load()
    except RefusedError:
        raise
    except (
        *(ValueError, TypeError, IndexError, KeyError, AttributeError, EOFError),
        pickle.UnpicklingError,
    ) as error:
        raise RefusedError(
            f"a malformed pickle ({type(error).__name__}: {str(error)[:100]})"
        ) from None


def tensor(value: Any) -> Tensor:
    """The tensor that a record was to be made into, in memory of its own: of its part of a storage.

    Raises:
        RefusedError: if it is none, or larger than that part.
    """
    match value:
        case Record(name="torch._utils._rebuild_parameter", args=(data, *_)):
            value = data
    match value:
        case Record(
            name="torch._utils._rebuild_tensor_v2",
            args=(
                Record(name="torch.storage._load_from_bytes", args=(bytes(blob),)),
                offset,
                tuple(size),
                tuple(stride),
                *_,
            ),
        ):
            return _view(*_storage(blob), offset, size, stride)
    raise RefusedError("a parameter that is no tensor")


def _storage(blob: bytes) -> tuple[torch.dtype, memoryview]:
    """The type and the bytes of a storage's numbers, as ``torch.save`` wrote it in its old format.

    Pickled tensors contain it: a magic number, a protocol version and the system's type sizes, the
    storage's type and length as a persistent id, its key, its length again, its bytes.
    """
    stream = io.BytesIO(blob[:_MAX_HEADER])
    parts = [load(stream, known=_STORAGES, max_opcodes=50) for _ in range(5)]
    match parts:
        case [
            0x1950A86A20F9469CFC6C,
            1001,
            {"little_endian": True},
            ("storage", _Name(kind), str(key), _, int(length), *view),
            [again],
        ] if kind in _STORAGES and key == again and not any(view):
            dtype = _STORAGES[kind]
        case _:
            raise RefusedError("a storage in an unknown format")
    length_again = int.from_bytes(stream.read(8), "little", signed=True)
    left = len(blob) - stream.tell()
    if not 0 <= length == length_again or left != length * dtype.itemsize:
        raise RefusedError(f"a storage that declares {length} {dtype} in {left} bytes")
    return dtype, memoryview(blob)[stream.tell() :]


def _view(
    dtype: torch.dtype,
    data: memoryview,
    offset: Any,
    size: tuple[Any, ...],
    stride: tuple[Any, ...],
) -> Tensor:
    """``torch.as_strided``, within the storage and no larger than the part of it that it spans."""
    if len(size) != len(stride) or len(size) > 16:
        raise RefusedError("a tensor of unequal size and stride")
    numbers = (offset, *size, *stride)
    if any(type(number) is not int or not 0 <= number < 2**63 for number in numbers):
        raise RefusedError("a tensor of negative or endless size or stride")
    count, held = math.prod(size), len(data) // dtype.itemsize
    if not count:
        return torch.empty(size, dtype=dtype)
    span = 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if count > span or offset + span > held:
        raise RefusedError(f"a tensor of {count:,} numbers in a storage of {held:,}")
    part = data[offset * dtype.itemsize : (offset + span) * dtype.itemsize]
    return torch.frombuffer(bytearray(part), dtype=dtype).as_strided(size, stride)
