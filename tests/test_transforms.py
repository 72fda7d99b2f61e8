"""torch's transforms: those of functions, and those that record a module as a graph."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tolerances import rounding
from torch.autograd import forward_ad
from toys import bent, labels, mid_images, smooth_classifier

from scoreopt_defense import EOT, DefendedModel, ScoreOpt, pretrained
from scoreopt_defense.gradients import GRADIENTS

every_mode = pytest.mark.parametrize("mode", [mode for mode in GRADIENTS if mode != "none"])


def defended(mode="one-shot", **settings):
    purifier = ScoreOpt(bent(), steps=2, sigma=0.3, gradient=mode, seed=0, **settings)
    return DefendedModel(smooth_classifier(), purifier)


# ---- shipped networks

NETWORKS = {
    "mnist classifier": (pretrained.classifier, "mnist-tiny", (1, 28, 28)),
    "cifar10 classifier": (pretrained.classifier, "cifar10-tiny", (3, 32, 32)),
    "mnist denoiser": (pretrained.denoiser, "mnist-tiny", (1, 28, 28)),
    "cifar10 denoiser": (pretrained.denoiser, "cifar10-tiny", (3, 32, 32)),
}


@pytest.mark.parametrize(("load", "name", "shape"), NETWORKS.values(), ids=NETWORKS.keys())
def test_shipped_networks_take_functional_transforms(load, name, shape):
    net = load(name).double()
    arguments = () if load is pretrained.classifier else (0.5,)
    x = torch.rand(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def total(x):
        return net(x, *arguments).square().flatten(1).mean()

    def gradient(function, x):
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(function(leaf), leaf)[0]

    # sums over all pixels and through up to 20 layers, in another order; float32 is 1e8 coarser
    close = {"rtol": 0, "atol": rounding(torch.float64, 4096, gradient(total, x).abs().max() + 1)}
    torch.testing.assert_close(torch.func.grad(total)(x), gradient(total, x), **close)
    each = torch.func.vmap(torch.func.grad(total))(x[:, None])
    torch.testing.assert_close(each[1], gradient(total, x[1:]), **close)
    rows = torch.func.jacrev(lambda x: net(x, *arguments).flatten()[:3])(x[:1])
    second = gradient(lambda x: net(x, *arguments).flatten()[1], x[:1])
    torch.testing.assert_close(rows[1], second, **close)


@pytest.mark.parametrize("name", ["mnist-tiny", "cifar10-tiny"])
def test_a_shipped_classifiers_gradient_is_contiguous(name):
    """Libraries flatten it by ``view``; the networks themselves are channels-last."""
    channels, size = (1, 28) if name == "mnist-tiny" else (3, 32)
    for layout in (torch.contiguous_format, torch.channels_last):
        x = mid_images(2, channels=channels, size=size, dtype=torch.float32)
        x = x.to(memory_format=layout).requires_grad_()
        (gradient,) = torch.autograd.grad(pretrained.classifier(name)(x).sum(), x)
        assert gradient.is_contiguous()


# ---- a second derivative, which there is none of


def again(model, x, **arguments):
    (gradient,) = torch.autograd.grad(model(x, seed=1).sum(), x, create_graph=True)
    return torch.autograd.grad(gradient.sum(), x, **arguments)


TWICE = {
    "grad": lambda model, x: again(model, x),
    "allow_unused": lambda model, x: again(model, x, allow_unused=True),
    "hessian": lambda model, x: torch.autograd.functional.hessian(lambda x: model(x).sum(), x),
    "of the weights": lambda model, x: (
        torch.autograd.grad(model(x).square().sum(), x, create_graph=True)[0].sum().backward()
    ),
}


@every_mode
@pytest.mark.parametrize("twice", TWICE.values(), ids=TWICE.keys())
def test_a_second_derivative_is_refused_and_never_nothing(mode, twice):
    with pytest.raises(RuntimeError, match=r"differentiated again.*Leave out create_graph=True"):
        twice(defended(mode), mid_images(2).requires_grad_())


@every_mode
def test_the_first_is_the_same_whether_or_not_a_second_could_be_asked_for(mode):
    x, model = mid_images().requires_grad_(), defended(mode, max_batch=3)
    found = [
        torch.autograd.grad(F.cross_entropy(model(x, seed=1), labels()), x, create_graph=create)[0]
        for create in (False, True)
    ]
    assert torch.equal(*found)
    assert [gradient.requires_grad for gradient in found] == [False, True]


@every_mode
def test_gradients_of_several_outputs_at_once(mode):
    model, x = defended(mode), mid_images(2).requires_grad_()
    logits = model(x, seed=1)
    directions = torch.eye(4, dtype=x.dtype)[:, None].expand(4, 2, 4)
    at_once = torch.autograd.grad(logits, x, directions, is_grads_batched=True, retain_graph=True)
    for k in range(4):
        (one,) = torch.autograd.grad(logits[:, k].sum(), x, retain_graph=True)
        tolerance = rounding(x.dtype, 256, one.abs().max() + 1)
        torch.testing.assert_close(at_once[0][k], one, rtol=0, atol=tolerance)


# ---- transforms that would pass a gradient mode or the noise by


def dual(model, x):
    with forward_ad.dual_level():
        return model(forward_ad.make_dual(x, x))


TRANSFORMS = {
    "grad": lambda model, x: torch.func.grad(lambda x: model(x).sum())(x),
    "jacrev": lambda model, x: torch.func.jacrev(model)(x),
    "jacfwd": lambda model, x: torch.func.jacfwd(model)(x),
    "vmap": lambda model, x: torch.func.vmap(lambda x: model(x[None]))(x),
    "of weights": lambda model, x: torch.func.grad(
        lambda weights: torch.func.functional_call(model, weights, (x,)).sum()
    )(dict(model.named_parameters())),
    "forward mode": dual,
}
GRAPHS = {
    "fx": lambda model, x: torch.fx.symbolic_trace(model),
    "jit": lambda model, x: torch.jit.trace(model, x),
}
MODULES = {
    "purifier": lambda: defended().purifier,
    "model": defended,
    "EOT": lambda: EOT(defended(), 2),
}
every_module = pytest.mark.parametrize("make", MODULES.values(), ids=MODULES.keys())


@every_module
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS.keys())
def test_a_functional_transform_says_what_to_do(make, transform):
    with pytest.raises(RuntimeError, match=r"no transform of torch\.func .*torch\.autograd\.grad"):
        transform(make(), mid_images(2))


@every_module
@pytest.mark.parametrize("record", GRAPHS.values(), ids=GRAPHS.keys())
@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_a_tracer_is_told_what_to_trace(make, record):
    with pytest.raises(RuntimeError, match=r"cannot be traced: .* Trace the classifier"):
        record(make(), mid_images(2))


@pytest.mark.skipif(torch.__version__ < "2.8", reason="a break of the graph takes no message")
def test_a_graph_without_a_break_says_why_there_is_none():
    whole = torch.compile(defended(), fullgraph=True, backend="eager")
    with pytest.raises(Exception, match=r"a purifier is left out .*Leave out fullgraph=True"):
        whole(mid_images(2))
