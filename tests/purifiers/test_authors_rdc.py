"""LM's preset and the diffusion classifier are their authors' code.

Set RDC to a clone of huanranchen/DiffusionClassifier.
"""

from __future__ import annotations

from types import ModuleType, SimpleNamespace

import pytest
import torch
from tolerances import adam_rounding, rounding
from torch import nn
from toys import BentNet, bent, mid_images

from scoreopt_defense import DiffusionClassifier, ScoreOpt, ThirdParty
from scoreopt_defense.denoisers import EDMDenoiser
from scoreopt_defense.noise import Noise
from scoreopt_defense.optimizers import Adam

PACKAGE = "defenses.PurificationDefenses.DiffPure"
SEED, CLASSES = 5, 3


@pytest.fixture
def authors(load):
    """A class of theirs, without its constructor or what else their package loads."""
    stubs = {
        "utils": ModuleType("utils"),
        "utils.seed": SimpleNamespace(set_seed=lambda seed: None),
        "optimizer": SimpleNamespace(DifferentiableAdam=None),
    }

    def made(folder: str, file: str, kind: str, **attributes: object) -> nn.Module:
        parts = f"{PACKAGE}.{folder}".split(".")
        packages = [".".join(parts[: n + 1]) for n in range(len(parts))]
        kind = getattr(load("RDC", f"{packages[-1]}.{file}", *packages, **stubs), kind)
        found = kind.__new__(kind)
        nn.Module.__init__(found)
        for name, value in {"transform": lambda x: (x - 0.5) * 2, **attributes}.items():
            setattr(found, name, value)
        return found

    return made


def test_lm_is_the_authors_own_loop_under_the_same_draws(authors, monkeypatch):
    """Their loss is a mean over the batch's pixels, ours a sum: Adam's epsilon knows the factor."""
    theirs = authors("LikelihoodMaximization", "EDMLM", "EDMEulerIntegralLM")
    x = mid_images()
    epsilon = 1e-8 * x.numel()
    ours = ScoreOpt.from_preset("rdc/lm", bent(), optimizer=Adam(epsilon=epsilon))(x, seed=SEED)

    noise, step = Noise.of_batch(SEED, len(x), apart=True), iter(range(5))
    seen: list[int] = []

    def level(shape, begin, end):
        seen.append(next(step))
        return noise.level((begin, end), seen[-1], x).flatten()

    theirs.uniform_noise = level
    theirs.dc = SimpleNamespace(unet=BentNet().double())
    monkeypatch.setattr(torch, "randn_like", lambda like: noise.eps_1(seen[-1], like))
    made = ThirdParty(theirs.likelihood_maximization_T1, differentiable=False)(x)
    assert len(seen) == 5
    tolerance = adam_rounding(torch.float64, lr=0.1, steps=5, pixels=x.numel())
    torch.testing.assert_close(ours, made, rtol=0, atol=tolerance)


class Told(BentNet):
    """A denoiser that knows the class."""

    label_dim = CLASSES

    def forward(self, x_t, sigma, class_labels):
        labels = class_labels.argmax(1) if class_labels.ndim == 2 else class_labels
        return super().forward(x_t, sigma) + 0.1 * labels.reshape(-1, 1, 1, 1)


def test_a_diffusion_classifier_weighs_errors_as_theirs_at_the_same_levels_and_draws(
    authors, monkeypatch
):
    """Theirs are means over pixels, of one sign of the noise."""
    monkeypatch.setattr(torch.cuda, "default_generators", [torch.default_generator])
    theirs = authors("DiffusionClassifier", "EDMDC", "EDMEulerIntegralDC")
    net, x = Told().double().eval(), mid_images(1)
    denoiser = EDMDenoiser(net, sigma_range=(0.01, 5.0), class_labels=torch.zeros(1, CLASSES))
    ours = DiffusionClassifier(denoiser, CLASSES, levels=4)
    levels = torch.tensor(ours.sigmas, dtype=torch.float64)
    theirs.timesteps, theirs.sigma_data = levels, 0.5
    theirs.p_x, theirs.dt = torch.full((4,), 0.25, dtype=torch.float64), torch.ones(4)
    theirs.unet, theirs.device, theirs.precision = net, "cpu", torch.float64

    noise = Noise.of_batch(0, 1)
    eps = torch.cat([noise.eps_1(k, x) for k in range(4)])

    def logit(label: int, sign: int) -> torch.Tensor:
        with monkeypatch.context() as patched:
            patched.setattr(torch, "randn", lambda *_, **__: sign * eps)
            return -x.numel() * theirs.unet_loss_without_grad(x, label)

    want = torch.stack([(logit(y, 1) + logit(y, -1)) / 2 for y in range(CLASSES)])
    # sums over 192 pixels of squares below 100 over sigma^2
    tolerance = rounding(torch.float64, 64 * 192, 100 / min(ours.sigmas) ** 2)
    torch.testing.assert_close(ours(x)[0], want, rtol=0, atol=tolerance)
