"""One unit of work, carried out: a pure function of the plan and its materials."""

from __future__ import annotations

import gc
import time
from collections import Counter
from collections.abc import Callable, Iterator, MutableSequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scoreopt_defense._foreign import as_it_was, contained, said
from scoreopt_defense.defended import DefendedModel
from scoreopt_defense.evaluation.chain import DRAWS, LEFT, Carried, Started
from scoreopt_defense.evaluation.judging import Judging, Verdict, judge
from scoreopt_defense.evaluation.plan import Materials, Plan, Unit
from scoreopt_defense.evaluation.seeding import placed, reseeded
from scoreopt_defense.noise import derive, seeded

__all__ = ["Outcome", "execute"]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of a unit.

    Attributes:
        predicted, margin: of each judged purification, shape ``(B, purifications)``; see
            :class:`~scoreopt_defense.evaluation.judging.Verdict`.
        broken: by a criterion that says so itself, shape ``(B,)``.
        images: the adversarial images, shape ``(B, C, H, W)``; of an image that was not tried, what
            the suite had found before.
        tried: places of the images that the attack met, whose figures these are; None means all.
        measured: by name, a value an image that was tried.
        calls: rows that the ``denoiser`` and the ``classifier`` saw, attack and judging together;
            a module that is no defended model counts as a classifier.
        parts: how many pieces it was carried out in; above 1 where memory ran out.
        error: of a unit that failed, which then has no figures.
    """

    unit: Unit
    predicted: np.ndarray | None = None
    margin: np.ndarray | None = None
    broken: np.ndarray | None = None
    images: np.ndarray | None = None
    tried: np.ndarray | None = None
    measured: dict[str, list[float]] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    parts: int = 1
    seconds: float = 0.0
    error: str | None = None


def execute(
    unit: Unit,
    plan: Plan,
    materials: Materials,
    before: Carried | None = None,
    seen: MutableSequence[int] | None = None,
) -> Outcome:
    """Attack and judge; an exception in either is the unit's recorded failure.

    Each of the two meets the model and the attack as they were given, and leaves them so.

    Args:
        before: of a suite's stage, what it begins from; without it the clean images.
        seen: of each of the plan's units, rows that the networks have seen so far; this one's
            place is kept up to date, for whoever looks meanwhile.
    """
    started = time.perf_counter()
    model, attack = _hookable(materials.defences[unit.defence]), materials.attacks[unit.attack]
    rows = slice(*unit.images)
    # at an address of its own, as in any other process
    x, y = (placed(model, given[rows].clone()) for given in (materials.x, materials.y))
    outcome = Outcome(unit)
    start = x if before is None else torch.from_numpy(before.images).to(x)
    if before is not None and not getattr(attack, "takes_all", False):
        outcome = replace(outcome, tried=before.standing.nonzero()[0], images=before.images)
        kept = placed(model, torch.from_numpy(outcome.tried))
        x, y, start = x[kept], y[kept], start[kept]
        if not len(x):
            return replace(outcome, seconds=time.perf_counter() - started)
    calls: Counter[str] = Counter()

    def counted() -> None:
        if seen is not None:
            seen[unit.index] = calls.total()

    counted()
    try:
        with contained(), _threads(plan.threads), _counted(model, calls, counted):
            parts = _within_memory(
                lambda seed, *part: _attack_and_judge(
                    attack, model, *part, judging=materials.judging, seed=seed,
                    confirm=plan.confirm(unit),
                ),
                plan.seed_of(unit), x, y, start,
            )  # fmt: skip
        outcome = _put_together(outcome, parts)
    except Exception as error:  # whatever a library raises; the run goes on
        outcome = Outcome(unit, tried=outcome.tried, error=said(error))
    return replace(outcome, calls=dict(calls), seconds=time.perf_counter() - started)


@dataclass(frozen=True, eq=False)
class _Part:
    """What came of as many images as fitted into memory."""

    predicted: Tensor
    margin: Tensor
    broken: Tensor | None
    images: Tensor
    measured: dict[str, Tensor]


def _attack_and_judge(
    attack: Any, model: nn.Module, x: Tensor, y: Tensor, start: Tensor, *, judging: Judging,
    seed: int, confirm: int,
) -> _Part:  # fmt: skip
    measured = {}
    if hasattr(attack, "measure"):
        with as_it_was(model, attack), seeded(derive(seed, 3)):
            measured = attack.measure(reseeded(model, derive(seed, 3)), x.clone(), y.clone())
    with as_it_was(model, attack):
        started = Started(attack, start) if getattr(attack, "takes_start", False) else attack
        attacked, broken = judging.criterion.run(started, model, x, y, derive(seed, 0))
    with as_it_was(model):
        verdict = judge(
            model, attacked, y, purifications=judging.purifications, seed=derive(seed, 1)
        )
        if confirm and broken is None:
            measured |= _left(model, attacked, y, verdict, confirm, derive(seed, 4))
    return _Part(verdict.predicted, verdict.margin, broken, attacked, measured)


def _left(
    model: nn.Module, x: Tensor, y: Tensor, verdict: Verdict, confirm: int, seed: int
) -> dict[str, Tensor]:
    """Share of right purifications, of more of them where all that were judged are wrong."""
    right = verdict.predicted == y.cpu()[:, None]
    left, draws = right.float().mean(1), torch.full((len(x),), float(right.shape[1]))
    if wrong := (~right.any(1)).nonzero().flatten().tolist():
        again = judge(model, x[wrong], y[wrong], purifications=confirm, seed=seed)
        found = again.predicted == y[wrong].cpu()[:, None]
        draws[wrong] += confirm
        left[wrong] = found.sum(1) / draws[wrong]
    return {LEFT: left, DRAWS: draws}


def _put_together(outcome: Outcome, parts: list[_Part]) -> Outcome:
    found: dict[str, Any] = {
        name: _joined([getattr(part, name) for part in parts])
        for name in ("predicted", "margin", "broken", "images")
    }
    if outcome.images is not None and outcome.tried is not None:
        everyone = outcome.images.copy()
        everyone[outcome.tried] = found["images"]
        found["images"] = everyone
    measured = {
        name: torch.cat([part.measured[name].cpu().float() for part in parts]).tolist()
        for name in parts[0].measured
    }
    return replace(outcome, **found, measured=measured, parts=len(parts))


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


class _Hookable(nn.Module):
    """Stands for a TorchScript module, which takes no hooks."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.training = getattr(net, "training", False)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def _hookable(model: nn.Module) -> nn.Module:
    if isinstance(model, torch.jit.ScriptModule):
        return _Hookable(model)
    if isinstance(model, DefendedModel) and isinstance(model.classifier, torch.jit.ScriptModule):
        return DefendedModel(_Hookable(model.classifier), model.purifier, votes=model.votes)
    return model


@contextmanager
def _counted(model: nn.Module, calls: Counter[str], counted: Callable[[], None]) -> Iterator[None]:
    """Count the rows that the networks see."""
    networks: dict[str, nn.Module] = {"classifier": model}
    if isinstance(model, DefendedModel):
        networks = {"classifier": model.classifier, "denoiser": model.purifier.denoiser}

    def counter(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def count(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls[name] += len((*args, *kwargs.values())[0])
            counted()

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
