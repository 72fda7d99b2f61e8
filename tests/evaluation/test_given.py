"""What evaluate takes for images, and what it does where nothing is said of attacks."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    SubsetRandomSampler,
    TensorDataset,
)
from toy_evaluation import images
from toys import smooth_classifier

from scoreopt_defense.attacks import attack
from scoreopt_defense.evaluation import evaluate
from scoreopt_defense.evaluation import evaluate as evaluation
from scoreopt_defense.evaluation.evaluate import materials_of
from scoreopt_defense.evaluation.judging import Judging

X, Y = images(6)
MODEL = smooth_classifier(torch.float32)


class Streamed(IterableDataset):
    def __iter__(self):
        return iter(zip(X, Y))


GIVEN = {
    "a list of images": ([*X], Y.tolist()),
    "a data set": TensorDataset(X, Y),
    "a loader": DataLoader(TensorDataset(X, Y), batch_size=4),
    "a loader that shuffles": DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True),
    "a loader of a stream": DataLoader(Streamed(), batch_size=4),
}


@pytest.mark.parametrize("name", GIVEN)
def test_images_of_any_kind_are_the_same_images(name):
    before = torch.get_rng_state()
    source = materials_of(MODEL, GIVEN[name], {}, Judging()).images
    assert torch.equal(torch.get_rng_state(), before)
    x, y = source.batch(0, 6)
    assert torch.equal(x, X)
    assert torch.equal(y, Y)


def test_a_loader_of_some_images_gives_those_alone():
    some = DataLoader(TensorDataset(X, Y), batch_size=2, sampler=SubsetRandomSampler([1, 4]))
    labels = materials_of(MODEL, some, {}, Judging()).images.labels
    assert sorted(labels.tolist()) == sorted(Y[[1, 4]].tolist())


def test_a_list_of_images_of_two_sizes_is_refused():
    with pytest.raises(ValueError, match=r"one shape, got \[\(3, 4, 4\), \(3, 8, 8\)\]"):
        evaluate(MODEL, ([X[0], X[1, :, :4, :4]], Y[:2]))


@pytest.mark.parametrize(
    ("said", "suites"),
    [
        ({}, ["quick"]),
        ({"attacks": {}}, []),
        ({"suites": {}}, []),
        ({"attacks": ["pgd-eot-linf"]}, []),
        ({"attacks": attack("pgd-eot-linf")}, []),
    ],
)
def test_what_is_not_told_how_to_attack_attacks(said, suites, monkeypatch):
    class Planned(Exception):
        pass

    def planned(plan, *_, **__):
        raise Planned(list(plan.suites))

    monkeypatch.setitem(evaluation.__globals__, "evaluate_plan", planned)
    with pytest.raises(Planned) as told:
        evaluate(MODEL, (X, Y), **said)
    assert told.value.args == (suites,)
