"""What a call leaves as it was: generators, modes, gradients, types."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from module_state import state_of
from purifiers_table import PURIFIERS
from torch import nn
from toys import BentNet, labels, mid_images

from scoreopt_defense import EOT, DefendedModel, OneShot, PurifierPreprocessor, ScoreOpt
from scoreopt_defense.denoisers import EDMDenoiser


class Prior(BentNet):
    """With a layer whose mode shows, and a buffer that training would change."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)


def build(mode="one-shot", replaced_by=None, **settings):
    denoiser = EDMDenoiser(Prior().eval(), sigma_range=(0.01, 2.0))
    classifier = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 4)
    ).eval()
    purifier = ScoreOpt(
        denoiser, loss="sr", steps=2, sigma=(0.2, 0.4), lr=0.02, gradient=mode, **settings
    )
    purifier = purifier if replaced_by is None else replaced_by(denoiser)
    model = DefendedModel(classifier, purifier, votes=2)
    for i, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, float(i)) if i % 2 else None
    return model


def assert_same_state(model, before):
    for name, value in state_of(model).items():
        for now, then in zip(value, before[name], strict=True):
            same = torch.equal(now, then) if isinstance(then, torch.Tensor) else now == then
            assert same, name


def forward(model, x):
    model(x)


def forward_without_grad(model, x):
    with torch.no_grad():
        model(x)


def in_inference_mode(model, x):
    with torch.inference_mode():
        model(x)


def gradient_of_images(model, x):
    x = x.clone().requires_grad_()
    torch.autograd.grad(F.cross_entropy(model(x), labels()), x)


def seeded(model, x):
    model(x, seed=3)


def purify_alone(model, x):
    model.purifier(x, samples=2)


def purify_and_backward(model, x):
    """``backward`` through the purifier alone reaches no network's parameters."""
    x = x.clone().requires_grad_()
    model.purifier(x).sum().backward()


def copies(model, x):
    for twin in (model.surrogate(), model.with_gradient("bpda")):
        gradient_of_images(twin, x)


def through_eot(model, x):
    gradient_of_images(EOT(model, 2), x)


def art(model, x):
    pytest.importorskip("art")
    PurifierPreprocessor(model.purifier)(x.numpy())


def attack(model, x):
    torchattacks = pytest.importorskip("torchattacks")
    torchattacks.PGD(model, steps=1, random_start=False)(x, labels())


CALLS = [forward, forward_without_grad, in_inference_mode, gradient_of_images, seeded,
         purify_alone, purify_and_backward, copies, through_eot, art, attack]  # fmt: skip
every_call = pytest.mark.parametrize("call", CALLS)


@every_call
@pytest.mark.parametrize("chunked", [False, True])
def test_the_model_and_the_images_are_as_before(call, chunked):
    model = build(max_batch=3 if chunked else None)
    x = mid_images(dtype=torch.float32)
    before, images = state_of(model), x.clone()
    call(model, x)
    assert_same_state(model, before)
    assert torch.equal(x, images)
    assert x.grad is None


@every_call
@pytest.mark.parametrize("mode", ["one-shot", "bpda"])
def test_the_global_generators_are_neither_used_nor_advanced(call, mode):
    model, x = build(mode), mid_images(dtype=torch.float32)
    torch.manual_seed(123)
    np.random.seed(123)  # noqa: NPY002
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    call(model, x)
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


@pytest.mark.parametrize("settings", [{}, {"seed": 0}, {"deterministic": True}], ids=str)
def test_the_global_seed_decides_nothing(settings):
    results = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        model = build(**settings | {"seed": 0})
        torch.manual_seed(global_seed)
        results.append(model.purifier(mid_images(dtype=torch.float32)))
    assert torch.equal(*results)


def test_seeding_torch_does_not_repeat_a_purification():
    """An attack library that seeds torch must not freeze the defence's noise."""
    purifier, x = build().purifier, mid_images(dtype=torch.float32)
    torch.manual_seed(0)
    first = purifier(x)
    torch.manual_seed(0)
    assert not torch.equal(first, purifier(x))


@pytest.mark.parametrize("make", PURIFIERS.values(), ids=PURIFIERS.keys())
def test_no_purifier_changes_anything_either(make):
    model = build(replaced_by=lambda prior: make(prior, gradient="bpda", max_batch=3))
    x = mid_images(dtype=torch.float32)
    before, images = state_of(model), x.clone()
    torch.manual_seed(123)
    np.random.seed(123)  # noqa: NPY002
    generators = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    for mode in model.purifier.modes:
        gradient_of_images(model.with_gradient(mode), x)
    model(x)
    assert_same_state(model, before)
    assert torch.equal(x, images)
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert (np.random.get_state()[1] == generators[1]).all()  # noqa: NPY002


@pytest.mark.parametrize("enabled", [True, False])
@every_call
def test_whether_gradients_are_recorded_is_as_before(call, enabled):
    model, x = build(), mid_images(dtype=torch.float32)
    if not enabled and call in (
        gradient_of_images,
        copies,
        through_eot,
        purify_and_backward,
        attack,
    ):
        pytest.skip("asks for gradients")
    with torch.set_grad_enabled(enabled):
        call(model, x)
        assert torch.is_grad_enabled() is enabled
        assert not torch.is_inference_mode_enabled()


def test_a_model_in_training_mode_stays_there_and_is_warned_about():
    classifier = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(192, 4)).train()
    prior = EDMDenoiser(Prior().train())
    with pytest.warns(UserWarning, match=r"denoiser's network is in training mode"):
        purifier = OneShot(prior, sigma=0.3)
    with pytest.warns(UserWarning, match=r"classifier is in training mode.*classifier.eval\(\)"):
        model = DefendedModel(classifier, purifier)
    for wrapper in (model, EOT(model, 2)):
        wrapper.eval()
        wrapper(mid_images(dtype=torch.float32))
        wrapper.train()
    assert classifier.training
    assert prior.net.training


@pytest.mark.parametrize("max_batch", [None, 3])
def test_a_classifier_in_training_mode_sees_each_image_once(max_batch):
    """A checkpointed chunk runs twice, which updated batch normalisation twice."""
    norm = nn.BatchNorm2d(3)
    classifier = nn.Sequential(norm, nn.Flatten(), nn.Linear(192, 4)).train()
    prior = EDMDenoiser(Prior().eval())
    with pytest.warns(UserWarning, match="training mode"):
        model = DefendedModel(classifier, OneShot(prior, sigma=0.3, max_batch=max_batch))
    F.cross_entropy(model(mid_images(dtype=torch.float32)), labels()).backward()
    assert norm.num_batches_tracked == (1 if max_batch is None else 2)
    assert norm.weight.grad is not None


def test_an_attack_librarys_train_does_not_reach_the_networks():
    model = build()
    model.train()
    EOT(model, 2).train()
    assert model.training
    assert not any(m.training for m in model.classifier.modules())
    assert not any(m.training for m in model.purifier.modules())


def test_moving_the_model_moves_the_networks():
    model = build().double()
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert model(mid_images()).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_keep_their_type_and_shape(dtype):
    purifier, x = build().purifier, mid_images(dtype=dtype)
    assert purifier(x).dtype == dtype
    assert purifier(x).shape == x.shape
    assert purifier(x, samples=3).shape == (12, 3, 8, 8)


@pytest.mark.cuda
def test_moves_to_the_gpu_and_back():
    model, x = build(seed=0), mid_images(dtype=torch.float32)
    on_cpu = model(x, seed=3)
    on_gpu = model.cuda()(x.cuda(), seed=3)
    assert on_gpu.is_cuda
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=1e-3, atol=1e-3)
    assert not model.cpu()(x).is_cuda
    state = torch.cuda.get_rng_state()
    model.cuda()(x.cuda())
    assert torch.equal(torch.cuda.get_rng_state(), state)
