"""Loads the files of weights that the training scripts of examples/ write.

The networks that ship with the package are such files too. The header of one holds a card in JSON:
the kind of network, its arguments, and what else is known of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from scoreopt_defense.pretrained.networks import TinyEnergy, TinyResNet, TinyUNet

__all__ = ["load"]

Rule = tuple[Callable[[Any], bool], str]


def _whole(low: int, high: int) -> Rule:
    return (
        lambda value: type(value) is int and low <= value <= high,
        f"a whole number from {low} to {high}",
    )


def _number(low: float, high: float) -> Rule:
    return (
        lambda value: type(value) in (int, float) and low < value <= high,  # NaN is neither
        f"a number above {low:g} and at most {high:g}",
    )


def _list(rule: Rule, longest: int) -> Rule:
    holds, said = rule
    return (
        lambda value: (
            isinstance(value, list) and 1 <= len(value) <= longest and all(map(holds, value))
        ),
        f"a list of 1 to {longest}, each {said}",
    )


# What a file may ask to be built, well beyond any network of these scripts.
_SHARED = {
    "channels": _whole(1, 64),
    "widths": _list(_whole(1, 4096), 16),
    "blocks": _whole(0, 64),
}
_RULES: dict[str, dict[str, Rule]] = {
    "denoiser": _SHARED
    | {
        **{"embedding": _whole(1, 4096), "sigma_data": _number(0, 100)},
        "num_classes": _whole(0, 100_000),
    },
    "energy": _SHARED | {"sigma": _number(0, 100)},
    "classifier": _SHARED
    | {
        **{"num_classes": _whole(1, 100_000), "stem": _whole(1, 4096)},
        **{"mean": _list(_number(-100, 100), 64), "std": _list(_number(0, 100), 64)},
    },
}
# The shapes of the weights tell a default that was wrong, except of these.
_REQUIRED = {
    "denoiser": {"channels", "sigma_data"},
    "energy": {"channels", "sigma"},
    "classifier": {"channels", "mean", "std"},
}
_NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "denoiser": TinyUNet,
    "energy": TinyEnergy,
    "classifier": TinyResNet,
}
_LOADS = {"denoiser": ("denoiser", "energy"), "classifier": ("classifier",)}


def load(kind: str, path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The network in a file, on the CPU, in float32 and eval mode, frozen; and its card.

    Nothing in the file is executed, and its size bounds what is built: every argument is checked,
    and the weights must be those of the network that they describe, before there is one.

    Args:
        kind: ``"denoiser"``, which an energy network is too, or ``"classifier"``.
        path: of a safetensors file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, of the other kind, or of another origin, naming what is wrong.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}")
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            card = _checked(kind, json.loads((file.metadata() or {}).get("card", "null")))
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return _build(_NETWORKS[card["kind"]], card["config"], weights), card
    except (safetensors.SafetensorError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is no {kind} of train_{kind}.py, which exports {kind}.safetensors when a run "
            f"is complete: {error}"
        ) from error


def _checked(kind: str, card: Any) -> dict[str, Any]:
    if not isinstance(card, dict) or card.get("kind") not in list(_RULES):
        raise ValueError("its card must be a JSON object that names a kind of network")
    if card["kind"] not in _LOADS[kind]:
        other = next(other for other, kinds in _LOADS.items() if card["kind"] in kinds)
        raise ValueError(f"it is of kind {card['kind']!r}: load it by pretrained.{other}")
    kind = card["kind"]
    config, rules = card.get("config"), _RULES[kind]
    if not isinstance(config, dict):
        raise ValueError("its config must be a JSON object")
    if unknown := sorted(config.keys() - rules):
        raise ValueError(f"its config has unknown arguments, {unknown}")
    if missing := sorted(_REQUIRED[kind] - config.keys()):
        raise ValueError(f"its config is missing arguments, {missing}")
    for name, value in config.items():
        _check(name, value, rules[name])
    for name in ("mean", "std"):
        if name in config and len(config[name]) not in (1, config["channels"]):
            raise ValueError(f"{name} must have 1 or {config['channels']} values")
    if kind == "denoiser":
        levels: Any = card.get("sigma_range")
        _check("sigma_range", levels, _list(_number(0, 1e6), 2))
        if len(levels) != 2 or not levels[0] < levels[1]:
            raise ValueError(f"sigma_range must be two numbers, the lower first, got {levels}")
    return card


def _check(name: str, value: Any, rule: Rule) -> None:
    holds, said = rule
    if not holds(value):
        raise ValueError(f"{name} must be {said}, got {repr(value)[:100]}")


def _build(
    network: Callable[..., nn.Module], config: dict[str, Any], weights: dict[str, Tensor]
) -> nn.Module:
    with torch.device("meta"):  # takes no memory, whatever its size
        outline = network(**config)
    if _shapes(outline.state_dict()) != _shapes(weights):
        raise ValueError(f"its weights are not the weights of this {type(outline).__name__}")
    with torch.random.fork_rng(devices=[]):  # its weights are first drawn at random
        net = network(**config)
    net.load_state_dict(weights)
    return net.float().eval().requires_grad_(False).to(memory_format=torch.channels_last)


def _shapes(weights: dict[str, Tensor]) -> dict[str, tuple[torch.Size, bool]]:
    return {name: (value.shape, value.is_floating_point()) for name, value in weights.items()}
