"""Steps that are carried out again in the backward pass, or recorded in the forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.compiler import is_compiling
from torch.nn.attention import SDPBackend, sdpa_kernel

from scoreopt_defense.noise import drawn_again
from scoreopt_defense.steps.convolutions import FixedWeights
from scoreopt_defense.steps.recording import Recording
from scoreopt_defense.steps.step import Step, eager

__all__ = ["Kept", "autocast_state", "recompute"]

# Of torch's errors: of a kernel, of a function, and of a compiled network in either of two ways.
_NO_SECOND_DERIVATIVE = ("not implemented", "differentiate", "donated buffer", "double backward")


def recompute(step: Step, differentiated: Step | None = None) -> Step:
    r"""Carry a step out; in the backward pass, carry it out again and differentiate it.

    .. math:: (\bar s, \bar x_a) = J_{step}(s, x_a)^\top \bar s'

    Only the step's inputs are kept, so the memory of many steps is that of one step and their
    states. The step must give the same result again: what it draws from the global generators is
    drawn again, and it may have no generator of its own. The second pass takes attention kernels
    that have a second derivative.

    Args:
        step: gives the value.
        differentiated: carried out and differentiated in its place, at the same inputs.

    Raises:
        RuntimeError: from the backward pass, if something in the step has no second derivative.
    """
    return lambda *inputs: _Recompute.apply(step, differentiated or eager(step), *inputs)


class _Recompute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, step: Step, differentiated: Step, *inputs: Any) -> Any:
        tensors = _tensors(inputs)
        ctx.save_for_backward(*tensors)
        ctx.inputs = [None if isinstance(value, Tensor) else value for value in inputs]
        ctx.is_tensor = [isinstance(value, Tensor) for value in inputs]
        ctx.step = differentiated
        ctx.autocast = autocast_state(tensors[0].device.type)
        ctx.drawn_again = nullcontext if is_compiling() else drawn_again(tensors[0].device)
        ctx.set_materialize_grads(False)  # an output that nobody used costs nothing
        # Detached: what a step holds of its own graph would lead back to this one, for ever.
        return step(*(v.detach() if isinstance(v, Tensor) else v for v in inputs))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        inputs = [
            next(saved).detach().requires_grad_(need) if is_tensor else value
            for value, is_tensor, need in zip(
                ctx.inputs, ctx.is_tensor, ctx.needs_input_grad[2:], strict=True
            )
        ]
        with _second_derivative(), torch.enable_grad(), torch.autocast(**ctx.autocast):
            with ctx.drawn_again():  # what a network draws, such as dropout that is at work
                outputs = ctx.step(*inputs)
            outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
            used = [(value, grad) for value, grad in zip(outputs, grads) if grad is not None]
            values, grads = zip(*used, strict=True)
            _refuse_once_differentiable(values)
            wanted = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
            found = iter(torch.autograd.grad(values, wanted, grads, allow_unused=True))
        return None, None, *(next(found) if need else None for need in ctx.needs_input_grad[2:])


class Kept:
    """A :data:`Runner` that records steps as long as there is memory, and recomputes the others.

    Args:
        megabytes: of tensors that autograd may keep.
        networks: whose weights are there anyway.
    """

    def __init__(self, megabytes: float, networks: nn.Module) -> None:
        self._most = megabytes * 2**20
        self._largest = 0  # bytes of a step, so far
        self._recording = Recording(networks)

    def __call__(self, step: Step) -> Step:
        def carried_out(*inputs: Any) -> Any:
            before = self._recording.bytes
            if before >= self._most or before + self._largest > self._most:
                return recompute(step)(*inputs)
            with self._recording, _second_derivative():
                outputs = eager(step)(*inputs)
                _refuse_once_differentiable(_tensors(outputs), before=_tensors(inputs))
            self._largest = max(self._largest, self._recording.bytes - before)
            return outputs

        return carried_out


@contextmanager
def _second_derivative() -> Iterator[None]:
    """Attention kernels that have one, convolutions that compute no more than it, and an error.

    The error says what has none.
    """
    try:
        with sdpa_kernel(SDPBackend.MATH), FixedWeights():
            yield
    except RuntimeError as error:
        if not any(words in str(error) for words in _NO_SECOND_DERIVATIVE):
            raise
        raise RuntimeError(
            "the gradient through every step ('exact', 'smoothed') needs the denoiser's second "
            "derivative, and something in it has "
            f"none ({error}); the modes 'one-shot' and 'bpda' do without. A network behind "
            "torch.compile has none: ScoreOpt(compile=True) takes it as it was"
        ) from error


def _refuse_once_differentiable(outputs: Sequence[Tensor], before: Sequence[Tensor] = ()) -> None:
    """Raise where a function of the graph was differentiated that can be so only once.

    The graph is that between ``before`` and ``outputs``.

    Autograd marks it by a node that raises, on a branch that leads to no input: a gradient with
    respect to the inputs alone never visits it, and would lack terms without a word.
    """
    waiting = [output.grad_fn for output in outputs]
    seen = {tensor.grad_fn for tensor in before}
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if node.name() == "torch::autograd::Error":
            raise RuntimeError("a function that can be differentiated once only")
        seen.add(node)
        waiting += [parent for parent, _ in node.next_functions]


def _tensors(values: Any) -> list[Tensor]:
    values = (values,) if isinstance(values, Tensor) else values
    return [value for value in values if isinstance(value, Tensor)]


def autocast_state(device_type: str) -> dict[str, Any]:
    """What ``torch.autocast`` takes to be as it is now.

    A device that has no autocast is unaffected, and the CPU's is as it is now.
    """
    if not torch.amp.is_autocast_available(device_type):
        device_type = "cpu"
    return {
        "device_type": device_type,
        "enabled": torch.is_autocast_enabled(device_type),
        "dtype": torch.get_autocast_dtype(device_type),
    }
