"""Controls: what is run beside the attacks, to show whether their figures can be believed."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from torch import nn

from scoreopt_defense.evaluation.plan import Chain
from scoreopt_defense.evaluation.probes import Gradients, strongest_mode
from scoreopt_defense.evaluation.threat import bound_of

__all__ = ["controls", "noise_beside"]

_NORMS = {float("inf"): "linf", 2.0: "l2"}  # that there is noise of
_STEPS = 10  # of a quarter of the range each


def controls(
    defences: Mapping[str, nn.Module], attacks: Mapping[str, Any]
) -> tuple[Chain, dict[str, Any]]:
    """What the checks of these attacks rest on, as a chain without stages; and it by name.

    Of each defence the gradients; where an attack has an eps, also one attack without a bound, in
    the strongest mode of the defence; and noise of the size of each that is bounded in linf or l2.
    """
    bounded = any(getattr(attack, "eps", None) is not None for attack in attacks.values())
    sizes = {name: size for name, attack in attacks.items() if (size := _noise(attack))}
    noises = {noise_beside(name): found for name, found in sizes.items()}
    probes = {
        defence: {"gradients": ("check/gradients", Gradients())}
        | noises
        | ({"unbounded": _unbounded(model)} if bounded else {})
        for defence, model in defences.items()
    }
    chain = Chain(
        stages={},
        probes={
            defence: {role: name for role, (name, _) in parts.items()}
            for defence, parts in probes.items()
        },
    )
    return chain, dict(part for parts in probes.values() for part in parts.values())


def noise_beside(attack: str) -> str:
    """The role of the noise that is as large as this attack."""
    return f"noise of {attack}'s size"


def _noise(attack: Any) -> tuple[str, Any] | None:
    """Noise of its size, by name; of one that reaches any image at all there is none."""
    bound = bound_of(attack)
    if bound is None or bound[0] not in _NORMS:
        return None
    norm, eps = _NORMS[bound[0]], bound[1]
    with suppress(ValueError):
        return f"check/noise, {norm} {eps:.4g}", _library().Noise(norm=norm, eps=eps)
    return None


def _unbounded(model: nn.Module) -> tuple[str, Any]:
    """Any image at all may be returned: what stops the attack is its gradient."""
    mode = strongest_mode(model)
    attack = _library().PGD(norm="linf", eps=1.0, gradient=mode, eot=1, steps=_STEPS)
    return f"check/unbounded, {mode}", attack


def _library() -> Any:
    return importlib.import_module("scoreopt_defense.attacks")
