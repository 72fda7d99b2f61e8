"""The command that attacks defences and judges them, or says beforehand what that takes."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Annotated, Any

import typer

from scoreopt_defense._files import replacing
from scoreopt_defense.cli.output import print_table, say
from scoreopt_defense.cli.own_modules import find_own_modules

__all__ = ["evaluate"]

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
) -> None:
    """Attack and judge what the record does not have yet.

    Stopped and started again, it goes on where it was; another attack, defence, image or trial in
    the file costs itself alone, and several files may share a record by --out.

    The exit status is 3 if units failed, whose figures are missing; 75 after SIGTERM: the same call
    goes on.
    """
    from scoreopt_defense._memory import keep_freed_memory
    from scoreopt_defense.evaluation import config as configuration
    from scoreopt_defense.evaluation.evaluate import evaluate_plan
    from scoreopt_defense.evaluation.record.store import RECORD
    from scoreopt_defense.evaluation.run.progress import progress
    from scoreopt_defense.evaluation.run.scheduler import Stopped
    from scoreopt_defense.evaluation.suite.controls import CHECKS
    from scoreopt_defense.evaluation.suite.summary import summaries
    from scoreopt_defense.evaluation.suite.verdict import verdict

    keep_freed_memory()
    find_own_modules()
    read = configuration.load(config)
    materials = read.materials()
    plan = read.plan(materials)
    if workers is None:
        workers = (
            _cores() // read.threads or 1 if read.device == "cpu" else _accelerators(read.device)
        )
    if dry_run:
        _foretell(plan, materials, workers)
        return
    folder = out or Path("runs") / config.stem
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out must be a folder, and {folder} is a file")
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / config.name) as part:  # for the report's --config
        part.write_bytes(config.read_bytes())
    try:
        result = evaluate_plan(
            plan, materials, out=folder, name=config.stem, keep=read.keep, workers=workers,
            cluster=cluster, retry_failed=retry_failed, wait=wait, progress=progress(),
        )  # fmt: skip
    except Stopped as stop:
        say(f"scoreopt: {stop}", error=True)
        raise typer.Exit(GO_ON if stop.by == signal.SIGTERM else 130) from None
    with result.store:
        say(f"{result}\n\nRobust accuracy in per cent with its 95 % interval, of {plan.count} "
                f"images. The record is {folder / RECORD}.")  # fmt: skip
        for summary in summaries(result).values():
            say(f"\n{summary}")
        say("")
        for defence in plan.defences:
            say(verdict(result, defence))
        if page:
            _write_page(result.store, config.stem, read, folder)
        units = (failure.unit for failure in result.failures)
        if failed := sum(plan.tasks[u.attack][u.defence].suite != CHECKS for u in units):
            say(f"\n{failed} units failed, and the figures are without them: mend the cause, "
                    "and call this again with --retry-failed.")  # fmt: skip
            raise typer.Exit(3)


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


def _foretell(plan: Any, materials: Any, workers: int) -> None:
    from scoreopt_defense.evaluation.record.allowances import allowances
    from scoreopt_defense.evaluation.run.estimate import estimate
    from scoreopt_defense.evaluation.run.progress import duration

    allowed = {budget.attack: (budget.queries, budget.paper_queries) for budget in allowances(plan)}

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
    print_table(lines)
    total = sum(cell.seconds for cell in cells)
    say(f"\n{plan.count} images, {plan.trials} trials, batches of {plan.batch}, seed "
            f"{plan.seed}. {'At most' if plan.suites else 'About'} {duration(total / workers)} "
            f"with {workers} worker(s).")  # fmt: skip
    if plan.suites:
        say(f"Stages of {', '.join(plan.suites)} are counted as if no image left the queue: an "
                "upper bound.")  # fmt: skip
