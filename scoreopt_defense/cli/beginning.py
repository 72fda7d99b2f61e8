"""The command that writes a first configuration; it asks for what it is not told."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from scoreopt_defense.cli.output import say

__all__ = ["init"]

_HEAD = """\
# What to defend, on which images, and how to attack it. Say what it takes, then run it:
#
#     scoreopt evaluate {name} --dry-run
#     scoreopt evaluate {name}
#
# Stopped and started again, it goes on; what is added costs itself alone. Every key:
# docs/reference/configuration.md.

# The strongest few attacks and the cheap checks; "adaptive": all attacks, in hours.
suite = "quick"
device = "cpu"  # or "cuda"

[images]
source = {images}  # "mnist", a folder or zip of class/image files, .npy, or a torchvision root
n = {n}  # drawn from the test images; fewer are quicker, and their intervals wider
{transform}
[judging]
purifications = 8  # fresh ones, that each attacked image is judged by

# Every section [defences.NAME] is attacked.
"""
_BARE = """\
# This one has no purifier, to compare with.
[defences.undefended]
classifier = {classifier}

"""
_PURIFIER = """\
[defences.{name}]
classifier = {classifier}
purifier = {purifier}
{settings}"""
_NETWORK = """\
# python:MODULE:FUNCTION returns a module from images in [0, 1] to logits: the whole defence. If it
# rounds or blocks gradients, let it return
# DefendedModel(classifier, ThirdParty(purify, differentiable=False)), both of scoreopt_defense, so
# that attacks go past that.
[defences.{name}]
classifier = {classifier}
"""
_MORE = """
# Attacks by themselves, besides the suite's; `scoreopt attacks` lists them:
#
# [attacks."PGD+EOT"]
# attack = "pgd-eot-linf"
# eps = "8/255"  # in quotes, where it is a fraction
# steps = 20
# eot = 20
#
# Another eps for the suite, than the one that is usual for such images:
#
# [suites.quick]
# eps = "4/255"
"""
_TRANSFORMED = ("timm:", "torchvision:")


def init(
    config: Annotated[Path, typer.Argument(help="The file to write.")] = Path("defence.toml"),
    defence: Annotated[
        str | None,
        typer.Option(
            help="Yours, as MODULE:FUNCTION, which returns a module or a Purifier; or the "
            "networks of a preset, such as cifar10-tiny."
        ),
    ] = None,
    classifier: Annotated[
        str | None,
        typer.Option(
            help="Such as mnist-tiny or timm:resnet18 (see scoreopt models), or MODULE:FUNCTION."
        ),
    ] = None,
    images: Annotated[
        str | None, typer.Option(help="mnist, or the path of a folder, a zip or a .npy file.")
    ] = None,
    n: Annotated[int, typer.Option(min=1, help="How many images.")] = 64,
) -> None:
    """Write a configuration that `scoreopt evaluate` takes; asks for what no option says."""
    if config.exists():
        raise ValueError(f"{config} is there already: say another name, as in scoreopt init b.toml")
    if config.suffix != ".toml":
        raise ValueError(f"the file must end in .toml, got {config}")
    defence = _asked(
        "--defence", "Your defence, as mine:make for make() of mine.py, or mnist-tiny", defence
    )
    kind, name = _kind(defence)
    if kind != "whole":
        classifier = _asked("--classifier", "The classifier that it defends", classifier)
    classifier = _with_kind(classifier) if classifier else None
    images = _asked("--images", "Images: mnist, or a path", images, usual="mnist")
    text = _written(config, name, defence, kind, classifier, images, n)
    with config.open("x", encoding="utf-8") as file:
        file.write(text)
    if images != "mnist" and not images.startswith("hf:") and not Path(images).exists():
        say(f"There is nothing at {images} yet: put the images there first.")
    say(f"{config} is written. What it takes: scoreopt evaluate {config} --dry-run")


def _asked(flag: str, what: str, given: str | None, *, usual: str = "mnist-tiny") -> str:
    """What was given, or is answered on a terminal.

    Raises:
        ValueError: if there is nobody to ask.
    """
    if given is not None:
        return given
    if not sys.stdin.isatty():
        raise ValueError(f"say {flag}: there is no terminal to ask on")
    return str(typer.prompt(what, default=usual))


def _kind(defence: str) -> tuple[str, str]:
    """Whether it ``"ships"``, or a function that returns a ``"purifier"`` or a ``"whole"`` defence.

    Which of both is seen from what it returns, and so is its name.

    Raises:
        ValueError: if it is none of them.
    """
    from scoreopt_defense.presets import PRESETS

    ships = sorted({name.partition("/")[0] for name in PRESETS if "-tiny/" in name})
    if defence in ships:
        return "ships", "ScoreOpt-N"
    if ":" not in defence:
        raise ValueError(f"--defence must be MODULE:FUNCTION or one of {ships}, got {defence!r}")
    from torch import nn

    from scoreopt_defense.cli.own_modules import find_own_modules
    from scoreopt_defense.evaluation.named import made
    from scoreopt_defense.purifiers import Purifier

    find_own_modules()
    found = made(defence.removeprefix("python:"))
    if not isinstance(found, nn.Module):
        raise ValueError(
            f"{defence} must return a torch module from images in [0, 1] to logits, or a Purifier, "
            f"got {type(found).__name__}"
        )
    kind = "purifier" if isinstance(found, Purifier) else "whole"
    for inside in ("purifier", "purification", "function"):  # of a DefendedModel, of a ThirdParty
        found = getattr(found, inside, found)
    return kind, getattr(found, "__name__", type(found).__name__)


def _with_kind(classifier: str) -> str:
    """As a configuration names it: a MODULE:FUNCTION is Python's."""
    from scoreopt_defense.evaluation.named import CLASSIFIERS

    kind = classifier.partition(":")[0]
    is_own = kind != classifier and kind not in {name.partition(":")[0] for name in CLASSIFIERS}
    return f"python:{classifier}" if is_own else classifier


def _written(
    config: Path,
    name: str,
    defence: str,
    kind: str,
    classifier: str | None,
    images: str,
    n: int,
) -> str:
    library = next((k for k in _TRANSFORMED if (classifier or "").startswith(k)), "")
    transform = f'transform = "{library[:-1]}"  # as its authors resize and crop\n' * bool(library)
    text = _HEAD.format(name=config.name, images=_text(images), n=n, transform=transform)
    bare = _text(classifier or "")
    if classifier is not None:
        text += _BARE.format(classifier=bare)
    name = _text(name)
    named = _text(f"python:{defence.removeprefix('python:')}")
    if kind == "whole":
        return text + _NETWORK.format(name=name, classifier=named) + _MORE
    settings = ""
    if kind == "ships":
        settings = f'denoiser = "{defence}"\npreset = "{defence}/N"\n'
        named = '"ScoreOpt"'
    return text + _PURIFIER.format(
        name=name, classifier=bare, purifier=named, settings=settings
    ) + _MORE  # fmt: skip


def _text(value: str) -> str:
    """As TOML has it, which is as JSON does but for what no terminal shows."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
