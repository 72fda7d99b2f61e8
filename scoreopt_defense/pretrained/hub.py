"""Published score models: downloaded once, or read from where they already are."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from scoreopt_defense._optional import optional
from scoreopt_defense.denoisers.base import Denoiser
from scoreopt_defense.denoisers.deepinv import DiffUNetDenoiser
from scoreopt_defense.denoisers.diffusers import diffusers_denoiser
from scoreopt_defense.pretrained import edm_network, edm_pickle
from scoreopt_defense.pretrained.edm_network import EDMConfig

__all__ = ["denoiser", "downloaded_names"]


@dataclass(frozen=True)
class _Published:
    """A model on a server.

    Attributes:
        url: of its weights.
        file: their name in the cache.
        build: the denoiser with these weights.
        sha256: of the file; None where nobody has published one.
    """

    url: str
    file: str
    build: Callable[[dict[str, Tensor]], Denoiser]
    sha256: str | None = None


def denoiser(name: str, *, path: str | Path | None = None) -> Denoiser:
    """See :func:`scoreopt_defense.pretrained.denoiser`."""
    kind, _, source = name.partition(":")
    if name in _PUBLISHED:
        published = _PUBLISHED[name]
        file = _download(name, published) if path is None else _local(Path(path), published)
        return _from_file(file, published)
    if kind not in ("hf", "edm") or not source:
        from scoreopt_defense.pretrained import names

        raise ValueError(
            f"denoiser must be one of {names('denoiser') + downloaded_names()}, "
            f"'hf:<id or folder>' or 'edm:<file>', got {name!r}"
        )
    if path is not None:
        raise ValueError(f"path must be None for {name!r}, which says where the model is")
    return _diffusers(source) if kind == "hf" else _edm(Path(source))


def downloaded_names() -> list[str]:
    """The names of models that are downloaded on first use."""
    return sorted(_PUBLISHED)


def _from_file(file: Path, published: _Published) -> Denoiser:
    if file.suffix == ".pkl":
        return _edm(file)
    try:
        weights = (
            safetensors.torch.load_file(file)
            if file.suffix == ".safetensors"
            else torch.load(file, map_location="cpu", weights_only=True)
        )
    except (RuntimeError, EOFError, pickle.UnpicklingError, safetensors.SafetensorError) as error:
        raise ValueError(
            f"{file} is truncated, altered or no file of weights: delete it and try again "
            f"({type(error).__name__}: {str(error)[:200]})"
        ) from error
    if not isinstance(weights, dict) or not all(isinstance(v, Tensor) for v in weights.values()):
        raise ValueError(f"{file} must hold a state dict, names and tensors, and holds more")
    return published.build(weights)


def _edm(file: Path) -> Denoiser:
    read = {".pkl": edm_pickle.read_snapshot, ".safetensors": edm_network.load_converted}
    if file.suffix not in read:
        raise ValueError(f"an EDM network must be a file of kind {sorted(read)}, got {file}")
    return edm_network.build(*read[file.suffix](file))


def _local(path: Path, published: _Published) -> Path:
    """The file itself, or the one of the published name in a folder."""
    if not path.is_dir():
        if not path.is_file():
            raise FileNotFoundError(f"no file or folder at {path}")
        return path
    stem = Path(published.file).stem
    for suffix in (".pt", ".safetensors", ".pkl"):
        if (path / (stem + suffix)).is_file():
            return path / (stem + suffix)
    raise FileNotFoundError(
        f"no {published.file}, and no .safetensors or .pkl of that name, in {path}"
    )


def _download(name: str, published: _Published) -> Path:
    """The file in torch's hub cache, fetched if it is not there; its checksum, if known, holds."""
    file = Path(torch.hub.get_dir()) / "checkpoints" / published.file
    elsewhere = (
        f"download {published.url} on another machine and put it at {file}, or pass its place as "
        f"pretrained.denoiser({name!r}, path=...)"
    )
    if not file.is_file():
        if _offline():
            raise ConnectionError(
                f"{name!r} is not in the cache and HF_HUB_OFFLINE is set: unset it, or {elsewhere}"
            )
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(
                published.url, str(file), hash_prefix=published.sha256, progress=True
            )
        except (OSError, RuntimeError) as error:  # RuntimeError: another checksum than expected
            raise ConnectionError(
                f"{name!r} could not be downloaded ({error}): {elsewhere}"
            ) from error
    if published.sha256 is not None and _sha256(file) != published.sha256:
        raise ValueError(
            f"{file} is truncated or altered: its SHA-256 is not {published.sha256}. Delete it, "
            f"then try again, or {elsewhere}"
        )
    return file


def _offline() -> bool:
    """As huggingface_hub reads the variable."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 24):
            digest.update(chunk)
    return digest.hexdigest()


def _diffusers(source: str) -> Denoiser:
    """A ``UNet2DModel`` and its scheduler, from a folder or the Hugging Face hub."""
    diffusers = optional("diffusers", extra="diffusers")
    try:
        unet_config, unet_folder = _diffusers_config(diffusers.UNet2DModel, source, "unet")
        if unet_config.get("_class_name") != "UNet2DModel":
            raise ValueError(
                f"hf:{source} must be a pixel-space model with a UNet2DModel, not a "
                f"{unet_config.get('_class_name')}"
            )
        if _is_latent(diffusers, source):
            raise ValueError(f"hf:{source} denoises latent codes; a purifier needs one of pixels")
        config, _ = _diffusers_config(diffusers.DDPMScheduler, source, "scheduler")
        with torch.random.fork_rng(devices=[]):  # its weights are first drawn at random
            unet = diffusers.UNet2DModel.from_pretrained(
                source, subfolder=unet_folder, torch_dtype=torch.float32, low_cpu_mem_usage=False
            )
    except OSError as error:
        raise OSError(
            f"hf:{source} could not be loaded: it must be a folder or a model of huggingface.co "
            "with a UNet2DModel (config.json and weights, at the top or in unet/) and a scheduler "
            "(scheduler_config.json, at the top or in scheduler/); without a network, one that is "
            f"in the cache already ({str(error)[:300]})"
        ) from error
    scheduler: Any = getattr(diffusers, str(config.get("_class_name")), None)
    if not hasattr(scheduler, "from_config") or not hasattr(scheduler, "step"):
        raise ValueError(f"hf:{source} has an unknown scheduler, {config.get('_class_name')!r}")
    return diffusers_denoiser(unet.eval().requires_grad_(False), scheduler.from_config(config))


def _diffusers_config(kind: Any, source: str, folder: str) -> tuple[dict[str, Any], str | None]:
    """The configuration of a part, from its own folder or from the top; and which it was."""
    try:
        return dict(kind.load_config(source, subfolder=folder)), folder
    except OSError:
        return dict(kind.load_config(source)), None


def _is_latent(diffusers: Any, source: str) -> bool:
    try:
        parts = diffusers.DiffusionPipeline.load_config(source)
    except OSError:  # a single model, not a pipeline
        return False
    return any(part in parts for part in ("vae", "vqvae", "movq"))


def _cifar10(model_type: str) -> Callable[[dict[str, Tensor]], Denoiser]:
    config = EDMConfig(
        kind="edm",
        architecture="NCSNpp",
        network={
            **{"model_type": model_type, "img_resolution": 32, "in_channels": 3, "out_channels": 3},
            **{"label_dim": 0, "augment_dim": 9, "model_channels": 128, "channel_mult": [2, 2, 2]},
            **{"channel_mult_emb": 4, "num_blocks": 4, "attn_resolutions": [16]},
            **{"dropout": 0.13, "label_dropout": 0},
        },
        preconditioning={"sigma_data": 0.5},
        sigma_range=(0.0, float("inf")),
    )
    return lambda weights: edm_network.build(config, weights)


def _imagenet(weights: dict[str, Tensor]) -> Denoiser:
    models = optional("deepinv.models", extra="deepinv")
    with torch.device("meta"):  # no memory, no random numbers: the weights come from the file
        net = models.DiffUNet(large_model=True, pretrained=None)
    names = ("sqrt_1m_alphas_cumprod", "sqrt_alphas_cumprod")  # deepinv's own, in no published file
    own = dict(zip(names, net.get_alpha_prod()[-2:], strict=True))
    return DiffUNetDenoiser(edm_network.fill(net, weights | own))


_DEEPINV_EDM = "https://huggingface.co/deepinv/edm/resolve/main/"

_PUBLISHED = {
    "edm-cifar10-32x32-uncond-vp": _Published(
        url=_DEEPINV_EDM + "edm-cifar10-32x32-uncond-vp.pt",
        file="edm-cifar10-32x32-uncond-vp.pt",
        build=_cifar10("ddpm"),
    ),
    "edm-cifar10-32x32-uncond-ve": _Published(
        url=_DEEPINV_EDM + "edm-cifar10-32x32-uncond-ve.pt",
        file="edm-cifar10-32x32-uncond-ve.pt",
        build=_cifar10("ncsn"),
    ),
    "guided-diffusion-imagenet-256-uncond": _Published(
        # OpenAI's own file, whose checksum is known; deepinv's copy of it has another name
        url="https://openaipublic.blob.core.windows.net/diffusion/jul-2021/"
        "256x256_diffusion_uncond.pt",
        file="256x256_diffusion_uncond.pt",
        build=_imagenet,
        sha256="a37c32fffd316cd494cf3f35b339936debdc1576dad13fe57c42399a5dbc78b1",
    ),
}
