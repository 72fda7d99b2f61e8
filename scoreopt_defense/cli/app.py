"""The commands of ``scoreopt`` put together; each imports what it needs when it is called."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from scoreopt_defense import _release
from scoreopt_defense.cli.beginning import init
from scoreopt_defense.cli.bundles import bundle, challenge, verify
from scoreopt_defense.cli.certification import certify
from scoreopt_defense.cli.decomposition import decompose
from scoreopt_defense.cli.evaluation import evaluate
from scoreopt_defense.cli.networks import attacks, convert_edm, models, presets
from scoreopt_defense.cli.output import say
from scoreopt_defense.cli.play import play
from scoreopt_defense.cli.purification import purify
from scoreopt_defense.cli.records import export, forget, report, runs

__all__ = ["app", "run"]

# An example of each, below its help.
_EXAMPLES: dict[Callable[..., None], str] = {
    init: "scoreopt init --defence mine:make --classifier timm:resnet18 --images photos",
    evaluate: "scoreopt evaluate examples/demo.toml --dry-run",
    certify: "scoreopt certify examples/certify.toml",
    decompose: "scoreopt decompose examples/demo.toml --steps 20",
    report: "scoreopt report runs/demo --view demo",
    export: "scoreopt export runs/demo --csv rows.csv",
    bundle: "scoreopt bundle runs/demo ours.zip --name ScoreOpt-N",
    verify: "scoreopt verify ours.zip --defence examples/demo.toml",
    challenge: "scoreopt challenge ours.zip theirs.pt --defence examples/demo.toml",
    runs: "scoreopt runs runs/demo",
    forget: "scoreopt forget runs/demo --attack SPSA",
    purify: "scoreopt purify photos purified --denoiser cifar10-tiny",
    play: "scoreopt play",
    attacks: "scoreopt attacks",
    presets: "scoreopt presets",
    models: "scoreopt models",
    convert_edm: "scoreopt convert-edm network-snapshot-000100.pkl mine.safetensors",
}

#: The command line itself, as Typer has it.
app = typer.Typer(
    name="scoreopt",
    help="Test-time purification as a defence, and its honest evaluation.",
    epilog=f"Such as: {_EXAMPLES[evaluate]}",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command, _example in _EXAMPLES.items():
    _name = _command.__name__.replace("_", "-")
    # its lines joined, which Typer would break where they end in the source
    _said = "\n\n".join(" ".join(p.split()) for p in (_command.__doc__ or "").split("\n\n"))
    app.command(_name, help=_said, epilog=f"Such as: {_example}")(_command)


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
