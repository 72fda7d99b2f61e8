"""Commands about what there is to name: attacks, presets, models, and a network of your own."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from scoreopt_defense.cli.edm import convert
from scoreopt_defense.cli.output import print_table, say

__all__ = ["attacks", "convert_edm", "models", "presets"]


def attacks() -> None:
    """List the attacks and suites that can be named."""
    from scoreopt_defense.attacks import ATTACKS, KINDS
    from scoreopt_defense.evaluation.named import SUITES

    kinds = {**SUITES, **KINDS}
    about = [[name, _first_line(kind)] for name, kind in kinds.items()]
    lines = [["name", "what it is", "threat model", "queries an image"]]
    for name, attack in ATTACKS.items():
        lines.append([name, type(attack).__name__, attack.threat, f"{attack.queries:,}"])
    print_table(lines)
    say("\nor a class, with settings of its own (steps, eot, gradient, ...), or a suite of them:\n")
    print_table([["name", "what it is"], *about])


def _first_line(kind: type) -> str:
    """Of what a class says of itself, without the marks of its references."""
    line = (kind.__doc__ or "").partition("\n")[0]
    return re.sub(r":\w+:`~?(?:\w+\.)*(\w+)`", r"\1", line).replace("``", "")


def presets() -> None:
    """List the presets of ScoreOpt."""
    from scoreopt_defense.presets import PRESETS

    common = ["variant", "lr", "steps", "sigma"]
    lines = [["preset", *common, "besides"]]
    for name, values in PRESETS.items():
        low, high = values["sigma"]
        sigma = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        besides = (f"{key}={value}" for key, value in values.items() if key not in common)
        lines.append([name, values["variant"], f"{values['lr']:g}", f"{values['steps']}", sigma,
                      ", ".join(besides)])  # fmt: skip
    print_table(lines)


def models() -> None:
    """List the denoisers and classifiers that can be named."""
    from scoreopt_defense import pretrained
    from scoreopt_defense.evaluation.named import CLASSIFIERS
    from scoreopt_defense.pretrained.hub import downloaded_names

    denoisers = {
        "ships": pretrained.names("denoiser"),
        "downloaded on first use": downloaded_names(),
        "by its place": ["hf:<id or folder>", "file:<file>", "edm:<file>"],
    }
    classifiers = {"ships": pretrained.names("classifier"), "by its place": list(CLASSIFIERS)}
    lines = [["kind", "name", "where it is"]] + [
        [kind, name, where]
        for kind, places in (("denoiser", denoisers), ("classifier", classifiers))
        for where, names in places.items()
        for name in names
    ]
    print_table(lines)


def convert_edm(
    snapshot: Annotated[str, typer.Argument(help="The .pkl file.")],
    output: Annotated[str, typer.Argument(help="The .safetensors file to write.")],
) -> None:
    """Turn an EDM snapshot (.pkl) into a safetensors file, without running it.

    pretrained.denoiser('edm:<file>') loads it.
    """
    convert(snapshot, output)
