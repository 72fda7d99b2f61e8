"""Algorithms 1 and 2, against loops written here from the paper's boxes."""

from __future__ import annotations

import pytest
import torch
from tolerances import adam_rounding, rounding
from toys import bent, draws, gaussian, mid_images, to_symmetric, to_unit

from scoreopt_defense import OneShot, ScoreOpt

SEED, SIGMA = 3, (0.2, 0.4)
# At most 6 steps, of Adam or, whose gradients are up to 8 at these noise levels, of SGD.
TOLERANCE = adam_rounding(torch.float64, lr=0.02, steps=6, pixels=768) + rounding(
    torch.float64, 32 * 6, 8
)


def sgd_or_adam(name, parameter, lr):
    return {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[name]([parameter], lr=lr)


def loss_of(kind, denoiser, x_t, x, x_a, sigma, eps_2):
    denoised = denoiser(x_t, sigma)
    if kind == "noise":
        return ((denoised - x) / sigma).square().sum()
    value = (denoised - x).square().sum()
    if kind == "sr":
        with torch.no_grad():
            denoised_a = denoiser(x_a + sigma * eps_2, sigma)
        value = value + (denoised - denoised_a).square().sum()
    return value


def algorithm_1(denoiser, x, *, loss, steps, lr, optimizer):
    x_a = to_symmetric(x)
    leaf = x_a.clone().requires_grad_()
    descent = sgd_or_adam(optimizer, leaf, lr)  # kept across iterations, as the authors do
    for i in range(steps):
        d = draws(SEED, SIGMA, x, i)
        descent.zero_grad()
        loss_of(loss, denoiser, leaf + d.sigma * d.eps_1, leaf, x_a, d.sigma, d.eps_2(0)).backward()
        descent.step()
    return to_unit(leaf.detach()).clamp(0, 1)


def algorithm_2(denoiser, x, *, loss, steps, lr, optimizer, outer_steps=1, anchor="moving"):
    x_a = to_symmetric(x)
    x_i = x_a
    for i in range(outer_steps):
        d = draws(SEED, SIGMA, x, i)
        x_t = (x_i + d.sigma * d.eps_1).requires_grad_()
        descent = sgd_or_adam(optimizer, x_t, lr)
        for j in range(steps):
            stands_for = x_i if anchor == "fixed" else x_t - d.sigma * d.eps_1
            descent.zero_grad()
            loss_of(loss, denoiser, x_t, stands_for, x_a, d.sigma, d.eps_2(j)).backward()
            descent.step()
        x_i = denoiser(x_t, d.sigma).detach()
    return to_unit(x_i).clamp(0, 1)


@pytest.mark.parametrize("prior", [gaussian, bent])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("loss", ["diff", "sr"])
def test_scoreopt_o_is_algorithm_1(prior, optimizer, loss):
    settings = {"loss": loss, "steps": 4, "lr": 0.02, "optimizer": optimizer}
    x = mid_images()
    got = ScoreOpt(prior(), variant="O", sigma=SIGMA, **settings)(x, seed=SEED)
    torch.testing.assert_close(got, algorithm_1(prior(), x, **settings), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("prior", [gaussian, bent])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize(
    ("loss", "anchor"),
    [("noise", "moving"), ("diff", "moving"), ("sr", "moving"), ("diff", "fixed"), ("sr", "fixed")],
)
@pytest.mark.parametrize("outer_steps", [1, 2])
def test_scoreopt_n_is_algorithm_2(prior, optimizer, loss, anchor, outer_steps):
    settings = {"loss": loss, "steps": 3, "lr": 0.02, "optimizer": optimizer,
                "outer_steps": outer_steps, "anchor": anchor}  # fmt: skip
    x = mid_images()
    got = ScoreOpt(prior(), variant="N", sigma=SIGMA, **settings)(x, seed=SEED)
    torch.testing.assert_close(got, algorithm_2(prior(), x, **settings), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("sigma", [0.3, SIGMA])
def test_scoreopt_n_without_steps_is_one_shot_denoising(bent_denoiser, x, sigma):
    none = ScoreOpt(bent_denoiser, variant="N", steps=0, sigma=sigma)(x, seed=SEED)
    assert torch.equal(none, OneShot(bent_denoiser, sigma=sigma)(x, seed=SEED))
    assert not torch.equal(none, ScoreOpt(bent_denoiser, steps=1, sigma=sigma)(x, seed=SEED))


def test_scoreopt_o_without_steps_is_the_identity(bent_denoiser, x):
    got = ScoreOpt(bent_denoiser, variant="O", steps=0, sigma=0.3)(x)
    torch.testing.assert_close(got, x, rtol=0, atol=rounding(torch.float64, 4))


def test_the_literal_box_rebuilds_the_attacked_image_and_the_moving_image_does_not(x):
    """Why "fixed" is no defence: enough steps undo the purification."""
    common = {"variant": "N", "loss": "diff", "steps": 200, "lr": 0.05, "sigma": 0.3}
    fixed = ScoreOpt(gaussian(), anchor="fixed", **common)(x, seed=SEED)
    moving = ScoreOpt(gaussian(), anchor="moving", **common)(x, seed=SEED)
    assert (fixed - x).abs().max() < 1e-3
    assert (moving - x).abs().max() > 0.05


def test_scoreopt_o_lowers_the_loss(bent_denoiser, x):
    """Less denoising error, under noise it has not seen, after more steps."""

    def error(steps):
        purifier = ScoreOpt(
            bent_denoiser, variant="O", steps=steps, lr=0.01, sigma=0.3, deterministic=True
        )
        purified = to_symmetric(purifier(x))
        d = draws(SEED, (0.3, 0.3), x)
        return (bent_denoiser(purified + 0.3 * d.eps_1, 0.3) - purified).square().sum()

    assert error(20) < error(5) < error(0)


@pytest.mark.parametrize(
    ("variant", "default"), [("O", "diff"), ("N", "noise")], ids=["ScoreOpt-O", "ScoreOpt-N"]
)
def test_default_losses_are_the_published_ones(variant, default, bent_denoiser, x):
    settings = {"variant": variant, "steps": 2, "sigma": 0.3, "optimizer": "sgd", "lr": 0.01}
    by_default = ScoreOpt(bent_denoiser, **settings)(x, seed=1)
    assert torch.equal(by_default, ScoreOpt(bent_denoiser, loss=default, **settings)(x, seed=1))
    other = {"diff": "noise", "noise": "diff"}[default]
    assert not torch.equal(by_default, ScoreOpt(bent_denoiser, loss=other, **settings)(x, seed=1))


def test_a_loss_that_is_not_one_number_an_image_is_refused():
    def mean(denoised, x, **_):
        return (denoised - x).square().mean()

    with pytest.raises(ValueError, match=r"one number an image, of shape \(4,\), got \(\)"):
        ScoreOpt(bent(), steps=1, sigma=0.3, loss=mean)(mid_images())
