"""Checks of what users pass in: an error names the argument, its value and the rule."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch takes seconds to load, and lists of names need none
    from torch import Tensor

__all__ = [
    "check_choice",
    "check_count",
    "check_file",
    "check_flag",
    "check_images",
    "check_labels",
    "check_logits",
    "check_positive",
    "check_sigma",
    "check_unit_images",
    "looks_rescaled",
]

# Attacks may query outside [0, 1]: torchattacks' PGDRS adds Gaussian noise and comes to 2.8, and so
# does SparseFool. Nothing but another scale, such as pixels to 255, comes as far as this.
_FARTHEST = 10.0
_UNSUSPICIOUS = (-0.1, 1.1)
# (x - mean) / std * std + mean in float32: a few units in the last place of 1
_ROUNDING = 1e-6
_WHOLE = {f"torch.{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}


def check_images(x: object, *, channels: int | None = None) -> tuple[float, float]:
    """Images of shape (B, C, H, W), float32 or float64, at most 10 from 0.

    Returns:
        The lowest and the highest value; 0 and 0 of an empty batch.

    Raises:
        TypeError: if ``x`` is no tensor.
        ValueError: if its rank, channels, dtype or values can only be a mistake.
    """
    import torch

    if not isinstance(x, torch.Tensor):
        raise TypeError(f"images must be a torch.Tensor, got {type(x).__name__}")
    if x.ndim != 4:
        raise ValueError(f"images must have shape (B, C, H, W), got {tuple(x.shape)}")
    if x.shape[3] in (1, 3, 4) and min(x.shape[1:3]) > 4:
        raise ValueError(
            f"images must have shape (B, C, H, W), got {tuple(x.shape)}, which looks like "
            "(B, H, W, C): pass images.permute(0, 3, 1, 2)"
        )
    if channels is not None and x.shape[1] != channels:
        raise ValueError(
            f"images must have the denoiser's {channels} channels, got shape {tuple(x.shape)}"
        )
    if x.dtype not in (torch.float32, torch.float64):
        hint = {
            False: "; divide integer pixels by 255",
            True: "; for half-precision networks use float32 images under torch.autocast",
        }[x.is_floating_point()]
        raise ValueError(f"images must be float32 or float64 in [0, 1], got {x.dtype}{hint}")
    if x.numel() == 0:
        return 0.0, 0.0
    low, high = torch.stack(x.detach().aminmax()).tolist()  # NaN comes out as NaN
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"images must be finite, got values from {low} to {high}")
    if low < -_FARTHEST or high > _FARTHEST:
        raise ValueError(_wrong_scale(low, high))
    return low, high


def check_unit_images(x: object) -> Tensor:
    """As :func:`check_images`, and in [0, 1]: for doors at which no attack stands.

    Returns:
        The images, of which rounding errors beyond 0 and 1 are cut off.
    """
    import torch

    low, high = check_images(x)
    assert isinstance(x, torch.Tensor)
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        raise ValueError(_wrong_scale(low, high))
    return x.clamp(0, 1) if low < 0 or high > 1 else x


def check_labels(y: object, count: int) -> Tensor:
    """Labels of ``count`` images, whole numbers of any type, as the int64 that losses take."""
    import torch

    if not isinstance(y, torch.Tensor) or str(y.dtype) not in _WHOLE or y.shape != (count,):
        got, hint = type(y).__name__, ": pass torch.as_tensor(labels)"
        if isinstance(y, torch.Tensor):
            got = f"{y.dtype} of {tuple(y.shape)}"
            hints = {(count,): ": pass labels.long()", (count, 1): ": pass labels.flatten()"}
            one_hot = y.ndim == 2 and len(y) == count
            hint = hints.get(tuple(y.shape), ": pass labels.argmax(1)" if one_hot else "")
        raise ValueError(f"labels must be integers of shape ({count},), got {got}{hint}")
    y = y.long()
    if count and y.min() < 0:
        raise ValueError(f"labels must be classes from 0 on, got {int(y.min())}")
    return y


def check_logits(logits: object, count: int) -> Tensor:
    """A classifier's answer to ``count`` images: floating, shape ``(count, K)``, K at least 2.

    Returns:
        Memory of its own: a CUDA graph, and other things that run networks, write each answer where
        the one before it was.

    Raises:
        ValueError: saying how a classifier that answers otherwise is wrapped.
    """
    import torch

    if isinstance(logits, torch.Tensor):
        shape = tuple(logits.shape)
        if len(shape) == 2 and len(logits) == count and shape[1] > 1 and logits.is_floating_point():
            return logits.clone()
        got = f"{logits.dtype} of {shape}"
        one = shape in ((count,), (count, 1))  # of class 1, as binary cross-entropy takes it
        z = "z = self.model(x).flatten(); return torch.stack([torch.zeros_like(z), z], 1)"
        wrapped = z if one else ""
    else:
        got = type(logits).__name__
        if hasattr(logits, "logits"):
            wrapped = "return self.model(x).logits"
        elif isinstance(logits, Mapping):
            wrapped = 'return self.model(x)["logits"]'
        else:
            wrapped = "return self.model(x)[0]" if isinstance(logits, (tuple, list)) else ""
    hint = f"; wrap it in a module whose forward is `{wrapped}`" if wrapped else ""
    raise ValueError(
        f"the classifier must return logits of shape ({count}, K), K at least 2, for {count} "
        f"images, got {got}{hint}"
    )


def looks_rescaled(low: float, high: float) -> bool:
    """Whether values go further from [0, 1] than black-box queries do (SPSA's: by 0.01)."""
    return low < _UNSUSPICIOUS[0] or high > _UNSUSPICIOUS[1]


def _wrong_scale(low: float, high: float) -> str:
    return (
        f"images must be in [0, 1], got values from {low:.4g} to {high:.4g}: divide pixels by "
        "255, and leave any normalisation to the classifier"
    )


def check_sigma(
    sigma: object, *, valid: tuple[float, float] = (0.0, math.inf), name: str = "sigma"
) -> tuple[float, float]:
    """A noise level or a (low, high) range of them as a range, within ``valid``."""
    try:
        ends = tuple(sigma) if isinstance(sigma, Iterable) else (sigma, sigma)
        if any(isinstance(end, (str, bytes, bool)) for end in (sigma, *ends)):
            raise TypeError  # float() would take them
        low, high = (float(end) for end in ends)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a number or a (low, high) pair, got {sigma!r}") from None
    if not 0 < low <= high < math.inf:
        raise ValueError(f"{name} must satisfy 0 < low <= high, got {sigma!r}")
    if low < valid[0] or high > valid[1]:
        raise ValueError(
            f"{name} must be within [{valid[0]:g}, {valid[1]:g}], the noise levels this denoiser "
            f"is valid for, got {low if low == high else (low, high)}"
        )
    return low, high


def check_choice(name: str, value: object, allowed: Iterable[str]) -> None:
    """``value`` is one of ``allowed``."""
    allowed = list(allowed)
    if value not in allowed:
        raise ValueError(f"{name} must be one of {allowed}, got {value!r}")


def check_flag(name: str, value: object) -> None:
    """``value`` is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}")


def check_count(name: str, value: object, *, least: int = 1, most: int | None = None) -> int:
    """``value`` is a whole number of at least ``least``, and at most ``most``."""
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    number = int(value) if is_whole else least - 1  # type: ignore[call-overload]
    if number < least or (most is not None and number > most):
        allowed = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be a whole number {allowed}, got {value!r}")
    return number


def check_positive(name: str, value: object, *, zero: bool = False) -> float:
    """``value`` is a finite number above zero (or, with ``zero``, at zero)."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    number = float(value) if is_number else math.nan  # type: ignore[arg-type]
    if not (0 < number < math.inf or (zero and number == 0)):
        rule = "at least 0" if zero else "above 0"
        raise ValueError(f"{name} must be a finite number {rule}, got {value!r}")
    return number


def check_file(path: str | Path, *, most: float = math.inf) -> int:
    """The size of a regular file: devices and pipes may have no end.

    Args:
        path: of the file.
        most: bytes that it may have.

    Raises:
        OSError: if there is nothing at ``path``.
        ValueError: if it is no regular file, or a larger one.
    """
    about = os.stat(path)
    if not stat.S_ISREG(about.st_mode):
        raise ValueError(f"{path} is no regular file")
    if about.st_size > most:
        raise ValueError(f"{path} must have at most {most:,} bytes, got {about.st_size:,}")
    return about.st_size
