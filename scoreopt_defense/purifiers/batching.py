"""One call of a purifier: its batch in chunks that memory holds, each differentiably."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from scoreopt_defense._memory import free_bytes
from scoreopt_defense.denoisers import Denoiser
from scoreopt_defense.gradients import Runner, as_it_is, differentiate
from scoreopt_defense.noise import Noise
from scoreopt_defense.steps.recording import Recording

__all__ = ["PurifierCall", "carry_out", "chunks", "fitting", "precision", "recorded_bytes"]

# What differentiating a step holds at most, over what autograd records of one denoising: 4.5 on
# cifar10-tiny by the exact gradient (7.4 MB an image, benchmarks/speed/memory.py, over 1.63).
_RECORDS = 6


@dataclass(frozen=True, eq=False)
class PurifierCall:
    """The :class:`~scoreopt_defense.gradients.Purification` of a purifier of this library."""

    purifier: Any
    noise: Noise
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, x_a: Tensor, run: Runner = as_it_is) -> Tensor:
        # a copy: an algorithm of a user's own may write into it, and x_a is differentiated at
        return self.purifier.purify(x_a.clone(), self.noise, run, **self.options)

    def one_shot(self, x_a: Tensor) -> Tensor:
        return self.purifier.one_shot(x_a, self.noise)


def carry_out(purifier: Any, x_a: Tensor, noise: Noise, options: Mapping[str, Any]) -> Tensor:
    """Purify one chunk, differentiably where gradients are being recorded."""
    if torch.is_grad_enabled() and x_a.requires_grad:
        call = PurifierCall(purifier, noise, options)
        return differentiate(purifier.settings.gradient, call, x_a)
    with torch.no_grad():
        return purifier.purify(x_a, noise, **options).clamp(-1, 1)


def chunks(rows: int, size: int, together: int) -> list[slice]:
    """The rows of a batch in chunks of ``size`` at most.

    Args:
        rows: in the batch.
        size: of a chunk.
        together: rows of a repetition: no chunk has some of two.
    """
    return [
        slice(start, min(start + size, first + together))
        for first in range(0, rows, together)
        for start in range(first, first + together, size)
    ]


def fitting(device: torch.device, record: int) -> int:
    """Images that half of a device's free memory holds, by :func:`recorded_bytes` of one."""
    return max(1, int(free_bytes(device) / (2 * _RECORDS * record)))


def recorded_bytes(denoiser: Denoiser, x: Tensor, autocast: str | None) -> int:
    """Bytes that autograd keeps of the denoising of a batch, 1 at least."""
    low, high = denoiser.sigma_range
    image, recording = x.clone().requires_grad_(), Recording(denoiser)
    with torch.enable_grad(), precision(x, autocast), recording:
        denoiser(image, max(low, min(1.0, high)))
    return max(1, recording.bytes)


def precision(x: Tensor, autocast: str | None) -> AbstractContextManager[Any]:
    """Autocast to the type of that name on the images' device, or nothing."""
    return torch.autocast(x.device.type, getattr(torch, autocast)) if autocast else nullcontext()
