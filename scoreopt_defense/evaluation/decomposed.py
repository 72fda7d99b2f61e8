"""What a decomposition found: figures with intervals, a sentence, and a bar."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from scoreopt_defense._drawing import axes_or_new
from scoreopt_defense.evaluation.record.differences import Difference
from scoreopt_defense.evaluation.record.statistics import Proportion

__all__ = ["BARE", "DEPLOYED", "Decomposition", "Figure"]

#: What is evaluated, by its name in the plan: the defence, and the classifier alone.
DEPLOYED = "deployed"
"""The defence as it is, by its name in the plan."""
BARE = "classifier"
"""Its classifier alone."""
_NAMES = {
    BARE: "the classifier's own",
    "contraction": "contraction",
    "randomness": "randomness",
    "masking": "masking: no robustness",
}
_COLOURS = {BARE: "#999999", "contraction": "#0072b2", "randomness": "#e69f00"}
_MARKS = {"classifier": "o", "surrogate": "v", "one-shot": "s", "bpda": "D", "exact": "P"}


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

        Beside it the robust accuracy with its interval, which the other parts add up to, and the
        accuracy under each gradient alone. A negative part hangs below 0, and the bar above is that
        much too tall. Below it majorities of votes, and what is left of a perturbation's length.

        Args:
            axes: matplotlib's; of a new figure by default. Several bars may share them.
            place: of the bar.

        Returns:
            The axes.
        """
        alone, axes = axes is None, axes_or_new(axes)
        named, places = axes.get_legend_handles_labels()[1], axes.get_xticks()
        labels = [text.get_text() for text in axes.get_xticklabels()] if named else []

        def once(label: str) -> str | None:
            return None if label in named else label

        ends = {True: 0.0, False: 0.0}  # of the bar, above 0 and below
        for name, part in self.parts.items():
            height = 100 * part.value
            look = {"color": _COLOURS[name]} if name in _COLOURS else {"color": "w", "hatch": "///"}
            axes.bar(place, height, 0.5, bottom=ends[height > 0], edgecolor="k", linewidth=0.6,
                     label=once(_NAMES[name]), **look)  # fmt: skip
            if abs(height) >= 4:
                axes.text(place, ends[height > 0] + height / 2, f"{height:.0f}", ha="center",
                          va="center", bbox={"color": "w", "alpha": 0.7, "pad": 1})  # fmt: skip
            ends[height > 0] += height
        robust = self.accuracy[DEPLOYED]
        axes.errorbar(
            place - 0.32, 100 * robust.value, fmt="_k", capsize=3,
            yerr=[[100 * (robust.value - robust.low)], [100 * (robust.high - robust.value)]],
            label=once("robust accuracy, 95 %"),
        )  # fmt: skip
        for name, found in self.gradients.items():
            axes.plot(place + 0.32, 100 * found.value, _MARKS.get(name, "X"), fillstyle="none",
                      markersize=5, color="k", label=once(f"under {name} alone"))  # fmt: skip
        left = (
            f"{k.removeprefix('attack, ')} {of.value:.2f}" for k, of in self.contraction.items()
        )
        votes = (f"{k} votes {100 * of.value:.0f} %" for k, of in self.votes.items())
        said = [self.name, *votes, "left of $\\delta$:", *left]
        ticks = [*places[: len(labels)], place]
        axes.set_xticks(ticks, [*labels, "\n".join(said)], fontsize="small")
        axes.axhline(0, color="k", linewidth=0.6)
        axes.set(ylabel="images, %")
        if alone:
            axes.figure.legend(loc="outside right upper", fontsize="small")
        return axes


def _as_json(value: Any) -> Any:
    if isinstance(value, Figure):
        return {name: round(number, 4) for name, number in vars(value).items()}
    if isinstance(value, dict):
        return {str(name): _as_json(of) for name, of in value.items()}
    return list(value) if isinstance(value, tuple) else value
