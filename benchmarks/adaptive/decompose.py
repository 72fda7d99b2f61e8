"""Where each defence's robustness comes from, on tiny CIFAR-10 networks.

    python -m benchmarks.adaptive.decompose path/to/cifar10/test/images

Each row is four runs of ``scoreopt evaluate``'s runner in ``runs/decompose``; stopped and started
again, it goes on. After each, ``results/decomposition.json`` and ``.png`` are written anew, with
all rows that are complete.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.adaptive.run import MAIN
from benchmarks.common import precision
from benchmarks.common.results_file import RESULTS, write
from scoreopt_defense._memory import keep_freed_memory
from scoreopt_defense.evaluation import Decomposition, decompose
from scoreopt_defense.evaluation.config import Config
from scoreopt_defense.evaluation.run.progress import progress

ROWS = ("scoreopt-n", "one-shot", "diffpure", "scoreopt-o", "gdmp")
THREAT: dict[str, Any] = {"norm": "linf", "eps": 8 / 255}


def measured(row: str, args: argparse.Namespace) -> Decomposition:
    images = {"source": args.source, "n": args.images, "seed": args.seed, "order": "index"}
    config = Config.model_validate({"images": images, "defences": {row: MAIN[row]}})
    materials = config.materials()
    return decompose(
        materials.defences[row], materials.images, **THREAT, steps=args.steps, name=row,
        autocast=precision.autocast(args.float32), seed=args.seed, out=args.runs, wait=True,
        workers=args.workers, progress=progress(),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="CIFAR-10 test images")
    parser.add_argument("--rows", choices=ROWS, nargs="+", default=ROWS)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    precision.add_argument(parser)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs/decompose"))
    args = parser.parse_args()
    keep_freed_memory()
    about = {name: getattr(args, name) for name in ("images", "steps", "seed", "float32")} | THREAT
    found = []
    for row in args.rows:
        found.append(measured(row, args))
        print(f"{found[-1]}\n")
        write("decomposition", **about, rows=[of.as_dict() for of in found])
        draw(found, RESULTS / "decomposition.png")


def draw(found: list[Decomposition], path: Path) -> None:
    """A bar a defence."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(2.5 + 1.7 * len(found), 4.5), layout="constrained")
    for place, of in enumerate(found):
        of.plot(axes, place=place)
    figure.legend(loc="outside right upper", fontsize="small")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
