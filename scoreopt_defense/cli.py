"""The command ``scoreopt``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments; those of the process by default.

    Returns:
        The exit status: 0, or 1 after an error, which is printed to stderr.
    """
    parser = argparse.ArgumentParser(prog="scoreopt", description="ScoreOpt, a defence by score.")
    commands = parser.add_subparsers(dest="command", required=True)
    convert = commands.add_parser(
        "convert-edm",
        help="turn an EDM snapshot (.pkl) into a safetensors file, without running it",
        description="Read NVIDIA's network-snapshot-*.pkl without running the code it carries, and "
        "write its weights and configuration to a safetensors file, which "
        "pretrained.denoiser('edm:<file>') loads.",
    )
    convert.add_argument("snapshot", help="the .pkl file")
    convert.add_argument("output", help="the .safetensors file to write")
    convert.set_defaults(run=_convert_edm)
    arguments = parser.parse_args(argv)
    try:
        arguments.run(arguments)
    except (OSError, ValueError, ImportError) as error:
        print(f"scoreopt: {error}", file=sys.stderr)
        return 1
    return 0


def _convert_edm(arguments: argparse.Namespace) -> None:
    from scoreopt_defense.pretrained.edm_network import save_converted
    from scoreopt_defense.pretrained.edm_pickle import read_snapshot

    if not arguments.output.endswith(".safetensors"):
        raise ValueError(f"the output must end in .safetensors, got {arguments.output}")
    config, weights = read_snapshot(arguments.snapshot)
    save_converted(arguments.output, config, weights)
    numbers = sum(value.numel() for value in weights.values())
    print(
        f"{arguments.output}: {config.architecture}, {config.kind} preconditioning, "
        f"{numbers:,} weights"
    )
