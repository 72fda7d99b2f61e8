"""The search for the strongest attack: its rows differ in one thing, and it can be run."""

from __future__ import annotations

import functools
import json

import pytest
import torch
import torch.nn.functional as F
from exact_gradients import assert_same_gradient, found
from tolerances import rounding
from torch import nn
from toys import bent, gaussian, labels, mid_images, shrinkage, smooth_classifier

from scoreopt_defense import EOT, DefendedModel, OneShot, ScoreOpt, data
from scoreopt_defense.gradients import Exact, OneShotGradient, Smoothed

pytest.importorskip("torchattacks")
pytest.importorskip("foolbox")

from benchmarks.attacks import search as attack_search
from benchmarks.attacks.search import REFERENCE
from benchmarks.attacks.ways import (
    AfterSteps,
    Ahead,
    Antithetic,
    Averaged,
    ByStep,
    Common,
    EachStep,
    Several,
    Truncated,
)
from benchmarks.common import results_file

THREAT = {"norm": "linf", "eps": 8 / 255}
GRID = attack_search.grid(THREAT, 10, 2)
STEPS = 4


MOMENTUM = ("momentum", "last_step", "step_size")


def test_rows_of_momentum_take_as_many_gradients():
    rows = attack_search.several(THREAT, 80)
    fewer = {"two samples, selective": 40, "after 2 steps and all": 57}  # each is of two, or of 7/5
    assert {name: how.gradients for name, how in rows.items()} == dict.fromkeys(rows, 80) | fewer


@pytest.mark.parametrize("name", GRID)
def test_each_row_differs_from_the_reference_in_one_thing_at_as_many_gradients(name):
    row, reference = GRID[name], GRID[REFERENCE]
    assert row.gradients == reference.gradients == 20
    plain = {"loss": "cross-entropy", "momentum": 0.0, "last_step": None}
    settings = [plain | how.as_dict() for how in (reference, row)]
    differ = {key for key in settings[0] if settings[0][key] != settings[1].get(key)}
    if name in ("twice the steps, half the EOT", "one sample a step"):
        assert differ == {"steps", "eot"}
    elif name.startswith("one sample, "):  # and whichever of these its name says
        assert {"steps", "eot"} <= differ <= {"kind", "steps", "eot", *MOMENTUM}
    elif "APGD" in name or name == "momentum":  # another method, at the same gradient
        assert settings[0]["gradient"] == settings[1]["gradient"]
    else:
        assert len(differ - {"kind"}) == (name != REFERENCE)


@pytest.fixture(params=["N", "O"])
def purifier(request):
    return ScoreOpt(bent(), variant=request.param, steps=STEPS, lr=0.05, sigma=(0.2, 0.4))


def test_modes_are_the_smoothed_one_where_they_leave_nothing_out(purifier):
    smoothed = found(purifier, Smoothed())
    assert torch.equal(found(purifier, Truncated(STEPS)), smoothed)
    assert not torch.equal(found(purifier, Truncated(STEPS - 1)), smoothed)
    one_step = purifier.replace(steps=1)
    for schedule in ("first", "decreasing"):
        assert torch.equal(found(one_step, ByStep(schedule)), found(one_step, Smoothed()))
        assert not torch.equal(found(purifier, ByStep(schedule)), smoothed)
    assert torch.equal(found(purifier, ByStep("first", c=0)), found(purifier, Exact()))


def test_what_is_cut_off_is_the_identity(purifier):
    """Of O all of it; of N all but the denoiser at the end, as of one step."""
    gradient = found(purifier, Truncated(0))
    if purifier.variant == "O":
        assert_same_gradient(gradient, found(purifier, "bpda"))
    else:
        assert not torch.equal(gradient, found(purifier, "bpda"))


def test_the_mean_has_the_direction_between_both(purifier):
    mean, one_shot, smoothed = (
        found(purifier, mode) for mode in (Averaged(), OneShotGradient(), Smoothed())
    )
    a, b = (
        grad / grad.flatten(1).norm(dim=1)[:, None, None, None] for grad in (one_shot, smoothed)
    )
    want = smoothed.flatten(1).norm(dim=1)[:, None, None, None] * (a + b) / 2
    assert_same_gradient(mean, want)


@pytest.mark.parametrize("view", [Several(3, "selective"), AfterSteps(STEPS)], ids=repr)
def test_several_purifications_that_are_alike_are_one(view, purifier):
    classifier = smooth_classifier(torch.float64)
    model = DefendedModel(classifier, purifier.replace(deterministic=True, gradient="smoothed"))
    leaf = mid_images().requires_grad_()
    torch.manual_seed(0)
    both = [view.shown(model)(leaf)]
    torch.manual_seed(0)  # of which one of them takes the noise of both its parts
    seed = int(torch.randint(2**31, ())) if isinstance(view, AfterSteps) else None
    both.append(model(leaf, seed=seed))
    gradients = [torch.autograd.grad(logits[:, 0].sum(), leaf)[0] for logits in both]
    # means of three and differences of logits below 8; the gradient is below 1
    torch.testing.assert_close(*both, rtol=0, atol=rounding(torch.float64, 100, 8))
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-9)


def seeded(**settings):
    """A random defence, whose denoiser is linear."""
    purifier = OneShot(gaussian(), sigma=0.3, **settings)
    return DefendedModel(nn.Flatten().eval(), purifier)


def test_antithetic_noise_cancels_in_what_is_linear():
    x = mid_images().requires_grad_()
    pair = EOT(seeded(gradient=Antithetic(), seed=0), 2)(x)
    without = 2 * x - 1
    without = (0.1 + shrinkage(0.3) * (without - 0.1) + 1) / 2
    torch.testing.assert_close(pair, without.flatten(1), rtol=0, atol=rounding(torch.float64, 20))
    assert not torch.equal(seeded()(x), without.flatten(1))


def test_a_draw_serves_so_many_steps():
    shown, x = Common(2).shown(seeded()), mid_images()
    first, again, other, last = (shown(x) for _ in range(4))
    assert torch.equal(first, again)
    assert torch.equal(other, last)
    assert not torch.equal(first, other)


def test_ahead_is_a_share_of_the_last_step_further():
    model = seeded(deterministic=True, seed=0)
    shown, x, moved = Ahead(0.5).shown(model), mid_images(), mid_images() + 0.02
    assert torch.equal(shown(x), model(x))
    torch.testing.assert_close(
        shown(moved), model(moved + 0.01), rtol=0, atol=rounding(torch.float64, 20)
    )


def test_each_steps_loss_has_the_slope_of_their_mean(purifier):
    """By a central difference; without an optimiser to smooth the gradient is exact."""
    purifier = purifier.replace(deterministic=True, seed=0, optimizer="sgd", lr=0.002)
    classifier, x, y = smooth_classifier(torch.float64), mid_images(), labels()
    leaf = x.clone().requires_grad_()
    shown = EachStep().shown(DefendedModel(classifier, purifier))
    loss = F.cross_entropy(shown(leaf), y, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, leaf)

    def mean_loss(x):
        seen = []
        with torch.no_grad():
            seen.append(2 * purifier(x, callback=lambda step: seen.append(step["denoised"])) - 1)
            each = [F.cross_entropy(classifier((one + 1) / 2), y, reduction="sum") for one in seen]
        return torch.stack(each).mean()

    way = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    slope = (mean_loss(x + 1e-5 * way) - mean_loss(x - 1e-5 * way)) / 2e-5
    # the square of the step times a third derivative below 1e3; roundings of 1e-13 over the step
    torch.testing.assert_close((gradient * way).sum(), slope, rtol=1e-5, atol=1e-6)


def test_it_runs_and_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # of the record
    monkeypatch.setattr(results_file, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(data, "load", functools.cache(data.load))  # which takes seconds
    rows = [REFERENCE, "DLR loss", "APGD, DLR loss", "momentum", "mean with one-shot",
            "last 2 steps", "floor at the first step"]  # fmt: skip
    command = ["mnist", "--name", "mnist-tiny", "--images", "2", "--steps", "2", "--eot", "2",
               "--eps", "0.3", "--float32", "--purifier-steps", "3", "--rows", *rows]  # fmt: skip
    attack_search.main(command)
    written = (tmp_path / "results" / "attack_search.json").read_text()
    figures = json.loads(written)
    cells = {(cell["defence"], cell["attack"]): cell for cell in figures["cells"]}
    assert len(cells) == 2 * (1 + len(rows))
    purifiers = (about["purifier"] for about in figures["plan"]["defences"].values())
    assert {purifier["steps"] for purifier in purifiers} == {3}
    assert all(cell["accuracy"]["n"] == 2 for cell in cells.values())
    for row in figures["less_reference"]:
        names = [(row["defence"], attack) for attack in (row["attack"], REFERENCE)]
        a, b = (cells[name]["accuracy"]["value"] for name in names)
        assert row["value"] == pytest.approx(a - b, abs=2e-4)  # of four decimals each
        assert row["lead"]["n"] == 2
    attack_search.main(command)
    assert (tmp_path / "results" / "attack_search.json").read_text() == written
