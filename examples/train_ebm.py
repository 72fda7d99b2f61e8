"""Train a small energy network on any image set, for Langevin dynamics as a defence.

    python examples/train_ebm.py mnist --out runs/mnist-ebm --no-flip --sigma 0.2 --noise 0.1 1
    python examples/train_ebm.py path/to/cifar --out runs/cifar-ebm

Hill et al. (ICLR 2021) train theirs by maximum likelihood: 250,000 updates, each after 100 steps of
persistent chains. This is multiscale denoising score matching (Li, Chen and Sommer, 2019,
arXiv:1910.07762), which runs no chain and fits into minutes of a CPU. Its energies are right where
noised images are, and nothing was fitted elsewhere.

Run the same command again after a kill and it goes on where it was, on the same loss curve.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from train_denoiser import draw_sigma
from training import add_arguments, export, load_training_images, settings_of, train

from scoreopt_defense.denoisers import EnergyDenoiser
from scoreopt_defense.diagnostics import denoising_errors, psnr
from scoreopt_defense.pretrained.networks import TinyEnergy


def multiscale_loss(net: nn.Module, x: Tensor, sigma: Tensor, generator: torch.Generator) -> Tensor:
    r"""Error of the step down the energy, which is not told how much noise there is.

    .. math:: \| x_t - s^2 \nabla U(x_t) - x \|_2^2 / \sigma^2, \qquad x_t = x + \sigma\epsilon

    Args:
        net: U, with its noise level s as ``sigma``.
        x: clean images in [0, 1], shape ``(B, C, H, W)``.
        sigma: noise levels, images in [-1, 1], shape ``(B,)``.
        generator: of the noise.
    """
    clean, sigma = 2 * x - 1, sigma[:, None, None, None]
    noise = torch.randn(x.shape, generator=generator).to(x)
    x_t = (clean + sigma * noise).requires_grad_()
    denoised = EnergyDenoiser(net, sigma=net.sigma)(x_t, net.sigma)
    return ((denoised - clean) / sigma).square().mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 64, 96])
    parser.add_argument("--blocks", type=int, default=1, help="residual blocks a level")
    parser.add_argument(
        "--sigma", type=float, default=0.05, metavar="S",
        help="noise of the images whose density it is, images in [-1, 1]",
    )  # fmt: skip
    parser.add_argument(
        "--noise", type=float, nargs=2, default=[0.03, 0.5], metavar=("LOW", "HIGH"),
        help="noise levels of training images",
    )  # fmt: skip
    args = parser.parse_args()
    settings = settings_of(args)
    images, held_out = load_training_images(settings)

    torch.manual_seed(settings.seed)
    config = {"channels": images.x.shape[1], "widths": args.widths, "blocks": args.blocks,
              "sigma": args.sigma}  # fmt: skip

    def loss_of(model: nn.Module, x: Tensor, _: Tensor, generator: torch.Generator) -> Tensor:
        sigma = draw_sigma(len(x), *args.noise, generator).to(x.device)
        return multiscale_loss(model, x, sigma, generator)

    def measure(model: nn.Module) -> dict[str, float]:
        denoiser, x = EnergyDenoiser(model, sigma=args.sigma), held_out.x[:500]
        sigmas = (args.sigma, args.noise[1]) if settings.holdout else ()
        return {
            f"PSNR@{s:g}": psnr(
                denoising_errors(lambda x_t, _: denoiser(x_t, args.sigma), x, s).mean().item()
            )
            for s in sigmas
        }

    averaged = train(TinyEnergy(**config), images, settings, args, loss_of, measure)
    if averaged is not None:
        export(averaged, args.out, "energy", config, settings)


if __name__ == "__main__":
    main()
