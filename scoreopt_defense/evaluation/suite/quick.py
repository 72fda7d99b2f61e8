"""The quick suite: the strongest few attacks and the cheap checks, for a first answer."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from scoreopt_defense._checks import check_choice, check_count
from scoreopt_defense.attacks.bounded import LARGEST, check_eps
from scoreopt_defense.defended import DefendedModel
from scoreopt_defense.evaluation.judging.threat_model import threat_of
from scoreopt_defense.evaluation.plan.tasks import Attack, Clean, Judge, Probe, Suite, Task, Worst
from scoreopt_defense.evaluation.suite.probes import (
    Bare,
    Convergence,
    Gradients,
    check_divisible,
    check_reachable,
    gradient_modes,
    strongest_mode,
    untried,
)
from scoreopt_defense.settings import Settings

__all__ = ["Quick"]


@dataclass(frozen=True, kw_only=True)
class Quick(Settings, Suite):
    """Settings of the quick suite, about ten minutes for 64 images of the networks that ship.

    PGD on the bare classifier, momentum PGD on the one-shot surrogate, and momentum PGD in the
    strongest gradient mode that the defence has: of the single attacks the one that leaves least.
    The worst of each image is judged again by fresh purifications. What it leaves is an upper bound
    of what :class:`~scoreopt_defense.evaluation.suite.adaptive.Adaptive` does, which has many more.

    Args:
        norm: ``"linf"`` or ``"l2"``.
        eps: radius, images being in [0, 1]; by default the usual one of such images: see
            :func:`~scoreopt_defense.evaluation.judging.threat_model.usual_eps`.
        steps: of momentum PGD, one purification each; of fewer than 80 it gains little.
        queries: of the black box that the checks have, an image.
        confirm: further purifications of an image that all judged ones of an attack got wrong,
            before no later attack is tried on it.
        probed: images that the checks are run on, the first ones of the run; their white box has
            half the steps.
        autocast: of every attack, as in :class:`~scoreopt_defense.attacks.BoundedAttack`: in half
            precision where the hardware has it. The judging is in full precision.

    Raises:
        ValueError: naming the setting, its value and what is allowed.
    """

    norm: str = "linf"
    eps: float | None = None
    steps: int = 80
    queries: int = 100
    confirm: int = 32
    probed: int = 16
    autocast: str | None = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("norm", self.norm, ("linf", "l2"))
        if self.eps is not None:
            self._set("eps", check_eps(self.eps, self.norm))
        for name, least in {"steps": 2, "queries": 2, "confirm": 0, "probed": 0}.items():
            self._set(name, check_count(name, getattr(self, name), least=least))

    def tasks(self, model: nn.Module, x: Tensor) -> dict[str, Task]:
        """See :class:`~scoreopt_defense.evaluation.plan.tasks.Suite`."""
        check_reachable(model)
        check_divisible(model)
        library = importlib.import_module("scoreopt_defense.attacks")
        threat = threat_of(self.norm, self.eps, x)
        shared = threat | {"autocast": self.autocast}
        best = strongest_mode(model)
        transfer = library.attack(f"transfer-pgd-{self.norm}", eps=threat["eps"])
        attacks: dict[str, Any] = {}
        if isinstance(model, DefendedModel):
            attacks["transfer PGD"] = transfer
        if "one-shot" in gradient_modes(model):
            attacks["momentum PGD at the surrogate"] = library.MomentumPGD(
                gradient="surrogate", steps=self.steps, **shared
            )
        attacks[f"momentum PGD, {best}"] = library.MomentumPGD(
            gradient=best, steps=self.steps, **shared
        )
        tasks: dict[str, Task] = {"no attack": Attack(attack=Clean(), confirm=self.confirm)}
        for label, attack in attacks.items():
            tasks[label] = Attack(attack=attack, begins_from=[*tasks], confirm=self.confirm)
        tasks[""] = Judge(attack=Worst(**threat), begins_from=[*tasks])
        if not self.probed:
            return tasks

        def white_box(**settings: Any) -> Any:
            given = shared | {"gradient": best, "steps": max(2, self.steps // 2)} | settings
            return library.MomentumPGD(**given)

        probes = {
            "white-box": white_box(),
            "double eps": white_box(eps=min(2 * threat["eps"], LARGEST[self.norm])),
            "unbounded": white_box(norm="linf", eps=1.0),
            "black box": library.Square(**shared, eot=1, steps=self.queries - 1),
            "noise": library.RandomNoise(**threat),
            "gradients": Gradients(),
        }
        if isinstance(model, DefendedModel):
            probes |= {"transfer": transfer, "boundary": library.Boundary(**threat), "bare": Bare()}
        if Convergence.fits(model):
            probes["descent"] = Convergence(**threat)
        return tasks | {
            f"check/{role}": Probe(attack=attack, images=self.probed, role=role)
            for role, attack in probes.items()
        }

    def untried(self, model: nn.Module) -> dict[str, str]:
        return untried(model)
