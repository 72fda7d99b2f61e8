"""The exact gradient is the gradient, at the memory of one step, and is mixed up with no other."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from exact_gradients import (
    OUTER,
    SETTINGS,
    assert_same_gradient,
    gradient_of,
    label_of,
    naive,
    purifier_of,
)
from purifiers_table import BASELINES, PURIFIERS, WITHOUT_NETWORK
from tolerances import rounding
from torch import Tensor, nn
from toys import BentNet, bent, mid_images, smooth_classifier

from scoreopt_defense import (
    ADP,
    EOT,
    GDMP,
    DefendedModel,
    DiffPure,
    OneShot,
    PurifierPreprocessor,
    ScoreOpt,
)
from scoreopt_defense.denoisers import EDMDenoiser
from scoreopt_defense.diagnostics import (
    gradient_agreement,
    gradient_noise,
    input_gradient,
    loss_along,
    optimization_curves,
)
from scoreopt_defense.noise import Noise


@pytest.mark.parametrize("settings", SETTINGS + OUTER, ids=label_of)
def test_equals_naive_autograd_and_keeps_the_value(settings: dict) -> None:
    purifier, x = purifier_of(settings), mid_images().requires_grad_()
    purified = purifier(x, seed=1)
    assert torch.equal(purified, purifier.with_gradient("bpda")(x, seed=1))
    assert_same_gradient(gradient_of(purified, x), gradient_of(naive(purifier, x, 1), x))


@pytest.mark.parametrize(
    "name", ["ScoreOpt-O, LM", *(name for name in BASELINES if name not in WITHOUT_NETWORK)]
)
def test_a_baselines_equals_naive_autograd_too(name: str) -> None:
    purifier, x = PURIFIERS[name](bent(), gradient="exact"), mid_images().requires_grad_()
    purified = purifier(x, seed=1)
    assert torch.equal(purified, purifier.with_gradient("bpda")(x, seed=1))
    assert_same_gradient(gradient_of(purified, x), gradient_of(naive(purifier, x, 1), x))


@pytest.mark.parametrize("variant", ["O", "N"])
def test_equals_naive_autograd_over_20_float32_steps(variant: str) -> None:
    settings = {"variant": variant, "sigma": 0.3, "optimizer": "sgd"}  # Adam magnifies rounding
    purifier = purifier_of(settings, dtype=torch.float32, steps=20)
    x = mid_images(dtype=torch.float32).requires_grad_()
    expected = gradient_of(naive(purifier, x, 1), x)
    found = gradient_of(purifier(x, seed=1), x)
    assert (found - expected).norm() <= rounding(torch.float32, 64 * 20, expected.norm())


@pytest.mark.parametrize(
    "settings", [*OUTER, {"variant": "O", "loss": "sr", "optimizer": "adam", "sigma": (0.2, 0.4)}]
)
def test_gradcheck(settings: dict) -> None:
    purifier, x = purifier_of(settings, steps=2), mid_images(2, size=3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: purifier(x, seed=1), x)


def test_gradcheck_of_one_shot_and_of_the_clamp() -> None:
    purifier = OneShot(bent(), sigma=0.3, gradient="exact")
    x = mid_images(2, size=3)
    assert torch.autograd.gradcheck(lambda x: purifier(x, seed=1), x.requires_grad_())
    bright = torch.full_like(x, 1.05).requires_grad_()
    shifted = EDMDenoiser(lambda x_t, sigma: x_t + 1, sigma_range=(0.01, 1))
    found = gradient_of(OneShot(shifted, sigma=0.01, gradient="exact")(bright, seed=1), bright)
    assert torch.equal(found, torch.zeros_like(found))  # every pixel is clamped to 1


@pytest.mark.parametrize("variant", ["O", "N"])
def test_is_neither_surrogate_at_five_steps(variant: str) -> None:
    purifier = purifier_of({"variant": variant, "sigma": 0.3, "optimizer": "sgd"}, steps=5)
    x = mid_images().requires_grad_()
    exact = gradient_of(purifier(x, seed=1), x)
    for mode in ("one-shot", "bpda"):
        other = gradient_of(purifier.with_gradient(mode)(x, seed=1), x)
        assert (exact - other).norm() > 1e-2 * exact.norm()


def test_modes_of_one_purifier_do_not_mix() -> None:
    purifier, x = purifier_of({"variant": "N", "sigma": 0.3}), mid_images().requires_grad_()
    found = {}
    for mode in ("exact", "one-shot", "bpda", "exact"):
        gradient = gradient_of(purifier.with_gradient(mode)(x, seed=1), x)
        assert torch.equal(found.setdefault(mode, gradient), gradient)
    assert not torch.allclose(found["exact"], found["one-shot"])


@pytest.mark.parametrize("mode", ["exact", "one-shot"])
@pytest.mark.parametrize("change", ["in place", "another tensor", "a load"])
def test_backward_after_a_change_of_the_network_raises(mode: str, change: str) -> None:
    """Zeroed weights gave a gradient of 0 without a word."""
    purifier = purifier_of({"variant": "N", "sigma": 0.3}).with_gradient(mode)
    x = mid_images().requires_grad_()
    purified = purifier(x, seed=1)
    net = purifier.denoiser.net
    zeros = {name: torch.zeros_like(value) for name, value in net.state_dict().items()}
    with torch.no_grad():
        if change == "in place":
            net.conv.weight.zero_()
        elif change == "another tensor":
            net.conv.weight.data = zeros["conv.weight"]
        else:
            net.load_state_dict(zeros)
    with pytest.raises(RuntimeError, match="network was changed between"):
        purified.sum().backward()


def test_votes_eot_and_chunks_are_the_mean_over_repetitions(y: Tensor) -> None:
    purifier, x = purifier_of({"variant": "O", "sigma": (0.2, 0.4)}), mid_images().requires_grad_()
    classifier = smooth_classifier()
    model = DefendedModel(classifier, purifier, votes=2)
    found = input_gradient(model, x, y, samples=2, seed=3)
    chunked = input_gradient(model.replace(max_batch=3), x, y, samples=2, seed=3)
    noise = Noise.of_batch(3, len(x), 4)
    rows = (purifier.purify(2 * x.repeat(4, 1, 1, 1) - 1, noise) + 1) / 2
    logits = classifier(rows).reshape(4, len(x), -1).mean(0)
    (expected,) = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), x)
    assert_same_gradient(found, expected)
    assert_same_gradient(chunked, expected)


def test_arrives_through_every_door(y: Tensor) -> None:
    torchattacks = pytest.importorskip("torchattacks")
    foolbox = pytest.importorskip("foolbox")
    ep = pytest.importorskip("eagerpy")
    classification = pytest.importorskip("art.estimators.classification")
    purifier = ScoreOpt(bent(torch.float32), steps=3, lr=0.02, gradient="exact", deterministic=True,
        optimizer="sgd",
    )  # fmt: skip
    classifier, x = smooth_classifier(torch.float32), mid_images(dtype=torch.float32)
    model = DefendedModel(classifier, purifier)
    exact = input_gradient(model, x, y)
    assert not torch.allclose(exact, input_gradient(model.with_gradient("one-shot"), x, y))
    # three steps of 64 roundings, whose condition is 10 at most without Adam
    close = {"rtol": 0, "atol": rounding(torch.float32, 64 * 3, 10 * exact.abs().max())}

    estimator = classification.PyTorchClassifier(
        classifier, nn.CrossEntropyLoss(reduction="sum"), (3, 8, 8), 4, clip_values=(0, 1),
        preprocessing_defences=[PurifierPreprocessor(purifier)], device_type="cpu",
    )  # fmt: skip
    through_art = torch.from_numpy(
        estimator.loss_gradient(x.numpy(), np.eye(4, dtype=np.float32)[y])
    )
    torch.testing.assert_close(through_art, exact, **close)

    attack = foolbox.attacks.LinfPGD()
    fmodel = foolbox.PyTorchModel(model.eval(), bounds=(0, 1), device=torch.device("cpu"))
    loss = attack.get_loss_fn(fmodel, ep.astensor(y))
    through_foolbox = attack.value_and_grad(loss, ep.astensor(x))[1].raw
    torch.testing.assert_close(through_foolbox, exact, **close)

    for attack, target in (
        (torchattacks.PGD, model),
        (partial(torchattacks.EOTPGD, eot_iter=2), model),
        (torchattacks.PGD, EOT(model, 2)),
    ):
        gradient = input_gradient(model, x, y, samples=getattr(target, "samples", 1))
        settled = gradient.abs() > 1e-3 * gradient.abs().max()
        stepped = attack(target, eps=0.1, alpha=0.05, steps=1, random_start=False)(x, y)
        torch.testing.assert_close(stepped[settled], (x + 0.05 * gradient.sign())[settled])
    apgd = torchattacks.APGD(model, eps=0.4, steps=10, eot_iter=2)(x, y)  # keeps what breaks
    before = F.cross_entropy(model(x), y)
    assert F.cross_entropy(model(apgd), y) > before


@contextmanager
def counted_bytes() -> Iterator[list[int]]:
    """The most bytes that autograd held for its backward passes at any one time."""
    alive: dict[int, int] = {}  # storage address: bytes
    peak = [0]

    class Held:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor
            self.users = alive
            address = tensor.untyped_storage().data_ptr()
            alive[address] = tensor.untyped_storage().nbytes()
            peak[0] = max(peak[0], sum(alive.values()))
            weakref.finalize(self, alive.pop, address, None)

    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
        yield peak
    gc.collect()


class Wide(nn.Module):
    """A network whose activations outweigh its images, as a real one's do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(1, 48, 3, padding=1), nn.SiLU(), nn.Conv2d(48, 48, 3, padding=1), nn.SiLU(),
            nn.Conv2d(48, 1, 3, padding=1),
        )  # fmt: skip

    def forward(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        return self.layers(x_t)


@pytest.mark.parametrize("mode", ["exact", "smoothed"])
def test_memory_is_that_of_one_step(mode: str) -> None:
    denoiser = EDMDenoiser(Wide().eval().requires_grad_(False), sigma_range=(0.01, 2))

    def peak(steps: int, exact: bool) -> int:
        purifier = ScoreOpt(denoiser, variant="O", steps=steps, lr=0.01, gradient=mode)
        x = mid_images(2, channels=1, dtype=torch.float32).requires_grad_()
        with counted_bytes() as most:
            purified = purifier(x, seed=0) if exact else naive(purifier, x, 0)
            purified.sum().backward()
        return most[0]

    assert peak(20, exact=True) <= 1.5 * peak(1, exact=True)
    assert peak(20, exact=False) > 5 * peak(1, exact=False)  # so the count does see growth


@pytest.mark.parametrize("kind", [DiffPure, partial(GDMP, rounds=1), ADP])
def test_a_baselines_forward_pass_keeps_its_states_and_its_backward_one_step(kind) -> None:
    denoiser = EDMDenoiser(Wide().eval().requires_grad_(False), sigma_range=(0.01, 2))
    x = mid_images(2, size=16, channels=1, dtype=torch.float32).requires_grad_()
    image = x.numel() * x.element_size()

    def peaks(steps: int) -> tuple[int, int]:
        purifier = kind(denoiser, steps=steps, sigma=0.3, gradient="exact")
        with counted_bytes() as most:
            purified = purifier(x, seed=0)
            forward = most[0]
            purified.sum().backward()
        return forward, most[0]

    states = 23 * image + 20 * 64  # of 20 steps, the first noise and two clamps; and 8-byte marks
    (_, one), (forward, whole) = peaks(1), peaks(20)
    assert forward <= states
    assert whole - one <= states
    assert one > 20 * image  # what a step's backward pass does keep


def test_forward_that_needs_no_gradient_records_nothing() -> None:
    purifier = purifier_of({"variant": "N", "sigma": 0.3})
    assert purifier(mid_images(), seed=1).grad_fn is None
    with torch.no_grad():
        assert purifier(mid_images().requires_grad_(), seed=1).grad_fn is None


class _OnceOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad


def test_denoiser_without_second_derivative_is_named() -> None:
    denoiser = EDMDenoiser(lambda x_t, sigma: 0.5 * _OnceOnly.apply(x_t**2), sigma_range=(0.01, 1))
    purifier = ScoreOpt(denoiser, steps=1, gradient="exact", variant="O")
    x = mid_images().requires_grad_()
    with pytest.raises(RuntimeError, match=r"second derivative.*'one-shot' and 'bpda'"):
        purifier(x).sum().backward()
    purifier.with_gradient("one-shot")(x).sum().backward()
    assert x.grad is not None


def test_compiled_denoiser_is_told_how_to_have_a_second_derivative() -> None:
    network = torch.compile(BentNet().eval(), backend="aot_eager")
    denoiser = EDMDenoiser(network, sigma_range=(0.01, 1))
    purifier, x = ScoreOpt(denoiser, steps=1), mid_images(dtype=torch.float32).requires_grad_()
    purifier.with_gradient("one-shot")(x).sum().backward()
    with pytest.raises(RuntimeError, match=r"second derivative.*compile=True"):
        purifier.with_gradient("exact")(x).sum().backward()


class _SeesGradMode(nn.Module):
    """A network that says at each call whether a graph of it would be kept."""

    def __init__(self) -> None:
        super().__init__()
        self.recorded: list[bool] = []

    def forward(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        self.recorded.append(torch.is_grad_enabled())
        return torch.tanh(x_t)


def test_sr_keeps_no_graph_of_the_attacked_image_in_the_forward_pass() -> None:
    """Only the pass whose gradient the step takes is recorded, and let go with the step."""
    net = _SeesGradMode()
    purifier = ScoreOpt(
        EDMDenoiser(net, sigma_range=(0.01, 1)), loss="sr", steps=2, gradient="exact"
    )
    purified = purifier(mid_images().requires_grad_())
    assert net.recorded == [False, True] * 2 + [False]
    net.recorded.clear()
    purified.sum().backward()
    assert net.recorded == [True] * 5  # the closing denoising, then each step again


def test_attention_has_a_second_derivative() -> None:
    class Attention(nn.Module):
        def forward(self, x_t: Tensor, sigma: Tensor) -> Tensor:
            tokens = x_t.flatten(2).transpose(1, 2)[:, None]
            mixed = F.scaled_dot_product_attention(tokens, tokens, tokens)
            return mixed[:, 0].transpose(1, 2).reshape(x_t.shape)

    purifier = ScoreOpt(EDMDenoiser(Attention(), sigma_range=(0.01, 1)), steps=2, gradient="exact")
    x = mid_images(2, size=3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: purifier(x, seed=1), x)


def test_zero_gradient_gives_finite_exact_gradient() -> None:
    flat = EDMDenoiser(lambda x_t, sigma: x_t, sigma_range=(0.01, 1))  # eps_1 = 0 would be exact
    purifier = ScoreOpt(flat, variant="O", loss="mse", steps=2, lr=0.01, gradient="exact")
    x = mid_images().requires_grad_()
    assert gradient_of(purifier(x, seed=1), x).isfinite().all()


class TestDiagnostics:
    @pytest.fixture
    def model(self) -> DefendedModel:
        return DefendedModel(smooth_classifier(), purifier_of({"variant": "N", "sigma": 0.3}))

    def test_agreement(self, model: DefendedModel, x: Tensor, y: Tensor) -> None:
        found = gradient_agreement(model, x, y, modes=("exact", "one-shot"), seed=2)
        torch.testing.assert_close(found.cosine["exact"], torch.ones_like(found.cosine["exact"]))
        assert (found.sign["exact"] == 1).all()
        exact = input_gradient(model, x, y, seed=2)[0].flatten()
        other = input_gradient(model.with_gradient("one-shot"), x, y, seed=2)[0].flatten()
        torch.testing.assert_close(
            found.cosine["one-shot"][0], exact @ other / exact.norm() / other.norm()
        )
        assert found.plot().get_ylabel()

    def test_gradient_noise_falls_with_samples(
        self, model: DefendedModel, x: Tensor, y: Tensor
    ) -> None:
        found = gradient_noise(model, x, y, samples=(1, 4, 16))
        single = [input_gradient(model, x, y, seed=1000 + r).flatten(1) for r in range(400)]
        draws = torch.stack(single)
        means = draws.reshape(100, 4, *draws.shape[1:]).mean(1)  # of 4 gradients each
        signal = means.mean(0).square().sum(1)
        expected = signal / means.var(0).sum(1)
        # found from 32 draws, whose signal's own relative error is about 2 / sqrt(32 SNR) = 0.2
        assert ((found.signal_to_noise[1] / expected - 1).abs() < 0.8).all()
        assert found.sign[2].mean() > found.sign[0].mean()
        assert found.plot().get_xlabel()

    @pytest.mark.parametrize("variant", ["O", "N"])
    def test_curves_end_where_the_purifier_does(self, variant: str, x: Tensor, y: Tensor) -> None:
        purifier = purifier_of({"variant": variant, "sigma": 0.3}, steps=3)
        found = optimization_curves(purifier, smooth_classifier(), x, y, seed=4)
        assert found.loss.shape == found.distance.shape == found.lead.shape == (4, len(x))
        moved = 2 * (purifier(x, seed=4) - x)
        torch.testing.assert_close(found.distance[-1], moved.flatten(1).norm(dim=1))
        right = smooth_classifier()(purifier(x, seed=4)).argmax(1) == y
        assert torch.equal(found.lead[-1] > 0, right)
        if variant == "O":
            assert (found.distance[0] == 0).all()
        assert found.plot().get_xlabel()

    def test_loss_grows_faster_along_the_gradient(
        self, model: DefendedModel, x: Tensor, y: Tensor
    ) -> None:
        found = loss_along(model, x, y, eps=0.1, points=3, samples=8)
        torch.testing.assert_close(found.attack[0], found.random[0])
        assert (found.attack[-1] > found.random[-1]).all()
        assert found.plot().get_xlabel()

    @pytest.mark.parametrize("measure", [input_gradient, partial(loss_along, eps=0.1, points=2)])
    def test_labels_of_any_whole_type_are_taken_and_no_others(
        self, measure: Callable, model: DefendedModel, x: Tensor, y: Tensor
    ) -> None:
        assert str(measure(model, x, y.int(), seed=1)) == str(measure(model, x, y, seed=1))
        for wrong in (y.float(), y[:1], y - 10):
            with pytest.raises(ValueError, match="labels must be"):
                measure(model, x, wrong)
