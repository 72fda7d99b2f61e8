"""Exact gradients through ScoreOpt: what surrogates miss, and what they cost.

    python benchmarks/exact_gradient.py cosines path/to/cifar    # agreement against steps
    python benchmarks/exact_gradient.py costs                    # memory and time, fresh processes

Each part writes its own result file and goes on where it was if it is stopped and run again.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

import torch
from results_file import mean, resumed, weights
from tqdm import tqdm

from scoreopt_defense import DefendedModel, ScoreOpt, data, pretrained
from scoreopt_defense.diagnostics import gradient_agreement
from scoreopt_defense.noise import Noise

NAME = "cifar10-tiny"
SETTINGS: dict[str, dict[str, Any]] = {
    "N": {"variant": "N", "sigma": 0.25, "lr": 0.02},
    "O": {"variant": "O", "sigma": (0.15, 0.35), "lr": 0.02},
}
SURROGATES = ("one-shot", "bpda")


def cosines(args: argparse.Namespace) -> None:
    """Agreement of each surrogate with the exact gradient, by steps, variant and loss."""
    classifier, denoiser = pretrained.classifier(NAME), pretrained.denoiser(NAME)
    x, y, _ = data.load(args.source, n=16, seed=args.seed)
    cells = [
        (variant, loss, steps)
        for variant in ("N", "O")
        for loss in ("diff", "mse", "sr", "noise")
        for steps in (1, 5, 10, 20)
    ]
    with resumed("exact_gradient_cosines", images=len(y), **_inputs(args)) as rows:
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


def costs(args: argparse.Namespace) -> None:
    """Peak memory and time of a forward and backward pass, exact against naive autograd.

    The median of three processes, or one from 20 steps on.
    """
    with resumed("exact_gradient_costs", images=32, seed=args.seed) as rows:
        for variant in ("N", "O"):
            for steps in (1, 5, 10, 20, 50):
                for how in ("exact", "naive"):
                    key = {"variant": variant, "steps": steps, "how": how}
                    if rows.has(key):
                        continue
                    command = [sys.executable, __file__, "one-cost", variant, str(steps), how]
                    runs = [
                        json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
                        for _ in range(3 if steps < 20 else 1)
                    ]
                    middle = sorted(runs, key=lambda run: run["seconds"])[len(runs) // 2]
                    rows.add(key | middle)
                    print(rows.rows[-1])


def one_cost(variant: str, steps: int, how: str) -> None:
    """One measurement, in a process of its own: memory above what was used before it."""
    torch.set_num_threads(1)
    purifier = ScoreOpt(
        pretrained.denoiser(NAME), **SETTINGS[variant], steps=steps, gradient="exact"
    )
    x = torch.rand(32, 3, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    noise = Noise.of_batch(0, len(x))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.monotonic()
    if how == "exact":
        y = purifier(x, seed=0)
    else:  # the same steps, recorded whole by autograd
        y = (purifier.purify(2 * x - 1, noise).clamp(-1, 1) + 1) / 2
    y.square().sum().backward()
    seconds = time.monotonic() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": round(seconds, 3), "megabytes": (peak - before) // 1024}))


def _inputs(args: argparse.Namespace) -> dict[str, Any]:
    """What gradients depend on, and costs do not."""
    return {"data": args.describe, "weights": weights(NAME), "seed": args.seed}


def main() -> None:
    if sys.argv[1:2] == ["one-cost"]:
        variant, steps, how = sys.argv[2:]
        return one_cost(variant, int(steps), how)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["cosines", "costs"])
    parser.add_argument("source", nargs="?", help="CIFAR-10 test images")
    parser.add_argument("--describe", default="CIFAR-10 test images, re-encoded as JPEG")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    return {"cosines": cosines, "costs": costs}[args.part](args)


if __name__ == "__main__":
    main()
