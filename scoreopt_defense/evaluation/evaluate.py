"""Attack and judge: any module from images in [0, 1] to logits, by any library's attacks."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from scoreopt_defense._checks import check_choice, check_count, check_flag
from scoreopt_defense.data import Items, Source, Tensors
from scoreopt_defense.defended import DefendedModel
from scoreopt_defense.evaluation import named
from scoreopt_defense.evaluation.judging import Judging
from scoreopt_defense.evaluation.judging.asking import check_defence
from scoreopt_defense.evaluation.judging.threat_model import check_attack
from scoreopt_defense.evaluation.plan import CLEAN, Materials, Plan
from scoreopt_defense.evaluation.plan.behaviour import is_blind
from scoreopt_defense.evaluation.plan.fingerprint import of_attack
from scoreopt_defense.evaluation.plan.materials import ASKED
from scoreopt_defense.evaluation.plan.tasks import Attack, Clean, Suite
from scoreopt_defense.evaluation.record.lock import Held
from scoreopt_defense.evaluation.record.recognised import changed
from scoreopt_defense.evaluation.record.results import Result
from scoreopt_defense.evaluation.record.store import Store
from scoreopt_defense.evaluation.run.cluster import cluster as on_cluster
from scoreopt_defense.evaluation.run.keeping import KEEP
from scoreopt_defense.evaluation.run.progress import Progress
from scoreopt_defense.evaluation.run.scheduler import run
from scoreopt_defense.evaluation.run.workers import in_process, processes
from scoreopt_defense.evaluation.suite.controls import CHECKS, Controls

__all__ = ["evaluate", "evaluate_plan", "materials_of"]

_LOOK = 1.0  # seconds, after which it is looked whether the record is free


def evaluate(
    defences: nn.Module | Mapping[str, nn.Module],
    images: tuple[Tensor, Tensor] | Any,
    attacks: Mapping[str, Any] | Iterable[Any] = (),
    *,
    out: str | Path | None = None,
    name: str = "evaluation",
    trials: int = 1,
    batch: int = 32,
    seed: int = 0,
    judging: Judging | None = None,
    suites: Mapping[str, Suite] | Iterable[str] | str = (),
    checks: bool = True,
    keep: str = "all",
    workers: int = 1,
    cluster: str | None = None,
    threads: int = 1,
    retry_failed: bool = False,
    wait: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Attack each defence, judge it by fresh purifications, and record that as it goes.

    The clean images come first, as an attack of the name ``"clean"``. Figures depend on the
    arguments and on what a record has, not on the order, the number of workers, or how often a run
    was stopped. The caller's networks and attacks are worked with, and put back as they were after
    each attack and each judging. Before the first, each defence is asked about a few images: what
    it answers to two fixed ones is part of its key.

    Args:
        defences: modules from images in [0, 1] to logits, in eval mode, by name; or one of them.
            Randomised or not, a :class:`~scoreopt_defense.DefendedModel` or not.
        images: ``(x, y)`` or :class:`~scoreopt_defense.data.Images`: ``x`` of shape
            ``(n, C, H, W)``, float32, in [0, 1]; or what is read where it is worked on: a
            :class:`~scoreopt_defense.data.Source` or a ``torch.utils.data.Dataset``.
        attacks: by name; or a list. Each is an object with ``run(model, x, y)``, which returns
            images, and ``as_dict()``, or a name of :data:`scoreopt_defense.attacks.ATTACKS`. It is
            held to its attributes ``norm`` (``"linf"``, ``"l2"``, ``"l1"``) and ``eps``; without
            both it may return any image.
        out: folder of the record. What it has is not done again: a run goes on where it was
            stopped, another attack, defence, image or trial costs itself alone, and other runs may
            have the same record. By default the record is kept in memory.
        name: what the run goes by among those of the record.
        trials: repetitions with other seeds.
        batch: images a unit of work. Results depend on it, within their intervals.
        seed: of everything random.
        judging: see :class:`Judging`.
        suites: by name, such as ``{"adaptive": Adaptive(steps=10)}``; or names of
            :data:`~scoreopt_defense.evaluation.named.SUITES` alone, at an eps that is usual for
            such images (0.3 for MNIST's): ``"quick"`` or ``"adaptive"``, the strongest few attacks
            or all that there are, the worst case over them, and a checklist.
        checks: run what a checklist of the other attacks rests on beside them, on the first 32
            images: the defence's gradients, noise of each attack's size, and an attack without a
            bound. A defence that masks its gradients fails them.
        keep: adversarial images that stay when the run is finished: ``"all"``, ``"none"``, or
            ``"worst"``: of each image the one of the attack that left least, and a suite's worst.
        workers: processes, which share the memory of the networks' weights; networks and attacks
            must be such as can be pickled. 1 is this process.
        cluster: address of a Dask scheduler, in place of ``workers``.
        threads: of each worker, 1024 at most; the last bits of sums depend on it.
        retry_failed: do again what ``out`` records as failed, and what began from it.
        wait: until no other process writes the record; without it that is an error.
        progress: told of each unit; silent by default.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is allowed, such as a defence
            that gives no logits, a label of no class, or an attack that would be held to nothing.
        StoreError: if the record cannot be read or written, or another process is writing it.
        ConnectionError: if the cluster's scheduler does not answer, or is lost.
        Stopped: after Ctrl-C, when the units in flight are recorded.

    Example:
        >>> class Linear(nn.Module):
        ...     def forward(self, x):
        ...         return torch.stack([x.mean((1, 2, 3)), 0.5 + 0 * x.mean((1, 2, 3))], 1)
        >>> x = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.9]).reshape(5, 1, 1, 1)
        >>> print(evaluate(Linear(), (x, torch.ones(5).long())))
                clean              weakest
        Linear  80.0 [28.4, 99.5]  not attacked
    """
    materials = materials_of(defences, images, attacks, judging or Judging(), suites, checks=checks)
    plan = Plan.of(materials, trials=trials, batch=batch, seed=seed, threads=threads)
    return evaluate_plan(
        plan, materials, out=out, name=name, keep=keep, workers=workers, cluster=cluster,
        retry_failed=retry_failed, wait=wait, progress=progress,
    )  # fmt: skip


def evaluate_plan(
    plan: Plan,
    materials: Materials,
    *,
    out: str | Path | None = None,
    name: str = "evaluation",
    keep: str = "all",
    workers: int = 1,
    cluster: str | None = None,
    retry_failed: bool = False,
    wait: bool = False,
    progress: Progress | None = None,
) -> Result:
    """As :func:`evaluate`, of a plan and its materials."""
    check_count("workers", workers)
    check_choice("keep", keep, KEEP)
    if cluster is not None:
        crew = on_cluster(materials, plan.threads, cluster)
    elif workers > 1:
        crew = processes(materials, plan.threads, workers)
    else:
        crew = in_process(materials, plan.threads)
    progress = progress or Progress()
    store = _opened(out, wait, progress)
    try:
        before = store.plan(name) if name in store.views() else None
        plan = store.adopt(plan, name)
        for line in changed(before, plan) if before else ():
            progress.note(line)
        for label, defence in plan.defences.items():
            if is_blind(defence.behaviour):
                progress.note(f"{label} does not answer alike twice, or not at all: that it was "
                              "edited would not be seen; then forget its results")  # fmt: skip
        if retry_failed:
            store.forget([r.key for r in store.read({u.key for u in plan.units()}) if r.error])
        run(plan, materials, store, crew, progress, keep=keep, view=name)
    except BaseException:
        store.close()
        raise
    store.unlock()
    return Result(store, plan)


def _opened(out: str | Path | None, wait: bool, progress: Progress) -> Store:
    """The record, as soon as nobody else writes it."""
    said = False
    while True:
        try:
            return Store(out, writing=True)
        except Held as held:
            if not wait:
                raise
            if not said:
                progress.note(f"waiting: {held}")
            said = True
            time.sleep(_LOOK)


def materials_of(
    defences: nn.Module | Mapping[str, nn.Module],
    images: tuple[Tensor, Tensor] | Any,
    attacks: Mapping[str, Any] | Iterable[Any],
    judging: Judging,
    suites: Mapping[str, Suite] | Iterable[str] | str = (),
    *,
    checks: bool = False,
) -> Materials:
    """The arguments of :func:`evaluate`, checked and by name."""
    check_flag("checks", checks)
    if not isinstance(judging, Judging):
        raise TypeError(f"judging must be a Judging, got {judging!r}")
    if isinstance(defences, nn.Module):
        defences = {type(defences).__name__: defences}
    for name, model in defences.items():
        if not isinstance(model, nn.Module):
            raise TypeError(f"defence {name!r} must be a torch module, got {type(model).__name__}")
        trains = getattr(model, "training", False)
        if trains and not isinstance(model, DefendedModel):  # which has warned of it
            warnings.warn(
                f"the defence {name!r} is in training mode, and is evaluated in it: call its "
                "eval() first unless that is meant",
                stacklevel=3,
            )
    alone = _by_name(attacks)
    tasks = {
        attack: dict.fromkeys(defences, Attack(attack=what))
        for attack, what in ({CLEAN: Clean()} | alone).items()
    }
    materials = Materials(dict(defences), tasks, _source(images), judging)
    some, _ = materials.images.batch(0, ASKED)
    for name, model in defences.items():
        check_defence(name, model, some, torch.from_numpy(materials.images.labels))
    for name, suite in _suites(suites, materials.images.shape).items():
        materials = materials.with_suite(name, suite, what=f"the suite {name!r}")
    if checks and alone:
        materials = materials.with_suite(CHECKS, Controls(alone), what="the checks", listed=False)
    return materials


def _source(images: Any) -> Source:
    """Of a source, of a pair of tensors, arrays or lists, or of a data set."""
    if isinstance(images, Source):
        return images
    if isinstance(images, Dataset) and not isinstance(images, IterableDataset):
        return Items(images)
    pair = isinstance(images, (tuple, list)) and len(images) >= 2
    sample = images[0] if pair else None
    if not pair or (
        isinstance(sample, (tuple, list)) and len(sample) == 2 and not np.ndim(sample[1])
    ):
        raise TypeError(
            "images must be (x, y), images and labels, a torch Dataset, or a Source of "
            f"scoreopt_defense.data, got {type(images).__name__}; of a list of samples: "
            "next(iter(torch.utils.data.DataLoader(samples, batch_size=64)))"
        )
    x, y = (torch.as_tensor(part) for part in images[:2])
    return Tensors(x, y)


def _suites(
    suites: Mapping[str, Suite] | Iterable[str] | str, shape: Sequence[int]
) -> dict[str, Suite]:
    if isinstance(suites, str):
        suites = [suites]
    if not isinstance(suites, Mapping):
        suites = {name: named.suite(name, shape) for name in suites}
    if "" in suites:
        raise ValueError("a suite must have a name, got ''")
    if CHECKS in suites:
        raise ValueError(f"no suite may be called {CHECKS!r}, as the checks of other attacks are")
    for name, suite in suites.items():
        if not isinstance(suite, Suite):
            raise TypeError(f"suite {name!r} must be a Suite, got {type(suite).__name__}")
    return dict(suites)


def _by_name(attacks: Mapping[str, Any] | Iterable[Any]) -> dict[str, Any]:
    if isinstance(attacks, str):
        attacks = [attacks]
    if not isinstance(attacks, Mapping):
        pairs = [(a if isinstance(a, str) else str(getattr(a, "name", type(a).__name__)), a)
                 for a in attacks]  # fmt: skip
        attacks = dict(pairs)
        if len(attacks) < len(pairs):
            raise ValueError(
                f"attacks must have names of their own: pass a dictionary, got "
                f"{[name for name, _ in pairs]}"
            )
    if CLEAN in attacks:
        raise ValueError(f"no attack may be called {CLEAN!r}: the clean images are always judged")
    found = {name: named.attack(a) if isinstance(a, str) else a for name, a in attacks.items()}
    for name, attack in found.items():
        check_attack(f"attack {name!r}", attack)
    _check_told_apart(found)
    return found


def _check_told_apart(attacks: Mapping[str, Any]) -> None:
    """Two attacks that say the same of themselves would have one result."""
    seen: dict[str, tuple[str, Any]] = {}
    for name, attack in attacks.items():
        about = json.dumps(of_attack(attack), sort_keys=True)
        other, earlier = seen.setdefault(about, (name, attack))
        if earlier is not attack and earlier != attack:
            raise ValueError(
                f"attacks {other!r} and {name!r} say the same of themselves, and would have one "
                "result: their as_dict() must tell them apart"
            )
