"""Table 13 from end to end on files as ImageNet's are, killed on the way, and what it takes.

    python -m benchmarks.speed.imagenet_files

JPEG files of five sizes, the real ResNets with random weights, a small denoiser in place of the
published one, which a processor takes an hour an image for: all that the table's 50,000 images ask
of files, memory and the record. Attacks take fewer steps, which costs time alone. The run is killed
with its workers by a signal that no program hears, and begun again.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.common.results_file import write
from benchmarks.speed.many_images import Peaks, jpeg_files, megabytes
from scoreopt_defense.evaluation import Store
from scoreopt_defense.evaluation.record.store import RECORD

DENOISER = "python:benchmarks.paper.random_networks:small_denoiser"


def started(folder: Path, args: argparse.Namespace) -> psutil.Popen:
    """The table's own command."""
    return psutil.Popen(
        [
            *(sys.executable, "-m", "benchmarks.paper.run", "table13", str(folder / "images")),
            *("--scale", "paper", "--random-weights", "--denoiser", DENOISER, "--device", "cpu"),
            *("--images", str(args.images), "--steps", str(args.steps)),
            *("--batch", str(args.batch), "--workers", str(args.workers)),
            *("--runs", str(folder / "runs")),
        ],
        env=os.environ | {"TMPDIR": str(folder / "temporary")},
        start_new_session=True,
    )


def recorded(folder: Path) -> int:
    """How many units are in the record."""
    if not (folder / "runs" / RECORD).exists():
        return 0
    with Store(folder / "runs") as store:
        return len(store.done())


def measured(folder: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Until it is killed, and then to its end."""
    rows = []
    (folder / "temporary").mkdir()
    for kill_at in (args.kill_at, None):
        before, since = recorded(folder), time.perf_counter()
        run = started(folder, args)
        own = Peaks("own", run)
        own.start()
        while kill_at and recorded(folder) < kill_at and run.poll() is None:
            time.sleep(1)
        if kill_at:
            os.killpg(run.pid, signal.SIGKILL)
        status = run.wait()
        own.stopped = True
        rows.append(
            {
                "ended": "killed" if kill_at else f"status {status}",
                "units there before": before,
                "units there after": recorded(folder),
                "coordinator, own MB": round(own.me / 1e6),
                "worker, own MB": round(own.worker / 1e6),
                "seconds": round(time.perf_counter() - since),
                "temporary files left, torch's cache of compiled code not counted": sum(
                    not file.name.startswith("torchinductor")
                    for file in (folder / "temporary").iterdir()
                ),
                "record, MB": round(megabytes(folder / "runs"), 1),
            }
        )
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--steps", type=int, default=2, help="of the table's 40")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kill-at", type=int, default=60, help="units recorded")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        jpeg_files(Path(made) / "images", args.images)
        rows = measured(Path(made), args)
    about = {name: getattr(args, name) for name in ("images", "steps", "batch", "workers")}
    write("imagenet_files", **about, rows=rows)


if __name__ == "__main__":
    main()
