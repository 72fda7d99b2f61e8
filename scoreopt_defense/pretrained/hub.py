"""Loads published score models: downloaded once, or read from where they already are."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from scoreopt_defense._optional import optional
from scoreopt_defense._text import printable
from scoreopt_defense.denoisers.base import Denoiser
from scoreopt_defense.denoisers.deepinv import DiffUNetDenoiser
from scoreopt_defense.denoisers.diffusers import diffusers_denoiser
from scoreopt_defense.pretrained import edm_network, edm_pickle
from scoreopt_defense.pretrained.edm_network import EDMConfig
from scoreopt_defense.pretrained.reach import hub_or_cache

__all__ = ["denoiser", "downloaded_names"]


@dataclass(frozen=True)
class _Published:
    """A model on a server.

    Attributes:
        url: of its weights.
        file: their name in the cache.
        build: the denoiser with these weights.
        sha256: of the file; None where nobody has published one.
        config: of an EDM network; None for another.
    """

    url: str
    file: str
    build: Callable[[dict[str, Tensor]], Denoiser]
    sha256: str | None = None
    config: EDMConfig | None = None


def denoiser(name: str, *, path: str | Path | None = None) -> Denoiser:
    """See :func:`scoreopt_defense.pretrained.denoiser`."""
    kind, _, source = name.partition(":")
    if name in _PUBLISHED:
        published = _PUBLISHED[name]
        file = _download(name, published) if path is None else _local(Path(path), published)
        return _from_file(file, name, published)
    if kind not in ("hf", "edm") or not source:
        from scoreopt_defense.pretrained import names

        raise ValueError(
            f"denoiser must be one of {names('denoiser') + downloaded_names()}, "
            f"'hf:<id or folder>', 'file:<file>' or 'edm:<file>', got {name!r}"
        )
    if path is not None:
        raise ValueError(f"path must be None for {name!r}, which says where the model is")
    if kind == "edm":
        return edm_network.build(*_read_edm(Path(source)))
    with nullcontext() if Path(source).exists() else hub_or_cache(name):
        return _diffusers(source)


def downloaded_names() -> list[str]:
    """The names of models that are downloaded on first use."""
    return sorted(_PUBLISHED)


def _from_file(file: Path, name: str, published: _Published) -> Denoiser:
    try:
        if file.suffix == ".pkl" or edm_network.is_converted(file):
            config, weights = _read_edm(file)
            _check_config(file, config, name, published)
        elif file.suffix == ".safetensors":
            weights = safetensors.torch.load_file(file)
        else:
            weights = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, safetensors.SafetensorError) as error:
        raise ValueError(
            f"{file} is truncated, altered or no file of weights: delete it and try again "
            f"({type(error).__name__}: {printable(str(error))[:200]})"
        ) from error
    if not isinstance(weights, dict) or not all(isinstance(v, Tensor) for v in weights.values()):
        raise ValueError(f"{file} must hold a state dict, names and tensors, and holds more")
    return published.build(weights)


def _check_config(file: Path, config: EDMConfig, name: str, published: _Published) -> None:
    """What a file says of its network is what the published one is."""
    if published.config is None:
        raise ValueError(f"{file} holds an EDM network, and {name} is none")
    found, expected = _settings(config), _settings(published.config)
    other = [
        f"{key} is {found.get(key)!r}, published: {expected.get(key)!r}"
        for key in sorted(found | expected)
        if found.get(key) != expected.get(key)
    ]
    if other:
        raise ValueError(
            f"{file} is not {name}: {'; '.join(other)}. Load it as "
            f"pretrained.denoiser({f'edm:{file}'!r})"
        )


def _settings(config: EDMConfig) -> dict[str, Any]:
    """All that a network computes depends on: dropout is off when it is used."""
    own = {"kind": config.kind, "architecture": config.architecture}
    every = own | {"sigma_range": config.sigma_range} | config.network | config.preconditioning
    return {key: value for key, value in every.items() if key not in ("dropout", "label_dropout")}


def _read_edm(file: Path) -> tuple[EDMConfig, dict[str, Tensor]]:
    read = {".pkl": edm_pickle.read_snapshot, ".safetensors": edm_network.load_converted}
    if file.suffix not in read:
        raise ValueError(f"an EDM network must be a file of kind {sorted(read)}, got {file}")
    return read[file.suffix](file)


def _local(path: Path, published: _Published) -> Path:
    """The file itself, or the one of the published name in a folder; its checksum, if known, holds.

    A conversion, which has another checksum, is told by its suffix.
    """
    file = _in_folder(path, published) if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"no file or folder at {path}")
    if file.suffix not in (".safetensors", ".pkl") and _is_altered(file, published):
        raise ValueError(
            f"{file} is truncated or altered: its SHA-256 is not {published.sha256}. If it is a "
            "conversion of the published file, write it as .safetensors, whose names and shapes "
            "are checked instead"
        )
    return file


def _in_folder(folder: Path, published: _Published) -> Path:
    stem = Path(published.file).stem
    for suffix in (".pt", ".safetensors", ".pkl"):
        if (folder / (stem + suffix)).is_file():
            return folder / (stem + suffix)
    raise FileNotFoundError(
        f"no {published.file}, and no .safetensors or .pkl of that name, in {folder}"
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
    if _is_altered(file, published):
        raise ValueError(
            f"{file} is truncated or altered: its SHA-256 is not {published.sha256}. Delete it, "
            f"then try again, or {elsewhere}"
        )
    return file


def _offline() -> bool:
    """As huggingface_hub reads the variable."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def _is_altered(file: Path, published: _Published) -> bool:
    """Whether its checksum is known and another."""
    if published.sha256 is None:
        return False
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 24):
            digest.update(chunk)
    return digest.hexdigest() != published.sha256


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


def _cifar10(name: str, model_type: str) -> _Published:
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
    return _Published(
        url=f"https://huggingface.co/deepinv/edm/resolve/main/{name}.pt",
        file=f"{name}.pt",
        build=lambda weights: edm_network.build(config, weights),
        config=config,
    )


def _imagenet(weights: dict[str, Tensor]) -> Denoiser:
    models = optional("deepinv.models", extra="deepinv")
    with torch.device("meta"):  # no memory, no random numbers: the weights come from the file
        net = models.DiffUNet(large_model=True, pretrained=None)
    names = ("sqrt_1m_alphas_cumprod", "sqrt_alphas_cumprod")  # deepinv's own, in no published file
    own = dict(zip(names, net.get_alpha_prod()[-2:], strict=True))
    return DiffUNetDenoiser(edm_network.fill(net, weights | own))


_PUBLISHED = {
    **{
        name: _cifar10(name, model_type)
        for name, model_type in (
            ("edm-cifar10-32x32-uncond-vp", "ddpm"),
            ("edm-cifar10-32x32-uncond-ve", "ncsn"),
        )
    },
    "guided-diffusion-imagenet-256-uncond": _Published(
        # OpenAI's own file, whose checksum is known; deepinv's copy of it has another name
        url="https://openaipublic.blob.core.windows.net/diffusion/jul-2021/"
        "256x256_diffusion_uncond.pt",
        file="256x256_diffusion_uncond.pt",
        build=_imagenet,
        sha256="a37c32fffd316cd494cf3f35b339936debdc1576dad13fe57c42399a5dbc78b1",
    ),
}
