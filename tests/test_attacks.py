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

import attack_table
import attacks as examples

from scoreopt_defense.data import Images

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


@pytest.mark.parametrize("cells_before", [0, 1])
def test_a_cell_of_the_table_does_not_depend_on_those_before_it(
    cells_before, classifier, x, y, monkeypatch, tmp_path
):
    """One purifier's stream ran through all cells, so that no cell's seed could repeat it."""
    found = []

    def recorded(*args):
        found.append(examples.pgd_eot(*args))
        return found[-1]

    others = {"BPDA+EOT": examples.bpda_eot} if cells_before else {}
    monkeypatch.setattr(attack_table, "ATTACKS", others | {"PGD+EOT": recorded})
    monkeypatch.setattr(attack_table, "_draw", lambda *_: None)
    images = Images(x, y, tuple("abcd"))
    attack_table.run(classifier, {"ours": purifier(seed=0)}, images, BUDGET, tmp_path, seed=3)
    torch.manual_seed(3)
    alone = purifier().replace(seed=3)
    for got, part, labels in zip(found, x.split(2), y.split(2), strict=True):
        want = examples.pgd_eot(classifier, alone, part, labels, BUDGET)
        assert torch.equal(got, want)
        with torch.no_grad():
            DefendedModel(classifier, alone)(got)  # as the table judges it before the next batch
