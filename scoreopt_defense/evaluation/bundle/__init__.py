"""Claims of robustness as files that others check and beat."""

from scoreopt_defense.evaluation.bundle.file import Bundle, BundleError
from scoreopt_defense.evaluation.bundle.making import of_images, of_run
from scoreopt_defense.evaluation.bundle.theirs import attacked_images
from scoreopt_defense.evaluation.bundle.verifying import (
    Challenge,
    Verification,
    challenge,
    verify,
)

__all__ = [
    "Bundle",
    "BundleError",
    "Challenge",
    "Verification",
    "attacked_images",
    "challenge",
    "of_images",
    "of_run",
    "verify",
]
