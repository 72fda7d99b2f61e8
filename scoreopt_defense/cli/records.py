"""Commands that read the record of a run: a report of what was found, and its rows and figures.

A record may hold anything: what that trips is said in a line.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from scoreopt_defense.cli.output import print_table, say
from scoreopt_defense.cli.own_modules import find_own_modules

__all__ = ["as_file", "export", "forget", "report", "runs"]


@contextmanager
def _record(run: Path) -> Iterator[Any]:
    """A record to read; a damaged one is an error that names it, and no traceback."""
    from scoreopt_defense.evaluation.record.store import Store, StoreError

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
    view: Annotated[
        str | None,
        typer.Option(
            help="Which run of the record: see scoreopt runs.", show_default="the last one"
        ),
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="A page for each run of the record.")] = False,
    config: Annotated[
        Path | None,
        typer.Option(
            help="TOML file of the run, such as RUN/demo.toml, to purify what is shown: runs the "
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
            compared = run / f"compared-with-{other.resolve().name}.html"
            say(pages.write(page, out or compared))
            return
        made_from = None
        if config is not None:
            find_own_modules()
            made_from = configuration.load(config)
        for name in list(store.views()) if all_ else [view]:
            page = pages.run_page(store, view=name, config=made_from, images=images, seed=seed)
            default = run / (f"report-{as_file(name)}.html" if all_ and name else "report.html")
            say(pages.write(page, default if all_ else out or default))


def as_file(name: str) -> str:
    """A name as one of a file."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)


def runs(
    record: Annotated[Path, typer.Argument(help="Folder of a record.")],
) -> None:
    """List what a record holds: runs, defences and attacks, with sizes."""
    from scoreopt_defense.evaluation.record.contents import contents

    with _record(record) as store:
        for lines in contents(store):
            print_table(lines)
            say("")


def forget(
    record: Annotated[Path, typer.Argument(help="Folder of a record.")],
    defence: Annotated[
        list[str] | None, typer.Option(help="By name, or the start of its fingerprint.")
    ] = None,
    attack: Annotated[list[str] | None, typer.Option(help="By name.")] = None,
    view: Annotated[list[str] | None, typer.Option(help="A run; its results stay.")] = None,
    failed: Annotated[bool, typer.Option("--failed", help="All that failed.")] = False,
) -> None:
    """Take results out of a record, with those that began from them; there is no way back.

    Those that all of --defence, --attack and --failed mean.
    """
    from scoreopt_defense.evaluation.record.contents import take_out
    from scoreopt_defense.evaluation.record.store import Store

    if not (defence or attack or view or failed):
        raise typer.BadParameter("say --defence NAME, --attack NAME, --view NAME or --failed")
    with _record(record):
        pass  # one that is there
    with Store(record, writing=True) as store:
        gone = take_out(
            store, defences=defence or (), attacks=attack or (), views=view or (), failed=failed
        )
    say(f"{gone} results are forgotten")


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a record.")],
    csv: Annotated[Path | None, typer.Option(help="File to write.")] = None,
    parquet: Annotated[Path | None, typer.Option(help="File to write.")] = None,
    json: Annotated[Path | None, typer.Option(help="File to write: the figures alone.")] = None,
    view: Annotated[
        str | None, typer.Option(help="Which run of the record.", show_default="the last one")
    ] = None,
) -> None:
    """Write a line an image, trial and attack, or the run's figures, for other programs."""
    from scoreopt_defense.evaluation.record.export import to_csv, to_json, to_parquet
    from scoreopt_defense.evaluation.record.results import Result

    wanted = [(write, path) for write, path in ((to_csv, csv), (to_parquet, parquet)) if path]
    if not (wanted or json):
        raise typer.BadParameter("say --csv FILE, --parquet FILE or --json FILE")
    with _record(run) as store:
        result = Result(store, store.plan(view))
        for write, path in wanted:
            say(f"{path}: {write(result, path)} rows")
        if json:
            say(f"{json}: {to_json(result, json)} cells")
