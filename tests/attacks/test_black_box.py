"""Models that may only be asked: a plain function, and a random model that keeps its word."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tolerances import rounding
from torch import nn
from toys import labels, mid_images, smooth_classifier

from scoreopt_defense.attacks import PGD, SPSA, Remembered, Scores, Square


def images():
    return mid_images(dtype=torch.float32)


class TestScores:
    @pytest.mark.parametrize("how", [Square(steps=8, eot=1), SPSA(steps=2, samples=8, chunk=8)])
    def test_attacks_by_scores_do_what_they_do_on_the_module(self, how):
        classifier = smooth_classifier(torch.float32)

        def scores(x: np.ndarray) -> np.ndarray:
            answer = classifier(torch.from_numpy(x)).detach().numpy()
            x[:] = 0  # it is the function's own
            return answer

        found = []
        for model in (classifier, Scores(scores)):
            torch.manual_seed(0)
            found.append(how.run(model, images(), labels()))
        assert torch.equal(*found)
        assert (found[0] != images()).any()

    def test_a_gradient_is_an_error_that_says_what_works(self):
        model = Scores(lambda x: x.reshape(len(x), -1)[:, :4])
        with pytest.raises(RuntimeError, match="no gradient: attack it by its scores, as Square"):
            PGD(eot=1).run(model, images(), labels())

    @pytest.mark.parametrize("answer", [np.zeros(4), np.zeros((3, 5)), None])
    def test_another_answer_than_a_row_an_image_is_an_error(self, answer):
        with pytest.raises(ValueError, match=r"shape \(4, K\)|one row"):
            Scores(lambda x: answer)(images())


class Counted(nn.Module):
    """Random answers, and how many images were asked about."""

    asked = 0

    def forward(self, x):
        self.asked += len(x)
        return x.flatten(1)[:, :4] + torch.rand(len(x), 4)


class TestRemembered:
    def test_an_image_has_one_answer_and_is_paid_for_once(self):
        x, inside = images(), Counted()
        model = Remembered(inside, samples=3)
        first = model(x[:2])
        again = model(torch.cat([x[1:], x[:2]]))
        assert torch.equal(again[[-2, -1]], first)
        assert torch.equal(again[0], first[1])
        assert (model.queries, inside.asked) == (4, 3 * 4)

    def test_an_answer_is_the_mean_of_so_many_draws(self):
        x, inside = images(), Counted()
        torch.manual_seed(0)
        found = Remembered(inside, samples=3)(x)
        torch.manual_seed(0)
        expected = torch.stack([inside(x) for _ in range(3)]).mean(0)
        # a mean of three, of numbers below 2
        torch.testing.assert_close(found, expected, rtol=0, atol=rounding(torch.float32, 3, 2))

    def found(self, name, model):
        foolbox = pytest.importorskip("foolbox")
        few = {"initial_gradient_eval_steps": 5, "max_gradient_eval_steps": 10}
        budget = {"steps": 2} | (few if name == "HopSkipJumpAttack" else {})
        torch.manual_seed(0)
        x = images()
        y = model(x).argmax(1)
        target = foolbox.PyTorchModel(model.eval(), bounds=(0, 1), device=x.device)
        return getattr(foolbox.attacks, name)(**budget)(target, x, y, epsilons=None)[0], y

    @pytest.mark.parametrize("name", ["HopSkipJumpAttack", "BoundaryAttack"])
    def test_decision_attacks_do_not_stop_on_a_random_model(self, name):
        with pytest.raises((AssertionError, ValueError)):
            self.found(name, Counted())
        model = Remembered(Counted(), samples=4)
        attacked, y = self.found(name, model)
        assert (model(attacked).argmax(1) != y).all()
