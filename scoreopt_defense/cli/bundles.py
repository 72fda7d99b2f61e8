"""Commands that make a bundle of a claim, check somebody's, and try to beat it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from scoreopt_defense.cli.output import say
from scoreopt_defense.cli.own_modules import find_own_modules

__all__ = ["bundle", "challenge", "verify"]

REFUTED, ANOTHER, UNDECIDED = 4, 5, 6
_JUDGED = "purifications judged"


def _radius(text: str) -> float:
    from scoreopt_defense.evaluation.sections import fraction

    return float(fraction(text))


_Defence = Annotated[
    Path, typer.Option("--defence", help="TOML file that names the defence and the clean images.")
]
_Name = Annotated[
    str | None, typer.Option(help="Which defence.", show_default="the bundle's, or the only one")
]
_Purifications = Annotated[int, typer.Option(min=1, help="Fresh ones of each image.")]
_Seed = Annotated[
    int | None, typer.Option(min=0, help="Of the purifications.", show_default="an unforeseen one")
]


def bundle(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="[RUN] OUT.zip", help="Folder of a record, and the file to write."),
    ],
    images: Annotated[
        Path | None,
        typer.Option(
            help="In place of RUN: somebody's attacked images, .npy, .pt or a folder of PNG, in "
            "the order of the clean ones. They are judged: say --defence, --norm and --eps."
        ),
    ] = None,
    defence: Annotated[
        Path | None, typer.Option(help="TOML file that names the defence and the clean images.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Which defence.", show_default="the only one")
    ] = None,
    view: Annotated[
        str | None, typer.Option(help="Which run of the record.", show_default="the last one")
    ] = None,
    norm: Annotated[
        str | None, typer.Option(help="linf, l2 or l1.", show_default="the run's only one")
    ] = None,
    eps: Annotated[
        float | None,
        typer.Option(parser=_radius, metavar="EPS", help="As in 8/255.", show_default=False),
    ] = None,
    purifications: _Purifications = 32,
    seed: _Seed = None,
) -> None:
    """Write what a run claims of a defence, with the images that show it, for others to check.

    Of a run nothing is computed again. See docs/how-to/verify.md.
    """
    from scoreopt_defense.evaluation.bundle import attacked_images, of_images, of_run
    from scoreopt_defense.evaluation.record.results import Result
    from scoreopt_defense.evaluation.record.store import Store
    from scoreopt_defense.evaluation.run.progress import counting

    *run, out = paths
    if len(run) != (images is None):
        raise typer.BadParameter("say RUN OUT.zip, or OUT.zip with --images", param_hint="paths")
    if images is None:
        with Store(run[0]) as store:
            made = of_run(Result(store, store.plan(view)), defence=name, norm=norm, eps=eps)
    else:
        if defence is None or norm is None or eps is None:
            raise typer.BadParameter("say --defence, --norm and --eps too", param_hint="--images")
        called, model, clean, batch = _loaded(defence, name)
        attacked = attacked_images(images, (len(clean), *clean.shape))
        with counting(_JUDGED, len(clean) * purifications) as told:
            made = of_images(model, clean, attacked, defence=called, norm=norm, eps=eps, told=told,
                             purifications=purifications, batch=batch, seed=seed)  # fmt: skip
    say(f"{made.write(out)}: {made.claim}, by {made.defence}")
    if images is None:
        say(f"The run says: {made.made['verdict']}")


def verify(
    claim: Annotated[Path, typer.Argument(metavar="BUNDLE.zip")],
    defence: _Defence,
    name: _Name = None,
    margin: Annotated[
        float, typer.Option(min=0.1, max=50, help="Points that the figures may differ by.")
    ] = 5.0,
    purifications: _Purifications = 32,
    seed: _Seed = None,
) -> None:
    """Check a claim: the images are in their balls, the defence is the same, and is judged afresh.

    Nothing is attacked. The exit status is 0 if it is confirmed, 4 if refuted, 5 if it is another
    defence, 6 if undecided, and 1 if the bundle cannot be believed at all. docs/how-to/verify.md
    has the tests.
    """
    from scoreopt_defense.evaluation.bundle import Bundle
    from scoreopt_defense.evaluation.bundle import verify as verified
    from scoreopt_defense.evaluation.run.progress import counting

    read = Bundle.read(claim)
    _, model, images, batch = _loaded(defence, name, read.defence)
    with counting(_JUDGED, len(read.labels) * purifications) as told:
        found = verified(read, model, images, margin=margin / 100, purifications=purifications,
                         batch=batch, seed=seed, told=told)  # fmt: skip
    say(found)
    status = {"refuted": REFUTED, "another defence": ANOTHER, "undecided": UNDECIDED}
    raise typer.Exit(status.get(found.outcome, 0))


def challenge(
    claim: Annotated[Path, typer.Argument(metavar="BUNDLE.zip")],
    theirs: Annotated[
        Path,
        typer.Argument(
            metavar="IMAGES", help="Other attacked images: .npy, .pt, a folder or a bundle."
        ),
    ],
    defence: _Defence,
    name: _Name = None,
    out: Annotated[Path | None, typer.Option(help="Bundle of the worst to write.")] = None,
    purifications: _Purifications = 32,
    seed: _Seed = None,
) -> None:
    """Beat a claim: of each image the worst of both is kept, and judged afresh.

    The purifications that choose it are not those that it is judged by.
    """
    from scoreopt_defense.evaluation.bundle import Bundle, attacked_images
    from scoreopt_defense.evaluation.bundle import challenge as challenged
    from scoreopt_defense.evaluation.run.progress import counting

    read = Bundle.read(claim)
    _, model, images, batch = _loaded(defence, name, read.defence)
    others = attacked_images(theirs, read.images.shape)
    with counting(_JUDGED, 4 * len(others) * purifications) as told:  # both, twice
        found = challenged(read, model, images, others, purifications=purifications, batch=batch,
                           seed=seed, told=told)  # fmt: skip
    say(found)
    if out is not None:
        say(found.bundle.write(out))


def _loaded(path: Path, name: str | None, usual: str = "") -> tuple[str, Any, Any, int]:
    """A file's defence, by its name, the clean images, and how many at a time."""
    from scoreopt_defense._checks import check_choice
    from scoreopt_defense._memory import keep_freed_memory
    from scoreopt_defense.evaluation import config as configuration
    from scoreopt_defense.evaluation.run.progress import waiting

    keep_freed_memory()
    find_own_modules()
    read = configuration.load(path)
    known = list(read.defences)
    name = name or (usual if usual in known or len(known) > 1 else known[0])
    check_choice("defence", name, known)
    with waiting("Reading the images and networks"):
        return name, read.defence(name), read.source(), read.batch or 32
