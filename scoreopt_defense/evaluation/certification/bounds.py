r"""What counts of noised copies prove: a bound on the class's probability, and its radius.

A class that a function has with probability :math:`p > 1/2` under noise
:math:`\mathcal N(0, \sigma^2 I)` is the likeliest within

.. math:: R = \sigma\, \Phi^{-1}(p)

of the image in l2 (Cohen, Rosenfeld and Kolter, ICML 2019, theorem 1), and at distance r it still
has probability :math:`\Phi(\Phi^{-1}(p) - r / \sigma)` at least (Salman et al., NeurIPS 2019).
"""

from __future__ import annotations

import numpy as np

from scoreopt_defense.evaluation.record.statistics import scipy_stats

__all__ = ["futile", "looks", "lower_bound", "radius", "still_right"]

_FEWEST = 100  # draws before it is looked for the first time
_HOPELESS = 1e-3


def lower_bound(right: np.ndarray, draws: int, alpha: float) -> np.ndarray:
    r"""Clopper and Pearson's one-sided bound: above p with probability ``alpha`` at most.

    .. math:: B(\alpha;\, k, n - k + 1), \quad \text{the quantile of the beta distribution}

    Args:
        right: k, of n = ``draws``.
    """
    right = np.asarray(right)
    found = scipy_stats().beta.ppf(alpha, np.maximum(right, 1), draws - right + 1)
    return np.where(right > 0, found, 0.0)


def radius(bound: np.ndarray | float, sigma: float) -> np.ndarray:
    r""":math:`\sigma \Phi^{-1}(p)`, on the scale of ``sigma``, l2; 0 where p is 1/2 or less."""
    return sigma * scipy_stats().norm.ppf(np.maximum(bound, 0.5))


def still_right(bound: np.ndarray, distance: float, sigma: float) -> np.ndarray:
    """The probability that the class keeps at that l2 distance, at least; scale of ``sigma``."""
    normal = scipy_stats().norm
    return normal.cdf(normal.ppf(bound) - distance / sigma)


def looks(n: int) -> list[int]:
    """The numbers of draws at which it is looked: n, and half of each down to 100.

    Where a look may end in a certificate, each has ``alpha / len(looks)``: a union bound over a
    fixed number of them, on a geometric grid. Voráček, "Treatment of statistical estimation
    problems in randomized smoothing for adversarial robustness", NeurIPS 2024.
    """
    found = [n]
    while found[0] >= 2 * _FEWEST:
        found.insert(0, -(-found[0] // 2))
    return found


def futile(right: np.ndarray, draws: int) -> np.ndarray:
    """Whether a majority is out of the question, at 0.1 %.

    Who gives up claims nothing: such a look spends nothing of ``alpha``.
    """
    return scipy_stats().binom.cdf(right, draws, 0.5) < _HOPELESS
