"""The command that serves a page to play with."""

from __future__ import annotations

from typing import Annotated

import typer

from scoreopt_defense._optional import optional
from scoreopt_defense.cli.output import say
from scoreopt_defense.cli.own_modules import find_own_modules

__all__ = ["play"]


def play(
    images: Annotated[
        str | None,
        typer.Option(help="Samples: a folder of class/image files, as in evaluate's source."),
    ] = None,
    classifier: Annotated[
        str | None, typer.Option(help="Of your own, such as timm:resnet18; see scoreopt models.")
    ] = None,
    denoiser: Annotated[str | None, typer.Option(help="Of your own, beside it.")] = None,
    host: Annotated[
        str,
        typer.Option(help="Address that is served; others than this machine's are open to all."),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8765,
) -> None:
    """Serve a page that attacks an image, purifies it and shows each step.

    Open the address that it prints. Images that are dropped there are kept nowhere.
    """
    optional("fastapi", extra="play")
    optional("uvicorn", extra="play")
    from scoreopt_defense._memory import keep_freed_memory
    from scoreopt_defense.play.choices import domains
    from scoreopt_defense.play.server import serve

    keep_freed_memory()
    find_own_modules()
    offered = domains(images=images, classifier=classifier, denoiser=denoiser)
    serve(offered, host=host, port=port, say=say)
