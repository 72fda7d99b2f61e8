"""The memory that an evaluation of ImageNet's number of images takes, and how soon it begins.

    python -m benchmarks.speed.many_images
    python -m benchmarks.speed.many_images --files --images 50000

Synthetic images of 224 x 224, a mapped ``.npy`` file, judged once without an attack by a network
that costs nothing, in two workers: what is left is the evaluation's own. With ``--files``, how long
a folder of JPEG files of several sizes takes to be opened and told from others, and again.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image

from benchmarks.common.results_file import write
from benchmarks.speed.record import ONE, Threshold
from scoreopt_defense import data
from scoreopt_defense.evaluation import evaluate
from scoreopt_defense.evaluation.plan import Unit
from scoreopt_defense.evaluation.run.progress import Progress

SIDE = 224


def written(folder: Path, count: int) -> Path:
    """So many images, mostly black, and their labels."""
    shape = count, SIDE, SIDE, 3
    pixels = np.lib.format.open_memmap(folder / "x.npy", "w+", np.uint8, shape)
    pixels[:, 0, 0, 0] = np.arange(count) % 256
    pixels.flush()
    np.save(folder / "labels.npy", np.zeros(count, dtype=np.int64))
    return folder / "x.npy"


def jpeg_files(folder: Path, count: int) -> Path:
    """So many JPEG files of ImageNet's usual sizes, each another one, in 1,000 classes."""
    generator, made = np.random.default_rng(0), []
    for width, height in ((500, 375), (375, 500), (500, 333), (640, 480), (400, 300)):
        coarse = generator.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
        large = np.asarray(
            Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        )
        noisy = np.clip(large + generator.normal(0, 12, large.shape), 0, 255).astype(np.uint8)
        stream = BytesIO()
        Image.fromarray(noisy).save(stream, "JPEG", quality=75)
        made.append(stream.getvalue())
    for place in range(count):
        within = folder / f"n{place % 1000:08d}"
        within.mkdir(parents=True, exist_ok=True)
        start, rest = made[place % len(made)][:2], made[place % len(made)][2:]
        comment = b"\xff\xfe\x00\x0a" + f"{place:08d}".encode()
        (within / f"{place:08d}.JPEG").write_bytes(start + comment + rest)
    return folder


def megabytes(folder: Path, pattern: str = "*") -> float:
    """Of the files in a folder and below."""
    return sum(file.stat().st_size for file in folder.rglob(pattern) if file.is_file()) / 1e6


def starts(folder: Path, count: int) -> dict[str, Any]:
    """Seconds until files are known, the first time and the second."""
    jpeg_files(folder / "images", count)
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    taken = []
    for _ in range(2):
        started, busy = time.perf_counter(), time.process_time()
        source = data.source(folder / "images", preprocessing=data.Preprocessing(256, 224))
        source.digests()
        taken.append((time.perf_counter() - started, time.process_time() - busy))
    (first, first_busy), (second, second_busy) = taken
    return {
        "files": count,
        "MB": round(megabytes(folder / "images")),
        "first start, s": round(first, 1),
        "of the processor": round(first_busy, 1),
        "second start, s": round(second, 1),
        "of the processor again": round(second_busy, 1),
        "cache, MB": round(megabytes(folder / "cache", "*.json"), 1),
    }


class Peaks(threading.Thread):
    """The most memory that a process, by default this, and its children had.

    Args:
        kind: ``"rss"`` or ``"pss"``, as psutil has it; or ``"own"``, what no other process and no
            file has, which does not depend on who else has the same libraries.
    """

    def __init__(self, kind: str = "rss", process: psutil.Process | None = None) -> None:
        super().__init__(daemon=True)
        self.kind, self.process = kind, process or psutil.Process()
        self.me, self.worker, self.stopped = 0, 0, False
        self.before = self._of(self.process)

    def _of(self, process: psutil.Process) -> int:
        if self.kind == "pss":
            return process.memory_full_info().pss
        memory = process.memory_info()
        return memory.rss - (memory.shared if self.kind == "own" else 0)

    def run(self) -> None:
        while not self.stopped:
            try:
                self.me = max(self.me, self._of(self.process))
                for child in self.process.children(recursive=True):
                    self.worker = max(self.worker, self._of(child))
            except psutil.Error:  # one has ended
                pass
            time.sleep(0.05)


class First(Progress):
    """When the first unit was handed out."""

    def __init__(self) -> None:
        self.began = 0.0

    def begin(self, unit: Unit) -> None:
        self.began = self.began or time.perf_counter()


def measured(folder: Path, count: int, workers: int) -> dict[str, Any]:
    source = data.source(written(folder, count))
    peaks, first, started = Peaks(), First(), time.perf_counter()
    peaks.start()
    result = evaluate(
        {"it": Threshold(0.41).eval()}, source, {}, out=folder / "run", judging=ONE, checks=False,
        workers=workers, progress=first,
    )  # fmt: skip
    result.store.close()
    peaks.stopped = True
    return {
        "images": count,
        "coordinator, MB": round(peaks.me / 1e6),
        "of which before, MB": round(peaks.before / 1e6),
        "worker, MB": round(peaks.worker / 1e6),
        "seconds to the first unit": round(first.began - started, 1),
        "seconds": round(time.perf_counter() - started, 1),
        "record, MB": round(megabytes(folder / "run"), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[500, 5_000, 50_000])
    parser.add_argument("--files", action="store_true", help="of JPEG files, how soon it begins")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for count in args.images:
        with tempfile.TemporaryDirectory() as folder:
            found = starts if args.files else partial(measured, workers=args.workers)
            rows.append(found(Path(folder), count))
        print(rows[-1], flush=True)
    if args.files:
        write("many_files", rows=rows)
    else:
        write("many_images", workers=args.workers, side=SIDE, rows=rows)


if __name__ == "__main__":
    main()
