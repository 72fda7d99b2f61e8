"""The command that attacks defences and judges them, or says beforehand what that takes."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from scoreopt_defense._files import replacing
from scoreopt_defense.cli.foretelling import cost, described, foretell, tried
from scoreopt_defense.cli.output import say
from scoreopt_defense.cli.own_modules import find_own_modules

__all__ = ["evaluate"]

FIRST_LOOK = 15.0  # seconds that a suite's run tries its attacks for, at most, before it begins
GO_ON = 75  # sysexits.h: a failure that a later try need not meet


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
        typer.Option(min=1, help="Processes.", show_default="one a core; on cuda one a GPU"),
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
    page: Annotated[bool, typer.Option(help="Write a page of it in the end.")] = True,
    until: Annotated[
        str | None,
        typer.Option(help="Stop when it is known, as 'robust < 30%': docs/how-to/until.md."),
    ] = None,
    width: Annotated[
        float | None, typer.Option(help="Stop when the interval is no wider, in points.")
    ] = None,
) -> None:
    """Attack and judge what the record does not have yet.

    Stopped and started again, it goes on where it was; another attack, defence, image or trial in
    the file costs itself alone, and several files may share a record by --out.

    The exit status is 3 if units failed, whose figures are missing; 75 after SIGTERM: the same call
    goes on.
    """
    from scoreopt_defense._memory import keep_freed_memory
    from scoreopt_defense.evaluation import config as configuration
    from scoreopt_defense.evaluation.evaluate import plan_before
    from scoreopt_defense.evaluation.record.store import RECORD
    from scoreopt_defense.evaluation.run.progress import progress, waiting

    keep_freed_memory()
    find_own_modules()
    read = configuration.load(config)
    goal = _goal(until, width, read)
    folder = out or Path("runs") / config.stem
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out must be a folder, and {folder} is a file")
    with waiting("Reading the images and networks") as told:
        before = partial(plan_before, folder, config.stem)
        materials = read.materials(before)
        told("Asking each defence")
        batch, threads, workers = _sizes(read, materials, workers, cluster, before)
        plan = read.plan(materials, batch=batch, threads=threads)
    if dry_run:
        foretell(plan, materials, read, workers)
        return
    say(described(plan, read), error=True)
    if plan.suites and not (folder / RECORD).exists():
        say(cost(plan, tried(plan, materials, FIRST_LOOK), workers), error=True)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / config.name) as part:  # for the report's --config
        part.write_bytes(config.read_bytes())
    result, reached = _carried_out(
        plan, materials, goal, out=folder, name=config.stem, keep=read.keep, workers=workers,
        cluster=cluster, retry_failed=retry_failed, wait=wait, progress=progress(),
    )  # fmt: skip
    with result.store:
        _say_figures(result, read, folder / RECORD)
        _say_reached(result, reached, workers)
        if page:
            _write_page(result.store, config.stem, read, folder)
        _fail_of_units(result)


def _goal(until: str | None, width: float | None, read: Any) -> Any:
    """What a run stops at, if it is told to.

    Raises:
        ValueError: if it is no such goal, or the images are in an order that it cannot go by.
    """
    from scoreopt_defense.evaluation.anytime import Goal

    if until is None and width is None:
        return None
    goal = Goal(until, width)
    if read.images.n is None or read.images.order != "drawn":
        raise ValueError('--until and --width want images in random order: say images.n, and no '
                         'order or "drawn"')  # fmt: skip
    return goal


def _carried_out(plan: Any, materials: Any, goal: Any, **options: Any) -> tuple[Any, list[Any]]:
    """The run's result, and of a goal what it reached of each defence.

    Raises:
        typer.Exit: if it is stopped.
    """
    from scoreopt_defense.evaluation.anytime import evaluate_until
    from scoreopt_defense.evaluation.evaluate import evaluate_plan
    from scoreopt_defense.evaluation.run.scheduler import Stopped

    try:
        if goal:
            return evaluate_until(plan, materials, goal, **options)
        return evaluate_plan(plan, materials, **options), []
    except Stopped as stop:
        say(f"scoreopt: {stop}", error=True)
        raise typer.Exit(GO_ON if stop.by == signal.SIGTERM else 130) from None


def _say_figures(result: Any, read: Any, record: Path) -> None:
    """The table, a paragraph a suite and defence, and a sentence a defence."""
    from scoreopt_defense.evaluation.suite.summary import summaries
    from scoreopt_defense.evaluation.suite.verdict import verdict

    say(f"{result}\n\nRobust accuracy in per cent with its 95 % interval. "
        f"{described(result.plan, read)} The record is {record}.")  # fmt: skip
    for summary in summaries(result).values():
        say(f"\n{summary}")
    say("")
    for defence in result.plan.defences:
        say(verdict(result, defence))


def _say_reached(result: Any, reached: list[Any], workers: int) -> None:
    """Of each defence where it stopped, and what that saved."""
    from scoreopt_defense.evaluation.run.progress import duration

    for one in reached:
        say(one)
    if saved := sum(one.seconds for one in reached):
        images, time = reached[0].planned - result.plan.count, duration(saved / workers)
        say(f"{images} images, about {time}, were saved. The other intervals above do not know "
            "that the run could stop.")  # fmt: skip


def _fail_of_units(result: Any) -> None:
    """Say how many units failed; a check's own say that themselves.

    Raises:
        typer.Exit: if any did.
    """
    from scoreopt_defense.evaluation.suite.controls import CHECKS

    tasks, units = result.plan.tasks, (failure.unit for failure in result.failures)
    if failed := sum(tasks[u.attack][u.defence].suite != CHECKS for u in units):
        say(f"\n{failed} units failed, and the figures are without them: mend the cause, "
            "and call this again with --retry-failed.")  # fmt: skip
        raise typer.Exit(3)


def _sizes(
    read: Any, materials: Any, workers: int | None, cluster: str | None, before: Any
) -> tuple[int, int, int]:
    """Images a unit, threads, workers: what is given, else what the record has, else what fits."""
    import torch

    from scoreopt_defense.evaluation.run.fitting import fitting

    batch, threads = read.batch, read.threads
    auto = batch is None or threads is None
    if auto and cluster:
        raise ValueError(
            'batch and threads "auto" go by this machine\'s memory: with --cluster give numbers'
        )
    if auto and (began := before()):
        batch, threads = batch or began.batch, threads or began.threads
    if workers is None and read.device != "cpu":
        workers = _accelerators(read.device)
    found = fitting(
        materials, device=torch.device(read.device), cores=_cores(), batch=batch, threads=threads,
        workers=workers,
    )  # fmt: skip
    if auto:
        say("Units of {} images, {} thread(s) in each of {} worker(s).".format(*found), error=True)
    return found


def _write_page(store: Any, name: str, read: Any, folder: Path) -> None:
    """What is wrong with the page is nothing of the run's."""
    from scoreopt_defense.evaluation import report

    try:
        made = report.write(report.run_page(store, view=name, config=read), folder / "report.html")
        say(f"Page: {made}")
    except (ImportError, OSError, ValueError, RuntimeError) as error:
        say(f"There is no page: {error}")


def _cores() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _accelerators(device: str) -> int:
    """As many as there are, where the device names none of them."""
    import torch

    return max(1, torch.cuda.device_count()) if device == "cuda" else 1
