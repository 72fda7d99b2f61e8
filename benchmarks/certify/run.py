"""Certified accuracy of the adaptive suite's rows, on its 128 images of CIFAR-10.

    python -m benchmarks.certify.run path/to/cifar10/test/images              # every row, in hours
    python -m benchmarks.certify.run path/to/cifar10/test/images --row one-shot
    python -m benchmarks.certify.run --draw

A row is a run in ``runs/certify``, a unit an image: stopped and started again, it goes on. It is
written to ``results/certify_<row>.json``, and certified in float32: under autocast it would be a
certificate of the network in bfloat16, which is not the one that the suite attacked.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from benchmarks.adaptive.run import ROWS as DEFENCES
from benchmarks.certify.tables import draw
from benchmarks.common.results_file import weights, write
from scoreopt_defense import certify
from scoreopt_defense._memory import keep_freed_memory
from scoreopt_defense.evaluation.certification import Certified
from scoreopt_defense.evaluation.certification.smoothing import own_level
from scoreopt_defense.evaluation.config import Config
from scoreopt_defense.evaluation.run.progress import progress

SIGMA = 0.25  # on the [-1, 1] scale: that of one-shot and DiffPure
#: Copies of an image that bound its class's probability: fewer where they take 20 ms each.
ROWS = {
    "undefended": 10_000,
    "one-shot": 10_000,
    "adversarial-training": 10_000,
    "scoreopt-n": 500,
    "diffpure": 500,
}


def contents(found: Certified, own: bool) -> dict[str, Any]:
    """What is written of a row: a column a number of its certificates."""
    settings, there = found.settings(), found.certificates()
    columns = {
        "image": [c.image for c in there],
        "label": [c.label for c in there],
        "top": [c.top for c in there],
        "count": [c.count for c in there],
        "draws": [c.draws for c in there],
        "bound": [f"{c.bound:.9f}" for c in there],
        "radius_pixels": [f"{c.radius_pixels:.9f}" for c in there],
    }
    return {
        "certification": settings.as_dict(),
        "sigma_pixels": settings.sigma_pixels,
        "most_pixels": settings.most_pixels,
        "own_noise": own,
        "images": found.result.plan.summary()["images"],
        "seed": found.result.plan.seed,
        "seconds": round(sum(c.seconds for c in there), 1),
        **{name: " ".join(map(str, values)) for name, values in columns.items()},
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", nargs="?", help="CIFAR-10 test images")
    parser.add_argument("--row", choices=ROWS, action="append", help="all by default")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--copies", type=int, help="in place of a row's own number")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs/certify"))
    parser.add_argument("--draw", action="store_true", help="the figure, of what is measured")
    args = parser.parse_args(arguments)
    if args.source is None and not args.draw:
        parser.error("it needs the test images")
    torch.set_num_threads(1)
    keep_freed_memory()
    for row in (args.row or ROWS) if args.source else ():
        images = {"source": args.source, "n": args.images, "seed": args.seed, "order": "index"}
        config = Config.model_validate({"images": images, "defences": {row: DEFENCES[row]}})
        source = config.source()
        defences = {name: config.defence(name) for name in config.defences}
        own = own_level(defences[row]) is not None
        found = certify(
            defences, source, sigma=SIGMA, n=args.copies or ROWS[row], seed=args.seed,
            out=args.runs, name=row, wait=True, progress=progress(),
        )  # fmt: skip
        with found.result.store:
            print(found)
            name = DEFENCES[row]["classifier"]
            write(f"certify_{row}", weights=weights(name), **contents(found, own))
    if args.draw:
        draw()


if __name__ == "__main__":
    main()
