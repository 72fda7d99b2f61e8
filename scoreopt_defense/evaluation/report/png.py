"""PNG files without a library: the page needs no Pillow."""

from __future__ import annotations

import struct
import zlib

import numpy as np

__all__ = ["png"]


def png(levels: np.ndarray) -> bytes:
    """A PNG file.

    Args:
        levels: uint8, shape ``(H, W, 1)`` (grey) or ``(H, W, 3)`` (RGB).

    Reference:
        PNG specification, ISO/IEC 15948: a filter byte (0, none) before each row.
    """
    height, width, channels = levels.shape
    kind = {1: 0, 3: 2}[channels]
    rows = np.concatenate(
        [np.zeros((height, 1), np.uint8), levels.reshape(height, width * channels)], axis=1
    )
    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        _chunk(name, body)
        for name, body in (
            (b"IHDR", header),
            (b"IDAT", zlib.compress(rows.tobytes(), 9)),
            (b"IEND", b""),
        )
    )


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
