"""Can an evaluation be believed: the checks that masked gradients fail, run by the machine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from scoreopt_defense.evaluation.plan.tasks import CLEAN
from scoreopt_defense.evaluation.record.differences import aligned, chance_of_more, difference
from scoreopt_defense.evaluation.record.figures import Figures
from scoreopt_defense.evaluation.record.statistics import proportion
from scoreopt_defense.evaluation.suite.controls import CHECKS, noise_of_size

__all__ = ["Check", "Checked", "checklist"]

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


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What has a checklist."""

    checks: tuple[Check, ...]

    @property
    def failing(self) -> list[Check]:
        """The checks that failed."""
        return [check for check in self.checks if check.passed is False]

    @property
    def not_run(self) -> list[Check]:
        """The checks that could not be made."""
        return [check for check in self.checks if check.passed is None]

    @property
    def verdict(self) -> str:
        """What the checks say, in a few words."""
        run = [check for check in self.checks if check.passed is not None]
        if not run:
            return "no check was run"
        passed = sum(bool(check.passed) for check in run)
        others = {"failed": len(self.failing), "not run": len(self.not_run)}
        said = (f", {count} {what}" for what, count in others.items() if count)
        return "".join([f"{passed} of {len(run)} checks passed", *said])

    @property
    def caution(self) -> str:
        """As :attr:`verdict`, and loudly where a check failed."""
        run = len(self.checks) - len(self.not_run)
        return f"{len(self.failing)} of {run} checks FAIL" if self.failing else self.verdict


def checklist(figures: Figures, defence: str, suite: str | None = None) -> tuple[Check, ...]:
    """The checks of one defence.

    Args:
        suite: that they are of; None for those of the attacks that stand by themselves.

    Reference:
        Athalye et al., ICML 2018, section 3.1; Carlini et al., "On evaluating adversarial
        robustness", 2019; Croce et al., ICML 2022.
    """
    if suite is not None:
        return tuple(_OfSuite(figures, defence, suite).all())
    return tuple(_Checks(figures, defence).all()) if figures.attacks else ()


class _Checks:
    """Of the attacks that stand by themselves; they rest on the plan's controls."""

    def __init__(self, figures: Figures, defence: str, suite: str = CHECKS) -> None:
        self.figures, self.defence = figures, defence
        tasks = figures.plan.of_suite(suite, defence, "probe")
        self.probes = {task.role: name for name, task in tasks.items()}

    def all(self) -> Iterator[Check]:
        attacks = self.figures.attacks
        yield self.gradients()
        yield self.unbounded()
        sizes = {}
        for name in attacks:
            task = self.figures.plan.tasks[name].get(self.defence)
            role = noise_of_size(task.bound) if task and task.bound else ""
            if role in self.probes:
                sizes[f"noise of {name}'s size"] = self.probes[role], name
        self.probes |= {said: role for said, (role, _) in sizes.items()}
        yield self.noise((said, name) for said, (_, name) in sizes.items())
        yield self.raised(attacks)

    def noise(self, pairs: Iterable[tuple[str, str]]) -> Check:
        return self.no_weaker(
            "random noise of the same size is weaker than every attack", list(pairs)
        )

    def raised(self, attacks: Iterable[str]) -> Check:
        return self.no_weaker("no attack raises the accuracy", [(CLEAN, a) for a in attacks])

    def name(self, part: str) -> str:
        """Of a probe by its role; an attack of the run goes by its own."""
        return self.probes.get(part, part)

    def why(self, *parts: str) -> str:
        """How the first of these that failed did, if one did."""
        names = [self.name(part) for part in parts]
        failed = (f for f in self.figures.failures if f.unit.defence == self.defence)
        return next((f": {f.error}" for f in failed if f.unit.attack in names), "")

    def was_run(self, part: str) -> bool:
        return self.figures.was_run(self.defence, self.name(part))

    def shares(self, part: str) -> dict[int, float]:
        """Each image's share of right purifications; of none if it was not run."""
        return self.figures.shares(self.defence, self.name(part)) if self.was_run(part) else {}

    def no_weaker(self, name: str, pairs: list[tuple[str, str]]) -> Check:
        """No pair's second attack leaves more than its first, beyond chance."""
        left = {part: self.shares(part) for pair in pairs for part in pair}
        gaps, most = {}, 0
        for weak, strong in pairs:
            strong_left, weak_left = aligned(left[strong], left[weak])
            most = max(most, len(weak_left))
            if _can_fail(len(weak_left)):
                gaps[weak, strong] = strong_left - weak_left
        if not gaps and most:
            return Check(name, None, f"of {most} images no difference could fail it")
        absent = [part for part, shares in left.items() if not shares]
        if not gaps:
            why = f"there is no figure of {' or '.join(absent)}" + self.why(*absent)
            return Check(name, None, why if pairs else "no attack states a norm and an eps")
        # p is at most a half where the gap is above 0, and at least a half where it is not
        above = {pair: gap for pair, gap in gaps.items() if gap.mean() > 0}
        asked = above or dict([max(gaps.items(), key=lambda item: item[1].mean())])
        found = dict(zip(asked, chance_of_more(list(asked.values()))))
        (weak, strong), chance = min(found.items(), key=lambda item: item[1])
        worst = difference(left[strong], left[weak], confidence=_CONFIDENCE)
        failed = [part for part in absent if self.was_run(part)]
        return Check(
            name,
            chance > _CHANCE,
            f"{strong} less {weak}: {100 * worst.value:+.1f} points "
            f"({100 * worst.low:+.1f} to {100 * worst.high:+.1f}), p = {chance:.2g}, "
            f"{worst.n} images" + (f"; no figure of {' or '.join(failed)}" if failed else ""),
        )

    def unbounded(self) -> Check:
        name = "an unbounded attack reaches 0 %"
        shares = np.array([*self.shares("unbounded").values()])
        if not len(shares):
            return Check(name, None, "no unbounded attack was run" + self.why("unbounded"))
        said = f"{100 * shares.mean():.1f} % of {len(shares)} images left"
        return _judged(name, said, _at_most(shares, _UNBOUNDED))

    def measured(self, probe: str) -> dict[str, dict[int, float]]:
        return self.figures.measured(self.defence, self.name(probe))

    def gradients(self) -> Check:
        name = "gradients are neither zero nor NaN"
        found = {key: np.array([*of.values()]) for key, of in self.measured("gradients").items()}
        if not found:
            return Check(name, None, "no gradient was measured" + self.why("gradients"))
        modes = list(dict.fromkeys(key.partition(":")[0] for key in found))
        zero = {mode: found[f"{mode}: zero"] for mode in modes}
        finite = all((found[f"{mode}: finite"] == 1).all() for mode in modes)
        passed = [_at_most(pixels, _ZERO_PIXELS) for pixels in zero.values()]
        passed += [_at_most(pixels == 1, _DEAD_IMAGES) for pixels in zero.values()]
        figures = ", ".join(f"{mode} {100 * share.mean():.1f} %" for mode, share in zero.items())
        said = f"pixels of gradient zero: {figures}, {len(next(iter(zero.values())))} images"
        if not finite:
            return Check(name, False, f"{said}; not all are finite")
        return _judged(name, said, *passed)


class _OfSuite(_Checks):
    """Of a suite: they rest on its probes and stages."""

    def __init__(self, figures: Figures, defence: str, suite: str) -> None:
        super().__init__(figures, defence, suite)
        stages = figures.plan.of_suite(suite, defence, "attack").items()
        self.stages = [name for name, task in stages if task.attacks]

    def all(self) -> Iterator[Check]:
        yield self.unbounded()
        yield self.no_weaker(
            "accuracy falls with eps",
            [("half eps", "white-box"), ("white-box", "double eps"), ("double eps", "unbounded")],
        )
        for more, less, what in (
            ("white-box", "half steps", "steps"),
            ("white-box", "half EOT", "EOT samples"),
        ):
            yield self.no_weaker(f"more {what} never help the defence", [(less, more)])
        yield self.no_weaker(
            "the white box is no weaker than the black box and transfer",
            [("black box", "white-box"), ("transfer", "white-box")],
        )
        yield self.no_weaker(
            "the white box is no weaker than moving images over the classifier's border",
            [("boundary", "white-box")],
        )
        attacks = ["white-box", "half steps", "half EOT", "black box", "transfer"]
        yield self.noise(("noise", attack) for attack in attacks)
        # each stage is compared on the images that it met
        yield self.raised((*attacks, "boundary", *self.stages, *self.figures.attacks))
        yield self.gradients()
        yield self.descent()
        yield self.bare()

    def descent(self) -> Check:
        name = "the loss falls over the purifier's steps"
        found = self.measured("descent")
        if not found:
            why = "the purifier has no descent that could be followed" + self.why("descent")
            return Check(name, None, why)
        before, after = found["loss before"], found["loss after"]
        gap = difference(after, before, confidence=_CONFIDENCE)
        if not _can_fail(gap.n):
            return Check(name, None, f"{gap.n} images are too few to say")
        mean = {when: np.mean([*of.values()]) for when, of in (("from", before), ("to", after))}
        said = " ".join(f"{word} {value:.4g}" for word, value in mean.items())
        said += f", mean of {gap.n} images"
        if gap.value < 0 <= gap.high:
            return Check(name, None, f"{said}: too little to say")
        return Check(name, gap.high < 0, said)

    def bare(self) -> Check:
        name = "clean accuracy is near the bare classifier's"
        found = self.measured("bare").get("right")
        if not found:
            why = "no classifier is known apart from the defence" + self.why("bare")
            return Check(name, None, why)
        bare, defended = aligned(found, self.shares(CLEAN))
        if not len(bare):
            return Check(name, None, "there is no figure of clean images")
        lost = (bare - defended).mean()
        said = (
            f"{100 * defended.mean():.1f} % defended, {100 * bare.mean():.1f} % bare, "
            f"{len(bare)} images"
        )
        gap = bare - _CLEAN_COST - defended
        chance = chance_of_more([gap])[0] if lost > _CLEAN_COST else 1.0
        within = None if chance > _CHANCE and lost > _CLEAN_COST else chance > _CHANCE
        return _judged(name, said, within if _can_fail(len(bare)) else None)


def _can_fail(images: int) -> bool:
    """Whether a sign-flip test could call any difference of so many images more than chance."""
    return bool(0.5**images <= _CHANCE)


def _at_most(shares: np.ndarray, most: float) -> bool | None:
    """Whether a mean share is at most that: None where it is above, but may be so by chance."""
    total = float(shares.sum())
    low = proportion(min(total, len(shares)), len(shares), confidence=_CONFIDENCE).low
    worst = proportion(len(shares), len(shares), confidence=_CONFIDENCE).low
    if worst <= most:  # of so few no outcome is too many
        return None
    return False if low > most else True if total <= most * len(shares) else None


def _judged(name: str, said: str, *passed: bool | None) -> Check:
    """Failed if one did, passed if all did; otherwise it cannot be told."""
    if False not in passed and None in passed:
        return Check(name, None, f"{said}: too few to say")
    return Check(name, all(passed), said)
