"""The attack classes of the four libraries, as they are found, on a defended model."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version

import numpy as np
import pytest
import torch
from packaging.version import Version
from purifiers_table import PURIFIERS, WITHOUT_NOISE
from torch import nn
from toys import bent, mid_images, smooth_classifier

from scoreopt_defense import DefendedModel, ScoreOpt, ThirdParty

pytest.importorskip("torchattacks")
pytest.importorskip("art")
pytest.importorskip("foolbox")
pytest.importorskip("pyautoattack")

from benchmarks.attacks import classes as attack_classes
from benchmarks.attacks import every as every_attack
from benchmarks.attacks.every import BARE, DEFENDED, FAILS, NEEDS_MORE, PREPROCESSED, RUNS, TOO_LONG
from benchmarks.common import results_file

RESULT = json.loads((results_file.RESULTS / "every_attack.json").read_text())
MEASURED = {(row["library"], row["attack"]): row for row in RESULT["rows"]}
of_its_releases = pytest.mark.skipif(
    any(Version(version(name)) < Version(known) for name, known in RESULT["versions"].items()),
    reason="the result file is of newer releases",
)
EVERY = [
    (library, name)
    for library in attack_classes.LIBRARIES
    for name in attack_classes.classes(library)
]


def white_box():
    """All classes but those that were measured to ask for no gradient: a new one is among them."""
    for case in EVERY:
        if case not in MEASURED or MEASURED[case][BARE].get("asks for a gradient", True):
            slow = "BrendelBethge" in case[1]  # numba compiles for a minute
            yield pytest.param(*case, marks=[pytest.mark.slow] if slow else [])


@pytest.fixture
def classifier():
    """Odd about grey, so that an image and its negative are of different classes."""
    net = smooth_classifier(torch.float32, size=16, classes=10)
    with torch.no_grad():
        for layer in (net[1], net[3]):
            layer.weight *= 5
        net[1].bias.copy_(-net[1].weight.sum(1) / 2)
        net[3].bias.zero_()
    return net


@pytest.fixture
def x():
    coarse = mid_images(1, size=4, dtype=torch.float32)
    image = 0.5 + 4 * (torch.nn.functional.interpolate(coarse, size=16) - 0.5)
    return torch.cat([image, 1 - image])


def run(library, name, model, x, y):
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 (the libraries draw from it)
    return attack_classes.attack(library, name, model, x, y)


@pytest.mark.parametrize(("library", "name"), list(white_box()))
def test_what_runs_on_the_bare_classifier_runs_on_the_defended_one(
    library, name, classifier, x, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)  # some leave files
    y = classifier(x).argmax(1)
    assert y[0] != y[1]
    try:
        run(library, name, classifier, x.clone(), y)
    except Exception as error:
        pytest.skip(f"fails also without a defence: {type(error).__name__}: {error}")
    needs_fixed = name in attack_classes.NEEDS.get(library, {})
    purifier = ScoreOpt(
        bent(torch.float32), steps=1, lr=0.01, sigma=(0.2, 0.4), seed=0, deterministic=needs_fixed
    )
    model = DefendedModel(classifier, purifier)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    given = x.clone()
    attacked = run(library, name, model, given, y)
    assert attacked.shape[1:] == x.shape[1:]
    assert attacked.isfinite().all()
    assert attacked.min() >= 0
    assert attacked.max() <= 1 + 1e-6  # images are float32
    assert torch.equal(given, x)
    assert [module.training for module in model.modules()] == modes
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_gradients_are_asked_for_where_it_is_known():
    asks = {case: row[DEFENDED].get("asks for a gradient") for case, row in MEASURED.items()}
    assert asks["torchattacks", "PGD"]
    assert asks["art", "ProjectedGradientDescent"]
    assert asks["foolbox", "LinfProjectedGradientDescentAttack"]
    assert not asks["torchattacks", "Square"]
    assert not asks["art", "SquareAttack"]
    assert not asks["foolbox", "BoundaryAttack"]


@of_its_releases
def test_the_result_file_has_every_class_that_there_is():
    assert set(EVERY) <= set(MEASURED)  # without numba ART exports one class less


@of_its_releases
def test_what_is_left_out_exists_and_attacks_no_image_classifier():
    from art.attacks import EvasionAttack
    from art.estimators.classification import PyTorchClassifier

    found = {
        name: kind
        for name, kind in vars(attack_classes.art.attacks.evasion).items()
        if isinstance(kind, type) and issubclass(kind, EvasionAttack)
    }
    left_out = attack_classes.LEFT_OUT["art"]
    assert set(left_out) <= set(found)
    misfits = {
        name
        for name, kind in found.items()
        if not all(issubclass(PyTorchClassifier, needed) for needed in kind._estimator_requirements)
    }
    assert misfits <= set(left_out)


def test_what_only_the_defended_model_fails_has_a_reason_and_a_remedy():
    needy = {case for case, row in MEASURED.items() if row["outcome"] == NEEDS_MORE}
    for library, name in needy:
        assert name in attack_classes.NEEDS[library]
        assert MEASURED[library, name][every_attack.FIXED]["outcome"] == RUNS


@pytest.mark.parametrize("case", MEASURED, ids="-".join)
def test_what_ran_returned_images(case):
    row = MEASURED[case]
    tried = [row[door] for door in (BARE, DEFENDED, PREPROCESSED) if door in row]
    for result in tried:
        if result["outcome"] == RUNS:
            low, high = result["values"]
            assert result["shape kept"]
            assert result["finite"]
            assert low >= 0
            assert high <= 1


@pytest.mark.parametrize(
    ("bare", "defended", "preprocessed", "outcome"),
    [
        (RUNS, RUNS, RUNS, RUNS),
        ("fails", RUNS, RUNS, RUNS),
        ("fails", "fails", "fails", FAILS),
        ("fails", TOO_LONG, "fails", FAILS),
        (RUNS, "fails", RUNS, NEEDS_MORE),
        (RUNS, RUNS, "fails", NEEDS_MORE),
        (RUNS, TOO_LONG, RUNS, TOO_LONG),
        (TOO_LONG, TOO_LONG, TOO_LONG, TOO_LONG),
    ],
)
def test_the_outcome_of_all_doors(bare, defended, preprocessed, outcome):
    doors = {BARE: bare, DEFENDED: defended, PREPROCESSED: preprocessed}
    found = {door: {"outcome": tried} for door, tried in doors.items()}
    assert every_attack.outcome_of(found) == outcome


def test_a_process_past_its_time_is_ended(monkeypatch):
    monkeypatch.setattr(every_attack, "SECONDS", 0.01)
    assert every_attack.in_a_process("torchattacks", "PGD", BARE) == {"outcome": TOO_LONG}


@pytest.mark.slow
def test_the_benchmark_gives_the_committed_outcomes(tmp_path, monkeypatch):
    monkeypatch.setattr(results_file, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["every_attack.py"])
    every_attack.main()
    rows = json.loads((tmp_path / "every_attack.json").read_text())["rows"]
    outcomes = {
        (row["library"], row["attack"]): row["outcome"]
        for row in rows
        if "No module named" not in row[BARE].get("error", "")  # an optional package
    }
    assert outcomes
    assert outcomes == {case: MEASURED[case]["outcome"] for case in outcomes}


def counted_gradients(function, *arguments):
    """How often functions of such names are called, as AutoAttack's ``check_dynamic`` has it."""
    calls = []

    def trace(frame, event, _):
        if event == "call" and frame.f_code.co_name in ("grad", "backward", "_make_grads"):
            calls.append(frame.f_code.co_name)

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function(*arguments)
    finally:
        sys.settrace(before)
    return len(calls)


@pytest.mark.parametrize("name", PURIFIERS)
def test_what_autoattacks_checks_say_of_each_defence(name):
    """As docs/results/attacks.md has it: of the code of the checks, since no package brings it."""
    classifier, x = smooth_classifier(torch.float32), mid_images(dtype=torch.float32)
    model = DefendedModel(classifier, PURIFIERS[name](bent(torch.float32), gradient="bpda"))
    descends = name.startswith(("ScoreOpt", "PurSAMERE"))
    assert (counted_gradients(model, x) > 0) == descends  # check_dynamic
    is_random = not torch.equal(model(x), model(x))  # check_randomized
    assert is_random == (name not in WITHOUT_NOISE)
    fixed = model.replace(deterministic=True)
    assert torch.equal(fixed(x), fixed(x))
    for mode in model.purifier.modes:
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model.with_gradient(mode)(leaf).sum(), leaf)
        assert gradient.flatten(1).abs().sum(1).all()  # check_zero_gradients


class Told(nn.Module):
    """A classifier that notes how far from grey the images were that it was asked about."""

    def __init__(self, net):
        super().__init__()
        self.net, self.farthest = net, 0.0

    def forward(self, x):
        if x.numel():
            self.farthest = max(self.farthest, (x.detach() - 0.5).abs().max().item())
        return self.net(x)


@pytest.mark.slow
@pytest.mark.parametrize(("library", "name"), EVERY)
def test_behind_a_purification_that_does_nothing_every_attack_finds_what_it_finds_without(
    library, name, classifier, x, tmp_path, monkeypatch
):
    """From 0.25 to 1, 2x - 1 and its inverse are exact, and so are their gradients."""
    monkeypatch.chdir(tmp_path)
    x = 0.5 + (x - 0.5) / 4
    y = classifier(x).argmax(1)
    assert y[0] != y[1]
    bare = Told(classifier).eval()
    try:
        found = run(library, name, bare, x.clone(), y)
    except Exception as error:
        pytest.skip(f"fails also without a defence: {type(error).__name__}: {error}")
    model = DefendedModel(Told(classifier).eval(), ThirdParty(lambda x: x, gradient="exact"))
    defended = run(library, name, model, x.clone(), y)
    if max(bare.farthest, model.classifier.farthest) > 0.25:
        pytest.skip(f"asks about images beyond, {bare.farthest:.2f} from grey")
    assert torch.equal(torch.as_tensor(defended), torch.as_tensor(found))
