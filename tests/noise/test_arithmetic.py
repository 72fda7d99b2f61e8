"""Each operation that the noise is made of, one by one: which it is that a processor rounds."""

from __future__ import annotations

import contextlib
import math

import numpy as np
import pytest
import torch
from arithmetic import ARITHMETIC, AgainstNumPy, ErringRoots

from scoreopt_defense.noise import Noise
from scoreopt_defense.noise.normal import _sqrt


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shared", [False, True])
def test_every_operation_of_the_noise_is_right_where_it_is_used(dtype, shared):
    """Its operands and memory as they are there; one that nothing is known of fails by name."""
    with AgainstNumPy() as operations:
        noise = Noise.of_batch(2**63 + 5, 3, 2, shared=shared)
        for images, side in ((6, 5), (1, 5), (6, 32)):
            like = torch.empty(images, 3, side, side, dtype=dtype)
            noise[:images].level((0.2, 0.4), 9, like)
            noise[:images].eps_1(9, like), noise[:images].eps_2(9, 2, like)
        noise.seed()
    assert operations.seen == set(ARITHMETIC) | {"sqrt"}


def wide_floats(generator: torch.Generator, count: int) -> torch.Tensor:
    """Of either sign, any significand and both its ends, exponents from -40 to 40."""
    bits = torch.randint(0, 2**23, (count,), generator=generator, dtype=torch.int32)
    bits[::7], bits[1::7], bits[2::7] = 0, 2**23 - 1, 1
    bits += (
        torch.randint(127 - 40, 127 + 41, (count,), generator=generator, dtype=torch.int32) << 23
    )
    signs = torch.randint(0, 2, (count,), generator=generator, dtype=torch.int32) << 31
    return (bits | signs).view(torch.float32)


def wide_integers(generator: torch.Generator, count: int) -> torch.Tensor:
    values = torch.randint(-(2**31), 2**31, (count,), generator=generator).to(torch.int32)
    values[::17], values[1::17], values[2::17], values[3::17] = -(2**31), 2**31 - 1, 0, -1
    return values


ON_FLOATS = {
    "a + b": lambda a, b: a + b,
    "a - b": lambda a, b: a - b,
    "a * b": lambda a, b: a * b,
    "a / b": lambda a, b: a / b,
    "a + number": lambda a, b: a + 2 / 9,
    "a - number": lambda a, b: a - 1,
    "a * number": lambda a, b: a * math.log(2),
    "-a": lambda a, b: -a,
    "float64": lambda a, b: a.double().float(),
    "bits": lambda a, b: a.view(torch.int32).view(torch.float32),
}
ON_INTEGERS = {
    "a + b": lambda a, b: a + b,
    "a += b": lambda a, b: a.clone().add_(b),
    "a - b": lambda a, b: a - b,
    "a - number": lambda a, b: a - 0x3F3504F3,
    "a * number": lambda a, b: a * 5,
    "a // number": lambda a, b: a // 3,
    "a ^ b": lambda a, b: a ^ b,
    "a ^= b": lambda a, b: a.clone().bitwise_xor_(b),
    "a ^ number": lambda a, b: a ^ 0x1BD11BDA,
    "a |= b": lambda a, b: a.clone().bitwise_or_(b),
    "a & number": lambda a, b: a & 0x3FFFFFFF,
    "a &= number": lambda a, b: a.clone().bitwise_and_(2**13 - 1),
    **{f"a << {k}": lambda a, b, k=k: a << k for k in (1, 13, 16, 23, 29)},
    **{f"a <<= {k}": lambda a, b, k=k: a.clone().__ilshift__(k) for k in (6, 26)},
    **{f"a >> {k}": lambda a, b, k=k: a >> k for k in (1, 3, 8, 19, 23)},
    "float32": lambda a, b: a.float(),
}


@pytest.mark.parametrize(
    ("wide", "call"),
    [
        *(pytest.param(wide_floats, call, id=name) for name, call in ON_FLOATS.items()),
        *(pytest.param(wide_integers, call, id=name) for name, call in ON_INTEGERS.items()),
    ],
)
def test_every_operation_is_right_on_any_operands(wide, call):
    generator = torch.Generator().manual_seed(0)
    a, b = wide(generator, 2**17 + 4), wide(generator, 2**17 + 4)
    a[3::31] = 0
    layouts = {
        "whole": (a, b),
        "few": (a[:5], b[:5]),  # less than a vector, where libraries have another way
        "unaligned": (a[1:], b[1:]),
        "strided": (a[::2], b[1::2]),
        "broadcast": (a[: 300 * 301].reshape(300, 301), b[:301]),
    }
    for operands in layouts.values():
        with AgainstNumPy():
            call(*operands)


def test_a_wrong_operation_names_itself(monkeypatch):
    monkeypatch.setitem(ARITHMETIC, "div", np.subtract)
    with pytest.raises(AssertionError, match=r"aten\.div"), AgainstNumPy():
        Noise.of_batch(0, 1).eps_1(0, torch.empty(1, 1, 2, 2))
    with pytest.raises(AssertionError, match=r"aten\.cos"), AgainstNumPy():
        torch.empty(3).cos()


def roots_near_a_boundary(generator: torch.Generator, count: int) -> torch.Tensor:
    """Numbers next to the square of what lies half-way between two float32 numbers."""
    odd = 2 * torch.randint(2**23, 2**24, (count,), generator=generator).double() + 1
    square = ((odd / 2**24) ** 2).float().view(torch.int32)
    return torch.cat([square - 1, square, square + 1]).view(torch.float32)


@pytest.mark.parametrize("surroundings", [contextlib.nullcontext, ErringRoots])
def test_the_square_root_is_numpys_on_ten_million_numbers(surroundings):
    """Any significand and exponent, and the numbers that are the hardest to round."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        bits = torch.randint(0, 0x7F800000, (850_000,), generator=generator, dtype=torch.int32)
        for a in (bits.view(torch.float32), roots_near_a_boundary(generator, 50_000)):
            with surroundings():
                roots = _sqrt(a)
            assert np.array_equal(roots.numpy(), np.sqrt(a.numpy()))
    ends = torch.tensor([0.0, -0.0, 2.0**-149, 2.0**-126, torch.finfo(torch.float32).max])
    assert torch.equal(_sqrt(ends), torch.from_numpy(np.sqrt(ends.numpy())))
