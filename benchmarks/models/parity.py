"""How far each adapter is from its source's own code, for sources that PyPI does not have.

    git clone https://github.com/NVlabs/edm
    git clone https://github.com/openai/guided-diffusion
    git clone https://github.com/yang-song/score_sde_pytorch
    git clone https://github.com/crowsonkb/k-diffusion
    python -m benchmarks.models.parity --clones .

Networks have random weights. Prints and writes the largest difference of the denoised images over
the largest absolute value of the source's (or over 1). Snapshots of EDM are pickled by EDM, read by
``read_snapshot``, and compared with the network that was pickled. ``--wide`` adds the published
architectures: CIFAR-10 with 56 M weights, ImageNet with 553 M.
"""

from __future__ import annotations

import argparse
import copy
import math
import pickle
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import safetensors.torch
import torch
from torch import Tensor, nn

from benchmarks.common.results_file import write
from scoreopt_defense import pretrained
from scoreopt_defense.denoisers import (
    Denoiser,
    GuidedDiffusionDenoiser,
    KDiffusionDenoiser,
    score_sde_denoiser,
)

Reference = Callable[[Tensor, float], Tensor]
Row = tuple[str, Denoiser, Reference, list[float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clones", type=Path, required=True, help="folder that holds the clones")
    parser.add_argument("--wide", action="store_true", help="the published networks too")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    found = []
    for source, rows in SOURCES.items():
        clone = arguments.clones / source
        if not clone.is_dir():
            print(f"{source}: no clone at {clone}")
            continue
        sys.path.insert(0, str(clone))
        for name, denoiser, reference, sigmas in rows(arguments.wide):
            worst = difference(denoiser, reference, sigmas)
            print(f"{source}: {name}: {worst:.1e}", flush=True)
            found.append({"source": source, "network": name, "difference": worst})
        sys.path.remove(str(clone))
    write("score_model_parity", seed=0, images=2, wide=arguments.wide, rows=found)


@torch.no_grad()
def difference(denoiser: Denoiser, reference: Reference, sigmas: list[float]) -> float:
    worst = 0.0
    for sigma in sigmas:
        x_t = 2 * torch.rand(2, 3, 32, 32) - 1 + sigma * torch.randn(2, 3, 32, 32)
        expected = reference(x_t, sigma)
        scale = max(1.0, expected.abs().max().item())
        worst = max(worst, (denoiser(x_t, sigma) - expected).abs().max().item() / scale)
    return worst


def edm(wide: bool) -> Iterator[Row]:
    import dnnlib

    vp = {"embedding_type": "positional", "encoder_type": "standard", "resample_filter": [1, 1]}
    ve = {"embedding_type": "fourier", "encoder_type": "residual", "resample_filter": [1, 3, 3, 1]}
    song = {"model_type": "SongUNet", "augment_dim": 9, "dropout": 0.13}
    ddpmpp, ncsnpp = song | vp | {"channel_mult_noise": 1}, song | ve | {"channel_mult_noise": 2}
    small = {"model_channels": 32, "channel_mult": [2, 2], "num_blocks": 1}
    paper = {"model_channels": 128, "channel_mult": [2, 2, 2]}
    adm = {"model_type": "DhariwalUNet", "attn_resolutions": [16]}
    networks = {
        "DDPM++, 32 channels": ("EDMPrecond", ddpmpp | small),
        "NCSN++, 32 channels": ("EDMPrecond", ncsnpp | small),
        "DDPM++, 32 channels, VP preconditioning": ("VPPrecond", ddpmpp | small),
        "NCSN++, 32 channels, VE preconditioning": ("VEPrecond", ncsnpp | small),
        "DDPM++, 96 channels, 10 classes": (
            "EDMPrecond",
            ddpmpp | small | {"model_channels": 96, "label_dim": 10},
        ),
        "ADM, 32 channels, 10 classes": ("EDMPrecond", adm | small | {"label_dim": 10}),
        "ADM, 64 channels": ("EDMPrecond", adm | small | {"model_channels": 64}),
    }
    if wide:
        networks["DDPM++, published CIFAR-10 architecture"] = ("EDMPrecond", ddpmpp | paper)
        networks["NCSN++, published CIFAR-10 architecture"] = ("EDMPrecond", ncsnpp | paper)
    for name, (kind, arguments) in networks.items():
        common = {"img_resolution": 32, "img_channels": 3, "label_dim": 0} | arguments
        net = dnnlib.util.construct_class_by_name(class_name=f"training.networks.{kind}", **common)
        waken(net, added=True)
        ema = copy.deepcopy(net).eval().requires_grad_(False)
        loss = f"training.loss.{kind.replace('Precond', 'Loss')}"
        snapshot = {"ema": ema, "loss_fn": dnnlib.util.construct_class_by_name(class_name=loss)}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "network-snapshot.pkl"
            path.write_bytes(pickle.dumps(snapshot))
            denoiser = pretrained.denoiser(f"edm:{path}")
        one_hot = None
        if common["label_dim"]:
            denoiser = denoiser.with_class_label(3)
            one_hot = nn.functional.one_hot(torch.tensor([3, 3]), common["label_dim"])

        def reference(x: Tensor, s: float, ema: Any = ema, one_hot: Any = one_hot) -> Tensor:
            return ema(x, torch.tensor([s, s]), one_hot)

        yield name, denoiser, reference, [0.05, 0.25, 1.0, 20.0]


def guided_diffusion(wide: bool) -> Iterator[Row]:
    sys.modules.setdefault("blobfile", MagicMock())
    from guided_diffusion import script_util

    tiny = {"image_size": 32, "num_channels": 32, "num_res_blocks": 1, "channel_mult": "1,2"}
    tiny |= {"num_heads": 2, "resblock_updown": True}
    options = {
        "epsilon": tiny,
        "learned variance": tiny | {"learn_sigma": True},
        "learned variance, respaced, classes": tiny
        | {"learn_sigma": True, "timestep_respacing": "250", "class_cond": True},
    }
    if wide:  # as the repository's README says for 256x256_diffusion_uncond.pt
        options["published ImageNet architecture"] = {
            **{"image_size": 256, "num_channels": 256, "num_res_blocks": 2, "learn_sigma": True},
            **{"attention_resolutions": "32,16,8", "num_head_channels": 64},
            **{"resblock_updown": True, "use_scale_shift_norm": True},
        }
    for name, chosen in options.items():
        defaults = script_util.model_and_diffusion_defaults()
        net, diffusion = script_util.create_model_and_diffusion(**(defaults | chosen))
        published = name.startswith("published")
        waken(net.eval(), 0.02 if published else 0.05)
        labels = {"y": torch.tensor([7, 7])} if "classes" in name else {}
        if published:
            with tempfile.TemporaryDirectory() as folder:
                # not as .pt, whose checksum would have to be OpenAI's
                path = Path(folder) / "256x256_diffusion_uncond.safetensors"
                safetensors.torch.save_file(net.state_dict(), path)
                published_name = "guided-diffusion-imagenet-256-uncond"
                denoiser = pretrained.denoiser(published_name, path=path)
        else:
            denoiser = GuidedDiffusionDenoiser(net, diffusion, class_label=7 if labels else None)
        abar = torch.as_tensor(diffusion.alphas_cumprod)
        sigmas = ((1 - abar) / abar).sqrt()

        def reference(
            x_t: Tensor, s: float, net=net, diffusion=diffusion, sigmas=sigmas, labels=labels
        ) -> Tensor:
            t = (sigmas - s).abs().argmin().expand(2)
            z = x_t / math.sqrt(1 + s**2)
            moments = diffusion.p_mean_variance(net, z, t, clip_denoised=False, model_kwargs=labels)
            return moments["pred_xstart"]

        grid = sigmas[[len(sigmas) // 50, len(sigmas) // 5, len(sigmas) // 2]].tolist()
        yield name, denoiser, reference, grid


def score_sde(wide: bool) -> Iterator[Row]:
    import sde_lib
    from models import utils
    from models.ddpm import DDPM

    config = SimpleNamespace(
        model=SimpleNamespace(
            nf=32, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(16,), dropout=0.0,
            resamp_with_conv=True, conditional=True, nonlinearity="swish", scale_by_sigma=False,
            normalization="GroupNorm", sigma_max=50, sigma_min=0.01, num_scales=1000,
        ),
        data=SimpleNamespace(image_size=32, num_channels=3, centered=True),
    )  # fmt: skip
    for kind, continuous in (("VPSDE", True), ("subVPSDE", True), ("VPSDE", False)):
        sde, net = getattr(sde_lib, kind)(), waken(DDPM(config).eval())
        score = utils.get_score_fn(sde, net, continuous=continuous)

        def vp(x_t: Tensor, s: float, sde=sde, score=score, kind=kind, steps=not continuous):
            if steps:
                sigmas = ((1 - sde.alphas_cumprod) / sde.alphas_cumprod).sqrt()
                step = (sigmas - s).abs().argmin()
                time, mean = step / 999, sde.sqrt_alphas_cumprod[step]
                std = sde.sqrt_1m_alphas_cumprod[step]
            else:
                time, (mean, std) = solve(sde, s)
            return (mean * x_t + std**2 * score(mean * x_t, time.float().expand(2))) / mean

        denoiser = score_sde_denoiser(net, sde, continuous=continuous, centered=True)
        on_grid = ((1 - sde_lib.VPSDE().alphas_cumprod) / sde_lib.VPSDE().alphas_cumprod).sqrt()
        sigmas = [0.05, 0.25, 1.0, 10.0] if continuous else on_grid[[20, 200, 500]].tolist()
        yield f"{kind}, continuous {continuous}", denoiser, vp, sigmas
    config.data.centered = False
    net, sde = waken(DDPM(config).eval()), sde_lib.VESDE()
    score = utils.get_score_fn(sde, net, continuous=True)

    def ve(x_t: Tensor, s: float) -> Tensor:
        x, own = (x_t + 1) / 2, s / 2
        time = math.log(own / sde.sigma_min) / math.log(sde.sigma_max / sde.sigma_min)
        return 2 * (x + own**2 * score(x, torch.full((2,), time, dtype=torch.float64))) - 1

    denoiser = score_sde_denoiser(net, sde, continuous=True, centered=False)
    yield "VESDE, images in [0, 1]", denoiser, ve, [0.05, 0.25, 1.0, 10.0]


def solve(sde: Any, sigma: float) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The time at which an SDE of score_sde has that noise, by its own ``marginal_prob``."""
    low, high = 0.0, 1.0
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    for _ in range(60):
        time = torch.tensor([(low + high) / 2], dtype=torch.float64)
        mean, std = sde.marginal_prob(one, time)
        above = (std / mean.squeeze()).item() > sigma
        low, high = (low, time.item()) if above else (time.item(), high)
    return time, (mean.squeeze().float(), std.squeeze().float())


def k_diffusion(wide: bool) -> Iterator[Row]:
    clone = Path(sys.path[0])
    for name in ("torchdiffeq", "torchsde", "dctorch", "clip", "skimage", "accelerate"):
        sys.modules.setdefault(name, MagicMock())
    package = ModuleType("k_diffusion")  # its own __init__ imports the whole library
    package.__path__ = [str(clone / "k_diffusion")]
    sys.modules["k_diffusion"] = package
    from k_diffusion import external, layers

    class Raw(nn.Module):
        def __init__(self, scale: float, out: int = 3) -> None:
            super().__init__()
            self.conv, self.scale = nn.Conv2d(4, out, 3, padding=1), scale

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            time = (self.scale * t).sin().reshape(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])
            return self.conv(torch.cat([x, time.to(x.dtype)], 1))

    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    schedule = SimpleNamespace(alphas_cumprod=(1 - betas).cumprod(0).numpy())
    abar = torch.as_tensor(schedule.alphas_cumprod).float()
    wrappers = {
        "Denoiser": (layers.Denoiser(Raw(1.0), sigma_data=0.5), (0.01, 80)),
        "VDenoiser": (external.VDenoiser(Raw(1.0)), (0.01, 80)),
        "OpenAIDenoiser": (external.OpenAIDenoiser(Raw(0.01, 6), schedule), None),
        "DiscreteVDDPMDenoiser": (
            external.DiscreteVDDPMDenoiser(Raw(0.01), abar, quantize=False),
            None,
        ),
    }
    for name, (wrapper, sigma_range) in wrappers.items():

        def reference(x: Tensor, s: float, wrapper: nn.Module = wrapper) -> Tensor:
            return wrapper(x, torch.tensor([s, s]))

        sigmas = [0.05, 0.25, 1.0, 10.0]
        yield name, KDiffusionDenoiser(wrapper, sigma_range=sigma_range), reference, sigmas
    # two routes to one network: the library's wrapper, and our own adapter of what it wraps
    wrapper = wrappers["OpenAIDenoiser"][0]
    diffusion = SimpleNamespace(
        alphas_cumprod=schedule.alphas_cumprod, model_mean_type=SimpleNamespace(name="EPSILON")
    )
    ours = GuidedDiffusionDenoiser(wrapper.inner_model, diffusion)

    def wrapped(x: Tensor, s: float) -> Tensor:
        return wrapper(x, torch.tensor([s, s]))

    sigmas = [0.0531, 0.2477, 1.013, 9.87]
    yield "OpenAIDenoiser against GuidedDiffusionDenoiser, off the steps", ours, wrapped, sigmas


def waken(net: nn.Module, scale: float = 0.05, *, added: bool = False) -> nn.Module:
    """Random weights where initialisation left zeros, so that every layer has a say."""
    with torch.no_grad():
        for parameter in net.parameters():
            if added:
                parameter.add_(scale * torch.randn_like(parameter))
            elif parameter.ndim > 1:
                parameter.normal_(0, scale)
    return net


SOURCES = {
    "edm": edm,
    "guided-diffusion": guided_diffusion,
    "score_sde_pytorch": score_sde,
    "k-diffusion": k_diffusion,
}

if __name__ == "__main__":
    main()
