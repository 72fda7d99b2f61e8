"""Train a small classifier on any labelled image set.

    python examples/train_classifier.py mnist --out runs/mnist-classifier --no-flip
    python examples/train_classifier.py path/to/cifar --out runs/cifar-classifier --shift 4

Run the same command again after a kill and it goes on where it was, on the same loss curve.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from training import add_arguments, export, load_training_images, settings_of, train

from scoreopt_defense.pretrained.networks import TinyResNet


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor, *, batch: int = 500) -> float:
    """Share of images, shape (n, C, H, W) in [0, 1], whose largest logit is at their label."""
    device = next(model.parameters()).device
    right = [
        (model(part.to(device)).argmax(1).cpu() == labels).sum().item()
        for part, labels in zip(x.split(batch), y.split(batch), strict=True)
    ]
    return sum(right) / len(y)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser, images=1_000_000, batch=128, weight_decay=0.05, shift=2)
    parser.add_argument("--stem", type=int, default=32, help="features at full resolution")
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 192])
    parser.add_argument("--blocks", type=int, default=1, help="residual blocks a stage")
    parser.add_argument("--label-smoothing", type=float, default=0.1)
    args = parser.parse_args()
    settings = settings_of(args)
    images, held_out = load_training_images(settings)

    torch.manual_seed(settings.seed)
    config = {
        "channels": images.x.shape[1], "num_classes": len(images.classes),
        "stem": args.stem, "widths": args.widths, "blocks": args.blocks,
        "mean": [round(value, 4) for value in images.x.mean((0, 2, 3)).tolist()],
        "std": [round(value, 4) for value in images.x.std((0, 2, 3)).tolist()],
    }  # fmt: skip

    def loss_of(model: nn.Module, x: Tensor, y: Tensor, _: torch.Generator) -> Tensor:
        return F.cross_entropy(model(x).float(), y, label_smoothing=args.label_smoothing)

    def measure(model: nn.Module) -> dict[str, float]:
        return {"accuracy": accuracy(model, held_out.x, held_out.y)} if settings.holdout else {}

    averaged = train(TinyResNet(**config), images, settings, args, loss_of, measure)
    if averaged is not None:
        card = {"kind": "classifier", "config": config, "classes": images.classes,
                "training_images": settings.images, "seed": settings.seed}  # fmt: skip
        export(averaged, args.out / "classifier.safetensors", card)


if __name__ == "__main__":
    main()
