"""Half precision: which devices have it, and gradients that it has numbers for."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["half_precision", "in_range"]

# Of a CPU, by torch's names for them: one thread of each kind took 0.34 and 0.57 of float32's time.
_INSTRUCTIONS = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")


def half_precision(device: torch.device) -> str | None:
    """What ``autocast="auto"`` comes to: ``"bfloat16"`` where it is the faster one, else None.

    Of an NVIDIA or AMD GPU that has it, and of a CPU with AMX or AVX-512's bfloat16 instructions,
    by what they say of themselves, so that no measurement's noise decides. Without instructions a
    CPU takes ten times as long for it as for float32. Other devices were not measured.
    """
    if device.type == "cuda":
        with torch.cuda.device(device):
            has = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        asked = (getattr(torch.cpu, name, None) for name in _INSTRUCTIONS)  # torch 2.4 has neither
        has = device.type == "cpu" and any(ask() for ask in asked if ask)
    return "bfloat16" if has else None


def in_range(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """A gradient whose largest entry is from 1 to 2, of each image, and what it was divided by.

    That is a power of two, which changes no other bit of a number; 1 of an image whose gradient is
    zero or not finite. float16 has none between 0 and 6e-8: without it, what a very sure model's
    logits send back is gone in the first layer that computes in it.

    Args:
        gradient: shape ``(B, ...)``.

    Returns:
        The same shape, and ``(B, 1, ...)``.
    """
    with torch.no_grad():
        largest = gradient.abs().amax(tuple(range(1, gradient.ndim)), keepdim=True).float()
        largest = torch.where(largest.isfinite() & (largest > 0), largest, 1)
        there = largest.cpu() if largest.device.type == "mps" else largest  # which has no frexp
        power = largest / (2 * torch.frexp(there).mantissa).to(largest)
        power = power.to(gradient.dtype)
    return gradient / power, power
