"""Builds EDM's networks, as deepinv has them, and keeps them in safetensors files."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from scoreopt_defense._files import replacing
from scoreopt_defense._optional import optional
from scoreopt_defense._text import printable
from scoreopt_defense.denoisers.deepinv import DeepinvUNetDenoiser, match_edm_groups
from scoreopt_defense.denoisers.edm import EDM_SIGMA_RANGE

__all__ = ["EDMConfig", "build", "is_converted", "load_converted", "save_converted"]

_FORMAT = "scoreopt-edm-1"

# Bounds on what a file may ask to be built, well beyond any published network.
_WHOLE = {
    "img_resolution": (1, 4096),
    "in_channels": (1, 64),
    "out_channels": (1, 64),
    "label_dim": (0, 100_000),
    "augment_dim": (0, 1000),
    "model_channels": (4, 4096),
    "channel_mult_emb": (1, 64),
    "num_blocks": (1, 64),
}
_LISTS = {"channel_mult": (1, 64), "attn_resolutions": (0, 4096)}
_NUMBERS = {"dropout", "label_dropout"}
_PRECONDITIONING = {
    "edm": {"sigma_data"},
    "vp": {"beta_d", "beta_min", "steps"},
    "ve": set(),
}
_LONGEST = 16


@dataclass(frozen=True)
class EDMConfig:
    """What a network of EDM is, as plain data.

    Attributes:
        kind: of preconditioning, ``"edm"``, ``"vp"`` or ``"ve"``.
        architecture: deepinv's name, ``"NCSNpp"`` or ``"ADMUNet"``.
        network: arguments of that class.
        preconditioning: numbers of that kind of preconditioning.
        sigma_range: noise levels that the network supports, on [-1, 1]; may be (0, inf).
    """

    kind: str
    architecture: str
    network: dict[str, Any]
    preconditioning: dict[str, float]
    sigma_range: tuple[float, float]

    def checked(self) -> EDMConfig:
        """Itself, if every value is of the right kind and size.

        Raises:
            ValueError: naming the value that is not.
        """
        known = {*_WHOLE, *_LISTS, *_NUMBERS}
        if self.architecture == "NCSNpp":
            known |= {"model_type"}
            _check("model_type", self.network.get("model_type") in ("ddpm", "ncsn"))
        else:
            _check("architecture", self.architecture == "ADMUNet")
        _check("kind", self.kind in _PRECONDITIONING)
        _check(f"the arguments {sorted(known ^ set(self.network))}", set(self.network) == known)
        for name, (low, high) in _WHOLE.items():
            _check(name, type(self.network[name]) is int and low <= self.network[name] <= high)
        for name, (low, high) in _LISTS.items():
            values = self.network[name]
            _check(name, isinstance(values, (list, tuple)) and len(values) <= _LONGEST)
            _check(name, all(type(value) is int and low <= value <= high for value in values))
        for name in sorted(_NUMBERS):
            _check(name, _is_number(self.network[name]) and 0 <= self.network[name] < 1)
        _check("channel_mult", len(self.network["channel_mult"]) > 0)
        _check("out_channels", self.network["in_channels"] == self.network["out_channels"])
        _check("preconditioning", set(self.preconditioning) == _PRECONDITIONING[self.kind])
        for name, value in self.preconditioning.items():
            _check(name, _is_number(value) and 0 < value < 1e6)
        _check("sigma_range", len(self.sigma_range) == 2 and all(map(_is_number, self.sigma_range)))
        _check("sigma_range", 0 <= self.sigma_range[0] < self.sigma_range[1])
        return self


def build(config: EDMConfig, weights: dict[str, Tensor]) -> DeepinvUNetDenoiser:
    """deepinv's network with these weights, in its preconditioning; on the CPU, float32, eval mode.

    Group normalisations get EDM's number of groups, whatever the width.

    Raises:
        ImportError: without deepinv.
        ValueError: if the weights are not exactly those of this configuration.
    """
    config = config.checked()
    models = optional("deepinv.models", extra="deepinv")
    try:
        with torch.device("meta"):  # no memory, no random numbers: the weights come from the file
            net = getattr(models, config.architecture)(
                **config.network, pretrained=None, device=None
            )
    except ValueError as error:
        raise ValueError(f"deepinv cannot build this network: {error}") from error
    net.pixel_std = config.preconditioning.get("sigma_data", net.pixel_std)
    net._was_trained_on_minus_one_one = True
    fill(net, weights)
    low, high = config.sigma_range
    if config.kind == "edm":  # EDM's own networks say (0, inf)
        low, high = max(low, EDM_SIGMA_RANGE[0]), min(high, EDM_SIGMA_RANGE[1])
    return DeepinvUNetDenoiser(
        match_edm_groups(net),
        kind=config.kind,
        label_dim=config.network["label_dim"],
        channels=config.network["in_channels"],
        sigma_range=(low, high),
        **config.preconditioning,
    )


def fill(net: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    """Put weights into a network that has none yet: strictly, in float32, eval mode and frozen.

    Raises:
        ValueError: if names or shapes differ.
    """
    weights = {
        name: value.float() if value.is_floating_point() else value
        for name, value in weights.items()
    }
    try:
        net.load_state_dict(weights, strict=True, assign=True)
    except RuntimeError as error:
        raise ValueError(
            f"these are not the weights of this {type(net).__name__}: {printable(str(error))[:500]}"
        ) from None
    return net.eval().requires_grad_(False)


def save_converted(path: str | Path, config: EDMConfig, weights: dict[str, Tensor]) -> None:
    """Write a safetensors file, whole or not at all."""
    low, high = config.checked().sigma_range
    finite = asdict(config) | {"sigma_range": [low, None if high == math.inf else high]}
    metadata = {"format": _FORMAT, "config": json.dumps(finite, allow_nan=False)}
    with replacing(path) as temporary:
        safetensors.torch.save_file(
            {name: value.contiguous().clone() for name, value in weights.items()},
            temporary,
            metadata,
        )


def is_converted(path: Path) -> bool:
    """Whether it is a safetensors file that says that :func:`save_converted` wrote it."""
    if path.suffix != ".safetensors":
        return False
    with safetensors.safe_open(str(path), framework="pt") as file:
        return (file.metadata() or {}).get("format") == _FORMAT


def load_converted(path: str | Path) -> tuple[EDMConfig, dict[str, Tensor]]:
    """What :func:`save_converted` wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no such file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file at {path}")
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise ValueError("it was not written by scoreopt convert-edm")
            fields = json.loads(metadata["config"])
            low, high = fields["sigma_range"]
            fields["sigma_range"] = (low, math.inf if high is None else high)  # JSON has no number
            config = EDMConfig(**fields).checked()
            return config, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no converted EDM network: {error}") from error


def _is_number(value: Any) -> bool:
    """Not NaN, and not an integer of 400 digits, which no float() takes."""
    if type(value) not in (int, float):
        return False
    return abs(value) < 2**53 or value == math.inf


def _check(name: str, holds: bool) -> None:
    if not holds:
        raise ValueError(f"the network's configuration is impossible or unknown in {name}")
