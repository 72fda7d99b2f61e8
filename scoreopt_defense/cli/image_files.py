"""Purify image files."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from scoreopt_defense._checks import check_count, check_unit_images
from scoreopt_defense._files import replacing
from scoreopt_defense._folders import walk
from scoreopt_defense._optional import optional
from scoreopt_defense._pixels import (
    IMAGE_SUFFIXES,
    as_colours,
    content_of,
    header_of,
    is_image_name,
    read_with_alpha,
)
from scoreopt_defense.evaluation.plan.fingerprint import key_of
from scoreopt_defense.noise import derive
from scoreopt_defense.purifiers import Purifier

__all__ = ["Outcome", "purify_files"]

# What stands at one file's place alone, and no full disk.
_IN_THE_WAY = (IsADirectoryError, NotADirectoryError, FileExistsError)


class Outcome(NamedTuple):
    """What came of a file.

    Attributes:
        target: where it is purified; None if it was skipped.
        why: it was skipped; or that ``target`` was there before, and was kept.
    """

    target: Path | None
    why: str = ""


def purify_files(
    purifier: Purifier,
    source: str | Path,
    target: str | Path,
    *,
    seed: int = 0,
    pad: int = 1,
    force: bool = False,
) -> Iterator[Outcome]:
    """Purify a file, or all image files below a folder, and write PNG files.

    All files are read before the first is purified. An image's noise depends on the seed and on its
    name within the folder, not on the other files. In a folder, an image that can't be read or
    purified is skipped. Images are turned as EXIF says; alpha is kept as it is.

    Args:
        purifier: its denoiser's channels say whether images are read as grey or as RGB.
        source: a file of 8 or 16 bits a pixel, or a folder.
        target: a file that ends in ``.png``; or, for a folder, a folder.
        seed: of the noise.
        pad: a multiple that sides are mirrored out to, for the network alone.
        force: write over what is there.

    Raises:
        FileNotFoundError: if there is nothing at ``source``.
        ValueError: if there are no images, two would be written to one file, or ``target`` is no
            place for them; and of a single file that can't be read or purified.
    """
    optional("PIL.Image", extra="data")
    check_count("pad", pad)
    source, target = Path(source), Path(target)
    skipped: list[str] = []
    if not source.exists():
        raise FileNotFoundError(f"there is nothing at {source}")
    if not source.is_dir():
        if target.suffix.lower() != ".png":
            raise ValueError(f"the output must end in .png, got {target}")
        files = {source: target}
    else:
        files = {
            source / name: (target / name).with_suffix(".png")
            for name in sorted(walk(source, skipped.append))
            if is_image_name(name)
        }
    if not files:
        found = "".join(f"\n{said}" for said in skipped)
        raise ValueError(f"no images in {source}: expected files of {IMAGE_SUFFIXES}{found}")
    one_of = {target: file for file, target in files.items()}
    for file, path in files.items():
        if one_of[path] != file:
            raise ValueError(f"{file} and {one_of[path].name} would both be written to {path}")
    if clash := sorted(str(file) for file in files.values() if file in files):
        raise ValueError(f"{clash[0]} would be overwritten: choose another output")
    return _purify_each(purifier, files, source, skipped, seed, pad, force)


def _purify_each(
    purifier: Purifier,
    files: dict[Path, Path],
    source: Path,
    skipped: list[str],
    seed: int,
    pad: int,
    force: bool,
) -> Iterator[Outcome]:
    yield from (Outcome(None, why) for why in skipped)
    left = {}
    for file, target in files.items():
        if target.is_file() and not force:
            yield Outcome(target, "is there already, and was kept: --force writes over it")
            continue
        try:
            _read(purifier, file)
        except ValueError as error:
            if file == source:
                raise
            yield Outcome(None, str(error))
        else:
            left[file] = target
    for file, target in left.items():
        name = file.name if file == source else file.relative_to(source).as_posix()
        try:
            _write(_purified(purifier, file, derive(seed, key_of(name)), pad), target)
        except (ValueError, *_IN_THE_WAY) as error:
            if file == source:
                raise
            yield Outcome(None, str(error))
        else:
            yield Outcome(target)


def _read(purifier: Purifier, file: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Levels of shape (H, W, C), and of the alpha channel, (H, W), if there is one.

    Raises:
        ValueError: naming the file, if its image is not what the purifier takes.
    """
    channels = purifier.denoiser.channels
    header_of(partial(content_of, file), str(file), see_through=True)  # and its checksums
    pixels, alpha = read_with_alpha(partial(content_of, file), str(file))
    if channels == 1 and pixels.ndim == 3:
        raise ValueError(f"{file} has colours, and the denoiser is for grey images")
    if channels == 3:
        pixels = as_colours(pixels)
    return (pixels[..., None] if pixels.ndim == 2 else pixels), alpha


def _purified(purifier: Purifier, file: Path, seed: int, pad: int) -> np.ndarray:
    """Levels of shape (H, W), (H, W, 2) with alpha, (H, W, 3), or (H, W, 4) with alpha.

    Raises:
        ValueError: naming the file, if it or its image is not what the purifier takes.
    """
    pixels, alpha = _read(purifier, file)
    height, width = pixels.shape[:2]
    padded = np.pad(pixels, ((0, -height % pad), (0, -width % pad), (0, 0)), mode="symmetric")
    x = torch.from_numpy(padded.copy()).permute(2, 0, 1)[None].float() / 255
    try:
        with torch.no_grad():
            purified = purifier(check_unit_images(x), seed=seed)
    except (ValueError, RuntimeError) as error:
        sides = "x".join(map(str, padded.shape[1::-1]))
        hint = f"; the network may want sides of another multiple than {sides}: say --pad 16"
        hint = hint if pad == 1 and (height % 16 or width % 16) else ""
        said = str(error).partition("\n")[0]
        raise ValueError(f"{file} could not be purified: {said}{hint}") from error
    levels = (purified[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    levels = levels[:height, :width]
    if alpha is not None:
        levels = np.concatenate([levels, alpha[..., None]], axis=2)
    return levels.squeeze(-1) if levels.shape[2] == 1 else levels


def _write(levels: np.ndarray, target: Path) -> None:
    """A PNG file, whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as temporary:
        optional("PIL.Image", extra="data").fromarray(levels).save(temporary, "PNG")
