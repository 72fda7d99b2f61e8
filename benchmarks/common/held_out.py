"""Training images kept out of training, by which benchmarks choose settings and attacks."""

from __future__ import annotations

import argparse

from scoreopt_defense import data


def add_arguments(parser: argparse.ArgumentParser, images: int) -> None:
    """How many were kept out, and how many of those to take."""
    parser.add_argument("--holdout", type=int, default=1000, help="as in training")
    parser.add_argument("--images", type=int, default=images, help="of those held out")


def held_out(args: argparse.Namespace) -> data.Images:
    """The first ``args.images`` of those that training on ``args.source`` keeps out."""
    _, kept = data.hold_out(data.load(args.source, split="train"), args.holdout)
    return data.Images(kept.x[: args.images], kept.y[: args.images], kept.classes)
