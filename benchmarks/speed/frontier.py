"""Accuracy against time: which purifiers no other beats in both, on images kept out of training.

    python -m benchmarks.speed.frontier measure path/to/cifar10/training/images
    python -m benchmarks.speed.frontier time path/to/cifar10/training/images
    python -m benchmarks.speed.frontier draw
    python -m benchmarks.speed.frontier stop path/to/cifar10/training/images

Each point of the grid is a defence of one run, on training images kept out of training: its clean
accuracy, and the lowest of each image under transfer PGD, PGD+EOT on the surrogate, and PGD+EOT on
the smoothed gradient. That is a small budget, the same for all, to choose settings by; it is no
robustness figure: ``adaptive/run.py`` has those. Times are of one thread, the points in turn, on
the first of these images as they are: one that stops early takes longer if it was attacked.

``stop`` compares ScoreOpt-N at each tolerance with itself without one, on the same images.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import precision, results_file
from benchmarks.common.held_out import add_arguments, held_out
from benchmarks.common.results_file import earlier, weights, write
from benchmarks.common.timing import in_turn, median
from benchmarks.models.tune_presets import Point, one_shot, product, scoreopt
from scoreopt_defense import DefendedModel, Purifier, pretrained, purifiers
from scoreopt_defense.attacks import attack
from scoreopt_defense.evaluation import Judging, Result, evaluate
from scoreopt_defense.evaluation.run.progress import progress
from scoreopt_defense.presets import preset

NAME = "cifar10-tiny"
#: Tolerances of ``stop``, by steps of ScoreOpt-N.
TOLS = {5: (0.0, 0.02, 0.05, 0.1, 0.2, 0.4)}


def without_jacobian(points: list[Point]) -> list[Point]:
    return [(name, {**settings, "jacobian": False}) for name, settings in points]


def stopping(points: list[Point], tols: list[float]) -> list[Point]:
    pairs = itertools.product(points, tols)
    return [(name, {**settings, "tol": tol}) for (name, settings), tol in pairs]


#: Kinds of purifiers, and the points of each.
GRID: dict[str, list[Point]] = {
    "one-shot": one_shot(0.15, 0.25),
    "DiffPure": product("DiffPure", sigma=[0.25], steps=[3, 10, 20]),
    "ADP": product("ADP", sigma=[0.15], level=[0.15], steps=[2, 5], share=[0.3]),
    "ScoreOpt-N": scoreopt("N", [0.15], [0.05], [1, 2, 5, 10]) + scoreopt("N", [0.25], [0.05], [5]),
    "ScoreOpt-O": scoreopt("O", [(0.15, 0.35)], [0.04], [2, 5, 10]),
    "ScoreOpt-N, no Jacobian": without_jacobian(
        scoreopt("N", [0.15, 0.25], [0.02, 0.05], [5]) + scoreopt("N", [0.15], [0.05], [2, 10])
    ),
    "ScoreOpt-O, no Jacobian": without_jacobian(
        scoreopt("O", [(0.15, 0.35)], [0.02, 0.04], [5, 10])
    ),
    "ScoreOpt-N, stopped early": stopping(scoreopt("N", [0.15], [0.05], [5]), [0.02, 0.05])
    + stopping(scoreopt("N", [0.15], [0.05], [10]), [0.05]),
}


def points() -> list[dict[str, Any]]:
    """The grid, a row a point."""
    return [
        {"kind": kind, "purifier": name, "settings": settings}
        for kind, of_kind in GRID.items()
        for name, settings in of_kind
    ]


def purifier(row: dict[str, Any], **settings: Any) -> Purifier:
    kind: Any = purifiers.KINDS[row["purifier"]]
    return kind(pretrained.denoiser(NAME), **row["settings"], **settings)


def label(row: dict[str, Any]) -> str:
    """A point's name in a run."""
    return f"{row['kind']} {json.dumps(row['settings'])}"


def measure(args: argparse.Namespace) -> None:
    """Accuracies of every point, to ``frontier_accuracy.json``."""
    classifier = pretrained.classifier(NAME)
    budget = {"steps": args.pgd_steps, "eot": 1, "autocast": precision.autocast(args.float32)}
    attacks = {
        "transfer PGD": attack("transfer-pgd-linf"),
        "surrogate": attack("pgd-eot-surrogate-linf", **budget),
        "smoothed": attack("pgd-eot-smoothed-linf", **budget),
    }
    kinds = args.kinds or list(GRID)
    rows = [
        row
        for row in earlier("frontier_accuracy", NAME).get("rows", ())
        if row["kind"] not in kinds
    ]
    images = held_out(args)
    for kind in kinds:
        of_kind = [row for row in points() if row["kind"] == kind]
        result = evaluate(
            {label(row): DefendedModel(classifier, purifier(row)) for row in of_kind},
            images, attacks,
            out=args.runs / "frontier" / kind, batch=args.images, seed=args.seed,
            judging=Judging(purifications=8), checks=False, workers=args.workers,
            progress=progress(),
        )  # fmt: skip
        with result.store:
            rows += [row | {"accuracy": accuracies(result, label(row))} for row in of_kind]
        write(
            "frontier_accuracy", images="training images kept out of training", n=args.images,
            weights=weights(NAME), seed=args.seed, pgd=budget, rows=rows,
        )  # fmt: skip


def accuracies(result: Result, defence: str) -> dict[str, Any]:
    """Clean, under each attack, and each image's lowest; with intervals."""
    columns = {name: result.cell(defence, name).accuracy for name in result.plan.columns}
    columns["lowest"] = result.weakest(defence)
    return {name: share and share.as_dict() for name, share in columns.items()}


def seconds(args: argparse.Namespace) -> None:
    """Milliseconds an image of every point, to ``frontier_times.json``."""
    x = held_out(args).x[: args.batch]
    ways = {label(row): partial(purifier(row), x, seed=0) for row in points()}
    times = in_turn(ways, args.rounds)
    write(
        "frontier_times", images="training images kept out of training", threads=1,
        batch=args.batch, rounds=args.rounds,
        ms_per_image={name: median([1000 * s / len(x) for s in of]) for name, of in times.items()},
    )  # fmt: skip


def stop(args: argparse.Namespace) -> None:
    """Network calls saved by stopping early, and accuracy lost, to ``frontier_stopping.json``."""
    classifier, denoiser = pretrained.classifier(NAME), pretrained.denoiser(NAME)
    full = purifiers.ScoreOpt.from_preset(f"{NAME}/N", denoiser)
    images, rows = held_out(args), []
    for steps, values in TOLS.items():
        tols = {f"tol={tol}": full.replace(steps=steps, tol=tol) for tol in values}
        made = {"full": full.replace(steps=steps), **tols}
        result = evaluate(
            {name: DefendedModel(classifier, it) for name, it in made.items()},
            images, {"transfer PGD": attack("transfer-pgd-linf")},
            out=args.runs / "frontier_stopping" / str(steps), batch=100, seed=args.seed,
            judging=Judging(purifications=1), checks=False, workers=args.workers,
            progress=progress(),
        )  # fmt: skip
        with result.store:
            for name in tols:
                calls = [result.cell(of).denoiser_calls for of in (name, "full")]
                rows.append({
                    "steps": steps, "tol": tols[name].settings.tol,
                    "calls": round(calls[0] / calls[1], 4),
                    "accuracy": {
                        column: {
                            "full": result.cell("full", column).accuracy.as_dict(),
                            "less full": dataclasses.asdict(result.compare(name, "full", column)),
                        }
                        for column in result.plan.columns
                    },
                })  # fmt: skip
        write(
            "frontier_stopping", images="training images kept out of training", n=args.images,
            weights=weights(NAME), seed=args.seed, rows=rows,
        )  # fmt: skip


def joined() -> list[dict[str, Any]]:
    """The rows of both files, and whether another point beats each in all three figures."""
    accuracy, times = (
        json.loads((results_file.RESULTS / f"frontier_{part}.json").read_text())
        for part in ("accuracy", "times")
    )
    rows = [row | {"ms": times["ms_per_image"][label(row)]} for row in accuracy["rows"]]
    return [row | {"undominated": not any(beats(o, row) for o in rows)} for row in rows]


def point_of(name: str) -> dict[str, Any]:
    """The row of a preset."""
    settings = purifiers.ScoreOpt.Settings.from_dict
    wanted, points = settings(preset(f"{NAME}/{name}")), joined()
    return next(
        row
        for row in points
        if row["purifier"] == "ScoreOpt" and settings(row["settings"]) == wanted
    )


def beats(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether a is at least as cheap, as accurate and as robust as b, and better in one."""

    def figures(row: dict[str, Any]) -> tuple[float, ...]:
        of = row["accuracy"]
        return -row["ms"]["value"], of["clean"]["value"], of["lowest"]["value"]

    mine, others = figures(a), figures(b)
    return mine != others and all(m >= o for m, o in zip(mine, others, strict=True))


def draw(args: argparse.Namespace) -> None:
    """``frontier.png``: accuracies against time; large is what no point beats."""
    from matplotlib.figure import Figure  # an extra

    rows = joined()
    figure = Figure(figsize=(8, 5), layout="constrained")
    for axes, column in zip(figure.subplots(1, 2, sharex=True), ("clean", "lowest"), strict=True):
        for kind, of_kind in itertools.groupby(rows, lambda row: row["kind"]):
            of_kind = list(of_kind)
            ms = [row["ms"]["value"] for row in of_kind]
            share = [100 * row["accuracy"][column]["value"] for row in of_kind]
            sizes = [60 if row["undominated"] else 15 for row in of_kind]
            axes.scatter(ms, share, s=sizes, label=kind)
        axes.set(xscale="log", xlabel="ms an image", ylabel=f"{column} accuracy, %")
        axes.set_xticks(marks := [3, 10, 30, 100], [str(mark) for mark in marks])
        axes.set_xticks([], minor=True)
    handles, labels = axes.get_legend_handles_labels()
    legend = figure.legend(handles, labels, loc="outside lower center", ncols=3)
    for handle in legend.legend_handles:  # of whatever size a kind's first point is
        handle.set_sizes([30])
    figure.savefig(results_file.RESULTS / "frontier.png", dpi=150)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["measure", "time", "draw", "stop"])
    parser.add_argument("source", nargs="?", help="CIFAR-10 training images")
    add_arguments(parser, images=100)
    parser.add_argument("--kinds", nargs="+", choices=GRID, help="to measure, beside those written")
    parser.add_argument("--pgd-steps", type=int, default=10)
    parser.add_argument("--batch", type=int, default=32, help="images timed at a time")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    precision.add_argument(parser)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the records")
    args = parser.parse_args(arguments)
    if args.part != "draw" and args.source is None:
        parser.error(f"{args.part} needs the training images")
    torch.set_num_threads(1)
    {"measure": measure, "time": seconds, "draw": draw, "stop": stop}[args.part](args)


if __name__ == "__main__":
    main()
