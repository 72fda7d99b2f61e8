"""What is asked of a defence before anything is attacked, and what that leaves behind."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn
from toy_evaluation import Toy, defences, images
from toys import labels, mid_images, smooth_classifier

from scoreopt_defense import DefendedModel, ThirdParty
from scoreopt_defense.evaluation import Judging, evaluate
from scoreopt_defense.evaluation.judging import judge, vote
from scoreopt_defense.evaluation.judging.asking import answers, check_defence
from scoreopt_defense.evaluation.plan.behaviour import behaviour
from scoreopt_defense.evaluation.suite.adaptive import _is_random
from scoreopt_defense.evaluation.suite.probes import Gradients


class InPlace(nn.Module):
    """Normalises its images where they are, as some classifiers do, and then is another's."""

    def __init__(self, classifier):
        super().__init__()
        self.classifier = classifier
        self.eval()

    def forward(self, x):
        return self.classifier(x.sub_(0.5).div_(0.25))


class Plain(InPlace):
    def forward(self, x):
        return self.classifier((x - 0.5) / 0.25)


@pytest.mark.parametrize(
    "asked",
    [
        lambda model, x, y: judge(model, x, y, purifications=3, seed=0).lead,
        lambda model, x, y: vote(model, x, times=3, rows=4, seed=0),
        lambda model, x, y: answers(model, x),
        lambda model, x, y: torch.stack(list(Gradients().measure(model, x, y).values())),
        lambda model, x, y: torch.tensor(behaviour(model, x.shape[1:])["gradient"]["of"]),
        lambda model, x, y: torch.tensor(_is_random(model, x)),
        lambda model, x, y: torch.tensor(
            evaluate({"it": model}, (x, y), {}).judged("it", "clean").lead
        ),
    ],
    ids=["judge", "vote", "answers", "gradients", "key", "is random", "evaluate"],
)
def test_a_classifier_that_writes_into_its_images_answers_as_one_that_does_not(asked):
    x, y = images(4)
    before = x.clone()
    classifier = smooth_classifier(torch.float32)
    assert torch.equal(asked(InPlace(classifier), x, y), asked(Plain(classifier), x, y))
    assert torch.equal(x, before)


class Scribbling(Toy):
    """An attack that writes into all that it is given."""

    takes_start = True

    def run(self, model, x, y, *, start):
        y.copy_((y + 1) % 4)
        found = start.clone()
        start.zero_()
        x.zero_()
        return found

    def measure(self, model, x, y):
        x.zero_()
        return {"label": y.add_(1).float()}


@pytest.mark.parametrize("criterion", ["final", "any-step"])
def test_an_attack_that_writes_into_what_it_is_given_is_judged_by_what_was_there(criterion):
    result = evaluate(
        smooth_classifier(torch.float32), images(4), {"theirs": Scribbling()},
        judging=Judging(criterion=criterion),
    )  # fmt: skip
    assert not result.failures
    clean, theirs = (result.judged("Sequential", name) for name in ("clean", "theirs"))
    assert len(clean.labels) == 4
    for part in ("labels", "predicted", "lead"):
        assert np.array_equal(getattr(clean, part), getattr(theirs, part))


class Answers(nn.Module):
    """Returns what it is told to of the smooth classifier's logits."""

    def __init__(self, function):
        super().__init__()
        self.classifier = smooth_classifier(torch.float32)
        self.function = function
        self.eval()

    def forward(self, x):
        return self.function(self.classifier(x))


def outer(model):
    """The same behind nothing and behind a purifier."""
    return model, DefendedModel(model, defences()["one-shot"].purifier)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda z: z[:, :1], r"cannot classify images of shape \(4, .*got .*\(4, 1\).*torch.stack"),
        (lambda z: (z, z), r"cannot classify .*got tuple.*self.model\(x\)\[0\]"),
        (lambda z: z * float("nan"), "cannot classify .*logits that are not finite"),
        (lambda z: z[:, :3], r"labels must be from 0 to 2, the 3 classes of .*got 3 of image 3"),
        (lambda z: z.no_such_thing, "cannot classify .*AttributeError"),
    ],
    ids=["one logit", "a tuple", "not finite", "too few classes", "an error"],
)
def test_a_defence_that_cannot_be_judged_stops_the_run_at_its_start(function, message):
    for model in outer(Answers(function)):
        with pytest.raises(ValueError, match=message):
            evaluate({"theirs": model}, images(4), {})


def test_a_defence_that_has_no_weights_yet_is_refused():
    lazy = nn.Sequential(nn.Flatten(), nn.LazyLinear(4)).eval()
    for model in outer(lazy):
        with pytest.raises(
            ValueError, match=r"'theirs' has lazy weights.*call it before, on a batch"
        ):
            evaluate({"theirs": model}, images(4), {})


@pytest.mark.parametrize(
    ("classifier", "x"),
    [
        (smooth_classifier(torch.float64), mid_images(dtype=torch.float32)),
        (smooth_classifier(torch.float16), mid_images(dtype=torch.float32)),
        (smooth_classifier(torch.float32), mid_images(dtype=torch.float64)),
    ],
)
def test_weights_of_another_type_than_the_images_are_named(classifier, x):
    message = rf"its weights are {classifier[1].weight.dtype}, the images {x.dtype}: call model.to"
    with pytest.raises(ValueError, match=message):
        evaluate(classifier, (x, labels()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_logits_of_any_floating_type_are_judged_by_what_they_are(dtype):
    logits = smooth_classifier(torch.float32)(images(4)[0]).to(dtype)
    verdict = judge(Answers(lambda z: z.to(dtype)), *images(4), purifications=1, seed=0)
    assert torch.equal(verdict.predicted[:, 0], logits.argmax(1))
    assert verdict.lead.dtype == torch.float32


def test_a_float64_run_under_a_float64_default():
    model, x, y = smooth_classifier(), mid_images(), labels()
    torch.set_default_dtype(torch.float64)
    try:
        result = evaluate(model, (x, y), {})
    finally:
        torch.set_default_dtype(torch.float32)
    want = (model(x).argmax(1) == y).double().mean()
    assert result.cell("Sequential").accuracy.value == want


@pytest.mark.parametrize(
    ("function", "warned"),
    [
        (lambda z: z.softmax(1), True),
        (lambda z: z.half().softmax(1), True),
        (lambda z: z, False),
        (lambda z: z.log_softmax(1), False),
        (lambda z: z.sigmoid(), False),
    ],
    ids=["softmax", "half softmax", "logits", "log softmax", "sigmoid"],
)
def test_probabilities_in_place_of_logits_are_warned_of(function, warned):
    for model in outer(Answers(function)):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            evaluate({"theirs": model}, images(4), {})
        said = [str(w.message) for w in caught if "probabilities, not logits" in str(w.message)]
        assert len(said) == warned
        assert all("defence 'theirs' returns" in text for text in said)


def test_asking_changes_nothing():
    training = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5), smooth_classifier(torch.float32))
    training.train()
    ours = defences()["one-shot"]
    x, _ = images(4)
    for model in (training, ours):
        before = [part.clone() for part in (*model.parameters(), *model.buffers())]
        modes, state = [part.training for part in model.modules()], torch.get_rng_state()
        first = answers(model, x)
        assert torch.equal(first, answers(model, x))
        assert not torch.equal(first, answers(model, x, seed=1))
        assert all(map(torch.equal, before, (*model.parameters(), *model.buffers())))
        assert modes == [part.training for part in model.modules()]
        assert torch.equal(state, torch.get_rng_state())


def test_a_purification_that_looks_at_an_images_neighbours_is_warned_of():
    """In halves of a batch it is another defence: attacked among some, judged among others."""
    of_batch = ThirdParty(lambda x: (x - x.mean(0) + 0.1).clamp(0, 1))
    drawing = ThirdParty(lambda x: (x - x.mean(0) * torch.rand(())).clamp(0, 1))
    by_itself = ThirdParty(lambda x: (x - x.mean((1, 2, 3), keepdim=True)).clamp(0, 1))
    x, y = images(4)
    for purifier, said in ((of_batch, 1), (drawing, 0), (by_itself, 0)):
        model = DefendedModel(smooth_classifier(torch.float32), purifier)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            check_defence("it", model, x, y)
        assert sum("by its neighbours" in str(one.message) for one in told) == said


def test_a_purification_without_the_gradient_that_it_says_is_refused_before_anything_is_attacked():
    model = DefendedModel(smooth_classifier(torch.float32), ThirdParty(lambda x: (x > 0.5).float()))
    with pytest.raises(ValueError, match=r"autograd does not go through .*say differentiable"):
        evaluate({"it": model}, images(4), {})


def test_defences_come_first():
    with pytest.raises(
        TypeError, match="mapping of names to modules, got tuple; images come second"
    ):
        evaluate(images(4), smooth_classifier(torch.float32))
