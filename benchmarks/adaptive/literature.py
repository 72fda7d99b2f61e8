"""Defences of the literature for configurations to name; of two, scripts write the files:

python examples/train_pixelcnn.py TRAIN --out runs/cifar-pixelcnn
python examples/train_disco.py TRAIN --out runs/cifar-disco --classifier cifar10-tiny
"""

from __future__ import annotations

import sys
from pathlib import Path

from scoreopt_defense import DiffusionClassifier, ThirdParty, pretrained

sys.path.append(str(Path(__file__).parents[2] / "examples"))
import train_disco
import train_pixelcnn


def pixel_defend() -> ThirdParty:
    """PixelDefend within 16/255, as its authors have it against attacks of 8/255."""
    return train_pixelcnn.pixel_defend("runs/cifar-pixelcnn/pixelcnn.safetensors", eps=16)


def disco() -> ThirdParty:
    """DISCO, trained against attacks on the classifier that it stands before."""
    return train_disco.disco("runs/cifar-disco/disco.safetensors")


def diffusion_classifier() -> DiffusionClassifier:
    """Of digits, at 2 levels in place of 16: 40 passes an image."""
    denoiser = pretrained.denoiser("mnist-tiny-labelled")
    return DiffusionClassifier(denoiser, levels=2, sigma=(0.5, 5.0))
