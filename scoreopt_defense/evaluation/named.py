"""A name, and the object that it stands for: classifiers, purifiers, attacks and suites."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn

from scoreopt_defense import attacks, pretrained, purifiers
from scoreopt_defense._checks import check_choice
from scoreopt_defense._foreign import contained, said
from scoreopt_defense._optional import optional
from scoreopt_defense._text import where
from scoreopt_defense.data import Preprocessing
from scoreopt_defense.diffusion_classifier import DiffusionClassifier
from scoreopt_defense.evaluation.plan.tasks import Suite
from scoreopt_defense.evaluation.suite.adaptive import Adaptive
from scoreopt_defense.evaluation.suite.quick import Quick
from scoreopt_defense.normalization import normalized
from scoreopt_defense.presets import PRESETS, preset
from scoreopt_defense.pretrained.reach import hub_or_cache

__all__ = [
    "CLASSIFIERS",
    "SUITES",
    "attack",
    "classifier",
    "made",
    "preprocessing",
    "purifier",
    "suite",
]

#: What ``suite =`` may be by name.
SUITES: Mapping[str, type[Adaptive | Quick]] = {"quick": Quick, "adaptive": Adaptive}

#: How a classifier may be named, besides the names that ship.
CLASSIFIERS = (
    "file:<file>",
    "diffusion:<denoiser>",
    "robustbench:[<dataset>/<threat model>/]<name>",
    "timm:<name>",
    "timm:local-dir:<folder>",
    "torchvision:<name>",
    "python:<package.module>:<function>",
)


def classifier(name: str) -> nn.Module:
    """A classifier of images in [0, 1], in eval mode.

    Args:
        name: one of ``pretrained.names("classifier")``; or by its prefix: ``file:`` as in
            :func:`scoreopt_defense.pretrained.classifier`; ``diffusion:`` and a denoiser that knows
            classes, for a :class:`~scoreopt_defense.DiffusionClassifier`; ``robustbench:``, of
            CIFAR-10 and Linf unless the name says so; ``timm:`` (``timm:local-dir:<folder>`` for
            what timm saved) and ``torchvision:``, which download weights and are given their
            normalisation;
            ``python:package.module:function`` is called without arguments and returns any module.

    Raises:
        ValueError: if the name is unknown.
        ImportError: if the library is missing.
    """
    name = _as_spelled(name, pretrained.names("classifier"))
    kind, _, rest = name.partition(":")
    if kind not in _KINDS or not rest:
        if name not in pretrained.names("classifier") and kind != "file":
            raise ValueError(
                f"classifier must be one of {[*pretrained.names('classifier'), *CLASSIFIERS]}, "
                f"got {name!r}"
            )
        return pretrained.classifier(name)
    model = _KINDS[kind](rest)
    if not isinstance(model, nn.Module):
        raise TypeError(f"{name!r} must give a torch module, got {type(model).__name__}")
    return model.eval()


def preprocessing(name: str) -> Preprocessing:
    """How the authors of a ``torchvision:`` or ``timm:`` classifier resize and crop its images."""
    library, _, model = name.partition(":")
    if library == "torchvision":
        given = optional("torchvision.models").get_model_weights(model).DEFAULT.transforms()
        return Preprocessing(given.resize_size[0], given.crop_size[0], given.interpolation.value)
    config = optional("timm").get_pretrained_cfg(model)
    side = config.input_size[-1]
    return Preprocessing(int(side / config.crop_pct), side, config.interpolation)


def made(name: str) -> Any:
    """What a function ``package.module:function`` returns, called without arguments.

    ``mine.py:function`` is that of a file in the current folder, as ``mine:function`` is.

    Raises:
        ValueError: if there is no such function.
        ImportError: if there is no such module.
        RuntimeError: if it fails, or would end the process; naming the line that did.
    """
    module, _, function = name.partition(":")
    module = module.removesuffix(".py")
    if not function:
        raise ValueError(f"expected <package.module>:<function>, got {name!r}")
    with contained():
        try:
            found = getattr(importlib.import_module(module), function, None)
            if callable(found):
                return found()
        except ImportError as error:
            looked = f", in {Path.cwd()} or installed" if error.name == module else ""
            raise ImportError(f"{error}{looked}{where(error)}") from error
        except Exception as error:
            raise RuntimeError(f"{said(error)}{where(error)}") from error
        raise ValueError(f"{module} has no function {function!r}")


def purifier(
    kind: str, denoiser: str | None, preset_name: str | None, overrides: dict[str, Any]
) -> purifiers.Purifier | None:
    """A purifier by its class's name, a preset and overrides; None for ``"none"``.

    ``"python:package.module:function"`` is called without arguments and returns a purifier; as the
    name of a denoiser, a :class:`~scoreopt_defense.denoisers.Denoiser`.

    Raises:
        ValueError, TypeError: naming what is missing, unknown or out of range.
    """
    kinds: Mapping[str, Any] = purifiers.KINDS
    kind = _as_spelled(kind, [*kinds, "none"])
    denoiser = denoiser and _as_spelled(denoiser, pretrained.names("denoiser"))
    preset_name = preset_name and _as_spelled(preset_name, PRESETS)
    if kind == "none":
        if denoiser or preset_name or overrides:
            raise ValueError(
                f"purifier 'none' takes no denoiser, preset or overrides; or name one of "
                f"{sorted(kinds)}"
            )
        return None
    if kind.startswith("python:"):
        if denoiser or preset_name:
            raise ValueError(f"{kind!r} makes its own: it takes overrides, no denoiser or preset")
        found = made(kind.removeprefix("python:"))
        if not isinstance(found, purifiers.Purifier):
            raise TypeError(
                f"{kind!r} must return a Purifier, got {type(found).__name__}; ThirdParty makes "
                "one of any function of images"
            )
        return found.replace(**overrides)
    if kind not in kinds:
        allowed = ["none", *sorted(kinds), "python:<package.module>:<function>"]
        raise ValueError(f"purifier must be one of {allowed}, got {kind!r}")
    if preset_name is not None and kind != "ScoreOpt":
        raise ValueError(f"presets are for ScoreOpt, got preset {preset_name!r} for {kind}")
    if issubclass(kinds[kind], purifiers.WithoutNetwork):
        if denoiser is not None:
            raise ValueError(f"{kind} has no network and takes no denoiser, got {denoiser!r}")
        return kinds[kind](**overrides)
    if denoiser is None:
        raise ValueError(f"{kind} needs denoiser = one of {pretrained.names('denoiser')}, ...")
    settings = (preset(preset_name) if preset_name else {}) | overrides
    found = kinds[kind].Settings.from_dict(settings)  # { name = "mse", weight = 0.1 } is a loss
    own = denoiser.startswith("python:")
    network = made(denoiser.removeprefix("python:")) if own else pretrained.denoiser(denoiser)
    return kinds[kind](network, found)


def attack(name: str, **overrides: Any) -> Any:
    """An attack of :mod:`scoreopt_defense.attacks`, by the name of a configuration or a class.

    Raises:
        ValueError, TypeError: naming what is unknown or out of range.
    """
    return attacks.attack(_as_spelled(name, [*attacks.ATTACKS, *attacks.KINDS]), **overrides)


def suite(name: str, **settings: Any) -> Suite:
    """A suite with these settings.

    Raises:
        ValueError, TypeError: naming what is unknown or out of range.
    """
    name = _as_spelled(name, SUITES)
    check_choice("suite", name, SUITES)
    return SUITES[name].of(**settings)


def _as_spelled(name: str, allowed: Iterable[str]) -> str:
    """The name among these that is the same but for capitals, if there is one."""
    allowed = list(allowed)
    same = [other for other in allowed if other.casefold() == name.casefold()]
    return name if name in allowed or not same else same[0]


def _robustbench(name: str) -> nn.Module:
    *where, model = name.split("/")
    if len(where) not in (0, 2):
        raise ValueError(f"expected [<dataset>/<threat model>/]<name>, got {name!r}")
    dataset, threat = where or ("cifar10", "Linf")
    library = optional("robustbench.utils")
    try:
        return library.load_model(model, dataset=dataset, threat_model=threat)
    except KeyError as error:  # of its table of models
        raise ValueError(f"robustbench has no {model!r} for {dataset} and {threat}") from error


def _timm(name: str) -> nn.Module:
    timm = optional("timm")
    try:
        with nullcontext() if name.startswith("local-dir:") else hub_or_cache(f"timm:{name}"):
            net = timm.create_model(name, pretrained=True)
        return normalized(net, net.pretrained_cfg["mean"], net.pretrained_cfg["std"])
    except (KeyError, SafetensorError) as error:  # timm says all else itself
        raise ValueError(
            f"timm cannot load {name!r}: a file is damaged, or timm did not save it "
            f"({type(error).__name__}: {error})"
        ) from error


def _torchvision(name: str) -> nn.Module:
    models = optional("torchvision.models")
    weights = models.get_model_weights(name).DEFAULT
    transforms = weights.transforms()
    return normalized(models.get_model(name, weights=weights), transforms.mean, transforms.std)


_KINDS: dict[str, Callable[[str], nn.Module]] = {
    "diffusion": lambda name: DiffusionClassifier(pretrained.denoiser(name)),
    "robustbench": _robustbench,
    "timm": _timm,
    "torchvision": _torchvision,
    "python": made,
}
