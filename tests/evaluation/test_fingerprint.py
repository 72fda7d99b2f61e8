"""What tells a defence from others, and what does not."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from foreign_models import AWKWARD, Caching, Ends, Net, traced
from torch import nn
from toy_evaluation import Toy, defences
from toys import BentNet, mid_images, smooth_classifier

from scoreopt_defense import DefendedModel, OneShot, ScoreOpt, ThirdParty
from scoreopt_defense.denoisers import PreconditionedDenoiser
from scoreopt_defense.evaluation.plan.behaviour import behaviour, unlike
from scoreopt_defense.evaluation.plan.fingerprint import described, digest, of_attack
from scoreopt_defense.gradients import BPDA

X = mid_images(2, dtype=torch.float32)


def answers(model: nn.Module, threads: int = 1) -> dict[str, Any] | None:
    return behaviour(model, X.shape[1:], X.dtype, threads)


def key(model: nn.Module, threads: int = 1) -> dict[str, Any]:
    """What a record knows a defence by, as it is written."""
    about = {"about": described(model), "behaviour": answers(model, threads)}
    return json.loads(json.dumps(about))


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether a record takes two for one defence."""
    return one["about"] == other["about"] and not unlike(one["behaviour"], other["behaviour"])


def alike(one: nn.Module, other: nn.Module) -> bool:
    return same(key(one), key(other))


def behind(purification: Any) -> nn.Module:
    return DefendedModel(smooth_classifier(torch.float32), ThirdParty(purification))


class Shifts(nn.Module):
    def __init__(self, by: Any) -> None:
        super().__init__()
        self.by = by

    def forward(self, x):
        return x + torch.as_tensor(getattr(self.by, "by", self.by), dtype=x.dtype)


class Hidden(nn.Module):
    def __init__(self, by: float) -> None:
        super().__init__()
        self._by = by

    def forward(self, x):
        return x + self._by


class Config:
    def __init__(self, by):
        self.by = by


def shift(x, by=0.0):
    return x + by


def bound(by):
    return lambda x: x + by


def by_default(by):
    def shifted(x, by=by):
        return x + by

    return shifted


def written(by):
    place = {}
    exec(f"def purify(x):\n    return [x + {by} for _ in (1,)][0]", place)
    return place["purify"]


def hooked(by):
    model = smooth_classifier(torch.float32)
    model[1].register_forward_hook(lambda module, x, y: y + by)
    return model


def hooked_backward(by):
    model = smooth_classifier(torch.float32)
    model[1].register_full_backward_hook(lambda module, given, found: (given[0] * by,))
    return model


def own_forward(by):
    model = smooth_classifier(torch.float32)
    inner = model[3].forward
    model[3].forward = lambda x: inner(x) + by
    return model


def of_loss(loss):
    denoiser = defences()["scoreopt"].purifier.denoiser
    purifier = ScoreOpt(denoiser, steps=2, lr=0.05, sigma=0.3, loss=loss, optimizer="sgd")
    return DefendedModel(smooth_classifier(torch.float32), purifier)


def lambda_loss(by):
    return of_loss(lambda denoised, x, **_: by * (denoised - x).square().sum((1, 2, 3)))


class Weighted:
    """A loss with a tensor, which JSON has no word for, in a private attribute."""

    def __init__(self, by):
        self._by = torch.tensor(by)

    def __call__(self, denoised, x, **_):
        return self._by * (denoised - x).square().sum((1, 2, 3))


@dataclass(frozen=True)
class Scaled(BPDA):
    """Backward through a multiple of the identity."""

    by: float = 1.0

    def differentiate(self, purification, x_a):
        purified, _ = super().differentiate(purification, x_a)
        return purified, lambda gradient: torch.as_tensor(self.by) * gradient


def of_gradient(by):
    denoiser = defences()["one-shot"].purifier.denoiser
    purifier = OneShot(denoiser, sigma=0.3, gradient=Scaled(by))
    return DefendedModel(smooth_classifier(torch.float32), purifier)


class Labelled(BentNet):
    def forward(self, x_t, sigma, classes=None):
        return super().forward(x_t, sigma)


def of_denoiser(**given):
    denoiser = PreconditionedDenoiser(Labelled().eval(), sigma_range=(0.02, 50.0), **given)
    return DefendedModel(smooth_classifier(torch.float32), OneShot(denoiser, sigma=0.3))


def quantized(by):
    model = smooth_classifier(torch.float32)
    with torch.no_grad():
        model[1].weight.mul_(1 + by)
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear})


def weighted(by):
    model = smooth_classifier(torch.float32)
    with torch.no_grad():
        model[1].weight[0, 0] += by / 1e5
    return model


NUMBERED = {
    "a module": lambda by: behind(Shifts(by)),
    "a module inside": lambda by: behind(nn.Sequential(nn.Identity(), Shifts(by))),
    "an object": lambda by: behind(Shifts(Config(by))),
    "an array": lambda by: behind(Shifts(np.full(8, by))),
    "a tensor": lambda by: behind(Shifts(torch.full((8,), by))),
    "a private attribute": lambda by: behind(Hidden(by)),
    "a partial": lambda by: behind(functools.partial(shift, by=by)),
    "a closure": lambda by: behind(bound(by)),
    "a default": lambda by: behind(by_default(by)),
    "a method": lambda by: behind(Shifts(by).forward),
    "a constant in code": lambda by: behind(written(by)),
    "a classifier's attribute": lambda by: nn.Sequential(
        Shifts(by), *smooth_classifier(torch.float32)
    ),
    "a weight, by 1e-6": weighted,
    "quantized weights": quantized,
    "a hook": hooked,
    "a backward hook": hooked_backward,
    "a forward of its own": own_forward,
    "a loss given as a lambda": lambda_loss,
    "a loss with a tensor": lambda by: of_loss(Weighted(by)),
    "a gradient mode": of_gradient,
    "a denoiser's number": lambda by: of_denoiser(sigma_data=0.4 + by),
    "a denoiser's kind": lambda by: of_denoiser(kind="ve" if by > 0.15 else "vp"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", NUMBERED)
def test_a_runs_key_knows_what_a_defence_computes_with(kind):
    one, again, other = (NUMBERED[kind](by) for by in (0.1, 0.1, 0.2))
    assert all(answers(model) for model in (one, other))
    assert alike(one, again)
    assert not alike(one, other)
    assert not alike(other, one)


def called(model):
    model(X.clone().requires_grad_())
    return model


SAME = {
    "a module that caches its features": lambda: (Caching().eval(), called(Caching().eval())),
    "one that draws from its own generators": lambda: (Net().eval(), called(Net().eval())),
    "one that global generators drive": lambda: (defences()["noisy"], called(defences()["noisy"])),
    "an unseeded purifier": lambda: (defences()["scoreopt"], called(defences()["scoreopt"])),
    "one that cannot be asked": lambda: (Ends(0), Ends(1)),
}


@pytest.mark.parametrize("kind", SAME)
def test_what_a_defence_keeps_or_draws_is_not_in_its_key(kind):
    assert alike(*SAME[kind]())


def test_what_a_compiler_or_another_number_of_threads_rounds_is_not_in_a_runs_key():
    model = traced()
    assert same(key(model), [key(called(model)) for _ in range(3)][-1])
    for model in defences().values():
        assert same(key(model), key(model, threads=2))


def test_a_float32_network_and_its_float64_answer_alike():
    """As another machine would, whose kernels add up in another order."""
    for model in (defences()["scoreopt"], smooth_classifier(torch.float32)):
        exact = behaviour(model.double(), X.shape[1:], torch.float64)
        assert exact["logits"]["of"]
        assert not unlike(exact, answers(model.float()))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", AWKWARD)
def test_no_module_is_too_awkward_to_have_a_key(kind):
    model = AWKWARD[kind]()
    found = key(model)
    assert found["behaviour"]["logits"]["of"]
    assert same(found, key(model))


TENSORS = {
    "sparse": lambda by: (by * torch.eye(3)).to_sparse(),
    "compressed": lambda by: (by * torch.eye(3)).to_sparse_csr(),
    "quantized": lambda by: torch.quantize_per_tensor(torch.eye(3), by, 0, torch.qint8),
    "by channel": lambda by: torch.quantize_per_channel(
        torch.eye(3), by * torch.ones(3), torch.zeros(3), 0, torch.qint8
    ),
    "conjugate": lambda by: (by * torch.ones(2, dtype=torch.complex64)).conj(),
    "bfloat16": lambda by: torch.full((2,), by, dtype=torch.bfloat16),
    "no numbers": lambda by: torch.full((0,), by),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", TENSORS)
def test_tensors_of_every_kind_have_a_digest(kind):
    one, again, other = (digest(TENSORS[kind](by)) for by in (0.25, 0.25, 0.5))
    assert one == again
    assert (one != other) is (kind != "no numbers")


def test_an_edited_attack_is_another_one():
    def edited(body):
        place = {"Toy": Toy, "__name__": "mine"}
        exec(f"class Mine(Toy):\n def run(self, model, x, y):\n  return {body}", place)
        return of_attack(place["Mine"]())

    assert edited("x + 0.01") == edited("x + 0.01") != edited("x + 0.02")


@pytest.mark.filterwarnings("ignore")
def test_a_runs_key_is_the_same_in_another_process():
    """Where objects have other addresses, and sets another order."""
    script = (
        "import json, torch, test_fingerprint as t; torch.set_num_threads(1); "
        "print(json.dumps({kind: t.key(t.NUMBERED[kind](0.1)) for kind in t.NUMBERED}))"
    )
    there = json.loads(
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", script], check=True, capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "1"},
        ).stdout
    )  # fmt: skip
    for kind, make in NUMBERED.items():
        assert same(key(make(0.1)), there[kind])
