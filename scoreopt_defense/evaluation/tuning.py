"""Settings for a new network, by the rule that the presets of those that ship were chosen by."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from scoreopt_defense._checks import check_sigma
from scoreopt_defense.attacks import attack
from scoreopt_defense.defended import DefendedModel
from scoreopt_defense.denoisers import Denoiser, of_pipeline
from scoreopt_defense.evaluation.evaluate import evaluate
from scoreopt_defense.evaluation.given import source_of
from scoreopt_defense.evaluation.judging import Judging
from scoreopt_defense.evaluation.judging.threat_model import usual_eps
from scoreopt_defense.evaluation.plan import CLEAN
from scoreopt_defense.evaluation.record.results import Result
from scoreopt_defense.evaluation.run.progress import Progress
from scoreopt_defense.evaluation.run.progress import progress as usual_progress
from scoreopt_defense.purifiers import Purifier, ScoreOpt

__all__ = ["TRANSFER", "grid", "tune"]

TRANSFER = "transfer PGD-40"
"""The attack's name in the result."""
# What the presets of the networks that ship were chosen among (benchmarks/models/tune_presets.py),
# of both together; 10 steps were not tried of ScoreOpt-N.
_SIGMA = {"N": (0.15, 0.25, 0.5, 0.75, 1.0), "O": ((0.15, 0.35), (0.4, 0.6), (0.5, 1.0))}
_LR = {"N": (0.02, 0.05, 0.1), "O": (0.02, 0.04, 0.1, 0.2)}
_STEPS = (5, 10)
Kind = TypeVar("Kind", bound=ScoreOpt)


def tune(
    candidates: Mapping[str, Purifier],
    classifier: nn.Module,
    images: Any,
    *,
    norm: str = "linf",
    eps: float | None = None,
    out: str | Path | None = None,
    batch: int = 32,
    seed: int = 0,
    workers: int = 1,
    progress: Progress | bool | None = None,
) -> tuple[str, Result]:
    """The best of some purifiers: of the highest mean of clean and transfer accuracy.

    Each is judged by one purification of each image, unattacked and under PGD of 40 steps on the
    classifier alone (appendix B of the paper). What a white box leaves has no say: it depends on
    how well a gradient serves a setting, and choosing by it would choose gradient masking.

    Args:
        candidates: by name; of equals the first is taken.
        classifier: from images in [0, 1] to logits, in eval mode.
        images: as of :func:`~scoreopt_defense.evaluation.evaluate`. Neither network may have been
            trained on them, and the result is to be judged on others.
        norm, eps: of the attack: ``"linf"`` or ``"l2"``, and by default what is usual of such
            images.
        out, batch, seed, workers, progress: as of :func:`~scoreopt_defense.evaluation.evaluate`.

    Returns:
        The best one's name, and what each candidate was found to be.

    Raises:
        TypeError, ValueError: as there, and of no candidates.
        RuntimeError: if none of them has both figures; it says the first failure.
    """
    if not candidates:
        raise ValueError("candidates must be at least one, got none")
    images = source_of(images)
    if isinstance(progress, bool):
        progress = usual_progress() if progress else None
    if progress:
        count = 2 * len(candidates) * len(images)
        progress.note(f"{len(candidates)} settings: {count:,} purifications of an image")
    bound = usual_eps(norm, images.shape) if eps is None else eps
    tried = evaluate(
        {name: DefendedModel(classifier, purifier) for name, purifier in candidates.items()},
        images, {TRANSFER: attack(f"transfer-pgd-{norm}", eps=bound)}, out=out, name="tuning",
        batch=batch, seed=seed, judging=Judging(purifications=1), checks=False, keep="none",
        workers=workers, progress=progress,
    )  # fmt: skip
    means: dict[str, float] = {}
    for name in candidates:
        clean, attacked = (tried.cell(name, column).accuracy for column in (CLEAN, TRANSFER))
        if clean and attacked:
            means[name] = (clean.value + attacked.value) / 2
    if not means:
        raise RuntimeError(f"nothing could be judged: {tried.failures[0].error}")
    return max(means, key=lambda name: means[name]), tried


def grid(
    kind: type[Kind],
    denoiser: Denoiser | Any,
    variant: str,
    sigma: Iterable[Any] | None,
    lr: Iterable[float] | None,
    steps: Iterable[int] | None,
    settings: Mapping[str, Any],
) -> dict[str, Kind]:
    """ScoreOpt at each of these settings, by their names, those of fewest steps first.

    Args:
        sigma, lr, steps: None: the usual ones of the variant, of noise levels those that the
            denoiser was trained for.
    """
    denoiser, wanted = of_pipeline(denoiser), kind.Settings.of(variant=variant, **settings)
    if sigma is None:
        low, high = denoiser.sigma_range
        ends = ((levels, check_sigma(levels)) for levels in _SIGMA[variant])
        sigma = [levels for levels, (least, most) in ends if low <= least and most <= high]
        if not sigma:
            raise ValueError(
                f"sigma must be said for a denoiser that is valid within [{low:g}, {high:g}]: "
                f"none of {_SIGMA[variant]} is"
            )
    for setting, tried in {"sigma": sigma, "lr": lr, "steps": steps}.items():
        if tried is not None and not isinstance(tried, Iterable):
            raise ValueError(f"{setting} must be several to try, as in [{tried!r}], got {tried!r}")
    points = itertools.product(steps or _STEPS, sigma, lr or _LR[variant])
    return {
        f"sigma {' to '.join(map(str, s)) if isinstance(s, tuple) else s}, lr {rate}, steps {n}":
            kind(denoiser, wanted, sigma=s, lr=rate, steps=n)
        for n, s, rate in points
    }  # fmt: skip
