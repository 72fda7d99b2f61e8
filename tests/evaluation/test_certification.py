"""Certificates: never above what is true, equal to other libraries' on the same counts."""

from __future__ import annotations

import importlib.util
import os
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from scipy.stats import binom, norm
from torch import Tensor, nn
from toys import bent, labels, mid_images, smooth_classifier

from scoreopt_defense import GDMP, DefendedModel, DiffPure, OneShot, ScoreOpt, certify
from scoreopt_defense.evaluation.certification import bounds, smoothing
from scoreopt_defense.evaluation.certification.smoothing import LEVELS, Certification, own_level
from scoreopt_defense.evaluation.run.progress import Progress
from scoreopt_defense.noise import Noise, RoundedNormal


class Halves(nn.Module):
    """Class 1 where the first pixel is above 1/2: an image's distance is how far it is from that.

    Args:
        chance: a number that each call draws once for all images, as large at most.
    """

    def __init__(self, chance: float = 0.0) -> None:
        super().__init__()
        self.chance = chance
        self.rows: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.rows.append(len(x))
        lead = x[:, 0, 0, 0] - 0.5 + self.chance * (torch.rand(()) - 0.5)
        return torch.stack([torch.zeros_like(lead), lead], 1)


def at(distances: np.ndarray) -> Tensor:
    """Images of one pixel, on the grid, at these distances above 1/2."""
    x = torch.from_numpy(np.round((0.5 + distances) * LEVELS) / LEVELS)
    return x.reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("until", [None, 0.05, 0.1])
def test_of_a_linear_classifier_no_radius_is_above_the_distance_but_by_alpha(until):
    """10,000 certifications; a sound one would exceed this limit once in 10^9.

    Looked at often, and stopped at the best moment, it holds too: that is what looks pay for.
    """
    alpha, sigma, count = 0.05, 0.4, 10_000
    distance = np.full(count, 0.1)
    settings = Certification(
        sigma=sigma, n0=20, n=800, alpha=alpha, until_pixels=until, max_batch=10**6
    )
    found = settings.measure(Halves(), at(distance), torch.ones(count))
    wrong = int((found["radius_pixels"].numpy() > distance + 1 / LEVELS).sum())
    assert wrong <= binom.isf(1e-9, count, alpha)
    if until is None:
        assert wrong > binom.ppf(1e-9, count, alpha / 2)  # it is not held by being timid
        assert found["draws"].min() >= 100
    else:
        assert until > 0.09 or found["draws"].mean() < settings.n / 2  # it does stop
    assert (found["radius_paper"] == 2 * found["radius_pixels"]).all()


def test_an_image_without_a_majority_is_given_up_early_and_abstained_on():
    class Fickle(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.eye(4, dtype=x.dtype)[(x[:, 0, 0, 0] * LEVELS).round().long() % 4]

    found = Certification(sigma=0.4, n=5000).measure(Fickle(), at(np.zeros(6)), torch.zeros(6))
    assert (found["predicted"] == -1).all()
    assert (found["radius_pixels"] == 0).all()
    assert (found["draws"] < 1000).all()


def test_a_noised_copy_is_a_sum_of_integers_whatever_the_image():
    """Its low bits say nothing of the image: the same noise comes off each, exactly."""
    settings = Certification(sigma=0.25)
    pixels = torch.arange(256).reshape(2, 1, 8, 16)
    x = torch.stack([pixels[:1] / 255, pixels[1:] / 255]).squeeze(1).float()
    torch.manual_seed(1)
    copies = smoothing._Copies(settings, Flat(), x)
    integers = copies._noised(np.arange(2), range(3)).double() * LEVELS
    rounded = integers.round()
    assert (integers - rounded).abs().max() <= 6 * LEVELS * 2**-24  # that of one division
    noise = rounded.reshape(3, 2, -1) - pixels.reshape(2, -1) * 256
    expected = RoundedNormal(0.125 * LEVELS).draw(copies.key, range(3), 128)
    assert torch.equal(noise.long(), expected)
    assert copies.moved.max() < 1e-6


class Flat(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :2]


def test_an_image_off_the_grid_pays_for_the_way_there():
    on = at(np.array([0.1]))
    for way in (0.0, 0.3 / LEVELS):
        torch.manual_seed(0)
        copies = smoothing._Copies(Certification(sigma=0.25), Halves(), on + way)
        radius = copies.radius(np.array([0.9]))
        assert radius == pytest.approx(0.125 * norm.ppf(0.9) - way, abs=1e-12)


PURIFIERS = {
    "one-shot": (OneShot(bent(), sigma=0.3), 0.3),
    "DiffPure": (DiffPure(bent(), sigma=0.3, steps=3), 0.3),
    "DDIM": (DiffPure(bent(), sigma=0.3, steps=3, sampler="ddim"), 0.3),
    "a range": (OneShot(bent(), sigma=(0.2, 0.4)), None),
    "fixed noise": (OneShot(bent(), sigma=0.3, deterministic=True), None),
    "resized": (DiffPure(bent(), sigma=0.3, steps=2, size=16), None),
    "GDMP": (GDMP(bent(), sigma=0.3, steps=2, rounds=1), None),
    "ScoreOpt": (ScoreOpt(bent(), sigma=0.3, steps=1), None),
    "of another's class": (type("Mine", (OneShot,), {})(bent(), sigma=0.3), None),
}


@pytest.mark.parametrize("name", PURIFIERS)
def test_a_purifiers_own_noise_is_used_where_it_alone_stands_before_the_image(name):
    """There it is no difference who adds the noise; elsewhere noise comes from outside."""
    purifier, level = PURIFIERS[name]
    model = DefendedModel(smooth_classifier(), purifier)
    assert own_level(model) == level
    assert own_level(model.replace(votes=2)) is None
    if level is None:
        return
    x = mid_images()
    noised = x + level / 2 * Noise.of_batch(7, len(x)).eps_1(0, x)
    # float64's rounding, through a few layers
    assert torch.allclose(model(noised, seed=7, noised=True), model(x, seed=7), atol=1e-10, rtol=0)


def test_guidance_by_the_image_itself_takes_no_noised_one():
    with pytest.raises(TypeError, match="noised"):
        PURIFIERS["GDMP"][0](mid_images(), noised=True)


X, Y = mid_images(dtype=torch.float32), labels()
ONE_SHOT = DefendedModel(smooth_classifier(torch.float32), OneShot(bent(torch.float32), sigma=0.3))
WRONG = {
    "no sigma": (smooth_classifier(torch.float32), {}, "sigma must be given"),
    "votes": (ONE_SHOT.replace(votes=2), {}, "sigma must be given"),
    "another sigma": (ONE_SHOT, {"sigma": 0.5}, "sigma must be 0.3 or left out"),
    "training": (nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), {"sigma": 0.5}, "training mode"),
    "alpha": (ONE_SHOT, {"alpha": 0.6}, "alpha must be below 0.5"),
    "norm": (ONE_SHOT, {"norm": "l3"}, "norm must be one of"),
    "n": (ONE_SHOT, {"n": 0}, "n must be a whole number from 1 to 1073741824"),
    "until": (ONE_SHOT, {"until_pixels": -1}, "until_pixels must be a finite number above 0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_would_prove_nothing_is_refused(name):
    model, given, said = WRONG[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of training mode
        with pytest.raises(ValueError, match=said):
            certify(model, X, Y, **given)


@pytest.mark.parametrize("chance", [0.0, 0.5])
def test_copies_share_a_call_where_they_share_no_chance(chance):
    """A binomial count is of independent draws, and a module may draw once a call."""
    model = Halves(chance).eval()
    Certification(sigma=0.4, n=100, max_batch=50).measure(model, at(np.zeros(2)), torch.zeros(2))
    assert max(model.rows[3:]) == (2 if chance else 50)


@pytest.mark.parametrize(("sigma", "together"), [(0.3, True), ((0.2, 0.4), False)])
def test_a_level_that_is_drawn_for_a_batch_is_shared_by_no_two_copies(sigma, together):
    model = ONE_SHOT.replace(sigma=sigma)
    assert smoothing._independent(model, X) is together


class Counting(Progress):
    done = 0

    def advance(self, outcome) -> None:
        self.done += 1


def test_a_record_goes_on_and_says_what_the_call_did(tmp_path):
    first, second, third = Counting(), Counting(), Counting()
    given = {"n0": 10, "n": 40, "out": tmp_path}
    found = certify(ONE_SHOT, X, Y, **given, progress=first)
    again = certify(ONE_SHOT, X, Y, **given, progress=second, norm="linf")
    certify(ONE_SHOT, X, Y, **given | {"n": 50}, progress=third)
    assert (first.done, second.done, third.done) == (8, 0, 4)  # clean images are judged too
    assert [c.count for c in again.certificates()] == [c.count for c in found.certificates()]
    assert [c.draws for c in found.certificates()] == [40] * 4
    for l2, linf in zip(found.certificates(), again.certificates()):
        assert linf.radius_pixels == pytest.approx(l2.radius_pixels / (3 * 8 * 8) ** 0.5)
        assert l2.radius_paper == 2 * l2.radius_pixels
        assert l2.bound == pytest.approx(
            scipy.stats.binomtest(l2.count, 40).proportion_ci(1 - 2 * 0.001, "exact").low, abs=1e-6
        )
    assert found.settings().most_pixels == pytest.approx(0.15 * norm.ppf(0.001 ** (1 / 40)))
    lines = found.to_tsv(tmp_path / "table.tsv").read_text().splitlines()
    assert lines[0] == "idx\tlabel\tpredict\tradius\tcorrect\ttime"
    for line, c in zip(lines[1:], found.certificates(), strict=True):
        idx, label, predict, radius, correct, _ = line.split("\t")
        assert (int(idx), int(label), int(correct)) == (c.image, c.label, c.correct)
        assert int(predict) == (-1 if c.predicted is None else c.predicted)
        assert c.radius_pixels - 1e-9 < float(radius) <= c.radius_pixels


def test_accuracy_falls_with_the_radius_and_a_share_by_the_normal_law():
    x = at(np.array([0.06, 0.15, 0.3, 0.3])).float()
    found = certify(Halves().eval(), x, torch.tensor([1, 1, 1, 0]), sigma=0.4, n0=1000, n=4000)
    radii = [c.radius_pixels for c in found.certificates()]
    assert found.accuracy(0.0).value == 0.75
    assert found.accuracy(radii[1]).value == 0.5
    assert found.accuracy(radii[1] + 1e-9).value == 0.25
    right = [c for c in found.certificates() if c.label == 1]
    share = sum(norm.cdf((c.radius_pixels - 0.05) / 0.2) for c in right) / 4
    assert found.share_right(0.05).value == pytest.approx(share, abs=1e-6)
    # truly it is that of the distance, and the bound is below
    assert share < sum(norm.cdf((d - 0.05) / 0.2) for d in (0.06, 0.15, 0.3)) / 4


def counted() -> tuple[Certification, dict[str, np.ndarray]]:
    """Counts of images at many distances, those of abstentions among them."""
    distances = np.linspace(0.0, 0.6, 40)
    settings = Certification(sigma=0.4, n0=20, n=500)
    torch.manual_seed(0)
    found = settings.measure(Halves(), at(distances), torch.ones(40))
    return settings, {name: values.numpy() for name, values in found.items()}


def same(settings: Certification, ours: dict[str, np.ndarray], i: int, theirs) -> None:
    """Class and radius; ours gives away the error of its noise, as far as that moves a radius."""
    predicted, radius = theirs
    assert predicted == ours["predicted"][i]
    error = RoundedNormal(settings.sigma_pixels * LEVELS).error + 1e-12
    slope = settings.sigma_pixels / norm.pdf(radius / settings.sigma_pixels)
    assert 0 <= radius - ours["radius_pixels"][i] <= 2 * error * slope + 1e-12


def test_radii_are_arts_on_the_same_counts():
    pytest.importorskip("statsmodels")
    pytest.importorskip("art")
    from art.estimators.certification.randomized_smoothing.randomized_smoothing import (
        RandomizedSmoothingMixin,
    )

    settings, ours = counted()

    class Theirs(RandomizedSmoothingMixin):
        def _predict_classifier(self, *args, **kwargs):
            raise AssertionError

        def _fit_classifier(self, *args, **kwargs):
            raise AssertionError

        def _prediction_counts(self, x, n=None, batch_size=128):
            i = int(x[0])
            return table(ours, i, n if n == settings.n else None)

    theirs = Theirs(settings.n0, scale=settings.sigma_pixels, alpha=settings.alpha)
    classes, radii = theirs.certify(np.arange(40)[:, None], n=settings.n)
    for i in range(40):
        same(settings, ours, i, (classes[i], radii[i]))
    assert {-1, 1} <= {*classes}


def table(ours: dict[str, np.ndarray], i: int, n: int | None) -> np.ndarray:
    """Counts of two classes, in selection or in estimation, as an image was counted.

    Of one that was given up the draws that were saved are taken to be like those that were made.
    """
    top = int(ours["top"][i])
    if n is None:
        return np.eye(2, dtype=int)[top]
    right = round(ours["count"][i] * n / ours["draws"][i])
    return np.array([right, n - right] if top == 0 else [n - right, right])


LOCUSLAB = Path(os.environ.get("LOCUSLAB_SMOOTHING", "")) / "code/core.py"


@pytest.mark.skipif(
    not LOCUSLAB.is_file(), reason="LOCUSLAB_SMOOTHING names no clone of locuslab/smoothing"
)
def test_radii_are_locuslabs_on_the_same_counts(monkeypatch):
    pytest.importorskip("statsmodels")
    monkeypatch.setattr(scipy.stats, "binom_test", None, raising=False)  # gone from scipy 1.12 on
    spec = importlib.util.spec_from_file_location("locuslab_core", LOCUSLAB)
    core = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(core)
    settings, ours = counted()
    for i in range(40):
        smooth = core.Smooth(Halves(), 2, settings.sigma_pixels)
        asked = iter((None, settings.n))
        smooth._sample_noise = lambda x, num, batch, i=i, asked=asked: table(ours, i, next(asked))
        theirs = smooth.certify(None, settings.n0, settings.n, settings.alpha, 1)
        same(settings, ours, i, theirs)


def test_looks_end_at_n_and_their_shares_sum_to_alpha():
    for n in (1, 99, 100, 250, 10_000, 100_000):
        looks = bounds.looks(n)
        assert looks[-1] == n
        assert looks == sorted(set(looks))
        goal = Certification(sigma=1.0, n=n, until_pixels=1.0)
        assert goal.alpha_of_a_look * len(looks) == pytest.approx(goal.alpha)
        assert replace(goal, until_pixels=None).alpha_of_a_look == goal.alpha
