"""NVIDIA's EDM snapshots: pickles that run their own source code when loaded, read without it.

A ``network-snapshot-*.pkl`` holds, for each part of a network, the source of the module that
defined it, its class name and its state; ``pickle.load`` executes that source. Here the source is a
string that nobody reads: the class names and the arguments recorded beside them say which network
it is.
"""

from __future__ import annotations

import mmap
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from scoreopt_defense._checks import check_file
from scoreopt_defense._text import printable
from scoreopt_defense.pretrained.edm_network import EDMConfig
from scoreopt_defense.pretrained.safe_pickle import Record, RefusedError, load

__all__ = ["read_snapshot"]

# Bounds on a file, well beyond the published networks: EDM's largest is ImageNet 64's, of 1.2 GB.
_MAX_BYTES = 2**32
_MAX_DEPTH = 16  # of modules in modules: EDM's have five levels
_MAX_ENTRIES = 50_000  # of the dictionaries of all modules together: ImageNet 64's has 2,300
_MAX_NAME = 200  # characters of a weight's name: ImageNet 64's have up to 36
_MAX_LIST = 64  # of numbers among a network's arguments; characters of a text there

_KINDS = {"EDMPrecond": "edm", "VPPrecond": "vp", "VEPrecond": "ve"}
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
            content = load(data, size=size, known=_KNOWN)  # type: ignore[arg-type]
        network: Any = content["ema"] if isinstance(content, dict) else content
        return _config(network), _weights(network.state["_modules"]["model"], size)
    except RefusedError as error:
        said = printable(str(error))
        raise ValueError(f"{path} was refused, and nothing in it was run: it has {said}") from None
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{path} was refused, and nothing in it was run: it has no EDM network under 'ema' "
            f"that could be rebuilt ({type(error).__name__}: {printable(str(error)[:200])})"
        ) from None


def _persistent(meta: Any) -> Record:
    """In place of ``torch_utils.persistence``: the class name and the state, not the source."""
    if not isinstance(meta, dict) or meta.get("type") != "class":
        raise TypeError("a persistent object that is no class")
    if not isinstance(meta["class_name"], str) or not isinstance(meta["state"], dict):
        raise TypeError("a persistent object without a name or a state")
    return Record(meta["class_name"], state=meta["state"])


def _inert(name: str) -> Any:
    return lambda *args: Record(name, args)


_KNOWN = {
    "torch_utils.persistence._reconstruct_persistent_obj": _persistent,
    "dnnlib.util.EasyDict": lambda: {},
    **{
        name: _inert(name)
        for name in (
            "torch.nn.modules.container.ModuleDict",
            "torch.nn.modules.container.ModuleList",
            "torch.nn.modules.container.Sequential",
            "numpy.dtype",
            "numpy.core.multiarray.scalar",
            "numpy._core.multiarray.scalar",
        )
    },
}


def _config(network: Any) -> EDMConfig:
    name = _class_name(network)
    if name not in _KINDS:
        raise RefusedError(f"a network of class {name!r}; known are {sorted(_KINDS)}")
    outer, unet = network.state, network.state["_modules"]["model"]
    unet_name = _class_name(unet)
    if unet_name not in _ARCHITECTURES:
        raise RefusedError(f"a U-Net of class {unet_name!r}; known are {sorted(_ARCHITECTURES)}")
    if unet.state["_init_args"] or not isinstance(unet.state["_init_kwargs"], dict):
        raise RefusedError("a U-Net whose arguments were not recorded by name")
    recorded = {key: _plain(key, value) for key, value in unet.state["_init_kwargs"].items()}
    arguments = _DEFAULTS[unet_name] | recorded
    if unet_name == "SongUNet":
        arguments = _song_type(arguments)
    kind = _KINDS[name]
    preconditioning = {
        "edm": lambda: {"sigma_data": outer["sigma_data"]},
        "vp": lambda: {key: outer[key] for key in ("beta_d", "beta_min")} | {"steps": outer["M"]},
        "ve": dict,
    }[kind]()
    return EDMConfig(
        kind=kind,
        architecture=_ARCHITECTURES[unet_name],
        network=arguments,
        preconditioning=preconditioning,
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
        raise RefusedError(f"a {type(value).__name__} where the network's arguments are recorded")
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


def _class_name(record: Any) -> str:
    return record.name[:100] if isinstance(record, Record) else type(record).__name__


def _weights(module: Any, size: int) -> dict[str, Tensor]:
    """As ``module.state_dict()``, of a record; all together no larger than the file is.

    Raises:
        RefusedError: if there are none, or more than a file of ``size`` bytes can have of its own.
    """
    found = _StateDict().of(module)
    total = sum(value.numel() * value.element_size() for value in found.values())
    if total > size:
        raise RefusedError(f"weights of {total:,} bytes in all, in a file of {size:,}")
    if not total:
        raise RefusedError("a network without weights")
    return found


@dataclass
class _StateDict:
    """Weights by name, and what is left to spend on finding them: a module may be held often."""

    found: dict[str, Tensor] = field(default_factory=dict)
    entries: int = _MAX_ENTRIES

    def of(self, module: Any, prefix: str = "", depth: int = 0) -> dict[str, Tensor]:
        if depth > _MAX_DEPTH or not isinstance(module, Record):
            raise RefusedError("modules nested as in no network of EDM")
        parameters, buffers, modules = (
            self.entries_of(module.state[name]) for name in ("_parameters", "_buffers", "_modules")
        )
        passing = self.entries_of(module.state["_non_persistent_buffers_set"], kind=set)
        own = parameters | {key: value for key, value in buffers.items() if key not in passing}
        for key, value in own.items():
            if value is not None:
                if not isinstance(value, Tensor):
                    raise RefusedError("a parameter that is no tensor")
                self.found[self.name(prefix, key)] = value
        for key, child in modules.items():
            if child is not None:
                self.of(child, self.name(prefix, key) + ".", depth + 1)
        return self.found

    def entries_of(self, value: Any, *, kind: type[dict] | type[set] = dict) -> Any:
        if not isinstance(value, kind):
            raise RefusedError(f"a {type(value).__name__} in place of a module's {kind.__name__}")
        self.entries -= 1 + len(value)
        if self.entries < 0:
            raise RefusedError("more modules and weights than any network")
        return value

    @staticmethod
    def name(prefix: str, key: Any) -> str:
        if type(key) is not str or len(prefix) + len(key) > _MAX_NAME:
            raise RefusedError("a weight whose name is no text, or a longer one than any network's")
        return prefix + key
