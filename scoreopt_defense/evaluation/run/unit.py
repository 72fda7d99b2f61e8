"""One unit of work, carried out: an attack on one batch of images, and its judging."""

from __future__ import annotations

import gc
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scoreopt_defense._foreign import as_it_was, contained, said
from scoreopt_defense._text import where
from scoreopt_defense.attacks.protocols import Measuring, Nearest, Startable, can_start
from scoreopt_defense.attacks.wrappers import Around
from scoreopt_defense.defended import DefendedModel
from scoreopt_defense.evaluation.judging import Judging, judge
from scoreopt_defense.evaluation.judging.fresh import placed, reseeded
from scoreopt_defense.evaluation.plan import Materials, Unit
from scoreopt_defense.evaluation.plan.tasks import Judge, Task
from scoreopt_defense.evaluation.record.packing import digest_of, pack
from scoreopt_defense.evaluation.record.pixels import Packed
from scoreopt_defense.evaluation.record.rows import UnitResult
from scoreopt_defense.evaluation.suite.carry_over import Carried
from scoreopt_defense.noise import derive, seeded

__all__ = ["CLEAN_KEPT", "Outcome", "execute", "lost"]

#: Of how many images, the first ones, the record has those that nothing was done to: for its page.
CLEAN_KEPT = 256


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of a unit, and the adversarial images of what it tried.

    None of a unit that failed, and where nothing was done to images past the first few: they are
    those of the source.
    """

    unit: Unit
    result: UnitResult
    images: Packed | None = None


def execute(
    unit: Unit, materials: Materials, before: Carried | None = None, *, threads: int = 1
) -> Outcome:
    """Attack and judge; an exception in either is the unit's recorded failure.

    Each of the two meets the model and the attack as they were given, and leaves them so.

    Args:
        before: what it begins from; without it the clean images.
        threads: that it is computed with.
    """
    started = time.perf_counter()
    model = _hookable(materials.defences[unit.defence])
    todo = materials.tasks[unit.attack][unit.defence]
    x, y = (placed(model, read) for read in materials.images.batch(*unit.images))
    start, places = x, np.arange(unit.size)
    if before is not None:
        start = torch.from_numpy(before.images).to(x)
        if not isinstance(todo, Judge):
            places = before.standing.nonzero()[0]
            kept = placed(model, torch.from_numpy(places))
            x, y, start = x[kept], y[kept], start[kept]
    calls: Counter[str] = Counter()
    found: dict[str, Any] = {}
    images, error = None, None
    if len(x):
        try:
            with contained(), _threads(threads), _counted(model, calls):
                parts = _within_memory(
                    lambda seed, *part: _attack_and_judge(
                        todo, model, *part, judging=materials.judging, seed=seed
                    ),
                    unit.seed, x, y, start,
                )  # fmt: skip
            found, images = _put_together(parts)
            if unit.images[0] >= CLEAN_KEPT and before is None and _are_clean(parts, x):
                images = None
        except Exception as problem:  # whatever a library raises; the run goes on
            images, error = None, f"{said(problem)}{where(problem)}"
    result = _result(
        unit, materials.images.labels, places=places, error=error,
        adversarial=None if images is None else digest_of(images),
        denoiser_calls=calls["denoiser"], classifier_calls=calls["classifier"],
        seconds=time.perf_counter() - started, **found,
    )  # fmt: skip
    return Outcome(unit, result, None if images is None else _packed(places, images))


def _packed(places: np.ndarray, images: np.ndarray) -> Packed:
    return {place: (digest_of(image), pack(image)) for place, image in zip(places.tolist(), images)}


def lost(unit: Unit, labels: np.ndarray, error: str) -> Outcome:
    """Of a unit whose worker was lost."""
    return Outcome(unit, _result(unit, labels, places=np.arange(unit.size), error=error))


def _result(unit: Unit, labels: np.ndarray, *, places: np.ndarray, **found: Any) -> UnitResult:
    return UnitResult(
        key=unit.key, defence=unit.fingerprint, task=unit.content, needs=unit.needs,
        trial=unit.trial, first=unit.images[0], images=unit.size, places=places,
        labels=labels[slice(*unit.images)][places], finished=time.time(), **found,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Part:
    """What came of as many images as fitted into memory."""

    images: Tensor
    predicted: Tensor
    lead: Tensor
    broken: Tensor | None
    measured: dict[str, Tensor]
    left: Tensor | None = None
    draws: Tensor | None = None


def _attack_and_judge(
    task: Task, model: nn.Module, x: Tensor, y: Tensor, start: Tensor, *, judging: Judging,
    seed: int,
) -> _Part:  # fmt: skip
    attack, measured = task.attack, {}
    starts = can_start(attack)
    if isinstance(attack, Measuring):
        takes_start = starts and "start" in signature(attack.measure).parameters
        with as_it_was(model, attack), seeded(derive(seed, 3)):
            measured = attack.measure(
                reseeded(model, derive(seed, 3)), x.clone(), y.clone(),
                **({"start": start.clone()} if takes_start else {}),
            )  # fmt: skip
    with as_it_was(model, attack):
        started = Started(attack, start) if starts else attack
        attacked, broken = judging.criterion.run(started, model, x, y, derive(seed, 0))
        if isinstance(attack, Nearest):
            measured = measured | {"distance": attack.distances(x.clone(), attacked.clone())}
    with as_it_was(model):
        verdict = judge(
            model, attacked, y, purifications=judging.purifications, seed=derive(seed, 1)
        )
        part = _Part(attacked, verdict.predicted, verdict.lead, broken, measured)
        if task.confirm and broken is None:
            part = _confirmed(part, model, y, task.confirm, derive(seed, 4))
    return part


class Started:
    """An attack that begins from given images, as every other is called."""

    def __init__(self, attack: Startable, start: Tensor) -> None:
        self.attack, self.start = attack, start

    def run(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return self.attack.run(model, x, y, start=self.start.clone())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.attack, name)


def _confirmed(part: _Part, model: nn.Module, y: Tensor, confirm: int, seed: int) -> _Part:
    """With the share of right purifications, of more where all that were judged are wrong."""
    right = part.predicted == y.cpu()[:, None]
    left, draws = right.float().mean(1), torch.full((len(y),), right.shape[1])
    if wrong := (~right.any(1)).nonzero().flatten().tolist():
        again = judge(model, part.images[wrong], y[wrong], purifications=confirm, seed=seed)
        found = again.predicted == y[wrong].cpu()[:, None]
        draws[wrong] += confirm
        left[wrong] = found.sum(1) / draws[wrong]
    return replace(part, left=left, draws=draws)


def _put_together(parts: list[_Part]) -> tuple[dict[str, Any], np.ndarray]:
    """A result's figures, and its images."""
    names = ("predicted", "lead", "broken", "left", "draws")
    found: dict[str, Any] = {n: _joined([getattr(part, n) for part in parts]) for n in names}
    images = _joined([part.images for part in parts])
    assert images is not None
    measured = {
        name: torch.cat([part.measured[name].cpu().double() for part in parts]).tolist()
        for name in parts[0].measured
    }
    return found | {"measured": measured or None, "parts": len(parts)}, images


def _are_clean(parts: list[_Part], x: Tensor) -> bool:
    return torch.equal(torch.cat([part.images for part in parts]), x)


def _within_memory(work: Callable[..., _Part], seed: int, *tensors: Tensor) -> list[_Part]:
    """The work, in halves, and their halves, where it doesn't fit into memory."""
    size = len(tensors[0])
    try:
        return [work(seed, *tensors)]
    except (MemoryError, RuntimeError) as error:
        if size == 1 or not _is_out_of_memory(error):
            raise
    gc.collect()  # outside the handler, whose traceback holds the tensors
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    pieces = zip(*(tensor.split(-(-size // 2)) for tensor in tensors), strict=True)
    return [
        part
        for place, piece in enumerate(pieces)
        for part in _within_memory(work, derive(seed, 2, place), *piece)
    ]


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(
        sign in str(error) for sign in ("out of memory", "can't allocate memory")
    )


def _joined(parts: list[Tensor | None]) -> np.ndarray | None:
    tensors = [part.detach().cpu() for part in parts if part is not None]
    return torch.cat(tensors).numpy() if tensors else None


def _asked(model: nn.Module, x: Tensor) -> Tensor:
    return model(x)


def _hookable(model: nn.Module) -> nn.Module:
    """With another in the place of a TorchScript module, which takes no hooks."""
    if isinstance(model, torch.jit.ScriptModule):
        return Around(model, _asked)
    if isinstance(model, DefendedModel) and isinstance(model.classifier, torch.jit.ScriptModule):
        return DefendedModel(_hookable(model.classifier), model.purifier, votes=model.votes)
    return model


@contextmanager
def _counted(model: nn.Module, calls: Counter[str]) -> Iterator[None]:
    """Count the rows that the networks see."""
    networks: dict[str, nn.Module] = {"classifier": model}
    if isinstance(model, DefendedModel):
        networks = {"classifier": model.classifier, "denoiser": model.purifier.denoiser}

    def counter(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def count(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls[name] += len((*args, *kwargs.values())[0])

        return count

    with ExitStack() as hooks:
        for name, network in networks.items():
            hooks.callback(
                network.register_forward_pre_hook(counter(name), with_kwargs=True).remove
            )
        yield


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
