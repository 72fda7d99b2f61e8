"""Exact gradients through ScoreOpt: how far the surrogates are from them, by steps.

    python -m benchmarks.attacks.exact_gradient path/to/cifar

It goes on where it was if it is stopped and run again. What they cost is in speed.py and memory.py.
"""

from __future__ import annotations

import argparse

from tqdm import tqdm

from benchmarks.common.results_file import mean, resumed, weights
from benchmarks.common.timing import SETTINGS
from scoreopt_defense import DefendedModel, ScoreOpt, data, pretrained
from scoreopt_defense.diagnostics import gradient_agreement

NAME = "cifar10-tiny"
SURROGATES = ("one-shot", "bpda")


def cosines(args: argparse.Namespace) -> None:
    """Agreement of each surrogate with the exact gradient, by steps, variant and loss."""
    classifier, denoiser = pretrained.classifier(NAME), pretrained.denoiser(NAME)
    x, y, _ = data.load(args.source, n=16, seed=args.seed, order="index")
    cells = [
        (variant, loss, steps)
        for variant in ("N", "O")
        for loss in ("diff", "mse", "sr", "noise")
        for steps in (1, 5, 10, 20)
    ]
    inputs = {"data": args.describe, "weights": weights(NAME), "seed": args.seed}
    rows = resumed("exact_gradient_cosines", images=len(y), **inputs)
    for variant, loss, steps in tqdm(cells, unit="setting"):
        key = {"variant": variant, "loss": loss, "steps": steps}
        if rows.has(key):
            continue
        purifier = ScoreOpt(denoiser, **SETTINGS[variant], loss=loss, steps=steps, max_batch=32)
        found = gradient_agreement(
            DefendedModel(classifier, purifier), x, y, modes=SURROGATES, seed=args.seed
        )
        for mode in SURROGATES:
            key[f"{mode} cosine"] = mean(found.cosine[mode])
            key[f"{mode} sign"] = mean(found.sign[mode])
        rows.add(key)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="CIFAR-10 test images")
    parser.add_argument("--describe", default="CIFAR-10 test images, re-encoded as JPEG")
    parser.add_argument("--seed", type=int, default=0)
    cosines(parser.parse_args())


if __name__ == "__main__":
    main()
