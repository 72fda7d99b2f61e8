"""Reads the networks that NVIDIA's EDM trains, without running the code in their files.

A ``network-snapshot-*.pkl`` holds, for each part of a network, the source of the module that
defined it, its class name and its state; ``pickle.load`` executes that source. Here the source is a
string that nobody reads: the class names and the arguments recorded beside them say which network
it is.
"""

from __future__ import annotations

import mmap
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from scoreopt_defense._checks import check_file
from scoreopt_defense._text import printable
from scoreopt_defense.pretrained.edm_network import EDMConfig
from scoreopt_defense.pretrained.safe_pickle import Record, RefusedError, load, tensor

__all__ = ["read_snapshot"]

# Bounds on a file, well beyond the published networks: EDM's largest is ImageNet 64's, of 1.2 GB.
_MAX_BYTES = 2**32
_MAX_ENTRIES = 50_000  # of the dictionaries of all modules together: ImageNet 64's has 2,300
_MAX_NAME = 200  # characters of a weight's name, so levels of modules: ImageNet 64's have up to 36
_MAX_LIST = 64  # of numbers among a network's arguments; characters of a text there

# Of each kind of preconditioning: its name here, and those of its numbers, here and there.
_KINDS: dict[str, tuple[str, dict[str, str]]] = {
    "EDMPrecond": ("edm", {"sigma_data": "sigma_data"}),
    "VPPrecond": ("vp", {"beta_d": "beta_d", "beta_min": "beta_min", "steps": "M"}),
    "VEPrecond": ("ve", {}),
}
_ARCHITECTURES = {"SongUNet": "NCSNpp", "DhariwalUNet": "ADMUNet"}

# What NVIDIA's constructors assume where a training did not say.
_COMMON = {
    "label_dim": 0,
    "augment_dim": 0,
    "channel_mult_emb": 4,
    "dropout": 0.1,
    "label_dropout": 0,
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "SongUNet": _COMMON
    | {"model_channels": 128, "channel_mult": [1, 2, 2, 2], "num_blocks": 4}
    | {"attn_resolutions": [16], "embedding_type": "positional", "channel_mult_noise": 1}
    | {"encoder_type": "standard", "decoder_type": "standard", "resample_filter": [1, 1]},
    "DhariwalUNet": _COMMON
    | {"model_channels": 192, "channel_mult": [1, 2, 3, 4], "num_blocks": 3}
    | {"attn_resolutions": [32, 16, 8]},
}
# The two combinations that deepinv's NCSNpp is made for, by its name for them.
_SONG_TYPES = {
    "ddpm": {
        **{"embedding_type": "positional", "channel_mult_noise": 1, "resample_filter": [1, 1]},
        **{"encoder_type": "standard", "decoder_type": "standard"},
    },
    "ncsn": {
        **{"embedding_type": "fourier", "channel_mult_noise": 2, "resample_filter": [1, 3, 3, 1]},
        **{"encoder_type": "residual", "decoder_type": "standard"},
    },
}


def read_snapshot(path: str | Path) -> tuple[EDMConfig, dict[str, Tensor]]:
    """Configuration and weights of the moving-average network in an EDM snapshot.

    Nothing in the file is imported or executed.

    Args:
        path: a ``network-snapshot-*.pkl`` of NVlabs/edm, or one of its published models.

    Returns:
        The configuration, and the state dict of the U-Net inside the preconditioning.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file holds anything else than such a network, naming what was refused.
    """
    path = Path(path)
    size = check_file(path, most=_MAX_BYTES)
    if zipfile.is_zipfile(path):
        raise ValueError(
            f"{path} is an archive of torch.save, such as EDM's training-state-*.pt: give its "
            "network-snapshot-*.pkl"
        )
    if not size:
        raise ValueError(f"{path} is empty")
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            content = load(data, known=_KNOWN)  # type: ignore[arg-type]
        network = content["ema"] if _named(content)[0] == "dict" else content
        return _config(network), _weights(_named(network)[1]["_modules"]["model"], size)
    except RefusedError as error:
        said = printable(str(error))
        raise ValueError(f"{path} was refused, and nothing in it was run: it has {said}") from None
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{path} was refused, and nothing in it was run: it has no EDM network under 'ema' "
            f"that could be rebuilt ({type(error).__name__}: {printable(str(error)[:200])})"
        ) from None


_PERSISTENT = "torch_utils.persistence._reconstruct_persistent_obj"
_KNOWN = {
    _PERSISTENT,
    "dnnlib.util.EasyDict",
    "torch.nn.modules.container.ModuleDict",
    "torch.nn.modules.container.ModuleList",
    "torch.nn.modules.container.Sequential",
    "numpy.dtype",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
}


def _named(value: Any) -> tuple[str, Any]:
    """The class of an object and its state; of ``torch_utils.persistence``'s, not the source."""
    match value:
        case Record(
            name=name,
            args=({"type": "class", "class_name": str(kind), "state": Record() as state},),
        ) if name == _PERSISTENT:
            return kind[:100], state
        case Record():
            return value.name[:100], value.state
    return type(value).__name__, None


def _config(network: Any) -> EDMConfig:
    name, outer = _named(network)
    if name not in _KINDS:
        raise RefusedError(f"a network of class {name!r}; known are {sorted(_KINDS)}")
    unet_name, unet = _named(outer["_modules"]["model"])
    if unet_name not in _ARCHITECTURES:
        raise RefusedError(f"a U-Net of class {unet_name!r}; known are {sorted(_ARCHITECTURES)}")
    if unet["_init_args"] != () or type(unet["_init_kwargs"]) is not Record:
        raise RefusedError("a U-Net whose arguments were not recorded by name")
    recorded = {key: _plain(key, value) for key, value in unet["_init_kwargs"].items()}
    arguments = _DEFAULTS[unet_name] | recorded
    if unet_name == "SongUNet":
        arguments = _song_type(arguments)
    kind, numbers = _KINDS[name]
    return EDMConfig(
        kind=kind,
        architecture=_ARCHITECTURES[unet_name],
        network=arguments,
        preconditioning={ours: outer[theirs] for ours, theirs in numbers.items()},
        sigma_range=(outer["sigma_min"], outer["sigma_max"]),
    ).checked()


def _plain(key: Any, value: Any) -> Any:
    """A number, a string or a flat list of numbers."""
    if isinstance(value, (list, tuple, str)) and len(value) > _MAX_LIST:
        raise RefusedError(f"{len(value)} items in the network's argument {str(key)[:100]}")
    if isinstance(value, (list, tuple)):
        value = list(value)
    items = value if isinstance(value, list) else [value]
    if not all(type(item) in (int, float, str, bool, type(None)) for item in items):
        raise RefusedError(f"a {_named(value)[0]} where the network's arguments are recorded")
    return value


def _song_type(arguments: dict[str, Any]) -> dict[str, Any]:
    for model_type, choices in _SONG_TYPES.items():
        if all(arguments[key] == value for key, value in choices.items()):
            rest = {key: value for key, value in arguments.items() if key not in choices}
            return {"model_type": model_type, **rest}
    raise RefusedError(
        "a SongUNet that is neither DDPM++ nor NCSN++, the two kinds that deepinv has: "
        + ", ".join(f"{key}={str(arguments[key])[:40]}" for key in _SONG_TYPES["ddpm"])
    )


def _weights(module: Any, size: int) -> dict[str, Tensor]:
    """As ``module.state_dict()``, of a record.

    Raises:
        RefusedError: if there are none, or more than a file of ``size`` bytes can have of its own.
    """
    found: dict[str, Tensor] = {}
    for count, (name, value) in enumerate(_entries(module)):
        if count >= _MAX_ENTRIES:
            raise RefusedError("more modules and weights than any network")
        if len(name) > _MAX_NAME:
            raise RefusedError(f"a name longer than any network's, {name[:60]!r}")
        if value is not None:
            found[name] = tensor(value)
            size -= found[name].untyped_storage().nbytes()
        if size < 0:
            raise RefusedError("weights that are larger than the file that holds them")
    if not any(value.numel() for value in found.values()):
        raise RefusedError("a network without weights")
    return found


def _entries(module: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """What a module and those in it hold, by name; None for what is no weight, a module itself too.

    There may be no end to them: a module may be held often, and hold itself.
    """
    yield prefix, None
    _, state = _named(module)
    parameters, buffers, modules, passing = (
        state[name]
        for name in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
    )
    for held in (parameters, buffers, modules, passing):
        if type(held) is not Record:
            raise RefusedError(f"a {type(held).__name__} in place of what a module holds")
    for key, value in parameters.items():
        yield prefix + key, value
    for key, value in buffers.items():
        yield prefix + key, None if key in passing else value
    for key, child in modules.items():
        if child is not None:
            yield from _entries(child, f"{prefix}{key}.")
