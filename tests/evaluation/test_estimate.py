"""What a run will take, before it is run."""

from __future__ import annotations

import time

import pytest
import torch
from toy_evaluation import Failing, images
from toys import smooth_classifier

from scoreopt_defense.attacks import attack
from scoreopt_defense.evaluation.evaluate import materials_of
from scoreopt_defense.evaluation.judging import Judging
from scoreopt_defense.evaluation.plan import Plan
from scoreopt_defense.evaluation.run.estimate import estimate

PGD = attack("PGD", eps=0.1, steps=20, eot=5, gradient="as-it-is")


@pytest.fixture(scope="module")
def materials():
    pytest.importorskip("torchattacks")
    attacks = {"PGD": PGD, "longer": PGD.replace(steps=40)}
    return materials_of({"d": smooth_classifier(torch.float32)}, images(6), attacks, Judging())


def test_an_attack_that_is_tried_with_few_steps_counts_as_a_whole_one(materials):
    _, short, long = estimate(Plan.of(materials, batch=4), materials)
    judged = 6 * Judging().purifications
    assert short.classifier_calls == judged + 6 * 20 * 5
    assert long.classifier_calls == judged + 6 * 40 * 5
    assert short.units == 2


def test_what_there_was_no_time_to_try_is_no_less_than_it_takes(materials):
    plan, told = Plan.of(materials), []
    whole = estimate(plan, materials)
    cut = estimate(plan, materials, most=0.0, told=told.append)
    assert told == ["clean on d"]
    assert [cell.guessed for cell in cut] == [False, True, True]
    assert all(c.classifier_calls >= w.classifier_calls for c, w in zip(cut, whole))


class Slow(torch.nn.Module):
    """Takes as long for a batch as for an image."""

    def __init__(self):
        super().__init__()
        self.inner = smooth_classifier(torch.float32)

    def forward(self, x):
        time.sleep(0.05)
        return self.inner(x)


@pytest.mark.parametrize("purifications", [1, 8])
def test_what_a_batch_saves_is_of_the_attack_however_often_an_image_is_judged(purifications):
    judging = Judging(purifications=purifications)
    materials = materials_of({"d": Slow().eval()}, images(20), {"PGD": PGD}, judging)
    _, pgd = estimate(Plan.of(materials, batch=20), materials)
    assert pgd.seconds < 100 * 0.05 * 20 / 2  # an image alone, twenty times, is twice as much


def test_what_a_batch_saves_of_one_defence_it_need_not_save_of_another():
    class OneByOne(Slow):
        def forward(self, x):
            return torch.cat([super(OneByOne, self).forward(one) for one in x.split(1)])

    models = {"a batch": Slow().eval(), "one by one": OneByOne().eval()}
    materials = materials_of(models, images(8), {"PGD": PGD.replace(eot=1)}, Judging())
    cells = {
        c.defence: c for c in estimate(Plan.of(materials, batch=8), materials) if c.attack == "PGD"
    }
    assert cells["one by one"].seconds > 3 * cells["a batch"].seconds


def test_a_guess_does_not_take_a_query_for_all_that_an_image_is_judged_by():
    attacks = {"PGD": PGD}
    model = {"d": smooth_classifier(torch.float32)}
    of = {n: materials_of(model, images(6), attacks, Judging(purifications=n)) for n in (8, 32)}
    cells = [estimate(Plan.of(m), m, most=0.0)[1].classifier_calls for m in of.values()]
    assert cells[1] - cells[0] == 6 * (32 - 8)  # what judging takes more


def test_what_fails_takes_no_less_than_nothing():
    model = smooth_classifier(torch.float32)
    given = images(2)[0], torch.tensor([3, 3])  # which it fails on
    materials = materials_of({"d": model}, given, {"bad": Failing()}, Judging())
    _, failed = estimate(Plan.of(materials), materials)
    assert failed.error.startswith("KeyError: ")
    assert failed.classifier_calls >= 0
