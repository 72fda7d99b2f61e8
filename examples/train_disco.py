"""Train a small local implicit model to undo attacks on a classifier, and purify by it: DISCO.

    python examples/train_disco.py path/to/cifar --out runs/disco --classifier cifar10-tiny

Run the same command again after a kill and it goes on where it was, on the same loss curve. Then

    model = DefendedModel(classifier, disco("runs/disco/disco.safetensors"))
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from train_classifier import accuracy, radius
from training import add_arguments, export, load, load_training_images, settings_of, train

from scoreopt_defense import ThirdParty
from scoreopt_defense.attacks import PGD
from scoreopt_defense.evaluation.named import classifier
from scoreopt_defense.noise import seeded

MEASURED = 256  # held-out images at a checkpoint: 3 % of standard error, in seconds


class Disco(nn.Module):
    """A residual encoder, and a perceptron that makes a pixel of the 3 x 3 features about it.

    The paper's perceptron is also told where in a feature's cell the pixel is, which is in its
    middle for all of an image at its own resolution: a bias knows that.

    Args:
        channels: of an image.
        width: features of the encoder.
        blocks: of the encoder.
        hidden: units of the perceptron's two hidden layers.

    Reference:
        Ho and Vasconcelos, "DISCO: adversarial defense with local implicit functions", NeurIPS
        2022.
    """

    def __init__(self, *, channels: int, width: int, blocks: int, hidden: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(width, width, 3, padding=1),
            )
            for _ in range(blocks)
        )
        self.perceptron = nn.Sequential(
            nn.Conv2d(width, hidden, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 1),
            nn.ReLU(),
            nn.Conv2d(hidden, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Images of shape (B, C, H, W) in [0, 1], undone; of such images."""
        h = self.stem(2 * x - 1)
        for block in self.blocks:
            h = h + block(h)
        return ((self.perceptron(h) + 1) / 2).clamp(0, 1)


def disco(file: str | Path) -> ThirdParty:
    """The purifier of a file that this script wrote. It draws nothing; autograd goes through it."""
    return ThirdParty(load(file, Disco))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser, images=100_000, batch=32, lr=1e-3)
    parser.add_argument("--classifier", required=True, help="that is attacked, by name")
    parser.add_argument("--eps", type=radius, default=8 / 255, help="l-infinity radius of attacks")
    parser.add_argument("--attack-steps", type=int, default=5, help="of PGD")
    parser.add_argument("--width", type=int, default=32, help="features")
    parser.add_argument("--blocks", type=int, default=3, help="residual blocks")
    parser.add_argument("--hidden", type=int, default=64, help="units of the perceptron's layers")
    args = parser.parse_args()
    settings = settings_of(args)
    images, held_out = load_training_images(settings)
    attacked = classifier(args.classifier).to(args.device)
    attack = PGD(eps=args.eps, eot=1, steps=args.attack_steps, random_start=True)

    torch.manual_seed(settings.seed)
    config = {"channels": images.x.shape[1], "width": args.width, "blocks": args.blocks,
              "hidden": args.hidden}  # fmt: skip

    def loss_of(model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        with seeded(int(torch.randint(2**31, (), generator=generator))):
            worst = attack.run(attacked, x, y)
        return F.l1_loss(model(worst).float(), x)

    def measure(model: nn.Module) -> dict[str, float]:
        if not settings.holdout:
            return {}
        x, y = held_out.x[:MEASURED].to(args.device), held_out.y[:MEASURED]
        with seeded(settings.seed):
            worst = attack.run(attacked, x, y.to(args.device))
        defended = nn.Sequential(model, attacked)
        return {
            "accuracy": accuracy(defended, x.cpu(), y),
            "transfer accuracy": accuracy(defended, worst.cpu(), y),
        }

    averaged = train(Disco(**config), images, settings, args, loss_of, measure)
    if averaged is not None:
        about = {"classifier": args.classifier, "eps": args.eps}
        export(averaged, args.out, "disco", config, settings, **about)


if __name__ == "__main__":
    main()
