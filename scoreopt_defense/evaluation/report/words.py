"""What a page's abbreviations and checks mean."""

from __future__ import annotations

import re
from typing import Any

from scoreopt_defense._optional import optional
from scoreopt_defense.evaluation.suite.checklist import Check

__all__ = ["Words", "explained"]

_WORDS = {
    "PGD": "projected gradient descent: steps up the loss, kept within the allowed change",
    "APGD": "PGD that sets its own step size",
    "EOT": "expectation over transformation: gradients averaged over several random purifications",
    "BPDA": "backward pass differentiable approximation: the purifier's gradient is the identity's",
    "SPSA": "simultaneous perturbation: gradients guessed from answers alone",
    "ReColorAdv": "recoloured: pixels of one colour all become another nearby",
    "StAdv": "spatially transformed: pixels are moved, not changed",
    "ART": "the Adversarial Robustness Toolbox, a library of attacks",
    "L∞": "the largest change of any pixel",
    "L2": "the root of all squared changes of pixels",
    "L1": "the sum of all changes of pixels",
    "ε": "epsilon, the largest change that an attack is allowed",
    "SHA-256": "a digest: other contents have another one",
}
_ABBREVIATION = re.compile(rf"(?<!\w)({'|'.join(_WORDS)})(?!\w)")


class Words:
    """A filter that explains abbreviations.

    Attributes:
        used: those that it met, with what they mean.
    """

    def __init__(self) -> None:
        self.used: dict[str, str] = {}

    def __call__(self, text: Any) -> Any:
        """The text as markup: escaped, but for the marks of this list's own abbreviations."""
        markup = optional("markupsafe", extra="evaluate").Markup
        mark = markup('<abbr title="{}">{}</abbr>')
        parts = _ABBREVIATION.split(str(text))
        for word in parts[1::2]:
            self.used[word] = _WORDS[word]
        said = [mark.format(_WORDS[p], p) if i % 2 else p for i, p in enumerate(parts)]
        return markup("").join(said)


_MORE = (
    "More {} leave no more images right, so the attack is not misled",
    "More {} leave more images right: the attack is stuck or misled, and its figure too high",
)
_CHECKS = {  # what follows where it holds, and where it does not
    "an unbounded attack reaches 0 %": (
        "An attack without a bound breaks the images, so gradients do lead attacks",
        "An attack without a bound leaves images right: gradients mislead, figures are too high",
    ),
    "accuracy falls with eps": (
        "A larger bound leaves no more images right, as it must be",
        "A larger bound leaves more images right: an attack is stuck, and its figure too high",
    ),
    "the white box is no weaker than the black box and transfer": (
        "Attacks that see the gradient break no fewer images, so the gradient is of use",
        "Attacks that see no gradient break more images: it is masked, and other figures too high",
    ),
    "the white box is no weaker than moving images over the classifier's border": (
        "The attack breaks no fewer images than moving them over the classifier's border does",
        "Moving images over the classifier's border breaks more: the attack's figure is too high",
    ),
    "random noise of the same size is weaker than every attack": (
        "No attack does less harm than random noise of its size, so each does search",
        "Random noise does more harm than an attack: its figure says nothing, it does not search",
    ),
    "no attack raises the accuracy": (
        "No attack leaves more images right than none does, so none of them helped the defence",
        "An attack leaves more images right than none does: it failed, which is no robustness",
    ),
    "gradients are neither zero nor NaN": (
        "Gradients are there and finite, so attacks can follow them",
        "Gradients are zero or not finite: they are masked, and figures that need them too high",
    ),
    "the loss falls over the purifier's steps": (
        "The purifier's loss falls over its steps, so it does what it says",
        "The purifier's loss does not fall over its steps, so it does not do what it says",
    ),
    "clean accuracy is near the bare classifier's": (
        "Accuracy without an attack is near the bare classifier's, so robustness did not cost it",
        "Accuracy without an attack is far below the bare classifier's: robustness cost that",
    ),
} | {
    f"more {what} never help the defence": (_MORE[0].format(what), _MORE[1].format(what))
    for what in ("steps", "EOT samples")
}


def explained(check: Check) -> str:
    """What a check found and what follows from it, a sentence without its full stop."""
    holds, fails = _CHECKS.get(check.name, (check.name, f"It does not hold that {check.name}"))
    if check.passed is None:
        first = holds.partition(",")[0]
        return f"It is not known whether {first[0].lower()}{first[1:]}"
    return holds if check.passed else fails
