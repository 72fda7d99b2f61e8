"""Runs that stop when a question is answered, and intervals that may be looked at meanwhile."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import beta
from toy_evaluation import Ascent, Noisy, images

from scoreopt_defense import cli
from scoreopt_defense.evaluation import Judging, Store
from scoreopt_defense.evaluation.anytime import Goal, evaluate_until, sequence
from scoreopt_defense.evaluation.evaluate import evaluate_plan, materials_of
from scoreopt_defense.evaluation.plan import Plan

RUNS, LENGTH = 100, 200


def _shares(rng, p):
    """As of 8 purifications of images that differ."""
    each = rng.beta(4 * p, 4 * (1 - p), (RUNS, LENGTH))
    return rng.binomial(8, each) / 8


LAWS = {
    "images that stand or fall": lambda rng, p: (rng.random((RUNS, LENGTH)) < p).astype(float),
    "shares": _shares,
}


@pytest.mark.parametrize("p", [0.05, 0.4])
@pytest.mark.parametrize("law", LAWS)
def test_a_sequence_holds_at_every_time_at_once(law, p):
    drawn = LAWS[law](np.random.default_rng(0), p)
    missed = 0
    for values in drawn:
        lows, highs = sequence(values)
        missed += bool(((lows > p) | (highs < p)).any())
        assert (np.diff(lows) >= 0).all()
        assert (np.diff(highs) <= 0).all()
    assert missed <= 11  # at 5 %, more come once in 200 tries


def test_an_interval_that_is_looked_at_meanwhile_does_not():
    """What the sequence is for: Clopper and Pearson's, looked at from the tenth image on."""
    p = 0.4
    counts = LAWS["images that stand or fall"](np.random.default_rng(0), p).cumsum(1)[:, 9:]
    n = np.arange(10, LENGTH + 1)
    low = np.nan_to_num(beta.ppf(0.025, counts, n - counts + 1))
    high = np.nan_to_num(beta.isf(0.025, counts + 1, n - counts), nan=1.0)
    assert ((low > p) | (high < p)).any(1).sum() > 11


def test_a_sequence_of_many_images_is_not_much_wider_than_an_interval():
    values = np.random.default_rng(1).random(2000) < 0.15
    lows, highs = sequence(values)
    width = 2 * 1.96 * (0.15 * 0.85 / 2000) ** 0.5
    assert width < highs[-1] - lows[-1] < 2 * width


@pytest.mark.parametrize(
    ("given", "low", "high", "answer"),
    [
        ({"until": "robust < 30%"}, 0.1, 0.29, "below 30 %"),
        ({"until": "robust<30 %"}, 0.31, 0.4, "above 30 %"),
        ({"until": "robust > 12.5%"}, 0.1, 0.4, ""),
        ({"width": 5}, 0.1, 0.15, "no wider than 5 points"),
        ({"width": 5}, 0.1, 0.151, ""),
    ],
)
def test_a_goal_is_met_when_the_answer_is_known(given, low, high, answer):
    assert Goal(**given).met(low, high) == answer


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "one of both"),
        ({"until": "robust < 30%", "width": 5}, "one of both"),
        ({"until": "robust < 0.3"}, "must be as in 'robust < 30%'"),
        ({"until": "robust < 100%"}, "between 0 % and 100 %"),
        ({"width": 0}, "width must be a finite number above 0"),
    ],
)
def test_a_goal_that_is_none_is_refused(given, said):
    with pytest.raises(ValueError, match=said):
        Goal(**given)


def made(attacks):
    defences = {"noisy": Noisy().eval(), "twin": Noisy().eval()}
    materials = materials_of(defences, images(), attacks, Judging(purifications=2))
    return Plan.of(materials, batch=4), materials


def test_a_run_stops_after_whole_batches_and_goes_on(tmp_path):
    plan, materials = made({"ascent": Ascent()})
    result, reached = evaluate_until(plan, materials, Goal(width=100), out=tmp_path)
    assert [(one.images, one.planned) for one in reached] == [(4, 12)] * 2
    first = {unit.key: found for unit, found in result.units()}
    spent = sum(found.seconds for found in first.values())  # of both, which are one
    assert reached[0].seconds == pytest.approx(2 * spent)
    assert result.plan.count == 4
    value = result.cell("noisy", "ascent").accuracy.value
    assert reached[0].value == pytest.approx(value)
    result.store.close()
    result, reached = evaluate_until(plan, materials, Goal(width=1), out=tmp_path)
    assert [(one.images, one.answer) for one in reached] == [(12, "")] * 2
    kept = {unit.key: found.finished for unit, found in result.units()}
    assert all(kept[key] == found.finished for key, found in first.items())
    result.store.close()
    with evaluate_plan(plan, materials).store as store, Store(tmp_path) as other:
        assert store.plan().images == other.plan().images
        assert store.done() == other.done()


def test_several_figures_are_refused():
    plan, materials = made({"ascent": Ascent(), "long": Ascent(steps=3)})
    with pytest.raises(ValueError, match="one suite or attack to go by, got"):
        evaluate_until(plan, materials, Goal(width=5))


TOML = """
batch = 4

[images]
source = "mnist"
n = 12

[judging]
purifications = 2

[defences.bare]
classifier = "mnist-tiny"

[attacks.transfer-pgd-linf]
eps = 0.2
steps = 2
"""


def test_the_command_says_what_it_saved(written, tmp_path, capsys):
    call = ["evaluate", str(written(TOML)), "--workers", "1", "--no-page", "--out"]
    assert cli.main([*call, str(tmp_path / "out"), "--width", "100"]) == 0
    said = capsys.readouterr().out
    assert "bare: no wider than 100 points after 4 of 12 images: " in said
    assert "8 images, about " in said
    assert cli.main([*call, str(tmp_path / "out"), "--until", "fast"]) == 1
    assert "must be as in 'robust < 30%'" in capsys.readouterr().err
    (tmp_path / "run.toml").write_text(TOML.replace("n = 12", 'n = 12\norder = "index"'))
    assert cli.main([*call, str(tmp_path / "out"), "--width", "5"]) == 1
    assert "want images in random order" in capsys.readouterr().err
