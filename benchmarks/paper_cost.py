"""What a table costs at the paper's scale: floating-point operations, counted, and GPU hours."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from paper_cells import Cell, cells, specification

from scoreopt_defense import purifiers
from scoreopt_defense.attacks import Attack, attack
from scoreopt_defense.presets import PRESETS

#: Operations of one pass of one image, in 1e9, by torch.utils.flop_counter on the architectures;
#: WRN-70-16 by depth and width from WRN-28-10's.
GFLOP = {
    "edm-cifar10-32x32-uncond-vp": 42.4,
    "guided-diffusion-imagenet-256-uncond": 2239.7,
    "WRN-28-10": 10.5,
    "70": 73.8,
    "resnet50": 10.7,
    "resnet152": 30.1,
    "wide_resnet50_2": 29.8,
}
#: What a GPU sustains: 1e13 a second is a modest card in float32 or a large one run carelessly.
SUSTAINED = 1e13
BACKWARD = 2  # a backward pass is about two forward ones


def hours(table: str) -> float:
    """GPU hours of a table at the paper's scale, at :data:`SUSTAINED`."""
    runs = {cell.run: cell for cell in cells(table, "paper")}.values()
    return sum(_operations(cell) for cell in runs) / SUSTAINED / 3600


def downloads(table: str) -> list[str]:
    """The networks that a table names at the paper's scale."""
    found = {
        cell.section[part]: None
        for cell in cells(table, "paper")
        for part in ("classifier", "denoiser")
        if part in cell.section
    }
    spec = specification(table)
    return list(found) if spec.get("kind") != "timing" else ["edm-cifar10-32x32-uncond-vp"]


def _operations(cell: Cell) -> float:
    denoiser, classifier = _gflop(cell.section.get("denoiser", "")), _classifier(cell)
    purified = _passes(cell.section) * denoiser
    once = purified + classifier
    total = cell.judging["purifications"] * once  # the clean images
    for section in cell.attacks.values():
        total += cell.judging["purifications"] * once
        if section["attack"] != "corruptions":
            total += _attacked(_attack(section), purified, denoiser, classifier)
        if "confirm" in cell.judging:
            total += cell.judging["confirm"] * once  # a vote an image, at least
    return 1e9 * total * cell.images * cell.trials


def _attack(section: Any) -> Attack:
    settings = {name: value for name, value in section.items() if name != "attack"}
    if isinstance(settings.get("eps"), str):
        settings["eps"] = float(Fraction(settings["eps"]))
    return attack(section["attack"], **settings)


def _attacked(used: Attack, purified: float, denoiser: float, classifier: float) -> float:
    shown = used.as_dict()["gradient"]["name"]
    answer = {"classifier": 0.0, "surrogate": denoiser}.get(shown, purified)
    # beyond the classifier's: one-shot goes forward and back once, exact through every step again
    back = {"one-shot": 1 + BACKWARD, "surrogate": BACKWARD}.get(shown, 0) * denoiser
    if shown in ("exact", "smoothed"):
        back = (1 + BACKWARD) * purified
    return used.queries * (answer + classifier) + used.gradients * (back + BACKWARD * classifier)


def _passes(section: Any) -> float:
    """Of the denoiser, a purification; a gradient step is a forward and a backward one."""
    kind = section.get("purifier", "none")
    if kind == "none":
        return 0
    given = PRESETS.get(section.get("preset", ""), {}) | section.get("overrides", {})
    settings = getattr(purifiers, kind).Settings.from_dict(given)
    if kind == "ScoreOpt":
        compares = getattr(settings.loss, "compares", False)
        once_more = settings.variant == "N"
        return settings.steps * (1 + BACKWARD + compares) + once_more
    if kind == "OneShot":
        return 1
    return getattr(settings, "steps", 0) * getattr(settings, "rounds", 1)


def _gflop(name: str) -> float:
    return GFLOP.get(name, GFLOP["edm-cifar10-32x32-uncond-vp"]) if name else 0


def _classifier(cell: Cell) -> float:
    name = cell.section["classifier"]
    known = (key for key in ("wide_resnet50_2", "resnet152", "resnet50", "70") if key in name)
    return GFLOP[next(known, "WRN-28-10")]
