"""Momentum PGD under each gradient by itself, and what the worst images show of a purifier."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scoreopt_defense._checks import check_choice, check_count
from scoreopt_defense.attacks.bounded import check_eps
from scoreopt_defense.defended import DefendedModel
from scoreopt_defense.evaluation.judging.asking import answer
from scoreopt_defense.evaluation.judging.threat_model import threat_of
from scoreopt_defense.evaluation.plan.tasks import Attack, Clean, Judge, Suite, Task, Worst
from scoreopt_defense.evaluation.record.statistics import majority
from scoreopt_defense.evaluation.suite.probes import check_reachable, gradient_modes
from scoreopt_defense.purifiers.settings import PER_IMAGE
from scoreopt_defense.settings import Settings

__all__ = ["EveryGradient", "Examined"]


@dataclass(frozen=True, kw_only=True)
class Examined(Worst):
    r"""The worst images, judged as :class:`Worst` has it, and measured.

    ``"right, draw known"``: whether the defence is right of the image under the fixed draw that
    ``deterministic="per-image", seed=draw`` gives it. ``"majority of k"``: the share of so many
    fresh purifications' majorities that is right. ``"attack, before"`` and ``", after"``:
    :math:`\|\delta\|_2` and :math:`\|P(x + \delta) - P(x)\|_2`, one draw in both; ``"random, ..."``
    the same of :math:`\delta` with random signs. Of a deterministic purifier the last two alone, of
    another module nothing.
    """

    votes: tuple[int, ...]
    draw: int

    def as_dict(self) -> dict[str, Any]:
        return super().as_dict() | {"votes": list(self.votes), "draw": self.draw}

    @torch.no_grad()
    def measure(
        self, model: nn.Module, x: Tensor, y: Tensor, *, start: Tensor
    ) -> dict[str, Tensor]:
        if not isinstance(model, DefendedModel):
            return {}
        is_random = not model.purifier.deterministic
        known = model.replace(deterministic=PER_IMAGE, seed=self.draw) if is_random else model
        signs = torch.randint_like(x, 2) * 2 - 1
        ends = {"attack": start, "random": (x + signs * (start - x)).clamp(0, 1)}
        found, purified = {}, known.purify(x)
        for name, end in ends.items():
            found[f"{name}, before"] = (end - x).flatten(1).norm(dim=1)
            found[f"{name}, after"] = (known.purify(end) - purified).flatten(1).norm(dim=1)
        if not is_random:
            return found
        found["right, draw known"] = (answer(known, start).argmax(1) == y).float()
        drawn = [answer(model, start).argmax(1) for _ in range(max(self.votes))]
        predicted, labels = torch.stack(drawn, 1).cpu().numpy(), y.cpu().numpy()
        for k in self.votes:
            groups = predicted[:, : len(drawn) // k * k].reshape(-1, k)
            right = majority(groups, labels.repeat(len(groups) // len(labels)))
            found[f"majority of {k}"] = torch.from_numpy(right.reshape(len(labels), -1).mean(1))
        return found


@dataclass(frozen=True, kw_only=True)
class EveryGradient(Settings, Suite):
    """Settings of the suite that a decomposition is made of.

    Momentum PGD on all images under each gradient mode of the defence, at the one-shot surrogate
    and at the classifier alone; then of each image the worst, no attack among them, judged by
    purifications that chose none of it, and :class:`Examined`.

    Args:
        norm: ``"linf"`` or ``"l2"``.
        eps: radius, images being in [0, 1]; by default the usual one of such images.
        steps: of each attack, one purification each.
        votes: numbers of purifications whose majority is looked at.
        draw: seed of the fixed draws.
        autocast: of every attack, as in :class:`~scoreopt_defense.attacks.BoundedAttack`.

    Raises:
        ValueError: naming the setting, its value and what is allowed.
    """

    norm: str = "linf"
    eps: float | None = None
    steps: int = 40
    votes: tuple[int, ...] = (1, 8, 64)
    draw: int = 0
    autocast: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("norm", self.norm, ("linf", "l2"))
        if self.eps is not None:
            self._set("eps", check_eps(self.eps, self.norm))
        self._set("steps", check_count("steps", self.steps, least=2))
        self._set("votes", tuple(check_count("votes", k) for k in self.votes))
        if not self.votes:
            raise ValueError("votes must be at least one number, got ()")
        self._set("draw", check_count("draw", self.draw, least=0))

    def tasks(self, model: nn.Module, x: Tensor) -> dict[str, Task]:
        """See :class:`~scoreopt_defense.evaluation.plan.tasks.Suite`."""
        check_reachable(model)
        library = importlib.import_module("scoreopt_defense.attacks")
        threat = threat_of(self.norm, self.eps, x)
        tasks: dict[str, Task] = {"no attack": Attack(attack=Clean())}
        for shown in _gradients(model):
            tasks[shown] = Attack(
                attack=library.MomentumPGD(
                    gradient=shown, steps=self.steps, autocast=self.autocast, **threat
                )
            )
        examined = Examined(**threat, votes=self.votes, draw=self.draw)
        return tasks | {"": Judge(attack=examined, begins_from=[*tasks])}


def _gradients(model: nn.Module) -> tuple[str, ...]:
    """What an attack can be shown of a model."""
    modes = gradient_modes(model)
    if not isinstance(model, DefendedModel):
        return modes
    return ("classifier", *(["surrogate"] if "one-shot" in modes else []), *modes)
