"""Purifiers: maps from images in [0, 1] to images in [0, 1] that know a denoiser, no classifier."""

from scoreopt_defense.purifiers.adp import ADP, ADPSettings
from scoreopt_defense.purifiers.base import Purifier, PurifierSettings
from scoreopt_defense.purifiers.bit_depth import BitDepth, BitDepthSettings
from scoreopt_defense.purifiers.diffpure import DiffPure, DiffPureSettings
from scoreopt_defense.purifiers.gdmp import GDMP, GDMPSettings
from scoreopt_defense.purifiers.jpeg import JPEG, JPEGSettings
from scoreopt_defense.purifiers.menet import MENet, MENetSettings
from scoreopt_defense.purifiers.one_shot import OneShot, OneShotSettings
from scoreopt_defense.purifiers.scoreopt import ScoreOpt, ScoreOptSettings
from scoreopt_defense.purifiers.third_party import ThirdParty, ThirdPartySettings
from scoreopt_defense.purifiers.without_network import WithoutNetwork, WithoutNetworkSettings

__all__ = [
    "ADP",
    "ADPSettings",
    "BitDepth",
    "BitDepthSettings",
    "DiffPure",
    "DiffPureSettings",
    "GDMP",
    "GDMPSettings",
    "JPEG",
    "JPEGSettings",
    "MENet",
    "MENetSettings",
    "OneShot",
    "OneShotSettings",
    "Purifier",
    "PurifierSettings",
    "ScoreOpt",
    "ScoreOptSettings",
    "ThirdParty",
    "ThirdPartySettings",
    "WithoutNetwork",
    "WithoutNetworkSettings",
]
