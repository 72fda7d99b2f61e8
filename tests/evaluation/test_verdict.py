"""A run's verdict, in words."""

from __future__ import annotations

import pytest
import torch
from toy_evaluation import Ascent, images
from toys import smooth_classifier

from scoreopt_defense.evaluation import Suite, evaluate
from scoreopt_defense.evaluation.plan.tasks import Attack, Judge, Worst
from scoreopt_defense.evaluation.record.statistics import proportion
from scoreopt_defense.evaluation.suite.verdict import verdict, worded

DOUBTS = ("2 checks failed", "no suite of attacks was run")


@pytest.mark.parametrize(
    ("clean", "left", "said", "robust"),
    [
        ((90, 100), (19, 100),
         "it is not robust: 19 of 100 images survive PGD+EOT (12 to 28 %).", False),
        ((90, 100), (80, 100),
         "No attack run here brings it below 80 of 100 images (71 to 87 %); PGD+EOT comes there. "
         "It may be less robust: 2 checks failed; no suite of attacks was run.", None),
        ((8, 8), (1, 8),
         "it hardly is robust: 1 of 8 images survive PGD+EOT (0 to 53 %); more images would tell.",
         None),
        ((60, 100), (35, 100),  # that is more than half of what the classifier gets right
         "No attack run here brings it below 35 of 100 images (26 to 45 %); PGD+EOT comes there. "
         "It may be less robust: 2 checks failed; no suite of attacks was run.", None),
        ((90, 100), None,
         "it was not attacked: nothing is known of its robustness; without an attack 90 of 100 "
         "images (82 to 95 %) are right.", None),
        (None, None, "it was not attacked: nothing is known of its robustness.", None),
    ],
)  # fmt: skip
def test_no_figure_under_attacks_proves_robustness(clean, left, said, robust):
    clean, left = (of and proportion(*of) for of in (clean, left))
    found = worded("it", clean=clean, left=left, against="PGD+EOT", doubts=DOUBTS)
    assert str(found) == said
    assert found.robust is robust


def test_of_a_run():
    model = {"toy": smooth_classifier(torch.float32)}
    whole = evaluate(model, images(4), {"ascent": Ascent()}, checks=False)
    said = str(verdict(whole, "toy"))
    survived = f"{whole.weakest('toy').value * 4:.0f} of 4 images"
    assert survived in said
    assert "ascent" in said

    class Twice(Suite):
        def tasks(self, model, x):
            worst = Judge(attack=Worst(norm="linf", eps=0.1), begins_from=["ascent"])
            return {"ascent": Attack(attack=Ascent()), "": worst}

    by_suite = evaluate(model, images(4), suites={"quick": Twice()})
    left = by_suite.worst_case("toy", "quick").cell.robust.value
    said = str(verdict(by_suite, "toy"))
    assert f"{left * 4:.0f} of 4 images" in said
    assert "the suite quick" in said
    assert "not attacked" in str(verdict(evaluate(model, images(4)), "toy"))
