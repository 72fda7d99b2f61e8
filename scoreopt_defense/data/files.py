"""Images of a folder or a zip, decoded where they are worked on."""

from __future__ import annotations

import stat
import zipfile
from collections.abc import Callable, Iterable
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from scoreopt_defense._checks import check_file
from scoreopt_defense._folders import layout, walk
from scoreopt_defense._optional import optional
from scoreopt_defense._pixels import UnreadableImageError, as_colours, header_of, read_pixels
from scoreopt_defense.data.preprocessing import Preprocessing, in_unit
from scoreopt_defense.data.source import Source

__all__ = ["Files"]

_KEPT = 2**28  # bytes of decoded pixels that are kept
_LARGEST = 2**30  # bytes of an image in a zip, which declares any number in a few


class Files(Source):
    """``class/image`` files below a folder or in a zip; see :func:`scoreopt_defense.data.load`.

    Of all, the headers are read at once; of a small set the pixels too, and kept. A copy in another
    process reads what it needs.

    Args:
        path: of the folder or the zip.
        split: ``"train"`` or ``"test"``, where there are such folders; all by default.
        choose: of how many there are, the places of those that are wanted, in their order.
        preprocessing: with a ``crop``, images may be of any size.

    Raises:
        ValueError: naming what is no class, an image that can't be read, or images of two sizes.
        FileNotFoundError: if there is nothing.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        split: str | None = None,
        choose: Callable[[int], np.ndarray] = np.arange,
        preprocessing: Preprocessing | None = None,
    ) -> None:
        optional("PIL.Image", extra="data")
        self.path, self.preprocessing = Path(path), preprocessing or Preprocessing()
        self._archive: zipfile.ZipFile | None = None
        self._kept: list[np.ndarray] | None = None
        classes, files = layout(self._names(), split=split, source=path)
        chosen = [files[place] for place in choose(len(files))]
        self.names = [name for name, _ in chosen]
        headers = [header_of(partial(self._opened, n), self._said(n)) for n in self.names]
        if not self.preprocessing.fixes_the_size:
            self._check_one_size([(header.height, header.width) for header in headers])
        self.is_coloured = any(header.is_coloured for header in headers)
        height, width = self.preprocessing.size(headers[0].height, headers[0].width)
        channels = 3 if self.is_coloured else 1
        super().__init__([label for _, label in chosen], (channels, height, width), classes)
        if len(self) * channels * height * width <= _KEPT:
            self._kept = [self._decoded(place) for place in range(len(self))]
            sizes = [pixels.shape[:2] for pixels in self._kept]  # a PNG may be turned late
            self._check_one_size(sizes)
            self.shape = (channels, *sizes[0])

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_archive": None, "_kept": None}

    def _names(self) -> Iterable[str]:
        if self.path.is_dir():
            return walk(self.path, _refuse)
        members = self._opened_archive().infolist()
        for info in members:
            if stat.S_ISLNK(info.external_attr >> 16):
                raise ValueError(
                    f"{info.filename} in {self.path} is a link; a zip must hold what it links to"
                )
        self._members = {info.filename.replace("\\", "/"): info for info in members}
        return self._members

    def _opened_archive(self) -> zipfile.ZipFile:
        if self._archive is None:
            check_file(self.path)
            try:
                self._archive = zipfile.ZipFile(self.path)
            except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
                raise ValueError(f"{self.path} is not a readable zip file: {error}") from error
        return self._archive

    def _opened(self, name: str) -> Path | BytesIO:
        if self.path.is_dir():
            return self.path / name
        info = self._members[name]
        if info.file_size > _LARGEST:
            raise ValueError(f"it has {info.file_size:,} bytes")
        return BytesIO(self._opened_archive().read(info))  # the whole, which has a checksum

    def _said(self, name: str) -> str:
        return str(self.path / name)

    def _check_one_size(self, sizes: Iterable[tuple[int, ...]]) -> None:
        first: dict[tuple[int, ...], str] = {}  # of each size
        for size, name in zip(sizes, self.names, strict=True):
            first.setdefault(size, name)
        if len(first) > 1:
            some = ", ".join(f"{w} x {h} ({name})" for (h, w), name in list(first.items())[:5])
            raise ValueError(
                f"the images in {self.path} must share one size, or be cropped to one, got {some}"
            )

    def _decoded(self, place: int) -> np.ndarray:
        if self._kept is not None:
            return self._kept[place]
        name = self.names[place]
        pixels = read_pixels(partial(self._opened, name), self._said(name))
        try:
            pixels = self.preprocessing(pixels)
        except ValueError as error:
            raise UnreadableImageError(f"{self._said(name)}: {error}") from error
        return as_colours(pixels) if self.is_coloured else pixels

    def read(self, places: np.ndarray) -> Tensor:
        images = in_unit([self._decoded(int(place)) for place in places])
        if tuple(images.shape[1:]) != self.shape:
            raise UnreadableImageError(f"images in {self.path} have changed meanwhile")
        return images

    def digest(self, place: int) -> bytes:
        """Of the file, undecoded."""
        opened = self._opened(self.names[place])
        content = opened.read_bytes() if isinstance(opened, Path) else opened.getvalue()
        return f"{self.preprocessing} {self.is_coloured}".encode() + content


def _refuse(problem: str) -> None:
    raise ValueError(problem)
