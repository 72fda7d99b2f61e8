"""The sentence of a run: its figures are the run's, and it claims no more than was tried."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn
from toy_evaluation import Failing, defences, images, run

from scoreopt_defense.evaluation import Judging, Result, Store, evaluate
from scoreopt_defense.evaluation.suite.checklist import Check, Checked
from scoreopt_defense.evaluation.suite.quick import Quick
from scoreopt_defense.evaluation.suite.verdict import judge, verdict


class Brightest(nn.Module):
    """Says which channel is brightest."""

    def forward(self, x):
        return x.mean((2, 3))


@dataclass(frozen=True)
class Dim:
    """Takes the brightest channel of the first images of a batch away."""

    broken: int
    norm: str = "linf"
    eps: float = 1.0

    def as_dict(self):
        return {"broken": self.broken, "norm": self.norm, "eps": self.eps}

    def run(self, model, x, y):
        dimmed = x.clone()
        dimmed[torch.arange(self.broken), y[: self.broken]] = 0
        return dimmed


def attacked(*broken):
    x, _ = images(20)
    attacks = {f"dim {count}": Dim(count) for count in broken}
    judging = Judging(purifications=2)
    return evaluate(
        {"d": Brightest().eval()}, (x, x.mean((2, 3)).argmax(1)), attacks, judging=judging,
        batch=20, checks=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("broken", "said"),
    [  # Clopper and Pearson's 95 % intervals of 20
        ((20, 3), "d is not robust: 0 of 20 images survive dim 20 (0 to 17 %)."),
        ((3, 19), "d is not robust: 1 of 20 images survives dim 19 (0 to 25 %)."),
        ((16,), "d is not robust: 4 of 20 images survive dim 16 (6 to 44 %)."),
        ((10,), "d is not robust: 10 of 20 images survive dim 10 (27 to 73 %)."),
        (
            (4, 2),
            "d: no attack run here brings it below 80 % (56 to 94); "
            "3 checks not run; suite not run.",
        ),
        ((), "d was not attacked; unattacked, 100 % of images are right."),
    ],
)
def test_the_sentence_is_of_the_worst_attack(broken, said):
    assert verdict(attacked(*broken), "d") == said


@pytest.mark.parametrize(
    ("passed", "said"), [(True, "d: no attack run here"), (False, "d may not")]
)
def test_what_fails_its_checks_is_no_bound(passed, said):
    checks = [Checked(checks=(Check("gradients are neither zero nor NaN", passed, "0"),))]
    found = judge(attacked(4), "d", checks=checks)
    assert found.sentence.startswith(said)
    assert found.doubts == (() if passed else ("1 check failed",))
    broken = judge(attacked(20), "d", checks=checks)  # which the checks can't speak against
    assert broken.sentence == "d is not robust: 0 of 20 images survive dim 20 (0 to 17 %)"


def test_what_is_not_there_yet_or_failed_is_said(tmp_path):
    some = {"noisy": defences()["noisy"]}
    result = run(None, defences=some, attacks={"broken": Failing()}, trials=1, batch=2)
    missing = result.cell("noisy", "broken").failed
    assert 0 < missing < 12
    assert f"{missing} results missing" in judge(result, "noisy").doubts
    with Store(tmp_path, writing=True) as store:
        store.adopt(result.plan)
        assert verdict(Result(store), "noisy") == "noisy was not attacked yet."
    part = attacked(3, 2)
    part.store.forget(keys=[u.key for u in part.plan.units() if u.attack == "dim 3"])
    assert judge(Result(part.store), "d").doubts == ("not complete",)


class Rounded(nn.Module):
    """Brighter or darker than a half, of rounded pixels: no attack by gradients moves it."""

    def forward(self, x):
        bright = (8 * x).round().mean((1, 2, 3)) / 8 - 0.5
        return torch.stack([-bright, bright], 1)


def test_what_a_checks_black_box_breaks_is_not_robust():
    x = torch.rand(16, 1, 6, 6, generator=torch.Generator().manual_seed(0)) * 0.2 + 0.4
    y = Rounded()(x).argmax(1)
    quick = Quick(eps=0.4, steps=2, queries=200, probed=16)
    result = evaluate({"d": Rounded().eval()}, (x, y), {}, suites={"quick": quick})
    assert float(result.cell("d", "quick").accuracy) > 0.5
    assert "d is not robust: 0 of 16 images survive the checks' black box" in verdict(result, "d")
