"""Adversarial images of a record: a file for each batch of pixels, called by its digest."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import safetensors.numpy

from scoreopt_defense._files import replacing
from scoreopt_defense.evaluation.record.store_error import StoreError

__all__ = ["Pixels", "digest_of"]


class Pixels:
    """What is kept, on the disk or in memory.

    Args:
        folder: None for memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._in_memory: dict[str, np.ndarray] = {}
        self._unsynced: list[Path] = []

    def make(self) -> None:
        """Make the folder; what a run that was killed left half written goes."""
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            for left in self.folder.glob("*.part"):
                left.unlink()

    def write(self, name: str, images: np.ndarray) -> None:
        """Keep images by their digest, unless they are there: see :meth:`sync`."""
        if self.folder is None:
            self._in_memory[name] = images
            return
        path, content = self._path(name), safetensors.numpy.save({"x": images})
        if not (path.exists() and path.read_bytes() == content):
            with replacing(path) as temporary:
                temporary.write_bytes(content)
            self._unsynced.append(path)

    def sync(self) -> None:
        """Wait until what was written is on the disk."""
        for path in self._unsynced:
            with path.open("rb") as file:
                os.fsync(file.fileno())
        self._unsynced.clear()

    def read(self, name: str) -> np.ndarray:
        """Images, shape ``(B, C, H, W)``, in [0, 1].

        Raises:
            StoreError: naming the file, if it is missing or damaged.
        """
        if self.folder is None:
            return self._in_memory[name]
        path = self._path(name)
        try:
            images = safetensors.numpy.load_file(path)["x"]
            if digest_of(images) != name:
                raise ValueError("other pixels than were recorded")
        except (OSError, KeyError, ValueError, safetensors.SafetensorError) as error:
            raise StoreError(
                f"{path} is missing or damaged ({error}): restore a copy, or forget the result "
                "and evaluate again"
            ) from error
        return images

    def size(self, name: str) -> int:
        """Bytes; 0 if they are gone."""
        if self.folder is None:
            return self._in_memory[name].nbytes
        path = self._path(name)
        return path.stat().st_size if path.exists() else 0

    def delete(self, name: str) -> None:
        """Keep them no longer."""
        if self.folder is None:
            self._in_memory.pop(name, None)
        else:
            self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        assert self.folder is not None
        if not name.isalnum():
            raise StoreError(f"{self.folder}: a result's images are called {name!r}")
        return self.folder / f"{name}.safetensors"


def digest_of(images: np.ndarray) -> str:
    """What adversarial images are called by."""
    about = json.dumps([str(images.dtype), images.shape]).encode()
    return hashlib.sha256(about + np.ascontiguousarray(images).tobytes()).hexdigest()[:40]
