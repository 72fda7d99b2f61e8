"""A purifier of another size than the classifier's, in closed form.

The classifier is linear, the denoiser Gaussian, and resizing is a matrix: the logits and their
gradient are products of these, whatever the frame that the attack moves in.
"""

from __future__ import annotations

import pytest
import torch
from tolerances import rounding
from torch import nn
from toys import gaussian, mid_images, shrinkage

from scoreopt_defense import DefendedModel, Fitted, OneShot, ScoreOpt, ThirdParty
from scoreopt_defense.attacks import attack
from scoreopt_defense.diagnostics import optimization_curves
from scoreopt_defense.evaluation.plan.fingerprint import described
from scoreopt_defense.sizes import resized

SIGMA, SIDE, CLASSES = 0.3, 6, 3


def linear(side: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * side**2, CLASSES)).double().eval()


def matrix(side: int, size: int) -> torch.Tensor:
    """Linear interpolation of one axis from its definition: places of pixels' centres, clamped."""
    found = torch.zeros(size, side, dtype=torch.float64)
    for place in range(size):
        at = min(max((place + 0.5) * side / size - 0.5, 0), side - 1)
        left = int(at)
        found[place, left] += 1 - (at - left)
        found[place, min(left + 1, side - 1)] += at - left
    return found


def on_both_axes(x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    return torch.einsum("ih,bchw,jw->bcij", m, x, m)


def gradient_at(model: nn.Module, x: torch.Tensor, **call) -> torch.Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(model(leaf, **call)[:, 1].sum(), leaf)[0]


def weights(classifier: nn.Module, side: int) -> torch.Tensor:
    return classifier[1].weight[1].detach().reshape(1, 3, side, side)


# sums of at most 3 * 12^2 products, three of them in a row
CLOSE = {"rtol": 0, "atol": rounding(torch.float64, 3 * 12**2, 4)}

# What a mode's Jacobian of the Gaussian's one-shot denoising is.
FACTORS = {"bpda": 1.0, "one-shot": float(shrinkage(SIGMA)), "exact": float(shrinkage(SIGMA))}
every_mode = pytest.mark.parametrize(("mode", "factor"), FACTORS.items())


@pytest.mark.parametrize("size", [4, 9, 12])
def test_resizing_is_linear_interpolation(size):
    x = mid_images(2, size=SIDE)
    torch.testing.assert_close(resized(x, size), on_both_axes(x, matrix(SIDE, size)), **CLOSE)
    assert resized(x, SIDE) is x
    assert resized(x, None) is x
    assert resized(x[..., :4], (3, 4)).shape == (2, 3, 3, 4)
    edge = torch.ones(1, 1, SIDE, SIDE)
    assert (resized(resized(edge, 224), SIDE) == 1).all()  # which no clamp has to cut off


@every_mode
def test_cropped_between_purifier_and_classifier_the_border_has_no_gradient(mode, factor):
    """Purified and attacked at 6 pixels, classified at 4: cropping is slicing."""
    classifier = linear(4)
    purifier = OneShot(gaussian(), sigma=SIGMA, gradient=mode)
    model, x = DefendedModel(Fitted(classifier, crop=4), purifier), mid_images(2, size=SIDE)
    want = classifier(purifier(x, seed=1)[..., 1:5, 1:5])
    assert torch.equal(model(x, seed=1), want)
    expected = torch.zeros(2, 3, SIDE, SIDE, dtype=torch.float64)
    expected[..., 1:5, 1:5] = factor * weights(classifier, 4)
    torch.testing.assert_close(gradient_at(model, x, seed=1), expected, **CLOSE)


@every_mode
@pytest.mark.parametrize("size", [4, 9])
def test_purified_at_another_size_the_gradient_goes_through_both_resizings(mode, factor, size):
    """Attacked and classified at 6 pixels, purified at 4 or 9."""
    classifier = linear(SIDE)
    model = DefendedModel(
        classifier, OneShot(gaussian(), sigma=SIGMA, size=size, gradient=mode, seed=0)
    )
    x = mid_images(2, size=SIDE)
    there, back = matrix(SIDE, size), matrix(size, SIDE)
    alone = OneShot(gaussian(), sigma=SIGMA)(on_both_axes(x, there), seed=1)
    torch.testing.assert_close(model(x, seed=1), classifier(on_both_axes(alone, back)), **CLOSE)
    expected = factor * on_both_axes(weights(classifier, SIDE), (back @ there).T)
    torch.testing.assert_close(
        gradient_at(model, x, seed=1), expected.expand(2, -1, -1, -1), **CLOSE
    )
    if mode == "one-shot":  # the twins that attacks make are of the same size
        for twin in (model.surrogate(), model.with_gradient("smoothed"), model.replace(votes=1)):
            torch.testing.assert_close(
                gradient_at(twin, x, seed=1), expected.expand(2, -1, -1, -1), **CLOSE
            )


def test_resized_between_purifier_and_classifier():
    classifier, x = linear(4), mid_images(2, size=SIDE)
    model = DefendedModel(Fitted(classifier, resize=4), ThirdParty(lambda x: x, gradient="exact"))
    down = matrix(SIDE, 4)
    torch.testing.assert_close(model(x), classifier(on_both_axes(x, down)), **CLOSE)
    expected = on_both_axes(weights(classifier, 4), down.T).expand(2, -1, -1, -1)
    torch.testing.assert_close(gradient_at(model, x), expected, **CLOSE)


def test_attacks_move_in_the_frame_of_the_images():
    """What an attack does to a linear classifier is its sign, and nothing of what is cropped."""
    classifier, x = linear(4), mid_images(2, size=SIDE)
    model = DefendedModel(Fitted(classifier, crop=4), ThirdParty(lambda x: x))
    y = model(x).argmax(1)
    for gradient in ("bpda", "classifier"):
        fgsm = attack("PGD", norm="linf", eps=0.01, steps=1, step_size=1.0, gradient=gradient)
        moved = fgsm.run(model, x, y) - x
        assert (moved[..., 0, :] == 0).all()
        inside = moved[..., 1:5, 1:5].abs()
        torch.testing.assert_close(inside, torch.full_like(inside, 0.01))


def test_a_purifiers_steps_are_of_its_size():
    seen = []
    purifier = ScoreOpt(gaussian(), variant="O", steps=2, size=9, sigma=SIGMA, lr=0.01)
    x = mid_images(2, size=SIDE)
    assert purifier(x, callback=lambda step: seen.append(step["x"].shape[-1])).shape == x.shape
    assert set(seen) == {9}
    curves = optimization_curves(purifier, linear(SIDE), x, torch.zeros(2).long(), seed=4)
    assert (curves.distance[0] == 0).all()
    assert curves.lead.shape == curves.loss.shape == (purifier.steps + 1, 2)


def test_a_defence_of_another_size_is_another_defence():
    purifier = ThirdParty(lambda x: x)
    classifier = linear(4)
    said = [
        described(DefendedModel(fitted, settings))
        for fitted in (classifier, Fitted(classifier, crop=4), Fitted(classifier, resize=4))
        for settings in (purifier, purifier.replace(size=4))
    ]
    assert all(said.count(one) == 1 for one in said)
    assert "size" not in said[0]["purifier"]  # keys are what they were


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Fitted(nn.Flatten(), crop=0), "crop must be a whole number of at least 1, got 0"),
        (lambda: Fitted(nn.Flatten(), resize=2.5), "resize must be a whole number"),
        (lambda: OneShot(gaussian(), size=0), "size must be a whole number of at least 1, got 0"),
        (
            lambda: Fitted(nn.Flatten(), crop=7)(mid_images(1, size=SIDE)),
            "crop must be at most 6 x 6 pixels, got 7",
        ),
    ],
)
def test_sizes_that_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()
