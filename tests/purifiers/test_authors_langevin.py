"""Langevin steps of an energy are the authors' own loop.

Set EBM to a clone of point0bar1/ebm-defense, whose function is taken out of a script.
"""

from __future__ import annotations

import ast
import os
from pathlib import Path

import torch
from tolerances import rounding
from toys import mid_images

from scoreopt_defense import Langevin, ThirdParty
from scoreopt_defense.denoisers import EnergyDenoiser
from scoreopt_defense.noise import Noise

TAU, STEPS, SEED = 0.01, 5, 5


def test_langevin_is_the_authors_own_loop_under_the_same_draws(load, monkeypatch):
    """Their network gives tau^2 / 2 times the energy, here a random one."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = load("EBM", "nets").EBM().double().eval()
    script = ast.parse(Path(os.environ["EBM"], "bpda_eot_attack.py").read_text())
    parts = [part for part in script.body if getattr(part, "name", "") == "purify"]
    known = {"t": torch, "ebm": net}
    exec(compile(ast.Module(parts, []), "bpda_eot_attack.py", "exec"), known)

    x = mid_images(3, size=32)
    denoiser = EnergyDenoiser(lambda x: 2 / TAU**2 * net(x), sigma=0.1)
    purifier = Langevin(denoiser, step_size=TAU, steps=STEPS)
    ours, alone = purifier(x, seed=SEED), purifier(x[:1], seed=SEED)
    # a step's rounding, of a score that is 2 / tau^2 times a slope below 1 and times tau^2 / 2
    tolerance = STEPS * rounding(torch.float64, 8, 2 / TAU**2)
    torch.testing.assert_close(alone, ours[:1], rtol=0, atol=tolerance)

    noise, step = Noise.of_batch(SEED, len(x)), iter(range(STEPS))
    monkeypatch.setattr(torch, "randn_like", lambda like: noise.eps_1(next(step), like))
    theirs = ThirdParty(
        lambda x: (known["purify"](2 * x - 1, STEPS, TAU).detach() + 1) / 2, differentiable=False
    )(x)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)
    slope = torch.autograd.grad(net(y := (2 * x - 1).requires_grad_()).sum(), y)[0]
    assert STEPS * slope.abs().max() > 1000 * tolerance
