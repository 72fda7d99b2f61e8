"""Train a small denoiser on any image set: EDM preconditioning, weighting and a log-normal sigma.

    python examples/train_denoiser.py mnist --out runs/mnist --no-flip
    python examples/train_denoiser.py path/to/cifar --out runs/cifar --images 1000000
    python examples/train_denoiser.py mnist --out runs/labelled --no-flip --labels

Run the same command again after a kill and it goes on where it was, on the same loss curve.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from training import add_arguments, export, load_training_images, settings_of, train

from scoreopt_defense.diagnostics import denoising_errors, psnr
from scoreopt_defense.pretrained.networks import TinyUNet

MEASURED_SIGMAS = (0.15, 0.25, 0.5, 1.0)
UNTOLD = 0.1  # of the labelled images: there the network learns to do without (Ho and Salimans)


def draw_sigma(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    """Log-normal noise levels, two standard deviations of which reach from ``low`` to ``high``."""
    mean, std = math.log(low * high) / 2, math.log(high / low) / 4
    return torch.exp(mean + std * torch.randn(count, generator=generator))


def edm_loss(
    net: Callable[..., Tensor], x: Tensor, sigma: Tensor, sigma_data: float,
    generator: torch.Generator, *told: Tensor,
) -> Tensor:  # fmt: skip
    """Denoising error weighted as in EDM (Karras et al., 2022, Table 1); ``x`` in [0, 1]."""
    clean = 2 * x - 1
    noise = torch.randn(x.shape, generator=generator).to(x)
    weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    denoised = net(clean + sigma[:, None, None, None] * noise, sigma, *told)
    return (weight * (denoised - clean).square().mean((1, 2, 3))).mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 96, 128])
    parser.add_argument("--blocks", type=int, default=2, help="residual blocks a level")
    parser.add_argument(
        "--sigma", type=float, nargs=2, default=[0.05, 1.0], metavar=("LOW", "HIGH"),
        help="noise levels to be good at, images in [-1, 1]",
    )  # fmt: skip
    parser.add_argument("--labels", action="store_true", help="tell it each image's class")
    args = parser.parse_args()
    settings = settings_of(args)
    images, held_out = load_training_images(settings)
    sigma_data = round((2 * images.x[:5000]).std().item(), 3)

    torch.manual_seed(settings.seed)
    config = {"channels": images.x.shape[1], "widths": args.widths, "blocks": args.blocks,
                  "sigma_data": sigma_data}  # fmt: skip
    if args.labels:
        config["num_classes"] = int(images.y.max()) + 1
    net = TinyUNet(**config)

    def loss_of(model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        sigma = draw_sigma(len(x), *args.sigma, generator).to(x.device)
        told = []
        if args.labels:
            is_told = (torch.rand(len(y), 1, generator=generator) >= UNTOLD).to(y.device)
            told = [F.one_hot(y, config["num_classes"]) * is_told]
        return edm_loss(model, x, sigma, sigma_data, generator, *told)

    def measure(model: nn.Module) -> dict[str, float]:
        sigmas = MEASURED_SIGMAS if settings.holdout else ()
        x = held_out.x[:500]
        return {
            f"PSNR@{s:g}": psnr(denoising_errors(model, x, s).double().mean().item())
            for s in sigmas
        }

    averaged = train(net, images, settings, args, loss_of, measure)
    if averaged is not None:
        export(averaged, args.out, "denoiser", config, settings, sigma_range=args.sigma)


if __name__ == "__main__":
    main()
