"""Imports of libraries that a plain install does not bring."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["optional"]


def optional(module: str, *, extra: str | None = None) -> Any:
    """Import ``module``, or say which extra brings it; or, without one, its own package."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(
            f"this needs {package}, which could not be imported ({error}): "
            + (f"pip install 'scoreopt-defense[{extra}]'" if extra else f"pip install {package}")
        ) from error
