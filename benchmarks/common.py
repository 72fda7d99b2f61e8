"""What every result file says of how it was made."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import torch
from scipy.stats import binomtest

import scoreopt_defense

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Processor, cores and versions."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    ) if Path("/proc/cpuinfo").exists() else platform.processor()  # fmt: skip
    return {
        "processor": f"{platform.machine()} {model}",
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "scoreopt_defense": scoreopt_defense.__version__,
    }


def proportion(right: int, total: int) -> dict[str, float]:
    """A share with its exact (Clopper-Pearson) 95 % confidence interval."""
    interval = binomtest(right, total).proportion_ci(0.95)
    return {
        "value": right / total,
        "low": round(float(interval.low), 4),
        "high": round(float(interval.high), 4),
        "n": total,
    }


def write(name: str, **contents: Any) -> None:
    """Write ``results/<name>.json``, with the machine."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **contents}, indent=2) + "\n")
    print(f"wrote {path}")
