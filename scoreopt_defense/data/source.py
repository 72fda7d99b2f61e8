"""Labelled images that are read where they are worked on, a batch at a time."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from scoreopt_defense._checks import check_labels, check_unit_images
from scoreopt_defense._foreign import said
from scoreopt_defense.data.cache import remembered, stamp
from scoreopt_defense.data.preprocessing import Preprocessing, in_unit

__all__ = ["Array", "Images", "Items", "Source", "Tensors"]


class Images(NamedTuple):
    """Images in [0, 1], their labels and the names of the classes.

    Attributes:
        x: float32, shape (n, C, H, W), in [0, 1].
        y: int64, shape (n,), an index into ``classes``.
        classes: one name a label.
    """

    x: Tensor
    y: Tensor
    classes: tuple[str, ...]


class Source(ABC):
    """Labelled images of one shape.

    Args:
        labels: int64, shape ``(n,)``.
        shape: of an image, ``(C, H, W)``.
        classes: one name a label; empty if they are not known.
    """

    def __init__(self, labels: Any, shape: Sequence[int], classes: Sequence[str] = ()) -> None:
        self.labels = _checked_labels(labels)
        self.shape: tuple[int, int, int] = (int(shape[0]), int(shape[1]), int(shape[2]))
        self.classes = tuple(classes)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def dtype(self) -> torch.dtype:
        """Of the images."""
        return torch.float32

    @abstractmethod
    def read(self, places: np.ndarray) -> Tensor:
        """Images at these places, float32 or float64, shape ``(B, C, H, W)``, in [0, 1]: new ones.

        Raises:
            ValueError, OSError: if one of them can't be read, naming it.
        """

    @abstractmethod
    def digest(self, place: int) -> bytes:
        """What tells an image from others."""

    @property
    def changes(self) -> str | None:
        """What is another whenever an image is, and takes no reading of them; None: unknown."""
        return None

    def batch(self, first: int, end: int) -> tuple[Tensor, Tensor]:
        """The images from ``first`` to before ``end``, and their labels."""
        places = np.arange(first, min(end, len(self)))
        return self.read(places), torch.from_numpy(self.labels[places])

    def digests(self) -> list[str]:
        """Of each image and its label, SHA-256; those of a file are computed once."""
        about = (
            self.changes and f"{self.changes} {hashlib.sha256(self.labels.tobytes()).hexdigest()}"
        )
        return remembered(about, len(self), lambda: [*map(self._digest, range(len(self)))])

    def _digest(self, place: int) -> str:
        label = int(self.labels[place]).to_bytes(8, "big", signed=True)
        return hashlib.sha256(self.digest(place) + label).hexdigest()

    def take(self, places: np.ndarray) -> Source:
        """Those images alone, in that order."""
        return _Part(self, places)

    def load(self) -> Images:
        """All of it, in memory."""
        return Images(*self.batch(0, len(self)), self.classes)


class _Part(Source):
    """Some of another's images."""

    def __init__(self, whole: Source, places: np.ndarray) -> None:
        super().__init__(whole.labels[places], whole.shape, whole.classes)
        self.whole, self.places = whole, np.asarray(places)

    @property
    def dtype(self) -> torch.dtype:
        return self.whole.dtype

    def read(self, places: np.ndarray) -> Tensor:
        return self.whole.read(self.places[places])

    def digest(self, place: int) -> bytes:
        return self.whole.digest(int(self.places[place]))

    @property
    def changes(self) -> str | None:
        return self.whole.changes and f"{self.whole.changes} {self.places.tolist()}"


class Tensors(Source):
    """Images in memory.

    Args:
        x: shape ``(n, C, H, W)``, float32 or float64, in [0, 1].
        y: shape ``(n,)``, integers from 0.

    Raises:
        ValueError, TypeError: if they are no such images and labels.
    """

    def __init__(self, x: Tensor, y: Tensor, classes: Sequence[str] = ()) -> None:
        self.x = check_unit_images(x).detach()
        super().__init__(check_labels(y, len(x)).cpu(), x.shape[1:], classes)

    @property
    def dtype(self) -> torch.dtype:
        return self.x.dtype

    def read(self, places: np.ndarray) -> Tensor:
        return self.x[torch.from_numpy(places).to(self.x.device)].cpu()

    def digest(self, place: int) -> bytes:
        image = self.x[place].cpu().contiguous()
        about = f"{image.dtype} {tuple(image.shape)}".encode()
        return about + image.reshape(-1).view(torch.uint8).numpy().tobytes()


class Array(Source):
    """uint8 pixels of an array, in memory or mapped from a ``.npy`` file, which is read by need.

    Args:
        pixels: shape ``(n, H, W, C)``, or the path of such an array.
        labels: shape ``(n,)``.
        name: what errors call it.

    Raises:
        ValueError: if it is no such array.
    """

    def __init__(
        self,
        pixels: np.ndarray | Path,
        labels: Any,
        classes: Sequence[str] = (),
        *,
        name: str = "the array",
        preprocessing: Preprocessing | None = None,
    ) -> None:
        self._pixels = pixels
        self.preprocessing = preprocessing or Preprocessing()
        array = self._array()
        if array.dtype != np.uint8 or array.ndim != 4:
            raise ValueError(
                f"{name} must hold uint8 pixels, 0 to 255, of shape (n, H, W, C), got "
                f"{array.dtype} of shape {array.shape}"
            )
        count = len(_checked_labels(labels))
        if count != len(array) or not count:
            raise ValueError(f"{name} has {len(array)} images, and there are {count} labels")
        _, height, width, channels = array.shape
        if channels not in (1, 3):
            raise ValueError(
                f"{name} must have 1 or 3 channels, the last of its sides, got shape {array.shape}"
            )
        super().__init__(labels, (channels, *self.preprocessing.size(height, width)), classes)

    def _array(self) -> np.ndarray:
        if isinstance(self._pixels, Path):  # mapped anew: a map would travel as its pixels
            return np.load(self._pixels, mmap_mode="r", allow_pickle=False)
        return self._pixels

    def read(self, places: np.ndarray) -> Tensor:
        array = self._array()
        return in_unit([self.preprocessing(array[place]) for place in places])

    def digest(self, place: int) -> bytes:
        pixels = np.ascontiguousarray(self._array()[place])
        return f"{self.preprocessing} {pixels.shape}".encode() + pixels.tobytes()

    @property
    def changes(self) -> str | None:
        if not isinstance(self._pixels, Path):
            return None
        return f"{self.preprocessing} {stamp([self._pixels])}"


class Items(Source):
    """A ``torch.utils.data.Dataset`` of images and labels, such as torchvision's.

    Args:
        dataset: with ``len()``; each item an image and a whole number. The image is one of
            Pillow's, an array of shape ``(H, W, C)``, uint8, or a tensor of shape ``(C, H, W)``,
            uint8 or in [0, 1].

    Raises:
        ValueError, TypeError: naming the first item that is none.
    """

    def __init__(self, dataset: Any, *, preprocessing: Preprocessing | None = None) -> None:
        self.dataset, self.preprocessing = dataset, preprocessing or Preprocessing()
        first, _ = self._item(0)
        self._digests: dict[int, bytes] = {}
        targets = getattr(dataset, "targets", None)
        unsaid = targets is None or len(targets) != len(dataset)
        super().__init__(np.zeros(0, int) if unsaid else targets, first.shape,
                         getattr(dataset, "classes", None) or ())  # fmt: skip
        if unsaid:
            self.labels = _checked_labels([self._looked_at(n) for n in range(len(dataset))])
        if not torch.equal(self._item(0)[0], first):
            raise ValueError(
                "the data set gives another image each time it is asked for item 0: leave random "
                "transforms out"
            )

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_digests": {}}

    def _item(self, place: int) -> tuple[Tensor, Any]:
        """An image, shape ``(C, H, W)``, in [0, 1], and its label."""
        try:
            image, label = self.dataset[place]
        except Exception as error:
            raise ValueError(
                f"item {place} of the data set must be an image and a label: {said(error)}"
            ) from error
        if isinstance(image, Tensor):
            image = image.float() / 255 if image.dtype == torch.uint8 else image
            return check_unit_images(image[None])[0], label
        pixels = np.asarray(image)
        if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3):
            raise ValueError(
                f"item {place} must have an image of uint8 pixels, shape (H, W, C), got "
                f"{pixels.dtype} of shape {pixels.shape}"
            )
        return in_unit([self.preprocessing(pixels)])[0], label

    def _of_the_shape(self, place: int) -> tuple[Tensor, Any]:
        image, label = self._item(place)
        if tuple(image.shape) != self.shape:
            raise ValueError(
                f"item {place} must have the shape {self.shape} of the first, got "
                f"{tuple(image.shape)}: say a crop, in preprocessing"
            )
        return image, label

    def _looked_at(self, place: int) -> Any:
        """Its label; its digest is kept, so that it is not read again for that."""
        image, label = self._of_the_shape(place)
        self._digests[place] = hashlib.sha256(image.numpy().tobytes()).digest()
        return label

    def read(self, places: np.ndarray) -> Tensor:
        return torch.stack([self._of_the_shape(int(place))[0] for place in places])

    def digest(self, place: int) -> bytes:
        if place not in self._digests:
            self._looked_at(place)
        return self._digests[place]


def _checked_labels(labels: Any) -> np.ndarray:
    found = np.asarray(labels)
    if found.dtype.kind not in "iu" or found.ndim != 1:
        raise ValueError(
            f"labels must be whole numbers, one an image, got {found.dtype} of shape {found.shape}"
        )
    if len(found) and found.min() < 0:
        raise ValueError(f"labels must be classes from 0 on, got {found.min()}")
    return found.astype(np.int64)
