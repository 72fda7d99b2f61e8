"""Test-time purification as a defence of any PyTorch classifier, and its honest evaluation.

Implements ScoreOpt (Zhang et al., "Enhancing Adversarial Robustness via Score-Based Optimization",
NeurIPS 2023) and what it takes to attack it with existing libraries.
"""

from typing import TYPE_CHECKING, Any

from scoreopt_defense import pretrained
from scoreopt_defense.defended import EOT, DefendedModel
from scoreopt_defense.purifiers import (
    ADP,
    GDMP,
    JPEG,
    BitDepth,
    DiffPure,
    MENet,
    OneShot,
    Purifier,
    ScoreOpt,
    ThirdParty,
)

if TYPE_CHECKING:
    from scoreopt_defense.integrations.art import PurifierPreprocessor

__all__ = [
    "ADP",
    "EOT",
    "GDMP",
    "JPEG",
    "BitDepth",
    "DefendedModel",
    "DiffPure",
    "MENet",
    "OneShot",
    "Purifier",
    "PurifierPreprocessor",
    "ScoreOpt",
    "ThirdParty",
    "pretrained",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "PurifierPreprocessor":  # imported on demand: ART takes seconds to load
        from scoreopt_defense.integrations.art import PurifierPreprocessor

        return PurifierPreprocessor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
