"""What the evaluation itself costs: a unit's share of the coordinator, one more attack, a page.

    python -m benchmarks.speed.record

Units of a stub network, whose own time is taken off; then one more attack on a finished run of four
defences and six attacks, counted; then records of so many judged images, opened and printed, and
their pages; and how all that grows. Seconds are the processor's.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor, nn

from benchmarks.common.results_file import write
from benchmarks.common.timing import exponent
from scoreopt_defense.evaluation import Judging, Result, Store, evaluate
from scoreopt_defense.evaluation.evaluate import materials_of
from scoreopt_defense.evaluation.plan import Plan
from scoreopt_defense.evaluation.record.rows import UnitResult
from scoreopt_defense.evaluation.report import run_page
from scoreopt_defense.evaluation.run.progress import Progress
from scoreopt_defense.evaluation.run.unit import Outcome

ONE = Judging(purifications=1)


class Threshold(nn.Module):
    """Two classes, by an image's mean."""

    def __init__(self, at: float) -> None:
        super().__init__()
        self.at = at

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((1, 2, 3))
        return torch.stack([mean, 2 * self.at - mean], 1)


class Brighter:
    """An attack that costs nothing."""

    norm = "linf"

    def __init__(self, by: float) -> None:
        self.by = self.eps = by

    def run(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return (x + self.by).clamp(0, 1)

    def as_dict(self) -> dict[str, Any]:
        return {"by": self.by}


class Counted(Progress):
    """Counts units, and the memory of this process as they are recorded."""

    def __init__(self) -> None:
        self.units: list[str] = []
        self.seconds = 0.0
        self.megabytes: list[float] = []

    def advance(self, outcome: Outcome) -> None:
        self.units.append(outcome.unit.attack)
        self.seconds += outcome.result.seconds
        if len(self.units) % 1000 == 0:
            self.megabytes.append(psutil.Process().memory_info().rss / 1e6)


def defences(count: int) -> dict[str, nn.Module]:
    return {f"d{k}": Threshold(0.41 + 0.2 * k / count).eval() for k in range(count)}


def images(count: int) -> tuple[Tensor, Tensor]:
    x = torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return x, (x.mean((1, 2, 3)) < 0.5).long()


def units(folder: Path, count: int) -> dict[str, float]:
    """So many units of one image each."""
    attacks = {f"a{k}": Brighter(0.01 * (k + 1)) for k in range(4)}
    seen, cpu, started = Counted(), time.process_time(), time.perf_counter()
    evaluate(
        defences(4), images(count // 20), attacks, out=folder, batch=1, judging=ONE, checks=False,
        progress=seen,
    ).store.close()  # fmt: skip
    own = time.perf_counter() - started - seen.seconds
    return {
        "units": len(seen.units),
        "milliseconds a unit": round(1000 * own / len(seen.units), 3),
        "seconds": round(time.process_time() - cpu, 2),
        "megabytes after 1,000": round(seen.megabytes[0], 1),
        "megabytes at the end": round(seen.megabytes[-1], 1),
    }


def judged(folder: Path, models: int, attacks: int, count: int, *, checks: bool) -> Path:
    """A record of so many defences, attacks and images, judged at random."""
    x, y = images(count)
    tried = {f"a{k}": Brighter(0.005 * (k + 1)) for k in range(attacks)}
    materials = materials_of(defences(models), (x, y), tried, Judging(), checks=checks)
    generator = np.random.default_rng(0)
    with Store(folder, writing=True) as store:
        for unit in store.adopt(Plan.of(materials)).units():
            labels = y[slice(*unit.images)].numpy()
            right = generator.random((unit.size, 8)) < 0.5
            store.add(
                UnitResult(
                    key=unit.key, defence=unit.fingerprint, task=unit.content, trial=unit.trial,
                    first=unit.images[0], images=unit.size, places=np.arange(unit.size),
                    labels=labels, predicted=np.where(right, labels[:, None], 1 - labels[:, None]),
                    lead=np.where(right, 1.0, -1.0) * generator.random((unit.size, 8)),
                )
            )  # fmt: skip
    return folder


def page(folder: Path, models: int, attacks: int, count: int) -> dict[str, Any]:
    """The page of so many defences, attacks and images, with its checks; the best of two."""
    judged(folder, models, attacks, count, checks=True)
    seconds = []
    for _ in range(2):
        cpu = time.process_time()
        with Store(folder) as store:
            size = len(run_page(store))
        seconds.append(time.process_time() - cpu)
    shape = {"defences": models, "attacks": attacks, "images": count}
    return shape | {"seconds": round(min(seconds), 2), "megabytes": round(size / 1e6, 1)}


def grown(rows: list[dict[str, Any]], by: str) -> dict[str, Any]:
    """Rows, and the exponent of their seconds."""
    return {
        "rows": rows,
        "exponent": exponent([row[by] for row in rows], [row["seconds"] for row in rows]),
    }


def growth(folder: Path) -> dict[str, Any]:
    """Seconds against images, attacks and units."""
    of_images = [page(folder / f"i{n}", 2, 4, n) for n in (12_500, 25_000, 50_000)]
    of_attacks = [page(folder / f"a{n}", 10, n, 256) for n in (10, 20, 40)]
    of_units = [units(folder / f"u{n}", n) for n in (5_000, 10_000, 20_000)]
    return {
        "page against images": grown(of_images, "images"),
        "page against attacks": grown(of_attacks, "attacks"),
        "evaluation against units": grown(of_units, "units"),
    }


def one_more(folder: Path) -> dict[str, int]:
    """Units that another attack on a finished run computes."""
    attacks = {f"a{k}": Brighter(0.01 * (k + 1)) for k in range(6)}
    counts = {}
    for name, asked in {"run": attacks, "one more": attacks | {"new": Brighter(0.3)}}.items():
        seen = Counted()
        evaluate(
            defences(4), images(64), asked, out=folder, judging=ONE, checks=False, progress=seen
        ).store.close()
        counts[name] = len(seen.units)
        counts[f"{name}, its own"] = seen.units.count("new")
    return counts


def table(folder: Path, count: int) -> dict[str, float]:
    """Seconds until the table of so many judged images is there."""
    judged(folder, 4, 4, count // 20, checks=False)
    started, cpu = time.perf_counter(), time.process_time()
    with Store(folder) as store:
        str(Result(store))
    return {
        "judged images": count,
        "judgements": 8 * count,
        "seconds": round(time.perf_counter() - started, 2),
        "seconds of the processor": round(time.process_time() - cpu, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1_000_000, help="judged ones, of the table")
    args = parser.parse_args()
    torch.set_num_threads(1)
    run_page(evaluate(defences(2), images(8), {"a": Brighter(0.1)}).store)  # loads what it needs
    with tempfile.TemporaryDirectory() as folder:
        found = {
            "one more attack": one_more(Path(folder) / "more"),
            "table": table(Path(folder) / "table", args.images),
            "table of an eighth": table(Path(folder) / "eighth", args.images // 8),
            "page": page(Path(folder) / "page", 50, 20, 256),
            **growth(Path(folder)),
        }
        found["units"] = found["evaluation against units"]["rows"][-1]
    for name, figures in found.items():
        print(name, figures)
    write("record", seed=0, threads=1, **found)


if __name__ == "__main__":
    main()
