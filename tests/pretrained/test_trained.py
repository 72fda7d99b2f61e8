"""Weights of the training scripts: a good file loads, any other is refused before it is built."""

from __future__ import annotations

import json
import re
import tracemalloc
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from training import Settings, export

from scoreopt_defense import pretrained
from scoreopt_defense.pretrained.networks import TinyEnergy, TinyResNet, TinyUNet

UNET = {"channels": 2, "widths": [4, 6], "blocks": 1, "sigma_data": 0.3}
RESNET = {
    **{"channels": 2, "num_classes": 3, "stem": 4, "widths": [6, 8], "blocks": 1},
    **{"mean": [0.4, 0.6], "std": [0.2, 0.1]},
}
ENERGY = {"channels": 2, "widths": [4, 6], "blocks": 1, "sigma": 0.3}
NETWORKS = {"denoiser": TinyUNet, "energy": TinyEnergy, "classifier": TinyResNet}
LOADERS = {"denoiser": pretrained.denoiser, "classifier": pretrained.classifier}
LOADERS["energy"] = pretrained.denoiser
every_kind = pytest.mark.parametrize("kind", ["denoiser", "classifier"])


def trained(kind: str) -> torch.nn.Module:
    """A network none of whose layers is still zero."""
    net = NETWORKS[kind](**{"denoiser": UNET, "energy": ENERGY, "classifier": RESNET}[kind])
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return net.half().float().eval()  # as exported


def card_of(kind: str) -> dict:
    if kind == "denoiser":
        return {"kind": kind, "config": UNET, "sigma_range": [0.1, 2.0], "seed": 0}
    if kind == "energy":
        return {"kind": kind, "config": ENERGY, "seed": 0}
    return {"kind": kind, "config": RESNET, "classes": ["a", "b", "c"], "seed": 0}


def exported(kind: str, out: Path) -> torch.nn.Module:
    """What a training script writes to ``out``, of a network of ``trained``."""
    net, card = trained(kind), card_of(kind)
    settings = Settings(
        **{"source": "mnist", "init": None, "holdout": 0, "images": 1, "batch": 1, "lr": 0.1},
        **{"weight_decay": 0.0, "ema": 0.9, "flip": False, "shift": 0, "cutout": 0},
        **{"precision": "float32", "seed": card.pop("seed")},
    )
    export(net, out, card.pop("kind"), card.pop("config"), settings, **card)
    return net


@every_kind
def test_what_was_exported_is_what_loads(kind, tmp_path):
    net = exported(kind, tmp_path)
    state = torch.random.get_rng_state()
    loaded = LOADERS[kind](f"file:{tmp_path / f'{kind}.safetensors'}")
    assert torch.equal(state, torch.random.get_rng_state())
    assert not any(module.training for module in loaded.modules())
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in loaded.parameters())
    x = torch.rand(2, 2, 8, 8)
    sigma = torch.tensor([0.3, 1.0])
    args = (x, sigma) if kind == "denoiser" else (x,)
    torch.testing.assert_close(loaded(*args), net(*args))
    if kind == "denoiser":
        assert (loaded.sigma_range, loaded.channels) == ((0.1, 2.0), 2)


def write(path: Path, kind: str, card: object, weights: dict | None = None) -> Path:
    """A file with any card, by default with the right weights."""
    text = card if isinstance(card, str) else json.dumps(card)
    save_file(trained(kind).state_dict() if weights is None else weights, path, {"card": text})
    return path


def with_config(kind: str, **change: object) -> dict:
    card = card_of(kind)
    return card | {"config": card["config"] | change}


def without(kind: str, name: str) -> dict:
    card = card_of(kind)
    return card | {"config": {k: v for k, v in card["config"].items() if k != name}}


HUGE = [4096] * 16
CARDS = [
    ("denoiser", with_config("denoiser", channels=0), "channels must be a whole number"),
    ("denoiser", with_config("denoiser", channels=True), "channels must be a whole number"),
    ("denoiser", with_config("denoiser", channels=2.0), "channels must be a whole number"),
    ("denoiser", with_config("denoiser", blocks=10**9), "blocks must be a whole number"),
    ("denoiser", with_config("denoiser", blocks=64), "not the weights of this TinyUNet"),
    ("denoiser", with_config("denoiser", widths=10**9), "widths must be a list of 1 to 16"),
    ("denoiser", with_config("denoiser", widths=[]), "widths must be a list of 1 to 16"),
    ("denoiser", with_config("denoiser", widths=[4] * 99), "widths must be a list of 1 to 16"),
    ("denoiser", with_config("denoiser", widths=[4, 10**12]), "widths must be a list of 1 to 16"),
    ("denoiser", with_config("denoiser", widths=HUGE), "not the weights of this TinyUNet"),
    ("denoiser", with_config("denoiser", widths=[4, 7]), "not the weights of this TinyUNet"),
    ("denoiser", with_config("denoiser", embedding=32), "not the weights of this TinyUNet"),
    ("denoiser", with_config("denoiser", sigma_data=0), "sigma_data must be a number above 0"),
    ("denoiser", with_config("denoiser", sigma_data=float("nan")), "sigma_data must be a number"),
    ("denoiser", with_config("denoiser", sigma_data=10**400), "sigma_data must be a number"),
    ("denoiser", with_config("denoiser", sigma_data="__import__('os')"), "sigma_data must be"),
    ("denoiser", with_config("denoiser", device="cuda"), r"unknown .*\['device'\]"),
    ("denoiser", without("denoiser", "sigma_data"), r"missing .*\['sigma_data'\]"),
    ("denoiser", card_of("denoiser") | {"sigma_range": [2.0, 0.1]}, "sigma_range must be"),
    ("denoiser", card_of("denoiser") | {"sigma_range": [0, 1]}, "sigma_range must be"),
    ("denoiser", card_of("denoiser") | {"sigma_range": [0.1, float("inf")]}, "sigma_range must be"),
    ("denoiser", card_of("denoiser") | {"sigma_range": 1}, "sigma_range must be"),
    ("denoiser", {"kind": "denoiser", "config": UNET}, "sigma_range must be"),
    ("denoiser", card_of("denoiser") | {"config": [1]}, "config must be"),
    ("denoiser", [1], "card must be"),
    ("denoiser", "{", "Expecting"),
    ("denoiser", "[" * 100_000, "recursion"),
    ("denoiser", "1" * 5000, "digits|card must be"),
    ("energy", with_config("energy", sigma=0), "sigma must be a number above 0"),
    ("energy", with_config("energy", blocks=2), "not the weights of this TinyEnergy"),
    ("energy", without("energy", "sigma"), r"missing .*\['sigma'\]"),
    ("classifier", with_config("classifier", num_classes=10**9), "num_classes must be a whole"),
    ("classifier", with_config("classifier", num_classes=4), "not the weights of this TinyResNet"),
    ("classifier", with_config("classifier", mean=[0.5] * 3), "mean must have 1 or 2 values"),
    ("classifier", with_config("classifier", std=[0.0, 0.1]), "std must be a list of .* above 0"),
    ("classifier", with_config("classifier", std=[[0.1], [0.1]]), "std must be a list of"),
    ("classifier", without("classifier", "mean"), r"missing .*\['mean'\]"),
]


@pytest.mark.parametrize(("kind", "card", "message"), CARDS, ids=lambda v: str(v)[:60])
def test_a_configuration_is_checked_before_anything_is_built(kind, card, message, tmp_path):
    path = write(tmp_path / "net.safetensors", kind, card)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=rf"(?s){re.escape(str(path))} is no .*{message}"):
            LOADERS[kind](f"file:{path}")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 200e6  # of Python's objects


@every_kind
@pytest.mark.parametrize(
    "change",
    [
        lambda weights: weights.pop(next(iter(weights))),
        lambda weights: weights.update(more=torch.zeros(1)),
        lambda weights: weights.update({"head.bias": torch.zeros(99)}),
        lambda weights: weights.update({"head.bias": weights["head.bias"].long()}),
    ],
    ids=["one less", "one more", "another shape", "integers"],
)
def test_weights_must_be_exactly_those_of_the_configuration(kind, change, tmp_path):
    weights = dict(trained(kind).state_dict())
    change(weights)
    path = write(tmp_path / "net.safetensors", kind, card_of(kind), weights)
    with pytest.raises(ValueError, match="not the weights of this Tiny"):
        LOADERS[kind](f"file:{path}")


@pytest.mark.parametrize(
    ("kind", "other", "loader"),
    [
        ("denoiser", "classifier", "classifier"),
        ("classifier", "denoiser", "denoiser"),
        ("classifier", "energy", "denoiser"),
    ],
)
def test_the_other_kind_names_the_function_that_loads_it(kind, other, loader, tmp_path):
    path = write(tmp_path / "net.safetensors", other, card_of(other))
    with pytest.raises(ValueError, match=rf"of kind '{other}': load it by pretrained\.{loader}"):
        LOADERS[kind](f"file:{path}")


@every_kind
def test_files_of_other_things_are_a_plain_error(kind, tmp_path):
    exported(kind, tmp_path)
    whole = (tmp_path / f"{kind}.safetensors").read_bytes()
    save_file({"a": torch.zeros(1)}, tmp_path / "other")
    torch.save({"averaged": trained(kind).state_dict()}, tmp_path / "checkpoint.pt")
    for name, content in {
        "empty": b"",
        "half": whole[: len(whole) // 2],
        "a byte less": whole[:-1],
        "text": b"weights",
        "other": (tmp_path / "other").read_bytes(),
        "checkpoint.pt": (tmp_path / "checkpoint.pt").read_bytes(),
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} is no {kind} of train_{kind}.py"):
            LOADERS[kind](f"file:{tmp_path / name}")


@every_kind
def test_a_missing_file_and_an_empty_name_say_so(kind, tmp_path):
    for place in (tmp_path, tmp_path / "missing.safetensors"):
        with pytest.raises(FileNotFoundError, match=f"no file at {re.escape(str(place))}"):
            LOADERS[kind](f"file:{place}")
    with pytest.raises(ValueError, match=rf"{kind} must be one of .*file:<file>.*got 'file:'"):
        LOADERS[kind]("file:")


def test_a_file_has_no_other_path(tmp_path):
    with pytest.raises(ValueError, match="path must be None for 'file:x', which says where"):
        pretrained.denoiser("file:x", path=tmp_path)
