"""The part of speed.py on paper: the paper's networks and its Table 1 on an H100, from FLOPs.

Nothing here has run on a GPU. Operations are counted on tensors without data.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import results_file
from benchmarks.common.results_file import resumed
from benchmarks.common.timing import short
from scoreopt_defense.presets import preset

__all__ = ["gpu_hours", "overheads", "paper"]

#: NVIDIA's data sheet of the H100 SXM: 989 TFLOP/s in TF32 with sparsity, half of it without.
H100 = 494.5e12
#: The share of that which a network reaches: an assumption.
UTILISATION = 0.3
IMAGES, TRIALS = 512, 5  # the paper's, section 4
#: Purifications of an image under BPDA+EOT, appendix C.3, and differentiated or not.
ATTACK = 50 * 15
#: A vote decides clean accuracy, and another one confirms a break: Hill et al., ICLR 2021.
VOTES = 2 * 150


def paper(args: argparse.Namespace, rows: resumed) -> None:
    """FLOPs of each network, and hours of Table 1's two rows of ScoreOpt."""
    for name, (build, shape) in NETWORKS.items():
        if not rows.has({"network": name}):
            rows.add({"network": name, "shape": shape, **flops(build, shape)})
    found = {row["network"]: row for row in rows.rows if "network" in row}
    unet, classifier = found["EDM, CIFAR-10"], found["WRN-28-10"]
    measured = overheads()
    for variant in ("O", "N"):
        steps = preset(f"cifar10/bpda-eot-linf/{variant}")["steps"]
        key = {"table": 1, "variant": variant}
        if rows.has(key):
            continue
        purification = {
            "forward": (steps + (variant == "N")) * unet["forward"],
            "input gradient": steps * unet["input gradient"],
        }
        classified = {
            "attack": classifier["forward"] + classifier["input gradient"],  # BPDA: no purifier
            "votes": classifier["forward"],
        }
        operations = {
            part: IMAGES * TRIALS * count * (sum(purification.values()) + classified[part])
            for part, count in {"attack": ATTACK, "votes": VOTES}.items()
        }
        hours = {
            part: gpu_hours(value, measured.get(variant, 1.0)) for part, value in operations.items()
        }
        rows.add(
            key | {
                "steps": steps,
                "purifications": {"attack": ATTACK, "votes": VOTES},
                "FLOPs of a purification": {k: short(v) for k, v in purification.items()},
                "measured overhead": measured.get(variant),
                "hours": {part: short(value) for part, value in hours.items()},
                "utilisation": UTILISATION, "FLOP/s": H100,
            }
        )  # fmt: skip


def gpu_hours(operations: float, overhead: float) -> float:
    """Hours of an H100 for so many operations of networks, times what goes with them."""
    return operations / (UTILISATION * H100) / 3600 * overhead


def overheads() -> dict[str, float]:
    """The ratio of a call to its bare passes at the largest batch, as measured, if it was."""
    path = results_file.RESULTS / "speed_overhead_kept.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    of = {"O": "diff", "N": "noise"}
    rows = sorted((row for row in rows if "loss" in row), key=lambda row: row["batch"])
    return {
        row["variant"]: row["ratios"]["eager"]["value"]
        for row in rows
        if of[row["variant"]] == row["loss"]
    }


def flops(
    build: Callable[[], Callable[[Tensor], Tensor]], shape: tuple[int, ...]
) -> dict[str, int]:
    """Of one image's forward pass, and of the gradient to its input: two a multiply-add."""
    with torch.device("meta"):
        call = build()
        x = torch.empty(1, *shape, requires_grad=True)
        with FlopCounterMode(display=False) as forward:
            found = call(x)
        with FlopCounterMode(display=False) as backward:
            torch.autograd.grad(found, x, torch.empty_like(found))
    return {
        "forward": forward.get_total_flops(),
        "input gradient": backward.get_total_flops(),
    }


def _frozen(net: nn.Module) -> Any:
    return net.eval().requires_grad_(False)


def _edm() -> Callable[[Tensor], Tensor]:
    from deepinv.models import NCSNpp

    net = _frozen(NCSNpp(pretrained=None, device=None, **_EDM))
    return lambda x: net.forward_unet(x, torch.empty(1), class_labels=None)


# edm-cifar10-32x32-uncond-vp, as pretrained/hub.py has it
_EDM: dict[str, Any] = {
    "model_type": "ddpm", "img_resolution": 32, "in_channels": 3, "out_channels": 3,
    "label_dim": 0, "augment_dim": 9, "model_channels": 128, "channel_mult": [2, 2, 2],
    "channel_mult_emb": 4, "num_blocks": 4, "attn_resolutions": [16],
}  # fmt: skip


def _guided_diffusion() -> Callable[[Tensor], Tensor]:
    from deepinv.models import DiffUNet

    net = _frozen(DiffUNet(large_model=True, pretrained=None))
    return lambda x: net(x, torch.empty(1), type_t="timestep")


def _wrn(depth: int, widen_factor: int) -> Callable[[Tensor], Tensor]:
    return _frozen(_robustbench("wide_resnet").WideResNet(depth=depth, widen_factor=widen_factor))


def _robustbench(name: str) -> ModuleType:
    """An architecture of it, by its file: the package itself imports what setuptools removed."""
    found = importlib.util.find_spec("robustbench")
    if found is None or found.origin is None:
        raise SystemExit("the paper's classifier is robustbench's: pip install robustbench")
    path = Path(found.origin).parent / "model_zoo" / "architectures" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _torchvision(name: str) -> Callable[[Tensor], Tensor]:
    return _frozen(importlib.import_module("torchvision.models").get_model(name))


NETWORKS: dict[str, tuple[Callable[[], Callable[[Tensor], Tensor]], tuple[int, ...]]] = {
    "EDM, CIFAR-10": (_edm, (3, 32, 32)),
    "WRN-28-10": (partial(_wrn, 28, 10), (3, 32, 32)),
    "WRN-70-16": (partial(_wrn, 70, 16), (3, 32, 32)),
    "guided diffusion, ImageNet": (_guided_diffusion, (3, 256, 256)),
    "ResNet-50": (partial(_torchvision, "resnet50"), (3, 256, 256)),
    "ResNet-152": (partial(_torchvision, "resnet152"), (3, 256, 256)),
    "WRN-50-2": (partial(_torchvision, "wide_resnet50_2"), (3, 256, 256)),
}
