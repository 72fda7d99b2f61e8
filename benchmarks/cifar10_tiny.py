"""The tiny CIFAR-10 networks under transfer PGD: presets of the paper, and presets tuned for them.

    python benchmarks/cifar10_tiny.py path/to/cifar10/test/images

Transfer PGD sees the bare classifier alone (paper, appendix B): 40 steps of size eps / 4, at
l-infinity 8/255 and l2 0.5. It says nothing about an attack that knows the defence.

Goes on where it was if it is stopped and run again.
"""

from __future__ import annotations

import argparse
import time

import torch
import torchattacks
from common import accuracy, resumed, weights
from torch import Tensor
from tqdm import tqdm

from scoreopt_defense import DefendedModel, OneShot, ScoreOpt, data, pretrained

NAME = "cifar10-tiny"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="CIFAR-10 test images")
    parser.add_argument("--describe", default="CIFAR-10 test images, re-encoded as JPEG")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    x, y, _ = data.load(args.source, n=args.images, seed=args.seed)
    classifier, denoiser = pretrained.classifier(NAME), pretrained.denoiser(NAME)
    common = {"seed": args.seed, "max_batch": 100}

    purifiers = {"undefended": None} | {
        f"one-shot, sigma {sigma}": OneShot(denoiser, sigma=sigma, **common)
        for sigma in (0.25, 0.5)
    } | {
        name: ScoreOpt.from_preset(name, denoiser, **common)
        for name in (
            "cifar10/transfer-pgd-linf/N", "cifar10/transfer-pgd-linf/O", f"{NAME}/N", f"{NAME}/O",
        )
    }  # fmt: skip

    torch.manual_seed(args.seed)
    linf = torchattacks.PGD(classifier, eps=8 / 255, alpha=2 / 255, steps=40)
    l2 = torchattacks.PGDL2(classifier, eps=0.5, alpha=0.125, steps=40)
    columns = {
        "clean": x,
        "transfer PGD-40, linf 8/255": _batched(linf, x, y),
        "transfer PGD-40, l2 0.5": _batched(l2, x, y),
    }
    settings = {
        name: purifier and purifier.settings.as_dict() for name, purifier in purifiers.items()
    }
    about = {"data": args.describe, "images": len(y), "weights": weights(NAME), "seed": args.seed,
             "settings": settings}  # fmt: skip
    with resumed("cifar10_tiny", **about) as rows:
        for name, purifier in tqdm(purifiers.items(), unit="defence"):
            key = {"defence": name}
            if rows.has(key):
                continue
            model = classifier if purifier is None else DefendedModel(classifier, purifier)
            started = time.monotonic()
            found = {column: accuracy(model, images, y) for column, images in columns.items()}
            seconds = time.monotonic() - started
            rows.add(
                key | found | {"ms an image": round(1000 * seconds / (len(columns) * len(x)), 1)}
            )
            measured = (f"{100 * cell['value']:.1f} %" for cell in found.values())
            tqdm.write(f"{name}: " + ", ".join(measured))


def _batched(attack: torchattacks.attack.Attack, x: Tensor, y: Tensor) -> Tensor:
    return torch.cat([attack(a, b) for a, b in zip(x.split(100), y.split(100))])


if __name__ == "__main__":
    main()
