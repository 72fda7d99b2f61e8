"""What was found in images once, kept for the next start."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from scoreopt_defense._files import replacing

__all__ = ["remembered", "stamp"]

_LEAST = 1000  # images, below which they are read again as fast


def stamp(paths: Iterable[str | os.PathLike[str]]) -> str:
    """What changes with any of these files: where each is, its size, and when it was changed."""
    found = hashlib.sha256()
    for path in paths:
        about = os.stat(path)
        seen = os.path.abspath(path), about.st_size, about.st_mtime_ns, about.st_ctime_ns
        found.update(repr(seen).encode(errors="surrogatepass"))
    return found.hexdigest()


def remembered(of: str | None, count: int, find: Callable[[], list[Any]]) -> list[Any]:
    """What was found of so many images, a value each as JSON has it; or what is found now.

    It is kept in the user's cache folder (``$XDG_CACHE_HOME``, ``~/.cache``): where images are may
    be read-only, and they are checked before there is a record. Where it can't be, it isn't.

    Args:
        of: what changes with the images, such as :func:`stamp`; None: nothing that is known does.
        count: of images.
        find: reads all of them.
    """
    if of is None or count < _LEAST:
        return find()
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "scoreopt-defense"
    file = folder / f"{hashlib.sha256(of.encode()).hexdigest()}.json"
    with suppress(OSError, ValueError, RecursionError):
        if isinstance(kept := json.loads(file.read_text()), list) and len(kept) == count:
            return kept
    found = find()
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(file) as unfinished:
            unfinished.write_text(json.dumps(found))
    return found
