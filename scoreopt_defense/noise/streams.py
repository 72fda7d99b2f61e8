"""Seeds: of one call after another, of twins and copies, and of places below a seed."""

from __future__ import annotations

import os
import secrets
from typing import Any

import numpy as np
import torch
from torch.utils.data import get_worker_info

__all__ = ["Stream", "derive"]


class Stream:
    """The seeds of a purifier's calls and of its twins, each a function of where the stream starts.

    In a worker of torch's ``DataLoader`` those of calls are functions of the worker's own seed too:
    each worker and each epoch draws others, which ``torch.manual_seed`` repeats.

    Args:
        seed: where; any whole number from 0, or None for the operating system's entropy, which a
            process forked from this one and whoever unpickles it draw anew.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._seed = seed
        self._begin()

    def _begin(self) -> None:
        self.start = secrets.randbits(64) if self._seed is None else self._seed
        self._calls = self._twins = 0
        self._process = os.getpid()

    def next_call(self) -> int:
        """Seed of the next call, 0 to 2**64 - 1.

        Raises:
            RuntimeError: if a backward pass makes the call.
        """
        if torch.is_grad_enabled() and torch._C._current_graph_task_id() != -1:
            raise RuntimeError(
                "a backward pass makes this call, as torch.utils.checkpoint does where it carries "
                "one out again, and would draw other noise: give it a seed, as in "
                "checkpoint(model, x, seed=0, use_reentrant=False), another in each step, or make "
                "it deterministic=True"
            )
        if self._seed is None and self._process != os.getpid():
            self._begin()
        self._calls = calls = self._calls + 1
        worker = get_worker_info()
        start = self.start if worker is None else derive(self.start, 3, worker.seed)
        return derive(start, 0, calls)

    def next_twin(self) -> int:
        """Seed of another stream; the calls' own go on as if it had not been asked for."""
        self._twins += 1
        return derive(self.start, 1, self._twins)

    def of_copy(self) -> int:
        """Seed of a copy's stream: another one wherever this one is, which stays there."""
        return derive(self.start, 2, self._calls, self._twins)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._seed is None:
            self._begin()


def derive(seed: int, *place: int) -> int:
    """The seed of one place below ``seed``, 0 to 2**64 - 1.

    Example:
        >>> derive(0, 1, 2) == derive(0, 1, 2) != derive(0, 2, 1)
        True
    """
    sequence = np.random.SeedSequence(seed, spawn_key=place)
    return int(sequence.generate_state(1, np.uint64)[0])
