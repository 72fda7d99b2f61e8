"""The adaptive suite: the attacks that find most of a defence for what they cost."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scoreopt_defense import purifiers
from scoreopt_defense._checks import check_choice, check_count, check_flag, check_positive
from scoreopt_defense._foreign import as_it_was, contained
from scoreopt_defense.attacks.bounded import LARGEST, check_eps
from scoreopt_defense.defended import DefendedModel
from scoreopt_defense.evaluation.judging.asking import answer, answers
from scoreopt_defense.evaluation.judging.fresh import placed
from scoreopt_defense.evaluation.judging.threat_model import threat_of
from scoreopt_defense.evaluation.plan.tasks import (
    CLEAN,
    Attack,
    Clean,
    Judge,
    Probe,
    Suite,
    Task,
    Worst,
)
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
from scoreopt_defense.gradients import Exact, Smoothed
from scoreopt_defense.noise import seeded
from scoreopt_defense.purifiers import Purifier, ThirdParty
from scoreopt_defense.purifiers.without_network import WithoutNetwork
from scoreopt_defense.settings import Settings

__all__ = ["Adaptive"]

# Samples that an answer of what is no momentum is averaged over, if the model is random.
_EOT = 4
_SQUARE_EOT = 8


@dataclass(frozen=True, kw_only=True)
class Adaptive(Settings, Suite):
    """Settings of the adaptive suite.

    Images of the bare classifier and of the one-shot surrogate; momentum PGD, one purification a
    step, under each gradient mode that the defence offers, of more steps under the strongest; of a
    model that is not random AutoAttack, under the strongest (of two classes, its cross-entropy
    alone); without an exact gradient Square; and momentum PGD of more steps from the worst image
    found.
    An image that is wrong in every judged purification of some attack leaves the queue. The worst
    of each image is judged again by fresh purifications: that is robust accuracy.

    Args:
        norm: ``"linf"`` or ``"l2"``.
        eps: radius, images being in [0, 1]; by default the usual one of such images: see
            :func:`~scoreopt_defense.evaluation.judging.threat_model.usual_eps`.
        steps: of each attack that follows gradients; of fewer than 80 momentum gains nothing of
            random models.
        longer: how many times as many those under the strongest gradient mode take, and those from
            the worst image found.
        random: whether models are; if None, each is asked a few times about some clean images,
            which does not find what is random on others alone.
        queries: of Square, an image: as a stage, or as the checklist's black box.
        confirm: further purifications of an image that all judged ones of an attack got wrong,
            before no later attack is tried on it: of 8 alone many are wrong by luck, and the figure
            comes out too high.
        probed: images that the checklist's probes run on, the first ones of the run. Their white
            box is PGD+EOT of an eighth of the steps, of 4 samples: it is run six times over.
        autocast: of every attack, as in :class:`~scoreopt_defense.attacks.BoundedAttack`: in half
            precision where the hardware has it. The judging is in full precision.
        keep_mb: of the exact and smoothed gradients, as in
            :class:`~scoreopt_defense.gradients.Exact`: memory for time; no result depends on it.

    Raises:
        ValueError: naming the setting, its value and what is allowed.

    Reference:
        Athalye et al., ICML 2018; Carlini et al., 2019; Croce et al., ICML 2022. Which attacks, in
        which order: docs/results/robustness.md.
    """

    norm: str = "linf"
    eps: float | None = None
    steps: int = 80  # of one sample each: docs/results/gradients.md
    longer: int = 4
    random: bool | None = None
    queries: int = 1000
    confirm: int = 32
    probed: int = 32
    autocast: str | None = "auto"
    keep_mb: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("norm", self.norm, ("linf", "l2"))
        if self.eps is not None:
            self._set("eps", check_eps(self.eps, self.norm))
        for name, least in {"steps": 2, "longer": 1, "queries": 20}.items():
            self._set(name, check_count(name, getattr(self, name), least=least))
        for name in ("confirm", "probed"):
            self._set(name, check_count(name, getattr(self, name), least=0))
        check_positive("keep_mb", self.keep_mb, zero=True)
        if self.random is not None:
            check_flag("random", self.random)

    def tasks(self, model: nn.Module, x: Tensor) -> dict[str, Task]:
        """See :class:`~scoreopt_defense.evaluation.plan.tasks.Suite`."""
        check_reachable(model)
        check_divisible(model)
        is_random = _is_random(model, x) if self.random is None else self.random
        threat = threat_of(self.norm, self.eps, x)
        budget = _Budget(self, threat, model, is_random, _classes(model, x))
        tasks: dict[str, Task] = {
            "no attack": Attack(attack=Clean(), confirm=self.confirm, draws=CLEAN)
        }
        for label, attack in budget.attacks().items():
            tasks[label] = Attack(
                attack=attack, begins_from=[*tasks], confirm=self.confirm,
                draws=f"adaptive/{label}",
            )  # fmt: skip
        probes = budget.probes() if self.probed else {}
        if probes and Convergence.fits(model):
            probes["descent"] = "descent", Convergence(**threat)
        return tasks | {
            "": Judge(attack=Worst(**threat), begins_from=[*tasks], draws="adaptive"),
            **{
                f"check/{label}": Probe(
                    attack=attack, images=self.probed, role=role, draws=f"adaptive/check/{label}"
                )
                for role, (label, attack) in probes.items()
            },
        }

    def untried(self, model: nn.Module) -> dict[str, str]:
        return untried(model)


class _Budget:
    """A suite's attacks on one defence.

    What differs between defences is in a label, so that it means one attack in any run.
    """

    def __init__(
        self,
        suite: Adaptive,
        threat: dict[str, Any],
        model: nn.Module,
        random: bool,
        classes: int,
    ) -> None:
        self.suite, self.threat, self.random, self.classes = suite, threat, random, classes
        self.modes, self.best = gradient_modes(model), strongest_mode(model)
        self.ours = isinstance(model, DefendedModel)
        self.library = importlib.import_module("scoreopt_defense.attacks")
        self.shared = self.threat | {"autocast": suite.autocast}
        self.eot, self.alone = (_EOT, "") if random else (1, ", no EOT")

    def shown(self, mode: str) -> Any:
        """What an attack is shown by that name, with what memory it may take."""
        kind = {"exact": Exact, "smoothed": Smoothed}.get(mode)
        return mode if kind is None else kind(keep_mb=self.suite.keep_mb)

    def transfers(self) -> dict[str, Any]:
        """Attacks on the classifier alone."""
        name = f"transfer-pgd-{self.suite.norm}"
        return {
            "transfer PGD": self.library.attack(name, eps=self.threat["eps"]),
            "boundary": self.library.Boundary(**self.threat),
        }

    def square(self) -> Any:
        samples = _SQUARE_EOT if self.random else 1
        steps = max(1, self.suite.queries // samples - 1)
        return self.library.Square(**self.shared, eot=samples, steps=steps)

    def momentum(self, mode: str, times: int = 1) -> Any:
        return self.library.MomentumPGD(
            gradient=self.shown(mode), **self.shared, steps=times * self.suite.steps
        )

    def attacks(self) -> dict[str, Any]:
        """In their order: what takes most for its cost first."""
        stages = {}
        if self.ours:
            stages["transfer PGD"] = self.transfers()["transfer PGD"]
        if "one-shot" in self.modes:
            stages["momentum PGD at the surrogate"] = self.momentum("surrogate")
        rest = sorted({*self.modes} - {self.best}, key=lambda mode: (mode != "one-shot", mode))
        stages |= {f"momentum PGD, {mode}": self.momentum(mode) for mode in rest if mode != "bpda"}
        if "exact" not in self.modes:  # of others it took nothing, and a check compares it with
            stages[f"Square{self.alone}"] = self.square()
        longer = self.momentum(self.best, times=self.suite.longer)
        stages[f"momentum PGD, {self.best}, longer"] = longer
        if not self.random:
            both = self.library.AutoAttack if self.classes > 2 else self.library.APGD
            stages[f"APGD, {self.best}"] = both(
                gradient=self.shown(self.best), **self.shared, steps=self.suite.steps, eot=1
            )
        if "bpda" in rest:  # it takes where the others are masked
            stages["momentum PGD, bpda"] = self.momentum("bpda")
        # from the worst so far, in steps that do not leave it behind, in another mode than the
        # strongest, since which is that differs by image
        mode = "exact" if "exact" in rest else next(iter(rest), self.best)
        stages[f"momentum PGD, {mode}, onwards"] = self.library.FoolboxPGD(
            gradient=self.shown(mode), **self.shared, steps=self.suite.longer * self.suite.steps,
            eot=1, momentum=0.9, last_step=0.02,
        )  # fmt: skip
        return stages

    def probes(self) -> dict[str, tuple[str, Any]]:
        steps = max(2, self.suite.steps // 8)

        def pgd(**settings: Any) -> Any:
            shown = self.shown(self.best)
            given = self.shared | {"steps": steps, "eot": self.eot, "gradient": shown} | settings
            # few steps must reach the ball's border too, as Madry et al. choose them
            return self.library.PGD(step_size=max(0.25, 2.5 / given["steps"]), **given)

        white_box = {
            "white-box": pgd(),
            "half eps": pgd(eps=self.threat["eps"] / 2),
            "double eps": pgd(eps=min(2 * self.threat["eps"], LARGEST[self.suite.norm])),
            "unbounded": pgd(norm="linf", eps=1.0),
            "half steps": pgd(steps=steps // 2),
        } | ({"half EOT": pgd(eot=self.eot // 2)} if self.random else {})
        others = {"noise": self.library.RandomNoise(**self.threat), "gradients": Gradients()}
        if self.ours:
            transfer, boundary = self.transfers().values()
            others |= {"transfer": transfer, "boundary": boundary, "bare": Bare()}
        named = {r: (f"{r}, {self.best}{self.alone}", attack) for r, attack in white_box.items()}
        named |= {role: (role, attack) for role, attack in others.items()}
        return named | {"black box": (f"black box{self.alone}", self.square())}


def _classes(model: nn.Module, x: Tensor) -> int:
    """How many there are; a defence's classifier answers without its purifier."""
    asked = model.classifier if isinstance(model, DefendedModel) else model
    return answers(asked, x[:4]).shape[1]


def _is_random(model: nn.Module, x: Tensor) -> bool:
    """Whether a model answers twice in two ways, be it by its purifier or its classifier."""
    few, seeds = placed(model, x[:8]), 4
    if isinstance(model, DefendedModel):
        if model.purifier.deterministic:
            if _is_random(model.classifier, x):
                return True
            few, seeds = few[:2], 1  # its network may draw in any call
        elif _is_known_to_draw(model.purifier):
            return True
    with as_it_was(model), contained():
        return any(_answers_vary(model, few, seed) for seed in range(seeds))


def _is_known_to_draw(purifier: Purifier) -> bool:
    """Of this library, and with a network: JPEG and somebody's own may draw nothing."""
    ours = type(purifier).__module__.startswith(f"{purifiers.__name__}.")
    return ours and not isinstance(purifier, (ThirdParty, WithoutNetwork))


@torch.no_grad()
def _answers_vary(model: nn.Module, x: Tensor, seed: int) -> bool:
    """Whether it answers so in eight calls: what draws one of a few often comes to the same.

    By more than half of the digits: a graphics processor, or a compiler, may round each in its way.
    """
    with seeded(seed):  # the global generators stay as they were
        first = answer(model, x)
        rounding = torch.finfo(first.dtype).eps ** 0.5 * first.abs().amax()
        return any((answer(model, x) - first).abs().amax() > rounding for _ in range(7))
