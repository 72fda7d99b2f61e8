"""The command ``scoreopt``: what can go wrong with it is said in a line, never a traceback."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from scoreopt_defense._checks import printable

__all__ = ["convert_edm", "main", "say"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments; those of the process by default.

    Returns:
        The exit status: 0; 1 after an error and 2 after a wrong call, which are said on stderr; 3
        after a run whose units failed in part or all, which has a record; 130 after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        try:
            from scoreopt_defense.commands import run
        except ImportError as error:
            return _without_the_extra(arguments, error)
        return run(arguments)
    except (OSError, ValueError, TypeError, ImportError, RuntimeError) as error:
        say(f"scoreopt: {error}", error=True)
        return 1
    except KeyboardInterrupt as error:
        say(f"scoreopt: {error or 'stopped'}", error=True)
        return 130


def say(text: object, *, error: bool = False) -> None:
    """Print what may hold names out of files: commands to a terminal in them are escaped."""
    stream = sys.stderr if error else sys.stdout
    encoding = stream.encoding or "utf-8"
    print(printable(str(text)).encode(encoding, "backslashreplace").decode(encoding), file=stream)


def _without_the_extra(arguments: list[str], error: ImportError) -> int:
    """The one command that needs nothing but the core."""
    match arguments:
        case ["convert-edm", snapshot, output]:
            convert_edm(snapshot, output)
            return 0
    raise error


def convert_edm(snapshot: str, output: str) -> None:
    """Read NVIDIA's snapshot without running the code it carries, and write a safetensors file."""
    from scoreopt_defense.pretrained.edm_network import save_converted
    from scoreopt_defense.pretrained.edm_pickle import read_snapshot

    if not output.endswith(".safetensors"):
        raise ValueError(f"the output must end in .safetensors, got {output}")
    config, weights = read_snapshot(snapshot)
    save_converted(output, config, weights)
    numbers = sum(value.numel() for value in weights.values())
    say(f"{output}: {config.architecture}, {config.kind} preconditioning, {numbers:,} weights")
