"""Intervals that hold what they say, and minima that are not biased."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
from scipy.stats import binom, binomtest, bootstrap, norm

from scoreopt_defense.evaluation.record.differences import chance_of_more, paired, paired_all
from scoreopt_defense.evaluation.record.statistics import (
    deviation,
    majority,
    proportion,
    survival,
    weakest,
)


@pytest.mark.parametrize(("right", "total"), [(0, 5), (5, 5), (3, 10), (497, 512), (1, 1)])
def test_of_whole_counts_it_is_scipys_exact_interval(right, total):
    interval = binomtest(right, total).proportion_ci(0.95)
    found = proportion(right, total)
    assert found.value == right / total
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=1e-6)


@pytest.mark.parametrize("p", [0.02, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("total", [20, 128])
def test_the_interval_covers_the_truth_as_often_as_it_says(p, total):
    """Exactly, over every count that there may be: 95 % or more."""
    counts = np.arange(total + 1)
    covers = [proportion(int(k), total).low <= p <= proportion(int(k), total).high for k in counts]
    assert binom.pmf(counts, total, p)[np.array(covers)].sum() >= 0.95


@pytest.mark.parametrize("shape", [(0.2, 0.1), (4.0, 1.0), (0.5, 0.5)])
def test_and_where_images_count_as_shares_of_their_purifications(shape):
    """Images of different chances, 8 purifications each: the mean chance of all such images."""
    generator = np.random.default_rng(0)
    chances = generator.beta(*shape, size=(2000, 64))
    shares = generator.binomial(8, chances) / 8
    truth = shape[0] / sum(shape)
    intervals = [proportion(total, 64) for total in shares.sum(1)]
    covered = np.mean([share.low <= truth <= share.high for share in intervals])
    # 4 deviations: 2,000 intervals that cover with chance 0.95 fall below once in 30,000 times
    assert covered >= 0.95 - 4 * math.sqrt(0.95 * 0.05 / 2000)


def test_a_share_outside_its_total_is_refused():
    with pytest.raises(ValueError, match="right must be between 0 and total, got 3 of 2"):
        proportion(3, 2)


def test_a_share_is_a_float_that_keeps_its_interval():
    share = proportion(8, 10)
    assert isinstance(share, float)
    assert (1 - share, np.mean([share, 0.4])) == pytest.approx((0.2, 0.6))
    again = pickle.loads(pickle.dumps(share))
    assert (again, again.low, again.high, again.n) == (share, share.low, share.high, 10)


def test_deviation_over_trials():
    assert deviation([0.5, 0.7]) == pytest.approx(math.sqrt(0.02))
    assert deviation([0.5]) is None


@pytest.mark.parametrize(
    ("predicted", "said"),
    [([1, 1, 0], True), ([1, 0, 2], False), ([1, 0], False), ([1, 1, 0, 2], True), ([0, 0], False)],
)
def test_a_majority_is_more_than_any_other_class(predicted, said):
    assert majority(np.array([predicted]), np.array([1])).tolist() == [said]


@pytest.mark.parametrize("times", [1, 3, 8])
def test_survival_is_unbiased_up_to_the_number_of_purifications(times):
    """Its mean over every outcome of 8 draws, weighted, is p to the power of N."""
    p = 0.8
    counts = np.arange(9)
    estimates = [survival(np.arange(8)[None] < count, times).value for count in counts]
    assert binom.pmf(counts, 8, p) @ estimates == pytest.approx(p**times)


def test_survival_of_more_resubmissions_than_purifications_is_a_bound():
    right = np.array([[True] * 8, [True] * 7 + [False]])
    found = survival(right, 64)
    assert (found.value, found.bound) == (0.5, True)
    assert survival(right, 8) == type(found)(8, 0.5, False)


def test_the_weakest_of_equal_attacks_is_no_weaker_than_their_lowest():
    """Ten attacks, each right in 0.7 of the draws: chosen and judged on the same, it'd be 0.46."""
    generator = np.random.default_rng(0)
    right = generator.random((10, 4000, 8)) < 0.7
    lead = np.where(right, 1.0, -1.0)
    naive = right.mean(2).min(0).mean()
    assert naive < 0.5
    # the lowest of eleven means of 0.7 is about 1.6 of their deviations below it
    deviation_of_mean = math.sqrt(0.7 * 0.3 / (8 * 4000))
    assert weakest(right, lead).mean() == pytest.approx(0.7, abs=5 * deviation_of_mean)


def drawn(chances: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Eight purifications of images that candidates leave these leads of, on average."""
    lead = chances[..., None] + generator.normal(size=(*chances.shape, 8))
    return lead > 0, lead


def averages(kind: str, candidates: int, generator: np.random.Generator) -> np.ndarray:
    """Mean leads, shape ``(candidates, 60)``: an image's own, and what the candidate does."""
    image = 1.5 * generator.normal(size=60)
    strength = np.linspace(1.5, -1, candidates)[:, None]
    varied = generator.normal(size=(candidates, 60))
    return image + {
        "equal": np.zeros((candidates, 1)), "one is strongest": strength, "by image": varied,
        "both": strength + 0.7 * varied, "no noise": 50 * (varied + image),
    }[kind]  # fmt: skip


@pytest.mark.parametrize("candidates", [2, 7, 20])
@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [
        ("equal", -3.5, 0),
        ("one is strongest", -1, 0.5),
        ("by image", 0, 3.5),
        ("both", -1, 3.5),
        ("no noise", -0.5, 0.5),
    ],
)
def test_how_far_the_weakest_is_off_is_as_documented(kind, low, high, candidates):
    """Mean error in points, of 80 runs; beside it four deviations of that mean."""
    generator, errors = np.random.default_rng(7), []
    for _ in range(80):
        chances = averages(kind, candidates, generator)
        right, lead = drawn(chances, generator)
        found = weakest(right, lead).mean()
        assert found <= right.mean((1, 2)).min() + 1e-12
        errors.append(100 * (found - norm.cdf(chances).min(0).mean()))
    slack = 4 * np.std(errors) / math.sqrt(len(errors))
    assert low - slack <= np.mean(errors) <= high + slack


def test_a_candidate_that_is_missing_in_part_is_joined_by_the_others():
    """It takes the first two images, and is not there on the last, which another takes."""
    right = np.ones((2, 3, 4), dtype=bool)
    lead = np.ones((2, 3, 4))
    right[0, :2], lead[0, :2], lead[0, 2] = False, -1.0, np.nan
    right[1, 2] = [True, False, True, False]
    assert weakest(right, lead).tolist() == [0, 0, 0.5]


def test_the_weakest_finds_the_attack_that_works_on_each_image():
    right = np.ones((2, 2, 4), dtype=bool)
    right[0, 0] = right[1, 1] = False
    assert weakest(right, np.where(right, 1.0, -1.0)).tolist() == [0.0, 0.0]


def test_a_missing_candidate_is_not_chosen():
    right = np.ones((2, 2, 4), dtype=bool)
    lead = np.ones((2, 2, 4))
    right[0], lead[0] = False, np.nan
    lead[1, 1] = np.nan
    found = weakest(right, lead)
    assert found[0] == 1
    assert np.isnan(found[1])


def test_ties_go_to_the_lower_lead():
    right = np.array([[[True] * 4], [[True, False, True, False]]])
    right[1] = True
    lead = np.array([[[3.0] * 4], [[1.0] * 4]])
    right[1, 0, 3] = False  # judged by that draw the two are tied, and the lower lead is wrong
    assert weakest(right, lead).tolist() == [0.75]


def test_one_purification_cannot_both_choose_and_judge():
    with pytest.raises(ValueError, match=r"purifications must be at least 2.*got 1"):
        weakest(np.ones((2, 3, 1), dtype=bool), np.ones((2, 3, 1)))


def test_a_paired_difference_knows_that_the_images_are_the_same():
    a = np.array([1.0] * 40 + [0.0] * 10)
    b = np.array([1.0] * 30 + [0.0] * 20)
    found = paired(a, b)
    assert found.value == pytest.approx(0.2)
    assert (found.only_a, found.only_b) == (10, 0)
    assert found.p == pytest.approx(2 * 0.5**10)
    # resampled, it is a binomial share of 0.2 in 50 images
    low, high = (binom.ppf(q, 50, 0.2) / 50 for q in (0.025, 0.975))
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.021)
    assert paired(a, b) == found


def test_many_pairs_have_the_intervals_of_each_alone_which_are_scipys():
    draws = np.random.default_rng(0)
    pairs = [tuple(draws.integers(0, 9, (2, n)) / 8) for n in (5, 16, 5, 64)]
    pairs.insert(2, (np.ones(5), np.zeros(5)))
    together = paired_all(pairs, confidence=0.9)
    assert together == [paired(a, b, confidence=0.9) for a, b in pairs]
    for (a, b), found in zip(pairs, together):
        if np.ptp(a - b):
            expected = bootstrap(
                (a - b,), np.mean, confidence_level=0.9, method="percentile", batch=1000,
                rng=np.random.default_rng(0),
            ).confidence_interval  # fmt: skip
            assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_equal_defences_differ_by_nothing():
    found = paired(np.ones(5), np.ones(5))
    assert (found.value, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_the_paired_interval_covers_the_truth():
    """300 draws of 80 images; the percentile bootstrap is a little narrow at this size."""
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(300):
        chance = generator.random(80)
        a, b = (generator.random(80) < c for c in (0.3 + 0.7 * chance, 0.1 + 0.7 * chance))
        found = paired(a.astype(float), b.astype(float))
        covered += found.low <= 0.2 <= found.high
    assert covered / 300 >= 0.94 - 4 * math.sqrt(0.94 * 0.06 / 300)


@pytest.mark.parametrize(
    ("gaps", "chance"),
    [
        ([1.0] * 8, 1 / 256),  # one of the 2^8 ways
        ([1.0] * 7, 1 / 128),
        ([0.5, 0.0, 0.0], 0.5),  # equal images say nothing
        ([1.0], 0.5),
        ([0.0, 0.0], 1.0),
        ([-1.0] * 4, 1.0),
        ([1.0, -0.5], 0.5),  # both ways of the smaller one, of four
    ],
)
def test_chance_is_the_share_of_ways_to_swap(gaps: list[float], chance: float) -> None:
    many = [np.array(gaps), np.zeros(len(gaps)), np.array([0.5, 0.0, 0.0, 1.0])]
    assert chance_of_more(many) == pytest.approx([chance, 1.0, 0.25])


def test_what_is_no_higher_is_seldom_called_so() -> None:
    """Of 400 pairs that differ by chance alone 2 % are below p = 0.02, or fewer."""
    a, b = np.random.default_rng(0).integers(0, 9, (2, 400, 16)) / 8
    below = sum(chance <= 0.02 for chance in chance_of_more(list(a - b)))
    assert below <= binom.ppf(0.9999, 400, 0.02)


def test_what_is_higher_is_found() -> None:
    draws = np.random.default_rng(0)
    assert chance_of_more([0.2 - 0.2 * draws.random(32)])[0] < 1e-3
