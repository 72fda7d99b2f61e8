"""What ScoreOpt costs in time, beside the bare network, the authors' code and other purifiers.

    python -m benchmarks.speed.run overhead             # or gradients, sequential, attacks, scaling
    python -m benchmarks.speed.run authors --authors path/to/a/clone/of/zzzhangboya/ScoreOpt
    python -m benchmarks.speed.run overhead --keep-freed-memory    # without glibc's page faults
    python -m benchmarks.speed.run paper                 # on paper, from the result of overhead

One thread, and its processor's seconds, so that other work on the machine counts little; the wall's
of an evaluation. The ways of a row are timed in turn, round by round, in one process; a ratio is
that of the medians, with the quartiles of the rounds' own ratios. Each part writes its own result
file and goes on where it was if it is stopped and run again.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common.results_file import resumed, weights
from benchmarks.common.timing import (
    SETTINGS,
    Way,
    add_sizes,
    calls,
    compare,
    denoising,
    exponent,
    fill_sizes,
    images,
    passes,
    short,
    slope,
    switched,
)
from benchmarks.paper.speed import paper
from benchmarks.speed import authors
from benchmarks.speed.attacks import attacks
from benchmarks.speed.differentiated import gradient_of, modes, naive_gradient
from scoreopt_defense import DefendedModel, DiffPure, ScoreOpt, pretrained
from scoreopt_defense._memory import keep_freed_memory
from scoreopt_defense.noise import Noise

#: Sizes of each part: images at a time, optimisation steps, and pixels of an image's side.
SIZES: dict[str, dict[str, tuple[int, ...]]] = {
    "overhead": {"batches": (64, 1), "steps": (5,)},
    "authors": {"batches": (64, 1), "steps": (5, 20)},
    "gradients": {"batches": (4,), "steps": (1, 5, 10, 20)},
    "sequential": {"batches": (4,), "steps": (1, 5, 10, 20, 50, 100)},
    "attacks": {"batches": (1, 4), "steps": (5,)},
    "scaling": {
        "batches": (1, 2, 4, 8, 16, 32, 64),
        "steps": (1, 2, 5, 10, 20),
        "pixels": (32, 48, 64, 96, 128),
    },
    "paper": {},
}


def overhead(args: argparse.Namespace, rows: resumed) -> None:
    """Whole calls over the passes of the bare network that they cannot do without."""
    denoiser, classifier = pretrained.denoiser(args.name), pretrained.classifier(args.name)
    net = denoising(denoiser.net)
    for batch, steps in product(args.batches, args.steps):
        x, rounds = images(batch, channels=denoiser.channels), _rounds(args, batch)
        about = {"batch": batch, "steps": steps}
        for variant, loss in (("O", "diff"), ("N", "noise"), ("O", "sr")):
            purifier = ScoreOpt(denoiser, **SETTINGS[variant], loss=loss, steps=steps)
            ways = switched(purifier, "eager", "compiled", "without the Jacobian", "stopped early")
            key = {**about, "variant": variant, "loss": loss}
            compare(rows, key, calls(ways, x), ("bare network", passes_of(purifier, x)), rounds)

        purifier = ScoreOpt(denoiser, **SETTINGS["N"], steps=steps)
        in_order = partial(_in_order, classifier, purifier, x)
        doors = _doors(classifier, purifier, x)
        compare(rows, {**about, "doors": "N"}, doors, ("purifier, classifier", in_order), rounds)
        step = ScoreOpt(denoiser, **SETTINGS["O"], steps=1)
        key = {"batch": batch, "parts": "O"}
        compare(rows, key, _parts(net, step, x), ("a step", partial(step, x)), rounds)


def passes_of(purifier: ScoreOpt, x: Tensor) -> Way:
    """The bare network's passes in a purification.

    A step is a forward pass and an input gradient, with SR and a forward pass more; ScoreOpt-N ends
    with a forward pass.
    """
    compared = getattr(purifier.loss, "compares", False)
    plain = purifier.steps * compared + (purifier.variant == "N")
    return passes(denoising(purifier.denoiser.net), 2 * x - 1, purifier.steps, plain)


def _in_order(classifier: nn.Module, purifier: ScoreOpt, x: Tensor) -> Tensor:
    return classifier(purifier(x))


def _doors(classifier: nn.Module, purifier: ScoreOpt, x: Tensor) -> dict[str, Way]:
    """The defended model, and ART's classifier behind the preprocessor."""
    from art.estimators.classification import PyTorchClassifier

    from scoreopt_defense.integrations.art import PurifierPreprocessor

    behind = PyTorchClassifier(
        classifier, nn.CrossEntropyLoss(), x.shape[1:], 10, clip_values=(0, 1), device_type="cpu",
        preprocessing_defences=[PurifierPreprocessor(purifier)],
    )  # fmt: skip
    return {
        "DefendedModel": partial(DefendedModel(classifier, purifier), x),
        "ART": partial(behind.predict, x.numpy(), batch_size=len(x)),
    }


def _parts(net: Callable[[Tensor], Tensor], step: ScoreOpt, x: Tensor) -> dict[str, Way]:
    """What a step is made of, each on its own."""
    noise, adam, grad = Noise.of_batch(0, len(x)), step.optimizer, x - x.mean()
    state = adam.init(x)
    return {
        "forward pass": passes(net, x, 0, 1),
        "forward pass and input gradient": passes(net, x, 1),
        "noise": lambda: (noise.level(step.sigma, 0, x), noise.eps_1(0, x)),
        "Adam": lambda: adam.step(1, step.lr, x, grad, *state),
    }


def against_authors(args: argparse.Namespace, rows: resumed) -> None:
    """Our whole call, its checks and noise included, over their loop with torch's own noise."""
    module, denoiser = authors.load(args.authors), pretrained.denoiser(args.name)
    for batch, steps, variant in product(args.batches, args.steps, SETTINGS):
        x = images(batch, channels=denoiser.channels)
        purifier = ScoreOpt(denoiser, **SETTINGS[variant], steps=steps)
        ours = switched(purifier, "eager", "compiled")
        compare(
            rows, {"batch": batch, "steps": steps, "variant": variant}, calls(ours, x),
            ("authors", authors.loop(module, purifier, 2 * x - 1)), _rounds(args, batch),
            lambda ours=ours, x=x: {
                "largest difference": {
                    name: short(authors.largest_difference(module, way, 2 * x - 1))
                    for name, way in ours.items()
                },
                "in float64, of 8 images": short(authors.largest_difference(
                    module, ours["eager"], 2 * x[:8] - 1, torch.float64
                )),
            },
        )  # fmt: skip


def gradients(args: argparse.Namespace, rows: resumed) -> None:
    """A forward and a backward pass in each mode, over the same steps recorded by autograd."""
    denoiser = pretrained.denoiser(args.name)
    for batch, steps, variant in product(args.batches, args.steps, SETTINGS):
        x = images(batch, channels=denoiser.channels)
        purifier = ScoreOpt(denoiser, **SETTINGS[variant], steps=steps)
        naive = partial(naive_gradient, purifier, x)
        ways = {
            name: partial(gradient_of, purifier.replace(gradient=mode), x)
            for name, mode in modes().items()
        }
        compare(
            rows, {"batch": batch, "steps": steps, "variant": variant}, ways, ("naive", naive),
            args.rounds,
            lambda purifier=purifier, x=x: {"difference of exact": in_float64(purifier, x)},
        )  # fmt: skip


def in_float64(purifier: ScoreOpt, x: Tensor) -> float:
    """How far the exact gradient is from the naive one, over its length.

    In float32 both are mostly rounding: Adam's derivative is a difference of large numbers.
    """
    x, denoiser = x.double(), copy.deepcopy(purifier.denoiser).double()
    exact = type(purifier)(denoiser, purifier.settings, gradient="exact")
    naive = naive_gradient(exact, x)
    return short(((gradient_of(exact, x) - naive).norm() / naive.norm()).item())


def sequential(args: argparse.Namespace, rows: resumed) -> None:
    """Seconds against steps, as in Table 6, and ScoreOpt-N at 5 steps over DiffPure at 100."""
    denoiser = pretrained.denoiser(args.name)
    (batch,) = args.batches
    x = images(batch, channels=denoiser.channels)

    def at(steps: int) -> dict[str, Way]:
        diffpure = DiffPure(denoiser, sigma=0.34, steps=steps)
        ours = {f"ScoreOpt-{v}": ScoreOpt(denoiser, **SETTINGS[v], steps=steps) for v in SETTINGS}
        return calls(ours | {"DiffPure": diffpure}, x)

    for steps in args.steps:
        ours = at(steps)
        diffpure = ours.pop("DiffPure")
        compare(rows, {"batch": batch, "steps": steps}, ours, ("DiffPure", diffpure), args.rounds)
    few, many = min(args.steps, key=lambda steps: abs(steps - 5)), max(args.steps)
    key = {"batch": batch, "steps of ScoreOpt-N": few, "steps of DiffPure": many}
    ours, diffpure = at(few)["ScoreOpt-N"], at(many)["DiffPure"]
    compare(rows, key, {"ScoreOpt-N": ours}, ("DiffPure", diffpure), args.rounds)
    timed = [row for row in rows.rows if "steps" in row]
    for name in timed[0]["seconds"]:
        key = {"milliseconds an image": name}
        if not rows.has(key):
            ms = [1000 * row["seconds"][name]["value"] / batch for row in timed]
            rows.add(key | slope([row["steps"] for row in timed], ms))


def scaling(args: argparse.Namespace, rows: resumed) -> None:
    """Seconds against images, steps and pixels, each with the other two held, and exponents."""
    denoiser = pretrained.denoiser(args.name)
    middle = min(args.steps, key=lambda steps: abs(steps - 5))
    few, fewer = (min(count, max(args.batches)) for count in (8, 4))
    cells = {
        "images": [(count, count, middle, min(args.pixels)) for count in args.batches],
        "steps": [(count, few, count, min(args.pixels)) for count in args.steps],
        "pixels": [(side**2, fewer, middle, side) for side in args.pixels],
    }
    for variant, (over, grid) in product(SETTINGS, cells.items()):
        for value, batch, steps, side in grid:
            purifier = ScoreOpt(denoiser, **SETTINGS[variant], steps=steps)
            x = images(batch, side, denoiser.channels)
            compare(
                rows, {"variant": variant, "against": over, "at": value, "batch": batch},
                calls({"ScoreOpt": purifier}, x), ("bare network", passes_of(purifier, x)),
                _rounds(args, batch),
            )  # fmt: skip
        key: dict[str, Any] = {"variant": variant, "exponent of": over}
        if not rows.has(key):
            timed = [r for r in rows.rows if r.get("against") == over and r["variant"] == variant]
            for name in timed[0]["seconds"]:
                seconds = [row["seconds"][name]["value"] for row in timed]
                key[name] = exponent([row["at"] for row in timed], seconds)
            rows.add(key)


def _rounds(args: argparse.Namespace, batch: int) -> int:
    """More of a single image, which takes a moment and whose time varies more."""
    return args.rounds if batch > 1 else 8 * args.rounds


PARTS: dict[str, Callable[[argparse.Namespace, resumed], None]] = {
    "overhead": overhead,
    "authors": against_authors,
    "gradients": gradients,
    "sequential": sequential,
    "attacks": attacks,
    "scaling": scaling,
    "paper": paper,
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--authors", type=Path, help="a clone of zzzhangboya/ScoreOpt")
    parser.add_argument("--name", default="cifar10-tiny", help="of the shipped networks")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--keep-freed-memory", action="store_true", help="to another result file")
    add_sizes(parser, "batches", "steps", "pixels")
    args = parser.parse_args(arguments)
    if args.part == "authors" and args.authors is None:
        parser.error("authors needs --authors, a clone of zzzhangboya/ScoreOpt")
    fill_sizes(args, SIZES[args.part])
    torch.set_num_threads(1)
    about = {"weights": weights(args.name), "threads": 1, "networks": args.name}
    name = f"speed_{args.part}"
    if args.keep_freed_memory:
        if not keep_freed_memory():
            parser.error("freed memory can be kept under glibc alone")
        name += "_kept"
    rows = resumed(name, **about)
    PARTS[args.part](args, rows)


if __name__ == "__main__":
    main()
