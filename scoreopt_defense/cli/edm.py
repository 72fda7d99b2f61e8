"""NVIDIA's snapshots as safetensors files: needs nothing but the core, not even ``typer``."""

from __future__ import annotations

from scoreopt_defense.cli.output import say

__all__ = ["convert"]


def convert(snapshot: str, output: str) -> None:
    """Read NVIDIA's snapshot without running the code it carries, and write a safetensors file."""
    from scoreopt_defense.pretrained.edm_network import save_converted
    from scoreopt_defense.pretrained.edm_pickle import read_snapshot

    if not output.endswith(".safetensors"):
        raise ValueError(f"the output must end in .safetensors, got {output}")
    config, weights = read_snapshot(snapshot)
    save_converted(output, config, weights)
    numbers = sum(value.numel() for value in weights.values())
    say(f"{output}: {config.architecture}, {config.kind} preconditioning, {numbers:,} weights")
