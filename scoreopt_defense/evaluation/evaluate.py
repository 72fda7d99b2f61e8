"""Attack and judge: any module from images in [0, 1] to logits, by any library's attacks."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from scoreopt_defense._checks import check_choice, check_count
from scoreopt_defense._memory import give_back_freed_memory
from scoreopt_defense.evaluation.given import materials_of
from scoreopt_defense.evaluation.judging import Judging
from scoreopt_defense.evaluation.plan import Materials, Plan
from scoreopt_defense.evaluation.plan.behaviour import is_blind
from scoreopt_defense.evaluation.plan.precision import in_words
from scoreopt_defense.evaluation.plan.tasks import Suite
from scoreopt_defense.evaluation.record.lock import Held
from scoreopt_defense.evaluation.record.recognised import changed
from scoreopt_defense.evaluation.record.results import Result
from scoreopt_defense.evaluation.record.store import RECORD, Store
from scoreopt_defense.evaluation.run.cluster import cluster as on_cluster
from scoreopt_defense.evaluation.run.keeping import KEEP
from scoreopt_defense.evaluation.run.progress import Progress
from scoreopt_defense.evaluation.run.progress import progress as usual_progress
from scoreopt_defense.evaluation.run.scheduler import run
from scoreopt_defense.evaluation.run.workers import in_process, processes

__all__ = ["evaluate", "evaluate_plan", "materials_of", "plan_before"]

_LOOK = 1.0  # seconds, after which it is looked whether the record is free


def evaluate(
    defences: nn.Module | Mapping[str, nn.Module],
    images: tuple[Tensor, Tensor] | Any,
    attacks: Mapping[str, Any] | Iterable[Any] | None = None,
    *,
    out: str | Path | None = None,
    name: str = "evaluation",
    trials: int = 1,
    batch: int = 32,
    seed: int = 0,
    judging: Judging | None = None,
    suites: Mapping[str, Suite] | Iterable[str] | str | None = None,
    checks: bool = True,
    keep: str = "all",
    workers: int = 1,
    cluster: str | None = None,
    threads: int = 1,
    retry_failed: bool = False,
    wait: bool = False,
    progress: Progress | bool | None = None,
) -> Result:
    """Attack each defence, judge it by fresh purifications, and record that as it goes.

    The clean images come first, as an attack of the name ``"clean"``. Where neither ``attacks`` nor
    ``suites`` is given, the suite ``"quick"`` follows; ``attacks={}`` is no attack.

    Figures depend on the arguments and on what a record has, not on the order, the number of
    workers, or how often a run was stopped. The caller's networks and attacks are worked with, and
    put back as they were after each attack and each judging. Before the first, each defence is
    asked about a few images: what it answers to two fixed ones is part of its key.

    Args:
        defences: modules from images in [0, 1] to logits, in eval mode, by name; or one of them.
            Randomised or not, a :class:`~scoreopt_defense.DefendedModel` or not.
        images: ``(x, y)`` or :class:`~scoreopt_defense.data.Images`: ``x`` of shape
            ``(n, C, H, W)`` or a list of images, float32, in [0, 1]; or what is read where it is
            worked on: a :class:`~scoreopt_defense.data.Source` or a ``torch.utils.data.Dataset``.
            Of a ``DataLoader`` it is the data set, in its order; one that draws or collates in
            another way than torch's own is read at once.
        attacks: by name; or a list; or a single one. Each is an object with
            ``run(model, x, y)``, which returns images, and ``as_dict()``, a name of
            :data:`scoreopt_defense.attacks.ATTACKS`, or an object of torchattacks, Foolbox or ART:
            see :func:`scoreopt_defense.attacks.adopt`. It is held to its attributes ``norm``
            (``"linf"``, ``"l2"``, ``"l1"``) and ``eps``; without both it may return any image.
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
            or all that there are, the worst case over them, and a checklist. Their attacks compute
            in bfloat16 where the hardware has it, unless they say ``Quick(autocast=None)``.
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
        progress: True for bars on a terminal, one of ``tqdm.auto`` in a notebook, and lines in a
            file; or an object that is told of each unit. Silent by default.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is allowed, such as a defence
            that gives no logits, a label of no class, or an attack that would be held to nothing.
        StoreError: if the record cannot be read or written, or another process is writing it.
        ConnectionError: if the cluster's scheduler does not answer, or is lost.
        Stopped: after Ctrl-C, when the units in flight are recorded.

    Example:
        >>> import torch
        >>> class Linear(nn.Module):
        ...     def forward(self, x):
        ...         return torch.stack([x.mean((1, 2, 3)), 0.5 + 0 * x.mean((1, 2, 3))], 1)
        >>> x = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.9]).reshape(5, 1, 1, 1)
        >>> print(evaluate(Linear(), (x, torch.ones(5).long()), attacks={}))
                clean              weakest
        Linear  80.0 [28.4, 99.5]  not attacked
    """
    if suites is None:
        suites = "quick" if attacks is None else ()
    attacks = () if attacks is None else attacks
    materials = materials_of(
        defences, images, attacks, judging or Judging(), suites, checks=checks,
        before=partial(plan_before, out, name),
    )  # fmt: skip
    if isinstance(progress, bool):
        progress = usual_progress() if progress else None
    plan = Plan.of(materials, trials=trials, batch=batch, seed=seed, threads=threads)
    if progress and (said := in_words(plan)):
        progress.note(said)
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
    if cluster is not None or workers > 1:  # what the plan took is theirs now
        give_back_freed_memory()
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
                progress.note(
                    f"{label} draws what no seed repeats, or fails if it is asked: that it was "
                    "edited would not be seen; then forget its results"
                )
        if retry_failed:
            store.forget([r.key for r in store.read({u.key for u in plan.units()}) if r.error])
        run(plan, materials, store, crew, progress, keep=keep, view=name)
    except BaseException:
        store.close()
        raise
    store.unlock()
    return Result(store, plan)


def plan_before(out: str | Path | None, name: str) -> Plan | None:
    """What a run of this name asked of the record before, if there is one.

    Raises:
        StoreError: if the record cannot be read.
    """
    if out is None or not (Path(out) / RECORD).exists():
        return None
    with Store(out) as store:
        return store.plan(name) if name in store.views() else None


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
