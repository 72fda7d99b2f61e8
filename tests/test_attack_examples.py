"""The attacks of examples/attacks.py, each on the same small defence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tolerances import rounding
from toys import bent, mid_images, smooth_classifier

from scoreopt_defense import EOT, DefendedModel, ScoreOpt

pytest.importorskip("torchattacks")
pytest.importorskip("art")
pytest.importorskip("recoloradv")

import attacks as examples

BUDGET = examples.Budget(
    eps=0.2, transfer_steps=4, bpda_steps=4, pgd_steps=4, spsa_steps=6, spsa_samples=16,
    stadv_steps=4, art_steps=4,
)  # fmt: skip


@pytest.fixture
def x():
    return mid_images(dtype=torch.float32)


@pytest.fixture
def classifier():
    return smooth_classifier(torch.float32)


def purifier(**settings):
    return ScoreOpt(bent(torch.float32), steps=1, lr=0.01, sigma=(0.2, 0.4), **settings)


@pytest.mark.parametrize("defended", [False, True], ids=["bare", "defended"])
@pytest.mark.parametrize("name", examples.ATTACKS)
def test_each_attack_keeps_its_budget_and_raises_the_loss_of_what_it_attacks(
    name, defended, classifier, x
):
    np.random.seed(0)  # noqa: NPY002, ART draws from the global generator
    defence = purifier(seed=0) if defended else None
    judge = EOT(DefendedModel(classifier, purifier(seed=1)), 32) if defended else classifier
    with torch.no_grad():
        y = judge(x).argmax(1)
    adversarial = examples.ATTACKS[name](classifier, defence, x, y, BUDGET)
    assert adversarial.shape == x.shape
    assert adversarial.dtype == x.dtype
    assert not adversarial.requires_grad
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    if name != "StAdv":  # it moves pixels about instead
        assert (adversarial - x).abs().max() <= BUDGET.eps + rounding(torch.float32, 2)
    with torch.no_grad():
        assert F.cross_entropy(judge(adversarial), y) > F.cross_entropy(judge(x), y)


def test_the_transfer_attack_never_asks_the_defence(classifier, x, y):
    with_defence, without = (
        (torch.manual_seed(0), examples.transfer_pgd(classifier, defence, x, y, BUDGET))[1]
        for defence in (purifier(), None)
    )
    assert torch.equal(with_defence, without)


@pytest.mark.parametrize(
    ("attack", "modes"),
    [
        ("BPDA+EOT", {"bpda"}),
        ("PGD+EOT", {"one-shot"}),
        ("SPSA", {"none"}),
        ("StAdv", {"one-shot"}),
        ("transfer PGD", set()),
    ],
)
def test_each_attack_differentiates_the_defence_in_its_own_mode(
    attack, modes, classifier, x, y, monkeypatch
):
    asked = set()
    with_gradient = ScoreOpt.with_gradient

    def recorded(self, mode):
        asked.add(mode)
        return with_gradient(self, mode)

    monkeypatch.setattr(ScoreOpt, "with_gradient", recorded)
    examples.ATTACKS[attack](classifier, purifier(), x, y, BUDGET)
    assert asked == modes
