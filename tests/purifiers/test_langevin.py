"""Langevin dynamics of energies that are known."""

from __future__ import annotations

import pytest
import torch
from tolerances import rounding
from toys import MEAN, STD, gaussian, mid_images

from scoreopt_defense import Langevin
from scoreopt_defense.denoisers import EnergyDenoiser
from scoreopt_defense.noise import Noise
from scoreopt_defense.pretrained.networks import TinyEnergy

F64 = torch.float64
LEVEL, TAU, STEPS = 0.2, 0.04, 15
VARIANCE = STD**2 + LEVEL**2  # of Gaussian images noised by LEVEL
STAYS = 1 - TAU**2 / (2 * VARIANCE)  # of the distance to the mean, in a step
SETTINGS = {"level": LEVEL, "step_size": TAU, "steps": STEPS}


def quadratic(x):
    """The energy of Gaussian images noised by LEVEL."""
    return (x - MEAN).square().sum((1, 2, 3)) / (2 * VARIANCE)


PRIORS = {"denoiser": gaussian, "energy": lambda: EnergyDenoiser(quadratic, sigma=LEVEL)}
every_prior = pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)


@every_prior
def test_the_chain_of_a_gaussian_has_its_mean_and_variance_after_k_steps(prior):
    r"""x_k is normal about mu + r^k (x - mu), of variance tau^2 (1 - r^{2k}) / (1 - r^2)."""
    start = 0.3  # five standard deviations from where anything is cut off
    x = torch.full((500, 1, 8, 8), (start + 1) / 2, dtype=F64)
    found = 2 * Langevin(prior(), **SETTINGS)(x, seed=0) - 1
    mean = MEAN + STAYS**STEPS * (start - MEAN)
    variance = TAU**2 * (1 - STAYS ** (2 * STEPS)) / (1 - STAYS**2)
    n = found.numel()
    assert found.mean().item() == pytest.approx(mean, abs=4 * (variance / n) ** 0.5)
    assert found.var().item() == pytest.approx(variance, abs=4 * variance * (2 / n) ** 0.5)


@every_prior
def test_denoising_at_the_end_is_one_call_at_its_level(prior):
    x, denoiser = mid_images(), prior()
    chain = 2 * Langevin(denoiser, **SETTINGS)(x, seed=3) - 1
    found = 2 * Langevin(denoiser, **SETTINGS, denoise=True)(x, seed=3) - 1
    # from [-1, 1] to [0, 1] and back
    torch.testing.assert_close(found, denoiser(chain, LEVEL), rtol=0, atol=rounding(F64, 8, 2))


@every_prior
def test_each_step_is_the_equation_and_the_exact_gradient_its_derivative(prior):
    x = mid_images().requires_grad_()
    purifier = Langevin(prior(), **SETTINGS, gradient="exact")
    found = purifier(x, seed=3)
    noise, want = Noise.of_batch(3, len(x)), 2 * x.detach() - 1
    for k in range(STEPS):
        want = want - TAU**2 / 2 * (want - MEAN) / VARIANCE + TAU * noise.eps_1(k, want)
    # a step's rounding, in which the score is a difference over the square of the level
    tolerance = STEPS * rounding(F64, 8, 1 + TAU**2 / LEVEL**2)
    torch.testing.assert_close(found.detach(), (want + 1) / 2, rtol=0, atol=tolerance)
    (slope,) = torch.autograd.grad(found.sum(), x)
    torch.testing.assert_close(
        slope, torch.full_like(x, STAYS**STEPS), rtol=0, atol=STEPS * rounding(F64, 8, 2)
    )


def test_the_score_of_an_energy_is_its_slope_at_every_level_and_none_is_above_its_own():
    denoiser, x = EnergyDenoiser(quadratic, sigma=LEVEL), 2 * mid_images() - 1
    for level in (LEVEL, LEVEL / 2):
        want = -(x - MEAN) / VARIANCE
        tolerance = rounding(F64, 8, 2) / level**2
        torch.testing.assert_close(
            (denoiser(x, level) - x) / level**2, want, rtol=0, atol=tolerance
        )
    with pytest.raises(ValueError, match=r"level must be within \[0, 0.2\].* got 0.3"):
        Langevin(denoiser, level=0.3)


@pytest.mark.parametrize("shape", [(), (4, 3, 8, 8), (5,)])
def test_an_energy_of_a_batch_or_a_pixel_is_refused(shape):
    """A mean over the batch would make each image's step smaller, the more images there are."""
    net = EnergyDenoiser(lambda x: x.mean() + torch.zeros(shape, dtype=x.dtype), sigma=0.2)
    with pytest.raises(ValueError, match=r"one energy an image, shape \(4,\), got"):
        net(mid_images(), 0.2)


def test_a_small_energy_network_keeps_images_apart_and_has_a_second_derivative():
    torch.manual_seed(0)
    net = TinyEnergy(widths=(4, 6), sigma=0.1).double().eval()
    purifier = Langevin(EnergyDenoiser(net, sigma=0.1), steps=3, step_size=0.05, gradient="exact")
    x = mid_images().requires_grad_()
    (alone,) = torch.autograd.grad(purifier(x[:1], seed=0).square().sum(), x)
    (slope,) = torch.autograd.grad(purifier(x, seed=0).square().sum(), x)
    torch.testing.assert_close(slope[:1], alone[:1], rtol=1e-9, atol=1e-9)
    step, direction = 1e-6, torch.randn_like(x)

    def value(shift):
        with torch.no_grad():
            return purifier(x + shift * direction, seed=0).square().sum()

    numerically = (value(step) - value(-step)) / (2 * step)
    torch.testing.assert_close((slope * direction).sum(), numerically, rtol=1e-5, atol=1e-5)
