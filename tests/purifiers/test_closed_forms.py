"""With a Gaussian prior every gradient and every step has a formula."""

from __future__ import annotations

import pytest
import torch
from tolerances import rounding
from toys import MEAN, draws, gaussian, mid_images, shrinkage, to_symmetric, to_unit

from scoreopt_defense import OneShot, ScoreOpt
from scoreopt_defense.objectives import (
    LOSSES,
    MSE,
    SR,
    denoising_error,
    noise_error,
    reconstruction,
    score_regularization,
)
from scoreopt_defense.optimizers import SGD
from scoreopt_defense.purifiers.descent import Descent

SEED, SIGMA, WEIGHT, LR = 7, 0.3, 0.7, 0.01

# Some 32 operations in float64, of numbers below 8; a loss that divides by a noise level squared
# magnifies them by at most 1 / 0.1^2.
TOLERANCE = rounding(torch.float64, 32, 8)


def denoise(x_t, sigma):
    return MEAN + shrinkage(sigma) * (x_t - MEAN)


def weighted(loss):
    return {"mse": MSE(weight=WEIGHT), "sr": SR(weight=WEIGHT)}.get(loss) or LOSSES[loss]()


def gradient_formula(loss, *, x, x_t, x_a, eps_2, sigma, anchored=False):
    """Derived by hand: the image in the loss moves with x_t unless it is anchored."""
    k = shrinkage(sigma)
    residual = denoise(x_t, sigma) - x
    value = 2 * (k if anchored else k - 1) * residual
    if loss == "noise":
        value = value / sigma**2
    if loss == "mse" and not anchored:
        value = value + WEIGHT * 2 * (x - x_a)
    if loss == "sr":
        value = value + WEIGHT * 2 * k * (denoise(x_t, sigma) - denoise(x_a + sigma * eps_2, sigma))
    return value


@pytest.mark.parametrize("loss", ["diff", "mse", "sr", "noise"])
def test_gradient_of_each_loss_with_respect_to_the_image(loss):
    x_a = to_symmetric(mid_images())
    x = x_a + 0.1 * torch.randn_like(x_a)
    d = draws(SEED, (SIGMA, SIGMA), x)
    descent = Descent(gaussian(), weighted(loss), SGD(), LR)
    x_t, x_at = x + SIGMA * d.eps_1, x_a + SIGMA * d.eps_2(0)

    got, state = descent.gradient(x_t, x, x_a, x_at, d.sigma, descent.start(x_a))

    want = gradient_formula(
        loss, x=x, x_t=x + SIGMA * d.eps_1, x_a=x_a, eps_2=d.eps_2(0), sigma=SIGMA
    )
    torch.testing.assert_close(got, want, rtol=0, atol=TOLERANCE / SIGMA**2)
    torch.testing.assert_close(state.denoised, denoise(x_t, SIGMA), rtol=0, atol=TOLERANCE)
    if loss == "diff":
        expected = (state.denoised - x).square().sum((1, 2, 3))
        torch.testing.assert_close(state.loss, expected, rtol=rounding(torch.float64, 192), atol=0)


ONE_STEP = [
    ("O", "diff", "moving"),
    ("O", "mse", "moving"),
    ("O", "sr", "moving"),
    ("O", "noise", "moving"),
    ("N", "diff", "moving"),
    ("N", "mse", "moving"),
    ("N", "sr", "moving"),
    ("N", "noise", "moving"),
    ("N", "diff", "fixed"),
    ("N", "mse", "fixed"),
    ("N", "sr", "fixed"),
]


LEVELS = {
    "one level": ((SIGMA, SIGMA), "batch"),
    "a range": ((0.1, 0.5), "batch"),
    "a range, drawn an image": ((0.1, 0.5), "image"),
}


@pytest.mark.parametrize(("sigma", "per"), LEVELS.values(), ids=LEVELS)
@pytest.mark.parametrize(("variant", "loss", "anchor"), ONE_STEP)
def test_one_step_of_gradient_descent(variant, loss, anchor, sigma, per):
    x = mid_images()
    purifier = ScoreOpt(
        gaussian(), variant=variant, loss=weighted(loss), anchor=anchor, steps=1, lr=LR,
        sigma=sigma, sigma_per=per, optimizer="sgd",
    )  # fmt: skip
    got = purifier(x, seed=SEED)

    x_a, d = to_symmetric(x), draws(SEED, sigma, x, apart=per == "image")
    assert len(d.sigma.unique()) == (len(x) if per == "image" else 1)
    x_t = x_a + d.sigma * d.eps_1
    grad = gradient_formula(
        loss, x=x_a, x_t=x_t, x_a=x_a, eps_2=d.eps_2(0), sigma=d.sigma, anchored=anchor == "fixed"
    )
    want = x_a - LR * grad if variant == "O" else denoise(x_t - LR * grad, d.sigma)
    assert (to_unit(want) > 0).all()
    assert (to_unit(want) < 1).all()
    torch.testing.assert_close(got, to_unit(want), rtol=0, atol=TOLERANCE * (1 + LR / 0.1**2))


def test_one_shot_is_one_denoising_of_one_noised_copy():
    x, d = mid_images(), draws(SEED, (0.1, 0.5), mid_images())
    got = OneShot(gaussian(), sigma=(0.1, 0.5))(x, seed=SEED)
    want = to_unit(denoise(to_symmetric(x) + d.sigma * d.eps_1, d.sigma))
    torch.testing.assert_close(got, want, rtol=0, atol=TOLERANCE)


def test_the_noise_loss_is_the_error_of_the_implied_noise():
    x, eps = mid_images(), torch.randn(4, 3, 8, 8, dtype=torch.float64)
    sigma = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64).reshape(-1, 1, 1, 1)
    x_t = x + sigma * eps
    denoised = denoise(x_t, sigma)
    implied = (x_t - denoised) / sigma
    want = (implied - eps).square().sum((1, 2, 3))
    # a sum of 192 squares, of a difference up to 10 times smaller than what it is of
    relative = rounding(torch.float64, 16 + 192**0.5, 10)
    torch.testing.assert_close(noise_error(denoised, x, sigma), want, rtol=relative, atol=0)
    want = denoising_error(denoised, x) / sigma.flatten() ** 2
    torch.testing.assert_close(noise_error(denoised, x, sigma), want, rtol=relative, atol=0)


@pytest.mark.parametrize("term", [denoising_error, reconstruction, score_regularization])
def test_each_term_sums_over_an_images_pixels_and_keeps_images_apart(term):
    a = torch.zeros(2, 3, 4, 4)
    b = torch.stack([torch.full((3, 4, 4), 0.5), torch.full((3, 4, 4), 2.0)])
    assert term(a, b).tolist() == [48 * 0.25, 48 * 4.0]


def test_the_gaussian_denoiser_is_the_posterior_mean():
    generator = torch.Generator().manual_seed(0)
    x = MEAN + 0.5 * torch.randn(200_000, generator=generator, dtype=torch.float64)
    x_t = x + SIGMA * torch.randn(200_000, generator=generator, dtype=torch.float64)
    near = (x_t - 0.4).abs() < 0.02
    at_04 = gaussian()(torch.full((1, 1, 1, 1), 0.4, dtype=torch.float64), SIGMA).item()
    spread = x[near].std() / near.sum() ** 0.5
    assert abs(x[near].mean() - at_04) < 4 * spread
