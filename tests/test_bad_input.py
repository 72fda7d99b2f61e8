"""A wrong call is a clear error that names the argument."""

from __future__ import annotations

import math
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tolerances import rounding
from torch import nn
from toys import (
    bent,
    draws,
    gaussian,
    labels,
    mid_images,
    smooth_classifier,
    to_symmetric,
    to_unit,
)

from scoreopt_defense import (
    ADP,
    EOT,
    GDMP,
    JPEG,
    BitDepth,
    DefendedModel,
    DiffPure,
    MENet,
    OneShot,
    PurSAMERE,
    ScoreOpt,
)
from scoreopt_defense._checks import check_unit_images
from scoreopt_defense.attacks import attack
from scoreopt_defense.denoisers import EDMDenoiser
from scoreopt_defense.evaluation import evaluate
from scoreopt_defense.objectives import MSE, SR
from scoreopt_defense.optimizers import Adam
from scoreopt_defense.presets import PRESETS
from scoreopt_defense.purifiers import WithoutNetwork

PURIFIER = OneShot(bent(), sigma=0.3)
MODEL = DefendedModel(smooth_classifier(), PURIFIER)
every_door = pytest.mark.parametrize(
    "door", [PURIFIER, MODEL, EOT(MODEL, 2)], ids=lambda m: type(m).__name__
)


# ---- images


@every_door
@given(seed=st.integers(0, 2**32), count=st.integers(1, 3))
def test_pixels_to_255_are_refused(door, seed, count):
    images = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    with pytest.raises(ValueError, match=r"images must be in \[0, 1\], got values from.*255"):
        door(images.mul(255).round())


@given(excess=st.floats(10.01, 1e6), below=st.booleans(), place=st.integers(0, 191))
def test_a_single_pixel_far_outside_is_refused(excess, below, place):
    images = mid_images(1)
    images.view(-1)[place] = -excess if below else excess
    with pytest.raises(ValueError, match=r"images must be in \[0, 1\]"):
        PURIFIER(images)


@given(low=st.floats(-0.0999, 0.5), high=st.floats(0.5, 1.0999))
def test_a_little_outside_is_let_through_in_silence(low, high):
    images = torch.linspace(low, high, 192, dtype=torch.float64).reshape(1, 3, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        purified = OneShot(bent(), sigma=0.3)(images)
    assert purified.min() >= 0
    assert purified.max() <= 1


@pytest.mark.parametrize("scale", ["an attack's query", "mean and deviation", "-1 to 1"])
def test_further_outside_images_are_purified_as_they_are_with_one_warning(scale):
    """torchattacks' EADEN queries at 1.39, its PGDRS at 2.8; a wrong scale looks the same."""
    unit = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    images = {
        "an attack's query": unit + 1.8,
        "mean and deviation": (unit - 0.47) / 0.25,
        "-1 to 1": 2 * unit - 1,
    }[scale]
    purifier = OneShot(gaussian(), sigma=0.3)
    with pytest.warns(UserWarning, match=r"an attack queries there; otherwise .* another scale"):
        purified = purifier(images, seed=1)
    level, noise = draws(1, (0.3, 0.3), images).sigma, draws(1, (0.3, 0.3), images).eps_1
    expected = to_unit(gaussian()(to_symmetric(images) + level * noise, level)).clamp(0, 1)
    torch.testing.assert_close(purified, expected, rtol=0, atol=rounding(torch.float64, 16, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        purifier(images)


@pytest.mark.parametrize("scale", [2.0, 255.0])
def test_the_strict_door_takes_the_unit_range_alone(scale):
    assert check_unit_images(mid_images()) is not None
    with pytest.raises(ValueError, match=r"images must be in \[0, 1\]"):
        check_unit_images(mid_images() * scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_strict_door_cuts_off_what_rounding_adds(dtype):
    inside = torch.tensor([0.0, 0.25, 1.0], dtype=dtype).reshape(1, 3, 1, 1)
    assert check_unit_images(inside) is inside
    outside = torch.tensor([-1e-8, 0.25, 1.0000001], dtype=dtype).reshape(1, 3, 1, 1)
    assert torch.equal(check_unit_images(outside), inside)
    for value in (-1e-5, 1.00001):
        with pytest.raises(ValueError, match=r"images must be in \[0, 1\]"):
            check_unit_images(inside + value)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_whose_channels_are_last_are_named(channels):
    for door in (PURIFIER, lambda x: evaluate(smooth_classifier(), (x, labels(2)), {})):
        with pytest.raises(ValueError, match=r"looks like \(B, H, W, C\).*permute\(0, 3, 1, 2\)"):
            door(torch.rand(2, 8, 9, channels))
    assert check_unit_images(torch.rand(2, 16, 4, 4)) is not None  # a small image of many channels


@every_door
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 100, 767])
def test_pixels_must_be_finite(door, value, place):
    images = mid_images()
    images.view(-1)[place] = value
    with pytest.raises(ValueError, match="images must be finite"):
        door(images)


@pytest.mark.parametrize("others", ["ordinary", "large"])
def test_nan_is_found_among_other_wrong_values(others):
    images = mid_images() * {"ordinary": 1, "large": 255}[others]
    images[2, 1, 3, 3] = math.nan
    with pytest.raises(ValueError, match="images must be finite"):
        PURIFIER(images)


@given(shape=st.lists(st.integers(0, 3), max_size=6).filter(lambda shape: len(shape) != 4))
def test_the_rank_must_be_four(shape):
    with pytest.raises(ValueError, match=r"images must have shape \(B, C, H, W\), got \("):
        PURIFIER(torch.rand(shape))


@every_door
@pytest.mark.parametrize("channels", [0, 1, 2, 4])
def test_channels_must_be_the_denoisers(door, channels):
    with pytest.raises(
        ValueError, match=rf"denoiser's 3 channels, got shape \(2, {channels}, 8, 8\)"
    ):
        door(torch.rand(2, channels, 8, 8))


@every_door
@pytest.mark.parametrize(
    ("dtype", "hint"),
    [
        (torch.uint8, "divide integer pixels by 255"),
        (torch.int64, "divide integer pixels by 255"),
    ],
)
def test_images_must_be_float32_or_float64(door, dtype, hint):
    with pytest.raises(ValueError, match=f"images must be float32 or float64.*{dtype}.*{hint}"):
        door(torch.ones(2, 3, 8, 8).to(dtype))


@pytest.mark.parametrize(
    "images", [None, [[0.5]], mid_images().numpy(), "image"], ids=lambda v: type(v).__name__
)
def test_images_must_be_a_tensor(images):
    with pytest.raises(
        TypeError, match=f"images must be a torch.Tensor, got {type(images).__name__}"
    ):
        PURIFIER(images)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("mode", ["one-shot", "bpda", "none"])
@pytest.mark.parametrize("samples", [1, 3])
def test_an_empty_batch_gives_an_empty_batch(grad, mode, samples):
    empty = torch.empty(0, 3, 8, 8, dtype=torch.float64, requires_grad=grad)
    purifier = ScoreOpt(bent(), steps=2, sigma=0.3, gradient=mode, max_batch=2)
    assert purifier(empty, samples=samples).shape == (0, 3, 8, 8)
    model = DefendedModel(smooth_classifier(), purifier, votes=samples)
    assert model(empty).shape == (0, 4)
    assert EOT(model, 2)(empty).shape == (0, 4)
    assert model.surrogate()(empty).shape == (0, 4)


# ---- settings


def scoreopt(**settings):
    return ScoreOpt(bent(), **{"sigma": 0.3} | settings)


BAD_SETTINGS = [
    ("sigma", 0.0, "sigma must satisfy 0 < low <= high, got 0.0"),
    ("sigma", -0.1, "sigma must satisfy 0 < low <= high, got -0.1"),
    ("sigma", math.nan, "sigma must satisfy 0 < low <= high, got nan"),
    ("sigma", math.inf, "sigma must satisfy 0 < low <= high, got inf"),
    ("sigma", (0.4, 0.2), r"sigma must satisfy 0 < low <= high, got \(0.4, 0.2\)"),
    ("sigma", (0.0, 0.2), r"sigma must satisfy 0 < low <= high, got \(0.0, 0.2\)"),
    ("sigma", 5.0, r"sigma must be within \[0.01, 2\].* got 5.0"),
    ("sigma", 0.001, r"sigma must be within \[0.01, 2\].* got 0.001"),
    ("sigma", (0.2, 5.0), r"sigma must be within \[0.01, 2\].* got \(0.2, 5.0\)"),
    ("sigma", "0.25", r"sigma must be a number or a \(low, high\) pair, got '0.25'"),
    ("sigma", "12", r"sigma must be a number or a \(low, high\) pair, got '12'"),
    ("sigma", ("0.2", "0.4"), r"sigma must be a number or a \(low, high\) pair"),
    ("sigma", None, r"sigma must be a number or a \(low, high\) pair, got None"),
    ("sigma", True, r"sigma must be a number or a \(low, high\) pair, got True"),
    ("sigma", (0.1, 0.2, 0.3), r"sigma must be a number or a \(low, high\) pair"),
    ("variant", "M", r"variant must be one of \['O', 'N'\], got 'M'"),
    ("variant", "o", r"variant must be one of \['O', 'N'\], got 'o'"),
    ("variant", None, r"variant must be one of \['O', 'N'\], got None"),
    ("loss", "l2", r"loss must be one of \['diff', 'mse', 'sr', 'noise'\], got 'l2'"),
    ("loss", "", r"loss must be one of \['diff', 'mse', 'sr', 'noise'\], got ''"),
    ("optimizer", "lbfgs", r"optimizer must be one of \['adam', 'sgd'\], got 'lbfgs'"),
    ("gradient", "true", r"gradient must be one of \[.*'one-shot', .*\], got 'true'"),
    ("gradient", None, r"gradient must be one of \[.*'one-shot', .*\], got None"),
    ("anchor", "floating", r"anchor must be one of \['moving', 'fixed'\], got 'floating'"),
    ("steps", -1, "steps must be a whole number of at least 0, got -1"),
    ("steps", 2.0, "steps must be a whole number of at least 0, got 2.0"),
    ("steps", True, "steps must be a whole number of at least 0, got True"),
    ("outer_steps", 0, "outer_steps must be a whole number of at least 1, got 0"),
    ("lr", 0.0, "lr must be a finite number above 0, got 0.0"),
    ("lr", -0.1, "lr must be a finite number above 0, got -0.1"),
    ("lr", math.nan, "lr must be a finite number above 0, got nan"),
    ("lr", "0.1", "lr must be a finite number above 0, got '0.1'"),
    ("lr", True, "lr must be a finite number above 0, got True"),
    ("loss", 5, r"loss must be one of \['diff',.*got 5; or an object that is a .*Loss"),
    ("loss", SR, r"loss must be one of \['diff',.*got <class"),
    ("optimizer", torch.optim.Adam, r"optimizer must be one of \['adam', 'sgd'\], got <class"),
    ("optimizer", lambda x: x, r"optimizer must be one of.*an object that is a .*Optimizer"),
    ("gradient", lambda x: x, r"gradient must be one of.*an object that is a .*Gradient"),
    ("deterministic", "no", "deterministic must be True, False or 'per-image', got 'no'"),
    ("max_batch", 0, "max_batch must be a whole number of at least 1, got 0"),
    ("max_batch", 2.5, "max_batch must be a whole number of at least 1, got 2.5"),
    ("seed", -1, "seed must be a whole number of at least 0, got -1"),
    ("seed", "1", "seed must be a whole number of at least 0, got '1'"),
]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    BAD_SETTINGS,
    ids=[f"{n}={getattr(v, '__name__', repr(v))}" for n, v, _ in BAD_SETTINGS],
)
def test_a_bad_setting_is_refused_when_the_purifier_is_made(name, value, message):
    with pytest.raises(ValueError, match=message):
        scoreopt(**{name: value})


OF_SIGMA = DiffPure, GDMP, ADP, PurSAMERE
BAD_BASELINES = [
    (DiffPure, "steps", 0, "steps must be a whole number of at least 1, got 0"),
    (DiffPure, "sampler", "heun", r"sampler must be one of \['ddpm', 'ddim'\], got 'heun'"),
    (GDMP, "rounds", 0, "rounds must be a whole number of at least 1, got 0"),
    (GDMP, "scale", -1.0, "scale must be a finite number at least 0, got -1.0"),
    (ADP, "level", 0.0, "level must be a finite number above 0, got 0.0"),
    (ADP, "level", 5.0, r"level must be within \[0.01, 2\].* got 5.0"),
    (ADP, "steps", -1, "steps must be a whole number of at least 0, got -1"),
    (ADP, "share", 0, "share must be a finite number above 0, got 0"),
    (ADP, "shortest", -1.0, "shortest must be a finite number at least 0, got -1.0"),
    (PurSAMERE, "bank", 0, "bank must be a whole number of at least 1, got 0"),
    (PurSAMERE, "rho", -1.0, "rho must be a finite number at least 0, got -1.0"),
    (PurSAMERE, "lr", 0, "lr must be a finite number above 0, got 0"),
    (MENet, "keep", 0.0, "keep must be a finite number above 0, got 0.0"),
    (MENet, "keep", 1.5, "keep must be at most 1, got 1.5"),
    (MENet, "rank", "0.8", "rank must be a finite number above 0, got '0.8'"),
    (MENet, "channels", "rgb", r"channels must be one of \['concat', 'separate'\], got 'rgb'"),
    (JPEG, "quality", 0, "quality must be a whole number from 1 to 100, got 0"),
    (JPEG, "quality", 101, "quality must be a whole number from 1 to 100, got 101"),
    (BitDepth, "bits", 2.5, "bits must be a whole number from 1 to 16, got 2.5"),
    (BitDepth, "bits", 17, "bits must be a whole number from 1 to 16, got 17"),
    *((kind, "gradient", "true", "gradient must be one of") for kind in (DiffPure, MENet, JPEG)),
    *((kind, "sigma", 5.0, r"sigma must be within \[0.01, 2\]") for kind in OF_SIGMA),
    *((kind, "sigma", -1, "sigma must satisfy 0 < low <= high") for kind in OF_SIGMA),
]


@pytest.mark.parametrize(("kind", "name", "value", "message"), BAD_BASELINES)
def test_a_bad_setting_of_a_baseline_is_refused_too(kind, name, value, message):
    parts = () if issubclass(kind, WithoutNetwork) else (bent(),)
    with pytest.raises(ValueError, match=message):
        kind(*parts, **{name: value})
    with pytest.raises(ValueError, match=message):
        kind(*parts).replace(**{name: value})
    with pytest.raises(TypeError, match="there is no setting 'weigth'"):
        kind(*parts, weigth=1.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variant": "O", "outer_steps": 2}, "outer_steps is for variant 'N'.*got 2"),
        ({"variant": "O", "anchor": "fixed"}, "anchor='fixed' is Algorithm 2.*variant 'O'"),
        (
            {"variant": "N", "anchor": "fixed"},
            "anchor='fixed' is Algorithm 2.*loss NoisePrediction",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        scoreopt(**settings)


@given(low=st.floats(0.01, 2.0), high=st.floats(0.01, 2.0))
def test_every_range_of_noise_levels_within_the_denoisers_is_taken(low, high):
    low, high = sorted((low, high))
    assert scoreopt(sigma=(low, high)).sigma == (low, high)
    assert scoreopt(sigma=[low, high]).sigma == (low, high)
    assert scoreopt(sigma=low).sigma == (low, low)


def test_numpys_numbers_are_numbers(x):
    numpys = scoreopt(
        steps=np.int64(2), lr=np.float32(0.1), sigma=np.float32(0.25), seed=np.int64(1)
    )
    assert torch.equal(
        numpys(x), scoreopt(steps=2, lr=float(np.float32(0.1)), sigma=0.25, seed=1)(x)
    )
    assert torch.equal(PURIFIER(x, seed=np.uint64(2**64 - 1)), PURIFIER(x, seed=2**64 - 1))


@pytest.mark.parametrize("denoiser", [nn.Conv2d(3, 3, 1), None, lambda x, sigma: x])
def test_the_denoiser_must_be_one_and_the_error_says_how_to_wrap_a_network(denoiser):
    with pytest.raises(TypeError, match=r"denoiser must be .* got \w+; wrap .* EDMDenoiser"):
        ScoreOpt(denoiser, sigma=0.3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"samples": 0}, "samples must be a whole number of at least 1, got 0"),
        ({"samples": 1.5}, "samples must be a whole number of at least 1, got 1.5"),
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
        ({"seed": 1.0}, "seed must be a whole number of at least 0, got 1.0"),
        ({"max_batch": -1}, "max_batch must be a whole number of at least 1, got -1"),
        ({"max_batch": 0}, "max_batch must be a whole number of at least 1, got 0"),
        ({"max_batch": 1.5}, "max_batch must be a whole number of at least 1, got 1.5"),
    ],
)
def test_a_bad_argument_of_a_call_is_refused(call, message, x):
    with pytest.raises(ValueError, match=message):
        PURIFIER(x, **call)


@pytest.mark.parametrize("term", [MSE, SR])
@pytest.mark.parametrize("weight", [-1.0, math.inf, math.nan, "1"])
def test_a_bad_weight_is_refused_when_the_loss_is_made(term, weight):
    with pytest.raises(ValueError, match="weight must be a finite number at least 0, got"):
        term(weight=weight)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"beta1": 1.0}, "beta1 must be at least 0 and below 1, got 1.0"),
        ({"beta2": -0.1}, "beta2 must be at least 0 and below 1, got -0.1"),
        ({"epsilon": 0.0}, "epsilon must be a finite number above 0, got 0.0"),
    ],
)
def test_a_bad_optimiser_is_refused_when_it_is_made(values, message):
    with pytest.raises(ValueError, match=message):
        Adam(**values)


@pytest.mark.parametrize("make", [scoreopt, scoreopt().replace, lambda **s: OneShot(bent(), **s)])
def test_an_unknown_setting_lists_the_known_ones(make):
    with pytest.raises(TypeError, match=r"there is no setting 'weigth'; there are \[.*'sigma'"):
        make(weigth=1.0)


# ---- the defended model


class Returns(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.eval()

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "got"),
    [
        (lambda x: x, r"\(4, 3, 8, 8\)"),
        (lambda x: x.mean((1, 2, 3)), r"\(4,\).*torch.stack\(\[torch.zeros_like\(z\), z\], 1\)"),
        (lambda x: x.flatten(1)[:, :1], r"\(4, 1\).*torch.stack"),
        (lambda x: x.flatten(1).argmax(1)[:, None].repeat(1, 3), "torch.int64"),
        (lambda x: x.flatten(1)[:2], r"\(2, 192\)"),
        (lambda x: {"logits": x.flatten(1)}, r'dict.*`return self.model\(x\)\["logits"\]`'),
        (lambda x: (x.flatten(1),), r"tuple.*`return self.model\(x\)\[0\]`"),
        (lambda x: SimpleNamespace(logits=x.flatten(1)), r"`return self.model\(x\).logits`"),
        (lambda x: None, "NoneType"),
    ],
    ids=[
        "images",
        "one number",
        "one logit",
        "classes",
        "too few rows",
        "a dict",
        "a tuple",
        "an output",
        "nothing",
    ],
)
def test_a_classifier_that_returns_no_logits_is_named(function, got, x):
    model = DefendedModel(Returns(function), PURIFIER)
    with pytest.raises(
        ValueError, match=rf"classifier must return logits of shape \(4, K\).*got .*{got}"
    ):
        model(x)


@pytest.mark.parametrize(
    "function",
    [lambda x: x, lambda x: {"logits": x.flatten(1)}, lambda x: None],
    ids=["images", "a dict", "nothing"],
)
def test_it_is_named_also_where_the_classifier_is_called_in_chunks(function, x):
    model = DefendedModel(Returns(function), OneShot(bent(), sigma=0.3, max_batch=2))
    with pytest.raises(ValueError, match="classifier must return logits of shape"):
        model(x)


@pytest.mark.parametrize("votes", [0, -2, 1.5, True, "3", None])
def test_votes_is_a_count(votes):
    with pytest.raises(ValueError, match="votes must be a whole number of at least 1, got"):
        DefendedModel(smooth_classifier(), PURIFIER, votes=votes)


def test_a_defended_model_is_made_of_a_module_and_a_purifier():
    with pytest.raises(TypeError, match="classifier must be a torch module, got function"):
        DefendedModel(lambda x: x, PURIFIER)
    with pytest.raises(TypeError, match="purifier must be a Purifier, got EDMDenoiser"):
        DefendedModel(smooth_classifier(), bent())


# ---- names


@pytest.mark.parametrize("name", ["cifar10/pgd", "", None])
def test_an_unknown_preset_lists_the_known_ones(name):
    with pytest.raises(ValueError, match="preset must be one of") as error:
        ScoreOpt.from_preset(name, gaussian())
    assert all(known in str(error.value) for known in PRESETS)


# ---- networks


class Net(nn.Module):
    """Returns what it is told to."""

    def __init__(self, returned):
        super().__init__()
        self.returned = returned
        self.training = False

    def forward(self, x, sigma):
        return self.returned(x)


@pytest.mark.parametrize(
    ("returned", "got"),
    [
        (lambda x: torch.cat([x, x], 1), r"\(2, 6, 8, 8\)"),
        (lambda x: x[:, :1], r"\(2, 1, 8, 8\)"),
        (lambda x: x[:1], r"\(1, 3, 8, 8\)"),
        (lambda x: {"sample": x}, "dict"),
    ],
)
def test_a_network_that_returns_something_else_is_named(returned, got):
    purifier = OneShot(EDMDenoiser(Net(returned)), sigma=0.3)
    with pytest.raises((ValueError, AttributeError), match=got):
        purifier(mid_images(2))


@pytest.mark.parametrize("variant", ["N", "O"])
def test_a_network_that_cuts_its_graph_is_another_defence(variant):
    denoiser = EDMDenoiser(Net(lambda x: x.detach() / 2))
    with pytest.raises(RuntimeError, match=r"cuts its graph .* jacobian=False"):
        ScoreOpt(denoiser, variant=variant, sigma=0.3)(mid_images())
    ScoreOpt(denoiser, variant=variant, sigma=0.3, jacobian=False)(mid_images())


@pytest.mark.skipif(
    not hasattr(torch.compiler, "is_exporting"), reason="torch does not say that it exports"
)
def test_what_cannot_be_exported_says_so():
    with pytest.raises(Exception, match="DefendedModel cannot be exported"):
        torch.export.export(MODEL, (mid_images(),))


# ---- evaluations and attacks


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_list_of_samples_is_not_images_and_labels_and_the_error_makes_them_of_it(kind):
    samples = kind(torch.utils.data.TensorDataset(mid_images(), labels()))
    with pytest.raises(TypeError, match=r"images must be \(x, y\).*got .*; of a list") as error:
        evaluate(smooth_classifier(), samples)
    made = eval(str(error.value).rpartition(": ")[2], {"torch": torch, "samples": samples})
    assert torch.equal(made[0], mid_images())
    assert torch.equal(made[1], labels())


def test_a_module_in_training_mode_is_named():
    model = smooth_classifier().train()
    with pytest.warns(UserWarning, match="defence 'theirs' is in training mode"):
        evaluate({"theirs": model}, (mid_images(), labels()), {})


def test_a_step_size_that_was_meant_in_levels_is_warned_of():
    with pytest.warns(UserWarning, match="step_size is a share of eps"):
        attack("pgd-eot-linf", steps=10, step_size=2 / 255)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attack("pgd-eot-linf", steps=2)
        attack("pgd-eot-linf", steps=10, step_size=0.1)
