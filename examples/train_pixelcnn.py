"""Train a small PixelCNN on any image set, and purify by it: PixelDefend, as ART has it.

    python examples/train_pixelcnn.py mnist --out runs/pixelcnn --no-flip --holdout 200

Run the same command again after a kill and it goes on where it was, on the same loss curve. Then

    model = DefendedModel(classifier, pixel_defend("runs/pixelcnn/pixelcnn.safetensors", eps=32))

The paper decodes greedily, pixel after pixel, each given those that were decoded before. ART takes
the distributions of all pixels given the attacked ones before them, in one pass.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from training import add_arguments, export, load, load_training_images, settings_of, train

from scoreopt_defense import ThirdParty
from scoreopt_defense._optional import optional

LEVELS = 256


class MaskedConv2d(nn.Conv2d):
    """A convolution that sees rows above and, of its own row, what is left of a pixel.

    Args:
        itself: whether it sees the pixel too.
    """

    seen: Tensor

    def __init__(self, width_in: int, width_out: int, size: int, *, itself: bool) -> None:
        super().__init__(width_in, width_out, size, padding=size // 2)
        seen = (torch.arange(size**2) < size**2 // 2 + itself).reshape(size, size)
        self.register_buffer("seen", seen, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight * self.seen, self.bias)


class PixelCNN(nn.Module):
    """Distributions of each value of an image, given the pixels before it in reading order.

    The colours of a pixel are independent of each other, given those.

    Args:
        channels: of an image.
        width: features.
        layers: masked 3 x 3 convolutions after the first, of 7 x 7.

    Reference:
        Van den Oord et al., "Pixel recurrent neural networks", ICML 2016.
    """

    def __init__(self, *, channels: int, width: int, layers: int) -> None:
        super().__init__()
        self.first = MaskedConv2d(channels, width, 7, itself=False)
        self.layers = nn.ModuleList(
            MaskedConv2d(width, width, 3, itself=True) for _ in range(layers)
        )
        self.head = nn.Conv2d(width, channels * LEVELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape (B, 256, C, H, W), of images of shape (B, C, H, W) in [0, 1]."""
        h = self.first(2 * x - 1)
        for layer in self.layers:
            h = h + layer(F.silu(h))
        return self.head(F.silu(h)).unflatten(1, (-1, LEVELS)).transpose(1, 2)


class PixelDefence(nn.Module):
    """ART's ``PixelDefend``: each value becomes the likeliest within eps / 255 of its own.

    Args:
        net: whose distributions these are.
        eps: 0 to 255; the paper's is 16 on CIFAR-10, twice the attack's.

    Reference:
        Song et al., "PixelDefend", ICLR 2018.
    """

    def __init__(self, net: PixelCNN, *, eps: int) -> None:
        super().__init__()
        self.net, self.eps = net, eps

    def forward(self, x: Tensor) -> Tensor:
        """Purified images, shape ``(B, C, H, W)``, in [0, 1], of such images."""
        preprocessors = optional("art.defences.preprocessor", extra="art")
        estimators = optional("art.estimators.classification", extra="art")
        levels = (x.detach().clamp(0, 1) * (LEVELS - 1)).round().cpu()

        class Distributions(estimators.PyTorchClassifier):
            # its own hooks the network anew in each call
            def get_activations(_, *args: object, **kwargs: object) -> np.ndarray:
                with torch.no_grad():
                    logits = self.net((levels / (LEVELS - 1)).to(x))
                return logits.float().softmax(1).movedim(1, -1).flatten(1).cpu().numpy()

        estimator = Distributions(self.net, None, tuple(x.shape[1:]), LEVELS, device_type="cpu")
        defence = preprocessors.PixelDefend(eps=self.eps, pixel_cnn=estimator)
        defence.eps = np.int64(self.eps)  # NumPy 2 would count from a pixel on in its 8 bits
        purified, _ = defence(((levels + 0.25) / (LEVELS - 1)).numpy())  # it rounds down
        return torch.from_numpy(purified).to(x)


def pixel_defend(file: str | Path, *, eps: int = 16) -> ThirdParty:
    """The purifier of a file that this script wrote, to be attacked by BPDA."""
    return ThirdParty(PixelDefence(load(file, PixelCNN), eps=eps), differentiable=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser, images=50_000, lr=4e-3)
    parser.add_argument("--width", type=int, default=24, help="features")
    parser.add_argument("--layers", type=int, default=5, help="masked convolutions")
    args = parser.parse_args()
    settings = settings_of(args)
    images, held_out = load_training_images(settings)

    torch.manual_seed(settings.seed)
    config = {"channels": images.x.shape[1], "width": args.width, "layers": args.layers}

    def loss_of(model: nn.Module, x: Tensor, *_: object) -> Tensor:
        levels = (x * (LEVELS - 1)).round()
        return F.cross_entropy(model(levels / (LEVELS - 1)).float(), levels.long())

    @torch.no_grad()
    def measure(model: nn.Module) -> dict[str, float]:
        x = held_out.x[:100].to(next(model.parameters()).device)
        return {"bits a value": loss_of(model, x).item() / math.log(2)} if settings.holdout else {}

    averaged = train(PixelCNN(**config), images, settings, args, loss_of, measure)
    if averaged is not None:
        export(averaged, args.out, "pixelcnn", config, settings)


if __name__ == "__main__":
    main()
