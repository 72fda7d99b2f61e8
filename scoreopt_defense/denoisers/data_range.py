"""Rescaling to and from networks whose images are not in [-1, 1]."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

__all__ = ["check_data_range", "on_data_range"]


def on_data_range(
    denoise: Callable[[Tensor, Tensor], Tensor],
    x_t: Tensor,
    sigma: Tensor,
    data_range: tuple[float, float],
) -> Tensor:
    r"""A denoiser of images in [l, h], applied to images in [-1, 1].

    .. math:: D(x_t; \sigma) = \tfrac1s \big( D_{[l,h]}(s (x_t + 1) + l;\, s\sigma) - l \big) - 1,
              \qquad s = (h - l) / 2

    A noise level scales with the images: on [0, 1] it is half of what it is on [-1, 1].
    """
    low, high = data_range
    if data_range == (-1, 1):
        return denoise(x_t, sigma)
    scale = (high - low) / 2
    return (denoise(scale * (x_t + 1) + low, scale * sigma) - low) / scale - 1


def check_data_range(data_range: tuple[float, float]) -> tuple[float, float]:
    """``data_range`` is (low, high) with low < high."""
    low, high = data_range
    if not low < high:
        raise ValueError(f"data_range must satisfy low < high, got {data_range!r}")
    return float(low), float(high)
