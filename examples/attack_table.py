"""Run a set of attacks on a set of defences; print one table, write the figures and a picture."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from scipy.stats import binomtest
from torch import nn
from tqdm import tqdm

from scoreopt_defense import DefendedModel, Purifier, __version__
from scoreopt_defense.attacks import ARTPGD, Attack, attack, budgets
from scoreopt_defense.data import Images

BATCHES = 2  # the progress bar moves once a batch


def short_attacks(eps: float) -> dict[str, Attack]:
    """Attacks by the name of their column, in l-infinity but for StAdv, cut to a CPU's minutes."""
    return {
        "transfer PGD": attack("transfer-pgd-linf", eps=eps),
        "BPDA+EOT": attack("bpda-eot-linf", eps=eps, steps=12, eot=3),
        "PGD+EOT": attack("pgd-eot-linf", eps=eps, steps=15, eot=3),
        "SPSA": attack("spsa", eps=eps, steps=5, samples=8),
        "StAdv": attack("stadv", steps=12, eot=1),
        "ART PGD": ARTPGD(eps=eps, steps=10, eot=1),
    }


def run(
    classifier: nn.Module,
    purifiers: dict[str, Purifier | None],
    images: Images,
    attacks: Mapping[str, Attack],
    out: Path,
    *,
    seed: int = 0,
    passes: int | None = None,
) -> None:
    """Attack each defence and write ``results.json`` and ``purified.png`` to ``out``.

    An image counts as robust if the defence, with fresh noise, still classifies it rightly.

    Args:
        classifier: from images in [0, 1] to logits, in eval mode.
        purifiers: by the name of their row; None stands for no defence.
        images: what to attack.
        attacks: by the name of their column; "PGD+EOT" is drawn.
        out: folder, made if it is not there.
        seed: of the attacks' random starts and, in each cell anew, of the purifiers' noise.
        passes: how many passes of the bare network over these images the whole took when it was
            measured, from which the time here is foretold.
    """
    started_at, one_pass = time.monotonic(), _seconds_of_a_pass(purifiers, images)
    if passes:
        print(f"About {passes * one_pass / 60:.1f} minutes on this machine.")
    print(f"{len(images.y)} images, seed {seed}; queries an image, and in the paper:")
    for name, how in attacks.items():
        paper = (budgets(how)["paper"] or {}).get("queries", "-")
        print(f"{name:>14}: {how.queries:>5} of {paper:>5}, {how.threat}")
    print()
    cells = [
        (row, name)
        for name in ("clean", *attacks)
        for row in purifiers
    ]  # fmt: skip
    results: list[dict[str, object]] = []
    attacked: dict[tuple[str, str], torch.Tensor] = {}
    with tqdm(total=BATCHES * len(cells), unit="batch") as progress:
        for row, name in cells:
            purifier = purifiers[row]
            if purifier is not None:  # each cell has its own noise, whatever ran before it
                purifier = purifier.replace(seed=seed)
            model = classifier if purifier is None else DefendedModel(classifier, purifier)
            started = time.monotonic()
            parts, right = [], 0
            torch.manual_seed(seed)
            size = -(-len(images.y) // BATCHES)
            for x, y in zip(images.x.split(size), images.y.split(size), strict=True):
                progress.set_description(f"{row}: {name}")
                if name != "clean":
                    x = attacks[name].run(model, x, y)
                with torch.no_grad():
                    right += (model(x).argmax(1) == y).sum().item()
                parts.append(x)
                progress.update()
            attacked[row, name] = torch.cat(parts)
            seconds = round(time.monotonic() - started, 1)
            results.append(
                {"defence": row, "attack": name, "accuracy": right / len(images.y),
                 "interval": _interval(right, len(images.y)), "images": len(images.y),
                 "seed": seed, "seconds": seconds}
            )  # fmt: skip
    _print_table(results, list(purifiers), list(attacks))
    out.mkdir(parents=True, exist_ok=True)
    seconds = time.monotonic() - started_at
    about = {
        "seconds": round(seconds, 1),
        "passes of the bare network": round(seconds / one_pass),
        "attacks": {name: budgets(how) for name, how in attacks.items()},
        "purifiers": {
            row: purifier and {"purifier": type(purifier).__name__, **purifier.settings.as_dict()}
            for row, purifier in purifiers.items()
        },
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "versions": {"scoreopt_defense": __version__, "torch": torch.__version__},
        "results": results,
    }
    (out / "results.json").write_text(json.dumps(about, indent=2) + "\n")
    last = list(purifiers)[-1]
    _draw(classifier, purifiers[last], images, attacked[last, "PGD+EOT"], out / "purified.png")
    print(f"\nWrote {out / 'results.json'} and {out / 'purified.png'}.")


def _seconds_of_a_pass(purifiers: dict[str, Purifier | None], images: Images) -> float:
    """The denoiser's forward pass and input gradient on all images, one batch after the other."""
    denoiser = next(p.denoiser for p in purifiers.values() if p is not None)
    seconds = []
    for _ in range(6):
        started = time.perf_counter()
        for x in images.x.split(-(-len(images.y) // BATCHES)):
            leaf = x.clone().requires_grad_()
            torch.autograd.grad(denoiser(leaf, denoiser.sigma_range[1] / 2).sum(), leaf)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


def _interval(right: int, total: int) -> list[float]:
    """Exact (Clopper-Pearson) 95 % confidence interval of a share."""
    interval = binomtest(right, total).proportion_ci(0.95)
    return [round(float(interval.low), 3), round(float(interval.high), 3)]


def _print_table(results: list[dict[str, object]], rows: list[str], attacks: list[str]) -> None:
    accuracy = {(cell["defence"], cell["attack"]): cell["accuracy"] for cell in results}
    names = ["clean", *attacks]
    width = max(len(row) for row in rows)
    print("\naccuracy".ljust(width + 1), *(f"{name:>12}" for name in names), sep="  ")
    for row in rows:
        cells = (f"{100 * accuracy[row, name]:>10.1f} %" for name in names)
        print(row.ljust(width), *cells, sep="  ")
    print()
    for row in rows:
        weakest = min(attacks, key=lambda name: accuracy[row, name])
        print(f"Lowest for {row}: {100 * accuracy[row, weakest]:.1f} %, found by {weakest}.")


def _draw(
    classifier: nn.Module, purifier: Purifier, images: Images, attacked: torch.Tensor, path: Path
) -> None:
    """Eight images, clean, attacked and purified, each under the label that it is given."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    picked = torch.linspace(0, len(images.y) - 1, 8).long()
    with torch.no_grad():
        rows = {
            "clean": images.x[picked],
            "attacked": attacked[picked],
            "purified": purifier(attacked[picked]),
        }
        labels = {name: classifier(x).argmax(1) for name, x in rows.items()}
    figure, axes = plt.subplots(3, 8, figsize=(10, 4.4), layout="constrained")
    for line, (name, x) in zip(axes, rows.items(), strict=True):
        line[0].set_ylabel(name)
        for axis, image, label, truth in zip(line, x, labels[name], images.y[picked], strict=True):
            axis.imshow(
                image.permute(1, 2, 0).squeeze(-1).cpu().numpy(), cmap="gray", vmin=0, vmax=1
            )
            axis.set(xticks=[], yticks=[])
            axis.set_title(
                images.classes[int(label)], color="black" if label == truth else "red", fontsize=9
            )
    figure.suptitle("Label the bare classifier gives; red is wrong", fontsize=10)
    figure.savefig(path, dpi=120)
    plt.close(figure)
