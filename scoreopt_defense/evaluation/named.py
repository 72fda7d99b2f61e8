"""Classifiers by name, of this package and of others."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from scoreopt_defense import pretrained
from scoreopt_defense._foreign import contained
from scoreopt_defense._optional import optional

__all__ = ["CLASSIFIERS", "Normalized", "classifier", "made"]

#: How a classifier may be named, besides the names that ship.
CLASSIFIERS = (
    "file:<file>",
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
            :func:`scoreopt_defense.pretrained.classifier`; ``robustbench:``, of CIFAR-10 and Linf
            unless the name says so; ``timm:`` (``timm:local-dir:<folder>`` for what timm saved) and
            ``torchvision:``, which download weights and are given their normalisation;
            ``python:package.module:function`` is called without arguments and returns any module.

    Raises:
        ValueError: if the name is unknown.
        ImportError: if the library is missing.
    """
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


def made(name: str) -> Any:
    """What a function ``package.module:function`` returns, called without arguments.

    Raises:
        ValueError: if there is no such function.
        ImportError: if there is no such module.
        RuntimeError: if it would end the process.
    """
    module, _, function = name.partition(":")
    if not function:
        raise ValueError(f"expected <package.module>:<function>, got {name!r}")
    with contained():
        found = getattr(importlib.import_module(module), function, None)
        if not callable(found):
            raise ValueError(f"{module} has no function {function!r}")
        return found()


class Normalized(nn.Module):
    r"""A network that wants normalised images, for images in [0, 1]: ``net((x - mean) / std)``."""

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, mean: Any, std: Any) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32).reshape(-1, 1, 1))
        self.register_buffer("std", torch.as_tensor(std, dtype=torch.float32).reshape(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x - self.mean.to(x)) / self.std.to(x))


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
        net = timm.create_model(name, pretrained=True)
        return Normalized(net, net.pretrained_cfg["mean"], net.pretrained_cfg["std"])
    except (KeyError, SafetensorError) as error:  # timm says all else itself
        raise ValueError(
            f"timm cannot load {name!r}: a file is damaged, or timm did not save it "
            f"({type(error).__name__}: {error})"
        ) from error


def _torchvision(name: str) -> nn.Module:
    models = optional("torchvision.models")
    weights = models.get_model_weights(name).DEFAULT
    transforms = weights.transforms()
    return Normalized(models.get_model(name, weights=weights), transforms.mean, transforms.std)


_KINDS: dict[str, Callable[[str], nn.Module]] = {
    "robustbench": _robustbench,
    "timm": _timm,
    "torchvision": _torchvision,
    "python": made,
}
