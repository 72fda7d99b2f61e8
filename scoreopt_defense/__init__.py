"""Test-time purification as a defence of any PyTorch classifier, and its honest evaluation.

Implements ScoreOpt (Zhang et al., "Enhancing Adversarial Robustness via Score-Based Optimization",
NeurIPS 2023) and what it takes to attack it with existing libraries.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scoreopt_defense import pretrained
    from scoreopt_defense.defended import EOT, DefendedModel
    from scoreopt_defense.diffusion_classifier import DiffusionClassifier
    from scoreopt_defense.evaluation.certification.certify import certify
    from scoreopt_defense.evaluation.decomposition import decompose
    from scoreopt_defense.evaluation.evaluate import evaluate
    from scoreopt_defense.integrations.art import PurifierPreprocessor
    from scoreopt_defense.normalization import normalized
    from scoreopt_defense.purifiers import (
        ADP,
        GDMP,
        JPEG,
        BitDepth,
        DiffPure,
        Langevin,
        MENet,
        OneShot,
        Purifier,
        PurSAMERE,
        ScoreOpt,
        ThirdParty,
    )
    from scoreopt_defense.sizes import Fitted

__all__ = [
    "ADP",
    "EOT",
    "GDMP",
    "JPEG",
    "BitDepth",
    "DefendedModel",
    "DiffPure",
    "DiffusionClassifier",
    "Fitted",
    "Langevin",
    "MENet",
    "OneShot",
    "PurSAMERE",
    "Purifier",
    "PurifierPreprocessor",
    "ScoreOpt",
    "ThirdParty",
    "certify",
    "decompose",
    "evaluate",
    "normalized",
    "pretrained",
]

__version__ = "0.4.0"

# Where a name is, if not in purifiers.
_PLACES = {
    "DefendedModel": "defended",
    "DiffusionClassifier": "diffusion_classifier",
    "EOT": "defended",
    "Fitted": "sizes",
    "certify": "evaluation.certification",
    "decompose": "evaluation",
    "evaluate": "evaluation",
    "normalized": "normalization",
    "PurifierPreprocessor": "integrations.art",
}


def __getattr__(name: str) -> Any:
    """Imported on demand: torch takes seconds to load, ART more, and a version needs neither."""
    if not name.startswith("_") and find_spec(f"{__name__}.{name}"):
        return import_module(f"{__name__}.{name}")
    if name in __all__:
        place = import_module(f"{__name__}.{_PLACES.get(name, 'purifiers')}")
        return globals().setdefault(name, getattr(place, name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
