"""Other people's models and attacks: what they leave behind, keep inside, and try to end."""

from __future__ import annotations

import os
import signal
import tempfile
import warnings
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

import numpy as np
import pytest
import scipy.stats  # noqa: F401 - the first import of it adds filters of warnings
import torch
from foreign_models import AWKWARD, Ends, Holding, Net
from module_state import state_of
from torch import nn
from toy_evaluation import Ascent, Toy, found, images, run

from scoreopt_defense.evaluation import Judging, evaluate
from scoreopt_defense.evaluation.evaluate import materials_of
from scoreopt_defense.evaluation.plan import Plan
from scoreopt_defense.evaluation.plan.behaviour import unlike
from scoreopt_defense.evaluation.run.estimate import estimate
from scoreopt_defense.evaluation.run.progress import Progress
from scoreopt_defense.evaluation.run.workers import Crew, in_process
from scoreopt_defense.evaluation.suite.adaptive import Adaptive

FEW = {"batch": 4, "judging": Judging(purifications=2)}


def net():
    model = Net().eval()
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    return model


@torch.no_grad()
def in_place(model):
    next(model.net.parameters()).add_(1.0)


@torch.no_grad()
def in_a_buffer(model):
    model.norm.running_mean += 1.0


def through_data(model):
    next(model.net.parameters()).data.mul_(-1.0)


def other_data(model):
    weight = next(model.net.parameters())
    weight.data = torch.zeros_like(weight)


def other_part(model):
    model.norm = nn.Identity()


def other_weight(model):
    model.net[1].weight = nn.Parameter(torch.zeros_like(model.net[1].weight))


def no_weight(model):
    model.net[1].bias = None


def another_attribute(model):
    model.scale, model.extra = -1.0, 3


def own_forward(model):
    model.net.forward = lambda x: torch.zeros(len(x), 4)


def draws(model):
    model(torch.zeros(1, 3, 8, 8))


def grads(model):
    for weight in model.parameters():
        weight.requires_grad_(False)
        weight.grad = None


LEAVES = {
    "train mode": lambda model: model.train(),
    "weights": in_place,
    "weights through .data": through_data,
    "other numbers": other_data,
    "another weight": other_weight,
    "no weight": no_weight,
    "a buffer": in_a_buffer,
    "another part": other_part,
    "an attribute": another_attribute,
    "a forward": own_forward,
    "half precision": lambda model: model.half(),
    "double precision": lambda model: model.double(),
    "gradients": grads,
    "a hook": lambda model: model.register_forward_hook(lambda *a: a[2] * 0),
    "a pre-hook": lambda model: model.net.register_forward_pre_hook(lambda m, a: (a[0] * 0,)),
    "generators of the module": draws,
    "no gradients": lambda _: torch.set_grad_enabled(False),
    "anomaly detection": lambda _: torch.autograd.set_detect_anomaly(True),
    "a default type": lambda _: torch.set_default_dtype(torch.float64),
    "a default device": lambda _: torch.set_default_device("meta"),
    "a parametrisation": lambda model: nn.utils.parametrizations.weight_norm(model.net[1]),
    "oneDNN's flag": lambda _: setattr(torch.backends.mkldnn, "enabled", False),
    "precision of products": lambda _: torch.set_float32_matmul_precision("medium"),
    "threads": lambda _: torch.set_num_threads(3),
    "deterministic algorithms": lambda _: torch.use_deterministic_algorithms(True),
    "cudnn's flags": lambda _: setattr(torch.backends.cudnn, "benchmark", True),
    "autocast": lambda _: torch.set_autocast_enabled("cpu", True),
    "NumPy's errors": lambda _: np.seterr(all="raise"),
    "filters of warnings": lambda _: warnings.simplefilter("error"),
    "another folder": lambda _: os.chdir("/"),
    "a hook on all modules": lambda _: nn.modules.module.register_module_forward_hook(
        lambda module, x, y: y * 0 if isinstance(module, nn.Linear) else None
    ),
}


def of_process():
    return (
        *(torch.is_grad_enabled(), torch.is_anomaly_enabled(), torch.get_default_dtype()),
        torch.as_tensor(torch.empty(1, device="meta")).device,  # the CPU, if that was set
        *(torch.get_num_threads(), torch.backends.cudnn.benchmark),
        *(torch.backends.mkldnn.enabled, torch.get_float32_matmul_precision()),
        *(torch.are_deterministic_algorithms_enabled(), torch.is_autocast_enabled("cpu")),
        *(np.geterr(), list(warnings.filters), os.getcwd()),
        *(dict(nn.modules.module._global_forward_hooks), torch.get_rng_state().tolist()),
    )


class Leaving(Toy):
    """Returns the images as they are, and leaves something behind."""

    def __init__(self, how, note=""):
        super().__init__()
        object.__setattr__(self, "how", how)
        object.__setattr__(self, "note", note)

    def as_dict(self):
        return super().as_dict() | {"how": self.how, "note": self.note}

    def run(self, model, x, y):
        LEAVES[self.how](model)
        object.__setattr__(self, "seen", True)
        return x


@pytest.fixture
def two_threads():
    """Another number than the one that units compute with, in a process of whatever number."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("how", LEAVES)
def test_what_an_attack_leaves_behind_reaches_neither_judging_nor_other_units(how):
    model, attack = net(), Leaving(how)
    before, process = state_of(model), of_process()
    again = Leaving(how, "once more")  # of the same settings it would be the same attack
    attacks = {"rude": attack, "again": again, "ascent": Ascent()}
    result = run(None, defences={"net": model}, attacks=attacks, trials=1, batch=6)
    alone = run(None, defences={"net": net()}, attacks={"ascent": Ascent()}, trials=1, batch=6)
    model.loud = 0.0
    quiet = run(None, defences={"net": model}, attacks=attacks, trials=1, batch=6)
    model.loud = 0.01
    assert not result.failures + quiet.failures
    assert of_process() == process
    before.pop("versions")
    now = state_of(model)
    now.pop("versions")
    for name, value in now.items():
        for one, other in zip(value, before[name], strict=True):
            assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other, name
    assert set(vars(model)) == set(vars(Net()))
    assert "seen" not in {**vars(attack), **vars(again)}
    leads = [
        {
            name: [row["lead"] for row in found(of) if row["attack"] == name]
            for name in of.plan.tasks
        }
        for of in (alone, result, quiet)
    ]
    assert leads[0]["ascent"] == leads[1]["ascent"]
    assert leads[2]["rude"] == leads[2]["again"] == leads[2]["clean"]


def test_generators_of_a_modules_own_draw_anew_for_each_attack_judging_and_trial():
    model = net()
    runs = [run(None, defences={"net": model}, attacks={"a": Ascent()}) for _ in range(2)]
    asked = 3  # for its classes, and twice for the key, with the same draws
    each = model.drawn[: len(model.drawn) // 2]
    assert each == model.drawn[len(each) :]  # the second run is the first
    for drawn in zip(*each[asked:]):  # by each generator, be it an attribute or in a list of them
        assert len({*drawn}) == len(each) - asked
    assert found(runs[0]) == found(runs[1])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", AWKWARD)
def test_a_model_that_cannot_be_copied_is_evaluated_and_stays_as_it_is(kind):
    model = AWKWARD[kind]()
    model = model if "frozen" in kind else model.eval()
    attacks = {} if kind == "quantized" else {"ascent": Ascent()}
    before = {name: str(value) for name, value in model.state_dict().items()}
    result = evaluate(model, images(4), attacks, **FEW)
    assert not result.failures
    assert {name: str(value) for name, value in model.state_dict().items()} == before
    (name,) = result.plan.defences
    assert result.cell(name).classifier_calls == 4 * 2
    assert not attacks or result.cell(name, "ascent").classifier_calls == 4 * (2 + 2)
    again = evaluate(model, images(4), attacks, **FEW)
    was, now = (of.plan.defences[name] for of in (result, again))
    assert was.declared == now.declared
    assert not unlike(was.behaviour, now.behaviour)
    if "TorchScript" not in kind:  # it compiles itself after some calls, and rounds otherwise
        assert found(again) == found(result)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["a lock", "cached features", "TorchScript"])
def test_neither_a_dry_run_nor_the_suites_question_copies_it(kind):
    materials = materials_of({"net": AWKWARD[kind]().eval()}, images(4), {"a": Ascent()}, Judging())
    assert [cell.error for cell in estimate(Plan.of(materials), materials)] == [None, None]
    assert Adaptive().tasks(materials.defences["net"], materials.images.batch(0, 8)[0])


class Ending(Toy):
    """Would end the process, or says what cannot be said."""

    def __init__(self, error):
        super().__init__()
        object.__setattr__(self, "error", error)

    def as_dict(self):
        return super().as_dict() | {"error": repr(self.error)}

    def run(self, model, x, y):
        raise self.error


class Mute(Exception):
    def __str__(self):
        raise ValueError("no words")


class LastWord(Exception):
    def __str__(self):
        raise SystemExit(0)


ENDS = {
    "exit": (SystemExit(0), "RuntimeError: it raised SystemExit: 0"),
    "interrupt": (KeyboardInterrupt(), "RuntimeError: it raised KeyboardInterrupt: "),
    "generator": (GeneratorExit(), "RuntimeError: it raised GeneratorExit: "),
    "surrogate": (ValueError("caf\udce9"), "ValueError: caf\\udce9"),
    "terminal": (ValueError("a\x1b[2Jb\nc"), "ValueError: a\\x1b[2Jb\nc"),
    "no words": (Mute(), "Mute: a message that cannot be read"),
    "last word": (LastWord(), "LastWord: a message that cannot be read"),
}


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_what_would_end_the_run_is_its_units_failure(workers, tmp_path):
    silent = {"no words", "last word"} if workers > 1 else set()
    attacks = {name: Ending(error) for name, (error, _) in ENDS.items() if name not in silent}
    result = evaluate(
        {"net": Holding(0).eval()}, images(4), attacks, out=tmp_path, workers=workers, **FEW
    )
    said = {(f.unit.defence, f.unit.attack): f.error for f in result.failures}
    for name in attacks:
        assert said["net", name].startswith(ENDS[name][1])
    assert said["net", "terminal"].endswith(", in run: raise self.error)")
    with pytest.raises(ValueError, match=f"cannot classify.*{ENDS['exit'][1]}"):
        evaluate({"ends": Ends(0).eval()}, images(4), {})
    assert str(result).encode()
    assert ("net", "clean") not in said


@pytest.mark.parametrize("name", ["caf\udce9", 3])
def test_a_name_that_no_record_holds_is_refused(name):
    with pytest.raises(ValueError, match=r"names of defences and attacks must be text.*(udce9|3)"):
        evaluate({name: Holding(0).eval()}, images(4), {})


@pytest.fixture
def heeded():
    """Ctrl-C, which a process that was started in the background may have been told to ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_within_a_unit_is_no_failure_of_it(heeded):
    class Pressed(Toy):
        def run(self, model, x, y):
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)
            return x

    before, times = signal.getsignal(signal.SIGINT), 2
    given = {"net": Holding(0).eval()}, images(4), {"pressed": Pressed()}
    with pytest.raises(KeyboardInterrupt):
        evaluate(*given, **FEW)
    materials, times = materials_of(*given, Judging()), 1
    with pytest.raises(KeyboardInterrupt):
        estimate(Plan.of(materials), materials)
    assert signal.getsignal(signal.SIGINT) is before


def test_one_plan_runs_twice_in_one_process():
    class Within(Progress):
        inner = None

        def advance(self, outcome):
            if self.inner is None:
                self.inner = run(None)

    progress = Within()
    outer = run(None, progress=progress)
    assert found(outer) == found(progress.inner)
    assert not outer.failures


def losing(times):
    """A crew whose workers are lost so many times before they begin."""
    materials = materials_of(Holding(0).eval(), images(4), (), Judging())
    crew, lost = in_process(materials, 1), []

    @contextmanager
    def opened():
        with crew.opened() as (executor, width):
            if len(lost) < times:
                lost.append(1)
                executor.submit = lambda *_: (_ for _ in ()).throw(BrokenProcessPool("abruptly"))
            yield executor, width

    return Crew(opened, crew.key), lost


@pytest.mark.parametrize("times", [0, 1, 2])
def test_a_worker_that_is_lost_before_it_begins_is_started_again(times):
    crew, lost = losing(times)
    with crew.open() as (executor, width):
        assert executor.submit(len, "abc").result() == 3
        assert width() == 1
    assert len(lost) == times


def test_workers_that_are_lost_at_every_start_are_an_error_that_blames_nobody():
    crew, lost = losing(9)
    said = "the workers were lost 3 times before they began"
    with pytest.raises(RuntimeError, match=said) as error, crew.open():
        pass
    assert len(lost) == 3
    assert "modules that they can import" not in str(error.value)


def test_networks_for_workers_lie_in_no_file(tmp_path, monkeypatch):
    seen = []

    class Looking(Progress):
        def advance(self, outcome):
            seen.extend(path for path in tmp_path.rglob("*") if path.is_file())

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    run(None, workers=2, trials=1, attacks={}, progress=Looking())
    assert not seen
