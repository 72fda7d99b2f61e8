"""Every purifier, made of any denoiser, for the tests of what holds of all of them."""

from __future__ import annotations

from scoreopt_defense import DiffPure, OneShot, ScoreOpt

SIGMA = (0.2, 0.4)

PURIFIERS = {
    "ScoreOpt-O": lambda prior, **kw: ScoreOpt(
        prior, variant="O", steps=3, lr=0.02, sigma=SIGMA, **kw
    ),
    "ScoreOpt-O, SR": lambda prior, **kw: ScoreOpt(
        prior, variant="O", loss="sr", steps=2, lr=0.02, sigma=SIGMA, **kw
    ),
    "ScoreOpt-N": lambda prior, **kw: ScoreOpt(prior, steps=3, lr=0.02, sigma=SIGMA, **kw),
    "ScoreOpt-N, SR, twice": lambda prior, **kw: ScoreOpt(
        prior, loss="sr", steps=2, lr=0.02, sigma=SIGMA, outer_steps=2, **kw
    ),
    "one-shot": lambda prior, **kw: OneShot(prior, sigma=SIGMA, **kw),
    "DiffPure": lambda prior, **kw: DiffPure(prior, steps=4, sigma=SIGMA, **kw),
    "DiffPure, DDIM": lambda prior, **kw: DiffPure(
        prior, steps=4, sigma=SIGMA, sampler="ddim", **kw
    ),
}
BASELINES = {name: make for name, make in PURIFIERS.items() if "ScoreOpt" not in name}
