"""A classifier that nobody here trained, for Table 11: its file is named by the variable RESNET."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from torch import nn

sys.path.append(str(Path(__file__).parents[2] / "examples"))
from cifar10_third_party import load_resnet


def resnet() -> nn.Module:
    """The ResNet of akamaster/pytorch_resnet_cifar10 in the file that RESNET names."""
    if "RESNET" not in os.environ:
        raise ValueError("set RESNET to the file of an akamaster/pytorch_resnet_cifar10 network")
    return load_resnet(Path(os.environ["RESNET"]))
