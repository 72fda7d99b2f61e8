"""Images of a folder or a zip, and whatever else is encoded, decoded where they are worked on."""

from __future__ import annotations

import stat
import zipfile
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from scoreopt_defense._checks import check_file
from scoreopt_defense._folders import layout, walk
from scoreopt_defense._optional import optional
from scoreopt_defense._pixels import (
    Header,
    UnreadableImageError,
    as_colours,
    content_of,
    header_of,
    read_pixels,
)
from scoreopt_defense.data.cache import remembered, stamp
from scoreopt_defense.data.preprocessing import Preprocessing, in_unit
from scoreopt_defense.data.source import Source

__all__ = ["Encoded", "Files"]

_KEPT = 2**28  # bytes of decoded pixels that are kept
_LARGEST = 2**30  # bytes of an image in a zip, which declares any number in a few


class Encoded(Source):
    """Images as files have them, decoded where they are worked on.

    All are read once, undecoded, for their sizes, damage and digests, which are remembered; those
    of a small set are decoded at once too, and kept. A copy in another process reads what it needs.

    Args:
        where: what errors call all of them.
        labels, classes: as of :class:`~scoreopt_defense.data.Source`.
        preprocessing: with a ``crop``, images may be of any size.
        changes: what is another whenever an image is; None if nothing known is.

    Raises:
        ValueError: naming an image that can't be read or is too small, or images of two sizes.
    """

    def __init__(
        self,
        where: str,
        labels: Any,
        classes: Sequence[str],
        preprocessing: Preprocessing | None,
        changes: str | None,
    ) -> None:
        self.where, self.preprocessing = where, preprocessing or Preprocessing()
        self._kept: list[np.ndarray] | None = None
        count = len(labels)
        found = remembered(changes, count, lambda: [self._header(place) for place in range(count)])
        headers = [Header(*of) for of in found]
        self._sha256: list[str] | None = [header.sha256 for header in headers]
        sizes = [self._size(place, header) for place, header in enumerate(headers)]
        self._check_one_size(sizes)
        self.is_coloured = any(header.is_coloured for header in headers)
        channels = 3 if self.is_coloured else 1
        super().__init__(labels, (channels, *sizes[0]), classes)
        if count * channels * sizes[0][0] * sizes[0][1] <= _KEPT:
            self._kept = [self._decoded(place) for place in range(count)]
            turned = [pixels.shape[:2] for pixels in self._kept]  # a PNG may be turned late
            self._check_one_size(turned)
            self.shape = (channels, *turned[0])

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_kept": None, "_sha256": None}

    @abstractmethod
    def _content(self, place: int) -> bytes:
        """An image as it is stored; whatever it raises is said with :meth:`_said`."""

    @abstractmethod
    def _said(self, place: int) -> str:
        """What errors call an image."""

    def _header(self, place: int) -> Header:
        return header_of(partial(self._content, place), self._said(place))

    def _size(self, place: int, header: Header) -> tuple[int, int]:
        try:
            return self.preprocessing.size(header.height, header.width)
        except ValueError as error:
            raise UnreadableImageError(f"{self._said(place)}: {error}") from error

    def _check_one_size(self, sizes: Iterable[tuple[int, ...]]) -> None:
        first: dict[tuple[int, ...], int] = {}  # of each size
        for place, size in enumerate(sizes):
            first.setdefault(size, place)
        if len(first) > 1:
            some = ", ".join(
                f"{w} x {h} ({self._said(place)})" for (h, w), place in list(first.items())[:5]
            )
            raise ValueError(
                f"the images in {self.where} must share one size, or be cropped to one, got {some}"
            )

    def _decoded(self, place: int) -> np.ndarray:
        if self._kept is not None:
            return self._kept[place]
        pixels = self.preprocessing(read_pixels(partial(self._content, place), self._said(place)))
        return as_colours(pixels) if self.is_coloured else pixels

    def read(self, places: np.ndarray) -> Tensor:
        images = in_unit([self._decoded(int(place)) for place in places])
        if tuple(images.shape[1:]) != self.shape:
            raise UnreadableImageError(f"images in {self.where} have changed meanwhile")
        return images

    def digest(self, place: int) -> bytes:
        """Of the image undecoded, and of what is done to it."""
        if self._sha256 is None:
            self._sha256 = [self._header(place).sha256 for place in range(len(self))]
        return f"{self.preprocessing} {self.is_coloured} {self._sha256[place]}".encode()


class Files(Encoded):
    """``class/image`` files below a folder or in a zip; see :func:`scoreopt_defense.data.load`.

    Args:
        path: of the folder or the zip.
        split: ``"train"``, ``"validation"`` or ``"test"``, where there are such folders; all by
            default.
        choose: of how many there are, the places of those that are wanted, in their order.
        preprocessing: as of :class:`Encoded`.

    Raises:
        ValueError: as :class:`Encoded`, or naming what is no class.
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
        self.path = Path(path)
        self._archive: zipfile.ZipFile | None = None
        classes, files = layout(self._names(), split=split, source=path)
        chosen = [files[place] for place in choose(len(files))]
        self.names = [name for name, _ in chosen]
        of = map(self.path.joinpath, self.names) if self.path.is_dir() else [self.path]
        changes = f"{Header._fields} {stamp(of)} {self.names}"
        super().__init__(str(path), [label for _, label in chosen], classes, preprocessing, changes)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_archive": None}

    def _names(self) -> Iterable[str]:
        if self.path.is_dir():
            return walk(self.path)
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

    def _content(self, place: int) -> bytes:
        name = self.names[place]
        if self.path.is_dir():
            return content_of(self.path / name)
        info = self._members[name]
        if info.file_size > _LARGEST:
            raise ValueError(f"it has {info.file_size:,} bytes")
        return self._opened_archive().read(info)  # the whole, which has a checksum

    def _said(self, place: int) -> str:
        return str(self.path / self.names[place])
