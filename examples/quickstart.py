"""Real attacks on a defended classifier of real digits, offline, in minutes on a CPU.

python examples/quickstart.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

from attack_table import run
from attacks import Budget

from scoreopt_defense import OneShot, ScoreOpt, data, pretrained


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    args = parser.parse_args()

    classifier = pretrained.classifier("mnist-tiny")
    denoiser = pretrained.denoiser("mnist-tiny")
    run(
        classifier,
        {
            "undefended": None,
            "one-shot": OneShot(denoiser, sigma=0.75, seed=args.seed),
            "ScoreOpt-O": ScoreOpt.from_preset("mnist-tiny/O", denoiser, seed=args.seed),
            "ScoreOpt-N": ScoreOpt.from_preset("mnist-tiny/N", denoiser, seed=args.seed),
        },
        data.mnist(n=args.images, seed=args.seed),
        Budget(eps=0.3),
        args.out,
        seed=args.seed,
    )


if __name__ == "__main__":
    main()
