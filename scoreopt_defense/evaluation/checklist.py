"""Can an evaluation be believed: the checks that masked gradients fail, run by the machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from scoreopt_defense.evaluation.plan import CLEAN
from scoreopt_defense.evaluation.results import Result, aligned, difference
from scoreopt_defense.evaluation.statistics import chance_of_more

__all__ = ["Check", "checklist"]

# A check fails on what chance explains this seldom. With about two dozen comparisons, one at 5 %
# would fail nearly every sound evaluation.
_CHANCE = 0.005
_CONFIDENCE = 0.99  # of the intervals that are shown
_UNBOUNDED = 0.05  # a random defence is sometimes right by chance
_ZERO_PIXELS = 0.5  # a border of dead pixels is common, half an image is not
_DEAD_IMAGES = 0.05
_CLEAN_COST = 0.15  # a defence that costs more than this is no longer the classifier's


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: what should hold.
        passed: None if it was not run.
        figure: what was found, in words.
    """

    name: str
    passed: bool | None
    figure: str

    @property
    def status(self) -> str:
        """``"pass"``, ``"FAIL"`` or ``"not run"``."""
        return {True: "pass", False: "FAIL", None: "not run"}[self.passed]


def checklist(result: Result, defence: str, suite: str) -> list[Check]:
    """The checks of one defence under one suite.

    Reference:
        Athalye et al., ICML 2018, section 3.1; Carlini et al., "On evaluating adversarial
        robustness", 2019; Croce et al., ICML 2022.
    """
    return list(_Checks(result, defence, suite).all())


class _Checks:
    def __init__(self, result: Result, defence: str, suite: str) -> None:
        self.result, self.defence, self.suite = result, defence, suite

    def all(self) -> Iterator[Check]:
        yield self.unbounded()
        yield self.no_weaker(
            "accuracy falls with eps",
            [("half eps", "white-box"), ("white-box", "double eps"), ("double eps", "unbounded")],
        )
        for more, less, what in (
            ("white-box", "half steps", "steps"),
            ("white-box", "half EOT", "EOT samples"),
            ("restarts", "one restart", "restarts"),  # both from random points of the ball
        ):
            yield self.no_weaker(f"more {what} never help the defence", [(less, more)])
        yield self.no_weaker(
            "the white box is no weaker than the black box and transfer",
            [("black box", "white-box"), ("transfer", "white-box")],
        )
        yield self.no_weaker(
            "nor than the classifier's images, moved onto its boundary", [("boundary", "white-box")]
        )
        attacks = [
            *("white-box", "half steps", "half EOT", "one restart", "restarts"),
            *("black box", "transfer"),
        ]
        yield self.no_weaker(
            "random noise of the same size is weaker than every attack",
            [("noise", attack) for attack in attacks],
        )
        yield self.no_weaker(
            "no attack raises the accuracy",
            [(CLEAN, attack) for attack in (*attacks, "boundary", *self.stages, *self.alone)],
        )
        yield self.gradients()
        yield self.descent()
        yield self.bare()

    @property
    def stages(self) -> list[str]:
        """The suite's attacks; each is compared on the images that it met."""
        return list(self.result.plan.chains[self.suite].stages[self.defence][:-1])

    @property
    def alone(self) -> list[str]:
        """The run's other attacks."""
        plan = self.result.plan
        return [name for name in plan.columns if name != CLEAN and name not in plan.suites]

    def name(self, part: str) -> str:
        """Of a probe by its role; an attack of the run goes by its own."""
        return self.result.plan.chains[self.suite].probes.get(self.defence, {}).get(part, part)

    def shares(self, part: str) -> dict[int, float]:
        """Each image's share of right purifications; of none if it was not run."""
        name = self.name(part)
        return (
            self.result.shares(self.defence, name) if self.result.rows(self.defence, name) else {}
        )

    def no_weaker(self, name: str, pairs: list[tuple[str, str]]) -> Check:
        """No pair's second attack leaves more than its first, beyond chance."""
        left = {part: self.shares(part) for pair in pairs for part in pair}
        found, most = {}, 0
        for weak, strong in pairs:
            strong_left, weak_left = aligned(left[strong], left[weak])
            most = max(most, len(weak_left))
            if 0.5 ** len(weak_left) <= _CHANCE:  # of fewer images chance explains any difference
                found[weak, strong] = chance_of_more(strong_left, weak_left)
        if not found and most:
            return Check(name, None, f"of {most} images no difference could fail it")
        absent = [part for part, shares in left.items() if not shares]
        if not found:
            return Check(name, None, f"there is no figure of {' or '.join(absent)}")
        (weak, strong), chance = min(found.items(), key=lambda item: item[1])
        worst = difference(left[strong], left[weak], confidence=_CONFIDENCE)
        failed = [part for part in absent if self.result.rows(self.defence, self.name(part))]
        return Check(
            name,
            chance > _CHANCE,
            f"{strong} less {weak}: {100 * worst.value:+.1f} points "
            f"({100 * worst.low:+.1f} to {100 * worst.high:+.1f}), p = {chance:.2g}, "
            f"{worst.n} images" + (f"; no figure of {' or '.join(failed)}" if failed else ""),
        )

    def unbounded(self) -> Check:
        name = "an unbounded attack reaches 0 %"
        shares = list(self.shares("unbounded").values())
        if not shares:
            return Check(name, None, "no unbounded attack was run")
        left = float(np.mean(shares))
        return Check(name, left <= _UNBOUNDED, f"{100 * left:.1f} % of {len(shares)} images left")

    def measured(self, probe: str) -> dict[str, dict[int, float]]:
        return self.result.measured(self.defence, self.name(probe))

    def gradients(self) -> Check:
        name = "gradients are neither zero nor NaN"
        found = {key: np.array([*of.values()]) for key, of in self.measured("gradients").items()}
        if not found:
            return Check(name, None, "no gradient was measured")
        modes = list(dict.fromkeys(key.partition(":")[0] for key in found))
        zero = {mode: float(found[f"{mode}: zero"].mean()) for mode in modes}
        dead = {mode: float((found[f"{mode}: zero"] == 1).mean()) for mode in modes}
        finite = all((found[f"{mode}: finite"] == 1).all() for mode in modes)
        passed = (
            finite and max(zero.values()) <= _ZERO_PIXELS and max(dead.values()) <= _DEAD_IMAGES
        )
        figures = ", ".join(f"{mode} {100 * share:.1f} %" for mode, share in zero.items())
        said = "" if finite else "; not all are finite"
        return Check(name, passed, f"pixels of gradient zero: {figures}{said}")

    def descent(self) -> Check:
        name = "the loss falls over the purifier's steps"
        found = self.measured("descent")
        if not found:
            return Check(name, None, "the purifier has no descent that could be followed")
        before, after = found["loss before"], found["loss after"]
        gap = difference(after, before, confidence=_CONFIDENCE)
        mean = {when: np.mean([*of.values()]) for when, of in (("from", before), ("to", after))}
        said = " ".join(f"{word} {value:.4g}" for word, value in mean.items())
        return Check(name, gap.high < 0, f"{said}, mean of {gap.n} images")

    def bare(self) -> Check:
        name = "clean accuracy is near the bare classifier's"
        right, shares = self.measured("bare").get("right"), self.shares(CLEAN)
        if not right:
            return Check(name, None, "no classifier is known apart from the defence")
        images = sorted(right.keys() & shares.keys())
        bare, defended = (float(np.mean([of[i] for i in images])) for of in (right, shares))
        return Check(
            name,
            defended >= bare - _CLEAN_COST,
            f"{100 * defended:.1f} % defended, {100 * bare:.1f} % bare, {len(images)} images",
        )
