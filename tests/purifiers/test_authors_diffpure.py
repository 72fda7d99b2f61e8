"""DiffPure is its authors' sampler, and DiffBreak's; both run from clones and are never copied.

Set DIFFPURE to a clone of NVlabs/DiffPure, DIFFBREAK to one of andrekassis/DiffBreak. The SDE needs
torchsde, and DiffBreak torchdiffeq too. Their networks are random and small here.
"""

from __future__ import annotations

from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from tolerances import depth_of, rounding
from torch import Tensor, nn
from toys import BentNet, mid_images

from scoreopt_defense import DiffPure, ThirdParty
from scoreopt_defense.denoisers import DDPMDenoiser, ScoreSDEVPDenoiser
from scoreopt_defense.noise import Noise
from scoreopt_defense.purifiers import diffpure

SEED, TIME, STEP = 5, 100, 1e-3
BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
KEPT = (1 - BETAS).cumprod(0)
LEVELS = ((1 - KEPT) / KEPT).sqrt()


def bare(kind: type[nn.Module], **attributes: object) -> nn.Module:
    """An object of theirs without its constructor, which downloads weights."""
    made = kind.__new__(kind)
    nn.Module.__init__(made)
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def drawn(noise: Noise, monkeypatch) -> None:
    """What they draw of images: the first noise, and that of each step."""
    calls = iter(range(TIME + 1))

    def draw(like: Tensor) -> Tensor:
        j = next(calls)
        return noise.eps_2(0, j - 1, like) if j else noise.eps_1(0, like)

    monkeypatch.setattr(torch, "randn_like", draw)


class Discrete:
    """Their times, 1 to 1,000, in place of those of the SDE."""

    def time(self, sigma: Tensor) -> Tensor:
        return 1.0 + (LEVELS - sigma.double()[..., None]).abs().argmin(-1)

    def scales(self, time: Tensor) -> tuple[Tensor, Tensor]:
        power = torch.cat([torch.ones(1, dtype=torch.float64), KEPT])[time.round().long()]
        return power.sqrt().float(), (1 - power).sqrt().float()


def test_their_ancestral_sampler_is_ours_under_the_same_draws(load, monkeypatch):
    """On their 1,000 discrete times, which ours lie between."""
    unet = load("DIFFPURE", "ddpm.unet_ddpm").Model
    runner = load("DIFFPURE", "runners.diffpure_ddpm").Diffusion
    of = {"ch": 32, "out_ch": 3, "in_channels": 3, "ch_mult": [1], "num_res_blocks": 1}
    of |= {"attn_resolutions": [], "dropout": 0.0, "resamp_with_conv": True}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = unet(SimpleNamespace(model=SimpleNamespace(**of), data=SimpleNamespace(image_size=8)))
    before = torch.cat([torch.ones(1, dtype=torch.float64), KEPT[:-1]])
    variance = (BETAS * (1 - before) / (1 - KEPT)).clamp(min=1e-20)
    theirs = bare(
        runner, args=SimpleNamespace(sample_step=1, t=TIME, log_dir=""), model=net.eval(),
        betas=BETAS.float(), logvar=np.log(variance.numpy()),
    )  # fmt: skip

    monkeypatch.setattr(diffpure, "VP", Discrete())
    x = mid_images(dtype=torch.float32)
    ours = DiffPure(DDPMDenoiser(net, KEPT), sigma=LEVELS[TIME - 1].item(), steps=TIME)(
        x, seed=SEED
    )
    drawn(Noise.of_batch(SEED, len(x)), monkeypatch)
    made = ThirdParty(
        lambda x: (theirs.image_editing_sample(2 * x - 1, bs_id=2) + 1) / 2, differentiable=False
    )(x)
    # a step's rounding, of images below 4; and that of the network, whose weights in all steps
    # together, beta / sqrt(1 - alpha), come to less than 1
    tolerance = rounding(torch.float32, 16 * TIME + depth_of(net), 4)
    torch.testing.assert_close(made, ours, rtol=0, atol=tolerance)
    assert (ours - x).abs().max() > 100 * tolerance


class Told(nn.Module):
    """The noise that a network sees at a time of 0 to 999."""

    def __init__(self) -> None:
        super().__init__()
        self.net = BentNet().double()

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        level = diffpure.VP.sigma(1.0) * (labels.double() / 999)
        return z - self.net(z, level)


class Given:
    """A Brownian path whose increments are a purifier's noise, for torchsde."""

    levy_area_approximation = "none"

    def __init__(self, noise: Noise, like: Tensor) -> None:
        self.noise, self.like = noise, like
        self.shape, self.dtype, self.device = like.flatten(1).shape, like.dtype, like.device
        self.steps = iter(range(TIME))

    def __call__(self, start: float, end: float, **_: object) -> Tensor:
        noise = self.noise.eps_2(0, next(self.steps), self.like)
        return (float(end) - float(start)) ** 0.5 * noise.flatten(1)


def of_diffpure(load, net: nn.Module, monkeypatch):
    runner = load("DIFFPURE", "runners.diffpure_sde", "score_sde", "score_sde.models")
    sde = runner.RevVPSDE(net, score_type="score_sde", img_shape=(3, 8, 8))
    args = SimpleNamespace(sample_step=1, t=TIME, rand_t=False, use_bm=True, log_dir="")
    theirs = bare(runner.RevGuidedDiffusion, args=args, rev_vpsde=sde, device="cpu", betas=BETAS)

    def purified(x: Tensor, path: Given | None = None) -> Tensor:
        if path is not None:
            monkeypatch.setattr(runner.torchsde, "BrownianInterval", lambda **_: path)
        return (theirs.image_editing_sample(2 * x - 1, bs_id=2) + 1) / 2

    return purified


def of_diffbreak(load, net: nn.Module, monkeypatch):
    class Wrapped(nn.Module):
        def forward(self, z: Tensor, labels: Tensor) -> tuple[Tensor, None]:
            return net(z, labels), None

    pytest.importorskip("torchdiffeq")
    names = "DiffBreak", "DiffBreak.diffusion"
    stubs = {
        "DiffBreak.utils": SimpleNamespace(ClassifierWrapper=nn.Module),
        "DiffBreak.diffusion.diffusers": ModuleType("DiffBreak.diffusion.diffusers"),
    }
    kind = load("DIFFBREAK", "DiffBreak.diffusion.rev_diffusion", *names, **stubs).RevDiffusion
    theirs = kind(
        Wrapped(), lambda t: 999 * t, TIME, BETAS, torch.arange(1000), image_size=8,
        effective_size=8, batch_size=4,
    )  # fmt: skip

    def purified(x: Tensor, path: Given | None = None) -> Tensor:
        found = theirs(2 * x - 1, t_start=TIME / 1000, adjoint=False, bm=path)
        return (found + 1) / 2

    return purified


@pytest.mark.parametrize("of", [of_diffpure, of_diffbreak])
def test_their_reverse_sde_is_ours_but_for_the_size_of_a_step(of, load, monkeypatch):
    r"""Euler's steps and ancestral ones lead to one path as they become small.

    Where k steps are left, Euler's has noise of :math:`\sqrt{\beta\,dt}`, and ours of
    :math:`\sqrt{(k - 1) / k}` that: the last has none.
    """
    pytest.importorskip("torchsde")
    net, x = Told().eval(), mid_images()
    purified = of(load, net, monkeypatch)
    level = diffpure.VP.sigma(TIME / 1000)
    ours = DiffPure(ScoreSDEVPDenoiser(net), sigma=level, steps=TIME)(x, seed=SEED)

    def distance(seed: int) -> float:
        noise = Noise.of_batch(seed, len(x))
        with monkeypatch.context() as patched:
            drawn(noise, patched)
            made = ThirdParty(lambda x: purified(x, Given(noise, x)), differentiable=False)(x)
        return 2 * (made - ours).square().mean().sqrt().item()

    last = (0.1 * STEP) ** 0.5
    assert distance(SEED) < 2 * last < distance(SEED + 1) / 4


@pytest.mark.parametrize("of", [of_diffpure, of_diffbreak])
def test_what_they_draw_is_seeded_by_the_call(of, load, monkeypatch):
    """A Brownian path's generator starts at NumPy's."""
    pytest.importorskip("torchsde")
    x = mid_images()
    theirs = ThirdParty(of(load, Told().eval(), monkeypatch), differentiable=False)
    assert torch.equal(theirs(x, seed=1), theirs(x, seed=1))
    assert not torch.equal(theirs(x, seed=1), theirs(x, seed=2))
