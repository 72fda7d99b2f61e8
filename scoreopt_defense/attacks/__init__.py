r"""Attacks of existing libraries as frozen configurations. No attack is written here.

.. code-block:: python

    from scoreopt_defense.attacks import attack

    strongest = attack("pgd-eot-linf", gradient="exact", steps=50)
    x_adv = strongest.run(model, x, y)

``model`` is a defended one, which is shown in the gradient mode that the attack is about, or any
other module from images in [0, 1] to logits. :data:`ATTACKS` has the paper's budgets by name:

| name | what it is shown of the defence | budget | queries |
| --- | --- | --- | --- |
| ``transfer-pgd-linf`` | the classifier | 40 steps | 40 \* |
| ``transfer-pgd-l2`` | the classifier | 40 steps | 40 \* |
| ``bpda-eot-linf`` | all, backward through the identity | 50 steps of 15 | 750 |
| ``pgd-eot-linf`` | all, backward through one-shot | 20 steps of 20 | 400 |
| ``pgd-eot-l2`` | all, backward through one-shot | 20 steps of 20 | 400 |
| ``pgd-eot-surrogate-linf`` | one-shot, forward and backward | 20 steps of 20 | 400 |
| ``pgd-eot-surrogate-l2`` | one-shot, forward and backward | 20 steps of 20 | 400 |
| ``pgd-eot-smoothed-linf`` | all, backward by the smoothed mode | 40 steps of 10 | 400 |
| ``pgd-eot-smoothed-l2`` | all, backward by the smoothed mode | 40 steps of 10 | 400 |
| ``momentum-pgd-linf`` | all, backward by the smoothed mode | 400 steps of 1 | 400 |
| ``momentum-pgd-l2`` | all, backward by the smoothed mode | 400 steps of 1 | 400 |
| ``minimum-norm-linf`` | all, backward by the smoothed mode | 100 steps of 4 | 404 |
| ``minimum-norm-l2`` | all, backward by the smoothed mode | 100 steps of 4 | 404 |
| ``spsa`` | logits | 5 steps of 128 pairs | 1280 |
| ``stadv`` | all, backward through one-shot | 100 steps of 20 | 2000 |
| ``recoloradv`` | all, backward through one-shot | 100 steps of 20 | 2000 |
| ``autoattack-rand-linf`` | all, backward through one-shot | 2 times 100 steps of 20 | 4120 |
| ``autoattack-rand-l2`` | all, backward through one-shot | 2 times 100 steps of 20 | 4120 |
| ``square`` | logits | 124 squares of 8 | 1000 |
| ``corruptions`` | nothing | severity 5 | 0 |

"of k": each answer is the mean logits of k purifications (EOT). A query is one image that one
evaluation of the model classifies. eps is 8/255 in linf, 0.5 in l2 (sections 4.1 and 4.2), 0.05 in
StAdv's flow, 0.06 in ReColorAdv's colours, and twice as much for minimum-norm attacks; a step of
PGD is eps/4 (appendix C.3).

Sources: appendix C.3 of the paper for PGD and BPDA; its section 4.3 for SPSA's 1,280 queries, whose
division it does not give, and for StAdv, at the bound, steps and EOT of DiffPure's code (Nie et
al., ICML 2022), which it follows; the authors' code for what it leaves open: a random start in
transfer PGD alone, and the loss of the mean logits; Croce and Hein (ICML 2020) for AutoAttack, and
this library for Square, momentum, minimum norms and the smoothed gradient, which the paper does not
have: as many queries as its PGD+EOT, in more steps of fewer samples, which break more
(docs/results/gradients.md). Table 5 names no severity: its base classifier's figures are those
usual at 5.

\* of the classifier; the purifier is never asked.

A new attack is a subclass of :class:`BoundedAttack` with one method, ``attack``, in its library's
file, and a row of the table in ``tests/attacks/test_attacks.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from scoreopt_defense._checks import check_choice
from scoreopt_defense.attacks.adopted import Adopted, adopt
from scoreopt_defense.attacks.art import ARTPGD
from scoreopt_defense.attacks.base import Attack
from scoreopt_defense.attacks.black_box import Remembered, Scores
from scoreopt_defense.attacks.boundary import Boundary
from scoreopt_defense.attacks.bounded import BoundedAttack, ProjectedGradientAttack
from scoreopt_defense.attacks.corruptions import TABLE_5, Corruptions
from scoreopt_defense.attacks.foolbox import FoolboxPGD, MinimumNorm, MomentumPGD, RandomNoise
from scoreopt_defense.attacks.mister_ed import ReColorAdv, StAdv
from scoreopt_defense.attacks.protocols import (
    Attacking,
    Measuring,
    Nearest,
    Startable,
    can_start,
)
from scoreopt_defense.attacks.pyautoattack import AutoPGD
from scoreopt_defense.attacks.torchattacks import APGD, PGD, SPSA, AutoAttack, Square
from scoreopt_defense.attacks.views import AsItIs, Classifier, Shortened, Surrogate, View
from scoreopt_defense.gradients import BPDA, Smoothed

__all__ = [
    "APGD",
    "ARTPGD",
    "ATTACKS",
    "KINDS",
    "PGD",
    "SPSA",
    "TABLE_5",
    "Adopted",
    "AsItIs",
    "Attack",
    "Attacking",
    "AutoAttack",
    "AutoPGD",
    "Boundary",
    "BoundedAttack",
    "Classifier",
    "Corruptions",
    "FoolboxPGD",
    "MomentumPGD",
    "Measuring",
    "MinimumNorm",
    "Nearest",
    "RandomNoise",
    "Remembered",
    "ProjectedGradientAttack",
    "ReColorAdv",
    "Scores",
    "Shortened",
    "Square",
    "StAdv",
    "Startable",
    "Surrogate",
    "View",
    "adopt",
    "attack",
    "budgets",
    "can_start",
    "from_dict",
    "paper_budget",
]

#: The classes, by the ``"kind"`` of :meth:`Attack.as_dict`.
KINDS: Mapping[str, type[Attack]] = MappingProxyType(
    {
        kind.__name__: kind
        for kind in (
            *(PGD, APGD, SPSA, AutoAttack, Square, StAdv, ARTPGD, FoolboxPGD, Corruptions),
            *(Boundary, MomentumPGD, RandomNoise, AutoPGD, MinimumNorm, ReColorAdv),
        )
    }
)

_LINF: dict[str, Any] = {"norm": "linf", "eps": 8 / 255}
_L2: dict[str, Any] = {"norm": "l2", "eps": 0.5}
_TRANSFER = PGD(gradient=Classifier(), eot=1, steps=40, random_start=True)
_SURROGATE = PGD(gradient=Surrogate(), eot=20, steps=20)
_NEAREST = MinimumNorm(gradient=Smoothed(), eot=4, steps=100)

#: The named configurations, at the paper's budgets.
ATTACKS: Mapping[str, Attack] = MappingProxyType(
    {
        name: configuration.replace(preset=name)
        for name, configuration in {
            "transfer-pgd-linf": _TRANSFER.replace(**_LINF),
            "transfer-pgd-l2": _TRANSFER.replace(**_L2),
            "bpda-eot-linf": PGD(gradient=BPDA(), eot=15, steps=50, **_LINF),
            "pgd-eot-linf": PGD(eot=20, steps=20, **_LINF),
            "pgd-eot-l2": PGD(eot=20, steps=20, **_L2),
            "pgd-eot-surrogate-linf": _SURROGATE.replace(**_LINF),
            "pgd-eot-surrogate-l2": _SURROGATE.replace(**_L2),
            "pgd-eot-smoothed-linf": PGD(gradient=Smoothed(), eot=10, steps=40, **_LINF),
            "pgd-eot-smoothed-l2": PGD(gradient=Smoothed(), eot=10, steps=40, **_L2),
            "momentum-pgd-linf": MomentumPGD(gradient=Smoothed(), steps=400, **_LINF),
            "momentum-pgd-l2": MomentumPGD(gradient=Smoothed(), steps=400, **_L2),
            "minimum-norm-linf": _NEAREST.replace(norm="linf", eps=16 / 255),
            "minimum-norm-l2": _NEAREST.replace(norm="l2", eps=1.0),
            "spsa": SPSA(steps=5, samples=128, **_LINF),
            "stadv": StAdv(eps=0.05, eot=20, steps=100),
            "recoloradv": ReColorAdv(eps=0.06, eot=20, steps=100),
            "autoattack-rand-linf": AutoAttack(eot=20, steps=100, **_LINF),
            "autoattack-rand-l2": AutoAttack(eot=20, steps=100, **_L2),
            "square": Square(eot=8, steps=124, **_LINF),
            "corruptions": Corruptions(severity=5),
        }.items()
    }
)


def attack(name: str, **overrides: Any) -> Attack:
    """A named configuration, but for these settings; or an attack of a class in :data:`KINDS`.

    Raises:
        ValueError: if the name is unknown, or a setting out of its range.
        TypeError: if a setting is unknown.

    Example:
        >>> attack("pgd-eot-linf", eot=4).queries
        80
    """
    if name in KINDS:
        return KINDS[name].of(**overrides)
    check_choice("attack", name, [*ATTACKS, *KINDS])
    return ATTACKS[name].replace(**overrides)


def paper_budget(name: str) -> dict[str, Any]:
    """The budget of a named configuration as the paper has it, as JSON has it."""
    check_choice("attack", name, ATTACKS)
    return ATTACKS[name].budget()


def budgets(used: Attack) -> dict[str, dict[str, Any] | None]:
    """The paper's budget and the one used, side by side; None for an attack without a preset."""
    paper = None if used.preset is None else paper_budget(used.preset)
    return {"paper": paper, "used": used.budget()}


def from_dict(values: Mapping[str, Any]) -> Attack:
    """The attack that :meth:`Attack.as_dict` describes.

    Example:
        >>> from_dict(ATTACKS["spsa"].as_dict()) == ATTACKS["spsa"]
        True
    """
    check_choice("kind", values.get("kind"), KINDS)
    return KINDS[values["kind"]].from_dict(values)
