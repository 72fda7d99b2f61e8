"""Which of a source's images are taken."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from scoreopt_defense._checks import check_choice

__all__ = ["Choose", "chooser", "drawn"]

#: Of a number of items, the places of those that are wanted, in their order.
Choose = Callable[[int], np.ndarray]


def chooser(n: int | None, seed: int, order: str = "drawn") -> Choose:
    """All of them, or ``n`` that are drawn; see :func:`scoreopt_defense.data.load`."""
    check_choice("order", order, ("drawn", "index"))
    return partial(_places, n=n, seed=seed, order=order)


def _places(total: int, n: int | None, seed: int, order: str) -> np.ndarray:
    if n is None:
        return np.arange(total)
    found = drawn(total, n, seed)
    return np.sort(found) if order == "index" else found


def drawn(total: int, n: int, seed: int) -> np.ndarray:
    """Indices of ``n`` of ``total`` items, in random order, the same for the same seed."""
    if not 1 <= n <= total:
        raise ValueError(f"n must be between 1 and the {total} images there are, got {n}")
    return np.random.default_rng(seed).permutation(total)[:n]
