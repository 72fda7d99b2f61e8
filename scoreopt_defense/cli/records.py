"""Commands that read the record of a run: a report of what was found, and its rows and figures.

A record may hold anything: what that trips is said in a line.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from scoreopt_defense.cli.output import say
from scoreopt_defense.cli.own_modules import find_own_modules

__all__ = ["export", "report"]


@contextmanager
def _record(run: Path) -> Iterator[Any]:
    """A record to read; a damaged one is an error that names it, and no traceback."""
    from scoreopt_defense.evaluation.store import Store, StoreError

    with Store(run) as store:
        try:
            yield store
        except (OSError, ValueError, TypeError, ImportError, RuntimeError):  # said as they are
            raise
        except Exception as error:
            raise StoreError(
                f"{run}: its record holds what this version cannot read, or is damaged "
                f"({type(error).__name__}: {error})"
            ) from error


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a record.")],
    other: Annotated[
        Path | None, typer.Argument(metavar="RUN_B", help="Another, to compare it with.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="File to write.", show_default="RUN/report.html")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="TOML file of the run, such as RUN/config.toml, to purify what is shown: runs the "
            "functions that it names. Shipped networks need none, and without it nothing is run.",
        ),
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="How many to show, at most.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Of their draw and purification.")] = 0,
) -> None:
    """Write one HTML page of a run, or of the differences between two; it needs no network."""
    from scoreopt_defense.evaluation import config as configuration
    from scoreopt_defense.evaluation import report as pages

    with _record(run) as store:
        if other is not None:
            with _record(other) as second:
                page = pages.comparison_page(store, second)
            default = run / f"compared-with-{other.resolve().name}.html"
        else:
            made_from = None
            if config is not None:
                find_own_modules()
                made_from = configuration.load(config)
            page = pages.run_page(store, config=made_from, images=images, seed=seed)
            default = run / "report.html"
        say(pages.write(page, out or default))


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a record.")],
    csv: Annotated[Path | None, typer.Option(help="File to write.")] = None,
    parquet: Annotated[Path | None, typer.Option(help="File to write.")] = None,
    json: Annotated[Path | None, typer.Option(help="File to write: the figures alone.")] = None,
) -> None:
    """Write a line an image, trial and attack, or the run's figures, for other programs."""
    from scoreopt_defense.evaluation.export import to_csv, to_json, to_parquet
    from scoreopt_defense.evaluation.results import Result

    wanted = [(write, path) for write, path in ((to_csv, csv), (to_parquet, parquet)) if path]
    if not (wanted or json):
        raise typer.BadParameter("say --csv FILE, --parquet FILE or --json FILE")
    with _record(run) as store:
        for write, path in wanted:
            say(f"{path}: {write(store, path)} rows")
        if json:
            say(f"{json}: {to_json(Result(store), json)} cells")
