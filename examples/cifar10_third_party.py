"""Defend a CIFAR-10 classifier that somebody else trained, and attack the result.

    python examples/cifar10_third_party.py --classifier resnet20-12fca82f.th --images cifar10.zip

The classifier is a ResNet of github.com/akamaster/pytorch_resnet_cifar10; the images are anything
that scoreopt_defense.data.load reads. The denoiser is anything that pretrained.denoiser reads: one
that ships here, a diffusers pipeline (hf:google/ddpm-cifar10-32, or hf: and a folder), or weights
of train_denoiser.py (file:runs/cifar/denoiser.safetensors).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoreopt_defense import DefendedModel, OneShot, Purifier, ScoreOpt, data, pretrained
from scoreopt_defense.attacks import attack
from scoreopt_defense.evaluation import evaluate
from scoreopt_defense.evaluation.run.progress import progress


class _BasicBlock(nn.Module):
    """Two convolutions and an option-A shortcut: subsampled and zero-padded, no parameters."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride = stride
        self.pad = (width - width_in) // 2

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(h + shortcut)


class CIFARResNet(nn.Module):
    """He et al.'s CIFAR ResNet of 6n + 2 layers, on images in [0, 1]."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        blocks = (layers - 2) // 6
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).reshape(-1, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).reshape(-1, 1, 1))
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        for stage, (width_in, width) in enumerate([(16, 16), (16, 32), (32, 64)], start=1):
            first = _BasicBlock(width_in, width, stride=width // width_in)
            rest = [_BasicBlock(width, width, stride=1) for _ in range(blocks - 1)]
            self.add_module(f"layer{stage}", nn.Sequential(first, *rest))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.conv1((x - self.mean) / self.std)))
        h = self.layer3(self.layer2(self.layer1(h)))
        return self.linear(h.mean((2, 3)))


def load_resnet(path: Path) -> nn.Module:
    """A ResNet from its checkpoint, told by its number of convolutions; in eval mode."""
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    state = {name.removeprefix("module."): value for name, value in state.items()}
    layers = 1 + sum("conv" in name for name in state)
    model = CIFARResNet(layers)
    model.load_state_dict(state | {"mean": model.mean, "std": model.std})
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classifier", type=Path, required=True, help="a .th checkpoint")
    parser.add_argument("--images", required=True, help="a zip, a folder or a torchvision root")
    parser.add_argument(
        "--denoiser", required=True, help="as in pretrained.denoiser: a name, hf:... or file:..."
    )
    parser.add_argument("-n", type=int, default=32, help="how many images")
    parser.add_argument("--eps", type=float, default=8 / 255)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/cifar10"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()

    classifier = load_resnet(args.classifier).to(args.device)
    denoiser = pretrained.denoiser(args.denoiser).to(args.device)
    x, y, _ = data.load(args.images, n=args.n, seed=args.seed)

    def defended(purifier: Purifier) -> DefendedModel:
        return DefendedModel(classifier, purifier.replace(max_batch=64))

    result = evaluate(
        {
            "undefended": classifier,
            "one-shot": defended(OneShot(denoiser, sigma=0.25)),
            "ScoreOpt-O": defended(ScoreOpt.from_preset("cifar10/transfer-pgd-linf/O", denoiser)),
            "ScoreOpt-N": defended(ScoreOpt.from_preset("cifar10/transfer-pgd-linf/N", denoiser)),
        },
        (x.to(args.device), y.to(args.device)),
        {  # budgets cut to a CPU's minutes
            "transfer PGD": attack("transfer-pgd-linf", eps=args.eps),
            "BPDA+EOT": attack("bpda-eot-linf", eps=args.eps, steps=12, eot=3),
            "PGD+EOT": attack("pgd-eot-linf", eps=args.eps, steps=15, eot=3),
        },
        out=args.out,
        seed=args.seed,
        progress=progress(),
    )
    print(f"{result}\n\nscoreopt report {args.out} draws the page.")


if __name__ == "__main__":
    main()
