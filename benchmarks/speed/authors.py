"""The authors' own loops, from a clone of zzzhangboya/ScoreOpt: run, never copied."""

from __future__ import annotations

import copy
import importlib.util
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest import mock

import torch
from torch import Tensor

from scoreopt_defense import ScoreOpt
from scoreopt_defense.noise import Noise
from scoreopt_defense.optimizers import Adam

__all__ = ["largest_difference", "load", "loop", "same_epsilon"]


def load(clone: Path) -> ModuleType:
    """Their ``defense.py``, and of its neighbours ``utils.transforms`` alone.

    The package ``utils`` imports RobustBench, which loads classifiers that nobody asks for here.
    """
    path = clone / "defense.py"
    if not path.is_file():
        raise SystemExit(f"--authors must be a clone of zzzhangboya/ScoreOpt, got {clone}")
    utils = ModuleType("utils")
    utils.__path__ = [str(clone / "utils")]
    spec = importlib.util.spec_from_file_location("authors_defense", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["utils"] = utils
    try:
        spec.loader.exec_module(module)
    finally:  # the names are free again
        for name in ("utils", "utils.transforms"):
            sys.modules.pop(name, None)
    return module


def loop(module: ModuleType, purifier: ScoreOpt, x_a: Tensor) -> Callable[[], Tensor]:
    """Their optimisation with the purifier's network and settings; images in [-1, 1].

    The network is the bare one, in float32 as theirs: a noise level of theirs is a float64 number,
    which leaves images that it multiplies in float32.
    """
    net = purifier.denoiser.net

    def denoised(x_t: Tensor, sigma: Tensor, labels: None) -> Tensor:
        return net(x_t, sigma.to(x_t.dtype).expand(len(x_t)))

    sampler = {"O": module.sampler_opt_x0, "N": module.sampler_opt_xt}[purifier.variant]
    args = SimpleNamespace(lr=purifier.lr, purify_iter=purifier.steps)
    middle = sum(purifier.sigma) / 2  # theirs draws from 0.1 below to 0.1 above
    return lambda: sampler(x_a, denoised, middle, None, args)


def same_epsilon(purifier: ScoreOpt, x: Tensor) -> ScoreOpt:
    """The purifier whose Adam takes their steps.

    Their loss is the mean over the batch's pixels and ours an image's sum, so that our gradients
    are ``x.numel()`` times as long: with an epsilon of as much more the step is the same.
    """
    return purifier.replace(optimizer=Adam(epsilon=Adam().epsilon * x.numel()))


def largest_difference(
    module: ModuleType, purifier: ScoreOpt, x_a: Tensor, dtype: torch.dtype = torch.float32
) -> float:
    """Of our result and theirs under our noise, both in [-1, 1] and not clamped.

    In float32 Adam makes much of rounding: a pixel's first step is the sign of its gradient, be it
    near to zero. In float64 there is little of it, and what is left would be another algorithm's.
    """
    purifier = type(purifier)(copy.deepcopy(purifier.denoiser).to(dtype), purifier.settings)
    x_a = x_a.to(dtype)
    noise = Noise.of_batch(0, len(x_a))
    with torch.no_grad():
        ours = same_epsilon(purifier, x_a).purify(x_a, noise)
    with _drawn(purifier, noise, x_a):
        theirs = loop(module, purifier, x_a)()
    return (ours - theirs).abs().max().item()


@contextmanager
def _drawn(purifier: ScoreOpt, noise: Noise, x_a: Tensor) -> Iterator[None]:
    """Who asks for random numbers inside is given the purifier's."""

    def randn_like(_: Tensor) -> Tensor:
        return next(eps)

    def uniform(low: float, high: float) -> float:
        return next(levels)

    steps = range(purifier.steps)
    eps = iter([noise.eps_1(i, x_a) for i in steps])
    levels = iter([noise.level(purifier.sigma, i, x_a)[0].item() for i in steps])
    with (
        mock.patch.object(torch, "randn_like", randn_like),
        mock.patch.object(random, "uniform", uniform),
    ):
        yield
