r"""Normal numbers of random bits, with the same bits on every processor.

Box and Muller's formula,

.. math:: \epsilon = \sqrt{-2 \ln u}\; (\cos\theta, \sin\theta), \qquad
          u \sim \mathcal U(0, 1],\ \theta \sim \mathcal U[0, 2\pi)

in which logarithm, sine and cosine are polynomials here: built of additions, multiplications and
divisions alone, which IEEE 754 rounds in one way only, they give the same bits on every processor
that keeps to it and at every place of a tensor, where a library's functions differ in their last.
IEEE 754 says so of square roots too, but not every library's keep to it, and they are mended here.
Each operation is checked one by one in the tests, on CPUs; no GPU has been tried.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["normal_pair"]

# Coefficients of series, highest power first. Each is cut where its error is below float32's own:
# ln(m) = s (2 + 2/3 s^2 + 2/5 s^4 + ...), s = (m - 1) / (m + 1), |s| < 0.172, error 2e-9;
# sine and cosine of t pi/2, |t| <= 1/2, error 2e-9 and 3e-8.
_LOG = (2 / 9, 2 / 7, 2 / 5, 2 / 3, 2.0)
_RIGHT = math.pi / 2
_SIN = tuple((-1) ** k * _RIGHT ** (2 * k + 1) / math.factorial(2 * k + 1) for k in (4, 3, 2, 1, 0))
_COS = tuple((-1) ** k * _RIGHT ** (2 * k) / math.factorial(2 * k) for k in (4, 3, 2, 1, 0))
_SQRT_HALF_BITS = 0x3F3504F3  # of the float32 nearest to sqrt(1/2)
_SIGN = -(2**31)


def normal_pair(bits_0: Tensor, bits_1: Tensor) -> tuple[Tensor, Tensor]:
    """Two standard normal float32 numbers of 64 random bits."""
    uniform = (((bits_0 >> 1) & 0x7FFFFFFF).float() + 0.5) * 2.0**-31
    radius = _sqrt(-_log(uniform))  # that of the formula, divided by sqrt(2)
    # an angle in a quarter turn, pi/4 + t pi/2, and a sign of each coordinate
    t = ((bits_1 & 0x3FFFFFFF) - 2**29).float() * 2.0**-30
    sin, cos = t * _polynomial(t * t, _SIN), _polynomial(t * t, _COS)
    first, second = radius * (cos - sin), radius * (cos + sin)
    return _flip(first, bits_1), _flip(second, bits_1 << 1)


def _sqrt(a: Tensor) -> Tensor:
    """Square root of float32 numbers from 0, rounded as IEEE 754 has it, whatever library computes.

    MKL, which torch calls on a CPU, errs in the last bit: of float32 in 0.7 % of numbers on an
    Intel CPU with AVX-512 and in 20 % on an AMD one, of float64 in 1.4 %. So float64 is rounded to
    float32 once. That is right where float64 errs by less than 4 units in the last place: scaled to
    [1, 4), a is a multiple of 2^-23. Where the roots, in [1, 2), are rounded up or down is parted
    by some m = M 2^-24, M odd, so that a - m^2 is a multiple of 2^-48 and, as M^2 is odd too, not
    zero: |sqrt(a) - m| = |a - m^2| / (sqrt(a) + m) > 2^-50, which is 4 of float64's units there.
    """
    exact = a if a.device.type == "mps" else a.double()  # MPS has no float64
    return exact.sqrt().float()


def _log(u: Tensor) -> Tensor:
    """Natural logarithm of float32 numbers above 0: that of m 2^k, m from sqrt(1/2) to sqrt(2)."""
    bits = u.view(torch.int32)
    k = (bits - _SQRT_HALF_BITS) >> 23
    m = (bits - (k << 23)).view(torch.float32)
    s = (m - 1) / (m + 1)
    return k.float() * math.log(2) + s * _polynomial(s * s, _LOG)


def _polynomial(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    """Horner's scheme; one operation at a time, so that nothing is fused."""
    first, second, *others = coefficients
    value = x * first + second
    for coefficient in others:
        value = value * x + coefficient
    return value


def _flip(value: Tensor, bits: Tensor) -> Tensor:
    """``value`` with the sign that the highest bit says."""
    return (value.view(torch.int32) ^ (bits & _SIGN)).view(torch.float32)
