"""Calls of code that is not this library's: what they leave behind is put back.

A model or an attack of somebody else's may leave the process and the modules other than they were,
or try to end the process. Neither reaches what comes after it.
"""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as of_all_modules

from scoreopt_defense._mapped import unwritten
from scoreopt_defense._text import printable
from scoreopt_defense.noise import generators, put_back

__all__ = ["as_it_was", "contained", "said", "untouched"]

Undo = Callable[[], object]


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """No weight's gradient is reset or added to meanwhile, whatever is done with the model."""
    weights = [(p, p.requires_grad, p.grad) for p in model.parameters() if p.is_leaf]
    for weight, *_ in weights:
        weight.grad = None
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight, required, grad in weights:
            weight.requires_grad_(required)
            weight.grad = grad


@contextmanager
def as_it_was(*things: object) -> Iterator[None]:
    """Put modules, other objects, and the process back as they were before.

    Of a module: its class, mode, weights and buffers, their gradients and ``requires_grad``, hooks,
    attributes, the modules inside it, and its :func:`~scoreopt_defense.noise.generators`. Of
    another object: its attributes, and the modules among them. Of the process: torch's modes, types
    and flags, hooks on all modules, the working folder and the filters of warnings; for its
    generators there is :func:`~scoreopt_defense.noise.seeded`. What is changed inside of an
    attribute, such as a list, stays changed.
    """
    things = tuple(t for t in things if isinstance(getattr(t, "__dict__", None), dict))
    held = [value for thing in things for value in (thing, *vars(thing).values())]
    modules = {p: None for value in held if isinstance(value, nn.Module) for p in value.modules()}
    tensors = {id(t): t for part in modules for t in _own_tensors(part)}
    with ExitStack() as undo:
        _of_process(undo)
        for tensor in tensors.values():
            undo.callback(_of_tensor(tensor))
        for part in modules:
            undo.callback(_of_module(part))
        for thing in things:
            if not isinstance(thing, nn.Module):
                undo.callback(_of_attributes(thing))
        yield


def _of_process(undo: ExitStack) -> None:
    for get, put in _SETTINGS:
        undo.callback(_put_back, get, put, get())
    tables = [t for n, t in vars(of_all_modules).items() if n.startswith("_global_")]
    for table in tables:
        if isinstance(table, dict):
            undo.callback(_refill, table, table.copy())
    undo.callback(_put_back, lambda: warnings.filters, _set_filters, list(warnings.filters))


def _put_back(get: Callable[[], Any], put: Callable[[Any], object], before: Any) -> None:
    if get() != before:
        put(before)


def _set_filters(filters: Any) -> None:
    warnings.filters[:] = filters  # type: ignore[index]


def _refill(table: Any, content: Any) -> None:
    if list(table) != list(content) or any(table[key] is not content[key] for key in content):
        table.clear()
        table.update(content)


def _flag(place: Any, name: str) -> tuple[Callable[[], Any], Callable[[Any], object]]:
    return lambda: getattr(place, name), lambda value: setattr(place, name, value)


def _autocast(device: str) -> list[tuple[Callable[[], Any], Callable[[Any], object]]]:
    return [
        (
            lambda: torch.is_autocast_enabled(device),
            lambda value: torch.set_autocast_enabled(device, value),
        ),
        (
            lambda: torch.get_autocast_dtype(device),
            lambda value: torch.set_autocast_dtype(device, value),
        ),
    ]


def _matmul_precision() -> str | None:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # it is set backend by backend, for which there is no one word
        return None


def _set_matmul_precision(precision: str | None) -> None:
    if precision is not None:
        torch.set_float32_matmul_precision(precision)


def _default_device() -> Any:
    """None where none was set: with one set, be it the CPU, torch puts there what is elsewhere."""
    context = getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)
    return None if context is None else context.device


# What is set for the whole process or thread: how it is read, and how it is set.
_SETTINGS: list[tuple[Callable[[], Any], Callable[[Any], object]]] = [
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    (torch.get_default_dtype, torch.set_default_dtype),
    (_default_device, torch.set_default_device),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    *(_flag(torch.backends.cudnn, name) for name in ("enabled", "benchmark", "deterministic")),
    _flag(torch.backends.mkldnn, "enabled"),
    (_matmul_precision, _set_matmul_precision),
    *(part for device in ("cpu", "cuda") for part in _autocast(device)),
    (np.geterr, lambda errors: np.seterr(**errors)),
    (os.getcwd, os.chdir),
]


def _own_tensors(part: nn.Module) -> list[Tensor]:
    found = [*part.parameters(recurse=False), *part.buffers(recurse=False)]
    return [tensor for tensor in found if not nn.parameter.is_lazy(tensor)]


def _of_tensor(tensor: Tensor) -> Undo:
    """Its numbers, and where they lie; its gradient is set aside meanwhile."""
    place, required, numbers = tensor.data, tensor.requires_grad, unwritten(tensor.detach())
    if numbers is None:
        numbers = tensor.detach().clone()
    grad = tensor.grad if tensor.is_leaf else None
    if grad is not None:
        tensor.grad = None

    def back() -> None:
        if _place(tensor.data) != _place(place):
            tensor.data = place
        if not place.is_meta and not _same(place, numbers):
            place.copy_(numbers)
        if tensor.is_leaf:
            if tensor.requires_grad != required:
                tensor.requires_grad_(required)
            if tensor.grad is not grad:
                tensor.grad = grad

    return back


def _same(one: Tensor, other: Tensor) -> bool:
    return one.layout is torch.strided and torch.equal(one, other)


def _place(tensor: Tensor) -> tuple[Any, ...]:
    at = tensor.data_ptr() if tensor.layout is torch.strided else None
    return tensor.device, tensor.dtype, tensor.shape, at


def _of_module(part: nn.Module) -> Undo:
    mode, attributes = getattr(part, "training", None), _of_attributes(part)
    kind = type(part)  # a parametrisation, and a lazy module's first call, make it another

    def back() -> None:
        if type(part) is not kind:
            part.__class__ = kind
        attributes()
        if mode is not None and part.training != mode:  # a TorchScript's is no attribute
            part.training = mode

    return back


_TABLES = {name for name, value in vars(nn.Module()).items() if isinstance(value, (dict, set))}


def _of_attributes(thing: object) -> Undo:
    """Which attributes there are; of torch's tables, streams and generators what is in them."""
    attributes = vars(thing)
    before = attributes.copy()
    inside = [put_back(generator) for generator in generators(thing)]
    tables = [value for name, value in before.items() if name in _TABLES]
    inside += [_of_table(table) for table in tables if isinstance(table, (dict, set))]

    def back() -> None:
        _refill(attributes, before)
        for undo in inside:
            undo()

    return back


def _of_table(table: Any) -> Undo:
    return partial(_refill if isinstance(table, dict) else _reset, table, table.copy())


def _reset(names: set[Any], content: set[Any]) -> None:
    names.clear()
    names.update(content)


@contextmanager
def contained() -> Iterator[None]:
    """What would end the process is an error like others, unless a signal's handler raised it.

    Raises:
        RuntimeError: in place of SystemExit, KeyboardInterrupt and their like.
    """
    signalled: list[BaseException] = []

    def told(handler: Callable[[int, FrameType | None], Any]) -> Callable[..., Any]:
        def handle(number: int, frame: FrameType | None) -> None:
            try:
                handler(number, frame)
            except BaseException as error:
                signalled.append(error)
                raise

        return handle

    with ExitStack() as undo:
        if threading.current_thread() is threading.main_thread():  # where handlers run
            for number in signal.valid_signals():
                handler = signal.getsignal(number)
                if callable(handler) and not isinstance(handler, signal.Handlers):
                    signal.signal(number, told(handler))
                    undo.callback(signal.signal, number, handler)
        try:
            yield
        except Exception:
            raise
        except BaseException as error:
            if error in signalled:
                raise
            raise RuntimeError(f"it raised {said(error)}") from error


def said(error: BaseException) -> str:
    """An error's kind and message, in text that can be stored and shown everywhere."""
    try:
        message = str(error)
    except BaseException:  # it is somebody else's too, and may try to end the process
        message = "a message that cannot be read"
    return printable(f"{type(error).__name__}: {message}")
