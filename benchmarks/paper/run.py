"""The paper's tables and figures by the evaluation's runner, at the paper's scale or a CPU's.

    python -m benchmarks.paper.run table01 --scale cpu path/to/cifar10/test/images
    python -m benchmarks.paper.run table01 --scale cpu path/to/images --dry-run
    python -m benchmarks.paper.run table01 --scale cpu --draw    # from the result file alone

``paper/<table>.toml`` has the table's rows with the paper's figures, and which defence and attack
gives ours. A cell is one defence under one attack; all are of one record, ``runs/paper``, so that
tables share what they share, and what was stopped goes on. Figures are written to
``results/paper_<table>_<scale>.json``, the drawing beside it. What was exported of records that are
elsewhere is kept, so that a table can be made in parts: ``--row`` names some, ``--missing`` is what
no table's file has yet. At a CPU's scale attacks compute in bfloat16; a CPU without instructions
for it takes ten times as long for it as for float32: say ``--float32`` there.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common import precision
from benchmarks.common.results_file import write
from benchmarks.paper import drawing as paper_drawing
from benchmarks.paper import timing as paper_timing
from benchmarks.paper.cells import SCALES, TABLES, Cell, cells, specification
from scoreopt_defense import pretrained
from scoreopt_defense._memory import keep_freed_memory
from scoreopt_defense.evaluation.evaluate import evaluate_plan
from scoreopt_defense.evaluation.record.export import right_counts
from scoreopt_defense.evaluation.record.results import Result
from scoreopt_defense.evaluation.record.store import RECORD, Store
from scoreopt_defense.evaluation.run.estimate import estimate
from scoreopt_defense.evaluation.run.progress import duration, progress
from scoreopt_defense.evaluation.run.scheduler import Stopped


def run(table: str, args: argparse.Namespace) -> None:
    """Carry out what is not recorded yet, or say what it will take."""
    seconds = 0.0
    there = _exported(args.scale)[0] if args.missing else {}
    every = cells(table, args.scale, **_chosen(args))
    missing = [c for c in every if not _judged_so(c, there.get(c.key))]
    for cell in {c.run: c for c in missing}.values():
        given = {n: getattr(args, n) for n in ("device", "batch") if getattr(args, n) is not None}
        if args.steps is not None:
            cut = {name: {**attack, "steps": args.steps} for name, attack in cell.attacks.items()}
            cell = replace(cell, attacks=cut)
        config = cell.config(args.source).model_copy(update=given)
        materials = config.materials()
        plan = config.plan(materials)
        if args.dry_run:
            foretold = estimate(plan, materials)
            seconds += sum(e.seconds for e in foretold)
            said = next((e.error for e in foretold if e.error), None)
            print(f"{cell.run}: {said or duration(sum(e.seconds for e in foretold))}", flush=True)
            continue
        print(cell.run, flush=True)
        done = evaluate_plan(
            plan, materials, out=args.runs, name=_view(args.scale, cell), workers=args.workers,
            wait=True, progress=progress(),
        )  # fmt: skip
        with done.store:
            print(done, flush=True)
        del config, materials, plan, done  # the next cell's networks are others
    if args.dry_run:
        print(f"{table}: about {duration(seconds)} of one worker, what is recorded included")


def _view(scale: str, cell: Cell) -> str:
    """What a cell's run is called in the record."""
    return f"{scale}: {cell.run}"


def export(table: str, args: argparse.Namespace) -> Path:
    """Write what is recorded of a table's cells.

    Raises:
        SystemExit: if that is nothing: a file of it would say that the table was run.
    """
    exported, known = _exported(args.scale)
    record = Store(args.runs) if (args.runs / RECORD).exists() else Store()
    views = record.views()
    plan: dict[str, dict[str, Any]] = {part: {} for part in known}
    found = []
    for cell in cells(table, args.scale, **_settings(args)):
        part = "defences" if _ships(cell) else "others"
        figures = exported.get(cell.key)
        if (view := _view(args.scale, cell)) in views:
            result = Result(record, record.plan(view))
            complete = result.tried(cell.defence, cell.attack) == cell.images * cell.trials
            if complete and _judged_so(cell, ours := _figures(cell, result)):
                figures, about = ours, result.plan.summary()
                known[part] |= about["defences"]
                known["attacks"] |= about["attacks"]
        if not _judged_so(cell, figures):
            continue
        found.append(figures)
        plan[part][cell.defence] = known[part][cell.defence]
        plan["attacks"][cell.attack] = dict(known["attacks"][cell.attack])
        plan["attacks"][cell.attack].pop("autocast", None)  # each cell has its own precision
    record.close()
    if not found:
        raise SystemExit(f"nothing of {table} is recorded in {args.runs}")
    return write(
        f"paper_{table}_{args.scale}", table=table, scale=args.scale, plan=plan,
        cells=found,
    )  # fmt: skip


def _exported(scale: str) -> tuple[dict[tuple[str, str], dict[str, Any]], dict[str, Any]]:
    """The cells that any table exported before, each by its key, and their plans."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    plan: dict[str, Any] = {"defences": {}, "others": {}, "attacks": {}}
    for table in TABLES:
        written = paper_drawing.measured(table, scale)
        found |= paper_drawing.keyed(written)
        for part, described in written.get("plan", {}).items():
            plan[part] |= described
    return found, plan


def _judged_so(cell: Cell, figures: dict[str, Any] | None) -> bool:
    """Whether there are figures, judged as they would be now."""
    return figures is not None and figures["criterion"] == dict(cell.judging)


def _ships(cell: Cell) -> bool:
    """Whether a defence is of networks that ship with the package alone."""
    parts = ("classifier", "denoiser") if "purifier" in cell.section else ("classifier",)
    return all(cell.section.get(part) in pretrained.names(part) for part in parts)


def _figures(cell: Cell, result: Result) -> dict[str, Any]:
    """Of one cell; ``right`` is each image's count of right judgements, of ``of``."""
    of = result.cell(cell.defence, cell.attack)
    return {
        "run": cell.run, "defence": cell.defence, "attack": cell.attack,
        "images": cell.images, "trials": cell.trials, "criterion": _criterion(result.plan.judging),
        "precision": result.plan.attacks[cell.attack].get("autocast") or "float32",
        "machine": result.view.machine if result.view else None,
        "accuracy": None if of.robust is None else of.robust.as_dict(),
        "of the last image": None if of.accuracy is None else of.accuracy.as_dict(),
        "majority": None if of.majority is None else of.majority.as_dict(),
        "deviation": None if of.deviation is None else round(of.deviation, 4),
        "failed": of.failed, "denoiser calls": of.denoiser_calls,
        "classifier calls": of.classifier_calls, "seconds": round(of.seconds, 1),
        **right_counts(result, cell.defence, cell.attack),
    }  # fmt: skip


def _criterion(judging: Mapping[str, Any]) -> dict[str, Any]:
    """A plan's, as a cell names it: the last image's judgement is not named."""
    named = dict(judging["criterion"])
    criterion = named.pop("name")
    of_steps = {} if criterion == "final" else {"criterion": criterion, **named}
    return {"purifications": judging["purifications"], **of_steps}


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    names = ("classifier", "denoiser", "cifar10_c", "float32", "random_weights")
    return {n: getattr(args, n) for n in names}


def _chosen(args: argparse.Namespace) -> dict[str, Any]:
    return _settings(args) | {"images": args.images, "named": args.row}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("source", nargs="?", help="test images; without them, --draw alone")
    parser.add_argument("--scale", choices=SCALES, default="cpu")
    parser.add_argument("--classifier", help="in place of the scale's own")
    parser.add_argument("--denoiser", help="likewise")
    parser.add_argument(
        "--random-weights", action="store_true",
        help="of the ImageNet networks: what a run takes; nothing is exported",
    )  # fmt: skip
    parser.add_argument("--device", help="in place of the scale's own")
    parser.add_argument("--batch", type=int, help="images a unit, likewise")
    parser.add_argument("--cifar10-c", help="folder of its arrays, for Table 5")
    precision.add_argument(parser)
    parser.add_argument("--row", action="append", help="run this one alone; may be repeated")
    parser.add_argument("--missing", action="store_true", help="run what its file has not yet")
    parser.add_argument("--images", type=int, help="fewer, to try it; nothing is exported")
    parser.add_argument("--steps", type=int, help="of attacks, likewise")
    parser.add_argument("--dry-run", action="store_true", help="say what would run, how long")
    parser.add_argument("--draw", action="store_true", help="from the result file alone")
    parser.add_argument("--export", action="store_true", help="what is recorded, and draw it")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs/paper"))
    args = parser.parse_args(arguments)
    keep_freed_memory()
    timed = specification(args.table).get("kind") == "timing"
    if args.source is None and not (args.draw or args.export or timed):
        parser.error("name the images, or say --draw or --export")
    tried = args.dry_run or args.random_weights
    tried = tried or args.images is not None or args.steps is not None
    if timed and not (args.draw or tried):
        paper_timing.run(args.table, args.scale, specification(args.table), SCALES[args.scale])
    elif not (args.draw or timed):
        if not args.export:
            try:
                run(args.table, args)
            except Stopped as stop:
                raise SystemExit(f"{stop}") from None
        if not tried:
            export(args.table, args)
    if not tried:
        paper_drawing.draw(args.table, args.scale)


if __name__ == "__main__":
    main()
