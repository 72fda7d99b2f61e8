"""The quick suite, and the eps that a suite has by default."""

from __future__ import annotations

import pytest
import torch
from configurations import BARE, IMAGES
from torch import nn
from toys import mid_images, smooth_classifier

from scoreopt_defense import JPEG, DefendedModel, OneShot, ScoreOpt, data, pretrained
from scoreopt_defense.evaluation import Judging, evaluate
from scoreopt_defense.evaluation.config import load
from scoreopt_defense.evaluation.named import SUITES, suite
from scoreopt_defense.evaluation.suite.quick import Quick
from scoreopt_defense.evaluation.suite.summary import summary
from scoreopt_defense.evaluation.suite.verdict import verdict


@pytest.mark.parametrize("name", SUITES)
@pytest.mark.parametrize(
    ("shape", "settings", "eps"),
    [
        ((1, 28, 28), {}, 0.3),
        ((1, 28, 28), {"norm": "l2"}, 2.0),
        ((3, 32, 32), {}, 8 / 255),
        ((3, 224, 224), {"norm": "l2"}, 0.5),
        ((1, 28, 28), {"eps": 0.1}, 0.1),
    ],
)
def test_a_suite_goes_as_far_as_is_usual_for_such_images(name, shape, settings, eps):
    tasks = suite(name.upper(), **settings).tasks(nn.Flatten(), torch.rand(4, *shape))
    assert tasks[""].attack.eps == eps


@pytest.mark.parametrize("name", SUITES)
def test_the_images_of_a_file_say_the_eps(name, written):
    text = f'suite = "{name}"\n{IMAGES}{BARE}[suites.far]\nsuite = "{name}"\neps = 0.4'
    tasks = load(written(text)).materials().tasks
    assert [tasks[of]["bare"].attack.eps for of in (name, "far")] == [0.3, 0.4]


CLASSIFIER, DENOISER = pretrained.classifier("mnist-tiny"), pretrained.denoiser("mnist-tiny")
STAGES = {
    "bare": (CLASSIFIER, ["momentum PGD, as-it-is"]),
    "JPEG": (DefendedModel(CLASSIFIER, JPEG()), ["transfer PGD", "momentum PGD, bpda"]),
    "ScoreOpt": (
        DefendedModel(CLASSIFIER, ScoreOpt.from_preset("mnist-tiny/N", DENOISER)),
        ["transfer PGD", "momentum PGD at the surrogate", "momentum PGD, smoothed"],
    ),
    "one-shot": (
        DefendedModel(CLASSIFIER, OneShot(DENOISER, sigma=0.75)),
        ["transfer PGD", "momentum PGD at the surrogate", "momentum PGD, exact"],
    ),
}


@pytest.mark.parametrize("name", STAGES)
def test_the_strongest_of_each_kind_that_a_defence_can_be_met_with(name):
    model, stages = STAGES[name]
    tasks = Quick(probed=0).tasks(model, torch.rand(2, 1, 28, 28))
    assert list(tasks) == ["no attack", *stages, ""]
    assert all(list(tasks[label].begins_from) == list(tasks)[:i] for i, label in enumerate(tasks))
    assert {tasks[label].attack.eps for label in (*stages, "")} == {0.3}


def test_a_purifier_inside_another_module_is_refused():
    inside = torch.nn.Sequential(STAGES["JPEG"][0])
    with pytest.raises(ValueError, match="pass the DefendedModel itself"):
        Quick().tasks(inside, torch.rand(1, 1, 28, 28))


def test_noise_that_goes_by_the_place_in_the_batch_is_refused():
    model = STAGES["one-shot"][0].replace(deterministic="per-image")
    with pytest.raises(ValueError, match=r"place in the batch.*take deterministic=True"):
        Quick().tasks(model, torch.rand(1, 1, 28, 28))


class Fragile(nn.Module):
    """Fails where bright images are attacked."""

    def __init__(self) -> None:
        super().__init__()
        self.net = smooth_classifier(torch.float32)

    def forward(self, x):
        if x.requires_grad and x.mean() > 0.7:
            raise RuntimeError("too bright")
        return self.net(x)


def test_images_that_no_attack_met_are_in_no_suites_figure():
    x = torch.cat([mid_images(dtype=torch.float32)[:2] * 0.5, mid_images()[:2].float() / 2 + 0.5])
    model = Fragile().eval()
    result = evaluate(
        {"it": model}, (x, model(x).argmax(1)), batch=2, checks=False,
        suites={"quick": Quick(eps=0.01, steps=2, probed=0)}, judging=Judging(purifications=1),
    )  # fmt: skip
    assert result.cell("it", "quick").accuracy.n == 2
    assert result.cell("it").accuracy.n == 4
    said = verdict(result, "it")
    assert "2 results missing" in said
    assert "attacks of a suite failed on some images" in said


def test_what_it_says_of_a_classifier_without_a_defence():
    images = data.mnist(n=8)
    result = evaluate(CLASSIFIER, images, suites="quick")
    found = summary(result, type(CLASSIFIER).__name__, "quick")
    assert found.worst.cell.accuracy.value == 0
    assert not found.failing
    run = {check.name for check in found.checks if check.passed}
    assert {"an unbounded attack reaches 0 %", "accuracy falls with eps"} <= run
    assert "the white box is no weaker than the black box and transfer" in run
