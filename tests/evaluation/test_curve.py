"""Accuracy against every radius, of one run of an attack that seeks the nearest wrong image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from toy_evaluation import Toy

from scoreopt_defense.data import Images
from scoreopt_defense.evaluation import Judging, evaluate
from scoreopt_defense.evaluation.report.curves import sweeps

REACHED = torch.tensor([0.0, 0.25, 0.5, 0.0])  # nothing is found of the last one


class Dark(torch.nn.Module):
    """Class 0; of a first pixel above a quarter class 1, in one draw of two."""

    def forward(self, x):
        bright = x[:, 0, 0, 0] > 0.25
        wrong = bright & (torch.rand(len(x)) < 0.5) | (x[:, 0, 0, 1] == 1)
        return 2 * torch.stack([~wrong, wrong], 1).float()


@dataclass(frozen=True)
class Brighter(Toy):
    """Brightens the first pixel by what of each image is known to be needed."""

    eps: float = 0.5

    def run(self, model, x, y):
        attacked = x.clone()
        attacked[:, 0, 0, 0] += x[:, 0, 1, 1]
        return attacked

    def distances(self, x, attacked):
        return (attacked - x).flatten(1).norm(torch.inf, dim=1)


@dataclass(frozen=True)
class Silent(Toy):
    def run(self, model, x, y):
        return x


@pytest.fixture(scope="module")
def result():
    x = torch.zeros(4, 3, 2, 2)
    x[:, 0, 1, 1] = REACHED
    x[0, 0, 0, 1] = 1  # the first is wrong as it is
    x[2, 0, 0, 0] = 0.25
    images = Images(x, torch.zeros(4).long(), ("dark", "bright"))
    attacks = {"nearest": Brighter(), "silent": Silent()}
    return evaluate(
        {"dark": Dark().eval()},
        images,
        attacks,
        trials=2,
        judging=Judging(purifications=16),
        checks=False,
    )


def test_an_image_counts_as_attacked_from_the_distance_on_at_which_it_was_found(result):
    shares = result.shares("dark", "nearest")
    assert shares[0] == 0
    assert shares[1] == 1  # 0.25 is not above a quarter
    assert 0 < shares[2] < 1
    curve = result.curve("dark", "nearest")
    assert [*curve] == [0.0, 0.25, 0.5]
    want = [(0 + 1 + 1 + 1) / 4, (0 + 1 + 1 + 1) / 4, (0 + 1 + shares[2] + 1) / 4]
    assert [figure.value for figure in curve.values()] == pytest.approx(want)
    assert curve[0.5] == result.cell("dark", "nearest").accuracy
    assert result.curve("dark", "nearest", [0.4])[0.4].value == 0.75


def test_the_page_draws_it(result):
    (plot,) = sweeps(result)
    (line,) = plot.lines
    assert [point.x for point in line.points] == np.linspace(0, 0.5, 17).tolist()
    assert line.points[-1].value < line.points[0].value == 0.75


def test_an_attack_that_seeks_none_has_no_curve(result):
    with pytest.raises(
        ValueError, match="silent on dark has no distances: MinimumNorm records them"
    ):
        result.curve("dark", "silent")
