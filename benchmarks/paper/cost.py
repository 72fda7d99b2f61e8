"""What a table costs at the paper's scale: floating-point operations, counted, and GPU hours."""

from __future__ import annotations

from fractions import Fraction
from functools import cache
from typing import Any

from benchmarks.common.table_text import results
from benchmarks.paper.cells import Cell, cells, settings_of, specification
from benchmarks.paper.speed import gpu_hours, overheads
from scoreopt_defense.attacks import Attack, attack
from scoreopt_defense.purifiers import KINDS

#: The gradient to a network's input over its forward pass, in operations: of each that
#: ``speed.py paper`` counts it is 1.00 to 1.01, as weights are given none.
BACKWARD = 1


@cache
def _counted() -> dict[str, float]:
    """Operations of one pass of one image, in 1e9, by network: ``speed.py paper``."""
    rows = results("speed_paper")["rows"]
    return {row["network"]: row["forward"] / 1e9 for row in rows if "network" in row}


def hours(table: str) -> float:
    """Hours of an H100 for a table at the paper's scale, as ``speed.py paper`` reckons them."""
    runs = {cell.run: cell for cell in cells(table, "paper")}.values()
    overhead = max(overheads().values(), default=1.0)
    return gpu_hours(sum(_operations(cell) for cell in runs), overhead)


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
    denoiser = _denoiser(cell.section.get("denoiser", ""))
    classifier = _classifier(cell.section["classifier"])
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
    if kind not in KINDS:  # none, or a function's, which has a network of its own
        return 0
    settings = settings_of(section)
    if kind == "ScoreOpt":
        compares = getattr(settings.loss, "compares", False)
        once_more = settings.variant == "N"
        return settings.steps * (1 + BACKWARD + compares) + once_more
    if kind == "OneShot":
        return 1
    return getattr(settings, "steps", 0) * getattr(settings, "rounds", 1)


def _denoiser(name: str) -> float:
    """Of one pass; CIFAR-100's is of the architecture of CIFAR-10's."""
    imagenet = name == "guided-diffusion-imagenet-256-uncond"
    return _counted()["guided diffusion, ImageNet" if imagenet else "EDM, CIFAR-10"] if name else 0


def _classifier(name: str) -> float:
    """Of one pass; those that are not named here are about as large as WRN-28-10."""
    known = {
        "wide_resnet50_2": "WRN-50-2", "resnet152": "ResNet-152", "resnet50": "ResNet-50",
        "70": "WRN-70-16",
    }  # fmt: skip
    return _counted()[next((net for key, net in known.items() if key in name), "WRN-28-10")]
