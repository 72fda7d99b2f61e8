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
from benchmarks.models.about import ABOUT
from scoreopt_defense import DefendedModel, DiffusionClassifier, data, pretrained
from scoreopt_defense.attacks import Attack
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
