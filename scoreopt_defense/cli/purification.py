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
            help="ScoreOpt, OneShot, DiffPure, GDMP, ADP, Langevin, PurSAMERE, MENet, JPEG, "
            "BitDepth or python:MODULE:FUNCTION, which returns one."
        ),
    ] = "ScoreOpt",
    preset: Annotated[
        str | None,
        typer.Option(help="See scoreopt presets.", show_default="DENOISER/N, if there is one"),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="As in steps=10.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise.")] = 0,
    pad: Annotated[
        int,
        typer.Option(
            min=1, help="Multiple that sides are mirrored out to while the network works, as 16."
        ),
    ] = 1,
    force: Annotated[bool, typer.Option("--force", help="Write over what is there.")] = False,
) -> None:
    """Purify image files; the results are PNG files, turned as EXIF says, with their alpha.

    All are read before the first is purified. What can't be is skipped, and said in the end.
    """
    from scoreopt_defense._memory import keep_freed_memory
    from scoreopt_defense.cli.image_files import purify_files
    from scoreopt_defense.evaluation import named
    from scoreopt_defense.presets import PRESETS

    keep_freed_memory()
    find_own_modules()
    own = f"{denoiser}/N"
    if preset is None and purifier.lower() == "scoreopt" and own.lower() in map(str.lower, PRESETS):
        preset = own
    made = named.purifier(purifier, denoiser, preset, dict(map(_setting, set_ or [])))
    if made is None:
        raise typer.BadParameter("'none' purifies nothing", param_hint="--purifier")
    done, kept, skipped = 0, 0, []
    for found in purify_files(made, source, target, seed=seed, pad=pad, force=force):
        if found.target is None:
            skipped.append(found.why)
        else:
            kept, done = kept + bool(found.why), done + (not found.why)
            say(f"{found.target} {found.why}".strip())
    counts = [f"{done} purified", *([f"{kept} kept"] if kept else [])]
    if skipped:
        why = "".join(f"\n  {why}" for why in skipped)
        say(f"{', '.join(counts)}, {len(skipped)} skipped:{why}", error=True)
        raise typer.Exit(1)
    say(f"{', '.join(counts)}", error=True)


def _setting(text: str) -> tuple[str, Any]:
    """``steps=10`` as a name and a number; what is no number or tuple is a name."""
    name, equals, value = text.partition("=")
    if not equals:
        raise typer.BadParameter(f"expected NAME=VALUE, got {text!r}", param_hint="--set")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value
