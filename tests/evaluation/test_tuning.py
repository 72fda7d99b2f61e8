"""Settings for a new network, by the rule that the presets were chosen by."""

from __future__ import annotations

import pytest
import torch
from module_state import state_of
from toy_evaluation import images
from toys import bent, gaussian, smooth_classifier

from scoreopt_defense import ScoreOpt, ThirdParty, evaluate
from scoreopt_defense.attacks import attack
from scoreopt_defense.evaluation.judging import Judging
from scoreopt_defense.evaluation.run.progress import Progress
from scoreopt_defense.evaluation.tuning import TRANSFER, tune

EPS = 0.05
CLASSIFIER = smooth_classifier(torch.float32)
X = images()[0]
with torch.no_grad():
    CLASSIFIER[-1].bias -= CLASSIFIER(X).mean(0)  # or it says one class of all
Y = CLASSIFIER(X).argmax(1)  # so that it is right of all
SMALL = {"sigma": [0.3], "lr": [0.02, 0.2], "steps": [1, 2], "eps": EPS}


def nearest(x):
    """What knows the clean images."""
    return X[(x.flatten(1)[:, None] - X.flatten(1)).norm(dim=2).argmin(1)]


def grey(x):
    """What throws them away."""
    return 0 * x + 0.5


PURIFIERS = {
    "none": ThirdParty(lambda x: x, differentiable=False),
    "grey": ThirdParty(grey, differentiable=False),
    "nearest": ThirdParty(nearest, differentiable=False),
    "nearest again": ThirdParty(nearest, differentiable=False),
}


@pytest.fixture(autouse=True)
def _the_attack_is_there():
    pytest.importorskip("torchattacks")


def shares(tried):
    return {
        name: (tried.cell(name).accuracy.value, tried.cell(name, TRANSFER).accuracy.value)
        for name in tried.plan.defences
    }


@pytest.mark.parametrize(
    ("names", "best"),
    [
        (["none", "grey", "nearest", "nearest again"], "nearest"),  # of equals the first
        (["nearest again", "nearest"], "nearest again"),
        (["none", "grey"], "none"),  # all right unattacked, few attacked
    ],
)
def test_the_highest_mean_of_clean_and_transfer_accuracy_is_chosen(names, best):
    found, tried = tune({name: PURIFIERS[name] for name in names}, CLASSIFIER, (X, Y), eps=EPS)
    means = {name: sum(of) for name, of in shares(tried).items()}
    assert found == best
    assert means[best] == max(means.values())
    if "nearest" in names:
        assert means["nearest"] == 2
        assert shares(tried).get("none", (1, 0))[1] < 1  # the attack does something


def test_no_white_box_has_a_say():
    """All that is run on a candidate is the classifier's attack."""
    _, tried = tune({"none": PURIFIERS["none"]}, CLASSIFIER, (X, Y), eps=EPS)
    about = {name: task for name, task in tried.plan.attacks.items() if name != "clean"}
    assert {name: task["gradient"] for name, task in about.items()} == {
        TRANSFER: {"name": "classifier"}
    }
    bare = evaluate(
        {"bare": CLASSIFIER}, (X, Y), {TRANSFER: attack("transfer-pgd-linf", eps=EPS)},
        checks=False, judging=Judging(purifications=1),
    )  # fmt: skip
    assert bare["bare", TRANSFER].accuracy == tried["none", TRANSFER].accuracy


@pytest.mark.parametrize("variant", ["N", "O"])
def test_scoreopt_is_tuned_and_says_what_was_tried(variant):
    denoiser = bent(torch.float32)
    before = [state_of(part) for part in (denoiser, CLASSIFIER)]
    given = {"variant": variant, "settings": {"max_batch": 4}} | SMALL
    found, tried = ScoreOpt.tune(denoiser, CLASSIFIER, (X, Y), **given)
    assert list(tried.plan.defences)[:2] == [
        "sigma 0.3, lr 0.02, steps 1", "sigma 0.3, lr 0.2, steps 1"
    ]  # fmt: skip
    assert len(tried.plan.defences) == 4
    means = {name: sum(of) for name, of in shares(tried).items()}
    best = max(means, key=means.get)
    assert best == f"sigma {found.sigma[0]}, lr {found.lr}, steps {found.steps}"
    assert (found.variant, found.max_batch, found.denoiser) == (variant, 4, denoiser)
    for part, was in zip((denoiser, CLASSIFIER), before):
        now = state_of(part)
        torch.testing.assert_close(now.pop("tensors"), was.pop("tensors"), rtol=0, atol=0)
        assert now == was


def test_the_seed_says_it_all():
    some = SMALL | {"sigma": [0.3], "lr": [0.2]}
    first, again, other = (
        ScoreOpt.tune(bent(torch.float32), CLASSIFIER, (X, Y), seed=seed, **some)[1]
        for seed in (0, 0, 1)
    )
    assert str(first) == str(again)
    assert first.plan.hash == again.plan.hash != other.plan.hash


def test_it_goes_on_where_it_was_stopped(tmp_path):
    small = SMALL | {"sigma": [0.3], "lr": [0.2]}
    one = {"out": tmp_path, **small, "steps": [1]}
    ScoreOpt.tune(bent(torch.float32), CLASSIFIER, (X, Y), **one)
    told = []

    class Told(Progress):
        def start(self, units, done):
            told.append((len(units), len(done)))

        def note(self, text):
            told.append(text)

    ScoreOpt.tune(bent(torch.float32), CLASSIFIER, (X, Y), out=tmp_path, progress=Told(), **small)
    assert told == ["2 settings: 48 purifications of an image", (4, 2)]


def test_by_default_the_noise_levels_are_the_denoisers():
    """The toy's are from 0.01 to 2, and this one's end at 0.3."""
    denoiser = bent(torch.float32)
    denoiser.sigma_range = (0.01, 0.3)
    few = {"lr": [0.1], "steps": [1], "eps": EPS}
    _, tried = ScoreOpt.tune(denoiser, CLASSIFIER, (X, Y), **few)
    assert list(tried.plan.defences) == [
        f"sigma {level}, lr 0.1, steps 1" for level in (0.15, 0.25)
    ]


class Broken(torch.nn.Module):
    """Has no gradient."""

    def forward(self, x):
        return CLASSIFIER(x.detach())


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        ({"sigma": [3.0]}, ValueError, r"sigma must be within \[0.01, 2\]"),
        ({"sigma": 0.5}, ValueError, r"sigma must be several to try, as in \[0.5\], got 0.5"),
        ({"lr": [-1]}, ValueError, "lr must be a finite number above 0, got -1"),
        ({"variant": "M"}, ValueError, r"variant must be one of \['O', 'N'\], got 'M'"),
        ({"sigma": []}, ValueError, "candidates must be at least one"),
        ({"norm": "l1"}, ValueError, "transfer-pgd-l1"),
        ({"classifier": Broken().eval()}, RuntimeError, "nothing could be judged: RuntimeError"),
    ],
)
def test_what_is_wrong_is_said(change, kind, said):
    given = {"classifier": CLASSIFIER, **SMALL, "lr": [0.1], "steps": [1]} | change
    with pytest.raises(kind, match=said):
        ScoreOpt.tune(bent(torch.float32), given.pop("classifier"), (X, Y), **given)


def test_a_denoiser_of_none_of_the_usual_levels_is_said():
    denoiser = gaussian()
    denoiser.sigma_range = (5.0, 80.0)
    with pytest.raises(ValueError, match=r"sigma must be said for a denoiser .* \[5, 80\]"):
        ScoreOpt.tune(denoiser, CLASSIFIER, (X, Y))
