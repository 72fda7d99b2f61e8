"""Everything that only a CUDA device can show, in one command of at most eight minutes.

    python -m benchmarks.speed.gpu              # on a machine with one, after pip install '.[test]'
    python -m benchmarks.speed.gpu --device cpu # that this file works: small, writes nothing

The tests that need a device; the noise's bits beside the CPU's; what a step copies from and to the
host; times of a purification beside the bare network's passes, on the wall's clock, the device
waited for; memory of the exact gradient; an evaluation by one process and by two on one device.

Results go to ``results/gpu.json`` row by row, with the device's name; a part that fails is a row
that says so, and the exit code is 1. What there was no time for is printed: run it again, and it
goes on there.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.common.results_file import resumed, weights
from benchmarks.common.timing import (
    SETTINGS,
    Way,
    add_sizes,
    calls,
    compare,
    fill_sizes,
    images,
    switched,
)
from benchmarks.speed.differentiated import gradient_of
from benchmarks.speed.memory import most_alive
from benchmarks.speed.run import passes_of
from scoreopt_defense import DefendedModel, ScoreOpt, attacks, pretrained
from scoreopt_defense.evaluation import Judging, evaluate
from scoreopt_defense.noise import Noise

TESTS = Path(__file__).parents[2] / "tests"
#: Images of the parts, and steps of the exact gradient's memory; on the CPU, where times say
#: nothing of a device's.
SIZES: dict[str, dict[str, tuple[int, ...]]] = {
    "cuda": {"batches": (64, 1, 512), "steps": (1, 20), "images": (64,)},
    "cpu": {"batches": (2, 1), "steps": (1, 2), "images": (2,)},
}
#: Of a profile: what has the host wait for the device, or the device for the host.
WAITS = (
    "Memcpy HtoD", "Memcpy DtoH", "cudaDeviceSynchronize", "cudaEventSynchronize",
    "cudaStreamSynchronize", "aten::_local_scalar_dense",
)  # fmt: skip
WORKERS = (1, 2)  # processes on one device
_SECONDS_TO_TEST = 180  # at most
_SECONDS_TO_COMPILE = 120  # of one size in both ways; none is begun later


class printed(resumed):
    """Rows of a run that only shows that this file works: nothing is written."""

    def __init__(self) -> None:
        self.rows = []

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)


def guarded_tests(args: argparse.Namespace) -> dict[str, Any]:
    """Those that are skipped without a device, the known bits of the noise among them."""
    files = [file for file in sorted(TESTS.rglob("test_*.py")) if "mark.cuda" in file.read_text()]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "cuda"]
    if args.device == "cpu":  # which has none to run: they are found
        command.append("--collect-only")
    run = subprocess.run(
        [*command, *files],
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        timeout=_SECONDS_TO_TEST,
    )
    if run.returncode:
        raise RuntimeError(f"pytest ended with {run.returncode}: {run.stdout[-4000:]}{run.stderr}")
    return {"files": len(files), "pytest": run.stdout.strip().splitlines()[-1]}


def noise_bits(args: argparse.Namespace) -> dict[str, Any]:
    """Numbers whose bits are not those of the CPU."""
    made = []
    for device in ("cpu", args.device):
        like = torch.empty(args.images, 3, 32, 32, device=device)
        noise = Noise.of_batch(2**63 + 5, len(like), device=device)
        made.append(noise.eps_1(7, like).cpu().view(torch.int32))
        made.append(noise.level((0.1, 0.3), 7, like).cpu().view(torch.int32))
    wrong = sum(int((a != b).sum()) for a, b in zip(made[:2], made[2:], strict=True))
    return {"numbers": made[0].numel(), "other bits than the CPU's": wrong}


def host_free_step(args: argparse.Namespace) -> dict[str, Any]:
    """Copies and waits of three steps more: none on a device, if all is well.

    Of one image, whose noise is made for several steps at once, and of a batch. On the CPU a
    denoiser reads each step's noise level, to check it.
    """
    return {
        f"ScoreOpt-{variant}, {batch} images": _of_more_steps(args, variant, batch)
        for variant in SETTINGS
        for batch in (1, args.images)
    }


def _of_more_steps(args: argparse.Namespace, variant: str, batch: int) -> dict[str, int]:
    counts = []
    for steps in (2, 5):
        purifier, x = _purifier(args, variant, steps=steps), _images(args, batch)
        noise = Noise.of_batch(0, batch, device=args.device)
        purifier.purify(2 * x - 1, noise)  # libraries choose their kernels in the first call
        anew = noise[:]  # of which nothing is made yet
        counts.append(_waits(partial(purifier.purify, 2 * x - 1, anew)))
    few, more = counts
    return dict(more - few)


def _waits(call: Way) -> Counter[str]:
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiled:
        call()
    found: Counter[str] = Counter()
    for event in profiled.events() or ():
        found.update(kind for kind in WAITS if event.name.startswith(kind))
    return found


def exact_memory(args: argparse.Namespace) -> dict[str, Any]:
    """Megabytes of the exact gradient's tensors, at few steps and at many."""
    x, found = _images(args, args.images), {}
    for variant in SETTINGS:
        for steps in args.steps:
            purifier = _purifier(args, variant, steps=steps, gradient="exact")
            gradient_of(purifier, x)
            found[f"ScoreOpt-{variant}, {steps} steps"] = round(
                _most_allocated(args, partial(gradient_of, purifier, x))
            )
    return {"images": args.images, "megabytes": found}


def _most_allocated(args: argparse.Namespace, call: Way) -> float:
    if args.device == "cpu":
        return most_alive(call)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def evaluation(args: argparse.Namespace) -> dict[str, Any]:
    """A small one, by this process and by two that share the device."""
    x, y = _images(args, 8).cpu(), torch.arange(8) % 10
    model = DefendedModel(pretrained.classifier(args.name), _purifier(args, "N", steps=1))
    attack = attacks.attack("pgd-eot-linf", steps=2, eot=2)
    seconds, shares = [], []
    for workers in WORKERS:
        started = time.perf_counter()
        result = evaluate(
            model.to(args.device), (x, y), {"PGD": attack},
            judging=Judging(purifications=2), batch=4, checks=False, workers=workers,
        )  # fmt: skip
        if result.failures:
            raise RuntimeError(f"units failed: {result.failures}")
        seconds.append(round(time.perf_counter() - started, 1))
        shares.append([result.shares("DefendedModel", name) for name in ("clean", "PGD")])
    return {"workers": WORKERS, "seconds": seconds, "same figures": shares[0] == shares[1]}


#: Each once, in this order: before times, which take what is left.
PARTS: Mapping[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "tests": guarded_tests,
    "noise": noise_bits,
    "host-free step": host_free_step,
    "exact memory": exact_memory,
    "evaluation": evaluation,
}


def times(args: argparse.Namespace, rows: resumed, compiled: bool) -> None:
    """Whole calls over the passes of the bare network in float32, the device waited for."""
    ways = ("compiled", "CUDA graphs") if compiled else ("eager", "bfloat16", "channels last")
    for batch in args.batches:
        for variant in SETTINGS:
            if compiled and args.until - time.monotonic() < _SECONDS_TO_COMPILE:
                print(f"no time for {ways} of ScoreOpt-{variant} at {batch} images")
                continue
            purifier, x = _purifier(args, variant, steps=5), _images(args, batch)
            compare(
                rows, {"part": "times", "variant": variant, "batch": batch, "compiled": compiled},
                {name: _waited_for(way) for name, way in
                 calls(switched(purifier, *ways), x).items()},
                ("bare network", _waited_for(passes_of(purifier, x))), args.rounds,
                clock=time.perf_counter,
            )  # fmt: skip


def _waited_for(way: Way) -> Way:
    def call() -> None:
        way()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return call


def _purifier(args: argparse.Namespace, variant: str, **settings: Any) -> ScoreOpt:
    return ScoreOpt(pretrained.denoiser(args.name), **SETTINGS[variant], **settings).to(args.device)


def _images(args: argparse.Namespace, count: int) -> Tensor:
    channels = pretrained.denoiser(args.name).channels
    return images(count, 28 if channels == 1 else 32, channels).to(args.device)


def carry_out(args: argparse.Namespace, rows: resumed) -> int:
    """Each part, and the exit code."""
    failed = False
    timed = {f"times, compiled {flag}": flag for flag in (False, True)}
    for name in [*PARTS, *timed]:
        rows.rows[:] = [row for row in rows.rows if row.get("failed") != name]  # it is tried again
        try:
            if name in timed:
                times(args, rows, timed[name])
            elif not rows.has({"part": name}):
                rows.add({"part": name, **PARTS[name](args)})
                print(rows.rows[-1])
        except Exception as error:
            failed = True
            rows.add({"failed": name, "error": f"{type(error).__name__}: {error}"})
            print(rows.rows[-1])
    return int(failed)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=list(SIZES), default="cuda")
    parser.add_argument("--name", default="cifar10-tiny", help="of the shipped networks")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--minutes", type=float, default=8, help="after which nothing is begun")
    add_sizes(parser, "batches", "steps", "images")
    args = parser.parse_args(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --device cpu shows that this command works")
    fill_sizes(args, SIZES[args.device])
    (args.images,) = args.images
    args.until = time.monotonic() + 60 * args.minutes
    if args.device == "cpu":
        return carry_out(args, printed())
    about = {
        "device": torch.cuda.get_device_name(),
        "cuda": torch.version.cuda,
        "tf32 convolutions": torch.backends.cudnn.allow_tf32,
        "weights": weights(args.name),
        "networks": args.name,
    }
    rows = resumed("gpu", **about)
    return carry_out(args, rows)


if __name__ == "__main__":
    sys.exit(main())
