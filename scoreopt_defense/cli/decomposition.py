"""The command that says where a defence's robustness comes from."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from scoreopt_defense._text import as_file
from scoreopt_defense.cli.evaluation import GO_ON
from scoreopt_defense.cli.output import say
from scoreopt_defense.cli.own_modules import find_own_modules

__all__ = ["decompose"]


def decompose(
    config: Annotated[Path, typer.Argument(help="TOML file: defences and images.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the record.", show_default="runs/CONFIG")
    ] = None,
    norm: Annotated[str, typer.Option(help="Of the ball: linf or l2.")] = "linf",
    eps: Annotated[
        str | None,
        typer.Option(help="Its radius, as 8/255.", show_default="the usual one of such images"),
    ] = None,
    steps: Annotated[int, typer.Option(min=2, help="Of each attack.")] = 40,
    claim: Annotated[
        str, typer.Option(help="The gradient whose claim beyond the worst case is masking.")
    ] = "bpda",
    autocast: Annotated[str | None, typer.Option(help="bfloat16: what attacks compute in.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Do again what failed.")
    ] = False,
) -> None:
    """Say where each defence's robustness comes from: randomness, contraction, its classifier.

    And what a weak gradient would claim beyond it. The file's images, batch and seed are taken, its
    attacks are not. Stopped and started again, it goes on where it was. Each defence has a table
    and, with matplotlib, a figure.
    """
    from scoreopt_defense._memory import keep_freed_memory
    from scoreopt_defense.defended import DefendedModel
    from scoreopt_defense.evaluation import config as configuration
    from scoreopt_defense.evaluation import decomposition
    from scoreopt_defense.evaluation.run.progress import progress
    from scoreopt_defense.evaluation.run.scheduler import Stopped
    from scoreopt_defense.evaluation.sections import fraction

    keep_freed_memory()
    find_own_modules()
    read = configuration.load(config)
    materials = read.materials()
    purified = {n: m for n, m in materials.defences.items() if isinstance(m, DefendedModel)}
    if not purified:
        raise ValueError(f"{config} has no defence with a purifier: there is nothing to decompose")
    folder = out or Path("runs") / config.stem
    for name, model in purified.items():
        try:
            found = decomposition.decompose(
                model, materials.images, norm=norm, eps=fraction(eps), steps=steps, claim=claim,
                autocast=autocast, seed=read.seed, name=f"{config.stem}, {name}", out=folder,
                batch=read.batch or 32, threads=read.threads or 1, keep=read.keep,
                workers=workers, retry_failed=retry_failed, progress=progress(),
            )  # fmt: skip
        except Stopped as stop:
            say(f"scoreopt: {stop}", error=True)
            raise typer.Exit(GO_ON if stop.by == signal.SIGTERM else 130) from None
        say(f"{found}\n")
        try:
            figure = found.plot().figure
        except ImportError as error:
            say(f"There is no figure: {error}", error=True)
            continue
        path = folder / f"decomposition-{as_file(name)}.png"
        figure.savefig(path, dpi=150)
        say(f"Figure: {path}\n")
