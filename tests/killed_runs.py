"""A run that is killed and started again until it is done."""

from __future__ import annotations

import random
import sqlite3
import time
from pathlib import Path

from toy_evaluation import run_here


def recorded(out: Path) -> int:
    if not (out / "record.sqlite").exists():
        return 0
    with sqlite3.connect(out / "record.sqlite", timeout=60) as database:
        try:
            return database.execute("SELECT count(*) FROM units").fetchone()[0]
        except sqlite3.OperationalError:
            return 0


def killed_until_done(forked, out: Path, kills: int, *how) -> list[int]:
    """Start, kill after a while, start again; how many units were recorded at each kill."""
    generator, counts = random.Random(0), []
    for _ in range(kills):
        process = forked.Process(target=run_here, args=(str(out), *how))
        process.start()
        before, most = recorded(out), generator.randint(0, 3)
        deadline = time.monotonic() + 60
        while process.is_alive() and recorded(out) <= before + most:
            assert time.monotonic() < deadline
            time.sleep(generator.uniform(0, 0.01))
        process.kill()
        process.join()
        counts.append(recorded(out))
    return counts
