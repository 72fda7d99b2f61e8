"""Certified accuracy by randomised smoothing: a lower bound beside the attacks' upper ones."""

from scoreopt_defense.evaluation.certification.certificates import Certificate, Certified
from scoreopt_defense.evaluation.certification.certify import certify

__all__ = ["Certificate", "Certified", "certify"]
