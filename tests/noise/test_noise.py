"""The generator: its known answers, its statistics, and that it stays on the images' device."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import pickle
import sys

import numpy as np
import pytest
import torch
from arithmetic import AgainstNumPy, ErringRoots
from torch.utils.data import DataLoader, Dataset
from toys import mid_images

from scoreopt_defense import OneShot
from scoreopt_defense.denoisers import GaussianDenoiser
from scoreopt_defense.noise import Noise, Stream, threefry
from scoreopt_defense.noise import noise as module
from scoreopt_defense.noise.normal import _log

stats = pytest.importorskip("scipy.stats")


def words(*values: int) -> list[torch.Tensor]:
    return [torch.tensor([v - 2**32 if v >= 2**31 else v], dtype=torch.int32) for v in values]


# Random123's own test vectors (kat_vectors, threefry2x32 of 20 rounds): counter, key, result.
KNOWN_ANSWERS = [
    ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
    ((2**32 - 1,) * 2, (2**32 - 1,) * 2, (0x1CB996FC, 0xBB002BE7)),
    ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
]

# Noise of two rows of six pixels as float32 bit patterns, and their noise levels.
KNOWN_BITS = [
    -1096686592,
    -1086867099,
    1064138344,
    1055482333,
    -1097004363,
    -1074534750,
    1051325781,
    1061674137,
    1041193602,
    1065939580,
    1026594219,
    -1072607432,
]
KNOWN_LEVELS = [0.4214630126953125, 0.7322720289230347]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_threefry_gives_its_authors_answers(counter, key, expected):
    got = threefry(*words(*key), *words(*counter))
    assert [value.item() % 2**32 for value in got] == list(expected)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("flush", [False, True], ids=["", "no denormal numbers"])
@pytest.mark.parametrize("surroundings", [contextlib.nullcontext, ErringRoots, AgainstNumPy])
def test_the_same_bits_on_every_machine(surroundings, flush, device):
    """Only operations that IEEE 754 rounds in one way, and none of what processors differ in."""
    like = torch.empty(2, 1, 2, 3, device=device)
    torch.set_flush_denormal(flush)
    try:
        with surroundings():
            noise = Noise.of_batch(2**63 + 5, 2, 2, device=device)[slice(1, 3)]
            bits = noise.eps_1(4, like).view(torch.int32).flatten().tolist()
            levels = noise.level((0.25, 0.75), 4, like).flatten().tolist()
    finally:
        torch.set_flush_denormal(False)
    assert bits == KNOWN_BITS
    assert levels == KNOWN_LEVELS


def test_the_logarithm_is_that_of_float64_to_float32s_precision():
    u = torch.cat([torch.linspace(0, 1, 100_001)[1:], 2.0 ** -torch.arange(0, 33.0)])
    want = u.double().log()
    error = (_log(u).double() - want).abs()
    # k ln 2 is rounded twice, the series and the sum once each; |log u| is at most 23
    assert (error <= 4 * torch.finfo(torch.float32).eps * want.abs().clamp_min(1)).all()


def sample(seeds=4, steps=4, images=4, samples=2) -> dict[tuple, np.ndarray]:
    """Noise of 3,072 numbers by (seed, repetition, image, step, use)."""
    like = torch.empty(samples * images, 3, 32, 32)
    found = {}
    for seed, i in itertools.product(range(seeds), range(steps)):
        noise = Noise.of_batch(seed, images, samples)
        for use, eps in {"eps_1": noise.eps_1(i, like), "eps_2": noise.eps_2(i, 3, like)}.items():
            for row, values in enumerate(eps.flatten(1)):
                found[seed, row // images, row % images, i, use] = values.double().numpy()
    return found


def test_moments_and_distribution():
    values = np.concatenate(list(sample().values()))
    n = len(values)
    assert n == 786_432
    # standard errors of the moments of n normal numbers; 4 of them: 1 in 16,000
    for k, (moment, variance) in {1: (0, 1), 2: (1, 2), 3: (0, 15), 4: (3, 96)}.items():
        assert abs((values**k).mean() - moment) < 4 * math.sqrt(variance / n), k
    assert stats.kstest(values, "norm").pvalue > 1e-4
    tail = stats.norm.sf(4) * n  # 25 expected on each side; Poisson
    for side in (values > 4, values < -4):
        assert stats.poisson.cdf(side.sum(), tail) > 1e-4
        assert stats.poisson.sf(side.sum() - 1, tail) > 1e-4


def test_neighbours_are_uncorrelated_in_every_index():
    rows = sample()
    table = np.stack(list(rows.values()))
    n = table.shape[1]
    correlation = np.corrcoef(table)[np.triu_indices(len(table), 1)] * math.sqrt(n)
    # standard normal under independence; the largest of 32,640, Bonferroni at 1 in 10,000
    assert abs(correlation).max() < stats.norm.isf(1e-4 / (2 * len(correlation)))
    assert stats.kstest(correlation, "norm").pvalue > 1e-4
    # within a row: next counter, the pair of one counter, and squares (Box and Muller's radius)
    half = n // 2
    pairs = {
        "next": (table[:, :-1], table[:, 1:]),
        "pair": (table[:, :half], table[:, half:]),
        "squares": (table[:, :half] ** 2, table[:, half:] ** 2),
    }
    for name, (a, b) in pairs.items():
        assert stats.pearsonr(a.ravel(), b.ravel()).pvalue > 1e-4, name


def test_noise_levels_are_uniform_in_their_range_and_shared_by_a_repetition():
    like, levels = torch.empty(6, 1, 1, 1), []
    for seed, i in itertools.product(range(100), range(4)):
        sigma = Noise.of_batch(seed, 3, 2).level((0.2, 0.4), i, like).flatten()
        assert sigma[0] == sigma[1] == sigma[2]
        assert sigma[3] == sigma[4] == sigma[5]
        levels += [sigma[0].item(), sigma[3].item()]
    assert stats.kstest(levels, "uniform", (0.2, 0.2)).pvalue > 1e-4
    assert abs(np.corrcoef(levels[:-1], levels[1:])[0, 1]) * math.sqrt(len(levels)) < 4


def test_noise_levels_apart_are_each_images_own():
    like = torch.empty(2000, 1, 1, 1)
    noise = Noise.of_batch(1, 1000, 2, apart=True)
    sigma = noise.level((0.2, 0.4), 3, like).flatten()
    assert stats.kstest(sigma.numpy(), "uniform", (0.2, 0.2)).pvalue > 1e-4
    assert abs(np.corrcoef(sigma[:-1], sigma[1:])[0, 1]) * math.sqrt(len(sigma)) < 4
    assert torch.equal(noise[5:7].level((0.2, 0.4), 3, like[:2]).flatten(), sigma[5:7])
    assert torch.equal(noise.eps_1(0, like), Noise.of_batch(1, 1000, 2).eps_1(0, like))


def test_shared_noise_is_one_images_for_all_of_a_repetition():
    like = torch.empty(6, 1, 8, 8)
    noise = Noise.of_batch(1, 3, 2, shared=True).eps_1(0, like)
    assert torch.equal(noise[0], noise[2])
    assert not torch.equal(noise[0], noise[3])


def test_steps_made_at_once_are_those_made_one_by_one_in_any_order():
    like = torch.empty(1, 3, 8, 8)
    noise = Noise.of_batch(7, 1)
    for i in (0, 9, 3, 8, 3, 2**16 - 1, 0):
        made = noise.eps_1(i, like)
        assert torch.equal(made, noise._normals(range(i, i + 1), 1, like)[0])
        assert torch.equal(made, Noise.of_batch(7, 9).eps_1(i, like.expand(9, -1, -1, -1))[:1])
        made.zero_()  # is the caller's own
        assert noise.eps_1(i, like).any()
    assert not torch.equal(noise.eps_1(3, like), noise.eps_2(3, 0, like))


def test_a_step_does_not_undo_what_was_made_ahead_for_another_use(monkeypatch):
    calls = []
    monkeypatch.setattr(module, "threefry", lambda *a: calls.append(0) or threefry(*a))
    noise, like = Noise.of_batch(7, 1), torch.empty(1, 3, 8, 8)
    calls.clear()
    for i in range(8):
        noise.level((0.1, 0.2), i, like)
        noise.eps_1(i, like)
        noise.eps_2(i, 0, like)
    assert len(calls) == 3


def test_one_level_is_itself():
    levels = Noise.of_batch(7, 3).level((0.3, 0.3), 2, torch.empty(3, 1, 2, 2))
    assert torch.equal(levels, torch.full((3, 1, 1, 1), 0.3))


def test_a_count_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="steps at most"):
        Noise.of_batch(0, 1).eps_1(2**16, torch.empty(1, 1, 2, 2))


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 1, 1, 1), (0, 3, 4, 4)])
def test_every_shape(shape):
    like = torch.empty(shape)
    assert Noise.of_batch(0, shape[0]).eps_1(0, like).shape == shape
    assert Noise.of_batch(0, shape[0]).level((0.1, 0.2), 0, like).shape == (shape[0], 1, 1, 1)


def test_streams_are_known_by_their_start_and_apart():
    first, again = Stream(3), Stream(3)
    calls = [first.next_call() for _ in range(4)]
    twins = [first.next_twin() for _ in range(4)]
    assert calls == [again.next_call() for _ in range(4)]
    assert twins == [again.next_twin() for _ in range(4)]
    assert len({*calls, *twins, Stream(4).next_call(), Stream().next_call()}) == 10


def test_an_unseeded_stream_is_another_in_another_process(monkeypatch):
    stream, seeded = Stream(), Stream(3)
    copies = [pickle.loads(pickle.dumps(one)) for one in (stream, seeded)]
    assert copies[0].next_call() != stream.next_call()
    assert copies[1].next_call() == seeded.next_call()
    before = stream.start
    monkeypatch.setattr(os, "getpid", lambda: -1)  # as after a fork
    stream.next_call()
    seeded.next_call()
    assert stream.start != before
    assert seeded.start == 3


class Purified(Dataset):
    """One image eight times, each purified on its own."""

    def __init__(self, purifier):
        self.purifier, self.image = purifier, mid_images(1, dtype=torch.float32)

    def __len__(self):
        return 8

    def __getitem__(self, i):
        return self.purifier(self.image)[0]


@pytest.mark.parametrize("settings", [{"seed": 0}, {}], ids=str)
@pytest.mark.parametrize(
    "context", ["fork", pytest.param("spawn", marks=pytest.mark.slow), None], ids=str
)
@pytest.mark.skipif(sys.platform != "linux", reason="needs processes that fork safely")
def test_workers_of_a_data_loader_draw_apart_and_torchs_seed_repeats_them(context, settings):
    def epochs():
        torch.manual_seed(0)
        loader = DataLoader(
            Purified(OneShot(GaussianDenoiser(), sigma=0.3, **settings)),
            num_workers=2 if context else 0,
            multiprocessing_context=context,
        )
        return torch.cat([image for _ in range(2) for image in loader])

    found = epochs()
    assert len(found.flatten(1).unique(dim=0)) == 16
    assert torch.equal(found, epochs()) == bool(settings)


@pytest.mark.slow
def test_compiled_noise_is_the_eager_noise():
    like = mid_images(8, dtype=torch.float32)
    noise = Noise.of_batch(0, 8)
    compiled = torch.compile(lambda noise, like: noise.eps_1(2, like), fullgraph=True)
    # a compiler may contract a * b + c: one rounding less in each of Horner's steps
    torch.testing.assert_close(compiled(noise, like), noise.eps_1(2, like), rtol=0, atol=2e-6)
