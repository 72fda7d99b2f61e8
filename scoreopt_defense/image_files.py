"""Purify image files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from scoreopt_defense._checks import check_unit_images
from scoreopt_defense._optional import optional
from scoreopt_defense.data import IMAGE_SUFFIXES, pixels_of
from scoreopt_defense.evaluation.seeding import key_of
from scoreopt_defense.noise import derive
from scoreopt_defense.purifiers import Purifier

__all__ = ["purify_files"]


def purify_files(
    purifier: Purifier, source: str | Path, target: str | Path, *, seed: int = 0
) -> Iterator[Path]:
    """Purify a file, or all image files below a folder, and write PNG files; yields each.

    An image's noise depends on the seed and on its name within the folder, not on the other files.

    Args:
        purifier: its denoiser's channels say whether images are read as grey or as RGB.
        source: a file of 8 or 16 bits a pixel, or a folder.
        target: a file that ends in ``.png``; or, for a folder, a folder.
        seed: of the noise.

    Raises:
        FileNotFoundError: if there is nothing at ``source``.
        ValueError: if there are no images, two would be written to one file, or ``target`` is no
            place for them.
    """
    source, target = Path(source), Path(target)
    if not source.exists():
        raise FileNotFoundError(f"there is nothing at {source}")
    if source.is_file():
        if target.suffix.lower() != ".png":
            raise ValueError(f"the output must end in .png, got {target}")
        files = {source: target}
    else:
        files = {
            file: (target / file.relative_to(source)).with_suffix(".png")
            for file in sorted(source.rglob("*"))
            if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")
        }
    if not files:
        raise ValueError(f"no images in {source}: expected files of {sorted(IMAGE_SUFFIXES)}")
    if len(set(files.values())) < len(files):
        raise ValueError(f"two images of {source} differ only in how their names end")
    if clash := sorted(str(file) for file in files.values() if file in files):
        raise ValueError(f"{clash[0]} would be overwritten: choose another output")
    return _purify_each(purifier, files, source, seed)


def _purify_each(
    purifier: Purifier, files: dict[Path, Path], source: Path, seed: int
) -> Iterator[Path]:
    image = optional("PIL.Image", extra="data")
    channels = purifier.denoiser.channels
    for file, target in files.items():
        with image.open(file) as opened:
            pixels = pixels_of(opened, str(file))
        if channels == 1 and pixels.ndim == 3:
            raise ValueError(f"{file} has colours, and the denoiser is for grey images")
        if channels == 3 and pixels.ndim == 2:
            pixels = np.repeat(pixels[..., None], 3, axis=2)
        planes = pixels[..., None] if pixels.ndim == 2 else pixels
        x = torch.from_numpy(planes.copy()).permute(2, 0, 1)[None].float() / 255
        name = file.name if source.is_file() else file.relative_to(source).as_posix()
        with torch.no_grad():
            purified = purifier(check_unit_images(x), seed=derive(seed, key_of(name)))
        levels = (purified[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        target.parent.mkdir(parents=True, exist_ok=True)
        image.fromarray(levels.squeeze(-1) if levels.shape[2] == 1 else levels).save(target, "PNG")
        yield target
