"""The baselines' own facts: closed forms, and other libraries' numbers."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from purifiers_table import BASELINES, WITHOUT_NETWORK
from tolerances import rounding
from toys import MEAN, bent, gaussian, mid_images, shrinkage, smooth_classifier

from scoreopt_defense import ADP, GDMP, JPEG, BitDepth, DefendedModel, DiffPure, MENet, PurSAMERE
from scoreopt_defense.denoisers import EDMDenoiser, NoDenoiser
from scoreopt_defense.evaluation.plan.fingerprint import described
from scoreopt_defense.gradients import GRADIENTS
from scoreopt_defense.noise import Noise

F64 = torch.float64


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_in_images_out(name, dtype, channels):
    x = torch.rand(2, channels, 12, 8, dtype=dtype)
    purified = BASELINES[name](gaussian(), max_batch=3)(x, samples=2)
    assert purified.shape == (4, channels, 12, 8)
    assert purified.dtype == dtype
    assert purified.min() >= 0
    assert purified.max() <= 1


# ---- which modes there are


@pytest.mark.parametrize("name", BASELINES)
def test_each_mode_it_names_gives_a_gradient_and_each_other_is_refused(name):
    purifier, x = BASELINES[name](bent(), gradient="bpda"), mid_images().requires_grad_()
    assert "bpda" in purifier.modes
    for mode in [mode for mode in GRADIENTS if mode != "none"]:
        if mode in purifier.modes:
            found = torch.autograd.grad(purifier.with_gradient(mode)(x, seed=1).sum(), x)[0]
            assert found.isfinite().all()
            assert found.abs().max() > 0
        else:
            with pytest.raises(ValueError, match=rf"gradient='{mode}' needs .*\['bpda'"):
                purifier.with_gradient(mode)
            with pytest.raises(ValueError, match=rf"gradient='{mode}' needs .*\['bpda'"):
                BASELINES[name](bent(), gradient=mode)
    with pytest.raises(RuntimeError, match=r"set to gradient='none'.*bpda"):
        purifier.with_gradient("none")(x).sum().backward()


def test_a_mode_of_the_librarys_that_asks_for_nothing_by_name_is_taken_where_exact_is(monkeypatch):
    class Smoothed:
        def differentiate(self, purification, x_a): ...

    monkeypatch.setitem(GRADIENTS, "new", Smoothed)
    assert "new" in DiffPure(gaussian()).modes
    assert "new" not in JPEG().modes
    with pytest.raises(ValueError, match=r"gradient='new' needs steps.*\['bpda'\]"):
        JPEG(gradient=Smoothed())


@pytest.mark.parametrize("name", WITHOUT_NETWORK)
def test_without_a_network_it_is_a_whole_defence_all_the_same(name, x):
    model = DefendedModel(smooth_classifier(), BASELINES[name](None), votes=2)
    assert isinstance(model.purifier.denoiser, NoDenoiser)
    assert described(model)["denoiser"]["module"] == "NoDenoiser"
    assert not list(model.purifier.parameters())
    assert model(x, seed=1).shape == (4, 4)
    for duplicate in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(duplicate(x, seed=1), model(x, seed=1))
    assert model.replace(max_batch=3)(x, seed=1).shape == (4, 4)
    with pytest.raises(AttributeError, match="sigma"):
        model.surrogate()
    with pytest.raises(NotImplementedError, match="no denoiser"):
        model.purifier.denoiser(x, 0.1)


# ---- GDMP


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_gdmp_without_guidance_is_diffpure(sampler, x):
    settings = {"steps": 5, "sigma": (0.2, 0.4), "sampler": sampler}
    plain = DiffPure(bent(), **settings)(x, seed=1)
    assert torch.equal(GDMP(bent(), rounds=1, scale=0, **settings)(x, seed=1), plain)
    for changes in ({"rounds": 2}, {"scale": 1.0}):
        other = GDMP(bent(), **settings | {"rounds": 1, "scale": 0} | changes)(x, seed=1)
        assert (other - plain).abs().max() > 1e-3


def test_a_guided_step_is_the_equation():
    x_a, scale = 2 * mid_images() - 1, 3.0
    purifier = GDMP(gaussian(), sigma=0.4, steps=1, rounds=1, scale=scale)
    noise = Noise.of_batch(1, len(x_a))
    found = purifier.purify(x_a, noise)
    alpha = 1 / math.sqrt(1 + 0.4**2)
    sigma_t = 0.4 * alpha
    x_t = alpha * x_a + sigma_t * noise.eps_1(0, x_a)
    x_at = alpha * x_a + sigma_t * noise.eps_2(0, 1, x_a)
    guided = gaussian()(x_t / alpha, 0.4) + scale * 0.4 * (1 - alpha**2) * (x_at - x_t)
    torch.testing.assert_close(found, guided, rtol=0, atol=rounding(F64, 64, 4))


def test_guidance_keeps_the_image_near_the_attacked_one(x):
    def distance(scale):
        made = GDMP(gaussian(), sigma=0.4, steps=20, rounds=1, scale=scale)
        return (made(x, seed=1) - x).square().mean()

    assert distance(20.0) < distance(5.0) < distance(0.0)


def test_its_default_scale_is_the_authors():
    """Their mean is over 100 images of 3 x 32 x 32, their scale for a perturbation of 8."""
    theirs = 2 / (100 * 3 * 32 * 32) / (8 * 2 / 255 / 3 / 60000)
    assert round(theirs, 1) == GDMP(gaussian()).scale
    integral = 0.1 * 0.036 + 19.9 / 2 * 0.036**2  # their 36 of 1000 steps
    assert round(math.sqrt(math.expm1(integral)), 3) == GDMP(gaussian()).sigma[0]


# ---- ADP


def start_of(x_a, sigma, seed=1):
    """The image that ADP climbs from."""
    noise = Noise.of_batch(seed, len(x_a))
    return (x_a + sigma * noise.eps_1(0, x_a)).clamp(-1, 1)


def test_adp_goes_a_share_of_the_way_to_a_gaussians_mode():
    r"""Its curvature is the same everywhere: a step is a share of Newton's, which ends there.

    :math:`x_N - \mu = (1 - \lambda)^N (x_0 - \mu)`."""
    x_a, n, share = 2 * mid_images() - 1, 6, 0.1
    purifier = ADP(gaussian(), sigma=0.3, level=0.4, steps=n, share=share)
    found = purifier.purify(x_a, Noise.of_batch(1, len(x_a)))
    expected = MEAN + (1 - share) ** n * (start_of(x_a, 0.3) - MEAN)
    # the curvature is a difference over delta / s: rounding is magnified by as much, each step
    magnified = 0.4 / 2e-3 / (1 - shrinkage(0.4))
    tolerance = rounding(F64, 64 * n, magnified)
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    density = [-(image - MEAN).square().sum() for image in (start_of(x_a, 0.3), found)]
    assert density[1] > density[0]


def test_an_image_stops_alone_where_its_steps_are_short():
    """Of a slope a, the step is share * s / a: 0.028 and, at its bound, 0.2."""

    def network(x_t, sigma):
        steep = x_t.mean((1, 2, 3), keepdim=True) > 0
        return x_t * (1 - torch.where(steep, 0.9, torch.full_like(x_t, 0.01)))

    x_a = 2 * mid_images(2) - 1
    x_a = x_a - x_a.mean((1, 2, 3), keepdim=True) + torch.tensor([0.4, -0.4]).reshape(2, 1, 1, 1)
    denoiser = EDMDenoiser(network, sigma_range=(0.01, 1))
    settings = {"sigma": 0.01, "level": 0.5, "steps": 1, "share": 0.05}
    first = start_of(x_a, 0.01)
    stops = ADP(denoiser, shortest=0.1, **settings)
    found = stops.purify(x_a, Noise.of_batch(1, 2))
    assert torch.equal(found[0], first[0])
    moved = first[1] * (1 - 0.2 * 0.01 / 0.5)
    torch.testing.assert_close(found[1], moved, rtol=0, atol=rounding(F64, 64, 100))
    goes_on = ADP(denoiser, shortest=0.0, **settings).purify(x_a, Noise.of_batch(1, 2))
    near = first[0] * (1 - 0.05)
    torch.testing.assert_close(goes_on[0], near, rtol=0, atol=rounding(F64, 64, 500))


@pytest.mark.parametrize(
    ("network", "factor"),
    [(lambda x_t, s: 2 * x_t, 1 + 2e-5 / 0.5), (lambda x_t, s: 1 * x_t, 1.0)],
    ids=["a density that curves upwards", "a flat one"],
)
def test_no_density_takes_adp_outside_its_numbers(network, factor):
    denoiser = EDMDenoiser(network, sigma_range=(0.01, 1))
    x_a = (2 * mid_images() - 1).requires_grad_()
    purifier = ADP(denoiser, sigma=0.1, level=0.5, steps=1, shortest=0.0)
    found = purifier.purify(x_a, Noise.of_batch(1, 4))
    expected = factor * start_of(x_a, 0.1)
    torch.testing.assert_close(found, expected, rtol=0, atol=rounding(F64, 64))
    x = mid_images().requires_grad_()
    purifier.with_gradient("exact")(x).sum().backward()
    assert x.grad.isfinite().all()


def test_adp_stays_in_the_image_range_and_calls_its_network_twice_a_step(x):
    calls = []
    denoiser = EDMDenoiser(lambda x_t, s: calls.append(x_t) or 3 + 0.5 * x_t, sigma_range=(0.01, 1))
    found = ADP(denoiser, sigma=0.1, steps=5, share=1.0)(x)
    assert len(calls) == 10
    assert torch.equal(found, torch.ones_like(x))
    assert all(seen.abs().max() <= 1 for seen in calls[::2])


# ---- PurSAMERE


@pytest.mark.parametrize("rho", [0.0, 0.7])
def test_a_sharpness_aware_step_on_a_quadratic(rho):
    r"""Of a Gaussian prior R is one: of slope :math:`s (x - c)`, and at x's distance d from c

    :math:`d \leftarrow (1 - \eta s) d - \eta s \rho` along the same line."""
    x_a, sigma, lr, steps, bank = 2 * mid_images() - 1, 0.3, 0.8, 3, 4
    noise, k = Noise.of_batch(0, len(x_a), shared=True), shrinkage(0.3)
    s, c = 2 * (1 - k) ** 2, MEAN + k * sigma / (1 - k) * mean_noise(noise, bank, x_a)
    settings = {"sigma": sigma, "lr": lr, "steps": steps, "bank": bank, "rho": rho}
    found = PurSAMERE(gaussian(), optimizer="sgd", **settings).purify(x_a, noise)
    start = distance = (x_a - c).square().sum((1, 2, 3), keepdim=True).sqrt()
    for _ in range(steps):
        distance = (1 - lr * s) * distance - lr * s * rho
    # a bank of gradients below 4 and their norm over 192 pixels, twice a step
    tolerance = rounding(F64, 64 * steps * bank, 4)
    torch.testing.assert_close(found - c, distance / start * (x_a - c), rtol=0, atol=tolerance)


def mean_noise(noise, bank, like):
    return torch.stack([noise.eps_1(k, like) for k in range(bank)]).mean(0)


def test_pursamere_is_a_function_unless_it_is_told_otherwise(x):
    once, again = (PurSAMERE(bent(), steps=1)(x) for _ in range(2))
    assert torch.equal(once, again)
    drawn = PurSAMERE(bent(), steps=1, deterministic=False)
    assert not torch.equal(drawn(x), drawn(x))


# ---- ME-Net


@pytest.mark.parametrize("channels", ["concat", "separate"])
def test_menet_of_all_pixels_and_ranks_is_the_identity(channels, x):
    purified = MENet(keep=1.0, rank=1.0, channels=channels)(x)
    # an SVD is backward stable: a modest multiple of its size's square root, times its norm
    norm = torch.linalg.matrix_norm(2 * x - 1).max()
    torch.testing.assert_close(purified, x, rtol=0, atol=rounding(F64, 64, max(1, norm)))


def by_numpy(image, kept, rank):
    """As the authors' ``usvt`` in train_pure.py: image (H, W) in [-1, 1]."""
    u, sigma, v = np.linalg.svd(image * kept)
    s = np.zeros(image.shape)
    s[range(rank), range(rank)] = sigma[:rank]
    return (u @ s @ v) / kept.mean()


@pytest.mark.parametrize("channels", ["concat", "separate"])
def test_menet_is_the_authors_usvt(channels):
    x_a = 2 * torch.rand(2, 3, 10, 14, dtype=F64, generator=torch.Generator().manual_seed(1)) - 1
    noise = Noise.of_batch(1, 2)
    purifier = MENet(keep=0.7, rank=0.6, channels=channels)
    found = purifier.purify(x_a, noise)
    cut = torch.special.ndtri(torch.tensor(0.7)).item()
    drawn = noise.eps_1(0, x_a if channels == "concat" else x_a[:, :1])
    for image, draws, got in zip(x_a, drawn, found):
        if channels == "concat":
            whole, kept = (np.concatenate(list(part.numpy()), 1) for part in (image, draws < cut))
            expected = np.stack(np.split(by_numpy(whole, kept, 6), 3, axis=1))
        else:
            expected = np.stack([by_numpy(c, (draws[0] < cut).numpy(), 6) for c in image.numpy()])
        # singular vectors move by rounding over the gap of their values, here above 1e-2
        tolerance = rounding(F64, 64, 100 * 8)
        torch.testing.assert_close(got, torch.from_numpy(expected), rtol=0, atol=tolerance)


@pytest.mark.parametrize("channels", ["concat", "separate"])
def test_menet_keeps_pixels_with_its_probability_and_ranks_below_its_share(channels):
    x = torch.full((32, 3, 20, 20), 0.75, dtype=F64)
    whole = MENet(keep=0.4, rank=1.0, channels=channels)(x, seed=2)
    kept = (whole > 0.6).double()  # dropped pixels are grey; the others are brightened
    count = 32 * 20 * 20 * (3 if channels == "concat" else 1)
    assert abs(kept.mean() - 0.4) < 5 * math.sqrt(0.4 * 0.6 / count)
    same = torch.equal(kept[:, 0], kept[:, 1])
    assert same is (channels == "separate")
    low = MENet(keep=0.4, rank=0.25, channels=channels).purify(2 * x - 1, Noise.of_batch(1, 32))
    matrices = low.transpose(1, 2).flatten(2) if channels == "concat" else low
    assert torch.linalg.matrix_rank(matrices).max() == 5


# ---- ART's


def test_jpeg_is_arts():
    preprocessor = pytest.importorskip("art.defences.preprocessor")
    for channels in (1, 3):
        generator = torch.Generator().manual_seed(3)
        levels = torch.randint(0, 256, (3, channels, 16, 16), generator=generator)
        theirs, _ = preprocessor.JpegCompression((0, 255), 60, channels_first=True)(levels.numpy())
        for dtype in (torch.float32, torch.float64):
            found = JPEG(quality=60)(levels.to(dtype) / 255)
            expected = torch.from_numpy(theirs).to(dtype) / 255
            torch.testing.assert_close(found, expected, rtol=0, atol=rounding(dtype, 8, 2))


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_bit_depth_is_arts(bits):
    preprocessor = pytest.importorskip("art.defences.preprocessor")
    x = torch.rand(3, 3, 8, 8, dtype=F64, generator=torch.Generator().manual_seed(3))
    theirs, _ = preprocessor.FeatureSqueezing((0, 1), bits)(x.numpy())
    found = BitDepth(bits=bits)(x)
    torch.testing.assert_close(found, torch.from_numpy(theirs), rtol=0, atol=rounding(F64, 8, 2))
    assert len(found.mul(2**bits - 1).round().unique()) <= 2**bits


@pytest.mark.parametrize("make", [JPEG, BitDepth])
def test_an_attacks_query_outside_is_taken_there_too(make):
    x = torch.rand(2, 3, 8, 8) + 0.5
    with pytest.warns(UserWarning, match="outside"):
        assert make()(x).max() <= 1
