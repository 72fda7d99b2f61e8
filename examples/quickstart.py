"""Real attacks on a defended classifier of real images, offline, in minutes on a CPU.

python examples/quickstart.py
python examples/quickstart.py --data cifar10 --cifar10 path/to/cifar10
"""

from __future__ import annotations

import argparse
from pathlib import Path

from attack_table import run, short_attacks

from scoreopt_defense import OneShot, ScoreOpt, data, pretrained

# By data set: l-infinity bound, noise level of one-shot denoising, images that fit the time, and
# how many passes of the bare network over them it took
SETTINGS = {"mnist": (0.3, 0.75, 50, 3000), "cifar10": (8 / 255, 0.25, 24, 3000)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=SETTINGS, default="mnist")
    parser.add_argument("--cifar10", help="a zip, a folder or a torchvision root of test images")
    parser.add_argument("--images", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    args = parser.parse_args()
    if args.data == "cifar10" and not args.cifar10:
        parser.error("--data cifar10 needs --cifar10, the path of its test images")

    eps, sigma, count, passes = SETTINGS[args.data]
    name = f"{args.data}-tiny"
    denoiser = pretrained.denoiser(name)
    run(
        pretrained.classifier(name),
        {
            "undefended": None,
            "one-shot": OneShot(denoiser, sigma=sigma, seed=args.seed),
            "ScoreOpt-O": ScoreOpt.from_preset(f"{name}/O", denoiser, seed=args.seed),
            "ScoreOpt-N": ScoreOpt.from_preset(f"{name}/N", denoiser, seed=args.seed),
        },
        data.load(args.cifar10 or "mnist", n=args.images or count, seed=args.seed),
        short_attacks(eps),
        args.out,
        seed=args.seed,
        passes=None if args.images else passes,
    )


if __name__ == "__main__":
    main()
