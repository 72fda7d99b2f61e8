"""Pixels of image files, by Pillow; whatever is wrong with a file is said with its name."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scoreopt_defense._checks import check_file
from scoreopt_defense._optional import optional
from scoreopt_defense._text import printable

__all__ = [
    "IMAGE_SUFFIXES",
    "UnreadableImageError",
    "as_colours",
    "content_of",
    "header_of",
    "is_image_name",
    "read_pixels",
    "read_with_alpha",
]

IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".webp", ".avif", ".tif", ".tiff", ".gif"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)

# What a file may be, whatever its name says. Pillow knows more, and runs a program for one (EPS).
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "AVIF", "PPM", "TIFF", "GIF")
_MOVING = ("GIF", "TIFF", "WEBP", "AVIF")  # a JPEG's further pictures are the same, smaller
_GREY = ("1", "L", "LA")  # modes of 8 bits and less
_SIDEWAYS = (5, 6, 7, 8)  # orientations of EXIF that exchange height and width
_LARGEST = 2**30  # bytes of a file

#: Gives what is in a file; whatever it raises names the file.
File = Callable[[], bytes]


def is_image_name(name: str) -> bool:
    """Whether a file's name says that it is an image, in letters of either case."""
    return name.lower().endswith(IMAGE_SUFFIXES)


class UnreadableImageError(ValueError):
    """A file that is no image, a damaged one, or one of a kind that can't be read faithfully."""


class Header(NamedTuple):
    """What an image file says of itself: sides as it is shown, whether it is coloured, a digest."""

    height: int
    width: int
    is_coloured: bool
    sha256: str


def content_of(path: Path) -> bytes:
    """All of a regular file.

    Raises:
        OSError, ValueError: if it cannot be read, is a device or a pipe, or is too large.
    """
    check_file(path, most=_LARGEST)
    return path.read_bytes()


def header_of(file: File, name: str, *, see_through: bool = False) -> Header:
    """What a file says before its pixels, which are decoded only where nothing else shows damage.

    A PNG file has checksums, and a WebP file's length is checked as it is opened; a JPEG file that
    was cut off has no end after its last scan.

    Args:
        see_through: whether it may be partly transparent.

    Raises:
        UnreadableImageError: as :func:`read_pixels`, but for a flipped bit of a JPEG file's.
    """
    content = b""

    def read() -> bytes:
        nonlocal content
        content = file()
        return content

    with _opened(read, name) as image:
        width, height = image.size
        is_coloured = not (image.mode in _GREY or image.mode[0] in "IF")
        is_plain = not (
            image.mode[0] in "IF" or image.mode[-1] in "Aa" or "transparency" in image.info
        )
        is_whole = image.format in ("PNG", "WEBP") or (
            image.format == "JPEG" and content.rfind(b"\xff\xd9") > content.rfind(b"\xff\xda")
        )
        getexif = optional("PIL.Image", extra="data").Image.getexif  # PNG's own decodes the pixels
        turned = _orientation(partial(getexif, image))
        image.verify()
    if not (is_plain and is_whole):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # who uses the pixels is warned
            (read_with_alpha if see_through else read_pixels)(lambda: content, name)
    sides = (width, height) if turned in _SIDEWAYS else (height, width)
    return Header(*sides, is_coloured, hashlib.sha256(content).hexdigest())


def read_pixels(file: File, name: str) -> np.ndarray:
    """uint8 pixels, shape (H, W) or (H, W, 3), turned as EXIF says.

    Sixteen bits are scaled by 65535, with a warning where that leaves the image nearly black.
    Palettes and CMYK become RGB; an alpha channel is left out where it is opaque throughout.

    Raises:
        UnreadableImageError: naming the file, if it is damaged, partly transparent, or has several
            frames, or its pixels have neither 8 nor 16 bits.
    """
    pixels, alpha = read_with_alpha(file, name)
    if alpha is not None:
        raise UnreadableImageError(
            f"{name} must be opaque, and has pixels of alpha {alpha.min()} of 255: give it a "
            "background"
        )
    return pixels


def read_with_alpha(
    file: File, name: str, *, most: float = math.inf
) -> tuple[np.ndarray, np.ndarray | None]:
    """As :func:`read_pixels`, and the alpha channel, (H, W); None where all is opaque.

    Args:
        most: pixels that the image may have, by its header: of a larger one none is decoded.
    """
    alpha = None
    with _opened(file, name) as image:
        width, height = image.size
        if width * height > most:
            raise UnreadableImageError(
                f"{name} must have at most {most:,} pixels, and has {width:,} x {height:,}"
            )
        if image.format in _MOVING and getattr(image, "n_frames", 1) > 1:
            raise UnreadableImageError(f"{name} must be one image, and has {image.n_frames} frames")
        wide = image.mode[0] == "I" or any(";16" in str(tile[3]) for tile in image.tile)
        image.load()  # which leaves no tiles
        if _orientation(image.getexif) != 1:
            image = optional("PIL.ImageOps", extra="data").exif_transpose(image)
        if image.mode[0] in "IF":  # Pillow's own conversion clips these at 255
            pixels = _from_16_bits(image, name)
        else:
            grey = image.mode in _GREY
            if "transparency" in image.info or image.mode[-1] in "Aa":
                image = image.convert("RGBA")
                levels = np.asarray(image.getchannel("A"))
                alpha = levels if levels.min() < 255 else None
                image = image.convert("RGB")
            pixels = np.asarray(image.convert("L" if grey else "RGB"))
    if wide and pixels.max() <= 16:  # as 12 bits in the place of 16 give
        warnings.warn(
            f"{printable(name)} has 16 bits, of 65535 levels, and is nearly black: "
            f"{pixels.max()} of 255 at most. If it uses but 8, 10 or 12 bits, store it with 8",
            stacklevel=2,
        )
    return pixels, alpha


def as_colours(pixels: np.ndarray) -> np.ndarray:
    """Pixels of shape (H, W, 3): grey ones in all three."""
    return np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels


@contextmanager
def _opened(file: File, name: str) -> Iterator[Any]:
    """A Pillow image; all that a decoder raises meanwhile, which is anything, names the file."""
    pillow = optional("PIL.Image", extra="data")
    pillow.init()
    try:
        source = BytesIO(file())
        with warnings.catch_warnings():
            warnings.simplefilter("error", pillow.DecompressionBombWarning)
            opened = pillow.open(source, formats=[kind for kind in _FORMATS if kind in pillow.OPEN])
        with opened as image:
            yield image
    except UnreadableImageError:
        raise
    except pillow.UnidentifiedImageError:
        raise UnreadableImageError(
            f"{name} cannot be read: it is no image of a kind among {', '.join(_FORMATS)}"
        ) from None
    except Exception as error:
        said = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UnreadableImageError(f"{name} cannot be read: {said}") from error


def _orientation(getexif: Callable[[], Any]) -> int:
    try:
        return getexif().get(0x0112, 1)
    except Exception:  # damaged EXIF says nothing of the pixels
        return 1


def _from_16_bits(image: Any, name: str) -> np.ndarray:
    levels = np.asarray(image)
    if levels.dtype.kind == "f" or levels.min() < 0 or levels.max() > 65535:
        raise UnreadableImageError(
            f"{name} must have pixels of 8 or 16 bits, got {levels.dtype} from {levels.min():g} to "
            f"{levels.max():g}"
        )
    if "transparency" in image.info:
        raise UnreadableImageError(f"{name} must have no transparent pixels, and has 16-bit ones")
    return ((levels.astype(np.int64) * 255 + 32767) // 65535).astype(np.uint8)
