"""Adapters: each against its source's own numbers, in one table."""

from __future__ import annotations

import contextlib
import copy
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from devices import Devices
from tolerances import default_dtype, depth_of, everything_in_float64, half_rounding, rounding
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from scoreopt_defense import OneShot, denoisers
from scoreopt_defense.denoisers import (
    AzulaDenoiser,
    DDPMDenoiser,
    Denoiser,
    EDMDenoiser,
    GuidedDiffusionDenoiser,
    KDiffusionDenoiser,
    PreconditionedDenoiser,
    ScoreSDEVEDenoiser,
    ScoreSDEVPDenoiser,
    deepinv_denoiser,
    diffusers_denoiser,
    score_sde_denoiser,
)
from scoreopt_defense.denoisers.guided_diffusion import linear_alphas_cumprod
from scoreopt_defense.pretrained import hub

ABAR = linear_alphas_cumprod()
SIGMAS = ((1 - ABAR) / ABAR).sqrt()
STEPS = (10, 150, 420)  # of the linear schedule: sigma 0.04, 0.28, 1.04
TINY = 10.0  # at most: the argument of the sine in Tiny, as it is used here


class Tiny(nn.Module):
    """A network whose output depends on every argument, smoothly; labels are optional."""

    def __init__(self, out: int = 3, *, classes: int = 0, scale: float = 0.01) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Conv2d(8, out, 3, padding=1)
        self.time = nn.Linear(2, 8)
        self.classes = nn.Embedding(classes, 8) if classes else None
        self.scale = scale

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        t = self.scale * t
        wave = torch.stack([t.sin(), t.cos()], 1).to(self.time.weight.dtype)
        shift = self.time(wave)
        if self.classes is not None:
            onehot = labels is not None and labels.ndim == 2
            shift = shift + self.classes(labels.argmax(1) if onehot else labels)
        return self.head(torch.tanh(self.body(x) + shift[:, :, None, None]))


@dataclass(frozen=True)
class Case:
    """An adapter and its source.

    Attributes:
        denoiser: the adapter.
        reference: the source's own denoising function, from x_t and sigma on [-1, 1].
        sigmas: on the source's grid, if it has one.
        half: whether the source's network runs with half-precision weights.
        time: largest argument of a sine that the network makes of its time. The time is rounded
            relative to itself, so that the sine is off by this many roundings of 1.
    """

    denoiser: Denoiser
    reference: Callable[[Tensor, float], Tensor]
    sigmas: tuple[float, ...] = tuple(SIGMAS[list(STEPS)].tolist())
    half: bool = True
    size: int = 8
    time: float = 1000.0

    def tolerance(self, x_t: Tensor) -> float:
        """Of what the network makes of ``x_t``, by two routes, in the type of the network.

        Sixteen roundings rescale the image, find the time and put the result together; no factor in
        them exceeds 1 where images are in [-1, 1] plus noise, so that the largest number on the way
        is a pixel of ``x_t``, or 1.
        """
        dtype = next(self.denoiser.parameters()).dtype
        depth = 16 + depth_of(self.denoiser) + self.time
        return rounding(dtype, depth, max(1.0, x_t.abs().max()))


def step_of(sigma: float) -> int:
    return int((SIGMAS - sigma).abs().argmin())


def batch(value: float, x: Tensor) -> Tensor:
    return torch.full((len(x),), value)


def diffusers_ddpm(prediction: str, classes: int = 0) -> Case:
    diffusers = pytest.importorskip("diffusers")
    unet = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), attention_head_dim=4,
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), num_class_embeds=classes or None,
    ).eval()  # fmt: skip
    scheduler = diffusers.DDPMScheduler(
        beta_start=1e-4, beta_end=0.02, prediction_type=prediction, clip_sample=False
    )

    abar = scheduler.alphas_cumprod.double()
    own_sigmas = ((1 - abar) / abar).sqrt()  # diffusers keeps them in float32

    def reference(x_t: Tensor, sigma: float) -> Tensor:
        t = step_of(sigma)
        z = x_t * abar[t].sqrt()
        labels = {"class_labels": torch.full((len(x_t),), 2)} if classes else {}
        output = unet(z.float(), t, **labels).sample
        return scheduler.step(output, t, z).pred_original_sample

    label = 2 if classes else None
    denoiser = diffusers_denoiser(unet, scheduler, class_label=label)
    return Case(denoiser, reference, sigmas=tuple(own_sigmas[list(STEPS)].tolist()))


def diffusers_edm() -> Case:
    diffusers = pytest.importorskip("diffusers")
    unet = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    ).eval()  # fmt: skip
    scheduler = diffusers.EDMEulerScheduler()
    scheduler.set_timesteps(12)
    sigmas = tuple(scheduler.sigmas[[10, 7, 5, 2]].tolist())  # 0.008, 0.4, 2.6, 24

    def reference(x_t: Tensor, sigma: float) -> Tensor:
        scheduler.set_timesteps(12)
        t = scheduler.timesteps[(scheduler.sigmas - sigma).abs().argmin()]
        output = unet(scheduler.scale_model_input(x_t.float(), t), t).sample
        return scheduler.step(output, t, x_t).pred_original_sample

    return Case(diffusers_denoiser(unet, scheduler), reference, sigmas=sigmas)


def deepinv_unet(kind: str, **arguments: object) -> Case:
    models = pytest.importorskip("deepinv.models")
    common = {"img_resolution": 8, "channel_mult": (1,), "num_blocks": 1, "attn_resolutions": (8,)}
    common |= {"pretrained": None, "_was_trained_on_minus_one_one": True, "pixel_std": 0.5}
    net = getattr(models, kind)(model_channels=128, **common, **arguments).eval()
    waken(net)

    def reference(x_t: Tensor, sigma: float) -> Tensor:
        return 2 * net((x_t.float() + 1) / 2, sigma / 2) - 1

    return Case(deepinv_denoiser(net), reference, sigmas=(0.05, 0.25, 1.0, 10.0))


def deepinv_unit_range() -> Case:
    """A network of deepinv that was trained on [0, 1], such as DRUNet."""
    models = pytest.importorskip("deepinv.models")
    net = models.DRUNet(nc=(8, 8, 8, 8), nb=1, pretrained=None).eval()
    waken(net, 0.03)

    def reference(x_t: Tensor, sigma: float) -> Tensor:
        return 2 * net((x_t.float() + 1) / 2, sigma / 2) - 1

    denoiser = deepinv_denoiser(net, sigma_range=(0.001, 0.5))
    return Case(denoiser, reference, sigmas=(0.05, 0.25))


def deepinv_diffunet() -> Case:
    models = pytest.importorskip("deepinv.models")
    net = models.DiffUNet(pretrained=None).eval()
    waken(net, 0.02)

    def reference(x_t: Tensor, sigma: float) -> Tensor:
        return 2 * net((x_t.float() + 1) / 2, sigma / 2, type_t="noise_level") - 1

    # deepinv clamps, and keeps its grid in float32
    sigmas = tuple(SIGMAS[list(STEPS[1:])].tolist())
    return Case(deepinv_denoiser(net), reference, sigmas=sigmas, half=False, size=32)


def guided(*, learned: bool, respaced: bool, classes: int = 0) -> Case:
    unet = pytest.importorskip("azula.plugins.adm._src.unet")  # guided-diffusion's own, on PyPI
    net = unet.UNetModel(
        image_size=8, in_channels=3, model_channels=32, out_channels=6 if learned else 3,
        num_res_blocks=1, attention_resolutions={2}, channel_mult=(1, 2), num_heads=2,
        use_scale_shift_norm=True, resblock_updown=True, num_classes=classes or None,
    ).eval()  # fmt: skip
    waken(net)
    kept = list(range(0, 1000, 10)) if respaced else list(range(1000))
    diffusion = SimpleNamespace(
        alphas_cumprod=ABAR[kept].numpy(),
        model_mean_type=SimpleNamespace(name="EPSILON"),
        rescale_timesteps=False,
    )
    if respaced:
        diffusion.timestep_map, diffusion.original_num_steps = kept, 1000

    def reference(x_t: Tensor, sigma: float) -> Tensor:
        t = step_of(sigma)
        z = x_t * ABAR[t].sqrt()
        labels = {"y": torch.full((len(x_t),), 2)} if classes else {}
        eps = net(z.float(), torch.full((len(x_t),), t), **labels)[:, :3]
        return (1 / ABAR[t]).sqrt() * z - (1 / ABAR[t] - 1).sqrt() * eps

    label = 2 if classes else None
    return Case(GuidedDiffusionDenoiser(net, diffusion, class_label=label), reference, half=False)


def azula(kind: str) -> Case:
    library, noise = pytest.importorskip("azula.denoise"), pytest.importorskip("azula.noise")
    schedule = {
        "vp": noise.VPSchedule(), "ve": noise.VESchedule(), "cosine": noise.CosineSchedule(),
        "rectified": noise.RectifiedSchedule(), "decay": noise.DecaySchedule(),
    }[kind]  # fmt: skip
    denoiser = library.KarrasDenoiser(Tiny(scale=1.0), schedule).eval()

    def reference(x_t: Tensor, sigma: float) -> Tensor:
        low, high = 0.0, 1.0  # by hand: the time at which the schedule has that ratio
        for _ in range(60):
            t = (low + high) / 2
            alpha, noise = schedule(torch.tensor(t, dtype=torch.float64))
            low, high = (low, t) if noise / alpha > sigma else (t, high)
        alpha, _ = schedule(torch.tensor(t, dtype=torch.float64))
        return denoiser((alpha * x_t).float(), batch(t, x_t).float()).mean

    # 50 halvings leave 4 roundings of the time, and ln(sigma) moves by up to 20 with it
    return Case(
        AzulaDenoiser(denoiser), reference, sigmas=(0.05, 0.25, 1.0, 10.0), time=4 * 20 * TINY
    )


def azula_adm() -> Case:
    adm = pytest.importorskip("azula.plugins.adm")
    denoiser = adm.make_model(
        clip_mean=False, image_size=8, attention_resolutions=(4,), channel_mult=(1, 2),
        num_channels=32, num_res_blocks=1, num_heads=2, use_scale_shift_norm=True,
    ).eval()  # fmt: skip
    waken(denoiser)

    def reference(x_t: Tensor, sigma: float) -> Tensor:
        # VPSchedule(alpha_min=0.01, sigma_min=0.01), solved by hand for alpha
        alpha = math.sqrt((1 + 1e-4) / (1 + sigma**2))
        t = math.sqrt(math.log(alpha) / math.log(1e-2))
        return denoiser((alpha * x_t).float(), batch(t, x_t)).mean

    # away from its steps, since it rounds to them
    return Case(AzulaDenoiser(denoiser), reference, sigmas=(0.2512, 1.0033), half=False)


def score_sde_vp(*, sub: bool) -> Case:
    net = Tiny()

    def reference(x_t: Tensor, sigma: float) -> Tensor:
        """get_score_fn and Tweedie's formula, at the time that has this sigma."""
        low, high = 0.0, 1.0
        for _ in range(60):
            t = (low + high) / 2
            mean = math.exp(-0.25 * t**2 * 19.9 - 0.5 * t * 0.1)
            std = 1 - mean**2 if sub else math.sqrt(1 - mean**2)
            low, high = (low, t) if std / mean > sigma else (t, high)
        z = mean * x_t
        score = -net(z.float(), batch(999 * t, x_t)) / std
        return (z + std**2 * score) / mean

    return Case(
        ScoreSDEVPDenoiser(net, sub=sub), reference, sigmas=(0.05, 0.25, 1.0, 10.0), time=TINY
    )


def score_sde_discrete_vp() -> Case:
    class VPSDE:
        beta_0, beta_1, N, alphas_cumprod = 0.1, 20.0, 1000, ABAR

    net = Tiny()

    def reference(x_t: Tensor, sigma: float) -> Tensor:
        t = step_of(sigma)
        std, mean = (1 - ABAR[t]).sqrt(), ABAR[t].sqrt()
        score = -net((mean * x_t).float(), batch(t, x_t)) / std
        return (mean * x_t + std**2 * score) / mean

    denoiser = score_sde_denoiser(net, VPSDE(), continuous=False, centered=True)
    return Case(denoiser, reference, time=TINY)


def score_sde_ve(*, continuous: bool, centered: bool) -> Case:
    class VESDE:
        sigma_min, sigma_max, N = 0.01, 50.0, 1000

    class Score(Tiny):  # divided by the noise level, as scale_by_sigma does
        def forward(self, x: Tensor, labels: Tensor) -> Tensor:
            level = labels if continuous else self.levels[labels]
            return super().forward(x, level) / level[:, None, None, None].to(x.dtype)

        levels = torch.logspace(math.log10(50), -2, 1000)

    net = Score(scale=1.0)
    scale = 1 if centered else 2
    sigmas = tuple(scale * float(Score.levels[i]) for i in (650, 500, 250))

    def reference(x_t: Tensor, sigma: float) -> Tensor:
        x = x_t if centered else (x_t + 1) / 2
        own = sigma / scale
        label = own if continuous else int((Score.levels - own).abs().argmin())
        score = net(x.float(), torch.full((len(x),), label))
        d = x + own**2 * score
        return d if centered else 2 * d - 1

    denoiser = score_sde_denoiser(net, VESDE(), continuous=continuous, centered=centered)
    return Case(denoiser, reference, sigmas=sigmas, time=TINY)


def k_diffusion() -> Case:
    """A wrapper in the shape of ``K.Denoiser``; the library itself brings too much to install."""

    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner_model, self.sigma_data = Tiny(scale=1.0), 0.5

        def forward(self, x: Tensor, sigma: Tensor, **kwargs: Tensor) -> Tensor:
            s = sigma[:, None, None, None]
            total = s**2 + self.sigma_data**2
            raw = self.inner_model(x / total.sqrt(), sigma, **kwargs)
            return raw * s * self.sigma_data / total.sqrt() + x * self.sigma_data**2 / total

    wrapper = Wrapper()
    denoiser = KDiffusionDenoiser(wrapper, sigma_range=(0.01, 80))
    return Case(
        denoiser, lambda x, s: wrapper(x.float(), batch(s, x)), sigmas=(0.05, 0.25, 1.0, 10.0),
        time=TINY,
    )  # fmt: skip


def preconditioned(kind: str, classes: int = 0) -> Case:
    net = Tiny(classes=classes, scale=0.01 if kind == "vp" else 1.0)

    def reference(x_t: Tensor, sigma: float) -> Tensor:
        """Table 1 of Karras et al., column by column."""
        labels = [nn.functional.one_hot(torch.full((len(x_t),), 2), classes)] if classes else [None]
        time = (math.sqrt(0.1**2 + 2 * 19.9 * math.log(1 + sigma**2)) - 0.1) / 19.9
        skip, out, scale, noise = {
            "edm": (
                0.25 / (sigma**2 + 0.25),
                sigma * 0.5 / math.sqrt(sigma**2 + 0.25),
                1 / math.sqrt(sigma**2 + 0.25),
                math.log(sigma) / 4,
            ),
            "vp": (1, -sigma, 1 / math.sqrt(sigma**2 + 1), 999 * time),
            "ve": (1, sigma, 1, math.log(sigma / 2)),
        }[kind]
        return skip * x_t + out * net((scale * x_t).float(), batch(noise, x_t), *labels)

    denoiser = PreconditionedDenoiser(
        net, kind=kind, label_dim=classes, class_label=2 if classes else None
    )
    return Case(denoiser, reference, sigmas=(0.05, 0.25, 1.0, 10.0), time=TINY)


def edm_signature() -> Case:
    net = Tiny(scale=1.0)

    class Own(nn.Module):
        sigma_min, sigma_max = 0.0, math.inf

        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            return x - sigma[:, None, None, None] * self.net(x, sigma)

    own = Own()
    return Case(
        EDMDenoiser(own), lambda x, s: own(x.float(), batch(s, x)), sigmas=(0.05, 1.0), time=TINY
    )


def waken(net: nn.Module, scale: float = 0.05) -> None:
    """Random weights where initialisation left zeros, so that every layer has a say."""
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, scale)


CASES = {
    "diffusers-epsilon": partial(diffusers_ddpm, "epsilon"),
    "diffusers-v": partial(diffusers_ddpm, "v_prediction"),
    "diffusers-sample": partial(diffusers_ddpm, "sample"),
    "diffusers-class": partial(diffusers_ddpm, "epsilon", 5),
    "diffusers-edm": diffusers_edm,
    "deepinv-ddpmpp": partial(deepinv_unet, "NCSNpp", model_type="ddpm"),
    "deepinv-ncsnpp": partial(deepinv_unet, "NCSNpp", model_type="ncsn"),
    "deepinv-adm": partial(deepinv_unet, "ADMUNet"),
    "deepinv-drunet": deepinv_unit_range,
    "deepinv-diffunet": deepinv_diffunet,
    "guided": partial(guided, learned=False, respaced=False),
    "guided-learned-variance": partial(guided, learned=True, respaced=False),
    "guided-respaced": partial(guided, learned=True, respaced=True),
    "guided-class": partial(guided, learned=True, respaced=False, classes=5),
    "azula-vp": partial(azula, "vp"),
    "azula-ve": partial(azula, "ve"),
    "azula-cosine": partial(azula, "cosine"),
    "azula-rectified": partial(azula, "rectified"),
    "azula-decay": partial(azula, "decay"),
    "azula-adm": azula_adm,
    "score-sde-vp": partial(score_sde_vp, sub=False),
    "score-sde-sub-vp": partial(score_sde_vp, sub=True),
    "score-sde-discrete-vp": score_sde_discrete_vp,
    "score-sde-ve": partial(score_sde_ve, continuous=True, centered=False),
    "score-sde-ve-centred": partial(score_sde_ve, continuous=True, centered=True),
    "score-sde-discrete-ve": partial(score_sde_ve, continuous=False, centered=False),
    "k-diffusion": k_diffusion,
    "edm": edm_signature,
    "precond-edm": partial(preconditioned, "edm"),
    "precond-vp": partial(preconditioned, "vp"),
    "precond-ve": partial(preconditioned, "ve"),
    "precond-edm-class": partial(preconditioned, "edm", 5),
}
every_case = pytest.mark.parametrize("name", CASES)


@cache
def case(name: str) -> Case:
    torch.manual_seed(0)
    return CASES[name]()


def noised(case: Case, sigma: float, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (2, 3, case.size, case.size)
    x = 2 * torch.rand(shape, generator=generator) - 1
    return (x + sigma * torch.randn(shape, generator=generator)).to(dtype)


@every_case
@pytest.mark.parametrize("images", [torch.float32, torch.float64, "all float64"], ids=str)
def test_adapter_denoises_as_its_source_does(name, images):
    """The networks are in float32 but in the last, which sees mistakes that hide in rounding."""
    throughout = images == "all float64"
    dtype = torch.float64 if throughout else images
    with everything_in_float64() if throughout else contextlib.nullcontext(), torch.no_grad():
        it = CASES[name]() if throughout else case(name)
        ends = (-1, 1) if name == "deepinv-diffunet" else (-math.inf, math.inf)  # deepinv clamps
        for sigma in it.sigmas:
            x_t = noised(it, sigma, dtype)
            d, expected = it.denoiser(x_t, sigma), it.reference(x_t, sigma)
            assert d.dtype == dtype
            tolerance = it.tolerance(x_t)
            assert (d.clamp(*ends) - expected).abs().max() <= tolerance
            if throughout:
                elsewhere = it.denoiser(x_t, 1.001 * sigma).clamp(*ends)
                assert (elsewhere - expected).abs().max() > 1e5 * tolerance


@every_case
def test_denoising_tends_to_the_identity(name):
    it = case(name)
    if name == "diffusers-sample":
        pytest.skip("an untrained network that predicts the image knows nothing of this limit")
    low = it.denoiser.sigma_range[0]
    x = noised(it, 0.0).double()
    with torch.no_grad():
        moved = [(it.denoiser(x, s) - x).abs().max() for s in (low, 10 * low)]
    limit = 5 if name != "deepinv-drunet" else math.inf
    assert moved[0] <= limit * low
    assert name == "deepinv-drunet" or moved[0] < moved[1]


@every_case
def test_noise_levels_may_differ_in_a_batch(name):
    it = case(name)
    low, high = it.sigmas[0], it.sigmas[-1]
    x_t = torch.cat([noised(it, low)[:1], noised(it, high)[1:]])
    with torch.no_grad():
        both = it.denoiser(x_t, torch.tensor([low, high]))
        apart = [it.denoiser(x_t[:1], low), it.denoiser(x_t[1:], high)]
    assert (both - torch.cat(apart)).abs().max() <= it.tolerance(x_t)


@every_case
def test_gradients_reach_the_image_and_never_the_weights(name):
    it = case(name)
    weights = [p.requires_grad_() for p in it.denoiser.parameters()]
    x = ((noised(it, 0.0) + 1) / 2).requires_grad_()
    OneShot(it.denoiser, sigma=it.sigmas[1], seed=0)(x).square().sum().backward()
    assert x.grad.isfinite().all()
    assert (x.grad != 0).float().mean() > 0.9
    assert all(p.grad is None and p.requires_grad for p in weights)


@every_case
def test_channels_last_changes_nothing(name):
    it = case(name)
    x_t = noised(it, it.sigmas[1])
    with torch.no_grad():
        expected = it.denoiser(x_t, it.sigmas[1])
        last = copy.deepcopy(it.denoiser).to(memory_format=torch.channels_last)
        d = last(x_t.contiguous(memory_format=torch.channels_last), it.sigmas[1])
    assert (d - expected).abs().max() <= it.tolerance(x_t)


@every_case
def test_another_default_dtype_changes_the_networks_own_numbers_alone(name):
    """Such as embeddings of the time that a network makes in it: the more precise, if anything."""
    it = case(name)
    x_t = noised(it, it.sigmas[1])
    with torch.no_grad():
        expected = it.denoiser(x_t, it.sigmas[1])
        with default_dtype(torch.float64):
            d = it.denoiser(x_t, it.sigmas[1])
    assert d.dtype == expected.dtype
    assert (d - expected).abs().max() <= it.tolerance(x_t)


@every_case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_and_half_precision_weights_pass_through(name, dtype):
    if (name, dtype) == ("deepinv-diffunet", torch.float16):
        pytest.skip("93 M weights in float16 take a CPU 20 seconds")
    it = case(name)
    x_t = noised(it, it.sigmas[1])
    with torch.no_grad():
        expected = it.denoiser(x_t, it.sigmas[1])
        tolerance = half_rounding(dtype, it.denoiser, (expected - x_t).abs().max())
        tolerance += rounding(dtype, 1, x_t.abs().max())  # some are given, or give, the image in it
        with torch.autocast("cpu", dtype):
            d = it.denoiser(x_t, it.sigmas[1])
        assert d.dtype == torch.float32
        assert (d - expected).abs().max() <= tolerance
        if it.half:
            d = copy.deepcopy(it.denoiser).to(dtype)(x_t, it.sigmas[1])
            assert d.dtype == torch.float32
            assert (d - expected).abs().max() <= tolerance


@every_case
def test_a_network_elsewhere_is_an_error_that_says_so(name):
    it = case(name)
    elsewhere = copy.deepcopy(it.denoiser).to("meta")
    with pytest.raises(ValueError, match=r"network is on meta and the images are on cpu"):
        elsewhere(noised(it, 0.25), 0.25)


@pytest.mark.cuda
def test_a_network_on_the_cpu_is_an_error_for_images_on_cuda():
    with pytest.raises(ValueError, match=r"network is on cpu and the images are on cuda:0"):
        EDMDenoiser(Tiny())(torch.zeros(1, 3, 8, 8, device="cuda"), 0.25)


@pytest.mark.parametrize("name", ["deepinv-ddpmpp", "deepinv-adm", "deepinv-diffunet"])
def test_the_papers_networks_are_twice_differentiable(name):
    it = case(name)
    x_t = noised(it, it.sigmas[1])[:1].requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):  # the fused attention has no second derivative
        d = it.denoiser(x_t, it.sigmas[1])
    (first,) = torch.autograd.grad(d.square().sum(), x_t, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x_t)
    assert second.isfinite().all()
    assert second.abs().max() > 0


# --- the time between two steps -----------------------------------------------------------------


class Echo(nn.Module):
    """Says which time it was told."""

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        return t[:, None, None, None].expand_as(z).to(z.dtype)


def test_the_time_between_steps_is_linear_in_log_sigma():
    denoiser = DDPMDenoiser(Echo(), ABAR)
    x = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    for share in (0.0, 0.25, 0.5, 1.0):
        sigma = float(SIGMAS[300] ** (1 - share) * SIGMAS[301] ** share)
        told = -denoiser(x, sigma).item() / sigma
        # found in float64 and told in float32: one rounding
        assert told == pytest.approx(300 + share, abs=rounding(torch.float32, 1, 301))


def test_interpolation_finds_steps_that_it_was_not_told_of():
    """Given every other step of a schedule, it places the others; rounding is off by one."""
    even, odd = torch.arange(0, 1000, 2), torch.arange(1, 998, 2)
    denoiser = DDPMDenoiser(Echo(), ABAR[even], timesteps=even)
    # errors of interpolation, a thousand times those of rounding
    error = (denoiser.timestep(SIGMAS[odd]) - odd).abs()
    assert error.max() < 0.3
    assert error[10:].max() < 0.02


def test_a_respaced_network_is_told_the_original_times():
    kept = list(range(0, 1000, 40))
    denoiser = DDPMDenoiser(Echo(), ABAR[kept], timesteps=kept)
    once = rounding(torch.float32, 1, 1000)  # found in float64, told in float32
    for i in (0, 7, 24):
        told = denoiser.timestep(SIGMAS[[kept[i]]])
        assert told.item() == pytest.approx(kept[i], abs=once)
    low, high = SIGMAS[280].item(), SIGMAS[320].item()
    middle = denoiser.timestep(torch.tensor([math.sqrt(low * high)], dtype=torch.float64))
    assert middle.item() == pytest.approx(300, abs=once)


def test_rescaled_times_run_to_a_thousand():
    diffusion = SimpleNamespace(
        alphas_cumprod=linear_alphas_cumprod(500), rescale_timesteps=True,
        model_mean_type=SimpleNamespace(name="EPSILON"),
    )  # fmt: skip
    denoiser = GuidedDiffusionDenoiser(Echo(), diffusion)
    top = torch.tensor([denoiser.sigma_range[1]], dtype=torch.float64)
    once = rounding(torch.float32, 1, 1000)  # found in float64, told in float32
    assert denoiser.timestep(top).item() == pytest.approx(2 * 499, abs=once)


def test_times_survive_a_cast_to_half_precision():
    denoiser = DDPMDenoiser(Tiny(), ABAR)
    sigma = torch.tensor([0.3, 7.0])
    expected = denoiser.timestep(sigma)
    assert torch.equal(denoiser.half().timestep(sigma), expected)


def test_the_table_of_times_moves_with_the_network():
    """Copied to the device at each step, it would keep torch.compile's CUDA graphs away."""
    denoiser = DDPMDenoiser(Tiny(), ABAR).to("meta")
    with Devices() as devices:
        denoiser(torch.empty(2, 3, 8, 8, device="meta"), torch.empty(2, device="meta"))
    assert devices.seen == {"meta"}


# --- labels, ranges, errors ---------------------------------------------------------------------


def test_a_label_may_be_fixed_given_for_each_image_or_changed():
    denoiser = PreconditionedDenoiser(Tiny(classes=5, scale=1.0), label_dim=5, class_label=1)
    x_t = torch.randn(2, 3, 8, 8)
    one, four = denoiser(x_t, 0.5), denoiser.with_class_label(4)(x_t, 0.5)
    both = denoiser.with_class_label(torch.tensor([1, 4]))(x_t, 0.5)
    tolerance = rounding(torch.float32, 16 + depth_of(denoiser), x_t.abs().max())
    assert (both[0] - one[0]).abs().max() <= tolerance
    assert (both[1] - four[1]).abs().max() <= tolerance
    assert (one - four).abs().max() > 1000 * tolerance
    assert denoiser.class_label == 1
    with pytest.raises(ValueError, match="got 3 for a batch of 2"):
        denoiser.with_class_label(torch.tensor([1, 2, 3]))(x_t, 0.5)


def test_what_is_set_on_a_twin_stays_there():
    denoiser = PreconditionedDenoiser(Tiny(classes=5), label_dim=5, class_label=1)
    net, twin = denoiser.net, denoiser.with_class_label(4)
    assert twin.net is net  # nothing is copied
    twin.net = Tiny(classes=5)
    twin.register_buffer("mean", torch.zeros(1))
    twin.register_parameter("gain", nn.Parameter(torch.ones(1)))
    twin.register_forward_hook(lambda *_: torch.zeros(1))
    assert denoiser.net is net
    assert set(denoiser.state_dict()) == {f"net.{name}" for name in net.state_dict()}
    x_t = torch.randn(2, 3, 8, 8)
    assert denoiser(x_t, 0.5).shape == x_t.shape  # the twin's hook is not called


@pytest.mark.parametrize("data_range", [(0.0, 1.0), (-0.5, 0.5), (0.0, 255.0)])
def test_a_data_range_scales_images_and_noise_alike(data_range):
    """A denoiser of Gaussian images on any range is that of the same images on [-1, 1]."""
    low, high = data_range
    half = (high - low) / 2
    mean, std = half + low, half * 0.5

    def wrapper(x: Tensor, sigma: Tensor) -> Tensor:
        gain = std**2 / (std**2 + sigma.reshape(-1, 1, 1, 1) ** 2)
        return mean + gain * (x - mean)

    denoiser = KDiffusionDenoiser(wrapper, sigma_range=(0.01, 80), data_range=data_range)
    x_t = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    # about a dozen roundings, of a number and of what is added to centre it
    tolerance = rounding(torch.float64, 16, 1 + x_t.abs().max())
    assert (denoiser(x_t, 0.5) - x_t / 2).abs().max() <= tolerance


def test_ve_noise_levels_are_doubled_where_images_are_in_zero_to_one():
    assert ScoreSDEVEDenoiser(Tiny()).sigma_range == (0.02, 100.0)
    assert ScoreSDEVEDenoiser(Tiny(), centered=True).sigma_range == (0.01, 50.0)


class VPSDE:
    beta_0, beta_1, N, alphas_cumprod = 0.1, 20.0, 1000, ABAR


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DDPMDenoiser(Tiny(), ABAR.flip(0)), "must fall"),
        (lambda: DDPMDenoiser(Tiny(), ABAR, prediction_type="noise"), "prediction_type"),
        (
            lambda: GuidedDiffusionDenoiser(
                Tiny(), SimpleNamespace(alphas_cumprod=ABAR, model_mean_type="PREVIOUS_X")
            ),
            "PREVIOUS_X",
        ),
        (
            lambda: GuidedDiffusionDenoiser(Tiny(out=5))(torch.zeros(1, 3, 8, 8), 0.25),
            "3 channels, or twice as many",
        ),
        (lambda: KDiffusionDenoiser(Tiny()), "sigma_range must be given"),
        (
            lambda: KDiffusionDenoiser(
                SimpleNamespace(sigma_min=0.1, sigma_max=9.0, quantize=True)
            ),
            "quantize",
        ),
        (lambda: KDiffusionDenoiser(Tiny(), sigma_range=(1, 2), data_range=(1, 0)), "data_range"),
        (lambda: PreconditionedDenoiser(Tiny(), kind="iddpm"), "kind"),
        (lambda: PreconditionedDenoiser(Tiny(), class_label=1), "class_label"),
        (lambda: deepinv_denoiser(Tiny()), "sigma_range must be given"),
        (
            lambda: score_sde_denoiser(Tiny(), VPSDE(), continuous=True, centered=False),
            "centered must be True",
        ),
    ],
)
def test_wrong_calls_raise_at_once(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    "build",
    [
        lambda: AzulaDenoiser(Tiny()),
        lambda: score_sde_denoiser(Tiny(), object(), continuous=True, centered=True),
    ],
)
def test_the_wrong_kind_of_network_is_a_type_error(build):
    with pytest.raises(TypeError):
        build()


def test_the_documentation_names_what_there_is():
    """Every adapter is in the table of docs/reference/score-models.md, and nothing else is."""
    page = (Path(__file__).parents[2] / "docs/reference/score-models.md").read_text()
    named = set(re.findall(r"\bD\.(\w+)", page))
    assert named <= set(denoisers.__all__)
    bases = {"Denoiser", "GaussianDenoiser", "NoDenoiser"}
    chosen = {"DeepinvDenoiser", "DeepinvUNetDenoiser", "DiffUNetDenoiser", "DiffusersDDPMDenoiser",
              "DiffusersEDMDenoiser", "ScoreSDEVEDenoiser", "ScoreSDEVPDenoiser",
              "match_edm_groups", "of_pipeline"}  # fmt: skip
    assert set(denoisers.__all__) - named == bases | chosen
    for name in hub.downloaded_names():
        assert f'pretrained.denoiser("{name}")' in page
