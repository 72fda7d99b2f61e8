"""Steps carried out by ``torch.compile``, where no gradient is recorded."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from scoreopt_defense._checks import check_choice
from scoreopt_defense.steps.step import Runner

__all__ = ["MODES", "OLDEST", "Compiled", "check_compile", "compiled"]

#: What ``compile=`` may be by name: torch.compile's modes.
MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
#: The first torch whose compiler takes a step whole.
OLDEST = "2.7"
_GRAPHS_OVERWRITE = ("reduce-overhead", "max-autotune")  # their outputs at the next replay
# Dynamo keeps this many graphs of a step for all denoisers, losses and batches together (three
# sizes of batches: 1, below 16, and larger), and raises beyond; its own limit is 8.
_GRAPHS = 64


def check_compile(value: object) -> None:
    """``value`` is a flag or a mode, and torch is recent enough for it."""
    if not isinstance(value, bool):
        check_choice("compile", value, MODES)
    if value and torch.__version__ < OLDEST:
        raise ValueError(f"compile needs torch {OLDEST} or later, and this is {torch.__version__}")


def compiled(run: Runner, mode: bool | str = True) -> Runner:
    """Carry the steps out compiled, under another runner."""
    return lambda step: run(Compiled(step, mode if isinstance(mode, str) else "default"))


@dataclass(frozen=True)
class Compiled:
    """A step whose value is computed by a compiled graph, without a break.

    One graph serves batches of any size from 16, another those below, and a third a single image.
    Where gradients are recorded the step is carried out as it is: compiled code has no second
    derivative.

    Args:
        eager: the step.
        mode: of torch.compile.

    Raises:
        torch._dynamo.exc.Unsupported: from a call, naming what cannot be compiled.
    """

    eager: Any
    mode: str = "default"

    def __call__(self, *inputs: Any) -> Any:
        tensors = [value for value in inputs if isinstance(value, Tensor)]
        if torch.is_grad_enabled() and any(value.requires_grad for value in tensors):
            return self.eager(*inputs)
        with torch._dynamo.config.patch(recompile_limit=_GRAPHS):
            outputs = self._step(*_as_at_any_step(inputs, tensors[0].device))
        if self.mode not in _GRAPHS_OVERWRITE:
            return outputs
        return outputs.clone() if isinstance(outputs, Tensor) else tuple(t.clone() for t in outputs)

    @cached_property
    def _step(self) -> Any:
        # Dynamo keeps graphs by function, and has one function for all objects that can be called
        function = self.eager if isinstance(self.eager, nn.Module) else self.eager.__call__
        return torch.compile(function, fullgraph=True, dynamic=True, mode=self.mode)


def _as_at_any_step(inputs: tuple[Any, ...], device: torch.device) -> list[Any]:
    """Inputs that one graph takes at every step.

    A graph is made for a whole number's value, for which of its inputs are one tensor, and for
    which are views: the first step's attacked image is the first x, and a view of a batch.
    """
    seen: set[int] = set()
    values = []
    for value in inputs:
        if isinstance(value, int):
            value = torch.full((), value, dtype=torch.float64, device=device)  # copies nothing
        elif isinstance(value, Tensor) and (id(value) in seen or value._is_view()):
            value = value.clone()
        seen.add(id(value))
        values.append(value)
    return values
