"""The time of the noise generator, beside torch's own and NumPy's counter-based one.

    python -m benchmarks.speed.noise

One thread; each row's ways are timed in turn, round by round, and its ratios are of the medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from benchmarks.common.results_file import write
from scoreopt_defense.noise import Noise

SHAPES = ((1, 3, 32, 32), (64, 3, 32, 32), (512, 3, 32, 32), (16, 3, 256, 256))
ROUNDS = 50


def philox_by_image(shape: tuple[int, ...]) -> Tensor:
    """NumPy's Philox, an image at a time on the CPU: what a counter-based generator costs there."""
    values = np.empty(shape, dtype=np.float32)
    for i, image in enumerate(values):
        generator = np.random.Generator(np.random.Philox(key=np.array([0, i], dtype=np.uint64)))
        generator.standard_normal(dtype=np.float32, out=image)
    return torch.from_numpy(values)


def milliseconds(ways: dict[str, Callable[[], Tensor]]) -> dict[str, float]:
    """The median time of each, after two calls that are not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(ROUNDS + 2):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if i > 1:
                seconds[name].append(time.perf_counter() - started)
    return {name: 1000 * statistics.median(times) for name, times in seconds.items()}


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    torch.set_num_threads(1)
    compiled = torch.compile(lambda noise, like: noise.eps_1(0, like), fullgraph=True)
    rows = []
    for shape in SHAPES:
        like, noise = torch.empty(shape), Noise.of_batch(0, shape[0])
        found = milliseconds({
            "eager": partial(noise.eps_1, 0, like),
            "compiled": partial(compiled, noise, like),
            "torch.randn": partial(torch.randn, shape),
            "NumPy's Philox, image by image": partial(philox_by_image, shape),
        })  # fmt: skip
        row = {"shape": shape, "ms": {name: round(value, 3) for name, value in found.items()},
               "eager / Philox": round(found["eager"] / found["NumPy's Philox, image by image"], 2),
               "compiled / randn": round(found["compiled"] / found["torch.randn"], 2)}  # fmt: skip
        print(row)
        rows.append(row)
    write("noise", threads=1, rounds=ROUNDS, rows=rows)


if __name__ == "__main__":
    main()
