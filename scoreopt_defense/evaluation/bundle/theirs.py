"""Attacked images as other programs keep them."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scoreopt_defense._checks import check_file, check_unit_images
from scoreopt_defense._folders import walk
from scoreopt_defense._pixels import content_of, is_image_name, read_pixels
from scoreopt_defense._text import printable
from scoreopt_defense.data import array_of
from scoreopt_defense.data.preprocessing import in_unit
from scoreopt_defense.evaluation.bundle.file import Bundle

__all__ = ["attacked_images"]

#: What torchattacks and AutoAttack's examples call them, and people.
_KEYS = ("adv_inputs", "adv_complete", "x_adv", "adv", "images", "x")


def attacked_images(path: str | Path, shape: tuple[int, ...]) -> Tensor:
    """Images of a file or folder, in the order of the clean ones.

    Args:
        path: a ``.npy`` file; a ``.pt`` or ``.pth`` file of tensors alone, such as torchattacks'
            ``save`` and AutoAttack's examples write; a folder of images of 8 bits, in the order of
            the numbers in their names; or a bundle, ``.zip``. Integers are of 255 levels.
        shape: that is expected, ``(n, C, H, W)``; an array may have its channels last.

    Returns:
        float32 or float64, in [0, 1], of that shape.

    Raises:
        OSError: if there is nothing.
        ValueError: if it holds anything else, naming what.
    """
    path = Path(path)
    n, channels, *sides = shape
    if path.is_dir():
        found = _of_folder(path, n)
    elif path.suffix == ".npy":
        found = _of_array(path)
    elif path.suffix in (".pt", ".pth"):
        found = _of_tensors(path)
    elif path.suffix == ".zip":
        found = torch.from_numpy(Bundle.read(path).images)
    else:
        raise ValueError(f"attacked images must be .npy, .pt, .zip or a folder, got {path}")
    if (n, *sides, channels) == tuple(found.shape) != shape:
        found = found.permute(0, 3, 1, 2)
    if tuple(found.shape) != shape:
        raise ValueError(
            f"{path} must hold an attacked image for each of the {n} clean ones, shape {shape}, "
            f"got {tuple(found.shape)}"
        )
    if found.dtype == torch.uint8:
        found = found.float() / 255
    try:
        return check_unit_images(found.detach().contiguous())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _of_folder(path: Path, count: int) -> Tensor:
    names = sorted((name for name in walk(path) if is_image_name(name)), key=_numbered)
    if len(names) != count:
        raise ValueError(f"{path} must hold {count} images, got {len(names)}")
    pixels = [read_pixels(partial(content_of, path / name), str(path / name)) for name in names]
    if len(sizes := {of.shape[:2] for of in pixels}) > 1:
        raise ValueError(f"the images in {path} must share one size, got {sorted(sizes)}")
    return in_unit(pixels)


def _numbered(name: str) -> list[tuple[str, int]]:
    """So that 10.png comes after 9.png."""
    return [(text, int(part or 0)) for text, part in re.findall(r"(\D*)(\d{0,18})", name)]


def _of_array(path: Path) -> Tensor:
    array = array_of(path)
    if array.dtype not in (np.uint8, np.float16, np.float32, np.float64):
        raise ValueError(f"{path} must hold uint8 pixels or floats, got {array.dtype}")
    return torch.from_numpy(np.array(array))


def _of_tensors(path: Path) -> Tensor:
    check_file(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a reader of pickles meets in other files
        raise ValueError(
            f"{path} is no file of tensors alone, or a damaged one, and nothing in it was run "
            f"({type(error).__name__}: {printable(str(error))[:200]})"
        ) from error
    if isinstance(found, dict):
        named = {key: value for key, value in found.items() if isinstance(value, Tensor)}
        key = next((key for key in _KEYS if key in named), None)
        if key is None:
            raise ValueError(f"{path} must have a tensor called one of {_KEYS}, got {list(found)}")
        found = named[key]
    if not isinstance(found, Tensor):
        raise ValueError(f"{path} must hold a tensor, or a dictionary with one called one of "
                         f"{_KEYS}, got {type(found).__name__}")  # fmt: skip
    return found
