"""Whether a defence is the one that was judged, perhaps on another machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from scoreopt_defense.evaluation.plan.behaviour import behaviour, unlike
from scoreopt_defense.evaluation.plan.fingerprint import described
from scoreopt_defense.evaluation.plan.parts import Defence

__all__ = ["another"]


def another(
    judged: Defence,
    model: nn.Module,
    shape: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    threads: int = 1,
) -> str | None:
    """Why a model is not the defence that was judged; None if it is.

    Settings and digests of weights must be equal, but for what one of both versions of this library
    does not know, and for digests of code, which differ from Python to Python: that shows in the
    answers. Those must be equal within the rounding that is measured here; what a file says of
    rounding is not believed.

    Args:
        judged: as a record or a bundle has it.
        model: in eval mode.
        shape, dtype, threads: as of :func:`~scoreopt_defense.evaluation.plan.behaviour.behaviour`.
    """
    if said := _other(judged.about, described(model)):
        return said
    now = behaviour(model, shape, dtype, threads)
    was = judged.behaviour and {
        name: {"of": answer["of"], "rounding": (now or {}).get(name, answer)["rounding"]}
        for name, answer in judged.behaviour.items()
    }
    return unlike(was, now)


def _other(was: Any, now: Any, name: str = "it") -> str | None:
    """The first setting of both that differs."""
    if not (isinstance(was, Mapping) and isinstance(now, Mapping)):
        return None if was == now else f"{name} was {str(was)[:40]}, and is {str(now)[:40]}"
    both = (key for key in now if key in was and key != "code")
    return next(filter(None, (_other(was[key], now[key], key) for key in both)), None)
