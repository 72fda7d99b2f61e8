"""What ScoreOpt costs in memory, beside the authors' code and autograd.

    python -m benchmarks.speed.memory authors --authors path/to/a/clone/of/zzzhangboya/ScoreOpt
    python -m benchmarks.speed.memory gradients        # against steps; or max_batch, jacobian
    python -m benchmarks.speed.memory tensors          # jacobian's, without a convolution's scratch

Each figure is of a process of its own, and the median of several: the most memory that it held,
less what it had held before, when its libraries were loaded and its network had run once. One
thread. Those of ``tensors`` are the most bytes that the call's tensors had at once, the same in any
run: what a GPU's allocator would count, and no scratch space of a CPU's convolutions.
Each part writes its own result file and goes on where it was if it is stopped and run again.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.results_file import resumed, weights
from benchmarks.common.timing import (
    SETTINGS,
    add_sizes,
    denoising,
    fill_sizes,
    images,
    passes,
    switched,
)
from benchmarks.speed import authors
from benchmarks.speed.differentiated import gradient_of, modes, naive_gradient
from scoreopt_defense import ScoreOpt, pretrained
from scoreopt_defense._memory import Alive

#: What is measured: arguments of :func:`run`, and how.
Cell = dict[str, Any]

#: Sizes of each part, as in speed.py.
SIZES: dict[str, dict[str, tuple[int, ...]]] = {
    "authors": {"batches": (64,), "steps": (5,)},
    "gradients": {"batches": (16,), "steps": (1, 5, 10, 20)},
    "max_batch": {"batches": (32,), "steps": (2,), "chunks": (4, 8, 16, 32)},
    "jacobian": {"batches": (64,), "steps": (5,)},
    "tensors": {"batches": (64,), "steps": (5,)},
}


def cells(args: argparse.Namespace) -> Iterator[Cell]:
    """The cells of a part; what differs among them in ``how`` is compared."""
    for variant, batch, steps in product(SETTINGS, args.batches, args.steps):
        cell = {"variant": variant, "batch": batch, "steps": steps}
        known = switched(ScoreOpt(pretrained.denoiser(args.name), **SETTINGS[variant]),
                         "eager", "compiled", "without the Jacobian")  # fmt: skip
        with_and_without = [{"how": how} for how in ("eager", "without the Jacobian")]
        hows: Iterable[Cell] = {
            "authors": [{"how": how} for how in ("eager", "compiled", "authors")],
            "jacobian": with_and_without,
            "tensors": with_and_without,
            "gradients": [{"how": mode} for mode in (*modes(), "naive") if mode != "one-shot"],
            "max_batch": [
                {"how": how, "max_batch": chunk}
                for how, chunk in product(("eager", "exact"), args.chunks or ())
            ],
        }[args.part]
        for how in hows:
            if how["how"] in {*known, *modes(), "naive", "authors"}:
                yield cell | how


def measured(cell: Cell, args: argparse.Namespace) -> list[float]:
    """Megabytes, in so many fresh processes; of tensors once, here."""
    if args.part == "tensors":
        return [most_alive(prepare(cell, args))]
    command = [sys.executable, "-m", "benchmarks.speed.memory", "one", "--name", args.name]
    command += ["--cell", json.dumps(cell)]
    if args.authors is not None:
        command += ["--authors", str(args.authors)]
    return [
        float(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
        for _ in range(args.rounds)
    ]


def peak(prepared: Callable[[], Any]) -> float:
    """Megabytes that this process held at most during the call, above those it had held before."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    prepared()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (peak - before) / (1024 if sys.platform == "linux" else 1024**2)  # kB there, bytes here


def most_alive(prepared: Callable[[], Any]) -> float:
    """Megabytes that the tensors made during the call had at most at once."""
    with Alive() as alive:
        prepared()
    return alive.most / 1024**2


def prepare(cell: Cell, args: argparse.Namespace) -> Callable[[], Any]:
    """What a cell carries out, after its network has run once."""
    variant, how = cell["variant"], cell["how"]
    denoiser = pretrained.denoiser(args.name)
    x = images(cell["batch"], channels=denoiser.channels)
    passes(denoising(denoiser.net), x[:1], 1)()
    purifier = ScoreOpt(
        denoiser, **SETTINGS[variant], steps=cell["steps"], max_batch=cell.get("max_batch")
    )
    if how == "authors":
        return authors.loop(authors.load(args.authors), purifier, 2 * x - 1)
    if how == "naive":
        return lambda: naive_gradient(purifier, x)
    if how in modes():
        return lambda: gradient_of(purifier.replace(gradient=modes()[how]), x)
    switch = switched(purifier, how)[how]
    if how == "compiled":
        switch(x, seed=0)  # its compiler holds more memory than it does
    return lambda: switch(x, seed=0)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=[*SIZES, "one"])
    parser.add_argument("--authors", type=Path, help="a clone of zzzhangboya/ScoreOpt")
    parser.add_argument("--name", default="cifar10-tiny", help="of the shipped networks")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each figure")
    parser.add_argument("--cell", type=json.loads, help="of the part 'one', in a fresh process")
    add_sizes(parser, "batches", "steps", "chunks")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if args.part == "one":
        print(peak(prepare(args.cell, args)))
        return
    if args.part == "authors" and args.authors is None:
        parser.error("authors needs --authors, a clone of zzzhangboya/ScoreOpt")
    fill_sizes(args, SIZES[args.part])
    about = {"weights": weights(args.name), "threads": 1, "networks": args.name}
    rows = resumed(f"memory_{args.part}", **about)
    for cell in cells(args):
        if not rows.has(cell):
            found = measured(cell, args)
            rows.add(cell | {
                "megabytes": round(statistics.median(found)),
                "runs": [round(value) for value in found],
            })  # fmt: skip
            print(rows.rows[-1])


if __name__ == "__main__":
    main()
