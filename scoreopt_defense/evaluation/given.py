"""What a call of :func:`evaluate` is given, checked and by name."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    default_collate,
    default_convert,
)

from scoreopt_defense._checks import check_flag
from scoreopt_defense.attacks.adopted import adopt, library_of
from scoreopt_defense.attacks.protocols import Attacking
from scoreopt_defense.data import Items, Source, Tensors
from scoreopt_defense.defended import DefendedModel
from scoreopt_defense.evaluation import named
from scoreopt_defense.evaluation.judging import Judging
from scoreopt_defense.evaluation.judging.asking import check_defence
from scoreopt_defense.evaluation.judging.threat_model import check_attack
from scoreopt_defense.evaluation.plan import CLEAN, Materials, Plan
from scoreopt_defense.evaluation.plan.fingerprint import of_attack
from scoreopt_defense.evaluation.plan.materials import ASKED
from scoreopt_defense.evaluation.plan.precision import settled
from scoreopt_defense.evaluation.plan.tasks import Attack, Clean, Suite
from scoreopt_defense.evaluation.suite.controls import CHECKS, Controls
from scoreopt_defense.noise import seeded

__all__ = ["materials_of", "source_of"]


def materials_of(
    defences: nn.Module | Mapping[str, nn.Module],
    images: tuple[Tensor, Tensor] | Any,
    attacks: Mapping[str, Any] | Iterable[Any],
    judging: Judging,
    suites: Mapping[str, Suite] | Iterable[str] | str = (),
    *,
    checks: bool = False,
    before: Callable[[], Plan | None] = lambda: None,
) -> Materials:
    """The arguments of :func:`evaluate`, checked and by name.

    Args:
        before: the plan that the run goes on with; see
            :func:`~scoreopt_defense.evaluation.plan.precision.settled`.
    """
    check_flag("checks", checks)
    if not isinstance(judging, Judging):
        raise TypeError(f"judging must be a Judging, got {judging!r}")
    if isinstance(defences, nn.Module):
        defences = {type(defences).__name__: defences}
    if not isinstance(defences, Mapping):
        raise TypeError(
            "defences must be a module, or a mapping of names to modules, got "
            f"{type(defences).__name__}; images come second"
        )
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
    materials = Materials(dict(defences), tasks, source_of(images), judging)
    some, _ = materials.images.batch(0, ASKED)
    for name, model in defences.items():
        check_defence(name, model, some, torch.from_numpy(materials.images.labels))
    for name, suite in _suites(suites).items():
        materials = materials.with_suite(name, suite, what=f"the suite {name!r}")
    if checks and alone:
        materials = materials.with_suite(CHECKS, Controls(alone), what="the checks", listed=False)
    return settled(materials, before)


def source_of(images: Any) -> Source:
    """Of a source, of a pair of tensors, arrays or lists, or of a data set."""
    if isinstance(images, Source):
        return images
    if isinstance(images, DataLoader):
        images = _loaded(images)
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
    x, y = images[:2]
    if isinstance(x, (tuple, list)) and x and all(isinstance(one, Tensor) for one in x):
        shapes = sorted({tuple(one.shape) for one in x})
        if len(shapes) > 1:
            raise ValueError(f"images of a list must have one shape, got {shapes}")
        x = torch.stack(list(x))
    return Tensors(torch.as_tensor(x), torch.as_tensor(y))


def _loaded(loader: DataLoader[Any]) -> Any:
    """Its data set, if it hands on all of that; else what it hands on, images and labels."""
    plain = (SequentialSampler, RandomSampler)
    if (
        isinstance(loader.sampler, plain)
        and len(loader.sampler) == len(loader.dataset)  # type: ignore[arg-type]
        and loader.collate_fn in (default_collate, default_convert)
    ):
        return loader.dataset
    with seeded(0):  # which it would draw its own seed from
        batches = list(loader)
    return [torch.cat([torch.as_tensor(batch[part]) for batch in batches]) for part in (0, 1)]


def _suites(suites: Mapping[str, Suite] | Iterable[str] | str) -> dict[str, Suite]:
    if isinstance(suites, str):
        suites = [suites]
    if not isinstance(suites, Mapping):
        suites = {name: named.suite(name) for name in suites}
    if "" in suites:
        raise ValueError("a suite must have a name, got ''")
    if CHECKS in suites:
        raise ValueError(f"no suite may be called {CHECKS!r}, as the checks of other attacks are")
    for name, suite in suites.items():
        if not isinstance(suite, Suite):
            raise TypeError(f"suite {name!r} must be a Suite, got {type(suite).__name__}")
    return dict(suites)


def _by_name(attacks: Mapping[str, Any] | Iterable[Any]) -> dict[str, Any]:
    if isinstance(attacks, str) or not isinstance(attacks, Iterable):
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
    found = {name: _attack(a) for name, a in attacks.items()}
    for name, attack in found.items():
        check_attack(f"attack {name!r}", attack)
    _check_told_apart(found)
    return found


def _attack(given: Any) -> Any:
    if isinstance(given, str):
        return named.attack(given)
    return adopt(given) if library_of(given) and not isinstance(given, Attacking) else given


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
