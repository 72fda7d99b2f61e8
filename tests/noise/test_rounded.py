"""Rounded normal numbers have their distribution to within what is claimed of it."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch
from scipy.stats import chisquare, norm

from scoreopt_defense.noise import Noise, RoundedNormal
from scoreopt_defense.noise.rounded import _BITS, _ERROR


@pytest.mark.parametrize("scale", [0.7, 31.875, 8160.0])
def test_every_threshold_is_right_to_the_error_that_is_claimed(scale):
    """By mpmath at 40 digits: a bit for cutting, and the share for the library's function."""
    rising = RoundedNormal(scale).thresholds.tolist()
    assert rising == sorted(rising)
    with mpmath.workdps(40):
        for k in np.unique(np.linspace(1, len(rising), 200).astype(int)).tolist():
            x = (mpmath.mpf(2 * k - 1) / 2) / mpmath.mpf(scale)
            exact = mpmath.erfc(x / mpmath.sqrt(2)) * 2**_BITS  # 2 P(eps > x)
            assert abs(rising[-k] - exact) <= 1 + _ERROR * exact
        beyond = mpmath.erfc((len(rising) + 0.5) / mpmath.mpf(scale) / mpmath.sqrt(2))
        assert beyond * 2**_BITS < 1.01  # what no number reaches


def test_numbers_have_that_distribution():
    """The chance that a sound generator fails is 1e-4, and this seed is the same for ever."""
    scale, draws = 1.5, 2000
    key = Noise.of_batch(3, images=4).images
    found = RoundedNormal(scale).draw(key, range(draws), 25).flatten().numpy()
    cells = np.arange(-5, 6)
    edges = np.concatenate([[-np.inf], cells[1:] - 0.5, [np.inf]])
    expected = np.diff(norm.cdf(edges / scale)) * len(found)
    counts = np.histogram(found.clip(-5, 5), bins=np.arange(-5.5, 6.5))[0]
    assert chisquare(counts, expected).pvalue > 1e-4


def test_a_number_is_a_function_of_row_draw_and_place():
    normal, (a, b) = RoundedNormal(10.0), Noise.of_batch(0, images=3).images
    whole = normal.draw((a, b), range(6), 8)
    assert torch.equal(normal.draw((a[1:], b[1:]), range(2, 5), 8), whole[2:5, 1:])
    assert whole.flatten().unique().numel() > 20
