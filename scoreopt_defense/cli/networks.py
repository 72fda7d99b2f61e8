"""Commands about what there is to name: presets and models, and a network of your own."""

from __future__ import annotations

from typing import Annotated

import typer

from scoreopt_defense.cli.edm import convert
from scoreopt_defense.cli.output import print_table

__all__ = ["convert_edm", "models", "presets"]


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
