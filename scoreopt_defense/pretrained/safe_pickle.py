"""Reads pickles without running them.

Python's ``pickle.load`` calls whatever a file names. This reader is an interpreter of its own for
the part of the format that data needs: it imports nothing, calls nothing but the functions it is
given, and refuses, by name, all else. What it may use up is bounded by the size of the file.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any

import torch
from torch import Tensor

__all__ = ["Record", "RefusedError", "load"]

# NVIDIA's CIFAR-10 networks take about 80,000; each creates at most one object of some 200 bytes.
_MAX_OPCODES = 500_000

_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
_LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}

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


@dataclass(eq=False, repr=False)
class Record:
    """An object of the file, inert: what it was called, built from, and set to."""

    name: str
    args: tuple[Any, ...] = ()
    state: Any = None


@dataclass
class _Budget:
    """What is left to spend on one file, its nested pickles included."""

    opcodes: int
    memory: int

    def spend(self, *, opcodes: int = 0, memory: int = 0) -> None:
        self.opcodes -= opcodes
        self.memory -= memory
        if self.opcodes < 0:
            raise RefusedError("more operations than any network takes")
        if self.memory < 0:
            raise RefusedError("tensors that are larger than the file that holds them")


def load(
    stream: IO[bytes],
    *,
    size: int,
    known: Mapping[str, Callable[..., Any]],
    max_opcodes: int = _MAX_OPCODES,
) -> Any:
    """The data in a pickle: plain containers, tensors, and a :class:`Record` for each object.

    Args:
        stream: positioned at the pickle.
        size: bytes in the stream; all tensors together may not be larger.
        known: for each global name that may occur, ``"module.name"``, what stands in for it.
            Containers and tensors need no mention.
        max_opcodes: operations that the file may take.

    Raises:
        RefusedError: naming what was refused.
    """
    budget = _Budget(opcodes=max_opcodes, memory=size)
    table = {
        "collections.OrderedDict": lambda pairs=(): _fill({}, _flat(pairs, budget)),
        "builtins.set": lambda items=(): _keys(items, budget),
        "torch._utils._rebuild_parameter": lambda data, *_: _tensor(data),
        "torch._utils._rebuild_tensor_v2": lambda storage, *layout: _view(storage, *layout[:3]),
        "torch.storage._load_from_bytes": lambda blob: _storage(blob, budget),
        **known,
    }
    return _run(stream, table, budget)


def _run(
    stream: IO[bytes],
    table: Mapping[str, Any],
    budget: _Budget,
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    try:
        return _Machine(table, budget, persistent).run(stream)
    except RefusedError:
        raise
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError) as error:
        raise RefusedError(
            f"a malformed pickle ({type(error).__name__}: {str(error)[:100]})"
        ) from None


class _Machine:
    """The pickle machine: a stack, marks on it, and a memo."""

    def __init__(
        self,
        table: Mapping[str, Any],
        budget: _Budget,
        persistent: Callable[[Any], Any] | None,
    ) -> None:
        self.table, self.budget, self.persistent = table, budget, persistent
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, stream: IO[bytes]) -> Any:
        for opcode, arg, _ in pickletools.genops(stream):
            self.budget.spend(opcodes=1)
            if opcode.name == "STOP":
                return self.stack.pop()
            self.step(opcode.name, arg)
        raise RefusedError("a pickle without an end")

    def step(self, name: str, arg: Any) -> None:
        stack = self.stack
        if name in _LITERALS:
            stack.append(arg)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name in _TUPLES:
            stack[-_TUPLES[name] :] = [tuple(self.top(_TUPLES[name]))]
        elif name in ("PROTO", "FRAME"):
            pass
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name == "TUPLE":
            stack.append(tuple(self.marked()))
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else self.marked()
            _expect(stack[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else self.marked()
            _fill(_expect(stack[-1], dict), items)
        elif name == "ADDITEMS":
            items = self.marked()
            _expect(stack[-1], set).update(map(_key, items))
        elif name in ("MEMOIZE", "BINPUT", "LONG_BINPUT"):
            self.memo[len(self.memo) if name == "MEMOIZE" else arg] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[arg])
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            words = arg.split(" ") if name == "GLOBAL" else [stack.pop(-2), stack.pop()]
            stack.append(self.known(".".join(_expect(word, str) for word in words)))
        elif name in ("REDUCE", "NEWOBJ"):
            args, function = _expect(stack.pop(), tuple), _expect(stack.pop(), _Known)
            self.budget.spend(opcodes=len(args))  # which are copied
            stack.append(function.stand_in(*args))
        elif name == "BUILD":
            state = stack.pop()
            _expect(stack[-1], Record).state = state
        elif name == "BINPERSID" and self.persistent is not None:
            stack.append(self.persistent(stack.pop()))
        else:
            raise RefusedError(f"the operation {name}")

    def top(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise IndexError("the stack is empty")
        return self.stack[-count:]

    def marked(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def known(self, name: str) -> _Known:
        if name not in self.table:
            raise RefusedError(f"{name[:100]}, which is neither a tensor nor a plain container")
        return _Known(self.table[name])


@dataclass
class _Known:
    """A global name of the file: what stands in for it. Only this can be called."""

    stand_in: Callable[..., Any]


def _expect(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{type(value).__name__} in place of {kind.__name__}")
    return value


def _key(value: Any) -> Any:
    # A nested tuple as a key takes exponential time to hash.
    if type(value) not in (str, int, float, bool, type(None)):
        raise TypeError(f"{type(value).__name__} as a key")
    return value


def _fill(target: dict[Any, Any], items: list[Any]) -> dict[Any, Any]:
    for key, value in zip(items[::2], items[1::2], strict=True):
        target[_key(key)] = value
    return target


def _flat(pairs: Any, budget: _Budget) -> list[Any]:
    budget.spend(opcodes=2 * len(pairs))
    return [item for key, value in pairs for item in (key, value)]


def _keys(items: Any, budget: _Budget) -> set[Any]:
    budget.spend(opcodes=len(items))
    return set(map(_key, items))


@dataclass
class _Storage:
    """The numbers that tensors are views of."""

    values: Tensor | None = None


def _storage(blob: Any, budget: _Budget) -> _Storage:
    """What ``torch.save`` writes of a storage in its old format, which pickled tensors contain.

    A magic number, a protocol version and the system's type sizes, the storage's type and length as
    a persistent id, its key, its length again, its bytes.
    """
    stream = io.BytesIO(_expect(blob, bytes))
    budget.spend(memory=len(blob))  # read again at each mention
    storage = _Storage()
    declared: list[tuple[torch.dtype, str, int]] = []

    def persistent(pid: Any) -> _Storage:
        kind, dtype, key, _location, length = _expect(pid, tuple)[:5]
        if kind != "storage" or pid[5:] not in ((), (None,)) or declared:
            raise TypeError("a persistent id that is no storage")
        declared.append((_expect(dtype, _Known).stand_in, _expect(key, str), _expect(length, int)))
        return storage

    magic, version, system = (_run(stream, {}, budget) for _ in range(3))
    if (magic, version) != (0x1950A86A20F9469CFC6C, 1001) or system["little_endian"] is not True:
        raise RefusedError("a storage in an unknown format")
    if _run(stream, _STORAGES, budget, persistent) is not storage:
        raise RefusedError("a storage in an unknown format")
    [(dtype, key, length)] = declared
    if _run(stream, {}, budget) != [key]:
        raise RefusedError("a storage in an unknown format")
    length_again = int.from_bytes(stream.read(8), "little", signed=True)
    left = len(blob) - stream.tell()
    if not 0 <= length == length_again or left != length * dtype.itemsize:
        raise RefusedError(f"a storage that declares {length} {dtype} in {left} bytes")
    storage.values = (
        torch.frombuffer(bytearray(stream.read()), dtype=dtype)
        if length
        else torch.empty(0, dtype=dtype)
    )
    return storage


def _view(storage: Any, offset: Any, size: Any, stride: Any) -> Tensor:
    """``torch.as_strided``, within the storage and never larger than it."""
    values = _expect(storage, _Storage).values
    numbers = [offset, *_expect(size, tuple), *_expect(stride, tuple)]
    if len(size) != len(stride) or len(size) > 16:
        raise TypeError("a tensor of unequal size and stride")
    if any(type(number) is not int or number < 0 for number in numbers):
        raise TypeError("a tensor of negative size or stride")
    count = 1
    for length in size:
        count *= length
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if count > len(values) or (count and last >= len(values)):
        raise RefusedError(f"a tensor of {count:,} numbers in a storage of {len(values):,}")
    return values.as_strided(size, stride, offset) if count else values.new_empty(size)


def _tensor(value: Any) -> Tensor:
    return _expect(value, Tensor)
