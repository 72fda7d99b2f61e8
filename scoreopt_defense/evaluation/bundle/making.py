"""Bundles out of a run's record, or of images that somebody else's attack found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from scoreopt_defense._checks import check_choice
from scoreopt_defense.data import Source
from scoreopt_defense.evaluation.bundle.asking import check_inside, judged, unforeseen
from scoreopt_defense.evaluation.bundle.file import Bundle
from scoreopt_defense.evaluation.plan import CLEAN
from scoreopt_defense.evaluation.plan.behaviour import behaviour
from scoreopt_defense.evaluation.plan.environment import machine, versions
from scoreopt_defense.evaluation.plan.fingerprint import described, digest
from scoreopt_defense.evaluation.plan.parts import Defence
from scoreopt_defense.evaluation.record.results import Result
from scoreopt_defense.evaluation.suite.verdict import verdict

__all__ = ["chosen", "of_images", "of_run"]


def of_run(
    result: Result,
    *,
    defence: str | None = None,
    norm: str | None = None,
    eps: float | None = None,
) -> Bundle:
    """What a run claims of a defence within a ball, out of its record alone.

    Of each image the worst that the attacks of that ball and their trials found, of which a suite's
    sum is one. Where there are several, one half of the judged purifications chooses and the other
    half is what is claimed: chosen and judged on the same, the claim would be too low.

    Args:
        defence: its name; by default the only one.
        norm, eps: of the ball; by default the only one that the run's attacks and suites have.

    Raises:
        ValueError: if there are several and none is said, or the record lacks an image.
        StoreError: if its images cannot be read.
    """
    plan = result.plan
    defence = _only("defence", defence, list(plan.defences))
    balls: dict[tuple[str, float], list[str]] = {}
    for name in plan.columns:
        task = plan.tasks[name].get(defence)
        if name != CLEAN and task is not None and task.bound and result.was_run(defence, name):
            balls.setdefault((task.bound[0], task.bound[1]), []).append(name)
    wanted = [b for b in balls if norm in (None, b[0]) and (eps is None or abs(eps - b[1]) < 1e-9)]
    if len(wanted) != 1:
        said = [f"{n} {e:g} ({', '.join(of)})" for (n, e), of in balls.items()]
        raise ValueError(f"a bundle is of one ball: say its norm and eps, one of {said}")
    names = balls[wanted[0]]
    draws = plan.judging["purifications"]
    shape = (len(names) * plan.trials, plan.count, draws)
    predicted, lead = np.full(shape, -1), np.full(shape, np.nan)
    labels = np.full(plan.count, -1)
    for place, (name, trial) in enumerate((n, t) for n in names for t in range(plan.trials)):
        found = result.judged(defence, name)
        of = found.trials == trial
        at = found.images[of]
        predicted[place, at], lead[place, at] = found.predicted[of], found.lead[of]
        labels[at] = found.labels[of]
    if missing := np.isnan(lead).any(2).all(0).nonzero()[0].tolist():
        raise ValueError(f"{len(missing)} of {plan.count} images have no figure under "
                         f"{', '.join(names)}, such as image {missing[0]}")  # fmt: skip
    half = draws // 2 if len(lead) > 1 else 0
    worst = chosen(predicted[..., :half] == labels[:, None], lead[..., :half])
    every = np.arange(plan.count)
    images = np.empty(plan.images["shape"], dtype=np.float32)
    for place in np.unique(worst).tolist():
        of = every[worst == place]
        images[of] = result.adversarial(
            defence, names[place // plan.trials], place % plan.trials, of.tolist()
        )
    if lost := np.isnan(images).any((1, 2, 3)).sum():
        raise ValueError(f'the record lacks {lost} of {plan.count} images: with keep = "all" it '
                         "would have them")  # fmt: skip
    summary = plan.summary()
    by = Counter(names[place // plan.trials] for place in worst.tolist())
    return Bundle(
        defence=defence, fingerprint=plan.defences[defence], norm=wanted[0][0], eps=wanted[0][1],
        clean=plan.images["whole"], images=images, labels=labels,
        predicted=predicted[worst, every, half:],
        made={
            "by": by, "attacks": {n: t[defence].attack for n, t in plan.tasks.items()
                                  if defence in t},
            **{key: summary[key] for key in ("judging", "seed", "trials", "versions")},
            "verdict": verdict(result, defence),
            "plan": plan.hash, "machine": result.view.machine if result.view else None,
        },
    )  # fmt: skip


def of_images(
    model: nn.Module,
    images: Source,
    attacked: Tensor,
    *,
    defence: str,
    norm: str,
    eps: float,
    purifications: int = 32,
    batch: int = 32,
    seed: int | None = None,
    told: Callable[[int], object] = lambda _: None,
) -> Bundle:
    """Somebody's attacked images, judged by fresh purifications.

    Args:
        model: the defence, in eval mode.
        images: the clean ones, and their labels.
        attacked: of each of them, in this order, shape ``(n, C, H, W)``, in [0, 1].
        defence: what it is called.
        norm, eps: the ball around each clean image.
        purifications, batch, seed, told: as of
            :func:`~scoreopt_defense.evaluation.bundle.verify`.

    Raises:
        ValueError: if they are no such images, or leave their balls; naming one.
    """
    seed = unforeseen(seed)
    check_inside(images, attacked, norm=norm, eps=eps, what="the images")
    found = judged(
        model, attacked, images.labels, purifications=purifications, batch=batch, seed=seed,
        told=told,
    )  # fmt: skip
    return Bundle(
        defence=defence,
        fingerprint=Defence(
            about=described(model), versions=versions(model),
            behaviour=behaviour(model, images.shape, images.dtype),
        ),
        norm=norm, eps=eps, clean=digest(*images.digests()), images=attacked.numpy(),
        labels=images.labels, predicted=found.predicted.numpy(),
        made={"by": "images of a file", "seed": seed, "machine": machine()},
    )  # fmt: skip


def chosen(right: np.ndarray, lead: np.ndarray) -> np.ndarray:
    """Of each image the candidate with fewest right purifications, and then the lowest lead.

    Args:
        right: booleans, shape ``(candidates, n, k)``.
        lead: the true class's, same shape; NaN where a candidate is missing.

    Raises:
        ValueError: without a purification, if there are several.
    """
    if len(lead) == 1:
        return np.zeros(lead.shape[1], dtype=int)
    if not lead.shape[2]:
        raise ValueError("purifications must be at least 2, to choose by one and judge by another")
    there = ~np.isnan(lead).any(2)
    share = np.where(there, right.mean(2), np.inf)
    return np.where(share == share.min(0), lead.mean(2), np.inf).argmin(0)


def _only(what: str, said: str | None, known: Sequence[str]) -> Any:
    """The one that is said, or the only one there is."""
    if said is None and len(known) != 1:
        raise ValueError(f"say which {what}: one of {list(known)}")
    check_choice(what, said or known[0], known)
    return said or known[0]
