"""A run's result depends on its plan alone: not on order, stops, kills, workers or failures."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from concurrent.futures import Executor, Future
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from killed_runs import killed_until_done, recorded
from toy_evaluation import (
    Ascent,
    Failing,
    Greedy,
    Noisy,
    Unreadable,
    defences,
    found,
    images,
    run,
    run_here,
)

from benchmarks.common.table_text import shares
from scoreopt_defense.evaluation import AnyStep, Judging, Stopped, Store, evaluate
from scoreopt_defense.evaluation.evaluate import materials_of
from scoreopt_defense.evaluation.plan import Plan
from scoreopt_defense.evaluation.record import store as storing
from scoreopt_defense.evaluation.record.export import right_counts
from scoreopt_defense.evaluation.run import scheduler
from scoreopt_defense.evaluation.run.progress import Lines, Progress
from scoreopt_defense.evaluation.run.workers import Crew, in_process


@pytest.fixture(scope="module")
def forked():
    """Processes that start with torch imported and nothing of it used."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["scoreopt_defense.evaluation", "hypothesis", "scipy.stats"])
    return context


@pytest.fixture(scope="module")
def whole():
    """The result of a run that nothing disturbed."""
    return found(run(None))


@pytest.mark.parametrize("kills", [20, pytest.param(100, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_goes_on_to_the_identical_result(forked, kills, tmp_path):
    options = {"pause": 0.01, "trials": 2 * kills // 5}  # more units than the kills let through
    counts = killed_until_done(forked, tmp_path, kills, options)
    assert counts == sorted(counts)
    assert 0 < counts[0] < counts[-1] < 27 * options["trials"]
    assert found(run(tmp_path, **options)) == found(run(None, **options))


def test_a_kill_loses_the_units_of_a_moment_and_none_before(forked, tmp_path):
    """As of a run of quick units, many of which are put on the disk together."""
    options = {"pause": 0.02, "trials": 6}
    counts = killed_until_done(forked, tmp_path, 4, options, 0.2)
    assert counts == sorted(counts)
    assert 0 < counts[0] < counts[-1] < 27 * 6
    assert found(run(tmp_path, **options)) == found(run(None, **options))


def children_of(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
def test_two_workers_give_what_one_gives_and_end_with_a_coordinator_that_is_killed(
    forked, tmp_path, whole
):
    process = forked.Process(target=run_here, args=(str(tmp_path), {"workers": 2}))
    process.start()
    while recorded(tmp_path) < 27:  # of 54
        assert process.is_alive()
        time.sleep(0.02)
    workers = children_of(process.pid)
    assert len(workers) >= 2
    process.kill()
    process.join()
    deadline = time.monotonic() + 20
    while any(map(is_alive, workers)):
        assert time.monotonic() < deadline, "workers outlived their coordinator"
        time.sleep(0.05)
    assert 27 <= recorded(tmp_path) < 54
    assert found(run(tmp_path)) == whole


def test_a_unit_that_kills_its_worker_is_recorded_and_the_others_are_done():
    attacks = {"ascent": Ascent(), "deadly": Failing(how="kill")}
    options = {"attacks": attacks, "trials": 1, "defences": {"noisy": Noisy().eval()}}
    x, _ = images(8)
    y = torch.tensor([0, 1, 2, 0, 0, 1, 2, 3])  # deadly on the second batch of four
    result = run(None, workers=2, images=(x, y), **options)
    (failure,) = result.failures
    assert (failure.unit.attack, failure.unit.images) == ("deadly", (4, 8))
    assert "its worker was lost 2 times" in failure.error
    alone = run(None, images=(x, y), **options | {"attacks": {"ascent": Ascent()}})
    assert result.cell("noisy", "ascent").accuracy == alone.cell("noisy", "ascent").accuracy


def test_workers_that_are_lost_in_silence_are_not_waited_for(monkeypatch):
    """A cluster's: no future of theirs ever ends."""
    monkeypatch.setattr(scheduler, "LOOK", 0.01)
    looks = []

    def width():
        looks.append(1)
        if len(looks) > 3:
            raise ConnectionError("lost")
        return 2

    class Silent(Executor):
        def submit(self, *_):
            return Future()

    materials = materials_of(defences(), images(4), (), Judging())
    crew = Crew(lambda: nullcontext((Silent(), width)), "key")
    monkeypatch.setattr(Crew, "open", lambda crew: crew.opened())
    plan = Plan.of(materials)
    with pytest.raises(ConnectionError, match="lost"):
        scheduler.run(plan, materials, Store(), crew, Progress())
    assert len(looks) == 4


@pytest.mark.parametrize(("width", "waits"), [(1, 6), (6, 1)])
def test_long_units_that_end_together_wait_for_the_disk_together(
    width, waits, tmp_path, monkeypatch
):
    class Together(Executor):
        """Does nothing until all that it takes is there."""

        def __init__(self):
            self.calls = []

        def submit(self, call, *arguments):
            self.calls.append((Future(), call, arguments))
            future = self.calls[-1][0]
            if len(self.calls) == width:
                for done, call, arguments in self.calls:
                    outcome = call(*arguments)
                    done.set_result(replace(outcome, result=replace(outcome.result, seconds=1e6)))
                self.calls.clear()
            return future

    monkeypatch.setattr(storing, "_TOGETHER", 1e5)
    materials = materials_of(
        {"noisy": Noisy().eval()}, images(12), {"ascent": Ascent()}, Judging(purifications=1)
    )
    crew = in_process(materials, 1)
    inside = crew.opened

    @contextmanager
    def opened():
        with inside():
            yield Together(), lambda: width

    monkeypatch.setattr(crew, "opened", opened)
    monkeypatch.setattr(Crew, "open", lambda crew: crew.opened())
    commits = []
    monkeypatch.setattr(Store, "commit", lambda store: commits.append(len(store.done())))
    with Store(tmp_path, writing=True) as store:
        plan = store.adopt(Plan.of(materials, batch=4))
        commits.clear()
        scheduler.run(plan, materials, store, crew, Progress())
    assert commits == [*range(6 // waits, 7, 6 // waits), 6]  # the last as it is closed


def test_one_cell_alone_is_the_same_cell_within_a_run(whole):
    alone = run(
        None, defences={"scoreopt": defences()["scoreopt"]}, attacks={"long": Ascent(steps=3)}
    )
    cell = {"defence": "scoreopt", "attack": "long"}
    of_cell = [
        [row for row in rows if cell.items() <= row.items()] for rows in (found(alone), whole)
    ]
    assert of_cell[0] == of_cell[1]
    assert all(row["bytes"] for row in of_cell[0])
    assert len(of_cell[0]) == 6


def test_trials_attacks_and_batches_have_noise_of_their_own():
    x, y = images(1)
    attacks = {"a": Ascent(steps=0), "b": Ascent(steps=0, pause=1e-9)}
    result = run(None, images=(x.repeat(4, 1, 1, 1), y.repeat(4)), batch=2, attacks=attacks)
    starts = [row["bytes"] for row in found(result)
              if row["attack"] in attacks and row["defence"] == "noisy"]  # fmt: skip
    assert len(starts) == len(set(starts)) == 2 * 2 * 2
    other = run(None, images=(x, y), attacks={"a": Ascent(steps=0)}, seed=1)
    assert found(other)[-1]["bytes"] not in starts


def test_batch_sizes_agree_within_their_intervals():
    x, y = images(64)
    small = {"defences": {"noisy": Noisy().eval()}, "attacks": {"ascent": Ascent()}, "trials": 1}
    cells = [
        run(None, images=(x, y), batch=batch, **small).cell("noisy", "ascent").accuracy
        for batch in (1, 7, 32)
    ]
    assert all(0 < cell.value < 1 for cell in cells)
    assert all(cell.low <= other.value <= cell.high for cell in cells for other in cells)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("raise", "KeyError: 'no such thing'"),
        ("nan", "ValueError: the attack returned images that are not finite"),
        ("far", "ValueError: the attack left its threat model on 4 of 4 images"),
        ("shape", "ValueError: the attack must return images of shape (4, 3, 8, 8), got (4, 1,"),
    ],
)
def test_a_failure_is_that_units_and_the_run_goes_on(how, said, tmp_path, capsys):
    attacks = {"bad": Failing(how=how), "ascent": Ascent()}
    x, _ = images(8)
    y = torch.tensor([0, 1, 2, 0, 0, 1, 2, 3])
    model = defences()["one-shot"]
    options = {"batch": 4, "judging": Judging(purifications=2)}
    result = evaluate({"m": model}, (x, y), attacks, out=tmp_path, progress=Lines(), **options)
    (failure,) = result.failures
    assert failure.error.startswith(said)
    assert "failed: bad on m, trial 0, images 4 to 7" in capsys.readouterr().err
    bad, good = (result.cell("m", name) for name in ("bad", "ascent"))
    assert (bad.failed, bad.accuracy.n) == (4, 4)
    assert (good.failed, good.accuracy.n) == (0, 8)
    assert result.weakest("m").n == 8
    again = evaluate({"m": model}, (x, y), attacks, out=tmp_path, **options)
    assert found(again) == found(result)


def test_a_cell_that_failed_altogether_has_no_figure():
    x, _ = images(2)
    result = run(None, images=(x, torch.tensor([3, 3])), attacks={"bad": Failing()}, trials=1)
    assert result.cell("noisy", "bad").accuracy is None
    assert " -  " in str(result)
    assert "\nfailed: bad on noisy, 2 images: KeyError: 'no such thing'" in str(result)
    assert str(result).splitlines()[1].endswith("  attack failed")


@pytest.mark.parametrize("kind", [torch.int32, torch.uint8, torch.uint16, torch.uint64])
def test_labels_of_any_whole_type_are_the_same_run(kind):
    x, y = images(8)
    assert found(run(None, images=(x, y.to(kind)))) == found(run(None, images=(x, y)))


def test_a_defence_that_fails_is_recorded_too(capsys):
    class Broken(torch.nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :4] * (float("nan") if len(x) == 2 else 1)

    result = evaluate(Broken(), images(4), {}, batch=2, progress=Lines(every=0.0))
    assert "logits that are not finite" in result.failures[0].error
    said = capsys.readouterr().err
    assert "1 units left\n" in said  # and no time, as none is known


class Twice(Failing):
    """Fails on that batch in one trial of two."""

    def run(self, model, x, y):
        return super().run(model, x, y) if torch.rand(()) < 0.5 else x


@pytest.mark.parametrize("criterion", ["final", "any-step"])
def test_counts_are_of_the_judgements_that_were_made(criterion):
    result = run(
        None, attacks={"some": Twice()}, trials=6, defences=defences()["one-shot"],
        judging=Judging(criterion=criterion, purifications=3),
    )  # fmt: skip
    made = 1 if criterion == "any-step" else 3
    counts = result.counts("DefendedModel", "some")
    failed = {failure.unit.images[0] for failure in result.failures}
    judged = result.judged("DefendedModel", "some")
    for image, (right, of) in counts.items():
        own = judged.images == image
        assert of == made * own.sum()
        assert (of < 6 * made) == (image // 4 * 4 in failed)
        assert right / of == pytest.approx(result.shares("DefendedModel", "some")[image])
        if criterion == "final":
            assert right == judged.right[own].sum()
    assert len({of for _, of in counts.values()}) > 1
    written = right_counts(result, "DefendedModel", "some")
    assert shares(written) == {i: right / of for i, (right, of) in counts.items()}


@pytest.mark.parametrize("error", ["cuda", "cpu"])
def test_a_unit_that_does_not_fit_is_done_in_parts_and_says_so(error, capsys):
    attacks = {"greedy": Greedy(most=2, error=error)}
    result = run(
        None, attacks=attacks, images=images(10), batch=5, trials=1, progress=Lines(),
        defences={"noisy": Noisy().eval()},
    )  # fmt: skip
    parts = {(unit.attack, done.parts) for unit, done in result.units()}
    assert parts == {("clean", 1), ("greedy", 3)}  # 5 images: 3 and 2; 3 again: 2 and 1
    assert not result.failures
    assert "out of memory: greedy on noisy" in capsys.readouterr().err
    assert torch.equal(torch.from_numpy(result.adversarial("noisy", "greedy")), images(10)[0])


def test_one_image_that_does_not_fit_is_a_failure():
    result = run(None, attacks={"greedy": Greedy(most=0)}, images=images(2), trials=1)
    assert {failure.error.partition(" (")[0] for failure in result.failures} == {
        "OutOfMemoryError: CUDA out of memory"
    }


class Interrupting(Progress):
    def __init__(self, after: int) -> None:
        self.after, self.seen, self.notes = after, 0, []

    def advance(self, outcome):
        self.seen += 1
        if self.seen == self.after:
            os.kill(os.getpid(), signal.SIGINT)

    def note(self, text):
        self.notes.append(text)


def test_ctrl_c_stops_after_the_unit_in_flight_and_the_run_goes_on(tmp_path, whole):
    before = signal.getsignal(signal.SIGINT)
    watch = Interrupting(after=3)
    with pytest.raises(Stopped, match="stopped with 51 units left; start again to go on"):
        run(tmp_path, progress=watch)
    assert recorded(tmp_path) == 3
    assert signal.getsignal(signal.SIGINT) is before
    assert watch.notes == ["stopping after the units in flight; Ctrl-C again stops at once"]
    assert found(run(tmp_path)) == whole


def test_models_and_generators_are_as_they_were():
    models = defences()
    weights = {name: json.dumps(str(model.state_dict())) for name, model in models.items()}
    state = torch.get_rng_state()
    threads = torch.get_num_threads()

    class Rude(Ascent):
        def run(self, model, x, y):
            for weight in model.parameters():
                weight.requires_grad_(False)
            model.train()
            torch.manual_seed(9)
            return super().run(model, x, y)

    result = evaluate(models, images(4), {"rude": Rude()}, judging=Judging(purifications=1))
    assert not result.failures
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    for name, model in models.items():
        assert json.dumps(str(model.state_dict())) == weights[name]
        assert not any(part.training for part in model.modules())
        assert not model._forward_hooks
        assert not model._forward_pre_hooks


class Careless(Ascent):
    """Leaves the model in train mode."""

    def run(self, model, x, y):
        model.train()
        return super().run(model, x, y)


def test_what_an_attack_leaves_behind_does_not_reach_the_next_unit():
    net = torch.nn.Sequential(torch.nn.Dropout(0.5), defences()["noisy"].net).eval()
    attacks = {"careless": Careless(), "ascent": Ascent()}
    after, alone = (
        run(None, defences={"net": net}, attacks=some, trials=1)
        for some in (attacks, {"ascent": Ascent()})
    )
    assert torch.equal(*(torch.from_numpy(r.adversarial("net", "ascent")) for r in (after, alone)))
    leads = [[row["lead"] for row in found(result) if row["attack"] == "ascent"]
             for result in (after, alone)]  # fmt: skip
    assert leads[0] == leads[1]


def test_the_rows_that_networks_see_are_counted():
    """Judging: 3 purifications of each image; the attack: 2 steps of one pass each."""
    result = run(None, trials=1)
    assert result.cell("noisy").classifier_calls == 12 * 3
    assert result.cell("noisy", "ascent").classifier_calls == 12 * (3 + 2)
    one_shot = result.cell("one-shot", "clean")
    assert (one_shot.denoiser_calls, one_shot.classifier_calls) == (12 * 3, 12 * 3)
    assert result.cell("scoreopt", "clean").denoiser_calls == 12 * 3 * (2 + 1)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"trials": 0}, ValueError, "trials must be a whole number of at least 1, got 0"),
        ({"batch": 0}, ValueError, "batch must be a whole number"),
        ({"seed": -1}, ValueError, "seed must be a whole number of at least 0, got -1"),
        (
            {"threads": 10**5},
            ValueError,
            "threads must be a whole number from 1 to 1024, got 1000",
        ),
        ({"workers": 0}, ValueError, "workers must be a whole number of at least 1, got 0"),
        ({"images": (images()[0] * 255, images()[1])}, ValueError, "divide pixels by 255"),
        (
            {"images": images()[0]},
            TypeError,
            r"images must be \(x, y\), images and labels, .* got Tensor",
        ),
        (
            {"images": (images()[0], images()[1][:3])},
            ValueError,
            r"labels must be integers of shape \(12,\), got torch.int64 of \(3,\)",
        ),
        ({"images": (images()[0], images()[1] - 9)}, ValueError, "classes from 0 on, got -9"),
        ({"images": (images()[0][:0], images()[1][:0])}, ValueError, "images must be at least one"),
        ({"defences": {}}, ValueError, "defences must name at least one"),
        ({"defences": {"m": len}}, TypeError, "defence 'm' must be a torch module"),
        ({"attacks": {"a": 3}}, TypeError, r"attack 'a' must have run\(model, x, y\)"),
        ({"attacks": {"clean": Ascent()}}, ValueError, "no attack may be called 'clean'"),
        ({"attacks": [Ascent(), Ascent()]}, ValueError, "attacks must have names of their own"),
    ],
)
def test_a_wrong_call_is_a_plain_error(change, error, said):
    with pytest.raises(error, match=said):
        run(None, **change)


def test_what_workers_cannot_have_is_said():
    class Local(torch.nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :4]

    with pytest.raises(ValueError, match=r"that can be pickled.*or workers=1"):
        evaluate(Local(), images(2), {}, workers=2)


def test_workers_that_do_not_start_are_said_and_not_waited_for():
    with pytest.raises(RuntimeError, match="the workers did not start"):
        evaluate(Unreadable(), images(2), {}, workers=2)


def test_any_step_is_the_share_that_nothing_broke():
    judging = Judging(criterion=AnyStep(confirm=10), purifications=2)
    result = run(None, judging=judging, trials=1)
    for defence in result.plan.defences:
        cells = {attack: result.judged(defence, attack) for attack in result.plan.tasks}
        lost = {attack: set(of.images[of.whole == 0].tolist()) for attack, of in cells.items()}
        cell = result.cell(defence, "ascent")
        assert cell.robust == cell.unbroken
        assert cell.unbroken.value == pytest.approx(1 - len(lost["ascent"]) / 12)
        weakest = result.weakest(defence)
        assert weakest.value == pytest.approx(1 - len(set().union(*lost.values())) / 12)
