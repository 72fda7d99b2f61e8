"""What each way of differentiating ScoreOpt breaks, and how far it points from the strongest one.

    python -m benchmarks.attacks.gradient_modes attacks path/to/cifar10/images --steps 5    # 1, 20
    python -m benchmarks.attacks.gradient_modes cosines path/to/cifar10/images

Every mode attacks every image from the clean one, by PGD at one budget: unlike the adaptive suite,
which leaves out what was taken. Purifiers of 20 steps, where a mode would take hours, meet fewer
samples: ``--steps 20 --eot 2``. Both go on where they were if they are stopped and run again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from benchmarks.attacks.search import defences
from benchmarks.attacks.ways import KEEP_MB, SecondMomentHeld, Truncated
from benchmarks.common import precision
from benchmarks.common.results_file import RESULTS, mean, resumed, weights
from scoreopt_defense import data
from scoreopt_defense.attacks import PGD, Surrogate
from scoreopt_defense.diagnostics import gradient_agreement, gradient_noise
from scoreopt_defense.evaluation import evaluate
from scoreopt_defense.evaluation.record.export import to_json
from scoreopt_defense.evaluation.run.progress import progress
from scoreopt_defense.gradients import BPDA, Exact, OneShotGradient, Smoothed

NAME = "cifar10-tiny"
COSINES = 8, (5,), 8  # images, optimisation steps, purifications of a gradient


MODES: dict[str, Any] = {
    "BPDA": BPDA(),
    "surrogate": Surrogate(),
    "one-shot": OneShotGradient(),
    "smoothed": Smoothed(keep_mb=KEEP_MB),
    "exact": Exact(keep_mb=KEEP_MB),
    "identity through the steps": Truncated(0),
    "exact, second moment held": SecondMomentHeld(),
}


def attacks(args: argparse.Namespace) -> None:
    """Robust accuracy by mode, at so many optimisation steps."""
    autocast = precision.autocast(args.float32)
    budget = {"steps": args.pgd_steps, "eot": args.eot, "autocast": autocast}
    name = f"gradient_modes_{args.steps}_steps"
    result = evaluate(
        defences(NAME, steps=args.steps),
        data.load(args.source, n=args.images, seed=args.seed, order="index"),
        {mode: PGD(gradient=gradient, **budget) for mode, gradient in MODES.items()},
        out=args.runs / name, seed=args.seed, checks=False, workers=args.workers,
        progress=progress(),
    )  # fmt: skip
    with result.store:
        print(result)
        to_json(result, RESULTS / f"{name}.json")


def cosines(args: argparse.Namespace) -> None:
    """Agreement with the smoothed gradient of 8 purifications, and how many settle the signs."""
    images, steps_of, samples = COSINES
    x, y, _ = data.load(args.source, n=images, seed=args.seed, order="index")
    about = {"images": len(y), "weights": weights(NAME), "seed": args.seed, "samples": samples}
    modes = {mode: g for mode, g in MODES.items() if hasattr(g, "differentiate")}
    rows = resumed("gradient_modes_cosines", **about)
    for steps in steps_of:
        for defence, model in defences(NAME, steps=steps).items():
            for mode, gradient in modes.items():
                key = {"defence": defence, "steps": steps, "mode": mode}
                if rows.has(key):
                    continue
                found = gradient_agreement(
                    model.replace(max_batch=32), x, y, modes=[gradient],
                    reference="smoothed", samples=samples, seed=args.seed,
                )  # fmt: skip
                noise = gradient_noise(
                    model.replace(max_batch=32, gradient=gradient), x, y,
                    samples=[2**k for k in range(samples.bit_length())], seed=args.seed,
                )  # fmt: skip
                (cosine,), (sign,) = found.cosine.values(), found.sign.values()
                rows.add(key | {
                    "cosine": mean(cosine), "sign": mean(sign),
                    "settled signs by samples": {
                        str(k): round(share.item(), 4)
                        for k, share in zip(noise.samples, noise.sign.mean(1))
                    },
                })  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["attacks", "cosines"])
    parser.add_argument("source", help="CIFAR-10 test images")
    parser.add_argument("--steps", type=int, default=5, help="of the purifiers")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--pgd-steps", type=int, default=20)
    parser.add_argument("--eot", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    precision.add_argument(parser)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    {"attacks": attacks, "cosines": cosines}[args.part](args)


if __name__ == "__main__":
    main()
