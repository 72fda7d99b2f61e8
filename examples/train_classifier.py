"""Train a small classifier on any labelled image set.

    python examples/train_classifier.py mnist --out runs/mnist-classifier --no-flip
    python examples/train_classifier.py path/to/cifar --out runs/cifar-classifier --shift 4
    python examples/train_classifier.py path/to/cifar --out runs/cifar-at --adversarial 8/255
    python examples/train_classifier.py path/to/cifar --out runs/cifar-menet --menet 0.8 1

Run the same command again after a kill and it goes on where it was, on the same loss curve.
"""

from __future__ import annotations

import argparse
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from training import add_arguments, export, load_training_images, settings_of, train

from scoreopt_defense import MENet
from scoreopt_defense._optional import optional
from scoreopt_defense.attacks import PGD
from scoreopt_defense.noise import seeded
from scoreopt_defense.pretrained.networks import TinyResNet

ATTACKED = 256  # held-out images under PGD at a checkpoint: 3 % of standard error, in seconds


def radius(text: str) -> float:
    """An l-infinity radius on images in [0, 1], as a number or a fraction."""
    try:
        eps = float(Fraction(text))
    except (ValueError, ZeroDivisionError):
        eps = 0.0
    if not 0 < eps <= 1:
        raise argparse.ArgumentTypeError(
            f"must be above 0 and at most 1, such as 8/255, images being in [0, 1], got {text!r}"
        )
    return eps


def attacked(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float, generator: torch.Generator
) -> Tensor:
    r"""The images that fast adversarial training trains on.

    .. math:: \Pi_{\varepsilon, [0, 1]}\big(x + \delta + 1.25\, \varepsilon\,
              \mathrm{sign}\, \nabla_x H(y, f(x + \delta))\big), \quad
              \delta \sim U[-\varepsilon, \varepsilon]

    Args:
        model: attacked in eval mode, so that batch statistics are those of training images alone.
        x: images in [0, 1], shape ``(B, C, H, W)``.
        y: labels, shape ``(B,)``.
        eps: the radius.
        generator: what the random start is drawn by, the attack's own draws being global.

    Reference:
        Wong, Rice and Kolter, ICLR 2020; 1.25 is their step.
    """
    attack = optional("torchattacks", extra="attacks").FFGSM(model, eps=eps, alpha=1.25 * eps)
    with seeded(int(torch.randint(2**31, (), generator=generator))):
        return attack(x, y)


def completed(x: Tensor, keep: tuple[float, float], generator: torch.Generator) -> Tensor:
    """The images that ME-Net's network is trained on: completed from some of their pixels.

    Args:
        x: images in [0, 1], shape ``(B, C, H, W)``.
        keep: lowest and highest share of pixels that are kept, above 0 and at most 1; one is drawn
            for all of the batch.
        generator: of that draw and of the masks.

    Reference:
        Yang et al., ICML 2019, who train on shares from 0.8 to 1, among others.
    """
    low, high = keep
    share = low + (high - low) * torch.rand((), generator=generator).item()
    with torch.autocast(x.device.type, enabled=False):
        return MENet(keep=share)(x, seed=int(torch.randint(2**31, (), generator=generator)))


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
    parser.add_argument(
        "--adversarial", type=radius, metavar="EPS",
        help="train on images attacked within this l-infinity radius, such as 8/255",
    )  # fmt: skip
    parser.add_argument(
        "--menet", type=float, nargs=2, metavar=("LOW", "HIGH"),
        help="train on images completed from this share of their pixels, drawn for each batch",
    )  # fmt: skip
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

    def loss_of(model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        if args.menet:
            x = completed(x, args.menet, generator)
        if args.adversarial:
            x = attacked(model, x, y, eps=args.adversarial, generator=generator)
        return F.cross_entropy(model(x).float(), y, label_smoothing=args.label_smoothing)

    def measure(model: nn.Module) -> dict[str, float]:
        if not settings.holdout:
            return {}
        x = held_out.x
        if args.menet:
            x = completed(x, args.menet, torch.Generator().manual_seed(settings.seed))
        found = {"accuracy": accuracy(model, x, held_out.y)}
        if args.adversarial:  # falls to nothing where the one step has been learnt instead
            device = next(model.parameters()).device
            x, y = held_out.x[:ATTACKED].to(device), held_out.y[:ATTACKED].to(device)
            with seeded(settings.seed):
                worst = PGD(eps=args.adversarial, eot=1, steps=10, random_start=True)
                found["PGD accuracy"] = accuracy(model, worst.run(model, x, y), y.cpu())
        return found

    averaged = train(TinyResNet(**config), images, settings, args, loss_of, measure)
    if averaged is not None:
        trained_on = {"adversarial": args.adversarial, "menet": args.menet}
        about = {name: value for name, value in trained_on.items() if value}
        export(averaged, args.out, "classifier", config, settings, classes=images.classes, **about)


if __name__ == "__main__":
    main()
