"""The classifier that is a denoiser: with Gaussian classes its decision has a formula."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from tolerances import rounding
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from toys import bent, gaussian, mid_images, shrinkage

from scoreopt_defense import BitDepth, DefendedModel
from scoreopt_defense.denoisers import ClassConditionalDenoiser, EDMDenoiser
from scoreopt_defense.diffusion_classifier import DiffusionClassifier, quantiles
from scoreopt_defense.evaluation.judging.fresh import reseeded
from scoreopt_defense.evaluation.named import classifier
from scoreopt_defense.evaluation.plan.fingerprint import described, json_digest

CLASSES, STD = 3, 0.5
MEANS = torch.tensor([-0.4, 0.1, 0.5], dtype=torch.float64)


class GaussianClasses(ClassConditionalDenoiser):
    """Each class's images are normal about its own picture: D is known."""

    def __init__(self) -> None:
        super().__init__(sigma_range=(0.01, 10.0))
        generator = torch.Generator().manual_seed(1)
        self.pictures = MEANS.reshape(-1, 1, 1, 1) + 0.1 * torch.randn(
            CLASSES, 3, 8, 8, generator=generator, dtype=torch.float64
        )

    def denoise(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        mean = self.pictures[self.labels(x_t)]
        return mean + shrinkage(sigma, STD) * (x_t - mean)


def images_of_all_classes(count: int) -> Tensor:
    """In [0, 1], brighter and brighter, with more noise than the classes lie apart."""
    generator = torch.Generator().manual_seed(2)
    shape = count, 3, 8, 8
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    levels = torch.linspace(0.3, 0.8, count, dtype=torch.float64).reshape(-1, 1, 1, 1)
    return (levels + 0.25 * noise).clamp(0, 1)


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("levels", [1, 5])
def test_with_gaussian_classes_it_decides_by_bayes_rule(levels, deterministic):
    r"""The nearest picture; :math:`\|(1-k)(m_y - x) \pm k\sigma\epsilon\|^2` has that sum."""
    denoiser, x = GaussianClasses(), images_of_all_classes(60)
    model = DiffusionClassifier(denoiser, CLASSES, levels=levels, deterministic=deterministic)
    logits = model(x)
    distance = (2 * x[:, None] - 1 - denoiser.pictures).square().sum((2, 3, 4))
    assert len(distance.argmin(1).unique()) == CLASSES
    assert torch.equal(logits.argmax(1), distance.argmin(1))
    slope = sum((s**2 + 0.25) / (0.5 * s) ** 2 * (1 - shrinkage(s, STD)) ** 2 for s in model.sigmas)
    lead, expected = (part - part[:, :1] for part in (logits, -slope / levels * distance))
    # sums over 192 pixels, of squares below 100 over sigma^2 of 0.027 and more
    tolerance = rounding(torch.float64, 64 * 192, 100 / min(model.sigmas) ** 2)
    torch.testing.assert_close(lead, expected, rtol=0, atol=tolerance)


def test_its_gradient_is_that_of_plain_autograd_and_goes_to_the_images():
    x = images_of_all_classes(4).requires_grad_()
    denoiser = GaussianClasses()
    model = DiffusionClassifier(denoiser, CLASSES, levels=2, sigma=(0.3, 0.6))
    (got,) = torch.autograd.grad(model(x)[:, 1].sum(), x)
    slope = sum((s**2 + 0.25) / (0.5 * s) ** 2 * (1 - shrinkage(s, STD)) ** 2 for s in model.sigmas)
    want = 2 * 2 * slope / 2 * (denoiser.pictures[1] - (2 * x - 1))  # of the [0, 1] scale
    torch.testing.assert_close(got, want.detach(), rtol=0, atol=rounding(torch.float64, 64, 1000))


def test_its_noise_is_fixed_or_fresh_and_no_image_depends_on_its_neighbours():
    fixed, x = DiffusionClassifier(GaussianClasses(), CLASSES, levels=2), images_of_all_classes(3)
    assert torch.equal(fixed(x), fixed(x))
    alone = torch.cat([fixed(one) for one in x.split(1)])
    torch.testing.assert_close(fixed(x), alone, rtol=rounding(torch.float64, 1000), atol=0)
    fresh = DiffusionClassifier(GaussianClasses(), CLASSES, levels=2, deterministic=False)
    assert not torch.equal(fresh(x), fresh(x))
    assert torch.equal(fresh(x, seed=3), fresh(x, seed=3))


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_judge_starts_fresh_noise_anew_and_leaves_fixed_noise_the_defence_that_was_attacked(
    deterministic,
):
    model = DiffusionClassifier(GaussianClasses(), CLASSES, levels=2, deterministic=deterministic)
    x = images_of_all_classes(3)
    one, other = (reseeded(model, seed)(x) for seed in (1, 2))
    assert torch.equal(one, other) is deterministic


def test_a_record_tells_apart_what_has_the_same_weights():
    settings = ({}, {"levels": 3}, {"seed": 3}, {"deterministic": False}, {"sigma_data": 0.4})
    made = [DiffusionClassifier(GaussianClasses(), CLASSES, **given) for given in settings]
    assert len({json_digest(described(model)) for model in made}) == len(settings)


class BentClasses(GaussianClasses):
    """Not linear, so that a gradient depends on the noise."""

    def denoise(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        return super().denoise(x_t, sigma) + sigma * x_t.sin()


def fresh(seed: int | None = None) -> DiffusionClassifier:
    return DiffusionClassifier(BentClasses(), CLASSES, levels=2, deterministic=False, seed=seed)


class Drawing(nn.Module):
    """Draws from a generator of its own, of any of these kinds."""

    def __init__(self, generator: Any) -> None:
        super().__init__()
        self.generator, self.training = generator, False

    def forward(self, x: Tensor) -> Tensor:
        match self.generator:
            case torch.Generator() as own:
                drawn = torch.rand(len(x), generator=own)
            case random.Random() as own:
                drawn = torch.tensor([own.random() for _ in x])
            case own:
                drawn = torch.tensor(own.uniform(size=len(x)))
        return (x + drawn.to(x)[:, None, None, None]).sin().flatten(1)[:, :CLASSES]


@pytest.mark.parametrize(
    "make",
    [
        partial(fresh, seed=1),
        lambda: Drawing(torch.Generator().manual_seed(1)),
        lambda: nn.Sequential(Drawing(random.Random(1))).eval(),
        lambda: Drawing(np.random.RandomState(1)),
        lambda: Drawing(np.random.default_rng(1)),
    ],
)
def test_a_random_classifiers_chunks_have_the_gradient_of_their_own_draws(make):
    """A checkpointed chunk would draw anew in the backward pass."""
    x = mid_images().requires_grad_()
    purifier = BitDepth(bits=1, max_batch=2)
    (got,) = torch.autograd.grad(DefendedModel(make(), purifier)(x)[:, 1].sum(), x)
    model, purified = make(), purifier(x.detach()).requires_grad_()
    logits = torch.cat([model(part) for part in purified.split(2)])
    (want,) = torch.autograd.grad(logits[:, 1].sum(), purified)
    torch.testing.assert_close(got, want, rtol=0, atol=rounding(torch.float64, 64, 1000))


def test_fresh_noise_under_a_checkpoint_is_refused():
    x = mid_images().requires_grad_()
    again = checkpoint(fresh(), x, use_reentrant=False)
    with pytest.raises(RuntimeError, match="a backward pass makes this call"):
        again.sum().backward()


@pytest.mark.parametrize("ends", [(0.027, 3.3), (0.5, 5.0), (0.3, 0.3)])
def test_levels_part_the_law_evenly_within_its_ends(ends):
    levels = torch.tensor(quantiles(*ends, 401), dtype=torch.float64)
    low, high = ends
    assert low <= levels[0] <= levels[-1] <= high
    assert (levels.diff() >= 0).all()
    middle = (low * high) ** 0.5
    assert levels[200].item() == pytest.approx(middle)
    within = (levels.log() - levels[200].log()).abs() <= torch.tensor(high / low).log() / 4
    if low < high:  # one standard deviation either way
        assert within.double().mean().item() == pytest.approx(0.6827, abs=2 / 401)


def test_a_configuration_names_it_by_its_denoiser():
    model = classifier("diffusion:mnist-tiny-labelled")
    assert isinstance(model, DiffusionClassifier)
    assert (model.classes, model.denoiser.sigma_range) == (10, (0.2, 5.0))
    with pytest.raises(ValueError, match=r"classes must be .* got 0"):
        classifier("diffusion:mnist-tiny")


class Told(nn.Module):
    """What it was told, in every pixel."""

    def forward(self, x_t: Tensor, sigma: Tensor, class_labels: Tensor) -> Tensor:
        places = torch.arange(1.0, 1 + class_labels.shape[1])
        return (class_labels * places).sum(1).reshape(-1, 1, 1, 1).expand_as(x_t)


def told(**settings) -> DiffusionClassifier:
    denoiser = EDMDenoiser(Told(), class_labels=torch.zeros(1, 4))
    return DiffusionClassifier(denoiser, **settings)


def test_an_edm_network_is_told_another_class_or_none():
    denoiser = EDMDenoiser(Told(), class_labels=torch.zeros(1, 4))
    x = mid_images(2, dtype=torch.float32)
    assert denoiser(x, 0.3).unique().tolist() == [0]
    assert denoiser.with_class_label(2)(x, 0.3).unique().tolist() == [3]
    each = denoiser.with_class_label(torch.tensor([3, 0]))(x, 0.3)
    assert each[:, 0, 0, 0].tolist() == [4, 1]
    assert denoiser(x, 0.3).unique().tolist() == [0]
    model = DiffusionClassifier(denoiser, levels=1)
    assert model(x).shape == (2, 4)
    assert not model.training


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: DiffusionClassifier(gaussian(), 3), TypeError, "denoiser must be a ClassCond"),
        (lambda: DiffusionClassifier(bent(), 1), ValueError, "classes must be a whole number"),
        (lambda: DiffusionClassifier(bent(), 2, levels=0), ValueError, "levels must be a whole"),
        (lambda: DiffusionClassifier(bent(), 2, sigma=(1, 9)), ValueError, "sigma must be within"),
        (lambda: DiffusionClassifier(bent()), ValueError, "classes must be .* got 0"),
        (lambda: told(classes=0), ValueError, "classes must be .* from 2 to 4, got 0"),
        (lambda: told(classes=5), ValueError, "classes must be .* from 2 to 4, got 5"),
        (lambda: told(sigma_data=0), ValueError, "sigma_data must be a finite number above 0"),
        (lambda: told(seed=-1), ValueError, "seed must be a whole number of at least 0, got -1"),
    ],
)
def test_what_does_not_fit_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
