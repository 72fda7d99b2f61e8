"""The part of speed.py about attacks: EOT in one pass, and a whole evaluation's throughput."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common.results_file import resumed
from benchmarks.common.timing import SETTINGS, compare, denoising, images, passes
from scoreopt_defense import EOT, DefendedModel, ScoreOpt, pretrained
from scoreopt_defense.evaluation import Judging, evaluate

__all__ = ["attacks", "watched"]

REPLICATES = 20  # of an EOT gradient: the paper's


def attacks(args: argparse.Namespace, rows: resumed) -> None:
    """An EOT gradient in one pass over one replicate by replicate, and ``evaluate``'s wall time."""
    import torchattacks

    denoiser, classifier = pretrained.denoiser(args.name), pretrained.classifier(args.name)
    for batch, steps in product(args.batches, args.steps):
        x, y = images(batch, channels=denoiser.channels), torch.arange(batch) % 10
        model = DefendedModel(classifier, ScoreOpt(denoiser, **SETTINGS["N"], steps=steps))
        budget = {"eps": 8 / 255, "alpha": 2 / 255, "steps": 1, "random_start": False}
        ours = torchattacks.PGD(EOT(model, REPLICATES), **budget)
        loop = torchattacks.EOTPGD(model, eot_iter=REPLICATES, **budget)
        about = {"batch": batch, "steps": steps}
        compare(
            rows, about | {"replicates": REPLICATES}, {"one pass": partial(ours, x, y)},
            ("EOTPGD", partial(loop, x, y)), args.rounds,
            lambda ours=ours, loop=loop, x=x, y=y, net=denoiser.net: {"passes of an image": {
                "one pass": images_through(net, partial(ours, x, y)),
                "EOTPGD": images_through(net, partial(loop, x, y)),
            }},
        )  # fmt: skip
        _throughput(rows, about | {"evaluation": "PGD+EOT"}, model, x, y, args.rounds)


def images_through(net: nn.Module, run: Callable[[], Any]) -> int:
    with watched(net=net) as seen:
        run()
    return sum(count for _, count, _ in seen)


def _throughput(
    rows: resumed, key: dict[str, Any], model: DefendedModel, x: Tensor, y: Tensor, rounds: int
) -> None:
    """A run of a small plan, over the same passes of the bare networks, made again one by one."""
    from scoreopt_defense.attacks import PGD

    if rows.has(key):
        return

    def run() -> None:
        budget, judging = PGD(steps=2, eot=4), Judging(purifications=8)
        evaluate(
            model, (x, y), {"PGD+EOT": budget}, batch=len(x), judging=judging, checks=False
        ).store.close()

    denoiser = model.purifier.denoiser
    with watched(denoiser=denoiser.net, classifier=model.classifier) as seen:
        run()
    networks = {"denoiser": denoising(denoiser.net), "classifier": model.classifier}
    again = [
        passes(networks[name], _of_length(x, count), int(graded), int(not graded))
        for name, count, graded in seen
    ]
    compare(
        rows, key, {"evaluate": run}, ("bare networks", lambda: [call() for call in again]), rounds,
        lambda: {"purifications": sum(count for name, count, _ in seen if name == "classifier")},
        time.perf_counter,  # a run writes files too
    )  # fmt: skip


def _of_length(x: Tensor, count: int) -> Tensor:
    return x.repeat(-(-count // len(x)), 1, 1, 1)[:count]


@contextmanager
def watched(**modules: nn.Module) -> Iterator[list[tuple[str, int, bool]]]:
    """Each call of these modules: which, of how many images, with a gradient."""
    seen: list[tuple[str, int, bool]] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            graded = torch.is_grad_enabled() and inputs[0].requires_grad
            seen.append((name, len(inputs[0]), graded))

        return hook

    hooks = [module.register_forward_pre_hook(watch(name)) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
