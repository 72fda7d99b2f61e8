"""Purifiers: maps from images in [0, 1] to images in [0, 1] that know a denoiser, no classifier."""

from scoreopt_defense.purifiers.base import Purifier
from scoreopt_defense.purifiers.one_shot import OneShot
from scoreopt_defense.purifiers.scoreopt import ScoreOpt

__all__ = ["OneShot", "Purifier", "ScoreOpt"]
