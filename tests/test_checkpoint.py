"""torch.utils.checkpoint around a defence: its gradient under the same noise, or a refusal."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from purifiers_table import PURIFIERS, RANDOM
from tolerances import rounding
from torch.torch_version import TorchVersion
from torch.utils.checkpoint import checkpoint
from toys import bent, labels, smooth_classifier

from scoreopt_defense import EOT, DefendedModel, OneShot, ScoreOpt, ThirdParty

every_checkpoint = pytest.mark.parametrize("reentrant", [False, True])


def gradient(call, x, reentrant=None):
    """Of the images, by way of a checkpoint unless that is None."""
    leaf = x.clone().requires_grad_()
    y = call(leaf) if reentrant is None else checkpoint(call, leaf, use_reentrant=reentrant)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    (y * weights).sum().backward()
    return leaf.grad


def defended(name="ScoreOpt-N", **settings):
    return DefendedModel(smooth_classifier(), PURIFIERS[name](bent(), **settings))


@every_checkpoint
@pytest.mark.parametrize("settings", [{}, {"max_batch": 3}, {"gradient": "exact"}], ids=str)
@pytest.mark.parametrize("part", ["model", "purifier"])
def test_a_call_of_a_given_seed_has_the_gradient_that_it_has_without(part, settings, reentrant, x):
    model = defended(**settings)
    call = partial(model if part == "model" else model.purifier, seed=3)
    # the same operations on the same numbers: nothing is summed in another order
    assert torch.equal(gradient(call, x, reentrant), gradient(call, x))


@every_checkpoint
@pytest.mark.parametrize("name", PURIFIERS)
def test_so_has_a_deterministic_one_without_a_seed(name, reentrant, x):
    model = defended(name, deterministic=True, gradient="bpda")
    assert torch.equal(gradient(model, x, reentrant), gradient(model, x))


@every_checkpoint
@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("seed", [0, None])
def test_a_call_that_would_draw_again_is_refused(name, seed, reentrant, x):
    model = defended(name, seed=seed, gradient="bpda")
    for call in (model, EOT(model, 2), lambda x: model(x.sigmoid())):
        with pytest.raises(
            RuntimeError, match=r"a backward pass makes this call.*seed=0.*deterministic=True"
        ):
            gradient(call, x, reentrant)


@every_checkpoint
@pytest.mark.parametrize("mode", ["bpda", "one-shot", "exact", "smoothed"])
@pytest.mark.parametrize("name", RANDOM)
def test_a_purifier_alone_is_refused_or_its_gradient_is_that_of_its_draws(name, mode, reentrant, x):
    """One that keeps nothing of the checkpoint's is not carried out again."""
    if mode not in RANDOM[name](bent()).modes:
        pytest.skip(f"{name} has no such gradient")
    plain, checked = (RANDOM[name](bent(), seed=0, gradient=mode) for _ in range(2))
    refused = ""
    try:
        found = gradient(checked, x, reentrant)
    except RuntimeError as error:
        refused = str(error)
    assert "a backward pass makes this call" in refused or torch.equal(found, gradient(plain, x))


@pytest.mark.skipif(TorchVersion(torch.__version__) < "2.8", reason="cannot say who watches")
@every_checkpoint
def test_the_forward_pass_calls_the_network_no_more_often(reentrant, x):
    """Non-reentrant ones began anew at each gradient that a step takes itself."""
    purifier, calls = ScoreOpt(bent(), sigma=0.3, lr=0.02, steps=5), []
    model = DefendedModel(smooth_classifier(), purifier)
    model.purifier.denoiser.net.register_forward_hook(lambda *_: calls.append(0))
    checkpoint(partial(model, seed=3), x.requires_grad_(), use_reentrant=reentrant)
    assert len(calls) == 6


@every_checkpoint
def test_it_is_refused_where_a_classifier_is_trained_too(reentrant, x):
    """The images have no gradient, and would be others for the weights'."""
    model = defended(seed=0)
    start = torch.ones((), dtype=x.dtype, requires_grad=True)  # reentrant ones need one
    logits = checkpoint(lambda x, start: start * model(x), x, start, use_reentrant=reentrant)
    with pytest.raises(RuntimeError, match="a backward pass makes this call"):
        torch.nn.functional.cross_entropy(logits, labels()).backward()


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_purifier_inside_another_is_called_once(deterministic, x):
    def inner():
        return OneShot(bent(), sigma=0.3, seed=0, deterministic=deterministic, gradient="exact")

    # 2 (x + 1) / 2 - 1 twice: a rounding each of numbers up to 2, magnified by the network's slope
    atol = rounding(x.dtype, 32, 4)
    found = gradient(ThirdParty(inner(), gradient="exact"), x)
    torch.testing.assert_close(found, gradient(inner(), x), rtol=0, atol=atol)


def test_a_hook_may_look_at_what_the_defence_says_meanwhile(x):
    """Without gradients being recorded nothing is carried out again."""
    model, seen = defended(seed=0), []
    leaf = x.clone().requires_grad_()
    y = model(leaf)
    y.register_hook(lambda grad: seen.append(model(x)))
    y.sum().backward()
    assert len(seen) == 1
    assert not torch.equal(seen[0], y)
