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

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from scoreopt_defense._checks import check_choice, check_count
from scoreopt_defense.defended import DefendedModel
from scoreopt_defense.diagnostics._drawing import axes_or_new
from scoreopt_defense.evaluation.evaluate import evaluate
from scoreopt_defense.evaluation.plan.tasks import CLEAN
from scoreopt_defense.evaluation.record.differences import Difference, paired
from scoreopt_defense.evaluation.record.judged import over_images
from scoreopt_defense.evaluation.record.results import Result
from scoreopt_defense.evaluation.record.statistics import Proportion
from scoreopt_defense.evaluation.suite.every_gradient import EveryGradient
from scoreopt_defense.purifiers.settings import PER_IMAGE

__all__ = ["Decomposition", "Figure", "decompose", "decomposition"]

SUITE = "decomposition"
# What is evaluated, by its name in the plan.
DEPLOYED, KNOWN, KNOWN_ONE, BARE = "deployed", "draw known", "one draw for all, known", "classifier"
_COLOURS = {"classifier": "#999999", "contraction": "#0072b2", "randomness": "#e69f00"}
_MARKS = "ovsDP^X*"


@dataclass(frozen=True)
class Figure:
    """A mean over images and its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, found: Difference | Proportion) -> Figure:
        return cls(found.value, found.low, found.high)

    def said(self, scale: float = 1, digits: int = 2, sign: str = "") -> str:
        value, low, high = (
            f"{scale * v:{sign}.{digits}f}" for v in (self.value, self.low, self.high)
        )
        return f"{value} ({low} to {high})"


@dataclass(frozen=True)
class Decomposition:
    """What of a defence's robust accuracy comes from where.

    Attributes:
        name: the defence's.
        claim: the gradient whose claim the parts add up to.
        accuracy: ``"clean"``; ``"deployed"``, of each image the worst that any gradient found;
            ``"draw known"``, the same where the attacker knows the noise of each image, and
            ``"one draw for all, known"``; ``"classifier"``, of the bare one.
        gradients: of the deployed defence under each gradient alone.
        parts: ``"classifier"``, ``"contraction"``, ``"randomness"`` and ``"masking"``, from -1 to
            1: their sum is the claim, the first three's the robust accuracy. Intervals are paired
            bootstraps over images; of the first part Clopper and Pearson's.
        gain: robust accuracy less the bare classifier's: contraction and randomness.
        balance: randomness less contraction: above 0, most of a gain is randomness.
        votes: robust accuracy of a majority of so many fresh purifications, of the same images.
        contraction: :math:`\\|P(x + \\delta) - P(x)\\| / \\|\\delta\\|`, one draw in both: along
            the ``"attack"``, along that on a ``"draw known"``, and along ``"random"`` signs. An
            image that no attack moved is left out.
        failed: what raised an error, whose figures are missing.
    """

    name: str
    claim: str
    accuracy: dict[str, Figure]
    gradients: dict[str, Figure]
    parts: dict[str, Figure]
    gain: Figure
    balance: Figure
    votes: dict[int, Figure]
    contraction: dict[str, Figure]
    images: int
    failed: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """Whether most of the gain is randomness, in a sentence."""
        gain, part = (100 * of.value for of in (self.gain, self.parts["randomness"]))
        if self.gain.low <= 0:
            return f"{self.images} images show no gain over the bare classifier: {gain:+.1f} points"
        said = f"randomness is {part:.1f} of the {gain:.1f} points gained over the bare classifier"
        if self.balance.low > 0:
            return f"most of the gain is randomness: {said}"
        if self.balance.high < 0:
            return f"most of the gain is contraction: {said}"
        return f"{said}: whether that is most of it, {self.images} images do not say"

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it, to 4 digits."""
        return {name: _as_json(value) for name, value in vars(self).items()}

    def __str__(self) -> str:
        """A table: robust accuracies in per cent, parts in points, with their intervals."""
        rows = [(name, of.said(100, 1)) for name, of in self.accuracy.items()]
        rows += [(f"  under {name}", of.said(100, 1)) for name, of in self.gradients.items()]
        rows += [(f"  majority of {k}", of.said(100, 1)) for k, of in self.votes.items()]
        rows += [(f"part: {name}", of.said(100, 1, "+")) for name, of in self.parts.items()]
        rows += [(f"contraction, {name}", of.said()) for name, of in self.contraction.items()]
        rows += [("failed", what) for what in self.failed]
        wide = max(len(name) for name, _ in rows)
        lines = [f"{self.name}, {self.images} images", *(f"{n:{wide}}  {of}" for n, of in rows)]
        return "\n".join([*lines, self.verdict])

    def plot(self, axes: Any = None, *, place: float = 0) -> Any:
        """A stacked bar, in points; what a weaker gradient claims beyond it is hatched.

        Beside it the accuracy under each gradient alone, and the robust one with its interval. A
        negative part hangs below 0.

        Args:
            axes: matplotlib's; of a new figure by default. Several bars may share them.
            place: of the bar.

        Returns:
            The axes.
        """
        axes = axes_or_new(axes)
        first = not axes.containers
        ends = {True: 0.0, False: 0.0}  # of the bar, above 0 and below
        for name, part in self.parts.items():
            height = 100 * part.value
            look = {"color": _COLOURS[name]} if name in _COLOURS else {"color": "w", "hatch": "///"}
            axes.bar(place, height, 0.5, bottom=ends[height > 0], edgecolor="k", linewidth=0.6,
                     label=_NAMES[name] if first else None, **look)  # fmt: skip
            if abs(height) >= 4:
                axes.text(place, ends[height > 0] + height / 2, f"{height:.0f}", ha="center",
                          va="center", bbox={"color": "w", "alpha": 0.7, "pad": 1})  # fmt: skip
            ends[height > 0] += height
        robust = self.accuracy[DEPLOYED]
        axes.errorbar(
            place - 0.32, 100 * robust.value, fmt="_k", capsize=3,
            yerr=[[100 * (robust.value - robust.low)], [100 * (robust.high - robust.value)]],
            label="robust accuracy, 95 %" if first else None,
        )  # fmt: skip
        for i, (name, found) in enumerate(self.gradients.items()):
            axes.plot(place + 0.32, 100 * found.value, _MARKS[i], markersize=4, fillstyle="none",
                      color=f"C{i}", label=f"under {name}" if first else None)  # fmt: skip
        said = [self.name]
        said += [f"{k} of $\\delta$: {of.value:.2f}" for k, of in self.contraction.items()]
        axes.set_xticks([*axes.get_xticks(), place] if not first else [place])
        labels = [text.get_text() for text in axes.get_xticklabels()]
        axes.set_xticklabels([*labels[:-1], "\n".join(said)])
        axes.axhline(0, color="k", linewidth=0.6)
        axes.set(ylabel="images, %")
        return axes


_NAMES = {
    "classifier": "the classifier's own",
    "contraction": "contraction",
    "randomness": "randomness",
    "masking": "masking: no robustness",
}


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


def _as_json(value: Any) -> Any:
    if isinstance(value, Figure):
        return {name: round(number, 4) for name, number in vars(value).items()}
    if isinstance(value, dict):
        return {str(name): _as_json(of) for name, of in value.items()}
    return list(value) if isinstance(value, tuple) else value
