"""One defence, one gradient, whichever attack library asks for it.

With ``deterministic=True`` the defence is a function, so that all libraries see the same one.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tolerances import adam_rounding, rounding
from torch import nn
from toys import bent, mid_images, smooth_classifier

from scoreopt_defense import DefendedModel, OneShot, PurifierPreprocessor, ScoreOpt
from scoreopt_defense.gradients import BPDA

EPS = 0.02

# Purified images by two routes: two steps of Adam at 0.01 on four images of 192 numbers. The toy
# classifier and its gradient pass it on with a gain below 1, relative to the largest gradient.
IMAGES = adam_rounding(torch.float32, lr=0.01, steps=2, pixels=4 * 192)


@pytest.fixture
def x():
    return mid_images(dtype=torch.float32)


@pytest.fixture
def classifier():
    return smooth_classifier(torch.float32)


def purifier_of(mode):
    return ScoreOpt(
        bent(torch.float32), variant="N", steps=2, lr=0.01, sigma=(0.2, 0.4), gradient=mode,
        deterministic=True,
    )  # fmt: skip


def expected(classifier, purifier, x, y):
    """By hand: the classifier's gradient at the purified image, then the mode's Jacobian."""
    purified = purifier(x).requires_grad_()
    loss = F.cross_entropy(classifier(purified), y, reduction="sum")
    upstream = torch.autograd.grad(loss, purified)[0]
    if purifier.gradient == BPDA():
        return upstream
    one_shot, leaf = OneShot.surrogate_of(purifier), x.clone().requires_grad_()
    return torch.autograd.grad(one_shot(leaf), leaf, upstream)[0]


def by_autograd(classifier, purifier, x, y):
    leaf = x.clone().requires_grad_()
    loss = F.cross_entropy(DefendedModel(classifier, purifier)(leaf), y, reduction="sum")
    loss.backward()
    return leaf.grad


def by_art(classifier, purifier, x, y):
    classification = pytest.importorskip("art.estimators.classification")
    estimator = classification.PyTorchClassifier(
        classifier, nn.CrossEntropyLoss(reduction="sum"), (3, 8, 8), 4, clip_values=(0, 1),
        preprocessing_defences=[PurifierPreprocessor(purifier)], device_type="cpu",
    )  # fmt: skip
    return torch.from_numpy(estimator.loss_gradient(x.numpy(), np.eye(4, dtype=np.float32)[y]))


def by_art_around_the_defended_model(classifier, purifier, x, y):
    classification = pytest.importorskip("art.estimators.classification")
    estimator = classification.PyTorchClassifier(
        DefendedModel(classifier, purifier), nn.CrossEntropyLoss(reduction="sum"), (3, 8, 8), 4,
        clip_values=(0, 1), device_type="cpu",
    )  # fmt: skip
    return torch.from_numpy(estimator.loss_gradient(x.numpy(), np.eye(4, dtype=np.float32)[y]))


def by_foolbox(classifier, purifier, x, y):
    foolbox = pytest.importorskip("foolbox")
    ep = pytest.importorskip("eagerpy")
    model = foolbox.PyTorchModel(
        DefendedModel(classifier, purifier), bounds=(0, 1), device=torch.device("cpu")
    )
    targets = ep.astensor(y)

    def loss(images):
        return ep.crossentropy(model(images), targets).sum()

    return ep.value_and_grad(loss, ep.astensor(x))[1].raw


def by_foolbox_pgd(classifier, purifier, x, y):
    foolbox = pytest.importorskip("foolbox")
    ep = pytest.importorskip("eagerpy")
    model = foolbox.PyTorchModel(
        DefendedModel(classifier, purifier), bounds=(0, 1), device=torch.device("cpu")
    )
    attack = foolbox.attacks.LinfPGD()
    return attack.value_and_grad(attack.get_loss_fn(model, ep.astensor(y)), ep.astensor(x))[1].raw


DOORS = [by_autograd, by_art, by_art_around_the_defended_model, by_foolbox, by_foolbox_pgd]


@pytest.mark.parametrize("mode", ["one-shot", "bpda"])
@pytest.mark.parametrize("door", DOORS)
def test_the_same_gradient_comes_through(door, mode, classifier, x, y):
    want = expected(classifier, purifier_of(mode), x, y)
    got = door(classifier, purifier_of(mode), x, y)
    assert want.abs().max() > 1e-3
    torch.testing.assert_close(got, want, rtol=0, atol=IMAGES * want.abs().max().item())


def test_the_two_modes_differ(classifier, x, y):
    one_shot, bpda = (
        expected(classifier, purifier_of(mode), x, y) for mode in ("one-shot", "bpda")
    )
    assert (one_shot - bpda).abs().max() > 1e-2 * bpda.abs().max()


@pytest.mark.parametrize("mode", ["one-shot", "bpda"])
@pytest.mark.parametrize("attack", ["FGSM", "PGD"])
def test_a_step_of_torchattacks_goes_along_its_sign(attack, mode, classifier, x, y):
    torchattacks = pytest.importorskip("torchattacks")
    gradient = expected(classifier, purifier_of(mode), x, y)
    steps = {
        "FGSM": lambda model: torchattacks.FGSM(model, eps=EPS),
        "PGD": lambda model: torchattacks.PGD(
            model, eps=EPS, alpha=EPS / 4, steps=1, random_start=False
        ),
    }
    size = {"FGSM": EPS, "PGD": EPS / 4}[attack]
    got = steps[attack](DefendedModel(classifier, purifier_of(mode)))(x, y)
    clear = gradient.abs() > 2 * IMAGES * gradient.abs().max()  # elsewhere a sign may turn
    assert clear.float().mean() > 0.95
    want = x + size * gradient.sign()
    # a sum or two of numbers below 1
    torch.testing.assert_close(got[clear], want[clear], rtol=0, atol=rounding(torch.float32, 2))


@pytest.mark.parametrize("steps", [2, 5])
def test_torchattacks_pgd_is_pgd_written_by_hand(steps, classifier, x, y):
    torchattacks = pytest.importorskip("torchattacks")
    model = DefendedModel(classifier, purifier_of("one-shot"))
    got = torchattacks.PGD(model, eps=EPS, alpha=EPS / 4, steps=steps, random_start=False)(x, y)
    want = x
    for _ in range(steps):
        gradient = by_autograd(classifier, model.purifier, want, y)
        want = (x + (want + EPS / 4 * gradient.sign() - x).clamp(-EPS, EPS)).clamp(0, 1)
    # some sums of numbers below 1 a step
    moved_alike = ((got - want).abs() < rounding(torch.float32, 4 * steps)).float().mean()
    assert moved_alike > 0.99  # a sign at a vanishing gradient may differ


@pytest.mark.parametrize("library", ["torchattacks", "foolbox", "art"])
def test_a_defence_without_gradient_says_so_through_every_library(library, classifier, x, y):
    purifier = purifier_of("none")
    attack = {
        "torchattacks": lambda: pytest.importorskip("torchattacks").FGSM(
            DefendedModel(classifier, purifier)
        )(x, y),
        "foolbox": lambda: by_foolbox(classifier, purifier, x, y),
        "art": lambda: by_art(classifier, purifier, x, y),
    }[library]
    with pytest.raises(RuntimeError, match=r"gradient='none'.*'one-shot', 'bpda'"):
        attack()


def test_predictions_agree_too(classifier, x):
    foolbox = pytest.importorskip("foolbox")
    classification = pytest.importorskip("art.estimators.classification")
    want = classifier(purifier_of("bpda")(x)).detach()
    model = DefendedModel(classifier, purifier_of("bpda"))
    close = {"rtol": 0, "atol": IMAGES}
    torch.testing.assert_close(model(x).detach(), want, **close)
    through_foolbox = foolbox.PyTorchModel(model, bounds=(0, 1), device=torch.device("cpu"))(x)
    torch.testing.assert_close(through_foolbox.detach(), want, **close)
    estimator = classification.PyTorchClassifier(
        classifier, nn.CrossEntropyLoss(), (3, 8, 8), 4, clip_values=(0, 1),
        preprocessing_defences=[PurifierPreprocessor(purifier_of("bpda"))], device_type="cpu",
    )  # fmt: skip
    np.testing.assert_allclose(estimator.predict(x.numpy(), batch_size=3), want, **close)
