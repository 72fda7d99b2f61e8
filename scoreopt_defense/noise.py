r"""The one place where randomness is drawn: tensor operations on the images' own device.

A counter-based generator, Threefry-2x32 of 20 rounds, makes each number a pure function of where it
is used. Bits become normal numbers by Box and Muller's formula,

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
import os
import random
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

__all__ = ["Noise", "Stream", "derive", "same_draws", "seeded", "threefry"]

_ALL_IMAGES = 2**32 - 1  # stands in for an image's place where one value serves a whole batch
_LEVEL, _EPS_1, _EPS_2 = 0, 1, 2  # what the numbers of a step are used for
_AT_ONCE, _MOST_AT_ONCE = 2**14, 8  # numbers, as of five images of 32 x 32; and steps
_BITS = 16
_MOST = 2**_BITS  # steps, and uses in a step: together they are one 32-bit counter


@dataclass(frozen=True, eq=False)
class Noise:
    """Every random number of one call, as a pure function of where it is used.

    A value depends on the seed, the repetition, the image's place in the batch and the step, and on
    nothing else: not on the chunk an image is in, not on the device, not on how often or in which
    order it is asked for. So chunks give the whole batch's result, and a backward pass sees the
    forward pass's noise again without storing it. Its bits are the same wherever operations are
    rounded as IEEE 754 has it; but for compiled code, whose compiler may contract a multiplication
    and an addition (2e-6 then), and on Apple's MPS, which has no float64.

    Args:
        images: key of each row's own numbers, two int32 tensors of shape ``(B,)``.
        batches: key of the numbers that all images of a repetition share, likewise.

    Reference:
        Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011; Box and Muller, 1958.
    """

    images: tuple[Tensor, Tensor]
    batches: tuple[Tensor, Tensor]
    _ahead: dict[int, tuple[Any, Tensor]] = field(default_factory=dict, repr=False)

    @classmethod
    def of_batch(
        cls,
        seed: int,
        images: int,
        samples: int = 1,
        *,
        shared: bool = False,
        device: torch.device | str = "cpu",
    ) -> Noise:
        """Noise of ``samples`` copies of a batch, one after the other.

        Args:
            seed: of the call, 0 to 2**64 - 1.
            images: in the batch, B.
            samples: independent repetitions of it.
            shared: all images of a repetition see the same values.
            device: on which the numbers are made.
        """
        rows = torch.arange(samples * images, dtype=torch.int32, device=device)
        repetition = rows // max(images, 1)
        place = rows - repetition * images
        key = _constant(seed >> 32, rows), _constant(seed, rows)
        return cls(
            images=threefry(*key, torch.zeros_like(place) if shared else place, repetition),
            batches=threefry(*key, _constant(_ALL_IMAGES, rows), repetition),
        )

    def __getitem__(self, rows: slice) -> Noise:
        """The noise of some of the rows."""
        (a, b), (c, d) = self.images, self.batches
        return Noise((a[rows], b[rows]), (c[rows], d[rows]))

    def seed(self) -> int:
        """For what draws its own noise of all images at once: their first one's key, 64 bits."""
        a, b = (int(key[0]) & 0xFFFFFFFF for key in self.images)
        return a << 32 | b

    def level(self, sigma: tuple[float, float], i: int, like: Tensor) -> Tensor:
        """Noise level of step ``i``, uniform in a range; one for all images of a repetition.

        Args:
            sigma: lowest and highest.
            i: the step.
            like: gives dtype and batch size, ``(B, C, H, W)``.

        Returns:
            Shape ``(B, 1, 1, 1)``.
        """
        low, high = sigma
        if low == high:
            return like.new_full((len(like), 1, 1, 1), low)
        one = like[:, :1, :1, :1]
        share = self._step(i, _LEVEL, one, lambda steps: self._shares(steps, one))
        return low + (high - low) * share

    def eps_1(self, i: int, like: Tensor) -> Tensor:
        r"""Step i's noise :math:`\epsilon_1`; see :meth:`eps_2`."""
        return self._normal(i, _EPS_1, like)

    def eps_2(self, i: int, j: int, like: Tensor) -> Tensor:
        r"""Noise :math:`\epsilon_2` of inner step j of step i: standard normal, as ``like``.

        Made in float32, so that float64 images see the same noise.
        """
        return self._normal(i, _EPS_2 + j, like)

    def _normal(self, i: int, use: int, like: Tensor) -> Tensor:
        return self._step(i, use, like, lambda steps: self._normals(steps, use, like))

    def _step(self, i: int, use: int, like: Tensor, make: Callable[[range], Tensor]) -> Tensor:
        """Step i's numbers; a small batch's are made for several steps at once.

        One by one, most of their time would be overhead. A use's last such block is kept: a step
        that is past is asked for no more.
        """
        if not (0 <= i < _MOST and 0 <= use < _MOST):
            raise ValueError(f"noise has {_MOST - _EPS_2} steps at most, got step {i}, {use}")
        at_once = min(_MOST_AT_ONCE, max(1, _AT_ONCE // max(1, like.numel())))
        if at_once == 1 or torch.compiler.is_compiling():
            return make(range(i, i + 1))[0]
        block = i // at_once
        key = block, like.shape, like.dtype, like.device
        kept, made = self._ahead.get(use, (None, None))
        if made is None or kept != key:
            made = make(range(block * at_once, min((block + 1) * at_once, _MOST)))
            self._ahead[use] = key, made
        return made[i % at_once].clone()

    def _shares(self, steps: range, like: Tensor) -> Tensor:
        """Uniform in [0, 1), shape ``(steps, B, 1, 1, 1)``, as ``like``'s."""
        counters = _counters(steps, _LEVEL, like.device)[:, None]
        bits, _ = threefry(*self.batches, torch.zeros_like(counters), counters)
        shares = ((bits >> 8) & 0xFFFFFF).to(like.dtype) * 2.0**-24
        return shares.reshape(len(steps), *like.shape)

    def _normals(self, steps: range, use: int, like: Tensor) -> Tensor:
        """Those of several steps, shape ``(steps, B, C, H, W)``."""
        size = like[0].numel() if len(like) else 0
        pairs = torch.arange((size + 1) // 2, dtype=torch.int32, device=like.device)
        key_0, key_1 = (part[:, None] for part in self.images)
        counters = _counters(steps, use, like.device)[:, None, None]
        bits = threefry(key_0, key_1, pairs, counters)
        values = torch.cat(_normal_pair(*bits), dim=2)
        return values[..., :size].reshape(len(steps), *like.shape).to(like.dtype)


def _counters(steps: range, use: int, device: torch.device) -> Tensor:
    """A use's counter in each step, int32: the 32 bits that steps and uses share."""
    places = torch.arange(steps.start, steps.stop, dtype=torch.int32, device=device)
    return (places << _BITS) + use


class Stream:
    """The seeds of a purifier's calls and of its twins, each a function of where the stream starts.

    In a worker of torch's ``DataLoader`` those of calls are functions of the worker's own seed too:
    each worker and each epoch draws others, which ``torch.manual_seed`` repeats.

    Args:
        seed: where; any whole number from 0, or None for the operating system's entropy, which a
            process forked from this one and whoever unpickles it draw anew.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._seed = seed
        self._begin()

    def _begin(self) -> None:
        self.start = secrets.randbits(64) if self._seed is None else self._seed
        self._calls = self._twins = 0
        self._process = os.getpid()

    def next_call(self) -> int:
        """Seed of the next call, 0 to 2**64 - 1."""
        if self._seed is None and self._process != os.getpid():
            self._begin()
        self._calls = calls = self._calls + 1
        worker = get_worker_info()
        start = self.start if worker is None else derive(self.start, 3, worker.seed)
        return derive(start, 0, calls)

    def next_twin(self) -> int:
        """Seed of another stream; the calls' own go on as if it had not been asked for."""
        self._twins += 1
        return derive(self.start, 1, self._twins)

    def of_copy(self) -> int:
        """Seed of a copy's stream: another one wherever this one is, which stays there."""
        return derive(self.start, 2, self._calls, self._twins)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._seed is None:
            self._begin()


def derive(seed: int, *place: int) -> int:
    """The seed of one place below ``seed``, 0 to 2**64 - 1.

    Example:
        >>> derive(0, 1, 2) == derive(0, 1, 2) != derive(0, 2, 1)
        True
    """
    sequence = np.random.SeedSequence(seed, spawn_key=place)
    return int(sequence.generate_state(1, np.uint64)[0])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Start torch's, numpy's and Python's global generators at ``seed``; put them back after."""
    before = _states()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        np.random.seed([seed & 0xFFFFFFFF, seed >> 32])  # noqa: NPY002
        random.seed(seed)
        try:
            yield
        finally:
            _set_states(before)


def same_draws() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Two contexts for ``torch.utils.checkpoint``: what is drawn in the first is in the second too.

    From numpy's and Python's global generators, which it does not know.
    """
    states: list[Any] = []
    return _Draws(states, again=False), _Draws(states, again=True)


class _Draws:
    """Remembers the generators' states, or sets them for a while; can be entered often."""

    def __init__(self, states: list[Any], *, again: bool) -> None:
        self.states, self.again = states, again

    def __enter__(self) -> None:
        self.now = _states()
        if self.again:
            _set_states(self.states)
        else:
            self.states[:] = self.now

    def __exit__(self, *_: object) -> None:
        if self.again:
            _set_states(self.now)


def _states() -> tuple[Any, Any]:
    """Of Python's and numpy's global generators."""
    return random.getstate(), np.random.get_state()  # noqa: NPY002


def _set_states(states: Sequence[Any]) -> None:
    of_python, of_numpy = states
    random.setstate(of_python)
    np.random.set_state(of_numpy)  # noqa: NPY002


_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


def threefry(
    key_0: Tensor, key_1: Tensor, count_0: Tensor, count_1: Tensor
) -> tuple[Tensor, Tensor]:
    """Threefry-2x32 of 20 rounds: 64 random bits of a key and a counter.

    Args:
        key_0, key_1: int32, any shapes that broadcast.
        count_0, count_1: likewise.

    Returns:
        Two int32 tensors of the broadcast shape.

    Reference:
        Salmon et al., SC 2011; jax.random has the same generator.
    """
    keys = key_0, key_1, key_0 ^ key_1 ^ _PARITY
    a, b = torch.broadcast_tensors(count_0 + keys[0], count_1 + keys[1])
    a, b = a.clone(), b.clone()  # from here on in place: half the time of new tensors
    for block in range(5):
        for bits in _ROTATIONS[block % 2]:
            a += b
            # int32 shifts to the right drag the sign along: keep the bits that came round
            rest = (b >> (32 - bits)).bitwise_and_((1 << bits) - 1)
            b <<= bits
            b |= rest
            b ^= a
        a += keys[(block + 1) % 3]
        b += keys[(block + 2) % 3] + (block + 1)
    return a, b


# Coefficients of series, highest power first. Each is cut where its error is below float32's own:
# ln(m) = s (2 + 2/3 s^2 + 2/5 s^4 + ...), s = (m - 1) / (m + 1), |s| < 0.172, error 2e-9;
# sine and cosine of t pi/2, |t| <= 1/2, error 2e-9 and 3e-8.
_LOG = (2 / 9, 2 / 7, 2 / 5, 2 / 3, 2.0)
_RIGHT = math.pi / 2
_SIN = tuple((-1) ** k * _RIGHT ** (2 * k + 1) / math.factorial(2 * k + 1) for k in (4, 3, 2, 1, 0))
_COS = tuple((-1) ** k * _RIGHT ** (2 * k) / math.factorial(2 * k) for k in (4, 3, 2, 1, 0))
_SQRT_HALF_BITS = 0x3F3504F3  # of the float32 nearest to sqrt(1/2)
_SIGN = -(2**31)


def _normal_pair(bits_0: Tensor, bits_1: Tensor) -> tuple[Tensor, Tensor]:
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


def _constant(value: int, like: Any) -> Tensor:
    """The lowest 32 bits of ``value``, shaped as ``like``: filled in there, not copied over."""
    low = value & 0xFFFFFFFF
    return torch.full_like(like, low - 2**32 if low >= 2**31 else low)
