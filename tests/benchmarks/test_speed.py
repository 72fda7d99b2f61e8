"""The benchmarks of speed and memory run at a small size, and time the same work in each way."""

from __future__ import annotations

import json
from argparse import Namespace

import pytest
import torch

pytest.importorskip("scipy.stats")

from benchmarks.common import results_file, timing
from benchmarks.common.timing import SETTINGS, images
from benchmarks.paper import speed as paper_speed
from benchmarks.speed import memory
from benchmarks.speed import run as speed
from benchmarks.speed.attacks import watched
from scoreopt_defense import ScoreOpt, pretrained

pytestmark = pytest.mark.usefixtures("nothing_is_compiled")

SMALL = ["--name", "mnist-tiny", "--rounds", "1"]


@pytest.fixture
def rows_of(tmp_path, monkeypatch):
    """The rows that a part writes, which it leaves alone when it is run again."""
    monkeypatch.setattr(results_file, "RESULTS", tmp_path)

    def run(part, *arguments):
        path = tmp_path / f"speed_{part}.json"
        speed.main([part, *SMALL, *arguments])
        before = path.read_text()
        speed.main([part, *SMALL, *arguments])
        assert path.read_text() == before
        return json.loads(before)["rows"]

    return run


def assert_consistent(rows):
    for row in rows:
        assert row["over"] in row["seconds"]
        assert row["seconds"].keys() == {row["over"], *row["ratios"]}
        for way, ratio in row["ratios"].items():
            a, b = (row["seconds"][name]["value"] for name in (way, row["over"]))
            assert ratio["value"] == pytest.approx(a / b, rel=2e-3)  # of four digits each


def test_overhead(rows_of):
    pytest.importorskip("art")
    rows = rows_of("overhead", "--batches", "2", "--steps", "1")
    assert_consistent(rows)
    losses = [(row["variant"], row["loss"]) for row in rows if "loss" in row]
    assert losses == [("O", "diff"), ("N", "noise"), ("O", "sr")]


@pytest.mark.parametrize(("variant", "loss"), [("O", "diff"), ("N", "noise"), ("O", "sr")])
def test_the_bare_network_makes_the_passes_of_the_purifier(variant, loss):
    """As many forward passes, and as many of them recorded."""
    denoiser, steps = pretrained.denoiser("mnist-tiny"), 3
    purifier = ScoreOpt(denoiser, **SETTINGS[variant], loss=loss, steps=steps)
    x = images(2, channels=1)
    with watched(net=denoiser.net) as ours:
        purifier(x, seed=0)
    with watched(net=denoiser.net) as bare:
        speed.passes_of(purifier, x)()
    assert sorted(ours) == sorted(bare)


def test_gradients_are_of_the_same_work(rows_of):
    rows = rows_of("gradients", "--batches", "2", "--steps", "1", "3")
    assert_consistent(rows)
    for row in rows:
        # of float64: 1e-16, by the condition of Adam's derivative, at most 1 / 1e-8
        assert row["difference of exact"] < 1e-6


def test_sequential(rows_of):
    rows = rows_of("sequential", "--batches", "1", "--steps", "1", "2", "3")
    timed = [row for row in rows if "ratios" in row]
    assert_consistent(timed)
    assert [row["steps"] for row in timed if "steps" in row] == [1, 2, 3]
    lines = [row["milliseconds an image"] for row in rows if "slope" in row]
    assert set(lines) == {"DiffPure", "ScoreOpt-N", "ScoreOpt-O"}


def test_an_attack_in_one_pass_makes_as_many_passes_as_the_loop(rows_of):
    pytest.importorskip("torchattacks")
    one_gradient, evaluation = rows_of("attacks", "--batches", "2", "--steps", "1")
    assert_consistent([one_gradient, evaluation])
    # of each of 2 images 20 times: a step and the closing pass, and the surrogate's in the backward
    assert one_gradient["passes of an image"] == {"one pass": 120, "EOTPGD": 120}
    # of each of 2 images: 1 is asked before the run and 6 for its key, 8 judge the clean one, 2
    # steps of 4 attack it, 8 judge the attacked one
    assert evaluation["purifications"] == 62


def test_scaling(rows_of):
    arguments = ["--batches", "1", "2", "3", "--steps", "1", "2", "3", "--pixels", "8", "16", "24"]
    rows = rows_of("scaling", *arguments)
    assert_consistent([row for row in rows if "ratios" in row])
    fitted = [(row["variant"], row["exponent of"]) for row in rows if "exponent of" in row]
    assert len(fitted) == 6


def test_what_a_fit_says():
    x = [1.0, 2.0, 4.0, 8.0]
    found = timing.exponent(x, [3 * value**1.5 for value in x])
    assert found == {"value": 1.5, "low": pytest.approx(1.5), "high": pytest.approx(1.5)}
    # y = 2 x + 1 and residuals (1, -2, 1) about it: the line is kept, its error is
    # sqrt(6 / (3 - 2)) / sqrt(2), and t(1 degree of freedom, 97.5 %) is 12.706
    line = timing.slope([0, 1, 2], [2, 1, 6])
    half = 12.706 * 3**0.5
    assert line["intercept"] == 1
    assert line["slope"]["high"] == pytest.approx(2 + half, rel=1e-3)
    assert line["slope"]["low"] == pytest.approx(2 - half, rel=1e-3)


def test_ratios_are_of_medians_and_their_spread_is_of_the_rounds():
    found = timing.ratio([2.0, 4.0, 9.0], [1.0, 4.0, 3.0])
    assert found == {"value": 1.333, "low": 1.5, "high": 2.5}  # of 2, 1 and 3


def test_each_round_begins_with_another_way():
    order: list[str] = []
    ways = {name: lambda name=name: order.append(name) for name in "abc"}
    seconds = timing.in_turn(ways, 3)
    assert "".join(order) == "abcbcacababc"
    assert [len(seconds[name]) for name in ways] == [3, 3, 3]


def test_the_slope_is_that_of_a_line():
    found = timing.slope([1, 5, 100], [3.5, 5.5, 53.0])["slope"]
    assert found["value"] == pytest.approx(0.5)


@pytest.mark.skipif(torch.__version__ < "2.7", reason="torch 2.4 counts no autograd.grad")
def test_the_counted_operations_are_those_of_a_convolution():
    """2 K C_in C_out H W of 3 x 3 kernels, and the same once more for the gradient to its input."""

    def build():
        return torch.nn.Conv2d(3, 5, 3, padding=1, bias=False).requires_grad_(False)

    operations = 2 * 9 * 3 * 5 * 8 * 8
    found = paper_speed.flops(build, (3, 8, 8))
    assert found == {"forward": operations, "input gradient": operations}


def test_on_paper(rows_of, monkeypatch):
    net = dict.fromkeys(paper_speed.NETWORKS, (torch.nn.Identity, (3, 4, 4)))
    monkeypatch.setattr(paper_speed, "NETWORKS", net)
    passes = {"forward": 10**9, "input gradient": 2 * 10**9}
    monkeypatch.setattr(paper_speed, "flops", lambda build, shape: passes)
    rows = {row.get("variant"): row for row in rows_of("paper")}
    # ScoreOpt-N: 5 steps of 3 and a closing pass, and the classifier's 3 where it is attacked
    attack = 512 * 5 * 750 * (16 + 3) * 1e9
    hours = attack / (0.3 * paper_speed.H100) / 3600
    assert rows["N"]["hours"]["attack"] == pytest.approx(hours, rel=1e-3)


def test_memory_of_the_same_work():
    """Each way of a cell gives a gradient of the same images, in this process."""
    args = Namespace(name="mnist-tiny", part="gradients", batches=[2], steps=[2], chunks=None)
    cells = list(memory.cells(args))
    assert {cell["how"] for cell in cells} >= {"exact", "smoothed", "naive"}
    for variant in SETTINGS:
        found = {
            cell["how"]: memory.prepare(cell, args)()
            for cell in cells
            if cell["variant"] == variant
        }
        assert found["exact"].shape == found["naive"].shape == found["smoothed"].shape


def test_a_figure_of_memory_is_of_a_process_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(results_file, "RESULTS", tmp_path)
    monkeypatch.setattr(memory, "cells", lambda args: [
        {"variant": "N", "batch": 2, "steps": 1, "how": "exact", "max_batch": 1}
    ])  # fmt: skip
    memory.main(["max_batch", *SMALL])
    (row,) = json.loads((tmp_path / "memory_max_batch.json").read_text())["rows"]
    assert len(row["runs"]) == 1
    assert row["megabytes"] >= 0


def test_the_most_that_tensors_had_at_once():
    """Views and what is freed are not counted twice; what a graph keeps is counted."""
    megabyte = (512, 512)

    def freed():
        for _ in range(3):
            made = torch.zeros(megabyte)
            made.T.add_(1)
            del made

    def kept():
        return [torch.zeros(megabyte) for _ in range(3)]

    def graph():
        made = torch.ones(megabyte, requires_grad=True)
        return made.exp().exp().exp()  # each keeps its own result

    assert [memory.most_alive(call) for call in (freed, kept, graph)] == [1, 3, 4]


def test_tensors_are_measured_here(tmp_path, monkeypatch):
    monkeypatch.setattr(results_file, "RESULTS", tmp_path)
    memory.main(["tensors", *SMALL])
    rows = json.loads((tmp_path / "memory_tensors.json").read_text())["rows"]
    assert {(row["variant"], row["how"]) for row in rows} >= {("O", "eager"), ("N", "eager")}


def test_chunks_are_cells_of_their_own():
    args = Namespace(name="mnist-tiny", part="max_batch", batches=[4], steps=[1], chunks=[1, 2])
    found = [(cell["how"], cell["max_batch"]) for cell in memory.cells(args)]
    assert found == 2 * [("eager", 1), ("eager", 2), ("exact", 1), ("exact", 2)]
