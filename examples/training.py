"""The training loop that the scripts of this folder share.

Every random draw of step k comes from a generator seeded by (seed, k), so a run that was killed and
resumed is bit for bit the run that was not.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from scoreopt_defense import data

# Options that the weights do not depend on: a run resumes under any value of these.
_FREE_OPTIONS = {"out", "device", "checkpoint_minutes", "stop_after"}


@dataclass(frozen=True)
class Settings:
    """What every training run depends on, whatever it trains."""

    source: str
    init: str | None
    holdout: int
    images: int
    batch: int
    lr: float
    weight_decay: float
    ema: float
    flip: bool
    shift: int
    cutout: int
    precision: str
    seed: int


def add_arguments(parser: argparse.ArgumentParser, **defaults: object) -> None:
    """Add the options of ``Settings`` and of ``train`` to a script's parser."""
    add = parser.add_argument
    add("source", help="'mnist', a zip of class/image files, a torchvision CIFAR root, or a folder")
    add("--out", type=Path, required=True, help="folder for checkpoints, plot and weights")
    add("--init", help="checkpoint or exported weights of another run, to start from")
    add("--images", type=int, help="training images to see in all")
    add("--batch", type=int, help="images a step")
    add("--lr", type=float, help="peak of the cosine schedule")
    add("--weight-decay", type=float)
    add("--ema", type=float, help="decay of the averaged weights a step")
    add("--flip", action=argparse.BooleanOptionalAction, help="horizontal flips")
    add("--shift", type=int, help="largest random translation, in pixels")
    add("--cutout", type=int, help="side of a random square to blank, in pixels")
    add("--holdout", type=int, help="training images kept out, to measure and tune on")
    add("--precision", choices=["float32", "bfloat16"], help="of the network under autocast")
    add("--seed", type=int)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--checkpoint-minutes", type=float, default=3.0)
    add("--stop-after", type=int, help="stop after this many steps, to be resumed later")
    common = {
        "images": 500_000,
        "batch": 64,
        "lr": 2e-3,
        "weight_decay": 0.0,
        "ema": 0.999,
        "flip": True,
        "shift": 0,
        "cutout": 0,
        "holdout": 1000,
        "precision": "float32",
        "seed": 0,
    }
    parser.set_defaults(**(common | defaults))


def settings_of(args: argparse.Namespace) -> Settings:
    """The ``Settings`` among a script's parsed arguments."""
    return Settings(**{name: getattr(args, name) for name in Settings.__dataclass_fields__})


def load_training_images(settings: Settings) -> tuple[data.Images, data.Images]:
    """The training images, split into those to train on and those kept out."""
    return data.hold_out(data.load(settings.source, split="train"), settings.holdout)


def train(
    model: nn.Module,
    images: data.Images,
    settings: Settings,
    args: argparse.Namespace,
    loss_of: Callable[[nn.Module, Tensor, Tensor, torch.Generator], Tensor],
    measure: Callable[[nn.Module], dict[str, float]],
) -> nn.Module | None:
    """Train ``model`` and return its averaged copy, or None where ``--stop-after`` ended it early.

    Args:
        model: the network; its initial weights are the caller's.
        images: what to train on.
        settings: all that the result depends on.
        args: all of the script's options; a run resumes only under the same, but for where to
            write, on which device, and when to save or stop.
        loss_of: ``(model, x, y, generator)`` to a scalar loss.
        measure: numbers of the averaged model, logged at each checkpoint.
    """
    torch.manual_seed(settings.seed)
    device = torch.device(args.device)
    if settings.init:
        model.load_state_dict(_initial_weights(Path(settings.init)))
    model.to(device, memory_format=torch.channels_last)
    averaged = copy.deepcopy(model).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True
    )
    steps = math.ceil(settings.images / settings.batch)
    checkpoint = args.out / "checkpoint.pt"
    args.out.mkdir(parents=True, exist_ok=True)
    start, losses, log = 0, [], []
    options = {name: value for name, value in vars(args).items() if name not in _FREE_OPTIONS}
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        if state["settings"] != options:
            raise SystemExit(f"{checkpoint} was made with other settings: {state['settings']}")
        model.load_state_dict(state["model"])
        averaged.load_state_dict(state["averaged"])
        optimizer.load_state_dict(state["optimizer"])
        start, losses, log = state["step"], state["losses"], state["log"]

    def save(step: int) -> None:
        log.append({"step": step, **measure(averaged)})
        temporary = checkpoint.with_suffix(".tmp")
        torch.save(
            {"settings": options, "step": step, "losses": losses, "log": log,
             "model": model.state_dict(), "averaged": averaged.state_dict(),
             "optimizer": optimizer.state_dict()},
            temporary,
        )  # fmt: skip
        os.replace(temporary, checkpoint)  # a kill never leaves half a checkpoint
        tqdm.write("  ".join(f"{name} {value:.4g}" for name, value in log[-1].items()))

    stop = min(steps, args.stop_after or steps)
    last_save = time.monotonic()
    model.train()
    for step in tqdm(range(start, stop), initial=start, total=steps, unit="step"):
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        x, y = _batch(images, settings, step, generator, device)
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * _schedule(step, steps)
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
            loss = loss_of(model, x, y, generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        _average(averaged, model, min(settings.ema, (step + 1) / (step + 10)))
        losses.append(loss.item())
        if time.monotonic() - last_save > 60 * args.checkpoint_minutes or step + 1 == stop:
            save(step + 1)
            last_save = time.monotonic()
    _plot(losses, log, args.out / "training.png")
    return averaged if stop == steps else None


def export(
    model: nn.Module, out: Path, kind: str, config: dict[str, object], settings: Settings,
    **about: object,
) -> None:  # fmt: skip
    """Write half-precision weights to ``out/<kind>.safetensors``, a card as JSON in its header.

    Args:
        config: what the network was made with.
        about: what else the card has.
    """
    card = {"kind": kind, "config": config, "training_images": settings.images,
            "seed": settings.seed} | about  # fmt: skip
    weights = {
        name: (value.half() if value.is_floating_point() else value).cpu().contiguous()
        for name, value in model.state_dict().items()
    }
    save_file(
        weights, out / f"{kind}.safetensors", metadata={"card": json.dumps(card, sort_keys=True)}
    )


def load(file: str | Path, network: Callable[..., nn.Module]) -> nn.Module:
    """What :func:`export` wrote, of a network of one's own: in float32 and eval mode, frozen.

    Args:
        file: of weights that you trust: its card says how large a network is made.
        network: called with what the card has as ``config``.
    """
    with safe_open(file, "pt") as opened:
        config = json.loads(opened.metadata()["card"])["config"]
    net = network(**config)
    net.load_state_dict(load_file(file))
    return net.float().eval().requires_grad_(False)


def _initial_weights(path: Path) -> dict[str, Tensor]:
    """Averaged weights of a checkpoint, or exported ones, which are in half precision."""
    if path.suffix == ".safetensors":
        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)["averaged"]


def _batch(
    images: data.Images,
    settings: Settings,
    step: int,
    generator: torch.Generator,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Batch of one step: a window of its epoch's permutation, augmented."""
    total = len(images.y)
    positions = torch.arange(step * settings.batch, (step + 1) * settings.batch)
    epochs = positions // total
    indices = torch.empty_like(positions)
    for epoch in epochs.unique().tolist():  # a batch may span two epochs
        shuffle = torch.Generator().manual_seed(settings.seed * 7_368_787 + epoch)
        order = torch.randperm(total, generator=shuffle)
        indices[epochs == epoch] = order[positions[epochs == epoch] % total]
    x = _augment(images.x[indices], settings, generator)
    if settings.cutout:
        x = _cut_out(x, settings.cutout, generator)
    return x.to(device, memory_format=torch.channels_last), images.y[indices].to(device)


def _augment(x: Tensor, settings: Settings, generator: torch.Generator) -> Tensor:
    """Horizontal flips and translations (edges reflected), drawn for each image."""
    count, _, height, width = x.shape
    columns = torch.arange(width).expand(count, width)
    if settings.flip:
        flips = torch.rand(count, 1, generator=generator) < 0.5
        columns = torch.where(flips, columns.flip(1), columns)
    if not settings.shift:
        return x.gather(3, columns[:, None, None, :].expand(x.shape))
    reach = settings.shift
    dy, dx = torch.randint(2 * reach + 1, (2, count, 1), generator=generator)
    rows = torch.arange(height) + dy
    x = F.pad(x, (reach,) * 4, mode="reflect")
    x = x.gather(2, rows[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))
    return x.gather(3, (columns + dx)[:, None, None, :].expand(-1, x.shape[1], height, -1))


def _cut_out(x: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Blank a square about a random pixel of each image (DeVries and Taylor, 2017)."""
    spans = []
    for size in x.shape[-2:]:
        offset = torch.arange(size) - torch.randint(size, (len(x), 1), generator=generator)
        spans.append((offset >= -(side // 2)) & (offset < side - side // 2))
    rows, columns = spans
    return x.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.5)


def _schedule(step: int, steps: int) -> float:
    """Linear warm-up over the first 2 %, then a cosine to zero."""
    warmup = max(1, steps // 50)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


@torch.no_grad()
def _average(averaged: nn.Module, model: nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(averaged.parameters()), list(model.parameters()), 1 - decay)
    for mean, value in zip(averaged.buffers(), model.buffers(), strict=True):
        mean.copy_(value)


def _plot(losses: list[float], log: list[dict[str, float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    window = max(1, len(losses) // 200)
    smooth = torch.tensor(losses).unfold(0, window, window).mean(1)
    left.plot(torch.arange(len(smooth)) * window, smooth)
    left.set(xlabel="step", ylabel="training loss", yscale="log")
    for name in (log[0].keys() - {"step"}) if log else ():
        right.plot([row["step"] for row in log], [row[name] for row in log], label=name)
    right.set(xlabel="step", title="held-out training images")
    if right.lines:
        right.legend()
    figure.savefig(path, bbox_inches="tight")
    plt.close(figure)
