"""Convolutions by fixed weights, and steps that are recorded instead of carried out again."""

from __future__ import annotations

import itertools
import random
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from exact_gradients import assert_same_gradient, gradient_of, naive, purifier_of
from tolerances import rounding
from torch import Tensor, nn
from toys import BentNet, mid_images

from scoreopt_defense import OneShot, ScoreOpt
from scoreopt_defense.denoisers import EDMDenoiser
from scoreopt_defense.gradients import Exact, Smoothed
from scoreopt_defense.noise import seeded
from scoreopt_defense.purifiers import Purifier
from scoreopt_defense.steps.convolutions import FixedWeights, _Convolution

CONVOLUTIONS: dict[str, Any] = {
    "1d": (F.conv1d, (3, 4, 3), {"padding": 1}),
    "2d": (F.conv2d, (4, 6, 3, 3), {"stride": 2, "padding": (1, 2), "groups": 1}),
    "2d, grouped, without bias": (F.conv2d, (4, 3, 3, 3), {"groups": 2, "bias": None}),
    "2d, dilated": (F.conv2d, (4, 6, 3, 3), {"dilation": 2, "padding": [2]}),
    "2d, padding by name": (F.conv2d, (4, 6, 3, 3), {"padding": "same"}),
    "3d": (F.conv3d, (2, 2, 3, 3, 1), {"padding": (1, 1, 0)}),
    "transposed 1d": (F.conv_transpose1d, (3, 4, 2), {"stride": 2}),
    "transposed 2d": (
        F.conv_transpose2d,
        (6, 2, 3, 3),
        {"stride": 2, "output_padding": 1, "groups": 2, "padding": 1},
    ),
    "transposed 3d": (F.conv_transpose3d, (2, 3, 2, 2, 2), {}),
}
BY_NAME = "2d, padding by name"  # left to torch


def operands(name: str) -> tuple[Tensor, dict[str, Any]]:
    convolution, shape, how = CONVOLUTIONS[name]
    channels = shape[0] if "transpose" in convolution.__name__ else shape[1]
    draw = torch.Generator().manual_seed(0)
    rest = [6, 7, 5][: len(shape) - 2]
    x = torch.rand(2, channels * how.get("groups", 1) if "transpose" not in convolution.__name__
                   else channels, *rest, generator=draw, dtype=torch.float64)  # fmt: skip
    weight = torch.rand(shape, generator=draw, dtype=torch.float64)
    out = shape[1] * how.get("groups", 1) if "transpose" in convolution.__name__ else shape[0]
    return x, {"weight": weight, "bias": torch.rand(out, dtype=torch.float64)} | how


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_fixed_weights_change_neither_value_nor_first_nor_second_derivative(name: str) -> None:
    x, arguments = operands(name)
    found = []
    for context in (nullcontext, FixedWeights):
        with context():
            leaf = x.clone().requires_grad_()
            y = CONVOLUTIONS[name][0](leaf, **arguments)
            (first,) = torch.autograd.grad(y.tanh().sum(), leaf, create_graph=True)
            (second,) = torch.autograd.grad(first.square().sum(), leaf)
            is_ours = type(y.grad_fn) is _Convolution._backward_cls
        assert is_ours is (context is FixedWeights and name != BY_NAME)
        found.append([value.detach() for value in (y, first, second)])
    for value, expected in zip(*found, strict=True):
        tolerance = rounding(
            torch.float64, 3 * 60, expected.abs().max()
        )  # sums of up to 54, thrice
        torch.testing.assert_close(value, expected, rtol=0, atol=tolerance)


def test_fixed_weights_follow_autocast_as_torch_does() -> None:
    conv, x = nn.Conv2d(3, 4, 3), torch.rand(2, 3, 6, 6)
    for dtype, expected in ((torch.float32, torch.bfloat16), (torch.float64, torch.float64)):
        with torch.autocast("cpu", torch.bfloat16):
            images = x.to(dtype).requires_grad_()
            usual = conv.to(dtype)(images)
            with FixedWeights():
                ours = conv(images)
        assert ours.dtype == usual.dtype == expected
        assert torch.equal(ours, usual)
        assert torch.autograd.grad(ours.float().sum(), images)[0].dtype == dtype


def test_an_image_without_a_batch_is_left_to_torch() -> None:
    conv, x = nn.Conv2d(3, 4, 3), torch.rand(3, 6, 6)
    with FixedWeights():
        assert torch.equal(conv(x), nn.Conv2d.forward(conv, x))


class _Counted(nn.Module):
    """A network that counts its calls, and has what autograd must record."""

    img_channels = 3

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.conv = nn.Conv2d(3, 3, 3, padding=1, dtype=torch.float64)

    def forward(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        self.calls += 1
        return 0.5 * x_t + 0.3 * torch.tanh(2 * self.conv(x_t))


@pytest.mark.parametrize("mode", [Exact, Smoothed])
@pytest.mark.parametrize("variant", ["O", "N"])
def test_kept_steps_are_not_carried_out_again(mode: type, variant: str) -> None:
    steps, x = 4, mid_images()
    network_calls = steps + (variant == "N")  # and one for the closing denoising
    some = {Exact: 0.09, Smoothed: 0.04}[mode]  # the latter never keeps updates
    budgets = 0, 1e-6, some, 1e3  # megabytes: none, one step, some, all
    calls, gradients = [], []
    for budget in budgets:
        net = _Counted()
        denoiser = EDMDenoiser(net, sigma_range=(0.01, 2.0))
        purifier = ScoreOpt(
            denoiser, variant=variant, steps=steps, lr=0.02, gradient=mode(keep_mb=budget)
        )
        leaf = x.clone().requires_grad_()
        purified = purifier(leaf, seed=1)
        assert torch.equal(purified, purifier.with_gradient("bpda")(leaf, seed=1))
        net.calls = 0
        gradients.append(gradient_of(purified, leaf))
        calls.append(net.calls)
    assert calls[0] == network_calls
    assert calls[1] == network_calls - 1
    assert 0 < calls[2] < calls[1]
    assert calls[3] == 0
    for gradient in gradients[1:]:
        assert_same_gradient(gradient, gradients[0])


class _Watched(_Counted):
    """A network that says of which of its calls the graph is still there."""

    def __init__(self) -> None:
        super().__init__()
        self.graphs: list[weakref.ref[Any]] = []

    def forward(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        out = super().forward(x_t, sigma)
        if out.grad_fn is not None:
            mark = _Mark()
            out.grad_fn.metadata["mark"] = mark  # dies with the node
            self.graphs.append(weakref.ref(mark))
        return out

    @property
    def alive(self) -> int:
        return sum(graph() is not None for graph in self.graphs)


class _Mark:
    pass


@pytest.mark.parametrize(("keep_mb", "steps_kept"), [(0, 0), (1e3, 3)])
@pytest.mark.parametrize("mode", [Exact, Smoothed])
@pytest.mark.parametrize("variant", ["O", "N"])
def test_what_is_kept_is_given_back(
    mode: type, variant: str, keep_mb: float, steps_kept: int
) -> None:
    """By the graph's own end: a cycle through autograd is none that Python could collect."""
    net = _Watched()
    denoiser = EDMDenoiser(net, sigma_range=(0.01, 2.0))
    purifier = ScoreOpt(denoiser, variant=variant, steps=3, gradient=mode(keep_mb=keep_mb))
    leaf = mid_images().requires_grad_()
    purified = purifier(leaf, seed=1)
    assert net.alive >= steps_kept
    gradient_of(purified, leaf)
    del purified
    assert net.alive == 0


@pytest.mark.parametrize("mode", [Exact, Smoothed])
def test_keep_mb_must_be_a_number_from_0(mode: type) -> None:
    for wrong, kind in itertools.product((-1, "10", float("nan"), True), (mode,)):
        with pytest.raises(ValueError, match="keep_mb must be a finite number at least 0"):
            kind(keep_mb=wrong)


def test_what_is_kept_must_be_differentiable_twice_too() -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.square()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return 2 * ctx.saved_tensors[0] * grad

    class Net(nn.Module):
        def forward(self, x_t: Tensor, sigma: Tensor) -> Tensor:
            return Once.apply(x_t)

    denoiser = EDMDenoiser(Net(), sigma_range=(0.01, 2.0))
    purifier = purifier_of({"variant": "O", "sigma": 0.3}, steps=2)
    purifier = ScoreOpt(denoiser, **purifier.settings.replace(gradient=Exact(keep_mb=10)).__dict__)
    with pytest.raises(RuntimeError, match="second derivative"):
        purifier(mid_images().requires_grad_(), seed=1)


class Drawing(BentNet):
    """A network that draws in each call, as one with dropout at work."""

    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__()
        self.draw = draw

    def forward(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        return super().forward(x_t, sigma) * (0.5 + self.draw())


DRAWS: dict[str, Callable[[], float]] = {
    "torch": lambda: torch.rand(()).item(),
    "numpy": lambda: float(np.random.rand()),  # noqa: NPY002
    "python": random.random,
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS.keys())
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (ScoreOpt, {"gradient": "exact", "steps": 3, "lr": 0.02}),
        (OneShot, {"gradient": "exact"}),
        (OneShot, {"gradient": "one-shot"}),
    ],
    ids=["ScoreOpt, exact", "one-shot denoising, exact", "one-shot denoising, one-shot"],
)
def test_what_a_network_draws_is_drawn_again(
    kind: type[Purifier], settings: dict[str, Any], draw: Callable[[], float]
) -> None:
    """The gradient was that of another draw than the answer."""
    denoiser = EDMDenoiser(Drawing(draw).double().eval(), sigma_range=(0.01, 2.0))
    purifier, x = kind(denoiser, sigma=0.3, **settings), mid_images().requires_grad_()
    with seeded(7):
        found = gradient_of(purifier(x, seed=1), x)
        after = draw()
    with seeded(7):
        expected = gradient_of(naive(purifier, x, seed=1), x)
        assert draw() == after  # the backward pass put the generators back
    assert_same_gradient(found, expected)
