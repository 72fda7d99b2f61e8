"""The commands of ``scoreopt``; each imports what it needs when it is called."""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from scoreopt_defense import _release, cli
from scoreopt_defense._files import replacing
from scoreopt_defense._optional import optional

optional("typer", extra="evaluate")
import typer  # noqa: E402

__all__ = ["app", "run"]

app = typer.Typer(
    name="scoreopt",
    help="Test-time purification as a defence, and its honest evaluation.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


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


def _find_own_modules() -> None:
    """Modules of this folder can be named, as in ``python:mine:defence``; for what runs a file."""
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)  # the last, so that no file there stands in for a library


def _version(wanted: bool) -> None:
    if wanted:
        cli.say(f"scoreopt {_release.described()}")
        raise typer.Exit


@app.callback()
def _every(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which it is.")
    ] = False,
) -> None:
    pass


@app.command()
def evaluate(
    config: Annotated[Path, typer.Argument(help="TOML file: defences, images, attacks.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the record.", show_default="runs/CONFIG")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would run, and for how long.")
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes.", show_default="one a core; 1 on an accelerator"),
    ] = None,
    cluster: Annotated[
        str | None, typer.Option(help="Address of a Dask scheduler, such as tcp://host:8786.")
    ] = None,
    retry_failed: Annotated[
        bool,
        typer.Option("--retry-failed", help="Do again what failed, and what began from it."),
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Until no other process writes the record.")
    ] = False,
) -> None:
    """Attack and judge what the record does not have yet.

    Stopped and started again, it goes on where it was; another attack, defence, image or trial in
    the file costs itself alone, and several files may share a record by --out.

    The exit status is 3 if units failed, whose figures are missing.
    """
    from scoreopt_defense._memory import keep_freed_memory
    from scoreopt_defense.evaluation import config as configuration
    from scoreopt_defense.evaluation.evaluate import evaluate_plan
    from scoreopt_defense.evaluation.record.store import RECORD
    from scoreopt_defense.evaluation.run.progress import progress
    from scoreopt_defense.evaluation.run.scheduler import Stopped
    from scoreopt_defense.evaluation.suite.controls import CHECKS
    from scoreopt_defense.evaluation.suite.summary import summaries

    keep_freed_memory()
    _find_own_modules()
    read = configuration.load(config)
    materials = read.materials()
    plan = read.plan(materials)
    if workers is None:
        workers = _cores() // read.threads or 1 if read.device == "cpu" else 1
    if dry_run:
        _foretell(plan, materials, workers)
        return
    folder = out or Path("runs") / config.stem
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / config.name) as part:  # for the report's --config
        part.write_bytes(config.read_bytes())
    try:
        result = evaluate_plan(
            plan, materials, out=folder, name=config.stem, workers=workers, cluster=cluster,
            retry_failed=retry_failed, wait=wait, progress=progress(),
        )  # fmt: skip
    except Stopped as stop:
        cli.say(f"scoreopt: {stop}", error=True)
        raise typer.Exit(130) from None
    with result.store:
        cli.say(f"{result}\n\nRobust accuracy in per cent with its 95 % interval, of {plan.count} "
                f"images. The record is {folder / RECORD}.")  # fmt: skip
        for summary in summaries(result).values():
            cli.say(f"\n{summary}")
        units = (failure.unit for failure in result.failures)
        if failed := sum(plan.tasks[u.attack][u.defence].suite != CHECKS for u in units):
            cli.say(f"\n{failed} units failed, and the figures are without them: mend the cause, "
                    "and call this again with --retry-failed.")  # fmt: skip
            raise typer.Exit(3)


def _cores() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _foretell(plan: Any, materials: Any, workers: int) -> None:
    from scoreopt_defense.evaluation.record.budgets import budgets
    from scoreopt_defense.evaluation.run.estimate import estimate
    from scoreopt_defense.evaluation.run.progress import duration

    allowed = {budget.attack: (budget.queries, budget.paper_queries) for budget in budgets(plan)}

    def queries(attack: str) -> list[str]:
        counts = allowed.get(attack, (None, None))
        return ["-" if count is None else f"{count:,}" for count in counts]

    cells = estimate(plan, materials)
    lines = [["defence", "attack", "units", "denoiser calls", "classifier calls",
              "queries an image", "in the paper", "time"]] + [
        [c.defence, c.attack, str(c.units), f"{c.denoiser_calls:,}", f"{c.classifier_calls:,}",
         *queries(c.attack), c.error or duration(c.seconds)]
        for c in cells
    ]  # fmt: skip
    _print_table(lines)
    total = sum(cell.seconds for cell in cells)
    cli.say(f"\n{plan.count} images, {plan.trials} trials, batches of {plan.batch}, seed "
            f"{plan.seed}. {'At most' if plan.suites else 'About'} {duration(total / workers)} "
            f"with {workers} worker(s).")  # fmt: skip
    if plan.suites:
        cli.say(f"Stages of {', '.join(plan.suites)} are counted as if no image left the queue: an "
                "upper bound.")  # fmt: skip


@contextmanager
def _record(run: Path) -> Iterator[Any]:
    """A record to read, which may hold anything: what that trips is said, and is no traceback."""
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


@app.command()
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
            cli.say(pages.write(page, out or compared))
            return
        made_from = None
        if config is not None:
            _find_own_modules()
            made_from = configuration.load(config)
        for name in list(store.views()) if all_ else [view]:
            page = pages.run_page(store, view=name, config=made_from, images=images, seed=seed)
            default = run / (f"report-{_as_file(name)}.html" if all_ and name else "report.html")
            cli.say(pages.write(page, default if all_ else out or default))


def _as_file(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)


@app.command()
def runs(
    record: Annotated[Path, typer.Argument(help="Folder of a record.")],
) -> None:
    """List what a record holds: runs, defences and attacks, with sizes."""
    from scoreopt_defense.evaluation.record.contents import contents

    with _record(record) as store:
        for lines in contents(store):
            _print_table(lines)
            cli.say("")


@app.command()
def forget(
    record: Annotated[Path, typer.Argument(help="Folder of a record.")],
    defence: Annotated[
        list[str] | None, typer.Option(help="By name, or the start of its fingerprint.")
    ] = None,
    attack: Annotated[list[str] | None, typer.Option(help="By name.")] = None,
    view: Annotated[list[str] | None, typer.Option(help="A run; its results stay.")] = None,
    failed: Annotated[bool, typer.Option("--failed", help="All that failed.")] = False,
) -> None:
    """Take results out of a record, with those that began from them; there is no way back."""
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
    cli.say(f"{gone} results are forgotten")


@app.command()
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
            cli.say(f"{path}: {write(result, path)} rows")
        if json:
            cli.say(f"{json}: {to_json(result, json)} cells")


@app.command()
def purify(
    source: Annotated[Path, typer.Argument(metavar="IN", help="An image, or a folder of them.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="A .png file, or a folder.")],
    denoiser: Annotated[
        str | None, typer.Option(help="Such as cifar10-tiny; see scoreopt models.")
    ] = None,
    purifier: Annotated[
        str,
        typer.Option(
            help="ScoreOpt, OneShot, DiffPure, GDMP, ADP, MENet, JPEG, BitDepth or "
            "python:MODULE:FUNCTION, which returns one."
        ),
    ] = "ScoreOpt",
    preset: Annotated[str | None, typer.Option(help="See scoreopt presets.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="As in steps=10.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise.")] = 0,
) -> None:
    """Purify image files; the results are PNG files."""
    from scoreopt_defense._memory import keep_freed_memory
    from scoreopt_defense.evaluation import named
    from scoreopt_defense.image_files import purify_files

    keep_freed_memory()
    _find_own_modules()
    made = named.purifier(purifier, denoiser, preset, dict(map(_setting, set_ or [])))
    if made is None:
        raise typer.BadParameter("'none' purifies nothing", param_hint="--purifier")
    for path in purify_files(made, source, target, seed=seed):
        cli.say(path)


def _setting(text: str) -> tuple[str, Any]:
    """``steps=10`` as a name and a number; what is no number or tuple is a name."""
    name, equals, value = text.partition("=")
    if not equals:
        raise typer.BadParameter(f"expected NAME=VALUE, got {text!r}", param_hint="--set")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


@app.command()
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
    _print_table(lines)


@app.command()
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
    _print_table(lines)


@app.command("convert-edm")
def convert_edm(
    snapshot: Annotated[str, typer.Argument(help="The .pkl file.")],
    output: Annotated[str, typer.Argument(help="The .safetensors file to write.")],
) -> None:
    """Turn an EDM snapshot (.pkl) into a safetensors file, without running it.

    pretrained.denoiser('edm:<file>') loads it.
    """
    cli.convert_edm(snapshot, output)


def _print_table(lines: list[list[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cli.say("  ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)).rstrip())
