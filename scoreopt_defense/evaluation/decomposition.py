r"""Where a purified classifier's robustness comes from, in parts that add up.

Each part is a difference between two robust accuracies of the same images in the same ball:

.. math:: \underbrace{A_{claim}}_{\text{one gradient}} = \underbrace{A_f}_{\text{classifier's own}}
          + \underbrace{(A_{known} - A_f)}_{\text{contraction}}
          + \underbrace{(A - A_{known})}_{\text{randomness}}
          + \underbrace{(A_{claim} - A)}_{\text{masking}}

:math:`A_f` is the bare classifier's; :math:`A` the deployed defence's, of each image the worst that
any gradient found, judged by fresh draws; :math:`A_{known}` the same of a defence whose draw of
noise for an image is fixed, and known to the attacker.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from scoreopt_defense._checks import check_choice, check_count
from scoreopt_defense.defended import DefendedModel
from scoreopt_defense.evaluation.decomposed import BARE, DEPLOYED, Decomposition, Figure
from scoreopt_defense.evaluation.evaluate import evaluate
from scoreopt_defense.evaluation.plan.tasks import CLEAN
from scoreopt_defense.evaluation.record.differences import paired
from scoreopt_defense.evaluation.record.judged import over_images
from scoreopt_defense.evaluation.record.results import Result
from scoreopt_defense.evaluation.suite.every_gradient import EveryGradient
from scoreopt_defense.purifiers.settings import PER_IMAGE

__all__ = ["SUITE", "decompose", "decomposition"]

SUITE = "decomposition"
"""The suite's name in the plan."""
# What is evaluated beside the deployed defence and its classifier, by its name in the plan.
KNOWN, KNOWN_ONE = "draw known", "one draw for all, known"


def decompose(
    model: DefendedModel,
    images: Any,
    *,
    norm: str = "linf",
    eps: float | None = None,
    steps: int = 40,
    votes: tuple[int, ...] = (1, 8, 64),
    autocast: str | None = None,
    claim: str = "bpda",
    seed: int = 0,
    name: str = SUITE,
    **running: Any,
) -> Decomposition:
    """Where a purified classifier's robustness comes from: four evaluations of the same images.

    Of the defence, of it with a fixed draw of noise an image, of it with one for all images, and of
    its classifier alone: momentum PGD under each gradient, and of each image the worst.

    Args:
        model: the defence.
        images: as in :func:`~scoreopt_defense.evaluation.evaluate`.
        norm, eps, steps, votes, autocast: as in
            :class:`~scoreopt_defense.evaluation.suite.every_gradient.EveryGradient`.
        claim: the gradient whose accuracy beyond the worst case is called masking.
        seed: of everything random, the fixed draws among it.
        name: what the run goes by among those of the record, and the defence in tables.
        **running: ``out``, ``batch``, ``keep``, ``workers``, ``cluster``, ``threads``,
            ``retry_failed``, ``wait`` and ``progress`` of
            :func:`~scoreopt_defense.evaluation.evaluate`: with ``out`` it goes on where it was
            stopped.

    Raises:
        TypeError: of a model that is no :class:`~scoreopt_defense.DefendedModel`.
        ValueError: as of ``evaluate``, or of a ``claim`` that the defence has no gradient for.
        RuntimeError: if the attacks on one of the four failed.

    Reference:
        Liu et al., ICLR 2025 (2404.14309), for attacks on known noise; Liu and Wei, 2025
        (2505.22839), for contraction.
    """
    if not isinstance(model, DefendedModel):
        raise TypeError(f"model must be a DefendedModel, got {type(model).__name__}")
    check_count("seed", seed, least=0)
    fixed = {KNOWN: PER_IMAGE, KNOWN_ONE: True} if not model.purifier.deterministic else {}
    defences: dict[str, nn.Module] = {DEPLOYED: model}
    for label, how in fixed.items():
        defences[label] = model.replace(deterministic=how, seed=seed)
    suite = EveryGradient(
        norm=norm, eps=eps, steps=steps, votes=votes, draw=seed, autocast=autocast
    )
    result = evaluate(
        defences | {BARE: model.classifier}, images, {}, suites={SUITE: suite}, checks=False,
        seed=seed, name=name, **running,
    )  # fmt: skip
    with result.store:
        return decomposition(result, name=name, claim=claim)


def decomposition(result: Result, *, name: str, claim: str = "bpda") -> Decomposition:
    """The parts, of what a record has of the evaluations that :func:`decompose` makes.

    Raises:
        ValueError, RuntimeError: as :func:`decompose`.
    """
    failed = tuple(dict.fromkeys(f"{f.unit}: {f.error}" for f in result.failures))

    def shares(defence: str, attack: str = SUITE) -> dict[int, float]:
        if not (found := result.shares(defence, attack)):
            raise RuntimeError(f"{attack} on {defence} has no figure: {'; '.join(failed)}")
        return found

    stages = {
        task.label: stage
        for stage, task in result.plan.of_suite(SUITE, DEPLOYED, "attack").items()
        if task.attacks
    }
    check_choice("claim", claim, stages)
    measured = {d: result.measured(d, SUITE) for d in result.plan.defences if d != BARE}
    of = {CLEAN: shares(DEPLOYED, CLEAN), DEPLOYED: shares(DEPLOYED)}
    if KNOWN in result.plan.defences:
        # what was found without knowing the draw is there for who knows it, too
        also = measured[DEPLOYED]["right, draw known"]
        of[KNOWN] = {i: min(share, also.get(i, 1.0)) for i, share in shares(KNOWN).items()}
        of[KNOWN_ONE] = shares(KNOWN_ONE)
    else:  # it is deterministic
        of[KNOWN] = of[DEPLOYED]
    of[BARE] = shares(BARE)
    modes = {
        label: shares(DEPLOYED, stage)
        for label, stage in stages.items()
        if label == claim or result.cell(DEPLOYED, stage).accuracy
    }
    there = sorted(set.intersection(*map(set, (*of.values(), modes[claim]))))
    arrays = {label: np.array([by[i] for i in there]) for label, by in of.items()}
    own, known, robust = (arrays[label] for label in (BARE, KNOWN, DEPLOYED))
    claimed = np.array([modes[claim][i] for i in there])
    accuracy = {label: _share(by) for label, by in arrays.items()}
    ratios = {"attack": (DEPLOYED, "attack"), "attack, draw known": (KNOWN, "attack")}
    ratios |= {"random": (DEPLOYED, "random")}
    moved = {
        label: _ratio(measured[defence], direction)
        for label, (defence, direction) in ratios.items()
        if defence in measured
    }
    return Decomposition(
        name=name,
        claim=claim,
        accuracy=accuracy,
        gradients={label: _share(np.array([*by.values()])) for label, by in modes.items()},
        parts={
            "classifier": accuracy[BARE],
            "contraction": Figure.of(paired(known, own)),
            "randomness": Figure.of(paired(robust, known)),
            "masking": Figure.of(paired(claimed, robust)),
        },
        gain=Figure.of(paired(robust, own)),
        balance=Figure.of(paired(robust - known, known - own)),
        votes={
            int(what.rpartition(" ")[2]): _share(np.array([*by.values()]))
            for what, by in measured[DEPLOYED].items()
            if what.startswith("majority")
        },
        contraction={label: found for label, found in moved.items() if found is not None},
        images=len(there),
        failed=failed,
    )


def _share(of_images: np.ndarray) -> Figure:
    found = over_images(np.arange(len(of_images)), of_images)
    assert found is not None
    return Figure.of(found)


def _ratio(measured: dict[str, dict[int, float]], direction: str) -> Figure | None:
    before, after = (measured[f"{direction}, {when}"] for when in ("before", "after"))
    found = np.array([after[i] / before[i] for i in before if before[i] > 0])
    return Figure.of(paired(found, np.zeros(len(found)))) if len(found) else None
