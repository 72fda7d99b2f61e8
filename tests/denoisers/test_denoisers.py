"""The protocol and the EDM adapter."""

from __future__ import annotations

import math

import pytest
import torch
from tolerances import rounding
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from toys import MEAN, BentNet, gaussian, mid_images, shrinkage

from scoreopt_defense import pretrained
from scoreopt_defense.denoisers import (
    DeepinvDenoiser,
    EDMDenoiser,
    GaussianDenoiser,
    KDiffusionDenoiser,
    PreconditionedDenoiser,
)
from scoreopt_defense.pretrained.networks import TinyUNet

# A formula of a few operations in float64, of numbers in [0, 1] and without a cancellation.
TOLERANCE = rounding(torch.float64, 8)


class Shrinks(nn.Module):
    """D of zero-mean, unit-variance images, which counts what it is given."""

    def forward(self, x_t, sigma, class_labels=None):
        self.seen = (x_t.dtype, tuple(sigma.shape), class_labels)
        return x_t / (1 + sigma.reshape(-1, 1, 1, 1) ** 2)


@pytest.mark.parametrize("shape", ["number", "(1,)", "(B,)", "(B, 1, 1, 1)"])
def test_noise_levels_may_be_given_in_every_shape(shape):
    x_t = mid_images(3)
    levels = torch.tensor([0.5, 0.5, 0.5], dtype=torch.float64)
    sigma = {"number": 0.5, "(1,)": levels[:1], "(B,)": levels,
             "(B, 1, 1, 1)": levels.reshape(3, 1, 1, 1)}[shape]  # fmt: skip
    net = Shrinks()
    torch.testing.assert_close(EDMDenoiser(net)(x_t, sigma), x_t / 1.25, rtol=0, atol=TOLERANCE)
    assert net.seen[1] == (3,)


def test_one_noise_level_an_image_denoises_each_by_its_own():
    x_t, sigma = mid_images(3), torch.tensor([0.1, 0.5, 2.0], dtype=torch.float64)
    got = gaussian()(x_t, sigma)
    for i in range(3):
        want = MEAN + shrinkage(sigma[i]) * (x_t[i] - MEAN)
        torch.testing.assert_close(got[i], want, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("shape", [(), (3, 1, 1), (1, 3, 8, 8)])
def test_the_gaussian_may_differ_by_channel_and_pixel(shape):
    mean, std = torch.rand(shape, dtype=torch.float64), 0.1 + torch.rand(shape, dtype=torch.float64)
    x_t = mid_images(2)
    got = GaussianDenoiser(mean=mean, std=std)(x_t, 0.3)
    want = (std**2 * x_t + 0.09 * mean) / (std**2 + 0.09)  # precision-weighted mean
    torch.testing.assert_close(got, want.expand_as(x_t), rtol=0, atol=TOLERANCE)


def test_class_labels_reach_the_network_one_row_an_image():
    net = Shrinks()
    EDMDenoiser(net, class_labels=torch.tensor([[0, 1, 0]]))(mid_images(2), 0.5)
    assert net.seen[2].tolist() == [[0, 1, 0], [0, 1, 0]]


@pytest.mark.parametrize("weights", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("images", [torch.float32, torch.float64])
def test_the_network_gets_its_own_type_and_the_caller_gets_theirs_back(weights, images):
    net = Shrinks()
    net.weight = nn.Parameter(torch.ones(1, dtype=weights))
    denoised = EDMDenoiser(net)(mid_images(2, dtype=images), 0.5)
    assert net.seen[0] == weights
    assert denoised.dtype == images


class ScalesFirst(nn.Module):
    """Multiplies the image by its noise level and then has a layer, as k-diffusion's wrappers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1)

    def forward(self, x, level, *_):
        self.seen = (x.dtype, level)
        return self.layer(x * level.reshape(-1, 1, 1, 1))


# An adapter, and what it tells its network at sigma = 0.3.
LEVELS = {
    "edm": (EDMDenoiser, 0.3),
    "k-diffusion": (lambda net: KDiffusionDenoiser(net, sigma_range=(0.01, 80)), 0.3),
    "deepinv": (lambda net: DeepinvDenoiser(net, sigma_range=(0.01, 80)), 0.15),
    "preconditioned, edm": (PreconditionedDenoiser, math.log(0.3) / 4),
    "preconditioned, ve": (lambda net: PreconditionedDenoiser(net, kind="ve"), math.log(0.15)),
    "preconditioned, vp": (
        lambda net: PreconditionedDenoiser(net, kind="vp"),
        999 * (math.sqrt(0.1**2 + 2 * 19.9 * math.log(1.09)) - 0.1) / 19.9,
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", LEVELS)
def test_noise_levels_keep_float32_whatever_the_weights(name, dtype):
    """Rounded to bfloat16, 0.3 is 0.30078."""
    adapt, level = LEVELS[name]
    net = ScalesFirst().to(dtype)
    denoised = adapt(net)(mid_images(2, dtype=torch.float32), 0.3)
    assert net.seen[0] == dtype
    assert net.seen[1].dtype == torch.float32
    assert net.seen[1].tolist() == pytest.approx([level, level], rel=1e-5)
    assert denoised.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("wrap", [lambda net: net, EDMDenoiser], ids=["bare", "adapter"])
def test_the_preconditioning_of_the_tiny_unet_is_exact_in_half_precision(wrap, dtype):
    """A network whose last layer is zero leaves D = c_skip x_t."""
    net = TinyUNet(widths=(4, 6)).requires_grad_(False)
    nn.init.zeros_(net.head.bias)
    x_t = mid_images(2, dtype=torch.float32).to(dtype).float()
    sigma = torch.tensor([0.3, 0.7])
    c_skip = (0.25 / (sigma**2 + 0.25)).reshape(-1, 1, 1, 1)
    torch.testing.assert_close(wrap(net.to(dtype))(x_t, sigma), c_skip * x_t)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_tiny_unet_denoises_alike_in_half_precision(dtype):
    denoiser = pretrained.denoiser("mnist-tiny")
    x_t = 2 * torch.rand(2, 1, 28, 28) - 1
    expected = denoiser(x_t, 0.3)
    error = (denoiser.to(dtype)(x_t, 0.3) - expected).abs().max()
    # Two dozen layers, each rounded by eps / 2 and worst where all add up.
    assert error < 12 * torch.finfo(dtype).eps * (expected - x_t).abs().max()


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({}, (0.002, 80.0)),
        ({"sigma_min": 0.0, "sigma_max": float("inf")}, (0.002, 80.0)),
        ({"sigma_min": 0.02, "sigma_max": 50.0}, (0.02, 50.0)),
    ],
)
def test_the_edm_range_is_the_networks_own_within_edms(attributes, expected):
    net = Shrinks()
    for name, value in attributes.items():
        setattr(net, name, value)
    assert EDMDenoiser(net).sigma_range == expected
    assert EDMDenoiser(net, sigma_range=(0.1, 1.0)).sigma_range == (0.1, 1.0)


def test_channels_are_the_networks_own_unless_given():
    assert EDMDenoiser(BentNet()).channels == 3
    assert EDMDenoiser(Shrinks()).channels is None
    assert EDMDenoiser(Shrinks(), channels=1).channels == 1


@pytest.mark.parametrize(
    ("x_t", "sigma", "message"),
    [
        (torch.zeros(2, 3, 8), 0.5, r"x_t must have shape \(B, 3, H, W\), got \(2, 3, 8\)"),
        (torch.zeros(2, 1, 8, 8), 0.5, r"x_t must have shape \(B, 3, H, W\)"),
        (torch.zeros(2, 3, 8, 8), torch.ones(3), "sigma must be one value or 2, got 3"),
        (torch.zeros(2, 3, 8, 8), 3.0, r"sigma must be within \[0.01, 2\].*from 3 to 3"),
        (
            torch.zeros(2, 3, 8, 8),
            torch.tensor([0.5, 0.001]),
            r"sigma must be within.*0.001 to 0.5",
        ),
        (torch.zeros(2, 3, 8, 8), float("nan"), r"sigma must be within.*nan"),
    ],
)
def test_bad_calls_name_what_is_wrong(bent_denoiser, x_t, sigma, message):
    with pytest.raises(ValueError, match=message):
        bent_denoiser(x_t, sigma)


@pytest.mark.parametrize("levels", ["number", "one", "one an image"])
def test_a_call_on_an_accelerator_reads_nothing_back(levels):
    """A fake tensor has no values: whatever asks the device for one raises."""
    with FakeTensorMode():
        denoiser = EDMDenoiser(Shrinks(), sigma_range=(0.01, 2.0))
        x_t = torch.zeros(2, 3, 8, 8, device="cuda")
        sigma = {
            "number": 0.5,
            "one": torch.full((1,), 0.5, device="cuda"),
            "one an image": torch.full((2, 1, 1, 1), 0.5, device="cuda"),
        }[levels]
        with pytest.raises(DataDependentOutputException):
            torch.full((1,), 0.5, device="cuda").item()
        denoised = denoiser(x_t, sigma)
    assert (denoised.device, denoised.shape) == (x_t.device, x_t.shape)


def test_numbers_are_checked_wherever_the_images_are():
    denoiser = EDMDenoiser(Shrinks(), sigma_range=(0.01, 2.0))
    with pytest.raises(ValueError, match=r"sigma must be within \[0.01, 2\].*from 3 to 3"):
        denoiser(torch.zeros(2, 3, 8, 8, device="meta"), 3.0)


def test_train_and_eval_do_not_reach_the_network():
    net = BentNet().eval()
    EDMDenoiser(net).train()
    assert not net.training
    net.train()
    EDMDenoiser(net).eval()
    assert net.training


def test_bad_construction_names_the_argument():
    with pytest.raises(
        ValueError, match=r"sigma_range must satisfy 0 <= low < high, got \(2.0, 1.0\)"
    ):
        EDMDenoiser(BentNet(), sigma_range=(2.0, 1.0))
    with pytest.raises(ValueError, match="std must be above 0, got 0"):
        GaussianDenoiser(std=0)
