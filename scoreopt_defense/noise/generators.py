"""Generators that are not ours: torch's, numpy's and Python's global ones, and a module's own."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import nn

from scoreopt_defense.noise.streams import Stream

__all__ = [
    "drawn_again",
    "draws_of_its_own",
    "generators",
    "put_back",
    "same_draws",
    "seeded",
    "start",
]

_KINDS = (Stream, torch.Generator, random.Random, np.random.RandomState, np.random.Generator)


def generators(thing: object) -> list[Any]:
    """Those among an object's attributes, and in lists, tuples and dictionaries among them."""
    found = []
    for value in vars(thing).values():
        inside = [*value.values()] if isinstance(value, dict) else value
        held = inside if isinstance(inside, (list, tuple)) else [value]
        found += [one for one in held if isinstance(one, _KINDS)]
    return found


def draws_of_its_own(module: nn.Module) -> bool:
    """Whether it or one of its children has a generator, which no seed reaches."""
    if torch.compiler.is_compiling():  # a compiler has no word for some of these classes
        return torch.compiler.disable(draws_of_its_own)(module)
    return any(generators(part) for part in module.modules())


def start(generator: Any, seed: int) -> None:
    """Begin at a seed, 0 to 2**64 - 1."""
    match generator:
        case Stream():
            vars(generator).update(vars(Stream(seed)))
        case torch.Generator():
            generator.manual_seed(seed)
        case random.Random():
            generator.seed(seed)
        case np.random.RandomState():
            generator.seed([seed & 0xFFFFFFFF, seed >> 32])
        case np.random.Generator():
            bits = generator.bit_generator
            bits.state = type(bits)(seed).state


def put_back(generator: Any) -> Callable[[], object]:
    """What puts it back to where it is now."""
    match generator:
        case Stream():
            return partial(vars(generator).update, vars(generator).copy())
        case torch.Generator():
            return partial(generator.set_state, generator.get_state())
        case random.Random() if not isinstance(generator, random.SystemRandom):
            return partial(generator.setstate, generator.getstate())
        case np.random.RandomState():
            return partial(generator.set_state, generator.get_state())
        case np.random.Generator():
            bits = generator.bit_generator
            return partial(setattr, bits, "state", bits.state)
    return lambda: None  # the operating system's has no state


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Start torch's, numpy's and Python's global generators at ``seed``; put them back after."""
    before = _states()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        _seed_torch(seed)
        np.random.seed([seed & 0xFFFFFFFF, seed >> 32])  # noqa: NPY002
        random.seed(seed)
        try:
            yield
        finally:
            _set_states(before)


def _seed_torch(seed: int) -> None:
    """As ``torch.manual_seed``, which writes a traceback down for each device that there is not."""
    if _has_accelerator():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


@cache
def _has_accelerator() -> bool:
    return any(kind.is_available() for kind in (torch.cuda, torch.xpu, torch.backends.mps))


def same_draws() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Two contexts for ``torch.utils.checkpoint``: what is drawn in the first is in the second too.

    From numpy's and Python's global generators, which it does not put back as it does torch's. It
    asks for the contexts where it is about to enter the first.
    """
    return nullcontext(), _StartedFrom(_states())


def drawn_again(device: torch.device) -> Callable[[], AbstractContextManager[None]]:
    """Contexts in which the global generators draw what they do from now on; put back after."""
    on_gpu = device.type == "cuda"
    cpu = torch.get_rng_state()
    gpu = torch.cuda.get_rng_state(device) if on_gpu else None
    others = _StartedFrom(_states())

    @contextmanager
    def again() -> Iterator[None]:
        with torch.random.fork_rng(devices=[device] if on_gpu else []), others:
            torch.set_rng_state(cpu)
            if gpu is not None:
                torch.cuda.set_rng_state(gpu, device)
            yield

    return again


class _StartedFrom(AbstractContextManager[None]):
    """Generators in those states, for a while; it can be entered often."""

    def __init__(self, states: Sequence[Any]) -> None:
        self.states = states

    def __enter__(self) -> None:
        self.before = _states()
        _set_states(self.states)

    def __exit__(self, *_: object) -> None:
        _set_states(self.before)


def _states() -> tuple[Any, Any]:
    """Of Python's and numpy's global generators."""
    return random.getstate(), np.random.get_state()  # noqa: NPY002


def _set_states(states: Sequence[Any]) -> None:
    of_python, of_numpy = states
    random.setstate(of_python)
    np.random.set_state(of_numpy)  # noqa: NPY002
