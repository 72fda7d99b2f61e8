"""Attacks in half precision where the hardware has it: settled once, and said."""

from __future__ import annotations

import pytest
import torch
from configurations import BARE, IMAGES
from toy_evaluation import images
from toys import bent, smooth_classifier

from scoreopt_defense import JPEG, ScoreOpt, cli
from scoreopt_defense._half_precision import half_precision
from scoreopt_defense.attacks import PGD
from scoreopt_defense.evaluation import Store, evaluate
from scoreopt_defense.evaluation.suite.adaptive import Adaptive
from scoreopt_defense.evaluation.suite.quick import Quick

SMALL = {"eps": 0.1, "steps": 2, "queries": 20, "probed": 0}
SAID = "attacks in bfloat16, judged in float32."


@pytest.fixture
def hardware(monkeypatch):
    """A CPU that has the instructions of these names, or none."""

    def has(*names):
        for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
            monkeypatch.setattr(torch.cpu, name, lambda it=name: it in names, raising=False)

    has()
    return has


class Spy(torch.nn.Module):
    """Notes at each call whether it is under autocast."""

    def __init__(self):
        super().__init__()
        self.net, self.seen = smooth_classifier(torch.float32), []

    def forward(self, x):
        self.seen.append(torch.is_autocast_enabled("cpu"))
        return self.net(x)


class OfOnePrecision(Spy):
    def forward(self, x):
        logits = torch.zeros(len(x), 4)
        logits[torch.arange(len(x))] = super().forward(x)  # which takes no other type
        return logits


def precisions(result):
    return {
        name: task.attack.get("autocast")
        for name, of in result.plan.tasks.items()
        for task in of.values()
    }


@pytest.mark.parametrize(
    ("names", "device", "found"),
    [
        (["_is_amx_tile_supported"], "cpu", "bfloat16"),
        (["_is_avx512_bf16_supported"], "cpu", "bfloat16"),
        ([], "cpu", None),
        (["_is_amx_tile_supported", "_is_avx512_bf16_supported"], "meta", None),
    ],
)
def test_it_goes_by_what_the_hardware_says_of_itself(names, device, found, hardware):
    hardware(*names)
    assert half_precision(torch.device(device)) == found


@pytest.mark.cuda
def test_a_gpu_says_whether_it_has_it():
    has = torch.cuda.get_device_capability() >= (8, 0)
    assert half_precision(torch.device("cuda")) == ("bfloat16" if has else None)


@pytest.mark.parametrize(
    ("autocast", "has", "used"),
    [
        ("auto", True, True),
        ("auto", False, False),
        ("bfloat16", False, True),
        ("float32", True, False),
        (None, True, False),
    ],
)
def test_an_attack_computes_in_what_it_says(autocast, has, used, hardware):
    hardware(*["_is_amx_tile_supported"] * has)
    model = Spy().eval()
    PGD(eps=0.1, steps=2, eot=1, autocast=autocast).run(model, *images(2))
    assert set(model.seen) == {used}


def test_float32_is_the_key_that_no_precision_has():
    assert PGD(autocast="float32") == PGD()


@pytest.mark.parametrize(("has", "found"), [(True, "bfloat16"), (False, None)])
def test_a_purifier_says_what_it_came_to(has, found, hardware):
    hardware(*["_is_amx_tile_supported"] * has)
    purifier = ScoreOpt(bent(torch.float32), sigma=0.3)
    assert purifier.replace(autocast="auto").autocast == found
    assert JPEG(autocast="auto").autocast == found
    assert purifier.autocast is None


@pytest.mark.parametrize("suite", [Quick, Adaptive])
def test_suites_choose_it_and_the_judge_does_not(suite, hardware):
    hardware("_is_amx_tile_supported")
    model = Spy().eval()
    given = {"suites": {"s": suite(**SMALL)}, "checks": False}
    found = precisions(evaluate(model, images(2), **given))
    assert {"auto", "bfloat16"} & {*found.values()} == {"bfloat16"}
    model.seen.clear()
    judged = precisions(evaluate(model, images(2), attacks={}, checks=False))
    assert judged == {"clean": None}
    assert not any(model.seen)
    whole = {"suites": {"s": suite(autocast=None, **SMALL)}, "checks": False}
    assert "bfloat16" not in precisions(evaluate(model, images(2), **whole)).values()


def test_attacks_by_themselves_are_in_float32_unless_they_say(hardware):
    hardware("_is_amx_tile_supported")
    pgd = {name: PGD(eps=0.1, steps=1, eot=1, autocast=name) for name in (None, "auto")}
    given = {"plain": pgd[None], "asked": pgd["auto"]}
    found = precisions(evaluate(Spy().eval(), images(2), given, checks=False))
    assert found == {"clean": None, "plain": None, "asked": "bfloat16"}


def test_a_model_of_one_precision_is_attacked_in_that(hardware):
    hardware("_is_amx_tile_supported")
    result = evaluate(OfOnePrecision().eval(), images(2), suites={"s": Quick(**SMALL)})
    assert not result.failures
    assert "bfloat16" not in precisions(result).values()


@pytest.mark.parametrize("began_with", [True, False])
def test_a_run_goes_on_as_it_began_on_another_machine(began_with, hardware, tmp_path):
    names = ["_is_amx_tile_supported"]
    pgd = PGD(eps=0.1, steps=1, eot=1, autocast="auto")
    given = {"suites": {"s": Quick(**SMALL)}, "attacks": {"pgd": pgd}, "checks": False}
    hardware(*names * began_with)
    begun = evaluate(Spy().eval(), images(2), out=tmp_path, **given)
    hardware(*names * (not began_with))
    gone_on = evaluate(Spy().eval(), images(2), out=tmp_path, **given)
    assert gone_on.plan.hash == begun.plan.hash
    elsewhere = evaluate(Spy().eval(), images(2), **given)
    assert elsewhere.plan.hash != begun.plan.hash


def test_the_command_says_so_in_a_line_and_keeps_to_it(hardware, written, tmp_path, capsys):
    quick = "[suites.quick]\nsteps = 2\nprobed = 0\n"
    call = ["evaluate", str(written(IMAGES + BARE + quick)), "--out", str(tmp_path / "out")]
    call += ["--no-page", "--workers", "1"]
    hardware("_is_amx_tile_supported")
    assert cli.main(call) == 0
    first = capsys.readouterr()
    assert f"quick: {SAID}" in first.err
    hardware()
    assert cli.main(call) == 0
    assert capsys.readouterr().out == first.out
    with Store(tmp_path / "out") as store:
        assert len(store.done()) == len(list(store.plan().units()))
