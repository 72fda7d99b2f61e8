"""How a defended model is differentiated, mode by mode, against compositions by hand."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from tolerances import adam_rounding, rounding
from toys import STD, bent, draws, gaussian, labels, mid_images, shrinkage, smooth_classifier

from scoreopt_defense import EOT, DefendedModel, OneShot, ScoreOpt, ThirdParty
from scoreopt_defense.denoisers import GaussianDenoiser
from scoreopt_defense.gradients import BPDA, GRADIENTS, NoGradient

SEED = 5
# Up to 6 repetitions of 768 pixels, whose gradients are below 1.
TOLERANCE = adam_rounding(torch.float64, lr=0.01, steps=3, pixels=6 * 768)

PURIFIERS = {
    "ScoreOpt-O": lambda **kw: ScoreOpt(bent(), variant="O", steps=3, lr=0.01, sigma=0.3, **kw),
    "ScoreOpt-N": lambda **kw: ScoreOpt(bent(), variant="N", steps=3, lr=0.01, sigma=0.3, **kw),
    "ScoreOpt-N, SR": lambda **kw: ScoreOpt(
        bent(), variant="N", loss="sr", steps=2, lr=0.01, sigma=(0.2, 0.4), outer_steps=2, **kw
    ),
    "one-shot": lambda **kw: OneShot(bent(), sigma=(0.2, 0.4), **kw),
}
every_purifier = pytest.mark.parametrize("make", PURIFIERS.values(), ids=PURIFIERS.keys())


def gradient_of_loss(model, x, y, **call):
    x = x.clone().requires_grad_()
    loss = F.cross_entropy(model(x, **call), y, reduction="sum")
    return torch.autograd.grad(loss, x)[0]


def classifiers_gradient_at(purified, y, classifier):
    return gradient_of_loss(classifier, purified, y)


@every_purifier
def test_bpda_is_the_classifiers_gradient_at_the_purified_image(make, classifier, x, y):
    purifier = make(gradient="bpda")
    got = gradient_of_loss(DefendedModel(classifier, purifier), x, y, seed=SEED)
    want = classifiers_gradient_at(purifier(x, seed=SEED), y, classifier)
    torch.testing.assert_close(got, want, rtol=0, atol=TOLERANCE)


@every_purifier
def test_one_shot_sends_it_through_the_jacobian_of_one_shot_denoising(make):
    """The Jacobian by central differences of the surrogate's forward pass."""
    x, y = mid_images(2, size=4), labels(2)
    classifier = smooth_classifier(size=4)
    purifier = make(gradient="one-shot")
    got = gradient_of_loss(DefendedModel(classifier, purifier), x, y, seed=SEED)

    upstream = classifiers_gradient_at(purifier(x, seed=SEED), y, classifier)
    one_shot = OneShot.surrogate_of(purifier)
    assert one_shot(x, seed=SEED).min() > 0
    assert one_shot(x, seed=SEED).max() < 1
    step, want = 1e-5, torch.zeros_like(x)
    for i in range(x[0].numel()):  # images do not mix: one pixel of all of them at once
        bump = torch.zeros_like(x[0]).flatten()
        bump[i] = step
        bump = bump.reshape(x[0].shape)
        slope = (one_shot(x + bump, seed=SEED) - one_shot(x - bump, seed=SEED)) / (2 * step)
        want.flatten(1)[:, i] = (slope * upstream).sum((1, 2, 3))
    assert want.abs().max() > 1e-3
    # 48 roundings of the loss over the step, and the step's square: 1e-9 + 1e-10, times slopes to 5
    torch.testing.assert_close(got, want, rtol=0, atol=1e-8)


def test_the_noise_levels_of_one_shot_mode_are_the_purifiers_own():
    purifier = ScoreOpt(gaussian(), sigma=(0.1, 0.9), sigma_per="image", steps=2)
    x = mid_images().requires_grad_()
    (got,) = torch.autograd.grad(purifier(x, seed=3).sum(), x)
    k = shrinkage(draws(3, (0.1, 0.9), x, apart=True).sigma, STD)
    torch.testing.assert_close(got, k.expand_as(got), rtol=0, atol=TOLERANCE)


def test_one_shot_mode_with_a_gaussian_prior_scales_by_k(classifier, x, y):
    purifier = ScoreOpt(gaussian(), variant="O", steps=4, sigma=0.3, lr=0.01)
    got = gradient_of_loss(DefendedModel(classifier, purifier), x, y, seed=SEED)
    upstream = classifiers_gradient_at(purifier(x, seed=SEED), y, classifier)
    torch.testing.assert_close(got, shrinkage(0.3, STD) * upstream, rtol=0, atol=TOLERANCE)


def test_the_clamp_is_passed_straight_through(classifier, y):
    """A saturated pixel must not hide the gradient."""
    x = torch.ones(4, 3, 8, 8, dtype=torch.float64)
    purifier = OneShot(GaussianDenoiser(std=3.0), sigma=0.3)
    purified = purifier(x, seed=SEED)
    saturated = purified == 1
    assert saturated.float().mean() > 0.2
    got = gradient_of_loss(DefendedModel(classifier, purifier), x, y, seed=SEED)
    upstream = classifiers_gradient_at(purified, y, classifier)
    assert (upstream[saturated] != 0).all()
    torch.testing.assert_close(got, shrinkage(0.3, 3.0) * upstream, rtol=0, atol=TOLERANCE)


@every_purifier
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_forward_value_is_the_same_bit_for_bit_in_all_modes(make, dtype):
    x = mid_images(dtype=dtype)
    plain = make()(x, seed=SEED)
    for mode in GRADIENTS:
        tracked = make(gradient=mode)(x.clone().requires_grad_(), seed=SEED)
        assert tracked.requires_grad
        assert torch.equal(tracked, plain)


def test_none_refuses_a_gradient_and_names_the_modes_that_have_one(classifier, x, y):
    model = DefendedModel(classifier, OneShot(bent(), sigma=0.3, gradient="none"))
    with pytest.raises(RuntimeError, match=r"gradient='none'.*'one-shot', 'bpda', 'exact'"):
        gradient_of_loss(model, x, y)


def test_a_twin_has_another_mode_and_the_same_networks(classifier, x, y):
    model = DefendedModel(classifier, OneShot(bent(), sigma=0.3, gradient="none"))
    bpda = model.with_gradient("bpda")
    assert model.purifier.gradient == NoGradient()
    assert bpda.purifier.gradient == BPDA()
    assert bpda.classifier is classifier
    assert bpda.purifier.denoiser is model.purifier.denoiser
    built_so = DefendedModel(classifier, OneShot(bent(), sigma=0.3, gradient=BPDA()))
    assert torch.equal(
        gradient_of_loss(bpda, x, y, seed=SEED), gradient_of_loss(built_so, x, y, seed=SEED)
    )


@dataclass(frozen=True)
class MinusIdentity:
    """A surrogate of a user's own, as the module's documentation has it."""

    def differentiate(self, purification, x_a):
        return purification(x_a), lambda grad: -grad


@dataclass(frozen=True)
class MoreNoise:
    """One that needs the purifier: one-shot denoising at a noise level of its own."""

    sigma: float

    def differentiate(self, purification, x_a):
        def backward(grad):
            leaf = x_a.detach().requires_grad_()
            noised = leaf + self.sigma * purification.noise.eps_1(0, leaf)
            denoised = purification.purifier.denoiser(noised, self.sigma)
            return torch.autograd.grad(denoised, leaf, grad)[0]

        return purification(x_a), backward


class InHalf:
    """The identity, through a type without numbers below 6e-8."""

    def differentiate(self, purification, x_a):
        return purification(x_a), lambda grad: grad.half().to(grad)


def test_a_tiny_gradient_is_not_lost_in_half_precision(x):
    leaf, upstream = x.clone().requires_grad_(), torch.randn_like(x)
    OneShot(bent(), sigma=0.3, gradient=InHalf())(leaf, seed=0).backward(1e-9 * upstream)
    torch.testing.assert_close(leaf.grad, 1e-9 * upstream, rtol=2.0**-10, atol=1e-9 * 2.0**-20)


@every_purifier
def test_a_users_own_surrogate_is_an_object_passed_in(make, classifier, x, y):
    own, bpda = make(gradient=MinusIdentity()), make(gradient="bpda")
    assert torch.equal(own(x, seed=SEED), bpda(x, seed=SEED))
    got = gradient_of_loss(DefendedModel(classifier, own), x, y, seed=SEED)
    want = gradient_of_loss(DefendedModel(classifier, bpda), x, y, seed=SEED)
    assert torch.equal(got, -want)
    louder = make(gradient=MoreNoise(sigma=0.5))
    assert repr(MoreNoise(sigma=0.5)) in repr(louder)
    got = gradient_of_loss(DefendedModel(classifier, louder), x, y, seed=SEED)
    reference = DefendedModel(classifier, OneShot(bent(), sigma=0.5))
    upstream = classifiers_gradient_at(louder(x, seed=SEED), y, classifier)
    leaf = x.clone().requires_grad_()
    want = torch.autograd.grad(reference.purifier(leaf, seed=SEED), leaf, upstream)[0]
    torch.testing.assert_close(got, want, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("mode", GRADIENTS)
def test_the_surrogate_is_one_shot_denoising_forward_and_backward(mode, classifier, x, y):
    model = DefendedModel(
        classifier, ScoreOpt(bent(), steps=3, sigma=(0.2, 0.4), gradient=mode), votes=2
    )
    surrogate = model.surrogate()
    reference = DefendedModel(classifier, OneShot(bent(), sigma=(0.2, 0.4)), votes=2)
    assert torch.equal(surrogate(x, seed=SEED), reference(x, seed=SEED))
    assert not torch.equal(surrogate(x, seed=SEED), model(x, seed=SEED))
    got = gradient_of_loss(surrogate, x, y, seed=SEED)
    torch.testing.assert_close(
        got, gradient_of_loss(reference, x, y, seed=SEED), rtol=0, atol=TOLERANCE
    )


@pytest.mark.parametrize("mode", ["one-shot", "bpda"])
def test_the_gradient_of_votes_is_that_of_the_mean_logits(mode, classifier, x, y):
    purifier = PURIFIERS["ScoreOpt-N"](gradient=mode)
    leaf = x.clone().requires_grad_()
    logits = classifier(purifier(leaf, seed=SEED, samples=3)).reshape(3, 4, -1)
    F.cross_entropy((logits[0] + logits[1] + logits[2]) / 3, y, reduction="sum").backward()
    got = gradient_of_loss(DefendedModel(classifier, purifier, votes=3), x, y, seed=SEED)
    torch.testing.assert_close(got, leaf.grad, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("mode", ["one-shot", "bpda"])
def test_the_gradient_of_mean_logits_is_the_mean_of_gradients(mode, classifier, x):
    """For a linear function of the logits; each repetition has its own noise."""
    purifier = PURIFIERS["ScoreOpt-N"](gradient=mode)
    weights = torch.randn(4, 4, dtype=torch.float64)

    def gradient(picked):
        leaf = x.clone().requires_grad_()
        logits = classifier(purifier(leaf, seed=SEED, samples=3)).reshape(3, 4, -1)[picked]
        return torch.autograd.grad((weights * logits).sum(), leaf)[0]

    parts = [gradient(r) for r in range(3)]
    assert not torch.allclose(parts[0], parts[1])
    leaf = x.clone().requires_grad_()
    (weights * DefendedModel(classifier, purifier, votes=3)(leaf, seed=SEED)).sum().backward()
    torch.testing.assert_close(leaf.grad, sum(parts) / 3, rtol=0, atol=TOLERANCE)


@every_purifier
@pytest.mark.parametrize("mode", ["one-shot", "bpda"])
@pytest.mark.parametrize("max_batch", [1, 3, 5])
def test_chunks_give_the_whole_batchs_gradient(make, mode, max_batch, classifier, x, y):
    whole = DefendedModel(classifier, make(gradient=mode), votes=2)
    chunked = DefendedModel(classifier, make(gradient=mode, max_batch=max_batch), votes=2)
    torch.testing.assert_close(
        gradient_of_loss(chunked, x, y, seed=SEED),
        gradient_of_loss(whole, x, y, seed=SEED),
        rtol=0,
        atol=TOLERANCE,
    )


def test_backward_may_be_called_again_and_later(classifier, x, y):
    """The backward pass makes its own graph, under the forward pass's noise."""
    model = DefendedModel(classifier, PURIFIERS["ScoreOpt-N"]())
    leaf = x.clone().requires_grad_()
    loss = F.cross_entropy(model(leaf), y)
    for _ in range(3):
        model(x)  # goes on in the stream of noise
    first = torch.autograd.grad(loss, leaf, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(loss, leaf)[0])


def test_the_gradient_reaches_what_comes_before_the_purifier(classifier, x, y):
    purifier = PURIFIERS["ScoreOpt-N"]()
    gain = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
    F.cross_entropy(classifier(purifier(gain * x, seed=SEED)), y, reduction="sum").backward()
    at_scaled = gradient_of_loss(DefendedModel(classifier, purifier), 0.9 * x, y, seed=SEED)
    terms = at_scaled * x  # of either sign: their sum is known to the size of the largest sums
    tolerance = rounding(torch.float64, 64 + terms.numel() ** 0.5, terms.abs().sum())
    torch.testing.assert_close(gain.grad, terms.sum(), rtol=0, atol=tolerance)


def test_the_classifiers_own_weights_get_their_gradient(classifier, x, y):
    """Training a classifier behind a purifier needs no gradient of the images."""
    purifier = PURIFIERS["ScoreOpt-N"](max_batch=3)
    F.cross_entropy(DefendedModel(classifier, purifier)(x, seed=SEED), y).backward()
    got = classifier[1].weight.grad.clone()
    classifier.zero_grad()
    F.cross_entropy(classifier(purifier(x, seed=SEED)), y).backward()
    torch.testing.assert_close(got, classifier[1].weight.grad, rtol=0, atol=TOLERANCE)


def test_backward_runs_under_the_forward_passs_autocast(x):
    purifier = OneShot(bent(torch.float32), sigma=0.3)
    x, upstream = x.float(), torch.randn(4, 3, 8, 8)

    def gradient(inside):
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            purified = purifier(leaf, seed=SEED)
        return torch.autograd.grad(purified, leaf, upstream)[0]

    full, low = gradient(False), gradient(True)
    assert not torch.equal(full, low)
    # input, weights, output and their gradients, each rounded once
    tolerance = rounding(torch.bfloat16, 6, full.abs().max())
    torch.testing.assert_close(low, full, rtol=0, atol=tolerance)


def test_eot_of_a_defended_model_is_its_gradient_with_more_votes(classifier, x, y):
    few = EOT(DefendedModel(classifier, PURIFIERS["ScoreOpt-N"](seed=4), votes=2), samples=3)
    many = DefendedModel(classifier, PURIFIERS["ScoreOpt-N"](seed=4), votes=6)
    torch.testing.assert_close(
        gradient_of_loss(few, x, y), gradient_of_loss(many, x, y), rtol=0, atol=TOLERANCE
    )


@pytest.mark.parametrize(("mode", "cut_off"), [("bpda", 1.0), ("exact", 0.0), ("smoothed", 0.0)])
def test_a_pixel_that_is_cut_off_passes_gradients_unless_the_mode_has_the_clamps_own(mode, cut_off):
    """Twice the distance from grey: 0.9 becomes 1.3, which is cut off, and 0.6 becomes 0.7."""
    purifier = ThirdParty(lambda x: 2 * x - 0.5, gradient=mode)
    x = torch.full((1, 1, 1, 2), 0.9, dtype=torch.float64)
    x[..., 1] = 0.6
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(purifier(x).sum(), x)
    assert gradient.flatten().tolist() == [cut_off, 1.0 if mode == "bpda" else 2.0]
