"""Choose settings for the networks that ship here, on training images kept out of training.

    python -m benchmarks.models.tune_presets mnist-tiny mnist --eps 0.3

The best of each kind is that of :func:`scoreopt_defense.evaluation.tuning.tune`, as
``ScoreOpt.tune`` finds it. On fewer images each point is under PGD+EOT on the one-shot surrogate
too, which has no say.

Langevin dynamics are those of an energy, which ships of digits and is a file of CIFAR-10
(``examples/train_ebm.py``):

    python -m benchmarks.models.tune_presets cifar10-tiny TRAIN --eps 0.0313725 --kinds Langevin \
        --energy file:runs/cifar-ebm/energy.safetensors --white-box-images 0

A kind's record is a folder of its own, where it goes on if it was stopped; another grid of one kind
is measured without the others.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

from benchmarks.common.held_out import add_arguments, held_out
from benchmarks.common.results_file import earlier, weights, write
from scoreopt_defense import DefendedModel, pretrained, purifiers
from scoreopt_defense.attacks import attack
from scoreopt_defense.evaluation import Judging, evaluate
from scoreopt_defense.evaluation.plan import CLEAN
from scoreopt_defense.evaluation.run.progress import progress
from scoreopt_defense.evaluation.tuning import TRANSFER, tune

WHITE_BOX = "PGD-10+EOT-2, one-shot surrogate"

Point = tuple[str, dict[str, Any]]  # a purifier's class by name, and its settings


def scoreopt(variant: str, sigmas: list[Any], lrs: list[float], steps: list[int]) -> list[Point]:
    return [
        ("ScoreOpt", {"variant": variant, "sigma": sigma, "lr": lr, "steps": count})
        for sigma, lr, count in itertools.product(sigmas, lrs, steps)
    ]


def product(name: str, **settings: list[Any]) -> list[Point]:
    return [(name, dict(zip(settings, values))) for values in itertools.product(*settings.values())]


def langevin(level: float, **settings: list[Any]) -> list[Point]:
    return product("Langevin", level=[level], denoise=[True], **settings)


def one_shot(*sigmas: float) -> list[Point]:
    return [("OneShot", {"sigma": sigma}) for sigma in sigmas]


GRIDS: dict[str, dict[str, list[Point]]] = {
    "mnist-tiny": {
        "one-shot": one_shot(0.5, 0.75, 1.0),
        "O": scoreopt("O", [(0.4, 0.6), (0.5, 1.0)], [0.1, 0.2], [5]),
        "N": scoreopt("N", [0.5, 0.75, 1.0], [0.05, 0.1], [5]),
        "Langevin": langevin(0.2, step_size=[0.05, 0.1, 0.2], steps=[10, 25, 50]),
    },
    "cifar10-tiny": {
        "one-shot": one_shot(0.15, 0.25, 0.5),
        "O": scoreopt("O", [(0.15, 0.35)], [0.02, 0.04], [5, 10]),
        "N": scoreopt("N", [0.15, 0.25, 0.5], [0.02, 0.05], [5]),
        "DiffPure": product("DiffPure", sigma=[0.15, 0.25, 0.34], steps=[5, 10]),
        "GDMP": product("GDMP", sigma=[0.129, 0.25], steps=[9], rounds=[1, 4]),
        "ADP": [
            ("ADP", {"sigma": level, "level": level, "steps": 5, "share": share})
            for level, share in itertools.product([0.15, 0.25, 0.5], [0.1, 0.3])
        ],
        "PurSAMERE": product(
            "PurSAMERE", sigma=[0.15, 0.25], lr=[0.02, 0.04], rho=[0.0, 0.5], bank=[2], steps=[5]
        ),
        "Langevin": langevin(0.05, step_size=[0.025, 0.05, 0.075], steps=[10, 20, 40]),
    },
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=GRIDS)
    parser.add_argument("source", help="the data that the network was trained on")
    parser.add_argument("--eps", type=float, required=True, help="l-infinity bound on [0, 1]")
    parser.add_argument(
        "--kinds", nargs="+", help="of the grid; the file keeps its rows of the others"
    )
    parser.add_argument("--energy", help="of Langevin dynamics; NAME-ebm by default")
    add_arguments(parser, images=200)
    parser.add_argument("--white-box-images", type=int, default=32, help="of those; 0 for none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the records")
    args = parser.parse_args(arguments)

    images = held_out(args)
    classifier = pretrained.classifier(args.name)
    white_box = attack("pgd-eot-linf", eps=args.eps, steps=10, eot=2)
    kinds = args.kinds or list(GRIDS[args.name])
    before = earlier(f"tune_presets_{args.name}", args.name)
    rows = [row for row in before.get("rows", ()) if row["kind"] not in kinds]
    best = {kind: of for kind, of in before.get("best", {}).items() if kind not in kinds}
    for kind in kinds:
        points = GRIDS[args.name][kind]
        prior = args.energy or f"{args.name}-ebm" if kind == "Langevin" else args.name
        denoiser = pretrained.denoiser(prior)
        candidates = {
            str(place): purifiers.KINDS[name](denoiser, **settings)
            for place, (name, settings) in enumerate(points)
        }
        folder = args.runs / f"tune_presets_{args.name}" / kind
        given: dict[str, Any] = {
            "batch": 100, "seed": args.seed, "workers": args.workers, "progress": progress()
        }  # fmt: skip
        place, found = tune(
            candidates, classifier, images, eps=args.eps, out=folder / "transfer-pgd-linf", **given
        )
        best[kind] = points[int(place)][1]
        cells = [(found, CLEAN), (found, TRANSFER)]
        if args.white_box_images:
            few = evaluate(
                {name: DefendedModel(classifier, it) for name, it in candidates.items()},
                (images.x[: args.white_box_images], images.y[: args.white_box_images]),
                {WHITE_BOX: white_box}, out=folder / white_box.preset,
                judging=Judging(purifications=1), checks=False, **given,
            )  # fmt: skip
            cells.append((few, WHITE_BOX))
        for place, (name, settings) in enumerate(points):
            shares = {column: run.cell(str(place), column).accuracy for run, column in cells}
            accuracy = {column: share and share.as_dict() for column, share in shares.items()}
            rows.append(
                {"kind": kind, "purifier": name, "settings": settings, "accuracy": accuracy}
            )
            print(kind, settings, *(s and f"{100 * s.value:.1f} %" for s in shares.values()))
    write(
        f"tune_presets_{args.name}",
        command=f"python -m benchmarks.models.tune_presets {args.name} DATA --eps {args.eps:.6g} "
        f"--holdout {args.holdout}",
        images="training images kept out of training", weights=weights(args.name), eps=args.eps,
        seed=args.seed, best=best, rows=rows,
    )  # fmt: skip


if __name__ == "__main__":
    main()
