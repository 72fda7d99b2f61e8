"""Adversarial images of a record: bit for bit in few bytes, each once, and as long as wanted."""

from __future__ import annotations

import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from html_pages import Page
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from toy_evaluation import EPS, Ascent, Noisy, defences, found, kept, run

from scoreopt_defense import cli
from scoreopt_defense.evaluation import Result, Store, Suite
from scoreopt_defense.evaluation.plan.tasks import Attack, Judge, Task, Worst
from scoreopt_defense.evaluation.record.packing import _HEADER, digest_of, pack, unpack
from scoreopt_defense.evaluation.record.store_error import NotKept
from scoreopt_defense.evaluation.report import run_page
from scoreopt_defense.evaluation.run.progress import Progress
from scoreopt_defense.evaluation.suite.worst_case import by_image

SHAPES = st.tuples(*[st.integers(1, 4)] * 3)


@given(bits=arrays.arrays(st.sampled_from(["<u4", "<u8"]).map(np.dtype), SHAPES))
def test_any_bits_come_back(bits: np.ndarray) -> None:
    """NaN of any payload, infinities, -0.0 and subnormals among them."""
    image = bits.view(bits.dtype.str.replace("u", "f"))
    back = unpack(pack(image))
    assert (back.dtype, back.shape) == (image.dtype, image.shape)
    assert back.tobytes() == image.tobytes()


@pytest.mark.parametrize(
    ("name", "bits"),
    {
        "levels": 9.0,  # 8 of a random level, and the rest zero
        "sign steps": 12.0,
        "noise": 33.0,  # nothing is to be had
    }.items(),
)
def test_few_bits_are_taken_where_numbers_are_near_levels(name: str, bits: float) -> None:
    generator = np.random.default_rng(0)
    levels = generator.integers(0, 256, (3, 64, 64)).astype(np.float32) / np.float32(255)
    step = np.float32(2 / 255) * generator.integers(-4, 5, levels.shape).astype(np.float32)
    drawn = {
        "levels": levels, "sign steps": (levels + step).clip(0, 1),
        "noise": generator.random(levels.shape, dtype=np.float32),
    }  # fmt: skip
    assert 8 * len(pack(drawn[name])) / levels.size < bits


IMAGE = pack(np.full((3, 8, 8), 0.5, np.float32))
ZEROS = zlib.compress(bytes(10**8))


@pytest.mark.parametrize(
    ("content", "said"),
    {
        "nothing": (b"", "no image"),
        "half a header": (IMAGE[:7], "no image"),
        "no pixels": (IMAGE[:13], "other than the 960 bytes"),
        "cut short": (IMAGE[:-1], "other than the 960 bytes"),
        "more": (IMAGE + b"x", "other than the 960 bytes"),
        "no zlib": (IMAGE[:13] + b"abc", "no image"),
        "other numbers": (b"\2" + IMAGE[1:], "2 bytes a number"),
        "another shape": (_HEADER.pack(4, 3, 8, 7) + IMAGE[13:], "other than the 840 bytes"),
        "a shape without end": (_HEADER.pack(4, *[2**32 - 1] * 3) + ZEROS, "an image of shape"),
        "a bomb": (_HEADER.pack(4, 3, 8, 8) + ZEROS, "other than the 960 bytes"),
    }.values(),
)
def test_what_is_no_image_is_refused_in_little_memory(content: bytes, said: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=said):
            unpack(content)
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()


def test_an_image_that_could_not_be_read_is_not_written() -> None:
    with pytest.raises(ValueError, match=r"at most 134217728 numbers, got shape \(3, 7000, 7000\)"):
        pack(np.lib.stride_tricks.as_strided(np.zeros(1, "f4"), (3, 7000, 7000), (0, 0, 0)))


# --- what a suite's stages share ------------------------------------------------------------------


class Chain(Suite):
    """Attacks in a row, the first of which is a table's column too."""

    def __init__(self, length: int = 3) -> None:
        self.length = length

    def tasks(self, model: Any, x: Any) -> dict[str, Task]:
        stages = {
            str(n): Attack(attack=Ascent(steps=2 + 3 * n), begins_from=[str(k) for k in range(n)])
            for n in range(self.length)
        }
        return stages | {"": Judge(attack=Worst(norm="linf", eps=EPS), begins_from=list(stages))}


GIVEN: dict[str, Any] = {
    "attacks": {"ascent": Ascent(), "long": Ascent(steps=3)},
    "suites": {"chain": Chain()},
    "defences": {"noisy": Noisy().eval(), "one-shot": defences()["one-shot"]},
}


def test_an_image_that_several_units_have_is_kept_once(tmp_path) -> None:
    """A suite's worst ones are those of its stages, and no attack's are the same of each trial."""
    result = run(tmp_path, **GIVEN)
    made = [
        digest_of(image)
        for _, done in result.units()
        for image in result.store.adversarial(done).values()
    ]
    assert len(set(made)) == len(kept(tmp_path)) < len(made)
    stages = result.plan.of_suite("chain", "noisy", "attack")
    of_stages = {
        digest_of(x)
        for name in stages
        for x in result.adversarial("noisy", name)
        if np.isfinite(x).all()
    }
    assert {digest_of(x) for x in result.adversarial("noisy", "chain")} <= of_stages


# --- what is kept ---------------------------------------------------------------------------------


class Ending(Progress):
    """Ends the run after so many units."""

    def __init__(self, after: int) -> None:
        self.after = after

    def advance(self, outcome: Any) -> None:
        self.after -= 1
        if self.after < 0:
            raise RuntimeError("the machine is taken away")


def figures(result: Result) -> list[dict[str, Any]]:
    return [{name: v for name, v in unit.items() if name != "bytes"} for unit in found(result)]


@pytest.fixture(scope="module")
def whole() -> Result:
    return run(None, **GIVEN)


@pytest.mark.parametrize("keep", ["worst", "none"])
def test_figures_do_not_depend_on_what_is_kept_nor_on_where_a_run_was_stopped(
    keep: str, whole: Result, tmp_path
) -> None:
    expected = figures(whole)
    for after in (5, 9, 14):
        with pytest.raises(RuntimeError, match="taken away"):
            run(tmp_path, **GIVEN, keep=keep, progress=Ending(after))
    result = run(tmp_path, **GIVEN, keep=keep)
    assert figures(result) == expected
    straight = run(tmp_path / "straight", **GIVEN, keep=keep)
    assert kept(tmp_path).keys() == kept(tmp_path / "straight").keys()
    result.store.close(), straight.store.close()


def test_nothing_stays_of_a_run_that_keeps_none(tmp_path) -> None:
    run(tmp_path, **GIVEN, keep="none").store.close()
    assert kept(tmp_path) == {}
    assert (tmp_path / "images.sqlite").stat().st_size < 40_000
    with Store(tmp_path) as store:
        assert not store.pixels.held()
        with pytest.raises(
            NotKept, match=r'the images of long on noisy were not kept.*keep = "all"'
        ):
            Result(store).adversarial("noisy", "long")
        text = " ".join(Page(run_page(store)).text.split())
    assert "There are no images here: the run did not keep them (keep)." in text
    assert cli.main(["export", str(tmp_path), "--csv", str(tmp_path / "rows.csv")]) == 0


def test_of_each_image_that_of_the_attack_that_left_least_is_kept(whole: Result, tmp_path) -> None:
    result = run(tmp_path, **GIVEN, keep="worst")
    for defence in result.plan.defences:
        for trial in range(2):
            every = {n: whole.adversarial(defence, n, trial) for n in ("ascent", "long")}
            left = {name: by_image(whole, defence, name) for name in every}
            worst = [min(every, key=lambda n: left[n][image, trial]) for image in range(12)]
            assert len(set(worst)) == 2
            for name in every:
                there = result.adversarial(defence, name, trial)
                for image, of in enumerate(worst):
                    expected = every[name][image] if of == name else np.full_like(there[0], np.nan)
                    np.testing.assert_array_equal(there[image], expected)
            for name in ("chain", "clean"):
                np.testing.assert_array_equal(
                    result.adversarial(defence, name, trial),
                    whole.adversarial(defence, name, trial),
                )
            with pytest.raises(NotKept):
                result.adversarial(defence, "chain/1", trial)


def test_what_was_not_kept_is_made_again_where_more_begins_from_it(whole: Result, tmp_path) -> None:
    short = GIVEN | {"suites": {"chain": Chain(length=1)}}
    run(tmp_path, **short, keep="none").store.close()
    again = run(tmp_path, **GIVEN)
    assert figures(again) == figures(whole)
    np.testing.assert_array_equal(
        again.adversarial("noisy", "chain"), whole.adversarial("noisy", "chain")
    )


def test_what_another_run_of_the_record_asks_for_is_left_to_it(tmp_path) -> None:
    run(tmp_path, **GIVEN, name="first").store.close()
    before = kept(tmp_path)
    more = GIVEN | {"attacks": GIVEN["attacks"] | {"longer": Ascent(steps=4)}}
    run(tmp_path, **more, name="second", keep="none").store.close()
    assert kept(tmp_path) == before


def test_what_may_be_kept_is_said() -> None:
    with pytest.raises(ValueError, match=r"keep must be .*all.*worst.*none.*got 'some'"):
        run(None, attacks={}, keep="some")
