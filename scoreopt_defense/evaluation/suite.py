"""The adaptive suite: every attack that a defence can be met with, cheapest first."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scoreopt_defense._checks import check_choice, check_count, check_positive
from scoreopt_defense.defended import DefendedModel
from scoreopt_defense.evaluation.chain import WorstCase
from scoreopt_defense.evaluation.plan import Chain
from scoreopt_defense.evaluation.probes import Bare, Descent, Gradients, gradient_modes
from scoreopt_defense.purifiers import Purifier
from scoreopt_defense.settings import Settings

__all__ = ["SUITES", "Adaptive", "Member"]

#: ε of the paper's threat models, by norm.
_EPS = {"linf": 8 / 255, "l2": 0.5}
# Passes of a network that an evaluation of the model takes, about, by what an attack is shown: for
# the order of the stages alone.
_PASSES = {"classifier": 0.1, "surrogate": 1, "bpda": 10, "one-shot": 11, "none": 10}
_PASSES |= {"as-it-is": 11, "exact": 40, "smoothed": 40}
# The modes by what they found here, strongest first: docs/robustness.md.
_STRONGEST = ("smoothed", "exact", "one-shot", "bpda", "as-it-is")


@dataclass(frozen=True)
class Member:
    """What a suite does with one defence.

    Attributes:
        stages: attacks by name, in order.
        probes: attacks and measurements for the checklist alone, with their names, by what they
            are to it.
        untried: what could not be tried, and why.
    """

    stages: Mapping[str, Any]
    probes: Mapping[str, tuple[str, Any]]
    untried: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Adaptive(Settings):
    """Settings of the adaptive suite.

    Images of the bare classifier and of the one-shot surrogate; PGD with EOT, from the worst image
    found so far, and AutoAttack for randomised defences, under each gradient mode that the defence
    offers; Square and SPSA; and restarts. An image that is wrong in every judged purification of
    some attack leaves the queue. The worst of each image is judged again by fresh purifications:
    that is robust accuracy.

    Args:
        norm: ``"linf"`` or ``"l2"``.
        eps: radius, images being in [0, 1]; by default 8/255 and 0.5.
        steps: of PGD and AutoAttack.
        eot: purifications that each of their steps is averaged over.
        restarts: random starts of the strongest PGD, at the end.
        queries: of Square and SPSA each, an image.
        probed: images that the checklist's probes run on, the first ones of the run. Their white
            box has half the steps, of half the samples: it is run eight times over.
        autocast: of every attack, as in :class:`~scoreopt_defense.attacks.BoundedAttack`: cheaper
            gradients; the judging is in full precision.

    Raises:
        ValueError: naming the setting, its value and what is allowed.

    Reference:
        Athalye et al., ICML 2018; Carlini et al., 2019; Croce et al., ICML 2022.
    """

    norm: str = "linf"
    eps: float = None  # type: ignore[assignment]  # the norm's
    steps: int = 20
    eot: int = 20
    restarts: int = 2
    queries: int = 1000
    probed: int = 32
    autocast: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("norm", self.norm, _EPS)
        self._set("eps", check_positive("eps", _EPS[self.norm] if self.eps is None else self.eps))
        for name, least in {"steps": 2, "eot": 1, "restarts": 1, "queries": 20}.items():
            self._set(name, check_count(name, getattr(self, name), least=least))
        self._set("probed", check_count("probed", self.probed, least=0))

    def member(self, model: nn.Module, x: Tensor) -> Member:
        """The suite for one defence; ``x`` are images that it may be asked about."""
        library = importlib.import_module("scoreopt_defense.attacks")
        ours = isinstance(model, DefendedModel)
        if not ours and any(isinstance(part, Purifier) for part in model.modules()):
            raise ValueError(
                f"the suite cannot set the gradient modes of a purifier inside a "
                f"{type(model).__name__}: pass the DefendedModel itself"
            )
        modes = gradient_modes(model)
        best = next(mode for mode in _STRONGEST if mode in modes)
        threat: dict[str, Any] = {"norm": self.norm, "eps": self.eps}
        shared = threat | {"autocast": self.autocast}
        eot = self.eot if _is_random(model, x) else 1
        budget = shared | {"steps": self.steps, "eot": eot}
        restarts = {"random_start": True, "restarts": self.restarts}
        answers = shared | {"eot": min(8, eot)}
        # What differs between defences is in the name, so that a name means one attack in any run.
        averaged, alone = ("+EOT", "") if eot > 1 else ("", ", no EOT")

        square = library.Square(**answers, steps=max(1, self.queries // answers["eot"] - 1))
        transfer = library.attack(f"transfer-pgd-{self.norm}", eps=self.eps)
        boundary = library.Boundary(**threat)
        last = library.PGD(gradient=best, **budget, **restarts)
        stages = {}
        for mode in modes:
            stages[f"PGD{averaged}, {mode}"] = library.FoolboxPGD(gradient=mode, **budget)
            stages[f"APGD{averaged}, {mode}"] = library.AutoAttack(gradient=mode, **budget)
        stages[f"Square{alone}"] = square
        if self.norm == "linf":
            stages["SPSA"] = library.SPSA(**shared, samples=self.queries // 10)
        if ours:
            stages |= {"transfer PGD": transfer, "boundary": boundary}
        if "one-shot" in modes:
            stages["PGD+EOT at the surrogate"] = library.PGD(gradient="surrogate", **budget)
        stages |= {f"PGD{averaged}, {best}, restarts": last, "": WorstCase(**threat)}

        half = {"steps": max(2, self.steps // 2), "eot": max(min(2, eot), eot // 2)}

        def pgd(**settings: Any) -> Any:
            return library.PGD(**(shared | half | {"gradient": best} | settings))

        farthest = {"linf": 1.0, "l2": 10.0}[self.norm]  # that an attack of this library may go
        white_box = {
            "white-box": pgd(),
            "half eps": pgd(eps=self.eps / 2),
            "double eps": pgd(eps=min(2 * self.eps, farthest)),
            "unbounded": pgd(norm="linf", eps=1.0),
            "half steps": pgd(steps=half["steps"] // 2),
            "restarts": pgd(**restarts),
        }
        if half["eot"] > 1:
            white_box["half EOT"] = pgd(eot=half["eot"] // 2)
        probes = {role: (f"{role}, {best}{alone}", attack) for role, attack in white_box.items()}
        others = {"noise": library.Noise(**threat), "gradients": Gradients()}
        if ours:
            others |= {"transfer": transfer, "boundary": boundary, "bare": Bare()}
            if Descent.fits(model):
                others["descent"] = Descent()
        probes |= {role: (role, attack) for role, attack in others.items()}
        probes["black box"] = f"black box{alone}", square
        return Member(stages, probes if self.probed else {}, _untried(model, modes))

    def chain(
        self, name: str, defences: Mapping[str, nn.Module], x: Tensor
    ) -> tuple[Chain, dict[str, Any]]:
        """The suite made out for these defences, and its attacks by the name ``suite/attack``."""
        members = {defence: self.member(model, x) for defence, model in defences.items()}
        stages = {part: a for member in members.values() for part, a in member.stages.items()}
        # cheapest first over all defences; the restarts and the judging stay last
        order = sorted(stages, key=lambda p: (p == "", "restarts" in p, _cost(stages[p])))
        chain = Chain(
            stages={
                defence: [_named(name, part) for part in order if part in member.stages]
                for defence, member in members.items()
            },
            probes={
                defence: {r: _named(name, "check", part) for r, (part, _) in member.probes.items()}
                for defence, member in members.items()
            },
            probed=self.probed,
            untried={defence: dict(member.untried) for defence, member in members.items()},
        )
        probes = dict(pair for member in members.values() for pair in member.probes.values())
        attacks = {_named(name, part): stages[part] for part in order}
        return chain, attacks | {_named(name, "check", part): a for part, a in probes.items()}


#: What ``suite =`` may be by name.
SUITES: dict[str, type[Adaptive]] = {"adaptive": Adaptive}


def _named(*parts: str) -> str:
    return "/".join(part for part in parts if part)


def _cost(attack: Any) -> float:
    """Passes of a network an image, about; the judging of what was found comes last."""
    if not hasattr(attack, "queries"):
        return float("inf")
    shown = attack.as_dict()["gradient"]["name"]
    passes = _PASSES.get(shown, 40)
    answered = attack.queries - attack.gradients
    return passes * attack.gradients + min(passes, 10) * answered


@torch.no_grad()
def _is_random(model: nn.Module, x: Tensor) -> bool:
    """Whether a model answers twice in two ways."""
    if isinstance(model, DefendedModel):
        return not model.purifier.deterministic
    with torch.random.fork_rng():
        weight = next(model.parameters(), x)
        few = x[:2].to(weight.device)
        return not torch.equal(model(few), model(few))


def _untried(model: nn.Module, modes: tuple[str, ...]) -> dict[str, str]:
    if isinstance(model, DefendedModel):
        return {
            mode: f"{type(model.purifier).__name__} has no such gradient"
            for mode in ("bpda", "one-shot", "exact")
            if mode not in modes
        }
    why = f"{type(model).__name__} is no DefendedModel"
    return {
        "gradient modes": f"{why}: its own backward pass is the only one there is",
        "transfer, boundary and surrogate": f"{why}: no classifier of it is known apart",
        "the purifier's descent": f"{why}: no purifier is known",
    }
