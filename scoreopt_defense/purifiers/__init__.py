"""Purifiers: maps from images in [0, 1] to images in [0, 1] that know a denoiser, no classifier."""

from collections.abc import Mapping
from types import MappingProxyType

from scoreopt_defense.purifiers.adp import ADP, ADPSettings
from scoreopt_defense.purifiers.base import Purifier
from scoreopt_defense.purifiers.bit_depth import BitDepth, BitDepthSettings
from scoreopt_defense.purifiers.diffpure import DiffPure, DiffPureSettings
from scoreopt_defense.purifiers.gdmp import GDMP, GDMPSettings
from scoreopt_defense.purifiers.jpeg import JPEG, JPEGSettings
from scoreopt_defense.purifiers.langevin import Langevin, LangevinSettings
from scoreopt_defense.purifiers.menet import MENet, MENetSettings
from scoreopt_defense.purifiers.one_shot import OneShot, OneShotSettings
from scoreopt_defense.purifiers.pursamere import PurSAMERE, PurSAMERESettings
from scoreopt_defense.purifiers.scoreopt import ScoreOpt, ScoreOptSettings
from scoreopt_defense.purifiers.settings import PurifierSettings
from scoreopt_defense.purifiers.third_party import ThirdParty, ThirdPartySettings
from scoreopt_defense.purifiers.without_network import WithoutNetwork, WithoutNetworkSettings

#: The classes that their settings and a denoiser, if any, make: what a configuration can name.
KINDS: Mapping[str, type[Purifier]] = MappingProxyType(
    {
        kind.__name__: kind
        for kind in (
            *(ScoreOpt, OneShot, DiffPure, GDMP, ADP, Langevin, PurSAMERE),
            *(MENet, JPEG, BitDepth),
        )
    }
)

__all__ = [
    "KINDS",
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
    "Langevin",
    "LangevinSettings",
    "MENet",
    "MENetSettings",
    "OneShot",
    "OneShotSettings",
    "PurSAMERE",
    "PurSAMERESettings",
    "Purifier",
    "PurifierSettings",
    "ScoreOpt",
    "ScoreOptSettings",
    "ThirdParty",
    "ThirdPartySettings",
    "WithoutNetwork",
    "WithoutNetworkSettings",
]
