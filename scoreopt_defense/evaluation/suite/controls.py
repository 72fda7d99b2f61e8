"""Controls: what is run beside the attacks, to show whether their figures can be believed."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from torch import Tensor, nn

from scoreopt_defense.evaluation.judging.threat_model import named_bound
from scoreopt_defense.evaluation.plan.tasks import Probe, Suite
from scoreopt_defense.evaluation.suite.probes import Gradients, strongest_mode

__all__ = ["CHECKS", "PROBED", "Controls", "noise_of_size"]

#: What the controls are called in a plan.
CHECKS = "check"
#: How many images they meet, the first ones.
PROBED = 32
_NORMS = ("linf", "l2")  # that there is noise of
_STEPS = 10  # of a quarter of the range each


class Controls(Suite):
    """What the checks of some attacks rest on.

    Of each defence the gradients; where an attack has an eps, also one attack without a bound, in
    the strongest mode of the defence; and noise of the size of each that is bounded in linf or l2.

    Args:
        attacks: by name.
    """

    def __init__(self, attacks: Mapping[str, Any]) -> None:
        self.attacks = attacks

    def tasks(self, model: nn.Module, x: Tensor) -> dict[str, Probe]:
        found = {"gradients": Probe(attack=Gradients(), images=PROBED, role="gradients")}
        for attack in self.attacks.values():
            bound = named_bound(attack)
            if bound is not None and bound[0] in _NORMS:
                norm, eps = bound
                with suppress(ValueError):  # of one that reaches any image at all there is none
                    noise = _library().RandomNoise(norm=norm, eps=eps)
                    role = noise_of_size(bound)
                    found[role] = Probe(attack=noise, images=PROBED, role=role)
        if any(getattr(attack, "eps", None) is not None for attack in self.attacks.values()):
            mode = strongest_mode(model)
            # any image at all may be returned: what stops the attack is its gradient
            attack = _library().PGD(norm="linf", eps=1.0, gradient=mode, eot=1, steps=_STEPS)
            found[f"unbounded, {mode}"] = Probe(attack=attack, images=PROBED, role="unbounded")
        return found


def noise_of_size(bound: tuple[str, float]) -> str:
    """The role of noise that is as large as an attack of this norm and eps."""
    return f"noise, {bound[0]} {bound[1]:.4g}"


def _library() -> Any:
    return importlib.import_module("scoreopt_defense.attacks")
