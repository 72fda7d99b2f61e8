"""That a GPU's work stays on the GPU: on the meta device, whose tensors cannot be read."""

from __future__ import annotations

import pytest
import torch
from devices import Devices
from purifiers_table import PURIFIERS, WITHOUT_NOISE
from toys import bent, smooth_classifier

from scoreopt_defense import EOT, DefendedModel, ScoreOpt, pretrained
from scoreopt_defense.noise import Noise
from scoreopt_defense.purifiers import base


def test_noise_is_made_on_the_images_device_alone():
    with Devices() as devices:
        like = torch.empty(4, 3, 8, 8, device="meta")
        noise = Noise.of_batch(2**40, 2, 2, device="meta")[:4]
        noise.level((0.2, 0.4), 1, like), noise.eps_1(0, like), noise.eps_2(0, 1, like)
    assert devices.count > 100
    assert devices.seen == {"meta"}


def gradient(model, x):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "check_images", lambda x, channels: (0.0, 1.0))  # it reads the range
        with Devices() as devices:
            leaf = x.clone().requires_grad_()
            (found,) = torch.autograd.grad(EOT(model, samples=2)(leaf).sum(), leaf)
    assert found.shape == x.shape
    return devices


@pytest.mark.parametrize("mode", ["bpda", "one-shot", "exact", "smoothed"])
@pytest.mark.parametrize("name", [name for name in PURIFIERS if name not in WITHOUT_NOISE])
def test_no_operation_of_a_defended_model_crosses_devices(name, mode):
    """Those without noise work in NumPy, which no tensor of another device reaches unread."""
    purifier = PURIFIERS[name](bent())
    if mode not in purifier.modes:
        pytest.skip(f"{name} has no such gradient")
    model = DefendedModel(smooth_classifier(), purifier.with_gradient(mode)).to("meta")
    devices = gradient(model, torch.empty(2, 3, 8, 8, dtype=torch.float64, device="meta"))
    assert devices.count > 100
    assert devices.seen == {"meta"}


@pytest.mark.parametrize("mode", ["one-shot", "smoothed"])
@pytest.mark.parametrize("name", ["mnist-tiny", "cifar10-tiny"])
def test_nor_does_one_of_the_networks_that_ship(name, mode):
    denoiser = pretrained.denoiser(name)
    purifier = ScoreOpt.from_preset(f"{name}/N", denoiser, steps=1, gradient=mode)
    model = DefendedModel(pretrained.classifier(name), purifier).to("meta")
    side = {"mnist-tiny": 28, "cifar10-tiny": 32}[name]
    devices = gradient(model, torch.empty(1, denoiser.channels, side, side, device="meta"))
    assert devices.seen == {"meta"}
