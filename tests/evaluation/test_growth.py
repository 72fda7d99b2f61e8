"""A record grows: a change costs itself alone, what was there stays, and one process writes."""

from __future__ import annotations

import os
import platform
import shutil
import sqlite3
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import toy_evaluation
from toy_evaluation import (
    EPS,
    Ascent,
    Failing,
    Noisy,
    Toy,
    defences,
    found,
    images,
    in_images,
    run,
)

from scoreopt_defense import cli
from scoreopt_defense.evaluation import AnyStep, Judging, Result, Store, StoreError, Suite
from scoreopt_defense.evaluation.evaluate import materials_of
from scoreopt_defense.evaluation.plan import Plan
from scoreopt_defense.evaluation.plan import plan as planning
from scoreopt_defense.evaluation.plan.tasks import Attack, Judge, Worst
from scoreopt_defense.evaluation.record.contents import take_out
from scoreopt_defense.evaluation.report import run_page
from scoreopt_defense.evaluation.run.progress import Progress
from scoreopt_defense.evaluation.suite.adaptive import Adaptive

X, Y = images(20)
#: Three batches of clean images, and three of an attack.
BASE = {
    "attacks": {"ascent": Ascent()},
    "trials": 1,
    "defences": {"noisy": Noisy().eval()},
    "images": (X[:12], Y[:12]),
}


class Told(Progress):
    """Which units were carried out, and what was said meanwhile."""

    def __init__(self):
        self.units, self.notes = [], []

    def advance(self, outcome):
        self.units.append(outcome.unit)

    def note(self, text):
        self.notes.append(text)


def carried_out(out, **options):
    """The result of a run, and how many units it did itself."""
    told = Told()
    result = run(out, **BASE | options, progress=told)
    return result, len(told.units)


def kept(out: Path):
    """All rows of results, and all images."""
    with sqlite3.connect(out / "record.sqlite") as database:
        rows = {row[0]: row for row in database.execute('SELECT "key", * FROM units')}
    return rows | toy_evaluation.kept(out)


@pytest.fixture(scope="module")
def of_all(tmp_path_factory):
    folder = tmp_path_factory.mktemp("of all")
    run(folder, **BASE).store.close()
    return folder


@pytest.fixture
def begun(of_all, tmp_path):
    return shutil.copytree(of_all, tmp_path / "record")


class Other(Ascent):
    """Another attack, of the same settings."""

    def run(self, model, x, y):
        return (super().run(model, x, y) + x) / 2


Edited = type("Ascent", (Other,), {"__doc__": "Of the same name too."})


class Chain(Suite):
    """Two attacks in a row, the first of which is a table's column too."""

    def __init__(self, first=None):
        self.first = first or Ascent()

    def tasks(self, model, x):
        one = Attack(attack=self.first)
        two = Attack(attack=Ascent(steps=3), begins_from=["one"])
        worst = Judge(attack=Worst(norm="linf", eps=EPS), begins_from=["one", "two"])
        return {"one": one, "two": two, "": worst}


def other_weights():
    model = Noisy().eval()
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1e-6
    return {"noisy": model}


def other_answers():
    model = Noisy().eval()
    model.net.register_forward_hook(lambda module, x, y: y + torch.arange(4) / 10)
    return {"noisy": model}


#: By kind of change, what is given, and how many units that is more than :data:`BASE`.
CHANGES = {
    "none": ({}, 0),
    "another attack": ({"attacks": {"ascent": Ascent(), "long": Ascent(steps=3)}}, 3),
    "another attack before it": ({"attacks": {"long": Ascent(steps=3), "ascent": Ascent()}}, 3),
    "no attack": ({"attacks": {}}, 0),
    "an attack's settings": ({"attacks": {"ascent": Ascent(eps=0.2)}}, 3),
    "an attack's code": ({"attacks": {"ascent": Edited()}}, 3),
    "another defence": ({"defences": BASE["defences"] | {"two": defences()["one-shot"]}}, 6),
    "a defence's weights": ({"defences": other_weights()}, 6),
    "a defence's answers": ({"defences": other_answers()}, 6),
    "more images": ({"images": (X, Y)}, 4),
    "fewer images": ({"images": (X[:8], Y[:8])}, 0),
    "images that part a batch": ({"images": (X[:6], Y[:6])}, 2),
    "images in another order": ({"images": (X[:12].flip(0), Y[:12])}, 6),
    "other labels": ({"images": (X[:12], Y[:12].flip(0))}, 6),
    "another trial": ({"trials": 2}, 6),
    "another seed": ({"seed": 1}, 6),
    "another size of batches": ({"batch": 6}, 4),
    "more purifications": ({"judging": Judging(purifications=4)}, 6),
    "another criterion": ({"judging": Judging(criterion=AnyStep(confirm=2), purifications=3)}, 6),
    "threads": ({"threads": 2}, 6),
    "a suite": ({"suites": {"chain": Chain()}}, 6),
    "the checks": ({"checks": True}, 9),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_change_costs_itself_alone_and_what_was_there_stays(kind, begun):
    change, units = CHANGES[kind]
    before = kept(begun)
    grown, done = carried_out(begun, **change)
    assert done == units
    assert kept(begun).items() >= before.items()
    assert found(grown) == found(run(None, **BASE | change))
    after = kept(begun)
    again, done = carried_out(begun)
    assert done == 0
    assert kept(begun) == after
    assert found(again) == found(run(None, **BASE))


def test_a_defence_of_other_versions_is_another_one_beside_it(begun, monkeypatch):
    before = kept(begun)
    monkeypatch.setattr("scoreopt_defense.__version__", "9.9")
    result, done = carried_out(begun)
    assert done == 6
    assert kept(begun).items() >= before.items()
    said = [known.versions["scoreopt_defense"] for known in result.store.defences()]
    assert [text.startswith("9.9,") for text in said] == [False, True]


@pytest.mark.parametrize(("roundings", "units"), [(0.5, 0), (-0.5, 0), (3.0, 6), (-3.0, 6)])
def test_a_defence_that_answers_alike_within_rounding_is_the_known_one(
    roundings, units, begun, monkeypatch
):
    """As on another machine."""
    asked = planning.behaviour

    def elsewhere(*arguments):
        found = asked(*arguments)
        return {
            name: about | {"of": [n + roundings * about["rounding"] for n in about["of"]]}
            for name, about in found.items()
        }

    monkeypatch.setattr(planning, "behaviour", elsewhere)
    result, done = carried_out(begun)
    assert done == units
    assert len(result.store.defences()) == 1 + (units > 0)
    monkeypatch.undo()
    assert (found(result) == found(run(None, **BASE))) is (units == 0)


LABELS = {
    "an attack": {"attacks": {"other": Ascent()}},
    "a defence": {"defences": {"other": Noisy().eval()}},
    "a suite": {"suites": {"other": Chain()}},
    "all": {
        "attacks": {"a": Ascent()}, "defences": {"d": Noisy().eval()}, "suites": {"s": Chain()},
        "name": "another run",
    },
}  # fmt: skip


@pytest.mark.parametrize("what", LABELS)
def test_another_label_recomputes_nothing(what, tmp_path):
    first = run(tmp_path, **BASE | {"suites": {"chain": Chain()}})
    change = {"suites": {"chain": Chain()}} | LABELS[what]
    second, done = carried_out(tmp_path, **change)
    assert done == 0
    names = ("defence", "attack")
    rows = [[{k: v for k, v in row.items() if k not in names} for row in found(result)]
            for result in (first, second)]  # fmt: skip
    assert rows[0] == rows[1]  # and its seeds, which went by the label that it had first
    assert [cell.robust for cell in second.cells] == [cell.robust for cell in first.cells]
    assert list(second.plan.defences) == list((BASE | change)["defences"])


def test_the_adaptive_suite_by_any_name_asks_for_the_same_units():
    plans = [
        Plan.of(materials_of(BASE["defences"], (X, Y), (), Judging(), {name: Adaptive()}))
        for name in ("adaptive", "other")
    ]
    assert plans[0].hash == plans[1].hash
    assert plans[0].sums == {"adaptive"}


def test_an_attack_of_two_names_is_done_once():
    result, done = carried_out(None, attacks={"a": Ascent(), "b": Ascent()})
    assert done == 6
    a, b = ([row | {"attack": ""} for row in found(result) if row["attack"] == n] for n in "ab")
    assert len(a) == 3
    assert a == b


def test_attacks_that_say_the_same_of_themselves_are_no_one_attack():
    class Silent(Toy):
        def __init__(self, by):
            super().__init__()
            object.__setattr__(self, "hidden", [by])  # where no key looks

        def __eq__(self, other):
            return self.by == other.by

        @property
        def by(self):
            return self.hidden[0]

        def run(self, model, x, y):
            return x + self.by

    with pytest.raises(ValueError, match=r"attacks 'a' and 'b' say the same .*as_dict\(\) must"):
        run(None, **BASE | {"attacks": {"a": Silent(0.0), "b": Silent(0.01)}})
    assert carried_out(None, attacks={"a": Silent(0.0), "b": Silent(0.0)})[1] == 6


def test_an_attack_that_takes_anothers_name_is_not_taken_for_it(begun):
    before = found(begun)
    result, done = carried_out(begun, attacks={"ascent": Ascent(steps=3), "old": Ascent()})
    assert done == 3
    assert [row for row in found(result) if row["attack"] == "old"] == [
        row | {"attack": "old"} for row in before if row["attack"] == "ascent"
    ]


def test_runs_of_other_names_share_what_they_share(begun):
    grown = {"attacks": {"ascent": Ascent(), "long": Ascent(steps=3)}, "trials": 2}
    second, done = carried_out(begun, **grown, name="second")
    assert done == 3 * 3 * 2 - 6
    assert carried_out(begun, **grown, name="second")[1] == 0
    with Store(begun) as store:
        assert list(store.views()) == ["evaluation", "second"]
        first = Result(store, store.plan("evaluation"))
        assert found(first) == found(run(None, **BASE))
        assert found(Result(store)) == found(second) == found(run(None, **BASE | grown))
        assert first.view.name == "evaluation"
        with pytest.raises(ValueError, match=r"view must be one of \['evaluation', 'second'\]"):
            store.plan("third")


FAULT = []  # while it holds something, the attack below fails


@dataclass(frozen=True)
class Flaky(Toy):
    """On the second batch alone."""

    def run(self, model, x, y):
        if FAULT and torch.equal(x[0], X[4]):
            raise RuntimeError("the machine had a bad day")
        return x


@pytest.mark.parametrize(
    ("given", "redone"),
    [({"attacks": {"flaky": Flaky()}}, 1), ({"suites": {"chain": Chain(Flaky())}}, 3)],
)
def test_what_failed_is_done_again_when_asked_and_what_began_from_it(given, redone, tmp_path):
    FAULT.append(1)
    try:
        result, _ = carried_out(tmp_path, **given)
        assert [failure.unit.images for failure in result.failures] == [(4, 8)]
        assert carried_out(tmp_path, **given)[1] == 0
        again, done = carried_out(tmp_path, **given, retry_failed=True)
        assert (done, len(again.failures)) == (redone, 1)
    finally:
        FAULT.clear()
    assert carried_out(tmp_path, **given)[1] == 0
    result, done = carried_out(tmp_path, **given, retry_failed=True)
    assert done == redone
    assert not result.failures
    assert found(result) == found(run(None, **BASE | given))
    assert carried_out(tmp_path, **given, retry_failed=True)[1] == 0


def test_a_failure_of_another_run_is_left_when_one_is_done_again(tmp_path):
    attacks = {"bad": Failing()}
    run(tmp_path, **BASE | {"attacks": attacks, "name": "first"})
    _, done = carried_out(tmp_path, name="second", retry_failed=True)
    assert done == 3  # of its own attack
    with Store(tmp_path) as store:
        assert len(Result(store, store.plan("first")).failures) == 3


# --- what a record holds, and how it is taken out -------------------------------------------------

MUCH = {
    "attacks": {"ascent": Ascent(), "bad": Failing()},
    "suites": {"chain": Chain()},
    "defences": BASE["defences"] | {"one-shot": defences()["one-shot"]},
}


@pytest.fixture(scope="module")
def of_much(tmp_path_factory):
    folder = tmp_path_factory.mktemp("of much")
    run(folder, **BASE | MUCH).store.close()
    return folder, found(folder)


@pytest.fixture
def much(of_much, tmp_path):
    return shutil.copytree(of_much[0], tmp_path / "record")


#: What is taken out, and how many units that is: three batches, five tasks, two defences.
TAKEN = {
    "a defence": ({"defences": ["noisy"]}, 15),
    "all defences": ({"defences": ["noisy", "one-shot"]}, 30),
    "an attack, and all that began from it": ({"attacks": ["ascent"]}, 18),
    "the same by its other name": ({"attacks": ["chain/one"]}, 18),
    "a suite's second attack": ({"attacks": ["chain/two"]}, 12),
    "a suite's sum": ({"attacks": ["chain"]}, 6),
    "the clean images": ({"attacks": ["clean"]}, 6),
    "what failed": ({"failed": True}, 6),
    "a run": ({"views": ["evaluation"]}, 0),
    "a sum, if it failed": ({"attacks": ["chain"], "failed": True}, 0),
    "an attack on a defence": ({"attacks": ["chain/two"], "defences": ["noisy"]}, 6),
}


@pytest.mark.parametrize("kind", TAKEN)
def test_what_is_taken_out_is_gone_alone_and_can_be_done_again(kind, much, of_much):
    what, units = TAKEN[kind]
    with Store(much, writing=True) as store:
        assert take_out(store, **what) == units
        assert len(store.done()) == 30 - units
        assert list(store.views()) == ([] if kind == "a run" else ["evaluation"])
    with Store(much) as store:
        made = {done.key for done in store.read() if done.adversarial}
        assert store.pixels.held().keys() == made
    held = in_images(much, "SELECT DISTINCT digest FROM held")
    assert {digest for (digest,) in held} == toy_evaluation.kept(much).keys()
    with Store(much) as store:
        if kind != "a run":
            assert str(Result(store))
    assert cli.main(["runs", str(much)]) == 0
    told = Told()
    again = run(much, **BASE | MUCH, progress=told)
    assert len(told.units) == units
    assert found(again) == of_much[1]


def test_a_defence_is_known_by_the_start_of_its_fingerprint(much):
    with Store(much, writing=True) as store:
        first, second = (known.id for known in store.defences())
        assert take_out(store, defences=[first[:10]]) == 15
        assert [known.id for known in store.defences()] == [second]
        with pytest.raises(ValueError, match=r"defence must be one of .*or a fingerprint, got"):
            take_out(store, defences=[first[:10]])


def test_a_name_with_a_comma_is_one_name(tmp_path):
    """As those of the adaptive suite's attacks are."""
    attacks = {"PGD, exact": Ascent(), "exact": Ascent(steps=3)}
    run(tmp_path, **BASE | {"attacks": attacks}).store.close()
    with Store(tmp_path, writing=True) as store:
        assert take_out(store, attacks=["PGD, exact"]) == 3
        assert take_out(store, attacks=["exact"]) == 3
        store.forget_view("evaluation")
        with pytest.raises(ValueError, match="defence must be one of"):
            take_out(store, defences=[""])  # of no run, and so without a name
        assert len(store.done()) == 3


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ({"defences": ["no"]}, r"defence must be one of \['noisy', 'one-shot'\]"),
        ({"defences": [""]}, "defence must be one of"),
        ({"attacks": ["no"]}, r"attack must be one of \['ascent', 'bad', 'chain', 'chain/one', "),
        ({"views": ["no"]}, r"view must be one of \['evaluation'\], got 'no'"),
        ({"views": ["evaluation"], "attacks": ["no"]}, "attack must be one of"),
        ({"views": ["evaluation", "no"]}, "view must be one of"),
    ],
)
def test_what_the_record_does_not_know_is_said_and_nothing_taken_out(what, said, much):
    before = kept(much)
    with Store(much, writing=True) as store:
        with pytest.raises(ValueError, match=said):
            take_out(store, **what)
        assert list(store.views()) == ["evaluation"]
    assert kept(much) == before


def test_the_commands_list_and_take_out(much, capsys):
    assert cli.main(["runs", str(much)]) == 0
    runs, defended, attacks = capsys.readouterr().out.strip().split("\n\n")
    assert runs.splitlines()[1].split()[0] == "evaluation"
    assert runs.splitlines()[1].split()[-7:] == ["UTC", "30", "30", "noisy,", "one-shot", "12", "1"]
    counts = {line.split()[0]: line.split()[2:4] for line in defended.splitlines()[1:]}
    assert counts == {"noisy": ["15", "3"], "one-shot": ["15", "3"]}
    assert "ascent, chain/one" in attacks
    assert [line.split()[2:4] for line in attacks.splitlines() if line.startswith("bad ")] == [
        ["6", "6"]
    ]
    assert cli.main(["forget", str(much), "--failed", "--attack", "chain/two"]) == 0  # no such
    assert capsys.readouterr().out == "0 results are forgotten\n"
    for option, gone in ((["--failed"], 6), (["--attack", "chain/two"], 12)):
        assert cli.main(["forget", str(much), *option]) == 0
        assert capsys.readouterr().out == f"{gone} results are forgotten\n"
    assert cli.main(["forget", str(much), "--defence", "noisy"]) == 0
    assert capsys.readouterr().out == "6 results are forgotten\n"
    assert cli.main(["forget", str(much), "--defence", "nosy"]) == 1
    assert "scoreopt: defence must be one of" in capsys.readouterr().err
    assert cli.main(["forget", str(much), "--view", "evaluation"]) == 0
    with Store(much) as store:
        assert (len(store.done()), len(store.views())) == (6, 0)
    assert cli.main(["forget", str(much)]) == 2
    assert "--defence NAME" in capsys.readouterr().err
    nowhere = much.parent / "nowhere"
    assert cli.main(["forget", str(nowhere), "--failed"]) == 1
    assert not nowhere.exists()


def test_a_page_and_a_file_of_each_run_of_a_record(begun, capsys):
    run(begun, **BASE | {"attacks": {"<b>": Ascent()}, "name": "a/b"}).store.close()
    assert cli.main(["report", str(begun), "--all"]) == 0
    pages = sorted(path.name for path in begun.glob("*.html"))
    assert pages == ["report-a_b.html", "report-evaluation.html"]
    with Store(begun) as store:
        assert run_page(store, view="evaluation") != run_page(store, view="a/b")
        assert run_page(store) == run_page(store, view="a/b")
    for view, attack in (("evaluation", "ascent"), ("a/b", "<b>")):
        file = begun / "rows.csv"
        assert cli.main(["export", str(begun), "--csv", str(file), "--view", view]) == 0
        assert {line.split(",")[1] for line in file.read_text().splitlines()[1:]} == {
            "clean", attack
        }  # fmt: skip
    assert cli.main(["export", str(begun), "--csv", str(file), "--view", "c"]) == 1
    assert "view must be one of ['evaluation', 'a/b'], got 'c'" in capsys.readouterr().err


# --- one process writes ---------------------------------------------------------------------------

HELD = f"another process is writing this record .process {os.getpid()} on {platform.node()}, since"


def test_another_process_that_writes_is_said_at_once_and_readers_are_let_in(tmp_path):
    class Second(Progress):
        errors = ()

        def advance(self, outcome):
            process = subprocess.run(
                [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True,
                cwd=Path(__file__).parents[1],
            )  # fmt: skip
            with pytest.raises(StoreError, match=HELD) as error:
                run(tmp_path, **BASE)
            with Store(tmp_path) as reader:
                self.errors += (process.stderr, str(error.value), list(reader.views()))
            self.advance = lambda outcome: None

    script = f"import toy_evaluation as t, pathlib; t.run(pathlib.Path({str(tmp_path)!r}))"
    second = Second()
    result = run(tmp_path, **BASE, progress=second)
    said, said_here, views = second.errors
    assert "Held" in said
    assert said_here in said
    assert "wait until it has ended, or give another folder" in said_here
    assert views == ["evaluation"]
    assert found(run(tmp_path, **BASE)) == found(result) == found(run(None, **BASE))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_run_that_ends_by_an_error_leaves_the_folder_to_others(error, tmp_path):
    class Ending(Progress):
        def advance(self, outcome):
            raise error("enough")

    with pytest.raises(error, match="enough"):
        run(tmp_path, **BASE, progress=Ending())
    result, done = carried_out(tmp_path)
    assert done == 5
    assert found(result) == found(run(None, **BASE))


def test_a_result_that_is_still_open_keeps_nobody_from_writing(begun):
    first, _ = carried_out(begun)
    second, done = carried_out(begun, trials=2)
    assert done == 6
    assert found(first) == [row for row in found(second) if row["trial"] == 0]


def test_whoever_waits_goes_on_as_soon_as_the_record_is_free(begun, monkeypatch):
    holder, told = Store(begun, writing=True), Told()
    monkeypatch.setattr(time, "sleep", lambda _: holder.unlock())
    run(begun, **BASE | {"trials": 2}, wait=True, progress=told)
    (said,) = told.notes
    assert said.startswith(f"waiting: {begun}: another process is writing this record (process ")
    assert len(told.units) == 6


def started(out, **options):
    """Another process that evaluates, once it has begun to write."""
    script = f"import pathlib, toy_evaluation as t; t.run_here({str(out)!r}, {options!r})"
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", script], cwd=Path(__file__).parents[1]
    )
    deadline = time.monotonic() + 120
    while not (out / "record.holder").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def test_what_the_other_process_did_is_not_done_again_by_one_that_waited(tmp_path):
    process, told = started(tmp_path, trials=1, pause=0.1), Told()
    result = run(tmp_path, trials=1, pause=0.1, wait=True, progress=told)
    assert process.wait() == 0
    assert f"(process {process.pid} on " in told.notes[0]
    assert not told.units
    assert found(result) == found(run(None, trials=1, pause=0.1))


def test_a_process_that_was_killed_holds_no_record(tmp_path):
    process = started(tmp_path, trials=1, pause=0.1)
    with pytest.raises(StoreError, match=f"process {process.pid} on {platform.node()}"):
        run(tmp_path, trials=1, pause=0.1)
    process.kill()
    process.wait()
    assert (tmp_path / "record.holder").exists()
    assert found(run(tmp_path, trials=1, pause=0.1)) == found(run(None, trials=1, pause=0.1))
    assert not (tmp_path / "record.holder").exists()
