"""Ways to the same thing timed in turn, and what is said of their times."""

from __future__ import annotations

import math
import statistics
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common.results_file import resumed
from scoreopt_defense import Purifier, ScoreOpt

Way = Callable[[], Any]
Name = TypeVar("Name")

#: Noise levels and learning rates that the benchmarks of speed and memory share.
SETTINGS: dict[str, dict[str, Any]] = {
    "O": {"variant": "O", "sigma": (0.15, 0.35), "lr": 0.02},
    "N": {"variant": "N", "sigma": 0.25, "lr": 0.02},
}
#: Ways of carrying ScoreOpt out, by the settings that make them.
SWITCHES: dict[str, dict[str, Any]] = {
    "eager": {},
    "compiled": {"compile": True},
    "CUDA graphs": {"compile": "reduce-overhead"},
    "bfloat16": {"autocast": "bfloat16"},
    "channels last": {"channels_last": True},
    "without the Jacobian": {"jacobian": False},
    "stopped early": {"tol": 0.01},
}


def switched(purifier: ScoreOpt, *names: str) -> dict[str, ScoreOpt]:
    """The purifier in each of these ways, of those that it allows.

    Only ScoreOpt-N stops early, and the SR loss needs the Jacobian.
    """
    refused = set()
    if purifier.variant == "O":
        refused.add("stopped early")
    if getattr(purifier.loss, "compares", False):
        refused.add("without the Jacobian")
    return {name: purifier.replace(**SWITCHES[name]) for name in names if name not in refused}


def calls(purifiers: Mapping[str, Purifier], x: Tensor) -> dict[str, Way]:
    return {name: partial(purifier, x, seed=0) for name, purifier in purifiers.items()}


def add_sizes(parser: ArgumentParser, *names: str) -> None:
    """Arguments for the sizes that a part of a benchmark is measured at."""
    for name in names:
        parser.add_argument(f"--{name}", type=int, nargs="+", help="by default the part's own")


def fill_sizes(args: Namespace, sizes: Mapping[str, tuple[int, ...]]) -> None:
    """Those that were not given are the part's own."""
    for name, values in sizes.items():
        setattr(args, name, getattr(args, name) or values)


def images(count: int, size: int = 32, channels: int | None = 3) -> Tensor:
    """Smooth images in [0, 1], the same each time: times do not depend on what they show."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, channels or 3, 4, 4, generator=generator)
    return F.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)


def denoising(net: nn.Module) -> Callable[[Tensor], Tensor]:
    """The bare network as a function of noised images alone."""
    return lambda x_t: net(x_t, x_t.new_full((len(x_t),), 0.25))


def passes(call: Callable[[Tensor], Tensor], x: Tensor, graded: int, plain: int = 0) -> Way:
    """So many passes of a network with the gradient to its input, and so many without."""

    def run() -> None:
        for _ in range(graded):
            leaf = x.detach().requires_grad_()
            found = call(leaf)
            torch.autograd.grad(found, leaf, torch.ones_like(found))
        with torch.no_grad():
            for _ in range(plain):
                call(x)

    return run


def in_turn(
    ways: Mapping[Name, Way], rounds: int, clock: Callable[[], float] = time.process_time
) -> dict[Name, list[float]]:
    """Seconds of each call, round by round; a round before them is not counted.

    Each round begins with the next way, so that none always comes after the same other. By default
    they are the processor's: of one thread, those that a quiet machine's clock would show, and time
    that other work took is none of them.
    """
    names = list(ways)
    seconds: dict[Name, list[float]] = {name: [] for name in names}
    for i in range(rounds + 1):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            started = clock()
            ways[name]()
            if i:
                seconds[name].append(clock() - started)
    return seconds


def compare(
    rows: resumed,
    key: dict[str, Any],
    ways: Mapping[str, Way],
    over: tuple[str, Way],
    rounds: int,
    about: Callable[[], dict[str, Any]] = dict,
    clock: Callable[[], float] = time.process_time,
) -> None:
    """Add the row of that key, if it is not there yet: seconds of each way, and ratios.

    Args:
        ways: what is timed.
        over: what their ratios are over, and its name.
        rounds, clock: see :func:`in_turn`.
        about: what else the row says.
    """
    if rows.has(key):
        return
    base, reference = over
    seconds = in_turn({**ways, base: reference}, rounds, clock)
    rows.add(
        key | about() | {
            "rounds": rounds,
            "seconds": {name: median(values) for name, values in seconds.items()},
            "over": base,
            "ratios": {name: ratio(seconds[name], seconds[base]) for name in ways},
        }
    )  # fmt: skip
    print(rows.rows[-1])


def median(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    return _figures(statistics.median(values), values)


def ratio(values: Sequence[float], over: Sequence[float]) -> dict[str, float]:
    """The ratio of the medians, with the quartiles of the rounds' own ratios."""
    value = statistics.median(values) / statistics.median(over)
    return _figures(value, [a / b for a, b in zip(values, over, strict=True)])


def slope(x: Sequence[float], y: Sequence[float]) -> dict[str, Any]:
    """Of the least-squares line through three points or more, with its 95 % interval."""
    from scipy.stats import linregress, t  # takes a second to load

    line = linregress(x, y)
    half = t.ppf(0.975, len(x) - 2) * line.stderr
    ends = {"value": line.slope, "low": line.slope - half, "high": line.slope + half}
    return {"slope": {end: short(v) for end, v in ends.items()}, "intercept": short(line.intercept)}


def exponent(x: Sequence[float], y: Sequence[float]) -> dict[str, Any]:
    """Of the power law that fits, as :func:`slope` of the logarithms."""
    return slope(*([math.log(v) for v in values] for values in (x, y)))["slope"]


def short(value: float) -> float:
    """Four digits."""
    return float(f"{value:.4g}")


def _figures(value: float, values: Sequence[float]) -> dict[str, float]:
    quartiles = statistics.quantiles(values, method="inclusive") if len(values) > 1 else values
    found = {"value": value, "low": quartiles[0], "high": quartiles[-1]}
    return {name: short(figure) for name, figure in found.items()}
