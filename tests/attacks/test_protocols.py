"""What evaluation asks of an attack, whoever wrote it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from scoreopt_defense.attacks import (
    KINDS,
    Attacking,
    FoolboxPGD,
    Measuring,
    Startable,
    can_start,
)
from scoreopt_defense.evaluation.plan.tasks import Clean, Worst
from scoreopt_defense.evaluation.suite.probes import Gradients


@pytest.mark.parametrize("kind", KINDS.values())
def test_every_attack_is_one_and_only_foolboxs_begins_elsewhere(kind):
    made = kind()
    assert isinstance(made, Attacking)
    assert not isinstance(made, Measuring)
    assert can_start(made) == (kind is FoolboxPGD)


def test_a_probe_measures_and_the_worst_case_begins_elsewhere():
    assert isinstance(Gradients(), Attacking)
    assert isinstance(Gradients(), Measuring)
    assert not can_start(Gradients())
    assert isinstance(Clean(), Attacking)
    assert not can_start(Clean())
    assert can_start(Worst(norm="linf", eps=0.1))


@pytest.mark.parametrize("missing", ["run", "as_dict"])
def test_what_lacks_a_method_is_no_attack(missing):
    methods = {"run": lambda model, x, y: x, "as_dict": dict}
    assert isinstance(SimpleNamespace(**methods), Attacking)
    del methods[missing]
    assert not isinstance(SimpleNamespace(**methods), Attacking)
    assert not isinstance(SimpleNamespace(takes_start=True, **methods), Startable)
