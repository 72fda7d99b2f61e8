"""Normalisation put inside, and what is said of a published network that has none."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from toys import smooth_classifier

from scoreopt_defense import BitDepth, DefendedModel, Fitted, normalized
from scoreopt_defense.evaluation import evaluate
from scoreopt_defense.normalization import wanted


def test_a_scale_that_is_not_of_unit_images_is_refused():
    for mean, std in ((123.7, 58.4), ((0.5, -0.1, 0.5), 0.25), (0.5, 0.0)):
        with pytest.raises(ValueError, match="mean must be within 0 and 1 and std above 0"):
            normalized(nn.Flatten(), mean, std)


def published(**config: object) -> nn.Module:
    """A network that says of itself what timm's do."""
    net = smooth_classifier(torch.float32)
    kind = type("Net", (type(net),), {"__module__": "timm.models.resnet"})
    net.__class__ = kind
    net.pretrained_cfg = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "num_classes": 4}
    net.pretrained_cfg |= config
    return net


@pytest.mark.parametrize(
    ("model", "warned"),
    [
        (published(), True),
        (DefendedModel(published(), BitDepth()), True),
        (DefendedModel(Fitted(published(), crop=8), BitDepth()), True),
        (normalized(published(), 0.5, 0.25), False),
        (published(num_classes=7), False),
        (published(mean=(0, 0, 0), std=(1, 1, 1)), False),
        (smooth_classifier(torch.float32), False),
    ],
)
def test_a_published_network_given_images_as_they_are(model, warned):
    assert (wanted(model, 4) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))) == warned


def test_it_is_warned_of_once_with_what_mends_it():
    x, y = torch.rand(2, 3, 8, 8), torch.zeros(2).long()
    with pytest.warns(UserWarning, match=r"normalized\(net, \(0.1, 0.2, 0.3\), \(0.4,") as caught:
        evaluate(published(), (x, y), {}, checks=False)
    assert sum("normalized(net" in str(one.message) for one in caught) == 1


@pytest.mark.parametrize(
    ("name", "classes", "warned"), [("resnet18", 1000, True), ("resnet18", 10, False)]
)
def test_torchvision_says_nothing_of_its_weights_and_they_are_imagenets(name, classes, warned):
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        net = models.get_model(name, num_classes=classes)
    assert (wanted(net, classes) is not None) == warned
