"""The memory that workers take for a large network, and the time in which they get it.

    python -m benchmarks.speed.large_networks

A network of 200 MB, and none, in 2 and 4 worker processes that judge a few images: the most memory
that a process had to itself, and with its share of what several map (PSS).
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from torch import nn

from benchmarks.common.results_file import write
from benchmarks.speed.many_images import First, Peaks
from benchmarks.speed.record import images
from scoreopt_defense.evaluation import Judging, evaluate

WIDTH = 1024  # a layer has 4.2 MB


def network(megabytes: int) -> nn.Module:
    layers = [nn.Linear(WIDTH, WIDTH) for _ in range(round(megabytes * 1e6 / 4 / WIDTH**2))]
    return nn.Sequential(nn.Flatten(), nn.Linear(16, WIDTH), *layers, nn.Linear(WIDTH, 2)).eval()


def measured(megabytes: int, workers: int) -> dict[str, Any]:
    model = network(megabytes)
    own, pss, first, started = Peaks("own"), Peaks("pss"), First(), time.perf_counter()
    own.start(), pss.start()
    evaluate(
        {"it": model}, images(64), {}, judging=Judging(purifications=20), checks=False, batch=8,
        workers=workers, progress=first,
    ).store.close()  # fmt: skip
    own.stopped = pss.stopped = True
    return {
        "network, MB": megabytes,
        "workers": workers,
        "coordinator, own MB": round(own.me / 1e6),
        "coordinator, PSS MB": round(pss.me / 1e6),
        "worker, own MB": round(own.worker / 1e6),
        "worker, PSS MB": round(pss.worker / 1e6),
        "seconds to the first unit": round(first.began - started, 1),
        "seconds": round(time.perf_counter() - started, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, nargs="+", default=[0, 200])
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4])
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for megabytes in args.megabytes:
        for workers in args.workers:
            rows.append(measured(megabytes, workers))
            print(rows[-1], flush=True)
    write("large_networks", rows=rows)


if __name__ == "__main__":
    main()
