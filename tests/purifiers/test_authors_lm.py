"""The preset of LM is its authors' loop, which is run from a clone and never copied.

Set RDC to a clone of huanranchen/DiffusionClassifier.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from tolerances import adam_rounding
from toys import BentNet, bent, mid_images

from scoreopt_defense import ScoreOpt, ThirdParty
from scoreopt_defense.noise import Noise
from scoreopt_defense.optimizers import Adam

FOLDER = "defenses/PurificationDefenses/DiffPure/LikelihoodMaximization"
SEED = 5


@pytest.fixture
def authors(monkeypatch):
    """Their class, without what else their package loads, which needs a GPU."""
    if not os.environ.get("RDC"):
        pytest.skip("set RDC to a clone of huanranchen/DiffusionClassifier")
    package = ModuleType("authors_lm")
    package.__path__ = [str(Path(os.environ["RDC"]) / FOLDER)]
    stubs = {
        "authors_lm": package,
        "utils": ModuleType("utils"),
        "utils.seed": SimpleNamespace(set_seed=lambda seed: None),
        "optimizer": SimpleNamespace(DifferentiableAdam=None),
    }
    for name, module in stubs.items():
        monkeypatch.setitem(sys.modules, name, module)
    kind = importlib.import_module("authors_lm.EDMLM").EDMEulerIntegralLM
    for name in [name for name in sys.modules if name.startswith("authors_lm.")]:
        monkeypatch.delitem(sys.modules, name)
    made = kind.__new__(kind)
    torch.nn.Module.__init__(made)
    made.transform = lambda x: (x - 0.5) * 2
    return made


def test_lm_is_the_authors_own_loop_under_the_same_draws(authors, monkeypatch):
    """Their loss is a mean over the batch's pixels, ours a sum: Adam's epsilon knows the factor."""
    x = mid_images()
    epsilon = 1e-8 * x.numel()
    ours = ScoreOpt.from_preset("rdc/lm", bent(), optimizer=Adam(epsilon=epsilon))(x, seed=SEED)

    noise, step = Noise.of_batch(SEED, len(x), apart=True), iter(range(5))
    seen: list[int] = []

    def level(shape, begin, end):
        seen.append(next(step))
        return noise.level((begin, end), seen[-1], x).flatten()

    authors.uniform_noise = level
    authors.dc = SimpleNamespace(unet=BentNet().double())
    monkeypatch.setattr(torch, "randn_like", lambda like: noise.eps_1(seen[-1], like))
    theirs = ThirdParty(authors.likelihood_maximization_T1, differentiable=False)(x)
    assert len(seen) == 5
    tolerance = adam_rounding(torch.float64, lr=0.1, steps=5, pixels=x.numel())
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)
