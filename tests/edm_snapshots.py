"""Snapshots in the format that EDM's training loop writes, made without EDM.

Each module of a network is pickled as a call of ``torch_utils.persistence`` with the source of its
module, its class name and its ``__dict__``; containers of torch are pickled as themselves.
"""

from __future__ import annotations

import contextlib
import pickle
import sys
import types
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from torch import nn

CLASS_NAMES = {"UpDownConv2d": "Conv2d"}  # the rest have the same name in both libraries

SONG = {"augment_dim": 9, "dropout": 0.13, "attn_resolutions": [8], "label_dropout": 0}
DDPMPP = SONG | {
    **{"embedding_type": "positional", "encoder_type": "standard", "decoder_type": "standard"},
    **{"channel_mult_noise": 1, "resample_filter": [1, 1]},
}
NCSNPP = SONG | {
    **{"embedding_type": "fourier", "encoder_type": "residual", "decoder_type": "standard"},
    **{"channel_mult_noise": 2, "resample_filter": [1, 3, 3, 1]},
}
ADM = {"attn_resolutions": [8], "dropout": 0.1, "channel_mult": [2, 2]}
SMALL = {"model_channels": 32, "channel_mult": [1, 2], "num_blocks": 1}

ATTRIBUTES = {
    "EDMPrecond": {"sigma_min": 0, "sigma_max": float("inf"), "sigma_data": 0.5},
    "VPPrecond": {
        **{"sigma_min": 0.0009765625, "sigma_max": 152.16697692871094},
        **{"beta_d": 19.9, "beta_min": 0.1, "M": 1000, "epsilon_t": 1e-5},
    },
    "VEPrecond": {"sigma_min": 0.02, "sigma_max": 100},
}


def deepinv_net(unet: str, arguments: dict) -> nn.Module:
    """deepinv's network for EDM's arguments, as it comes: 32 groups everywhere."""
    models = __import__("deepinv.models", fromlist=["models"])
    dropped = ("embedding_type", "encoder_type", "decoder_type", "channel_mult_noise")
    ours = {k: v for k, v in arguments.items() if k not in (*dropped, "resample_filter")}
    if unet == "SongUNet":
        kind = "ddpm" if arguments["embedding_type"] == "positional" else "ncsn"
        return models.NCSNpp(model_type=kind, pretrained=None, **ours)
    return models.ADMUNet(pretrained=None, **ours)


def set_waves(state: dict[str, torch.Tensor]) -> None:
    """Weights that any program can write down: sines, the same on every machine."""
    for i, (name, value) in enumerate(sorted(state.items())):
        if name.endswith("resample_filter"):
            continue
        count = torch.arange(value.numel(), dtype=torch.float64)
        wave = 0.1 * torch.sin(count * (1 + i % 7) + i).reshape(value.shape)
        value.copy_(wave + (1 if "norm" in name and name.endswith("weight") else 0))


class Persistent:
    """What ``torch_utils.persistence`` makes of an object when it is pickled."""

    def __init__(self, class_name: str, state: dict, source: str = "raise SystemExit") -> None:
        self.meta = {
            **{"type": "class", "version": 6, "module_src": source},
            **{"class_name": class_name, "state": state},
        }

    def __reduce__(self):
        return (
            sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj,
            (self.meta,),
            None,
        )


def snapshot(
    precond: str = "EDMPrecond",
    unet: str = "SongUNet",
    *,
    source: str = "raise SystemExit('the embedded source was executed')",
    attributes: dict | None = None,
    **arguments: object,
) -> dict:
    """What the training loop pickles; ``arguments`` are the U-Net's."""
    full = {"img_resolution": 16, "in_channels": 3, "out_channels": 3, "label_dim": 0} | arguments
    net = deepinv_net(unet, full)
    set_waves(net.state_dict())
    inner = _persistent(net, unet, source, full)
    outer = nn.Module().__dict__ | {
        **{"_modules": OrderedDict(model=inner), "training": False},
        **{"img_resolution": 16, "img_channels": 3, "label_dim": full["label_dim"]},
        **{"use_fp16": False, "_init_args": (), "_init_kwargs": {"model_type": unet} | full},
        **(ATTRIBUTES[precond] | (attributes or {})),
    }
    loss = {"P_mean": -1.2, "P_std": 1.2, "sigma_data": 0.5, "_init_args": (), "_init_kwargs": {}}
    return {
        "ema": Persistent(precond, outer, source),
        "loss_fn": Persistent("EDMLoss", loss, source),
        "augment_pipe": None,
        "dataset_kwargs": {"path": "cifar10.zip", "use_labels": False, "resolution": 16},
    }


def _persistent(module: nn.Module, name: str, source: str, arguments: dict | None = None):
    state = module.__dict__ | {"_modules": OrderedDict(), "training": False}
    for key, child in module._modules.items():
        if child is None:
            state["_modules"][key] = None
        elif isinstance(child, nn.ModuleDict):
            container = nn.ModuleDict()
            for inner, block in child.items():
                container._modules[inner] = _of(block, source)
            state["_modules"][key] = container
        else:
            state["_modules"][key] = _of(child, source)
    if name == "UNetBlock":
        state["skip_scale"] = np.sqrt(0.5)  # a numpy scalar, as in EDM's
    state["_init_args"], state["_init_kwargs"] = (), arguments or {}
    return Persistent(name, state, source)


def _of(module: nn.Module, source: str) -> Persistent:
    name = type(module).__name__
    return _persistent(module, CLASS_NAMES.get(name, name), source)


@contextlib.contextmanager
def importable_persistence():
    """``torch_utils.persistence``, for as long as something is pickled that names it."""
    package, module = types.ModuleType("torch_utils"), types.ModuleType("torch_utils.persistence")

    def _reconstruct_persistent_obj(meta):
        raise AssertionError("the embedded object was rebuilt")

    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    module._reconstruct_persistent_obj = _reconstruct_persistent_obj
    sys.modules |= {"torch_utils": package, "torch_utils.persistence": module}
    try:
        yield
    finally:
        del sys.modules["torch_utils.persistence"], sys.modules["torch_utils"]


def write(path: Path, content: object, *, protocol: int = 4) -> Path:
    with importable_persistence():
        path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


class Call:
    """Pickled as a call: what every exploit of pickle is made of."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call
