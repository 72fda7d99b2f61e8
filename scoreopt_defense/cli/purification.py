"""The command that purifies image files."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Annotated, Any

import typer

from scoreopt_defense.cli.output import say
from scoreopt_defense.cli.own_modules import find_own_modules

__all__ = ["purify"]


def purify(
    source: Annotated[Path, typer.Argument(metavar="IN", help="An image, or a folder of them.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="A .png file, or a folder.")],
    denoiser: Annotated[
        str | None, typer.Option(help="Such as cifar10-tiny; see scoreopt models.")
    ] = None,
    purifier: Annotated[
        str,
        typer.Option(
            help="ScoreOpt, OneShot, DiffPure, GDMP, ADP, MENet, JPEG, BitDepth or "
            "python:MODULE:FUNCTION, which returns one."
        ),
    ] = "ScoreOpt",
    preset: Annotated[str | None, typer.Option(help="See scoreopt presets.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="As in steps=10.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise.")] = 0,
) -> None:
    """Purify image files; the results are PNG files."""
    from scoreopt_defense._memory import keep_freed_memory
    from scoreopt_defense.cli.image_files import purify_files
    from scoreopt_defense.evaluation import named

    keep_freed_memory()
    find_own_modules()
    made = named.purifier(purifier, denoiser, preset, dict(map(_setting, set_ or [])))
    if made is None:
        raise typer.BadParameter("'none' purifies nothing", param_hint="--purifier")
    for path in purify_files(made, source, target, seed=seed):
        say(path)


def _setting(text: str) -> tuple[str, Any]:
    """``steps=10`` as a name and a number; what is no number or tuple is a name."""
    name, equals, value = text.partition("=")
    if not equals:
        raise typer.BadParameter(f"expected NAME=VALUE, got {text!r}", param_hint="--set")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value
