"""Seeds as pure functions of where they are used, and models whose noise starts at one."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256

import numpy as np
import torch
from torch import nn

from scoreopt_defense.defended import DefendedModel

__all__ = ["key_of", "reseeded", "seeded"]


def key_of(name: str) -> int:
    """A name as a whole number, the same in every process."""
    return int.from_bytes(sha256(name.encode()).digest()[:8], "big")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Start torch's, numpy's and Python's global generators at ``seed``; put them back after."""
    of_python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        np.random.seed([seed & 0xFFFFFFFF, seed >> 32])  # noqa: NPY002
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)  # noqa: NPY002


def reseeded(model: nn.Module, seed: int) -> nn.Module:
    """The model with fresh noise, where its noise is ours; other models draw from :func:`seeded`.

    A deterministic purifier keeps its noise: with another it would be another defence.
    """
    if not isinstance(model, DefendedModel):
        return model
    return model.replace() if model.purifier.deterministic else model.replace(seed=seed)
