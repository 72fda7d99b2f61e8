"""Which devices compute in bfloat16 by instructions of their own."""

from __future__ import annotations

import torch

__all__ = ["half_precision"]

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
