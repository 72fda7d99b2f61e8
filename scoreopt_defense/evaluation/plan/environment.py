"""The machine and the software that results were made with."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

import scoreopt_defense
from scoreopt_defense import _release

__all__ = ["machine", "versions"]

_OURS = {"torch", "scoreopt_defense"}


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
        "scoreopt_defense": _release.described(),
    }


def versions(*things: object) -> dict[str, str]:
    """Of what a result's bits depend on: this library, torch, and where these objects come from.

    Args:
        things: modules, with all that are inside, and attacks, which name their ``libraries``.
    """
    parts = [part for t in things for part in (t.modules() if isinstance(t, nn.Module) else [t])]
    named = {type(part).__module__.partition(".")[0] for part in parts}
    named |= {name for part in parts for name in getattr(part, "libraries", ())}
    found = _distributions()
    others = {name for top in named - _OURS for name in found.get(top, ())}
    own = f"{scoreopt_defense.__version__}, sources {_sources()}"
    return {"scoreopt_defense": own, "torch": str(torch.__version__)} | {
        name: version(name) for name in sorted(others)
    }


@cache
def _distributions() -> Mapping[str, list[str]]:
    return packages_distributions()


@cache
def _sources() -> str:
    """A digest of the package's files, which an editable install's version does not tell apart."""
    folder = Path(scoreopt_defense.__file__).parent
    found = sha256()
    for path in sorted(folder.rglob("*.py")):
        found.update(f"{path.relative_to(folder).as_posix()}\0".encode() + path.read_bytes())
    return found.hexdigest()[:12]
