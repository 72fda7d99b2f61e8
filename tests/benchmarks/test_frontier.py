"""Which purifiers no other beats: the rule, and the benchmark at a small size."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.common import results_file
from benchmarks.speed import frontier
from scoreopt_defense import data

pytest.importorskip("torchattacks")
pytest.importorskip("scipy.stats")

KINDS = {
    "one-shot": frontier.GRID["one-shot"][:1],
    "ScoreOpt-N, stopped early": frontier.GRID["ScoreOpt-N, stopped early"][:1],
}


def row(kind: str, ms: float, clean: float, lowest: float) -> dict:
    accuracy = {"clean": {"value": clean}, "lowest": {"value": lowest}}
    return {"kind": kind, "ms": {"value": ms}, "accuracy": accuracy}


def test_a_point_beats_another_where_it_is_no_worse_in_all_three_and_better_in_one():
    a = row("a", 1.0, 0.8, 0.3)
    assert frontier.beats(a, row("b", 2.0, 0.8, 0.3))
    assert frontier.beats(a, row("b", 1.0, 0.8, 0.2))
    assert not frontier.beats(a, row("b", 2.0, 0.9, 0.2))  # which is the more accurate
    assert not frontier.beats(row("b", 2.0, 0.9, 0.2), a)
    assert not frontier.beats(a, row("b", 1.0, 0.8, 0.3))  # its equal


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Two points of the grid, and images of noise, in a folder of its own."""
    images = torch.rand(1004, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    loaded = data.Images(images, torch.zeros(1004, dtype=torch.long), [str(i) for i in range(10)])
    monkeypatch.setattr(data, "load", lambda source, split: loaded)
    monkeypatch.setattr(results_file, "RESULTS", tmp_path)
    monkeypatch.setattr(frontier, "GRID", KINDS)
    monkeypatch.setattr(frontier, "TOLS", {3: (0.0, 0.99)})
    return tmp_path


def test_it_measures_times_and_draws(small):
    pytest.importorskip("matplotlib")
    given = ["images", "--images", "2", "--pgd-steps", "1", "--float32", "--runs",
             str(small / "runs")]  # fmt: skip
    frontier.main(["measure", *given])
    frontier.main(["time", "images", "--batch", "2", "--rounds", "1"])
    frontier.main(["draw"])
    found = json.loads((small / "frontier_accuracy.json").read_text())
    assert [row["kind"] for row in found["rows"]] == list(KINDS)
    for accuracy in (row["accuracy"] for row in found["rows"]):
        columns = ["clean", "transfer PGD", "surrogate", "smoothed", "lowest"]
        assert list(accuracy) == columns
        assert accuracy["lowest"]["n"] == 2
    frontier.main(["measure", *given, "--kinds", "one-shot"])  # keeps the others' rows
    again = json.loads((small / "frontier_accuracy.json").read_text())["rows"]
    assert sorted(map(str, again)) == sorted(map(str, found["rows"]))
    assert any(row["undominated"] for row in frontier.joined())
    assert (small / "frontier.png").read_bytes().startswith(b"\x89PNG")


def test_what_stopping_saves_is_paired_with_the_full_purifier(small):
    frontier.main(["stop", "images", "--images", "4", "--runs", str(small / "runs")])
    never, soon = json.loads((small / "frontier_stopping.json").read_text())["rows"]
    assert soon["tol"] == 0.99
    # two gradients and the last denoising, of three and it, and as much less in the attacked column
    assert soon["calls"] == pytest.approx(3 / 4)
    assert never["calls"] <= 1
    assert never["accuracy"]["clean"]["less full"]["n"] == 4


def test_training_images_must_be_given_to_measure():
    with pytest.raises(SystemExit):
        frontier.main(["measure"])
