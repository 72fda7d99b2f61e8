"""The paper's tables and figures by the evaluation's runner, at the paper's scale or a CPU's.

    python benchmarks/paper_tables.py table01 --scale cpu path/to/cifar10/test/images
    python benchmarks/paper_tables.py table01 --scale cpu path/to/images --dry-run
    python benchmarks/paper_tables.py table01 --scale cpu --draw    # from the result file alone

``paper/<table>.toml`` has the table's rows with the paper's figures, and which defence and attack
gives ours. A cell is a run of one defence under one attack, ``runs/paper/<scale>/<cell>``: tables
that share a cell share its run. Stopped and started again, it goes on. Figures are written to
``results/paper_<table>_<scale>.json``, the drawing beside it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import paper_drawing
import paper_timing
from paper_cells import SCALES, TABLES, Cell, cells, specification
from results_file import RESULTS, write

from scoreopt_defense import data, pretrained
from scoreopt_defense.evaluation.estimate import estimate
from scoreopt_defense.evaluation.evaluate import evaluate_plan
from scoreopt_defense.evaluation.progress import duration, progress
from scoreopt_defense.evaluation.results import Result, difference
from scoreopt_defense.evaluation.runner import Stopped
from scoreopt_defense.evaluation.statistics import Difference
from scoreopt_defense.evaluation.store import Store


def run(table: str, args: argparse.Namespace) -> None:
    """Carry out what is not recorded yet, or say what it will take."""
    seconds = 0.0
    for cell in {c.run: c for c in cells(table, args.scale, **_chosen(args))}.values():
        config = cell.config(args.source)
        materials = config.materials()
        plan = config.plan(materials)
        if args.dry_run:
            foretold = estimate(plan, materials)
            seconds += sum(e.seconds for e in foretold)
            said = next((e.error for e in foretold if e.error), None)
            print(f"{cell.run}: {said or duration(sum(e.seconds for e in foretold))}", flush=True)
            continue
        folder = args.runs / args.scale / cell.run
        with _alone(folder):
            print(cell.run, flush=True)
            done = evaluate_plan(
                plan, materials, out=folder, workers=args.workers, progress=progress()
            )
            with done.store:
                print(done, flush=True)
    if args.dry_run:
        print(f"{table}: about {duration(seconds)} of one worker, what is recorded included")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Tables that share a cell wait for each other."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def export(table: str, args: argparse.Namespace) -> Path:
    """Write what is recorded of a table's cells, and the adaptive benchmark's figures beside."""
    described: dict[str, Any] = {"defences": {}, "others": {}, "attacks": {}}
    found, worst = [], {}
    for cell in cells(table, args.scale, **_chosen(args)):
        folder = args.runs / args.scale / cell.run
        if not (folder / "run.sqlite").exists():
            continue
        with Store(folder) as store:
            result = Result(store)
            if len(result.rows(cell.defence, cell.attack)) < cell.images * cell.trials:
                continue  # of a run that was stopped
            found.append(_figures(cell, result))
            described["defences" if _ships(cell) else "others"] |= result.plan.defences
            described["attacks"] |= {cell.attack: result.plan.attacks[cell.attack]}
            if cell.worst:
                beside = _worst(cell, result, args)
                worst |= {cell.worst + "|" + cell.attack: beside} if beside else {}
    return write(
        f"paper_{table}_{args.scale}", table=table, scale=args.scale, plan=described, cells=found,
        worst=worst,
    )  # fmt: skip


def _ships(cell: Cell) -> bool:
    """Whether a defence is of networks that ship with the package alone."""
    parts = ("classifier", "denoiser") if "purifier" in cell.section else ("classifier",)
    return all(cell.section.get(part) in pretrained.names(part) for part in parts)


def _figures(cell: Cell, result: Result) -> dict[str, Any]:
    """Of one cell; ``right`` is each image's count of right judgements, of ``of``."""
    of = result.cell(cell.defence, cell.attack)
    any_step = of.unbroken is not None
    times = cell.trials * (1 if any_step else cell.judging["purifications"])
    shares = result.shares(cell.defence, cell.attack)
    return {
        "run": cell.run, "defence": cell.defence, "attack": cell.attack,
        "images": cell.images, "trials": cell.trials, "criterion": dict(cell.judging),
        "accuracy": None if of.robust is None else of.robust.as_dict(),
        "of the last image": None if of.accuracy is None else of.accuracy.as_dict(),
        "majority": None if of.majority is None else of.majority.as_dict(),
        "deviation": None if of.deviation is None else round(of.deviation, 4),
        "failed": of.failed, "denoiser calls": of.denoiser_calls,
        "classifier calls": of.classifier_calls, "seconds": round(of.seconds, 1),
        "of": times, "right": " ".join(str(round(times * shares[i])) for i in sorted(shares)),
    }  # fmt: skip


def _worst(cell: Cell, result: Result, args: argparse.Namespace) -> dict[str, Any] | None:
    """The adaptive benchmark's figure of the same defence, and ours less it.

    Over the same images where its record is at hand; else of means over those that each had.
    """
    row, _, norm = str(cell.worst).rpartition("_")
    file = RESULTS / f"adaptive_{cell.worst}.json"
    if not file.exists():
        return None
    suite = json.loads(file.read_text())["suites"]["adaptive"][row]
    about = {"accuracy": suite["accuracy"], "checks": suite["checks"]}
    folder = args.adaptive / f"{row}-{norm}"
    if args.source and (folder / "run.sqlite").exists():
        with Store(folder) as store:
            found = Result(store)
            shares = _on(found, row, args.source, cell.images)
            times = found.plan.trials * found.plan.judging["purifications"]
        ours = result.shares(cell.defence, cell.attack)
        if len(shares) == len(ours):
            about["of"] = times
            about["right"] = " ".join(str(round(times * shares[i])) for i in sorted(shares))
            about["difference"] = _rounded(difference(ours, shares))
    return about


def _on(found: Result, row: str, source: str, images: int) -> dict[int, float]:
    """The worst case of the images that are a run's of so many, by their places there."""
    shares = found.shares(row, "adaptive")
    theirs = data.load(source, n=found.plan.count).x
    places = {image.numpy().tobytes(): i for i, image in enumerate(theirs)}
    ours = (places.get(image.numpy().tobytes()) for image in data.load(source, n=images).x)
    return {i: shares[place] for i, place in enumerate(ours) if place in shares}


def _rounded(found: Difference) -> dict[str, float]:
    return {name: round(value, 4) for name, value in asdict(found).items()}


def _chosen(args: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(args, name) for name in ("classifier", "denoiser", "cifar10_c", "images")}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("source", nargs="?", help="test images; without them, --draw alone")
    parser.add_argument("--scale", choices=SCALES, default="cpu")
    parser.add_argument("--classifier", help="in place of the scale's own")
    parser.add_argument("--denoiser", help="likewise")
    parser.add_argument("--cifar10-c", help="folder of its arrays, for Table 5")
    parser.add_argument("--images", type=int, help="fewer, to try it; nothing is exported")
    parser.add_argument("--dry-run", action="store_true", help="say what would run, how long")
    parser.add_argument("--draw", action="store_true", help="from the result file alone")
    parser.add_argument("--export", action="store_true", help="what is recorded, and draw it")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs/paper"))
    parser.add_argument("--adaptive", type=Path, default=Path("runs/adaptive"))
    args = parser.parse_args(arguments)
    timed = specification(args.table).get("kind") == "timing"
    if args.source is None and not (args.draw or args.export or timed):
        parser.error("name the images, or say --draw or --export")
    tried = args.dry_run or args.images is not None
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
