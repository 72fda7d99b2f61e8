"""A run's defences, loaded again, and only if they are the ones that were judged."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from scoreopt_defense import data, pretrained, purifiers
from scoreopt_defense._foreign import said
from scoreopt_defense.defended import DefendedModel
from scoreopt_defense.evaluation.config import Config, defence
from scoreopt_defense.evaluation.plan import Plan
from scoreopt_defense.evaluation.plan.fingerprint import described
from scoreopt_defense.evaluation.plan.same import another
from scoreopt_defense.sizes import Fitted

__all__ = ["Reloaded", "reload"]

# Steps an image that a page is worth, of a defence that a record describes: it may say any number.
_MOST_STEPS = 10_000


@dataclass(frozen=True, eq=False)
class Reloaded:
    """What could be loaded.

    Attributes:
        models: by the defence's name.
        missing: why there is none, by the defence's name.
        classes: names of the labels; empty if they are not known.
    """

    models: dict[str, nn.Module] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    classes: tuple[str, ...] = ()


def reload(plan: Plan, config: Config | None = None) -> Reloaded:
    """The defences of a plan.

    Args:
        config: what the run was made from; without it, networks that ship with the package are
            recognised by their weights' digests.
    """
    shipped: dict[str, Any] = {}
    shape = plan.images["shape"][1:]
    found = Reloaded(classes=_classes(config))
    for name, judged in plan.defences.items():
        about = judged.about
        try:
            model = (
                defence(name, config.defences[name])
                if config is not None and name in config.defences
                else _recognised(about, shipped)
            )
        except Exception as error:  # whatever a file, a library or a user's function raises
            found.missing[name] = said(error)
            continue
        if model is None:
            found.missing[name] = "its networks do not ship with this package: say --config FILE"
        elif why := another(judged, model, shape, threads=plan.threads):
            found.missing[name] = f"what could be loaded is not what was judged: {why}"
        else:
            found.models[name] = model
    return found


def _classes(config: Config | None) -> tuple[str, ...]:
    if config is None:
        return ()
    try:
        of_it = config.images.model_dump(include={"source", "split", "seed", "columns"})
        return data.source(**of_it, n=1).classes
    except (OSError, ValueError, ImportError):
        return ()


def _recognised(about: Mapping[str, Any], shipped: dict[str, Any]) -> nn.Module | None:
    """A defence of networks that ship, from the plan's own words about it."""
    if "purifier" not in about:
        return _network("classifier", pretrained.classifier, about, shipped)
    classifier = _network("classifier", pretrained.classifier, about["classifier"], shipped)
    kind: Any = purifiers.KINDS.get(about["purifier"]["name"])
    if classifier is None or kind is None:
        return None
    values = {name: value for name, value in about["purifier"].items() if name != "name"}
    settings = kind.Settings.from_dict(values)
    counts = (getattr(settings, name, 1) for name in ("steps", "outer_steps", "rounds"))
    if about["votes"] * math.prod(counts) > _MOST_STEPS:
        raise ValueError(f"an image takes more than {_MOST_STEPS} steps of it: say --config FILE")
    if issubclass(kind, purifiers.WithoutNetwork):
        return DefendedModel(classifier, kind(settings), votes=about["votes"])
    denoiser = _network("denoiser", pretrained.denoiser, about["denoiser"], shipped)
    if denoiser is None:
        return None
    return DefendedModel(classifier, kind(denoiser, settings), votes=about["votes"])


def _network(
    kind: str,
    load: Callable[[str], nn.Module],
    about: Mapping[str, Any],
    shipped: dict[str, Any],
) -> nn.Module | None:
    """The shipped network of that description; each is loaded once."""
    if "net" in about:
        net = _network(kind, load, about["net"], shipped)
        return net and Fitted(net, resize=about["resize"], crop=about["crop"])
    if kind not in shipped:
        models = [load(name) for name in pretrained.names(kind)]
        shipped[kind] = [(described(model), model) for model in models]
    return next((model for what, model in shipped[kind] if what == about), None)
