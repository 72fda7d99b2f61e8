"""What every result says of how it was made."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any

import torch

import scoreopt_defense

__all__ = ["machine", "versions"]


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


def versions() -> dict[str, str]:
    """Of what a result's bits depend on: a run goes on under the same alone."""
    return {"scoreopt_defense": scoreopt_defense.__version__, "torch": str(torch.__version__)}
