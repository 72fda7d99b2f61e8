"""The command that certifies defences."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from scoreopt_defense._text import as_file
from scoreopt_defense.cli.output import say
from scoreopt_defense.cli.own_modules import find_own_modules

__all__ = ["certify"]


def certify(
    config: Annotated[Path, typer.Argument(help="TOML file: defences, images and certify.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the record.", show_default="runs/CONFIG-certified"),
    ] = None,
    tsv: Annotated[
        Path | None,
        typer.Option(help="Folder to write a table of each defence to, as locuslab/smoothing's."),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Do again what failed.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Until no other process writes the record.")
    ] = False,
) -> None:
    """Prove within which radius each defence, in Gaussian noise, keeps its class.

    Stopped and started again, it goes on where it was. Attacks of the file are not run.
    """
    from scoreopt_defense._memory import keep_freed_memory
    from scoreopt_defense.cli.evaluation import GO_ON
    from scoreopt_defense.evaluation import certification
    from scoreopt_defense.evaluation import config as configuration
    from scoreopt_defense.evaluation.run.progress import progress
    from scoreopt_defense.evaluation.run.scheduler import Stopped

    keep_freed_memory()
    find_own_modules()
    read = configuration.load(config)
    if read.certify is None:
        raise ValueError(f"{config} has no section [certify], such as: [certify] sigma = 0.25")
    images = read.source()
    defences = {name: read.defence(name) for name in read.defences}
    name = f"{config.stem}-certified"
    try:
        found = certification.certify(
            defences, images, **read.certify.model_dump(), out=out or Path("runs") / name,
            name=name, seed=read.seed, threads=read.threads or 1, workers=workers,
            retry_failed=retry_failed, wait=wait, progress=progress(),
        )  # fmt: skip
    except Stopped as stop:
        say(f"scoreopt: {stop}", error=True)
        raise typer.Exit(GO_ON if stop.by == signal.SIGTERM else 130) from None
    with found.result.store:
        say(found)
        if tsv is not None:
            tsv.mkdir(parents=True, exist_ok=True)
            for place, defence in enumerate(found.defences):
                say(found.to_tsv(tsv / f"{place}-{as_file(defence)}.tsv", defence))
        if found.result.failures:
            raise typer.Exit(3)
