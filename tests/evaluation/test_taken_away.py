"""Machines: one that is taken away says so by SIGTERM, and of several GPUs each has a worker."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from toy_evaluation import Ascent, Noisy, defences, found, images, run

from scoreopt_defense import cli
from scoreopt_defense.cli.evaluation import _accelerators, _sizes
from scoreopt_defense.evaluation import Judging, Stopped, Store
from scoreopt_defense.evaluation.evaluate import materials_of
from scoreopt_defense.evaluation.run import scheduler, workers
from scoreopt_defense.evaluation.run.progress import Progress

SMALL = {"attacks": {"ascent": Ascent()}, "trials": 1, "defences": {"noisy": Noisy().eval()}}


class Terminated(Progress):
    """Sends the signal once so many units are recorded, and so many seconds after one begins."""

    def __init__(self, after: int, later: float = 0.0) -> None:
        self.after, self.later, self.notes = after, later, []

    def advance(self, outcome):
        self.after -= 1
        if not self.after and not self.later:
            os.kill(os.getpid(), signal.SIGTERM)

    def begin(self, unit):
        if self.after <= 0 and self.later:
            threading.Timer(self.later, os.kill, [os.getpid(), signal.SIGTERM]).start()
            self.later = 0.0

    def note(self, text):
        self.notes.append(text)


def test_units_in_flight_are_recorded_and_the_run_goes_on(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    watch = Terminated(after=2)
    with pytest.raises(Stopped, match="stopped with 4 units left") as stop:
        run(tmp_path, progress=watch, **SMALL)
    assert stop.value.by == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
    assert watch.notes == ["stopping after the units in flight, or in 25 s"]
    with Store(tmp_path) as store:
        assert len(store.done()) == 2
    assert found(run(tmp_path, **SMALL)) == found(run(None, **SMALL))


@pytest.mark.parametrize("count", [1, 2])
def test_a_unit_that_takes_too_long_is_given_up(count, tmp_path, monkeypatch):
    monkeypatch.setattr(scheduler, "_GRACE", 0.5)
    slow = SMALL | {"attacks": {"ascent": Ascent(pause=60.0)}, "workers": count}
    started = time.monotonic()
    with pytest.raises(Stopped, match="stopped with 3 units left") as stop:
        run(tmp_path, progress=Terminated(after=3, later=1.0), **slow)
    assert stop.value.by == signal.SIGTERM
    assert time.monotonic() - started < 50
    with Store(tmp_path) as store:
        assert len(store.done()) == 3


def test_the_exit_status_says_to_go_on(tmp_path, monkeypatch, capsys):
    def stopped(*_, **__):
        raise Stopped("stopped with 2 units left; start again to go on", by=signal.SIGTERM)

    module = sys.modules["scoreopt_defense.evaluation.evaluate"]
    monkeypatch.setattr(module, "evaluate_plan", stopped)
    (tmp_path / "a.toml").write_text(
        '[images]\nsource = "mnist"\nn = 2\n[defences.a]\nclassifier = "mnist-tiny"\n'
    )
    assert cli.main(["evaluate", str(tmp_path / "a.toml"), "--out", str(tmp_path / "run")]) == 75
    assert "start again to go on" in capsys.readouterr().err


class Seen(Ascent):
    """Measures which GPU its process sees."""

    def measure(self, model, x, y):
        time.sleep(0.5)  # so that no worker has it all
        return {"gpu": torch.full((len(x),), float(os.environ["CUDA_VISIBLE_DEVICES"]))}


def test_each_worker_sees_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(workers, "_devices", lambda materials: ["3", "5"])
    result = run(None, **SMALL | {"attacks": {"seen": Seen()}, "workers": 2, "batch": 1})
    seen = result.measured("noisy", "seen")["gpu"]
    assert {*seen.values()} == {3.0, 5.0}


def test_on_cuda_there_is_a_worker_a_gpu_unless_it_is_said(monkeypatch):
    on_cpu = materials_of(defences(), images(2), {}, Judging())
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for device, count in {"cuda": 8, "cuda:1": 1}.items():
        assert _accelerators(device) == count
        read = SimpleNamespace(device=device, batch=32, threads=1)
        assert _sizes(read, None, None, None, lambda: None) == (32, 1, count)
        assert _sizes(read, None, 3, None, lambda: None) == (32, 1, 3)
    assert workers._devices(on_cpu) == []
    on_gpu = SimpleNamespace(parameters=lambda: [SimpleNamespace(is_cuda=True)])
    materials = SimpleNamespace(defences={"on a GPU": on_gpu})
    assert workers._devices(materials) == [str(gpu) for gpu in range(8)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert workers._devices(materials) == ["2", "5"]
