"""Choose settings for the networks that ship here, on training images kept out of training.

    python benchmarks/tune_presets.py mnist-tiny mnist --eps 0.3

Each setting is measured clean, against transfer PGD, and against PGD+EOT on the one-shot surrogate.
The best has the highest mean of the first two. The third depends on how well the surrogate's
gradient serves a setting: choosing by it would choose gradient masking.
"""

from __future__ import annotations

import argparse
import itertools

import torch
import torchattacks
from common import accuracy, weights, write
from tqdm import tqdm

from scoreopt_defense import EOT, DefendedModel, OneShot, Purifier, ScoreOpt, data, pretrained
from scoreopt_defense.denoisers import Denoiser

# sigma, learning rate, steps
GRIDS = {
    "mnist-tiny": {
        "one-shot": [(s, None, None) for s in (0.5, 0.75, 1.0)],
        "O": list(itertools.product([(0.4, 0.6), (0.5, 1.0)], [0.1, 0.2], [5])),
        "N": list(itertools.product([0.5, 0.75, 1.0], [0.05, 0.1], [5])),
    },
    "cifar10-tiny": {
        "one-shot": [(s, None, None) for s in (0.15, 0.25, 0.5)],
        "O": list(itertools.product([(0.15, 0.35)], [0.02, 0.04], [5, 10])),
        "N": list(itertools.product([0.15, 0.25, 0.5], [0.02, 0.05], [5])),
    },
}


def build(kind: str, setting: tuple, denoiser: Denoiser, seed: int) -> Purifier:
    """The purifier of one point of the grid."""
    sigma, lr, steps = setting
    if kind == "one-shot":
        return OneShot(denoiser, sigma=sigma, seed=seed)
    return ScoreOpt(denoiser, variant=kind, sigma=sigma, lr=lr, steps=steps, seed=seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=GRIDS)
    parser.add_argument("source", help="the data that the network was trained on")
    parser.add_argument("--eps", type=float, required=True, help="l-infinity bound on [0, 1]")
    parser.add_argument("--holdout", type=int, default=1000, help="as in training")
    parser.add_argument("--images", type=int, default=200, help="of those held out")
    parser.add_argument("--white-box-images", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    _, held_out = data.hold_out(data.load(args.source, split="train"), args.holdout)
    x, y = held_out.x[: args.images], held_out.y[: args.images]
    classifier = pretrained.classifier(args.name)
    denoiser = pretrained.denoiser(args.name)
    torch.manual_seed(args.seed)
    pgd = {"eps": args.eps, "alpha": args.eps / 4}
    transferred = torchattacks.PGD(classifier, steps=40, **pgd)(x, y)

    rows = []
    grid = [(kind, point) for kind, points in GRIDS[args.name].items() for point in points]
    for kind, setting in tqdm(grid, unit="setting"):
        model = DefendedModel(classifier, build(kind, setting, denoiser, args.seed))
        few_x, few_y = x[: args.white_box_images], y[: args.white_box_images]
        attacked = torchattacks.PGD(EOT(model, 2), steps=10, **pgd)(few_x, few_y)
        rows.append({
            "purifier": kind, "sigma": setting[0], "lr": setting[1], "steps": setting[2],
            "clean": accuracy(model, x, y),
            "transfer PGD-40": accuracy(model, transferred, y),
            "PGD-10+EOT-2, one-shot surrogate": accuracy(model, attacked, few_y),
        })  # fmt: skip
        measured = (f"{100 * cell['value']:.1f}" for cell in list(rows[-1].values())[4:])
        tqdm.write(f"{kind} {setting}: " + " ".join(measured))
    best = {
        kind: max(
            (row for row in rows if row["purifier"] == kind),
            key=lambda row: row["clean"]["value"] + row["transfer PGD-40"]["value"],
        )
        for kind in GRIDS[args.name]
    }
    settings = ("sigma", "lr", "steps")
    write(
        f"tune_presets_{args.name}",
        command=f"python benchmarks/tune_presets.py {args.name} DATA --eps {args.eps:.6g} "
        f"--holdout {args.holdout}",
        images="training images kept out of training", weights=weights(args.name), eps=args.eps,
        seed=args.seed, best={kind: [row[s] for s in settings] for kind, row in best.items()},
        rows=rows,
    )  # fmt: skip


if __name__ == "__main__":
    main()
