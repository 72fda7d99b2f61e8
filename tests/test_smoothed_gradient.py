"""The smoothed gradient is the exact one of every step but the optimiser's update."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from exact_gradients import (
    OUTER,
    SETTINGS,
    assert_same_gradient,
    found,
    gradient_of,
    label_of,
    naive,
    purifier_of,
)
from torch import Tensor
from toys import bent, mid_images

from scoreopt_defense import OneShot
from scoreopt_defense.gradients import Smoothed
from scoreopt_defense.optimizers import SGD, Adam, SmoothedAdam

WITH_ADAM = [setting for setting in SETTINGS + OUTER if setting["optimizer"] == "adam"]


@dataclass(frozen=True)
class StraightThrough:
    """Adam's value with the smoothed rule's graph, for autograd to record whole."""

    c: float

    def init(self, x: Tensor) -> tuple[Tensor, ...]:
        return Adam().init(x)

    def step(
        self, count: int, lr: float, x: Tensor, grad: Tensor, *state: Tensor
    ) -> tuple[Tensor, ...]:
        real, *state_after = Adam().step(count, lr, x, grad, *state)
        smooth, *_ = SmoothedAdam(c=self.c).step(count, lr, x, grad, *state)
        return smooth + (real - smooth).detach(), *state_after


@pytest.mark.parametrize("settings", WITH_ADAM, ids=label_of)
def test_equals_naive_autograd_of_the_smoothed_rule(settings: dict) -> None:
    purifier, x = purifier_of(settings), mid_images().requires_grad_()
    purified = purifier.with_gradient(Smoothed(0.7))(x, seed=1)
    assert torch.equal(purified, purifier.with_gradient("bpda")(x, seed=1))
    straight = purifier.replace(optimizer=StraightThrough(0.7))
    assert_same_gradient(gradient_of(purified, x), gradient_of(naive(straight, x, 1), x))


@pytest.mark.parametrize("settings", SETTINGS + OUTER, ids=label_of)
def test_is_exact_without_a_floor_or_without_a_divisor(settings: dict) -> None:
    purifier = purifier_of(settings)
    exact = found(purifier, "exact")
    assert torch.equal(found(purifier, Smoothed(c=0)), exact)
    differs = not torch.equal(found(purifier, "smoothed"), exact)
    assert differs == (settings["optimizer"] == "adam")


def test_tends_to_exact_with_c() -> None:
    purifier = purifier_of({"variant": "O", "sigma": 0.3})
    exact = found(purifier, "exact")
    # linear in c once c rms is below the smallest of 768 gradients, about a thousandth of the rms
    far, near = ((found(purifier, Smoothed(c)) - exact).norm().item() for c in (1e-6, 1e-8))
    assert far > 50 * near > 0


def test_is_exact_for_a_purifier_without_an_optimiser_and_for_a_rule_of_ones_own() -> None:
    class Own:
        """No ``smoothed``: what is differentiated is the rule itself."""

        init, step = Adam().init, Adam().step

    for purifier in (
        OneShot(bent(), sigma=0.3),
        purifier_of({"variant": "N", "sigma": 0.3}).replace(optimizer=Own()),
    ):
        assert torch.equal(found(purifier, "smoothed"), found(purifier, "exact"))


def test_rule_is_adam_at_zero_and_a_scaled_gradient_far_from_it() -> None:
    x, grad = mid_images(2), mid_images(2) - 0.5
    state = Adam().init(x)
    assert torch.equal(
        SmoothedAdam(c=0).step(1, 0.1, x, grad, *state)[0], Adam().step(1, 0.1, x, grad, *state)[0]
    )
    c = 1e6
    moved = SmoothedAdam(c=c).step(1, 0.1 * c, x, grad, *state)[0] - x
    rms = grad.square().mean((1, 2, 3), keepdim=True).sqrt()
    largest = (grad.abs() / rms).max()  # the divisor is c rms (1 + |g| / (c rms)) at most
    torch.testing.assert_close(moved, -0.1 * grad / rms, rtol=2 * largest.item() / c, atol=0)


@pytest.mark.parametrize("c", [-1.0, float("nan"), "1"])
def test_wrong_floors_are_refused(c: object) -> None:
    for kind in (Smoothed, SmoothedAdam):
        with pytest.raises(ValueError, match=r"c must be a finite number at least 0"):
            kind(c=c)


def test_sgd_has_no_twin() -> None:
    assert not hasattr(SGD(), "smoothed")
