"""DiffPure samples as azula does from a noised image; what that gives is known for Gaussians."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from tolerances import rounding
from toys import MEAN, bent, gaussian, mid_images, shrinkage

from scoreopt_defense import DiffPure, OneShot
from scoreopt_defense.denoisers import EDMDenoiser
from scoreopt_defense.denoisers.vp_schedule import VPSchedule
from scoreopt_defense.noise import Noise

VP = VPSchedule()
every_sampler = pytest.mark.parametrize("sampler", ["ddpm", "ddim"])


@every_sampler
@pytest.mark.parametrize("sigma", [0.3, (0.2, 0.4)])
def test_one_step_is_one_shot_denoising(sampler, sigma, x):
    once = DiffPure(bent(), sigma=sigma, steps=1, sampler=sampler)(x, seed=1, samples=2)
    expected = OneShot(bent(), sigma=sigma)(x, seed=1, samples=2)
    # 32 roundings from noise level to time and back; divided by alpha, which is above 0.9
    torch.testing.assert_close(once, expected, rtol=0, atol=rounding(torch.float64, 64, 2))


@every_sampler
def test_it_is_azulas_own_sampler_given_the_same_noise(sampler, monkeypatch):
    sample = pytest.importorskip("azula.sample")
    x_a, denoiser, sigma, n = 2 * mid_images() - 1, bent(), 0.34, 7
    noise = Noise.of_batch(3, len(x_a))
    found = DiffPure(denoiser, sigma=sigma, steps=n, sampler=sampler).purify(x_a, noise)

    class AsAzulas:
        schedule = staticmethod(VP.scales)

        def __call__(self, x_t, t):
            alpha, sigma_t = VP.scales(t)
            return SimpleNamespace(mean=denoiser(x_t / alpha, sigma_t / alpha))

    kind = {"ddpm": sample.DDPMSampler, "ddim": sample.DDIMSampler}[sampler]
    start = VP.time(torch.tensor(sigma, dtype=torch.float64))
    theirs = kind(AsAzulas(), start=start.item(), steps=n, silent=True, dtype=torch.float64)
    draws = iter(noise.eps_2(0, j, x_a) for j in range(n))
    monkeypatch.setattr(torch, "randn_like", lambda like: next(draws))
    alpha, sigma_t = VP.scales(start)
    expected = theirs(alpha * x_a + sigma_t * noise.eps_1(0, x_a))
    assert next(draws, None) is None
    # n steps of some 64 roundings; a step's noise divides by no less than a seventh
    torch.testing.assert_close(found, expected, rtol=0, atol=rounding(torch.float64, 64 * n, 8))


def test_times_are_the_vp_sdes():
    """t* = 0.1 is sigma 0.34; uniform from there, or to the lowest level that is valid."""
    ladder = torch.tensor([0.1, 1.0], dtype=torch.float64)
    integral = 0.1 * ladder + 19.9 / 2 * ladder**2
    alpha, sigma = VP.scales(ladder)
    close = {"rtol": rounding(torch.float64, 32), "atol": 0}
    torch.testing.assert_close(alpha**2, (-integral).exp(), **close)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha), **close)
    torch.testing.assert_close(VP.time(sigma / alpha), ladder, **close)
    assert round((sigma / alpha)[0].item(), 2) == 0.34

    def levels(denoiser, steps):
        times = DiffPure(denoiser, sigma=0.34, steps=steps).times(
            mid_images(), Noise.of_batch(0, 4)
        )
        assert len(times) == steps + 1
        assert torch.equal(times[-1], torch.zeros(4, 1, 1, 1, dtype=torch.float64))
        return torch.stack(times).flatten(1)[:, 0]

    even = levels(gaussian(), 20)
    assert (even.diff() - even[-2].neg()).abs().max() < rounding(torch.float64, 8)
    low = 0.05
    short = levels(EDMDenoiser(torch.nn.Identity(), sigma_range=(low, 1.0)), 100)
    alpha, sigma = VP.scales(short[-2])
    assert math.isclose(sigma / alpha, low, rel_tol=rounding(torch.float64, 64))
    above = short[:-1].diff()
    assert (above - above[0]).abs().max() < rounding(torch.float64, 8)


def test_no_level_is_outside_the_denoisers_range(x):
    """The denoiser refuses those, on a CPU."""
    for dtype in (torch.float32, torch.float64):
        for sigma in (0.3, (0.1, 0.5), 0.5, 0.1):
            denoiser = EDMDenoiser(lambda x_t, sigma: 0.5 * x_t, sigma_range=(0.1, 0.5))
            purified = DiffPure(denoiser, sigma=sigma, steps=50)(x.to(dtype), seed=1)
            assert purified.dtype == dtype


def test_many_steps_sample_the_posterior_of_gaussian_images():
    r"""The reverse SDE ends in :math:`p(x \mid x_{t^*})`: of x ~ N(mu, s^2), with k = s^2 /
    (s^2 + sigma^2), its mean is mu + k (x_t - mu) and its variance k sigma^2."""
    sigma, n = 0.5, 200
    x_a = torch.full((64, 3, 16, 16), 0.3, dtype=torch.float64)
    k = shrinkage(sigma)
    variance = k * sigma**2 + k**2 * sigma**2  # the reverse process's, and of the noise it took
    purifier, noise = DiffPure(gaussian(), sigma=sigma, steps=n), Noise.of_batch(5, 64)
    found = purifier.purify(x_a, noise)
    count = x_a.numel()
    assert abs(found.mean() - (MEAN + k * (0.3 - MEAN))) < 5 * math.sqrt(variance / count)
    # An ancestral step from level sigma_t to sigma_s leaves out the clean image's own variance,
    # (1 - sigma_s^2 / sigma_t^2)^2 k_t sigma_t^2, which later steps shrink.
    ladder = torch.stack(purifier.times(x_a[:1], noise[:1])).flatten()
    alpha, sigma_t = VP.scales(ladder)
    squares = (sigma_t / alpha) ** 2
    left_out = ((1 - squares[1:] / squares[:-1]) ** 2 * squares[:-1]).sum()
    assert left_out < 0.05 * variance
    sampling = 5 * variance * math.sqrt(2 / count)
    assert -left_out - sampling < found.var() - variance < sampling


def test_ddim_is_deterministic_but_for_the_first_noise():
    x_a = 2 * mid_images() - 1
    first, other = Noise.of_batch(1, 4), Noise.of_batch(2, 4)

    class Mixed:
        """One call's first noise, and another's for the steps."""

        level, eps_1, eps_2 = first.level, first.eps_1, other.eps_2

    for sampler, same in (("ddim", True), ("ddpm", False)):
        purifier = DiffPure(bent(), steps=4, sigma=0.3, sampler=sampler)
        mixed = purifier.purify(x_a, Mixed())
        assert torch.equal(purifier.purify(x_a, first), mixed) is same


def test_a_step_is_one_call_of_the_denoiser(x):
    calls = []
    denoiser = EDMDenoiser(lambda x_t, s: calls.append(s) or 0.5 * x_t, sigma_range=(0.01, 2.0))
    DiffPure(denoiser, steps=12, sigma=0.3)(x)
    assert len(calls) == 12


def test_torchs_generator_is_its_owners(x):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    DiffPure(bent(), steps=3, sigma=0.3)(x)
    assert torch.equal(torch.get_rng_state(), before)
