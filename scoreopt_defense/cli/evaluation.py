"""The command that attacks defences and judges them, or says beforehand what that takes."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from scoreopt_defense._files import replacing
from scoreopt_defense.cli.output import print_table, say
from scoreopt_defense.cli.own_modules import find_own_modules

__all__ = ["evaluate"]

MINUTE = 60.0  # seconds that a dry run tries attacks for, at most
FIRST_LOOK = 15.0  # and a suite's run, before it begins
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
    from scoreopt_defense.evaluation.anytime import Goal, evaluate_until
    from scoreopt_defense.evaluation.evaluate import evaluate_plan, plan_before
    from scoreopt_defense.evaluation.record.store import RECORD
    from scoreopt_defense.evaluation.run.progress import duration, progress, waiting
    from scoreopt_defense.evaluation.run.scheduler import Stopped
    from scoreopt_defense.evaluation.suite.controls import CHECKS
    from scoreopt_defense.evaluation.suite.summary import summaries
    from scoreopt_defense.evaluation.suite.verdict import verdict

    keep_freed_memory()
    find_own_modules()
    read = configuration.load(config)
    goal = None if until is None and width is None else Goal(until, width)
    if goal and (read.images.n is None or read.images.order != "drawn"):
        raise ValueError('--until and --width want images in random order: say images.n, and no '
                         'order or "drawn"')  # fmt: skip
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
        _foretell(plan, materials, read, workers)
        return
    say(_described(plan, read), error=True)
    if plan.suites and not (folder / RECORD).exists():
        cells = _tried(plan, materials, FIRST_LOOK)
        say(_cost(plan, cells, workers), error=True)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / config.name) as part:  # for the report's --config
        part.write_bytes(config.read_bytes())
    options: dict[str, Any] = dict(
        out=folder, name=config.stem, keep=read.keep, workers=workers, cluster=cluster,
        retry_failed=retry_failed, wait=wait, progress=progress(),
    )  # fmt: skip
    reached: list[Any] = []
    try:
        if goal:
            result, reached = evaluate_until(plan, materials, goal, **options)
            plan = result.plan
        else:
            result = evaluate_plan(plan, materials, **options)
    except Stopped as stop:
        say(f"scoreopt: {stop}", error=True)
        raise typer.Exit(GO_ON if stop.by == signal.SIGTERM else 130) from None
    with result.store:
        say(f"{result}\n\nRobust accuracy in per cent with its 95 % interval. "
                f"{_described(plan, read)} The record is {folder / RECORD}.")  # fmt: skip
        for summary in summaries(result).values():
            say(f"\n{summary}")
        say("")
        for defence in plan.defences:
            say(verdict(result, defence))
        for one in reached:
            say(one)
        if reached and (saved := sum(one.seconds for one in reached)):
            images, time = reached[0].planned - plan.count, duration(saved / workers)
            say(f"{images} images, about {time}, were saved. The other intervals above do not know "
                "that the run could stop.")  # fmt: skip
        if page:
            _write_page(result.store, config.stem, read, folder)
        units = (failure.unit for failure in result.failures)
        if failed := sum(plan.tasks[u.attack][u.defence].suite != CHECKS for u in units):
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


def _foretell(plan: Any, materials: Any, read: Any, workers: int) -> None:
    """The dry run: each attack on an image, for a minute at most.

    Raises:
        typer.Exit: if an attack can't run.
    """
    from scoreopt_defense.evaluation.record.allowances import allowances
    from scoreopt_defense.evaluation.run.progress import duration

    allowed = {a.attack: a for a in allowances(plan)}
    cells = _tried(plan, materials, MINUTE)
    lines = [["defence", "attack", "units", "denoiser calls", "classifier calls",
              "queries an image", "in the paper", "threat model", "time"]]  # fmt: skip
    for c in cells:
        of = allowed.get(c.attack)
        counts = (of.queries, of.paper_queries) if of else (None, None)
        lines.append(
            [c.defence, c.attack, str(c.units), f"{c.denoiser_calls:,}", f"{c.classifier_calls:,}",
             *("-" if count is None else f"{count:,}" for count in counts),
             of.threat if of else "-",
             "FAILS" if c.error else "~ " * c.guessed + duration(c.seconds)]
        )  # fmt: skip
    print_table(lines)
    say(f"\n{_described(plan, read)}\n{plan.trials} trials, batches of {plan.batch}, seed "
        f"{plan.seed}. {_cost(plan, cells, workers)}")  # fmt: skip
    if guessed := sum(c.guessed for c in cells):
        say(f"~: the {guessed} that a minute did not reach, at the highest rate of the others.")
    if plan.suites:
        say(f"Stages of {', '.join(plan.suites)} are counted as if no image left the queue: an "
                "upper bound.")  # fmt: skip
    failed = [c for c in cells if c.error]
    for c in failed:
        say(f"scoreopt: {c.attack} cannot run on {c.defence}: {c.error}", error=True)
    if failed:
        raise typer.Exit(1)


def _tried(plan: Any, materials: Any, most: float) -> list[Any]:
    """Each cell on an image, which a terminal is told of."""
    from scoreopt_defense.evaluation.run.estimate import estimate
    from scoreopt_defense.evaluation.run.progress import waiting

    with waiting(f"Trying each attack on one image, at most {most:.0f} s") as told:
        return estimate(plan, materials, most=most, told=told)


def _described(plan: Any, read: Any) -> str:
    """The images, what each is attacked within, and what attacks compute in if it is not usual."""
    from scoreopt_defense.evaluation.judging.threat_model import level
    from scoreopt_defense.evaluation.plan.precision import in_words

    count, *shape = plan.images["shape"]
    images = f"{count} images of {read.images.source}, {' x '.join(map(str, shape))}"
    bounds: dict[tuple[str, float], dict[str, None]] = {}
    for name, of in plan.tasks.items():
        for task in of.values():
            if task.bound and task.kind != "probe":
                bounds.setdefault(task.bound, {})[task.suite or name] = None
    said = [f"{norm} {level(eps)} ({', '.join(names)})" for (norm, eps), names in bounds.items()]
    usual = [s for s in plan.suites if s not in read.suites or read.suites[s].eps is None]
    why = f"; eps of {', '.join(usual)} is the usual one of such images" if usual else ""
    bound = f"{images}; attacked within {'; '.join(said) or 'no bound'}{why}."
    return f"{bound} {in_words(plan)}".rstrip()


def _cost(plan: Any, cells: list[Any], workers: int) -> str:
    from scoreopt_defense.evaluation.run.progress import duration

    total = sum(cell.seconds for cell in cells)
    kind = "At most" if plan.suites else "About"
    untried = sum(cell.guessed for cell in cells)
    high = f", {untried} of {len(cells)} tasks untried and guessed high" if untried else ""
    return f"{kind} {duration(total / workers)} with {workers} worker(s){high}."
