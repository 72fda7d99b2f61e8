"""Twins run their own code, whatever a tool hung on their parent; frozen is what we set."""

from __future__ import annotations

import copy
import functools
import types

import pytest
import torch
from torch import nn
from toys import bent, gaussian, mid_images, smooth_classifier

from scoreopt_defense import EOT, DefendedModel, OneShot, ScoreOpt, ThirdParty
from scoreopt_defense.denoisers import DDPMDenoiser
from scoreopt_defense.gradients import BPDA


def defended(**settings):
    return DefendedModel(smooth_classifier(), ScoreOpt(bent(), steps=2, sigma=0.3, **settings))


def hooked(module, *, called):
    """What accelerate's ``add_hook_to_module`` does."""
    module._old_forward = module.forward
    module._hf_hook = object()

    def new_forward(module, *args, **kwargs):
        called.append(module)
        return module._old_forward(*args, **kwargs)

    module.forward = functools.update_wrapper(
        functools.partial(new_forward, module), module._old_forward
    )
    return module


def unhooked(module):
    """What its ``remove_hook_from_module`` does."""
    del module._hf_hook
    module.forward = module._old_forward
    del module._old_forward
    return module


def prepared(module, *, called):
    """What its ``Accelerator(mixed_precision="bf16").prepare_model`` does."""
    module._original_forward = module.forward
    function = module.forward.__func__

    def under_autocast(self, *args, **kwargs):
        called.append(self)
        with torch.autocast("cpu", torch.bfloat16):
            return function(self, *args, **kwargs)

    module.forward = types.MethodType(under_autocast, module)
    module.forward = types.MethodType(module.forward.__func__, module)
    return module


TOOLS = pytest.mark.parametrize("tool", [hooked, prepared])


@TOOLS
def test_a_twin_runs_its_own_forward(tool):
    x, called = mid_images(), []
    model, plain = tool(defended(), called=called), defended()
    model(x)
    assert called == [model]
    twin = model.replace(seed=3, gradient="bpda", steps=1)
    assert torch.equal(twin(x), plain.replace(seed=3, gradient="bpda", steps=1)(x))
    leaf = x.clone().requires_grad_()
    (through,) = torch.autograd.grad(twin(leaf, seed=1).sum(), leaf)
    purified = twin.purifier(x, seed=1).requires_grad_()
    (known,) = torch.autograd.grad(twin.classifier(purified).sum(), purified)
    assert torch.equal(through, known)
    assert called == [model]
    for other in (model.surrogate(), model.with_gradient("exact"), model.purifier.replace()):
        assert (
            not {"forward", "_old_forward", "_hf_hook", "_original_forward"} & other.__dict__.keys()
        )


@TOOLS
def test_so_do_a_purifiers_twins_and_a_denoisers(tool):
    x, called = mid_images(), []
    purifier = tool(OneShot(bent(), sigma=0.3), called=called)
    assert torch.equal(
        purifier.replace(sigma=0.4)(x, seed=1), OneShot(bent(), sigma=0.4)(x, seed=1)
    )
    denoiser = DDPMDenoiser(
        lambda z, t, label=0: label * z, torch.linspace(0.9, 0.1, 9), class_label=torch.tensor(1)
    )
    twin = tool(denoiser, called=called).with_class_label(torch.tensor(3))
    assert not called
    sigma = torch.full((1, 1, 1, 1), 0.5)
    assert torch.equal(twin(x[:1], 0.5), twin.denoise(x[:1], sigma.double()))


def test_hooks_come_and_go_on_what_is_frozen():
    model, x, called = defended(), mid_images(), []
    before = model(x, seed=1)
    for _ in range(2):
        hooked(model, called=called)
        hooked(model.purifier, called=called)
        assert torch.equal(model(x, seed=1), before)
        unhooked(model)
        unhooked(model.purifier)
    assert len(called) == 4
    prepared(prepared(defended(), called=called), called=called)


@pytest.mark.parametrize("make", [defended, lambda: EOT(defended(), 2), lambda: OneShot(bent())])
def test_what_construction_did_not_set_may_be_set_again(make):
    module = make()
    module.n_classes = 10
    module.n_classes = 10
    module.register_buffer("shift", torch.zeros(1))
    module.shift = torch.ones(1)
    module.extra = nn.Linear(1, 1)
    module.extra = nn.Linear(2, 2)
    with pytest.raises(AttributeError, match="cannot be changed"):
        setattr(module, next(iter(module._modules)), nn.Linear(1, 1))


@pytest.mark.parametrize(
    "change",
    [
        lambda model: delattr(model, "votes"),
        lambda model: delattr(model, "purifier"),
        lambda model: model.register_module("purifier", nn.Identity()),
        lambda model: model.add_module("classifier", nn.Identity()),
    ],
)
def test_what_construction_set_is_neither_deleted_nor_registered_anew(change):
    model = defended()
    with pytest.raises(AttributeError, match="of a DefendedModel cannot be changed"):
        change(model)


def test_twins_and_copies_keep_what_their_owner_added_and_stay_frozen():
    model = defended()
    model.n_classes = 10
    for other in (model.replace(), copy.deepcopy(model), model.with_gradient("bpda")):
        assert other.n_classes == 10
        other.n_classes = 4
        for name in ("classifier", "votes", "purifier", "steps"):
            with pytest.raises(AttributeError, match=f"{name} of a DefendedModel cannot be"):
                setattr(other, name, None)
    assert model.n_classes == 10


class Own(OneShot):
    """A user's, with attributes of its own, public and private."""

    def __init__(self, denoiser, **values):
        super().__init__(denoiser, **values)
        self.table = [1, 2]
        self._private = "kept"


def test_a_users_own_purifiers_attributes_are_its_twins():
    twin = Own(gaussian(), sigma=0.3).replace(sigma=0.2)
    assert (twin.table, twin._private) == ([1, 2], "kept")
    with pytest.raises(AttributeError, match="table of a Own cannot be changed"):
        twin.table = []
    other = ThirdParty(lambda x: x).replace(gradient=BPDA())
    with pytest.raises(AttributeError, match="purification of a ThirdParty cannot be changed"):
        other.purification = None


HOOKS = {
    "forward": lambda module, hook: module.register_forward_hook(hook),
    "forward, keywords": lambda module, hook: module.register_forward_hook(hook, with_kwargs=True),
    "pre-forward": lambda module, hook: module.register_forward_pre_hook(hook),
    "backward": lambda module, hook: module.register_full_backward_hook(hook),
    "pre-backward": lambda module, hook: module.register_full_backward_pre_hook(hook),
}


@pytest.mark.parametrize("register", HOOKS.values(), ids=HOOKS.keys())
def test_a_hook_is_the_modules_that_it_was_registered_on(register):
    model, told = defended(), []
    for module in (model, model.purifier):
        register(module, lambda module, *_: told.append(module))
    x = mid_images().requires_grad_()
    for twin in (model.replace(), model.with_gradient("bpda"), model.surrogate()):
        twin(x).sum().backward()
    assert not told
    model(x).sum().backward()
    assert {*told} == {model, model.purifier}


def test_those_of_its_networks_are_called_whichever_twin_runs():
    model, told = defended(), []
    model.classifier.register_forward_hook(lambda *_: told.append("classifier"))
    model.with_gradient("bpda")(mid_images())
    assert told == ["classifier"]


def test_a_watch_is_told_of_every_twins_calls():
    model, x, told = defended(seed=1), mid_images(), []
    watched = model.watched(lambda x, logits: told.append((x, logits)))
    found = [
        watched(x), EOT(watched.with_gradient("bpda"), 2)(x), watched.surrogate()(x=x),
        copy.copy(watched).replace(votes=2)(x),
    ]  # fmt: skip
    assert all(torch.equal(given, x) for given, _ in told)
    assert all(map(torch.equal, found, [logits for _, logits in told]))
    model(x)
    assert len(told) == 4


def test_a_warning_names_the_users_line():
    with pytest.warns(UserWarning, match="training mode") as caught:
        DefendedModel(nn.Flatten().train(), OneShot(gaussian()))
    assert [warning.filename for warning in caught] == [__file__]


def test_weights_may_be_exchanged_for_a_call_as_anywhere():
    model, x = defended(), mid_images()
    before = model(x, seed=1)
    weights = {name: torch.zeros_like(part) for name, part in model.classifier.named_parameters()}
    named = {f"classifier.{name}": part for name, part in weights.items()}
    assert not torch.func.functional_call(model, named, (x,), {"seed": 1}).any()
    assert torch.equal(model(x, seed=1), before)
