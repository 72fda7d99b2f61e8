"""Bundles made, checked and challenged: what the outcomes mean, and how often they are wrong."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from toy_evaluation import EPS, Ascent, Noisy, defences, images, run
from toys import smooth_classifier

from scoreopt_defense import DefendedModel
from scoreopt_defense.data import Tensors
from scoreopt_defense.evaluation import Judging
from scoreopt_defense.evaluation.bundle import Bundle, challenge, of_images, of_run, verify
from scoreopt_defense.evaluation.bundle.verifying import decided
from scoreopt_defense.evaluation.plan.tasks import CLEAN

X, Y = images()
SOURCE = Tensors(X, Y)
BALL = {"norm": "linf", "eps": EPS}


class Coin(nn.Module):
    """Right, which is class 1, as often as an image's first pixel says; the second picks draws."""

    def __init__(self, bias: float = 0.0) -> None:
        super().__init__()
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        second = (x[:, 0, 0, 1:] > 0.5).long()
        right = torch.rand(len(x), 2).gather(1, second).flatten() < x[:, 0, 0, 0] + self.bias
        return torch.stack([~right, right], 1).float()


def coins(shares) -> Tensors:
    first = torch.tensor(shares, dtype=torch.float32)
    x = torch.stack([first, torch.full_like(first, 0.45)], 1)[:, None, None]
    return Tensors(x, torch.ones(len(x)).long())


def of_coins(source, **other) -> Bundle:
    given = {"defence": "coin", "purifications": 16, "seed": 1} | BALL | other
    return of_images(Coin().eval(), source, source.x, **given)


SIDES = np.linspace(0, 1, 64) ** 4  # most fall nearly always, some stand


def drawn(shares, draws, rng):
    return rng.random((len(shares), draws)) < shares[:, None]


def outcomes(was, now, *, times=2000, k=16, m=32, margin=0.05):
    rng = np.random.default_rng(0)
    found = [decided(drawn(was, k, rng), drawn(now, m, rng), margin)[0] for _ in range(times)]
    return {name: found.count(name) / times for name in ("confirmed", "refuted")}


# Of 2,000 runs a rate of 2.5 % is counted as 3.6 % or more once in 700.
_RATE = 0.025 + 3.2 * (0.025 * 0.975 / 2000) ** 0.5


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("k", [4, 16])
def test_at_the_margin_neither_outcome_comes_oftener_than_it_may(sign, k):
    low = np.linspace(0, 0.95, 64) ** 2
    sides = (low, low + 0.05)[::sign]
    found = outcomes(*sides, k=k)
    assert found["confirmed"] < _RATE
    assert found["refuted"] < _RATE


def test_a_true_claim_is_confirmed_and_a_false_one_refuted():
    true = outcomes(SIDES, SIDES, times=500)
    assert true["confirmed"] > 0.8
    assert true["refuted"] == 0
    assert outcomes(SIDES, (SIDES + 0.2).clip(max=1), times=500)["refuted"] > 0.95


@pytest.mark.parametrize(
    ("flipped", "outcome"), [(0, "confirmed"), (2, "confirmed"), (5, "undecided"), (12, "refuted")]
)
def test_a_deterministic_defence_may_flip_few_images(flipped, outcome):
    was = np.zeros((100, 8), dtype=bool)
    now = np.zeros((100, 32), dtype=bool)
    now[:flipped] = True
    assert decided(was, now, 0.05)[:2] == (outcome, pytest.approx(flipped / 100))


def test_noise_that_a_batch_shares_is_no_evidence():
    """Each draw is right of all images or of none: 64 images say no more than one."""
    rng = np.random.default_rng(0)
    found = [
        decided(*(np.repeat(rng.random((1, k)) < 0.5, 64, 0) for k in (8, 32)), 0.05)[0]
        for _ in range(1000)
    ]
    assert found.count("refuted") < 60  # were the images independent, most would be
    assert found.count("confirmed") < 60


def test_a_claim_is_confirmed_by_draws_that_nobody_knew():
    bundle = of_coins(source := coins(np.repeat(SIDES, 2)))
    found = [verify(bundle, Coin().eval(), source, margin=0.1) for _ in range(2)]
    assert [f.outcome for f in found] == ["confirmed"] * 2
    assert found[0].seed != found[1].seed
    assert found[0].found != found[1].found
    again = verify(bundle, Coin().eval(), source, margin=0.1, seed=found[0].seed)
    assert again == found[0]
    assert str(again).startswith("confirmed: of 128 images ")


@pytest.mark.parametrize(("said", "why"), [(1, "fewer images stand"), (0, "more images stand")])
def test_made_up_predictions_are_refuted(said, why):
    source = coins(SIDES)
    lying = replace(of_coins(source), predicted=np.full((64, 16), said))
    found = verify(lying, Coin().eval(), source)
    assert found.outcome == "refuted"
    assert why in str(found)
    assert found.p < 1e-6


def test_luck_in_the_choice_of_images_is_refuted():
    """Whoever tries a thousand images alike and keeps those that fell has shown nothing."""
    every = of_coins(coins(np.full(1000, 0.5)), purifications=4)
    few = np.flatnonzero(~every.right.any(1))
    assert len(few) > 40
    source = coins(np.full(len(few), 0.5))
    chosen = replace(of_coins(source), predicted=every.predicted[few])
    assert verify(chosen, Coin().eval(), source).outcome == "refuted"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda model: model.replace(sigma=0.4), "sigma was"),
        (lambda model: model.replace(votes=2), "votes was 1, and is 2"),
        (lambda model: DefendedModel(other_weights(), model.purifier), "weights was"),
    ],
)
def test_another_defence_is_named(change, said):
    model = defences()["one-shot"]
    bundle = of_images(model, SOURCE, X, defence="d", purifications=2, **BALL)
    assert verify(bundle, model, SOURCE, purifications=2, seed=0).found is not None
    found = verify(bundle, change(model), SOURCE, purifications=2)
    assert (found.outcome, found.found) == ("another defence", None)
    assert said in str(found)
    with pytest.raises(ValueError, match="of another defence: "):
        challenge(bundle, change(model), SOURCE, X)


def other_weights() -> nn.Module:
    classifier = smooth_classifier(torch.float32)
    classifier.load_state_dict({n: v + 1e-3 for n, v in classifier.state_dict().items()})
    return classifier


def test_a_defence_that_answers_otherwise_is_another():
    model = defences()["one-shot"]
    bundle = of_images(model, SOURCE, X, defence="d", purifications=2, **BALL)
    with model.classifier[1].register_forward_hook(lambda module, given, y: y + 0.1):
        found = verify(bundle, model, SOURCE, purifications=2)
    assert found.outcome == "another defence"
    assert "logits on two fixed images moved by" in found.why


def test_what_a_bundle_says_of_its_rounding_is_not_believed():
    bundle = of_coins(source := coins(SIDES))
    answers = {n: a | {"rounding": 1e9} for n, a in bundle.fingerprint.behaviour.items()}
    wide = replace(bundle, fingerprint=replace(bundle.fingerprint, behaviour=answers))
    assert verify(wide, Coin().eval(), source).outcome == "confirmed"
    assert verify(wide, Coin(0.3).eval(), source).outcome == "another defence"


def _moved(place: int, by: float) -> np.ndarray:
    moved = X.clone()
    moved[place, 0, 0, 0] = moved[place, 0, 0, 0].clamp(0, 0.5) + by
    return moved.numpy()


@pytest.mark.parametrize(
    ("bundle", "source", "said"),
    [
        ({"images": _moved(5, 0.45)}, SOURCE, "1 of 12 of the bundle's images are outside"),
        ({}, Tensors(X.flip(0), Y.flip(0)), "are not the first ones of these 12"),
        ({}, Tensors(X, 1 - Y.clamp(max=1)), "are not the first ones"),
        ({}, Tensors(X[:6], Y[:6]), "are not the first ones of these 6"),
        ({"labels": (Y + 1).numpy()}, SOURCE, "are not the first ones"),
        ({"eps": 1.5}, SOURCE, "eps, at most 1"),
    ],
)
def test_what_cannot_be_believed_is_refused(bundle, source, said):
    model = Noisy().eval()
    honest = of_images(model, SOURCE, X, defence="d", purifications=1, **BALL)
    with pytest.raises(ValueError, match=said):
        verify(replace(honest, **bundle), model, source)


def test_more_clean_images_may_follow():
    model = Noisy().eval()
    part = Tensors(X[:6], Y[:6])
    bundle = of_images(model, part, X[:6], defence="d", purifications=2, **BALL)
    assert verify(bundle, model, SOURCE, purifications=2).found.n == 6


def test_rounding_does_not_leave_a_ball():
    """x + delta in float32, to the border: of 2,304 pixels some are rounded outwards."""
    delta = EPS * (torch.rand_like(X) - 0.5).sign()
    attacked = (X + delta).clamp(0, 1)
    assert ((attacked.double() - X.double()).abs() > EPS).any()
    of_images(Noisy().eval(), SOURCE, attacked, defence="d", purifications=1, **BALL)
    with pytest.raises(ValueError, match="outside"):
        of_images(Noisy().eval(), SOURCE, (X + 1.01 * delta).clamp(0, 1), defence="d", **BALL)


GIVEN = {
    "attacks": {"ascent": Ascent(), "long": Ascent(steps=3)},
    "judging": Judging(purifications=4),
}


@pytest.fixture(scope="module")
def result():
    return run(None, defences={"noisy": Noisy().eval(), "other": Noisy().eval()}, **GIVEN)


def test_of_several_attacks_half_the_draws_choose_and_the_others_are_claimed(result):
    bundle = of_run(result, defence="noisy")
    assert bundle.predicted.shape == (12, 2)
    candidates = [
        (attack, trial, result.adversarial("noisy", attack, trial))
        for attack in ("ascent", "long")
        for trial in (0, 1)
    ]
    for image in range(12):
        shares = []
        for attack, trial, _ in candidates:
            judged = result.judged("noisy", attack)
            (place,) = np.flatnonzero((judged.images == image) & (judged.trials == trial))
            shares.append((judged.right[place, :2].mean(), judged.lead[place, :2].mean(), place))
        worst = min(range(4), key=lambda of: shares[of][:2])
        attack, _, attacked = candidates[worst]
        np.testing.assert_array_equal(bundle.images[image], attacked[image])
        predicted = result.judged("noisy", attack).predicted[shares[worst][2], 2:]
        np.testing.assert_array_equal(bundle.predicted[image], predicted)
    assert sum(bundle.made["by"].values()) == 12
    assert (bundle.norm, bundle.eps) == ("linf", EPS)


def test_a_bundle_of_a_run_is_checked_from_its_file(result, tmp_path):
    read = Bundle.read(of_run(result, defence="noisy").write(tmp_path / "out.zip"))
    assert read.fingerprint.id == result.plan.defences["noisy"].id
    found = verify(read, Noisy().eval(), SOURCE, margin=0.3)
    assert found.outcome == "confirmed"


def test_a_suite_s_figure_is_claimed_as_it_is():
    result = run(
        None, defences={"one-shot": defences()["one-shot"]}, attacks={}, trials=1,
        judging=Judging(purifications=2), suites={"quick": quick()},
    )  # fmt: skip
    bundle = of_run(result)
    assert bundle.share == result.cell("one-shot", "quick").accuracy
    assert bundle.predicted.shape == (12, 2)


def quick():
    from scoreopt_defense.evaluation.suite.quick import Quick

    return Quick(eps=EPS, steps=2, confirm=0, probed=0)


@pytest.mark.parametrize(
    ("given", "asked", "said"),
    [
        ({}, {}, "say which defence: one of .'noisy', 'other'"),
        ({}, {"defence": "none"}, "defence must be one of"),
        ({}, {"defence": "noisy", "eps": 0.5}, "of one ball: .*linf 0.1 .ascent, long"),
        (
            {"attacks": {"a": Ascent(), "b": Ascent(norm="l2", eps=9.0)}},
            {"defence": "noisy"},
            "say its norm and eps",
        ),
        ({"attacks": {}}, {"defence": "noisy"}, "of one ball"),
        ({"keep": "none"}, {"defence": "noisy"}, "images of|not kept"),
        ({"judging": Judging(purifications=1)}, {"defence": "noisy"}, "at least 2"),
    ],
)
def test_what_is_no_claim_is_refused(given, asked, said, result):
    if given:
        several = {"noisy": Noisy().eval(), "other": Noisy().eval()}
        result = run(None, **{"defences": several, **GIVEN, "trials": 1, **given})
    with pytest.raises((ValueError, OSError), match=said):
        of_run(result, **asked)


def test_a_challenge_of_images_as_bad_does_not_lower_the_claim():
    """They win half the time by luck, which the draws that judge do not have."""
    source = coins(np.full(200, 0.5))
    bundle, other = of_coins(source), source.x.clone()
    other[..., 1] = 0.55
    found = challenge(bundle, Coin().eval(), source, other, purifications=8, seed=3)
    assert 40 < found.taken < 160
    assert found.fall.low < 0 < found.fall.high
    # four standard errors; by the draws that chose it would be 0.4
    assert abs(found.bundle.share.value - 0.5) < 4 * 0.5 / 1600**0.5
    assert "is not shown to fall" in str(found)


def test_a_challenge_keeps_the_worst_of_each_image():
    source = coins(np.full(200, 0.5))
    bundle, worse = of_coins(source), source.x.clone()
    worse[:100, ..., 0] -= 0.1
    found = challenge(bundle, Coin().eval(), source, worse, purifications=64, seed=3)
    assert 85 <= found.taken <= 100
    assert 0 < found.fall.low < 0.05 < found.fall.high
    taken = (found.bundle.images != bundle.images).any((1, 2, 3))
    assert taken.sum() == found.taken
    assert not taken[100:].any()
    assert found.bundle.made["challenged"] == bundle.made
    assert str(found).startswith("The claim falls: by ")
    with pytest.raises(ValueError, match="of the challenger's images are outside"):
        challenge(bundle, Coin().eval(), source, (source.x - 0.2).clamp(0, 1))


def test_the_images_of_a_run_are_those_that_were_judged(result):
    """The digest is of the clean ones, which the record has too."""
    clean = torch.from_numpy(result.adversarial("noisy", CLEAN))
    assert torch.equal(clean, X)
