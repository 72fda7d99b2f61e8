"""What an attack is allowed: images in [0, 1], within ε of the clean one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["check_attacked", "inside", "reaches"]

# as torchattacks, ART, NumPy and Foolbox spell them
_NORMS = {
    **dict.fromkeys(("linf", "l_inf", "inf"), float("inf")),
    **dict.fromkeys(("l2", "l_2", "2", "2.0"), 2.0),
    **dict.fromkeys(("l1", "l_1", "1", "1.0"), 1.0),
}
# Rounding of x + delta, and of a projection, in float32: a few units in the last place of 1.
_SLACK = 1e-5


def inside(attack: Any, x: Tensor, queries: Tensor) -> Tensor:
    """Whether each query is an image that the attack may return for its clean one.

    Args:
        attack: with attributes ``norm`` (``"linf"``, ``"l2"`` or ``"l1"``, or as other libraries
            spell them) and ``eps``, if it has a bound.
        x: clean images, shape ``(B, C, H, W)``, in [0, 1].
        queries: same shape.

    Returns:
        Booleans, shape ``(B,)``; false where a query is not finite.
    """
    legal, bound = _legal(queries), _bound(attack)
    if bound is None:
        return legal
    norm, most = bound
    return legal & ((queries - x).flatten(1).norm(norm, dim=1) <= most)


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
    bound = _bound(attack)
    norm, most = (2.0, 0.0) if bound is None else bound
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
        near = distances <= most
    return near & _legal(queries)[:, None]


def _legal(queries: Tensor) -> Tensor:
    flat = queries.flatten(1)
    return ((flat >= -_SLACK) & (flat <= 1 + _SLACK)).all(1)


def _bound(attack: Any) -> tuple[float, float] | None:
    """Its norm and radius, if an attack has one, with what rounding adds."""
    norm, eps = str(getattr(attack, "norm", None)).lower(), getattr(attack, "eps", None)
    if eps is None or norm not in _NORMS:
        return None
    return _NORMS[norm], eps + _SLACK * max(1.0, eps)


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
