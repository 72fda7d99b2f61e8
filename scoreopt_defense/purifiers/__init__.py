"""Purifiers: maps from images in [0, 1] to images in [0, 1] that know a denoiser, no classifier."""

from scoreopt_defense.purifiers.base import Purifier, PurifierSettings
from scoreopt_defense.purifiers.diffpure import DiffPure, DiffPureSettings
from scoreopt_defense.purifiers.one_shot import OneShot, OneShotSettings
from scoreopt_defense.purifiers.scoreopt import ScoreOpt, ScoreOptSettings

__all__ = [
    "DiffPure",
    "DiffPureSettings",
    "OneShot",
    "OneShotSettings",
    "Purifier",
    "PurifierSettings",
    "ScoreOpt",
    "ScoreOptSettings",
]
