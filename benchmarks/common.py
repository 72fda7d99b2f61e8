"""What every result file says of how it was made."""

from __future__ import annotations

import json
import os
import platform
import re
from pathlib import Path
from typing import Any

import torch
from scipy.stats import binomtest
from torch import Tensor, nn

import scoreopt_defense
from scoreopt_defense import pretrained

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Processor, cores and versions."""
    cpuinfo = Path("/proc/cpuinfo")  # platform.processor() is often empty on Linux
    names = (
        re.findall(r"^model name\s*: (.*)$", cpuinfo.read_text(), re.M) if cpuinfo.exists() else []
    )
    model = names[0] if names else platform.processor()
    return {
        "processor": f"{platform.machine()} {model}",
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "scoreopt_defense": scoreopt_defense.__version__,
    }


def weights(name: str) -> dict[str, str]:
    """SHA-256 of the shipped networks of that name: figures about others are told apart by it."""
    return {kind: digests[name] for kind, digests in pretrained.CHECKSUMS.items()}


def proportion(right: int, total: int) -> dict[str, float]:
    """A share with its exact (Clopper-Pearson) 95 % confidence interval."""
    interval = binomtest(right, total).proportion_ci(0.95)
    return {
        "value": right / total,
        "low": round(float(interval.low), 4),
        "high": round(float(interval.high), 4),
        "n": total,
    }


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """Share of images that a model classifies rightly, 100 at a time, with its interval."""
    right = sum((model(a).argmax(1) == b).sum().item() for a, b in zip(x.split(100), y.split(100)))
    return proportion(right, len(y))


def write(name: str, **contents: Any) -> None:
    """Write ``results/<name>.json``, with the machine."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **contents}, indent=2) + "\n")
    print(f"wrote {path}")


class resumed:
    """Rows of a result file, written after each, kept from a run that was stopped.

    Rows of a file that says anything else of its inputs (``about``) are dropped.
    """

    def __init__(self, name: str, **about: Any) -> None:
        self.name = name
        self.about = about
        path = RESULTS / f"{name}.json"
        old = json.loads(path.read_text()) if path.exists() else {}
        same = all(old.get(key) == value for key, value in about.items())
        self.rows: list[dict[str, Any]] = old.get("rows", []) if same else []

    def __enter__(self) -> resumed:
        return self

    def __exit__(self, *_: object) -> None:
        write(self.name, **self.about, rows=self.rows)

    def has(self, key: dict[str, Any]) -> bool:
        return any(key.items() <= row.items() for row in self.rows)

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        write(self.name, **self.about, rows=self.rows)
