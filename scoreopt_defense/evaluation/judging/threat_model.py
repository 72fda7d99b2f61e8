"""What an attack is allowed: images in [0, 1], within ε of the clean one."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from scoreopt_defense.attacks.protocols import Attacking

__all__ = [
    "bound_of",
    "check_attack",
    "check_attacked",
    "inside",
    "level",
    "named_bound",
    "norm_of",
    "reaches",
    "threat_of",
    "usual_eps",
]

_KNOWN = "'linf', 'l2' or 'l1', or 'flow' or 'color' for a bound that is no distance of pixels"
_P = {"inf": math.inf, "infinity": math.inf, "infty": math.inf, "∞": math.inf}
_P |= {"2": 2.0, "2.0": 2.0, "1": 1.0, "1.0": 1.0}
# ε by norm, of grey images of 28 x 28 (Maini et al., ICML 2020) and of others (RobustBench).
_USUAL = {True: {"linf": 0.3, "l2": 2.0}, False: {"linf": 8 / 255, "l2": 0.5}}
# Rounding of x + delta, and of a projection, in float32: a few units in the last place of 1.
_SLACK = 1e-5


def inside(attack: Any, x: Tensor, queries: Tensor) -> Tensor:
    """Whether each query is an image that the attack may return for its clean one.

    Args:
        attack: held to its bound, if it has one; see :func:`bound_of`.
        x: clean images, shape ``(B, C, H, W)``, in [0, 1].
        queries: same shape.

    Returns:
        Booleans, shape ``(B,)``; false where a query is not finite.
    """
    legal, bound = _legal(queries), bound_of(attack)
    if bound is None:
        return legal
    norm, eps = bound
    return legal & ((queries - x).flatten(1).norm(norm, dim=1) <= _rounded(eps))


def reaches(attack: Any, x: Tensor, queries: Tensor) -> Tensor:
    """Of which clean images each query may be returned: as :func:`inside`, of every pair.

    Args:
        attack: as there; without a bound, a query is of the clean image that it is nearest to, and
            of the one at its place in the batch if that is as near.
        x: clean images, shape ``(B, C, H, W)``, in [0, 1].
        queries: shape ``(Q, C, H, W)``.

    Returns:
        Booleans, shape ``(Q, B)``.
    """
    bound = bound_of(attack)
    norm, eps = (2.0, 0.0) if bound is None else bound
    distances = torch.cdist(
        queries.to(x).flatten(1), x.flatten(1), norm, compute_mode="donot_use_mm_for_euclid_dist"
    )
    if bound is None:
        place = torch.arange(len(queries), device=x.device) % len(x)
        lowest, nearest = distances.min(1)
        at_place = distances.gather(1, place[:, None]).squeeze(1)
        owner = torch.where(at_place <= lowest, place, nearest)
        near = owner[:, None] == torch.arange(len(x), device=x.device)
    else:
        near = distances <= _rounded(eps)
    return near & _legal(queries)[:, None]


def _legal(queries: Tensor) -> Tensor:
    flat = queries.flatten(1)
    return ((flat >= -_SLACK) & (flat <= 1 + _SLACK)).all(1)


def _rounded(eps: float) -> float:
    return eps + _SLACK * max(1.0, eps)


def norm_of(norm: object) -> float | None:
    """The p of an lp norm, however a library spells it: infinity for ``"L-inf"`` or ``np.inf``.

    Returns:
        None for ``"flow"``, ``"color"`` and ``None``: no distance between images.

    Raises:
        ValueError: of any other norm, and its message names those that are known.
    """
    if norm in (None, "flow", "color"):
        return None
    said = re.fullmatch(r"(?:l[\s_-]*)?(\S+)", str(norm).lower().strip())
    if said is None or said[1] not in _P:
        raise ValueError(f"norm must be {_KNOWN}; or None, for no bound, got {norm!r}")
    return _P[said[1]]


def bound_of(attack: Any) -> tuple[float, float] | None:
    """An attack's norm, as its p, and its radius.

    Args:
        attack: with attributes ``norm``, as :func:`norm_of` knows it, and ``eps``, above or at 0,
            images being in [0, 1], so in linf at most 1, or infinity; with neither, or
            ``norm = None``, it may return any image.

    Raises:
        ValueError: if it has one of both alone, or one of them is unknown: it would be held to
            nothing, in silence.
    """
    norm, eps = getattr(attack, "norm", None), getattr(attack, "eps", None)
    p = norm_of(norm)
    if norm is None:
        if eps is not None and not hasattr(attack, "norm"):
            raise ValueError(
                f"an attack with eps must say its norm, {_KNOWN}; or norm = None, for no bound, "
                f"got eps = {eps!r} alone"
            )
        return None
    if not isinstance(eps, Real) or not float(eps) >= 0:
        raise ValueError(f"an attack of norm {norm!r} must have eps, at least 0, got {eps!r}")
    if p == math.inf and 1 < float(eps) < math.inf:
        raise ValueError(
            f"an attack of norm {norm!r} must have eps, at most 1, images being in [0, 1], got "
            f"{eps!r}; 8 of 255 levels are 8/255, and norm = None is no bound"
        )
    return None if p is None else (p, float(eps))


def usual_eps(norm: object, shape: Sequence[int] = ()) -> float | None:
    """The ε that defences of such images are usually attacked within; None of another norm.

    Args:
        norm: ``"linf"`` or ``"l2"``.
        shape: of an image, ``(C, H, W)``, if it is known: ``(1, 28, 28)`` is taken for MNIST.

    Example:
        >>> usual_eps("linf", (1, 28, 28))
        0.3
    """
    return _USUAL[tuple(shape) == (1, 28, 28)].get(str(norm))


def threat_of(norm: str, eps: float | None, x: Tensor) -> dict[str, Any]:
    """What attacks on such images are made with; without an eps, the :func:`usual_eps`."""
    return {"norm": norm, "eps": usual_eps(norm, x.shape[1:]) if eps is None else eps}


def named_bound(attack: Any) -> tuple[str, float] | None:
    """As :func:`bound_of`, the norm by its name; None of an infinite radius too."""
    bound = bound_of(attack)
    if bound is None or bound[1] == math.inf:
        return None
    return ("linf" if bound[0] == math.inf else f"l{bound[0]:g}"), bound[1]


def check_attack(what: str, attack: Any) -> None:
    """That it can be run, and is held to what it says.

    Args:
        what: the attack, in words.

    Raises:
        TypeError, ValueError: otherwise.
    """
    if not isinstance(attack, Attacking):
        raise TypeError(
            f"{what} must have run(model, x, y) and as_dict(), got {type(attack).__name__}"
        )
    try:
        bound_of(attack)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None


def check_attacked(attack: Any, x: Tensor, attacked: Any) -> Tensor:
    """An attack's result, clamped to [0, 1] and without a graph.

    Raises:
        ValueError: if it is no such batch, is not finite, or leaves the attack's own bound.
    """
    if not isinstance(attacked, Tensor) or attacked.shape != x.shape:
        got = tuple(attacked.shape) if isinstance(attacked, Tensor) else type(attacked).__name__
        raise ValueError(f"the attack must return images of shape {tuple(x.shape)}, got {got}")
    attacked = attacked.detach().to(x)
    if not torch.isfinite(attacked).all():
        raise ValueError("the attack returned images that are not finite")
    outside = int((~inside(attack, x, attacked)).sum())
    if outside:
        raise ValueError(
            f"the attack left its threat model on {outside} of {len(x)} images: values in "
            f"[{attacked.min():.4g}, {attacked.max():.4g}], largest change "
            f"{(attacked - x).abs().max():.4g}, norm {getattr(attack, 'norm', None)}, eps "
            f"{getattr(attack, 'eps', None)}"
        )
    return attacked.clamp(0, 1)


def level(eps: float) -> str:
    """As in ``8/255``, where it is a whole number of levels; of those that people say so."""
    levels = 255 * eps
    whole = 0.5 < levels < 32.5 and abs(levels - round(levels)) < 1e-6
    return f"{round(levels)}/255" if whole else f"{eps:g}"
