"""The pictures of docs/, from the networks that ship here and from the committed result files.

python -m benchmarks.pictures                 # all, to docs/pictures; a minute
python -m benchmarks.pictures steps modes     # some
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common.table_text import results
from benchmarks.leaderboard import BUNDLES
from benchmarks.paper.answers import verdict_rows
from scoreopt_defense import ScoreOpt, data, pretrained
from scoreopt_defense._optional import optional
from scoreopt_defense.attacks import attack
from scoreopt_defense.evaluation.anytime import sequence
from scoreopt_defense.evaluation.bundle import Bundle

FOLDER = Path(__file__).parents[1] / "docs/pictures"
INK, SOFT, STRONG = "#333333", "#9fa8da", "#3949ab"


def steps() -> Any:
    """A digit, attacked, along the steps of both variants, and what the classifier says of each."""
    classifier, denoiser = pretrained.classifier("mnist-tiny"), pretrained.denoiser("mnist-tiny")
    x, y, _ = data.mnist(n=8)
    attacked = attack("transfer-pgd-linf", eps=0.3).run(classifier, x, y)
    chosen = slice(3, 4)
    figure, axes = _plots().subplots(2, 8, figsize=(11.4, 3.7))
    for row, variant in zip(axes, "ON"):
        purifier = ScoreOpt.from_preset(f"mnist-tiny/{variant}", denoiser, seed=0)
        seen: list[dict[str, Any]] = []
        purified = purifier(attacked[chosen], callback=seen.append)
        taken = [(step["x"] if variant == "O" else step["x_t"]) / 2 + 0.5 for step in seen]
        begun = [] if variant == "O" else [("noised", taken[0])]
        along = [(f"step {k}", image) for k, image in enumerate(taken)][1 : 6 - len(begun)]
        named = [("clean", x[chosen]), ("attacked", attacked[chosen]), *begun, *along]
        for axis in row:
            axis.axis("off")
        for axis, (name, image) in [*zip(row, named), (row[-1], ("purified", purified))]:
            answer = classifier(image.clamp(0, 1)).softmax(1)[0]
            right = answer.argmax() == y[chosen][0]
            axis.imshow(image[0, 0].detach().clamp(0, 1), cmap="gray", vmin=0, vmax=1)
            said = f"{name}\n{answer.argmax().item()} ({100 * answer.max().item():.0f} %)"
            axis.set_title(said, fontsize=10, color=INK if right else "#c62828")
        row[0].text(-9, 14, f"ScoreOpt-{variant}", rotation=90, va="center", fontsize=11)
    return figure


def worst_cases() -> Any:
    """Of each defence what BPDA+EOT leaves, and what the worst case of all attacks does."""
    rows = verdict_rows()[::-1]
    figure, axis = _plots().subplots(figsize=(7.6, 4.4))
    for offset, column, colour, label in (
        (0.2, 2, SOFT, "BPDA+EOT, the paper's attack"),
        (-0.2, 3, STRONG, "worst case over all attacks"),
    ):
        shares = [row[column] for row in rows]
        _bars(axis, [k + offset for k in range(len(rows))], shares, colour, label, 0.38)
    axis.set_yticks(range(len(rows)), [row[0] for row in rows])
    return _accuracy(figure, axis)


def modes() -> Any:
    """What PGD leaves of ScoreOpt by the backward pass that it is shown."""
    cells = results("gradient_modes_5_steps")["cells"]
    found = {(cell["defence"], cell["attack"]): cell["accuracy"] for cell in cells}
    names = ["clean", "BPDA", "surrogate", "one-shot", "exact", "smoothed"][::-1]
    figure, axis = _plots().subplots(figsize=(7.6, 3.8))
    defences = list(dict.fromkeys(defence for defence, _ in found))
    for defence, offset, colour in zip(defences, (0.2, -0.2), (SOFT, STRONG)):
        shares = [found[defence, _of(name, found)] for name in names]
        label = defence.partition(",")[0]
        _bars(axis, [k + offset for k in range(len(names))], shares, colour, label, 0.38)
    axis.set_yticks(range(len(names)), names)
    return _accuracy(figure, axis)


def _of(name: str, found: dict[tuple[str, str], Any]) -> str:
    return next(attacked for _, attacked in found if attacked.lower() == name.lower())


def masked() -> Any:
    """The loss on the way to an attacked digit: of a classifier, and behind rounded pixels."""

    class Rounded(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return classifier((images * 8).round() / 8)

    classifier = pretrained.classifier("mnist-tiny")
    x, y, _ = data.mnist(n=1)
    attacked = attack("transfer-pgd-linf", eps=0.3).run(classifier, x, y)
    along = torch.linspace(0, 0.5, 401)
    line = x + along[:, None, None, None] * (attacked - x)
    figure, axis = _plots().subplots(figsize=(7.6, 3.2))
    for model, colour, label in (
        (classifier, SOFT, "the bare classifier: a slope to follow"),
        (Rounded(), STRONG, "behind pixels rounded to eighths: flat steps"),
    ):
        with torch.no_grad():
            loss = nn.functional.cross_entropy(model(line), y.expand(len(line)), reduction="none")
        axis.plot(along * 0.3, loss, color=colour, label=label, linewidth=2)
    axis.set_xlabel("distance from the digit, l-infinity")
    axis.set_ylabel("cross-entropy")
    axis.legend(frameon=False)
    return _plain(figure, axis)


def transfer() -> Any:
    """The tiny CIFAR-10 networks: clean, and under an attack that does not know the defence."""
    cells = {(c["defence"], c["attack"]): c["accuracy"] for c in results("cifar10_tiny")["cells"]}
    defences = list(dict.fromkeys(defence for defence, _ in cells))[::-1]
    linf = next(name for _, name in cells if "linf" in name)
    figure, axis = _plots().subplots(figsize=(7.6, 3.8))
    for name, offset, colour, label in (
        ("clean", 0.2, SOFT, "clean"),
        (linf, -0.2, STRONG, "transfer PGD, l-infinity 8/255"),
    ):
        shares = [cells[defence, name] for defence in defences]
        _bars(axis, [k + offset for k in range(len(defences))], shares, colour, label, 0.38)
    axis.set_yticks(range(len(defences)), defences)
    return _accuracy(figure, axis)


def overhead() -> Any:
    """A purification over the passes of the bare network that it cannot do without."""
    rows = [row for row in results("speed_overhead_kept")["rows"]
            if row.get("over") == "bare network" and row["loss"] != "sr"]  # fmt: skip
    names = [f"ScoreOpt-{row['variant']}, {row['batch']} image{'s' * (row['batch'] > 1)}"
             for row in rows]  # fmt: skip
    figure, axis = _plots().subplots(figsize=(7.6, 3))
    for way, offset, colour in (
        ("eager", 0.27, SOFT), ("compiled", 0, STRONG), ("without the Jacobian", -0.27, "#80cbc4"),
    ):  # fmt: skip
        places = [len(rows) - k + offset for k in range(len(rows))]
        axis.barh(places, [row["ratios"][way]["value"] for row in rows], 0.25, color=colour,
                  label=way)  # fmt: skip
    axis.axvline(1, color=INK, linewidth=1)
    axis.set_yticks([len(rows) - k for k in range(len(rows))], names)
    axis.set_xlabel("time over the bare network's")
    axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return _plain(figure, axis)


def classes() -> Any:
    """How many attack classes of each library run on a defended model."""
    rows = results("every_attack")["rows"]
    libraries = list(dict.fromkeys(row["library"] for row in rows))[::-1]
    figure, axis = _plots().subplots(figsize=(7.6, 2.4))
    runs = [
        sum(r["library"] == name and r["outcome"] == "runs" for r in rows) for name in libraries
    ]
    every = [sum(r["library"] == name for r in rows) for name in libraries]
    axis.barh(libraries, every, color=SOFT, label="all classes")
    axis.barh(libraries, runs, color=STRONG, label="run on a defended model")
    axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return _plain(figure, axis)


def page() -> Any:
    """How the evaluation's own time for a page grows with the images that were judged."""
    rows = results("record")["page against images"]["rows"]
    figure, axis = _plots().subplots(figsize=(7.6, 2.8))
    axis.plot([row["images"] for row in rows], [row["seconds"] for row in rows], "o-", color=STRONG)
    axis.set_xlim(left=0)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("images, of 2 defences under 4 attacks")
    axis.set_ylabel("seconds to make a page")
    return _plain(figure, axis)


def _bars(
    axis: Any, places: Sequence[float], shares: Sequence[dict[str, float]], colour: str, label: str,
    height: float,
) -> None:  # fmt: skip
    """Shares in per cent, with their intervals."""
    values = [100 * share["value"] for share in shares]
    ends = [
        [max(0.0, value - 100 * share["low"]) for value, share in zip(values, shares)],
        [max(0.0, 100 * share["high"] - value) for value, share in zip(values, shares)],
    ]
    axis.barh(places, values, height, color=colour, label=label)
    axis.errorbar(values, places, xerr=ends, fmt="none", ecolor=INK, elinewidth=0.8)


def claims() -> Any:
    """What each bundle of the leaderboard claims, and what fresh purifications found."""
    rows = results("leaderboard")["rows"][::-1]
    figure, axis = _plots().subplots(figsize=(7.6, 2.4))
    for offset, side, colour, label in (
        (0.2, "claimed", SOFT, "claimed"),
        (-0.2, "found", STRONG, "checked by fresh purifications"),
    ):
        shares = [row[side] for row in rows]
        _bars(axis, [k + offset for k in range(len(rows))], shares, colour, label, 0.38)
    axis.set_yticks(range(len(rows)), [row["defence"] for row in rows])
    _accuracy(figure, axis)
    axis.set_xlim(0, 30)
    return figure


def until() -> Any:
    """The confidence sequences of the committed bundles, and when each is below 30 %."""
    figure, axis = _plots().subplots(figsize=(7.6, 3.6))
    for path, colour in zip(sorted(BUNDLES.glob("*.zip")), (SOFT, STRONG, INK)):
        bundle = Bundle.read(path)
        lows, highs = (100 * ends for ends in sequence(bundle.right.mean(1)))
        met = range(1, len(lows) + 1)
        axis.plot(met, highs, color=colour, label=bundle.defence)
        axis.plot(met, lows, color=colour)
        if (known := highs < 30).any():
            axis.plot(known.argmax() + 1, 30, "o", color=colour)
    axis.axhline(30, color=INK, linewidth=0.8, linestyle=":")
    axis.set_xlabel("images met")
    axis.set_ylabel("robust accuracy in per cent")
    axis.legend(frameon=False)
    return _plain(figure, axis)


def _accuracy(figure: Any, axis: Any) -> Any:
    axis.set_xlim(0, 100)
    axis.set_xlabel("accuracy in per cent, with 95 % intervals")
    axis.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    return _plain(figure, axis)


def _plain(figure: Any, axis: Any) -> Any:
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    return figure


def _plots() -> Any:
    matplotlib = optional("matplotlib", extra="plots")
    matplotlib.use("agg")
    matplotlib.rcParams["svg.hashsalt"] = "docs"
    matplotlib.rcParams["svg.fonttype"] = "none"
    return optional("matplotlib.pyplot", extra="plots")


#: By their names, and how each is kept: images as PNG, drawings as SVG.
PICTURES: dict[str, tuple[Callable[[], Any], str]] = {
    "steps": (steps, "png"),
    "worst-cases": (worst_cases, "svg"),
    "modes": (modes, "svg"),
    "masked": (masked, "svg"),
    "transfer": (transfer, "svg"),
    "overhead": (overhead, "svg"),
    "classes": (classes, "svg"),
    "page-time": (page, "svg"),
    "claims": (claims, "svg"),
    "until": (until, "svg"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[*PICTURES, []], help="all by default")
    names = parser.parse_args().names or PICTURES
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in names:
        made, suffix = PICTURES[name]
        torch.manual_seed(0)  # of attacks that begin at random
        figure = made()
        metadata = {"Date": None} if suffix == "svg" else {"Software": None}
        path = FOLDER / f"{name}.{suffix}"
        figure.savefig(path, bbox_inches="tight", dpi=110, facecolor="white", metadata=metadata)
        print(path)


if __name__ == "__main__":
    main()
