"""The purifier as a preprocessor of ART, alone and in a chain."""

from __future__ import annotations

import multiprocessing
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tolerances import adam_rounding, rounding
from torch import nn
from toys import bent, labels, mid_images, smooth_classifier

from scoreopt_defense import DefendedModel, OneShot, PurifierPreprocessor, ScoreOpt
from scoreopt_defense.denoisers import EDMDenoiser

pytest.importorskip("art")

from art.attacks.evasion import (
    AutoAttack,
    AutoProjectedGradientDescent,
    ProjectedGradientDescent,
    SquareAttack,
)
from art.defences.preprocessor.preprocessor import Preprocessor, PreprocessorPyTorch
from art.estimators.classification import PyTorchClassifier

X, Y = mid_images(dtype=torch.float32), labels()
ONE_HOT = np.eye(4, dtype=np.float32)[Y]

# Images by two routes, in batches of other sizes: two steps of Adam at 0.01. The toy classifier and
# its gradient pass such a difference on with a gain below 1, relative to the largest gradient.
IMAGES = adam_rounding(torch.float32, lr=0.01, steps=2, pixels=X.numel())


class Gamma(PreprocessorPyTorch):
    """A PyTorch preprocessor with a Jacobian of its own: x squared."""

    def __init__(self):
        super().__init__(device_type="cpu", is_fitted=True, apply_fit=True, apply_predict=True)

    def forward(self, x, y=None):
        return x**2, y


class Posterize(Preprocessor):
    """A NumPy preprocessor: 4 bits a pixel, differentiated as the identity."""

    def __call__(self, x, y=None):
        return np.round(x * 15) / np.float32(15), y


def purifier(**settings):
    settings = {
        "variant": "O",
        "steps": 2,
        "lr": 0.01,
        "sigma": 0.3,
        "deterministic": True,
    } | settings
    return ScoreOpt(bent(torch.float32), **settings)


def estimator(*defences, reduction="sum", classifier=None):
    classifier = classifier or smooth_classifier(torch.float32)
    return PyTorchClassifier(
        classifier, nn.CrossEntropyLoss(reduction=reduction), (3, 8, 8), 4,
        optimizer=torch.optim.SGD(classifier.parameters(), lr=0.1), clip_values=(0, 1),
        preprocessing_defences=list(defences), device_type="cpu",
    )  # fmt: skip


# How the estimator is built, and the images that the classifier then sees. ART's own classifier
# refuses a NumPy and a PyTorch preprocessor together: the NumPy one goes before a defended model.
CHAINS = {
    "alone": (lambda p: estimator(PurifierPreprocessor(p)), lambda x, f: f(x)),
    "after a PyTorch one": (
        lambda p: estimator(Gamma(), PurifierPreprocessor(p)),
        lambda x, f: f(x**2),
    ),
    "before a PyTorch one": (
        lambda p: estimator(PurifierPreprocessor(p), Gamma()),
        lambda x, f: f(x) ** 2,
    ),
    "after a NumPy one": (
        lambda p: estimator(
            Posterize(),
            classifier=DefendedModel(smooth_classifier(torch.float32), p),
        ),
        lambda x, f: f(squeeze(x)),
    ),
}
every_chain = pytest.mark.parametrize(("chain", "images"), CHAINS.values(), ids=CHAINS.keys())


class Squeeze(torch.autograd.Function):
    """What Posterize does, for autograd."""

    @staticmethod
    def forward(ctx, x):
        return torch.round(x * 15) / 15

    @staticmethod
    def backward(ctx, grad):
        return grad


squeeze = Squeeze.apply


def gradient_by_hand(images, p, scalar):
    leaf = X.clone().requires_grad_()
    return torch.autograd.grad(scalar(smooth_classifier(torch.float32)(images(leaf, p))), leaf)[
        0
    ].numpy()


@every_chain
def test_predict(chain, images):
    got = chain(purifier()).predict(X.numpy(), batch_size=3)
    want = smooth_classifier(torch.float32)(images(X, purifier())).detach().numpy()
    assert isinstance(got, np.ndarray)
    np.testing.assert_allclose(got, want, rtol=0, atol=IMAGES)


@every_chain
@pytest.mark.parametrize("mode", ["one-shot", "bpda"])
def test_loss_gradient(chain, images, mode):
    p = purifier(gradient=mode)
    got = chain(p).loss_gradient(X.numpy(), ONE_HOT)
    want = gradient_by_hand(images, p, lambda z: F.cross_entropy(z, Y, reduction="sum"))
    assert isinstance(got, np.ndarray)
    assert np.abs(want).max() > 1e-3
    np.testing.assert_allclose(got, want, rtol=0, atol=IMAGES * np.abs(want).max())


@every_chain
@pytest.mark.parametrize("mode", ["one-shot", "bpda"])
def test_class_gradient(chain, images, mode):
    p = purifier(gradient=mode)
    got = chain(p).class_gradient(X.numpy())
    assert got.shape == (4, 4, 3, 8, 8)
    for k in range(4):
        want = gradient_by_hand(images, p, lambda z, k=k: z[:, k].sum())
        np.testing.assert_allclose(got[:, k], want, rtol=0, atol=IMAGES * np.abs(want).max())


def test_numpy_preprocessors_chain_with_it_call_by_call():
    squeezing = Posterize()
    defence = PurifierPreprocessor(purifier())
    squeezed, y = squeezing(X.numpy(), ONE_HOT)
    purified, y = defence(squeezed, y)
    want = purifier()(squeeze(X))
    np.testing.assert_allclose(purified, want.numpy(), rtol=0, atol=IMAGES)
    np.testing.assert_array_equal(y, ONE_HOT)

    upstream = torch.randn(X.shape)
    got = squeezing.estimate_gradient(
        X.numpy(), defence.estimate_gradient(squeezed, upstream.numpy())
    )
    leaf = X.clone().requires_grad_()
    want = torch.autograd.grad(purifier()(squeeze(leaf)), leaf, upstream)[0]
    np.testing.assert_allclose(got, want.numpy(), rtol=0, atol=IMAGES * want.abs().max())


def test_class_gradient_of_given_labels():
    model = estimator(PurifierPreprocessor(purifier()))
    every = model.class_gradient(X.numpy())
    one = model.class_gradient(X.numpy(), label=2)
    each = model.class_gradient(X.numpy(), label=Y.numpy())
    close = {"rtol": 0, "atol": IMAGES * np.abs(every).max()}
    np.testing.assert_allclose(one[:, 0], every[:, 2], **close)
    np.testing.assert_allclose(each[:, 0], every[np.arange(4), Y.numpy()], **close)


@pytest.mark.parametrize("mode", ["one-shot", "bpda"])
def test_estimate_gradient_is_the_backward_pass(mode):
    defence = PurifierPreprocessor(purifier(gradient=mode))
    upstream = torch.randn(X.shape)
    got = defence.estimate_gradient(X.numpy(), upstream.numpy())
    leaf = X.clone().requires_grad_()
    purifier(gradient=mode)(leaf).backward(upstream)
    want = leaf.grad.numpy()
    np.testing.assert_allclose(got, want, rtol=0, atol=IMAGES * np.abs(want).max())
    assert isinstance(got, np.ndarray)


def test_estimate_gradient_of_several_classes_at_once():
    defence = PurifierPreprocessor(purifier())
    upstream = np.random.default_rng(0).normal(size=(4, 3, 3, 8, 8)).astype(np.float32)
    got = defence.estimate_gradient(X.numpy(), upstream)
    for k in range(3):
        want = defence.estimate_gradient(X.numpy(), upstream[:, k])
        np.testing.assert_allclose(got[:, k], want, rtol=0, atol=IMAGES * np.abs(want).max())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_call_takes_and_gives_numpy_and_leaves_labels_alone(dtype):
    x = X.numpy().astype(dtype)
    purified, y = PurifierPreprocessor(purifier())(x, Y.numpy())
    assert isinstance(purified, np.ndarray)
    assert purified.dtype == dtype
    np.testing.assert_array_equal(y, Y.numpy())
    want = purifier()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(purified, want, rtol=0, atol=IMAGES)
    assert PurifierPreprocessor(purifier())(x)[1] is None


class Counts(nn.Module):
    img_channels = 3

    def __init__(self):
        super().__init__()
        self.sizes = []

    def forward(self, x_t, sigma):
        self.sizes.append(len(x_t))
        return x_t / (1 + sigma.reshape(-1, 1, 1, 1) ** 2)


@pytest.mark.parametrize(
    ("of_purifier", "of_preprocessor", "largest"), [(None, 3, 3), (2, 3, 2), (5, 3, 5)]
)
def test_a_whole_array_is_purified_in_chunks(of_purifier, of_preprocessor, largest):

    net = Counts()
    one_shot = OneShot(EDMDenoiser(net), sigma=0.3, max_batch=of_purifier)
    PurifierPreprocessor(one_shot, max_batch=of_preprocessor)(mid_images(10).numpy())
    assert max(net.sizes) == largest
    assert sum(net.sizes) == 10


def test_it_purifies_while_predicting_and_not_while_fitting_unless_asked():
    net = Counts()

    def fit(**apply):

        net.sizes.clear()
        defence = PurifierPreprocessor(OneShot(EDMDenoiser(net), sigma=0.3), **apply)
        model = estimator(defence)
        model.fit(X.numpy(), Y.numpy(), batch_size=4, nb_epochs=1)
        while_fitting = sum(net.sizes)
        model.predict(X.numpy())
        return while_fitting, sum(net.sizes) - while_fitting

    assert fit() == (0, 4)
    assert fit(apply_fit=True) == (4, 4)
    assert fit(apply_predict=False) == (0, 0)


EPS = 0.3
ATTACKS = {
    "PGD": lambda model: ProjectedGradientDescent(
        model, eps=EPS, eps_step=EPS / 3, max_iter=3, verbose=False
    ),
    "Square": lambda model: SquareAttack(model, eps=EPS, max_iter=5, verbose=False),
    "AutoAttack": lambda model: AutoAttack(
        model, eps=EPS, eps_step=EPS / 3, batch_size=4,
        attacks=[
            AutoProjectedGradientDescent(
                model, eps=EPS, eps_step=EPS / 3, max_iter=3, nb_random_init=1,
                loss_type="cross_entropy", verbose=False,
            ),
            SquareAttack(model, eps=EPS, max_iter=3, verbose=False),
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
@pytest.mark.parametrize("deterministic", [True, False])
def test_attacks_keep_their_budget_and_lower_the_confidence(attack, deterministic, monkeypatch):
    # AutoAttack imports this package, which the art extra brings, to parallelise; not needed here
    monkeypatch.setitem(sys.modules, "multiprocess", multiprocessing)
    np.random.seed(0)  # noqa: NPY002, ART draws from the global generator
    x = torch.cat([X[:2], X[2:].mul(2).sub(0.5).clamp(0, 1)])  # two of them reach 0 and 1
    x[2:, :, :4] = x[2:, :, :4].round()
    model = estimator(PurifierPreprocessor(purifier(deterministic=deterministic, seed=0)))
    right = model.predict(x.numpy()).argmax(1)
    adversarial = attack(model).generate(x.numpy(), right)

    assert np.abs(adversarial - x.numpy()).max() <= EPS + rounding(torch.float32, 2)
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    judge = estimator(PurifierPreprocessor(purifier()))

    def confidence(images):
        logits = torch.from_numpy(judge.predict(images))
        return logits.softmax(1)[torch.arange(4), torch.from_numpy(right)].mean().item()

    assert confidence(adversarial) < confidence(x.numpy())


def test_bad_arguments_are_named():
    with pytest.raises(TypeError, match="purifier must be a Purifier, got Linear"):
        PurifierPreprocessor(nn.Linear(1, 1))
    with pytest.raises(ValueError, match="max_batch must be a whole number of at least 1, got 0"):
        PurifierPreprocessor(purifier(), max_batch=0)


def test_the_last_layer_that_art_lists_is_the_logits():
    """The default of its FeatureAdversaries attacks."""
    around = estimator(classifier=DefendedModel(smooth_classifier(torch.float32), purifier()))
    assert around.layer_names == ["purifier", "classifier"]
    logits = around.get_activations(X.numpy(), -1, batch_size=4)
    np.testing.assert_allclose(logits, around.predict(X.numpy()), atol=IMAGES)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64, bool])
def test_whole_numbers_are_taken_at_their_value(dtype):
    """As ART's own preprocessors take them; of levels nobody says the scale."""
    x = (X > 0.5).numpy()
    defence = PurifierPreprocessor(purifier())
    purified, _ = defence(x.astype(dtype))
    np.testing.assert_array_equal(purified, defence(x.astype(np.float32))[0])
    predicted = estimator(defence).predict(x.astype(dtype), batch_size=4)
    np.testing.assert_array_equal(predicted, estimator(defence).predict(x.astype(np.float32)))
    if dtype is not bool:
        for level in (2, 9, 255):
            with pytest.raises(ValueError, match=f"from 0 to {level}, of which .* as x / 255"):
                defence((level * x).astype(dtype))


def test_the_device_is_the_purifiers_or_what_is_said():
    for device_type in (None, "cpu", "gpu"):  # of which ART takes the CPU where there is no GPU
        defence = PurifierPreprocessor(purifier(), device_type=device_type)
        on_gpu = device_type == "gpu" and torch.cuda.is_available()
        assert defence.device.type == ("cuda" if on_gpu else "cpu")
    assert PurifierPreprocessor(purifier().to("meta")).device.type == "cpu"  # offloaded
    with pytest.raises(ValueError, match=r"device_type must be one of \['cpu', 'gpu'\], got 'tpu'"):
        PurifierPreprocessor(purifier(), device_type="tpu")
