"""A step of an algorithm, and the ways in which it can be carried out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["Runner", "Step", "as_it_is", "eager"]

#: A pure function of tensors: one step of an algorithm. It may have a method ``smoothed(c)``: the
#: step that ``gradient="smoothed"`` differentiates in its place.
Step = Callable[..., Any]
#: How an algorithm has its steps carried out: the step, or another function of the same value.
Runner = Callable[[Step], Step]


def as_it_is(step: Step) -> Step:
    """Carry a step out, and record nothing that it does not record itself."""
    return step


def eager(step: Any) -> Any:
    """A step as autograd can record it: of one whose value is compiled, the one that was."""
    return getattr(step, "eager", step)
