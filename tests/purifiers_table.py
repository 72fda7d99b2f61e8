"""Every purifier, made of any denoiser, for the tests of what holds of all of them."""

from __future__ import annotations

from scoreopt_defense import (
    ADP,
    GDMP,
    JPEG,
    BitDepth,
    DiffPure,
    Langevin,
    MENet,
    OneShot,
    PurSAMERE,
    ScoreOpt,
)

SIGMA = (0.2, 0.4)

PURIFIERS = {
    "ScoreOpt-O": lambda prior, **kw: ScoreOpt(
        prior, variant="O", steps=3, lr=0.02, sigma=SIGMA, **kw
    ),
    "ScoreOpt-O, LM": lambda prior, **kw: ScoreOpt(
        prior, variant="O", steps=3, lr=0.02, sigma=SIGMA, sigma_per="image", **kw
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
    "GDMP": lambda prior, **kw: GDMP(prior, steps=2, rounds=2, sigma=SIGMA, **kw),
    "ADP": lambda prior, **kw: ADP(prior, steps=3, level=0.3, sigma=SIGMA, **kw),
    "Langevin": lambda prior, **kw: Langevin(prior, steps=3, level=0.3, step_size=0.1, **kw),
    "PurSAMERE": lambda prior, **kw: PurSAMERE(
        prior, steps=2, bank=2, lr=0.02, sigma=SIGMA, **{"deterministic": False} | kw
    ),
    "MENet": lambda prior, **kw: MENet(keep=0.7, rank=0.6, **kw),
    "MENet, separate": lambda prior, **kw: MENet(keep=0.7, channels="separate", **kw),
    "JPEG": lambda prior, **kw: JPEG(**kw),
    "BitDepth": lambda prior, **kw: BitDepth(bits=3, **kw),
}
WITHOUT_NOISE = ("JPEG", "BitDepth")
WITHOUT_NETWORK = ("MENet", "MENet, separate", *WITHOUT_NOISE)
SUMS_PIXELS = (
    "ADP",
    "PurSAMERE",
    "MENet",
    "MENet, separate",
)  # in an order that may follow the batch's size
BASELINES = {name: make for name, make in PURIFIERS.items() if "ScoreOpt" not in name}
RANDOM = {name: make for name, make in PURIFIERS.items() if name not in WITHOUT_NOISE}
