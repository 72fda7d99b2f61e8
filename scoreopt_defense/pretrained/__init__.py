"""Networks by name: small ones that ship with the package, published ones, and your own.

The names of ``names("denoiser")`` and ``names("classifier")`` ship with the package and never touch
the network.
"""

from __future__ import annotations

import hashlib
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scoreopt_defense._checks import check_choice
from scoreopt_defense.denoisers import Denoiser, EDMDenoiser, EnergyDenoiser, of_pipeline
from scoreopt_defense.pretrained import trained

__all__ = ["CHECKSUMS", "card", "classifier", "denoiser", "names"]

#: SHA-256 of each weight file, by kind and name: an altered one must not pass for a model.
CHECKSUMS = {
    "classifier": {
        "cifar10-tiny": "2df05a449519eed5951f3b9def0ae2ccc2a53cd72f004a99300d209a57df1a23",
        "cifar10-tiny-at": "867ba733c6da3851c050313298ca2c2caa81aff23c9ee8021fa0d9205a3f249a",
        "cifar10-tiny-menet": "ac3189c5116fe375f00db0b3faff0dc76a546a60500235e0650a8dee486501bd",
        "mnist-tiny": "a634cfe3e61b22aa0b0a2f5b250109793d63f53047de9817ef2002d3a3ef2601",
    },
    "denoiser": {
        "cifar10-tiny": "54a48c4a597c9b5986e38630e427da4c4584d2052df4266b667f759ce5181d88",
        "mnist-tiny": "a374ee5d2a24a4b35dc5c778534db43aa6ccfcec813ed1778d9b66cf2d5b5516",
        "mnist-tiny-ebm": "62185095c506ad0eecc65053756f7bfdafe9b1d9b0b43ecacdb4a3f31791ff0c",
        "mnist-tiny-labelled": "fa1228c95491247c5e4a778aac5b16597e1176cb3d5a8462f3b6de1832b0f9cc",
    },
}
_SIDES = {"mnist": 28, "cifar10": 32}  # of the images of those that ship, in pixels


def names(kind: str) -> list[str]:
    """The names of :func:`denoiser` (``"denoiser"``) or :func:`classifier` that ship here."""
    check_choice("kind", kind, CHECKSUMS)
    return sorted(CHECKSUMS[kind])


def denoiser(name: str | Any, *, path: str | Path | None = None) -> Denoiser:
    """A pretrained denoiser, on the CPU, in float32 and eval mode, its weights frozen.

    Args:
        name: what to load; an unknown name lists all. Or a pipeline of diffusers, of which the
            network is taken as it is: its ``unet``, by its ``scheduler``.

            - One of ``names("denoiser")`` ships with the package; ``"mnist-tiny-ebm"`` is an
              energy.
            - ``"edm-cifar10-32x32-uncond-vp"``, ``"edm-cifar10-32x32-uncond-ve"`` and
              ``"guided-diffusion-imagenet-256-uncond"``, the paper's models, are downloaded on
              first use to torch's hub cache, unless ``HF_HUB_OFFLINE`` is set.
            - ``"hf:<id or folder>"`` is a pixel-space diffusers model, such as
              ``"hf:google/ddpm-cifar10-32"``.
            - ``"file:<file>"`` is the ``denoiser.safetensors`` of ``examples/train_denoiser.py``,
              or the ``energy.safetensors`` of ``examples/train_ebm.py``.
            - ``"edm:<file>"`` is a training in EDM: NVIDIA's ``network-snapshot-*.pkl``, which
              is read without being run, or what ``scoreopt convert-edm`` made of it.
        path: for a name that is downloaded, the file, or the folder that holds it, to load instead.
            docs/reference/score-models.md says what is checked of it.

    Raises:
        ValueError: if the name is unknown or a weight file is damaged or not what it should be.
        OSError: if there is no such file, or a download is impossible.
        ImportError: if the library whose network it is is missing.

    Example:
        >>> denoiser("mnist-tiny").sigma_range
        (0.1, 2.0)
    """
    if not isinstance(name, str):
        if path is None and isinstance(found := of_pipeline(name), Denoiser):
            return found
        raise TypeError(
            "name must be text or a diffusers pipeline, with unet and scheduler, and that alone, "
            f"got {type(name).__name__}"
        )
    if name not in names("denoiser") and not _is_file(name):
        from scoreopt_defense.pretrained import hub

        return hub.denoiser(name, path=path)
    if path is not None:
        why = "says where the model is" if _is_file(name) else "ships with the package"
        raise ValueError(f"path must be None for {name!r}, which {why}")
    net, about = _load("denoiser", name)
    net.img_resolution = _SIDES.get(name.partition("-")[0])  # type: ignore[assignment]
    if about["kind"] == "energy":
        return EnergyDenoiser(net, sigma=about["config"]["sigma"])
    classes = about["config"].get("num_classes", 0)
    no_label = torch.zeros(1, classes) if classes else None
    return EDMDenoiser(net, sigma_range=tuple(about["sigma_range"]), class_labels=no_label)


def classifier(name: str) -> nn.Module:
    """A classifier of images in [0, 1], on the CPU, in float32 and eval mode, its weights frozen.

    Args:
        name: what to load; an unknown name lists all.

            - One of ``names("classifier")`` ships with the package; ``"cifar10-tiny-at"`` was
              trained on attacked images, ``"cifar10-tiny-menet"`` on those that ME-Net completes.
            - ``"file:<file>"`` is the ``classifier.safetensors`` of
              ``examples/train_classifier.py``.

    Raises:
        ValueError: if the name is unknown or a weight file is damaged or not what it should be.
        FileNotFoundError: if there is no such file.

    Example:
        >>> import torch
        >>> classifier("mnist-tiny")(torch.rand(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """
    net, _ = _load("classifier", name)
    return net


def card(name: str) -> str:
    """The model card of the networks that ship under that name, as Markdown.

    Raises:
        ValueError: if nothing ships under it; the error lists all names.
    """
    check_choice("name", name, sorted({name for kind in CHECKSUMS for name in names(kind)}))
    return resources.files(__name__).joinpath(f"cards/{name}.md").read_text()


def _is_file(name: str) -> bool:
    return name.startswith("file:") and name != "file:"


def _load(kind: str, name: str) -> tuple[nn.Module, dict[str, Any]]:
    if _is_file(name):
        return trained.load(kind, Path(name.removeprefix("file:")))
    check_choice(kind, name, [*names(kind), "file:<file>"])
    resource = resources.files(__name__).joinpath(f"weights/{name}-{kind}.safetensors")
    with resources.as_file(resource) as path:
        if hashlib.sha256(path.read_bytes()).hexdigest() != CHECKSUMS[kind][name]:
            raise ValueError(
                f"the weights of {kind} {name!r} are truncated or altered ({path}): reinstall "
                "scoreopt-defense"
            )
        return trained.load(kind, path)
