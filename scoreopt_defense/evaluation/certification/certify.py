"""Certify defences: units of the same record and the same workers as attacks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from scoreopt_defense._checks import check_choice
from scoreopt_defense.evaluation.certification.certificates import CERTIFY, NORMS, Certified
from scoreopt_defense.evaluation.certification.smoothing import Certification, own_level
from scoreopt_defense.evaluation.evaluate import evaluate_plan, materials_of
from scoreopt_defense.evaluation.judging import Judging
from scoreopt_defense.evaluation.plan import Plan
from scoreopt_defense.evaluation.plan.tasks import Probe
from scoreopt_defense.evaluation.run.progress import Progress
from scoreopt_defense.evaluation.run.progress import progress as usual_progress

__all__ = ["certify"]


def certify(
    model: nn.Module | Mapping[str, nn.Module],
    x: Any,
    y: Any = None,
    *,
    sigma: float | None = None,
    n0: int = 100,
    n: int = 10_000,
    alpha: float = 0.001,
    norm: str = "l2",
    until_pixels: float | None = None,
    max_batch: int = 256,
    out: str | Path | None = None,
    name: str = "certification",
    batch: int = 1,
    seed: int = 0,
    threads: int = 1,
    workers: int = 1,
    retry_failed: bool = False,
    wait: bool = False,
    progress: Progress | bool | None = None,
) -> Certified:
    r"""Prove within which radius a defence in Gaussian noise keeps its class.

    That is randomised smoothing: the smoothed classifier answers with the class that most copies
    :math:`x + \mathcal N(0, \sigma^2 I)` get, and is certified by Clopper and Pearson's bound on
    that class's probability. Where a purifier's output depends on x through such a copy alone, as
    :class:`OneShot`'s and :class:`DiffPure`'s, its own noise is that noise, and no second one is
    added; any other module, whatever stands inside, is given noised images. The noise is rounded to
    1/65280 of the range and summed in integers, so that no float's rounding tells the image.

    Args:
        model: a module from images in [0, 1] to logits, in eval mode; or several, by name.
        x, y: images, shape ``(B, C, H, W)``, in [0, 1], and labels, shape ``(B,)``; or ``x`` alone,
            whatever :func:`evaluate` takes as its images.
        sigma: noise level **on the [-1, 1] scale**, as everywhere in this library: 0.25 is 0.125 on
            [0, 1] pixels. That of the purifier, which may be left out, where it noises by itself.
        n0, n: noised copies that choose the class, and others that bound its probability; an image
            without a majority in sight stops earlier, at no cost in ``alpha``.
        alpha: probability, at most, with which an image's certificate is wrong.
        norm: ``"l2"``, ``"l1"`` or ``"linf"``: of the largest such ball in the certified l2 one.
        until_pixels: a radius of that norm, on [0, 1] pixels, at which an image stops: then each
            number of copies at which it is looked has an equal share of ``alpha``.
        max_batch: noised copies in a call.
        out, name, seed, threads, workers, retry_failed, wait, progress: as of :func:`evaluate`: a
            record that is there goes on.
        batch: images a unit of work.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is allowed; all else as
            :func:`evaluate`.

    Example:
        >>> import torch
        >>> class Bright(nn.Module):
        ...     def forward(self, x):
        ...         return torch.stack([0 * x.mean((1, 2, 3)), x.mean((1, 2, 3)) - 0.5], 1)
        >>> x = torch.tensor([0.25, 0.75]).reshape(2, 1, 1, 1)
        >>> found = certify(Bright().eval(), x, torch.tensor([0, 1]), sigma=0.5, n=1000)
        >>> [c.predicted for c in found.certificates()]
        [0, 1]
        >>> 0.1 < found.certificates()[0].radius_pixels < 0.25  # to 0.5
        True

    Reference:
        Cohen, Rosenfeld and Kolter, "Certified adversarial robustness via randomized smoothing",
        ICML 2019; Salman et al., "Denoised smoothing", NeurIPS 2020; Carlini et al., "(Certified!!)
        adversarial robustness for free!", ICLR 2023; Voráček and Hein, "Sound randomized smoothing
        in floating-point arithmetics", ICLR 2023.
    """
    check_choice("norm", norm, NORMS)
    images = x if y is None else (x, y)
    materials = materials_of(model, images, {}, Judging())
    if norm == "linf" and until_pixels is not None:
        until_pixels *= math.sqrt(math.prod(materials.images.shape))
    tasks = {
        defence: Probe(
            attack=Certification(
                sigma=_level(defence, of, sigma), n0=n0, n=n, alpha=alpha,
                until_pixels=until_pixels, max_batch=max_batch,
            )
        )
        for defence, of in materials.defences.items()
    }  # fmt: skip
    materials = replace(materials, tasks={**materials.tasks, CERTIFY: tasks})
    if isinstance(progress, bool):
        progress = usual_progress() if progress else None
    result = evaluate_plan(
        Plan.of(materials, batch=batch, seed=seed, threads=threads), materials, out=out, name=name,
        workers=workers, retry_failed=retry_failed, wait=wait, progress=progress,
    )  # fmt: skip
    return Certified(result, norm)


def _level(name: str, model: nn.Module, sigma: float | None) -> float:
    """The noise level, on the [-1, 1] scale, that a defence is certified under."""
    if any(getattr(part, "training", False) for part in model.modules()):
        raise ValueError(
            f"the defence {name!r} is in training mode, in which an answer may depend on the "
            "other images of a call, and nothing is proved: call its eval() first"
        )
    own = own_level(model)
    if own is None and sigma is None:
        raise ValueError(
            f"sigma must be given for the defence {name!r}: it has no noise of its own that alone "
            "stands between it and the image, as OneShot and DiffPure have of one sigma and one "
            "vote"
        )
    if own is not None and sigma not in (None, own):
        raise ValueError(
            f"sigma must be {own!r} or left out for the defence {name!r}, whose own noise is the "
            f"certificate's, got {sigma!r}: certify its replace(sigma={sigma!r}) instead"
        )
    return float(own if sigma is None else sigma)  # type: ignore[arg-type]
