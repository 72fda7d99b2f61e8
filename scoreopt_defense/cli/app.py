"""The commands of ``scoreopt`` put together; each imports what it needs when it is called."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from scoreopt_defense import _release
from scoreopt_defense.cli.evaluation import evaluate
from scoreopt_defense.cli.networks import convert_edm, models, presets
from scoreopt_defense.cli.output import say
from scoreopt_defense.cli.purification import purify
from scoreopt_defense.cli.records import export, forget, report, runs

__all__ = ["app", "run"]

app = typer.Typer(
    name="scoreopt",
    help="Test-time purification as a defence, and its honest evaluation.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for _command in (evaluate, report, export, runs, forget, purify, presets, models):
    app.command()(_command)
app.command("convert-edm")(convert_edm)


def run(arguments: list[str]) -> int:
    """The exit status of one call; errors other than of usage are the caller's to say."""
    path = list(sys.path)
    try:
        status = app(arguments, prog_name="scoreopt", standalone_mode=False)
    except typer.Abort:  # what Ctrl-C becomes on its way
        return 130
    except Exception as error:
        if not hasattr(error, "exit_code"):
            raise
        if hasattr(error, "show"):
            error.show()
        return int(error.exit_code)
    finally:
        sys.path[:] = path
    return status if isinstance(status, int) else 0


def _version(wanted: bool) -> None:
    if wanted:
        say(f"scoreopt {_release.described()}")
        raise typer.Exit


@app.callback()
def _every(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which it is.")
    ] = False,
) -> None:
    pass
