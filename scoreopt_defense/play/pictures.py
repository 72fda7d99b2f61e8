"""Pictures as a browser sends and shows them."""

from __future__ import annotations

import base64
import binascii
import threading
from io import BytesIO
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoreopt_defense._optional import optional
from scoreopt_defense._pixels import as_colours, read_with_alpha

__all__ = ["MOST_PIXELS", "as_url", "from_url", "magnified", "read"]

#: Pixels that a picture may have: 25 millions are a camera's, and take 0.3 GB to decode.
MOST_PIXELS = 25_000_000

_HEAD = "data:image/png;base64,"
_one_at_a_time = threading.Lock()


def read(content: bytes, shape: tuple[int, int, int]) -> Tensor:
    """The picture in a file, as a network takes it: its middle square, made as small or as large.

    Where it is transparent it becomes white.

    Args:
        content: of the file.
        shape: of the network's images, ``(C, H, W)``, C being 1 or 3.

    Returns:
        Shape ``(1, C, H, W)``, in [0, 1].

    Raises:
        ValueError: in a sentence, if it is no picture, a damaged one, or one of too many pixels,
            of which none is decoded.
    """
    channels, height, width = shape
    with _one_at_a_time:
        pixels, alpha = read_with_alpha(lambda: content, "the file", most=MOST_PIXELS)
        if alpha is not None:
            share = as_colours(alpha) / 255 if pixels.ndim == 3 else alpha / 255
            pixels = np.round(pixels * share + 255 * (1 - share)).astype(np.uint8)
        picture = _pillow().fromarray(pixels).convert("L" if channels == 1 else "RGB")
    picture = optional("PIL.ImageOps", extra="data").fit(picture, (width, height))
    levels = torch.from_numpy(np.array(picture)).reshape(height, width, channels)
    return levels.permute(2, 0, 1)[None].float() / 255


def from_url(url: str, shape: tuple[int, int, int]) -> Tensor:
    """As :func:`read`, of what :func:`as_url` made."""
    try:
        return read(base64.b64decode(url.removeprefix(_HEAD), validate=True), shape)
    except binascii.Error:
        raise ValueError("image must be a PNG file in a data: address") from None


def as_url(x: Tensor) -> str:
    """An image in [0, 1], shape ``(1, C, H, W)``, C being 1 or 3, as the address of a PNG file."""
    levels = (
        (255 * x[0].detach().clamp(0, 1)).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    )
    content = BytesIO()
    _pillow().fromarray(levels.squeeze(-1) if levels.shape[2] == 1 else levels).save(content, "PNG")
    return _HEAD + base64.b64encode(content.getvalue()).decode()


def magnified(change: Tensor) -> tuple[Tensor, float]:
    """A change of an image about mid-grey, by a factor that makes its largest one visible; and it.

    The factor is what takes the largest change to black or white, 100 at most.
    """
    factor = min(100.0, 0.5 / max(float(change.abs().max()), 1e-9))
    return 0.5 + factor * change, factor


def _pillow() -> Any:
    return optional("PIL.Image", extra="data")
