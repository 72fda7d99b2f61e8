"""What is shown of a run as it goes on."""

from __future__ import annotations

import io
import re
import sys

import numpy as np
import pytest
from toy_evaluation import defences, images, run

from scoreopt_defense.evaluation import Judging, Unit
from scoreopt_defense.evaluation.evaluate import materials_of
from scoreopt_defense.evaluation.plan import Plan
from scoreopt_defense.evaluation.record.rows import UnitResult
from scoreopt_defense.evaluation.run import progress as display
from scoreopt_defense.evaluation.run.progress import Bars, Lines, Progress, progress
from scoreopt_defense.evaluation.run.unit import Outcome, lost


class Told(Progress):
    """What a run says of its units, in order."""

    def __init__(self):
        self.events = []

    def begin(self, unit):
        self.events.append(("begin", unit.key))

    def advance(self, outcome):
        self.events.append(("advance", outcome.unit.key))


def test_each_unit_is_begun_and_then_recorded():
    told = Told()
    run(None, progress=told)
    keys = [key for _, key in told.events[::2]]
    assert told.events == [(said, key) for key in keys for said in ("begin", "advance")]
    assert len(set(keys)) == len(keys) == 54


def test_the_time_left_goes_by_what_an_image_of_each_cell_took():
    ahead = {("slow", "m"): 10, ("quick", "m"): 30, ("new", "m"): 4}
    met = {("slow", "m"): 5, ("quick", "m"): 15}
    took = {("slow", "m"): 50.0, ("quick", "m"): 30.0}
    foretold = 10 * 10.0 + 30 * 2.0 + 4 * (80.0 / 20)
    assert display._multiple(ahead, met, took) == pytest.approx(foretold / 80.0)


def test_in_a_notebook_it_is_a_bar_of_all_units(monkeypatch, capsys):
    pytest.importorskip("tqdm")
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    shown = progress()
    run(None, progress=shown, trials=1)
    assert (shown.bar.n, shown.bar.total) == (27, 27)
    assert "27/27" in capsys.readouterr().err


@pytest.mark.parametrize("workers", [1, 2])
def test_lines_say_when_nothing_is_left(workers, capsys):
    run(None, progress=Lines(every=0.0), workers=workers, trials=1)
    said = capsys.readouterr().err.splitlines()
    assert said[-1].endswith("complete, about 0 s left")


def test_what_is_counted_is_said_now_and_then_and_in_the_end(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
    with display.counting("draws", 8) as told:
        for _ in range(4):
            now[0] += 20.0
            told(2)
    assert capsys.readouterr().err.splitlines() == [
        "4/8 draws, about 40 s left", "8/8 draws, about 0 s left",
    ]  # fmt: skip


def test_on_a_terminal_what_is_counted_is_a_bar(monkeypatch):
    console = pytest.importorskip("rich.console")
    screen = io.StringIO()
    shown = console.Console(file=screen, force_terminal=True, width=80, color_system=None)
    monkeypatch.setattr(display, "_console", lambda: shown)
    monkeypatch.setattr(display.sys.stderr, "isatty", lambda: True, raising=False)
    with display.counting("draws", 8) as told:
        told(8)
    assert re.search(r"━{12} 8/8 +\S+ draws", screen.getvalue())


@pytest.fixture
def bars(monkeypatch):
    console = pytest.importorskip("rich.console")
    screen = io.StringIO()
    monkeypatch.setattr(
        display, "_console", lambda: console.Console(file=screen, force_terminal=True, width=160)
    )
    made = Bars()
    made.screen = screen
    return made


def test_bars_show_the_run_the_attack_and_how_far_a_batch_is(bars, monkeypatch):
    advance, totals = bars.advance, []

    def looked_at(outcome):
        bars.bars.refresh()
        totals.append(bars.bars.tasks[-1].total)
        advance(outcome)

    monkeypatch.setattr(bars, "advance", looked_at)
    run(None, progress=bars)
    said = bars.screen.getvalue()
    assert "all" in said
    assert "images 0 to 3" in said
    # 3 batches of 2 trials a cell; the first of a cell has no end yet
    assert all((total is None) == (place % 6 == 0) for place, total in enumerate(totals))
    assert len(totals) == 54
    assert bars.bars.tasks[0].completed == bars.bars.tasks[0].total == 54
    assert not bars.flying
    assert not bars.cells


def test_of_thousands_in_flight_a_screenful_is_shown(bars, monkeypatch):
    monkeypatch.setattr(display, "_SHOWN", 2)
    materials = materials_of(defences(), images(), {}, Judging())
    units = list(Plan.of(materials, batch=4).units())
    bars.start(units, set())
    for unit in units[:5]:
        bars.begin(unit)
    assert list(bars.flying) == [unit.key for unit in units[:2]]
    for unit in (units[4], units[0]):  # one that is not shown, and one that is
        bars.advance(lost(unit, materials.images.labels, "it was"))
    bars.begin(units[5])
    bars.stop()
    assert list(bars.flying) == [units[1].key, units[5].key]


def test_a_batch_is_as_far_as_its_seconds_are(bars, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
    whole, half, odd = (
        Unit(f"{end}", "d", "a", "", "", 0, (first, end), 0)
        for first, end in ((0, 4), (4, 6), (6, 7))
    )
    nothing = np.zeros(0, dtype=int)

    def took(unit, seconds, error=None):
        done = UnitResult(
            key=unit.key, defence="", task="", images=unit.size, places=nothing, labels=nothing,
            seconds=seconds, error=error,
        )  # fmt: skip
        bars.advance(Outcome(unit, done))

    bars.left = {("a", "d"): 3}
    bars.run = bars.bars.add_task("all", total=3)
    took(whole, 40.0)
    bars.begin(half)
    now[0] += 5.2
    bars.bars.get_renderable()
    task = bars.bars.tasks[-1]
    assert (task.completed, task.total) == (5, 20)
    assert task.description == "  a on d, trial 0, images 4 to 5"
    took(half, 1.0, "RuntimeError: it failed at once")  # which says nothing of the next
    bars.begin(odd)
    bars.bars.get_renderable()
    assert (bars.bars.tasks[-1].completed, bars.bars.tasks[-1].total) == (0, 10)
    bars.begin(odd)  # once more, as its worker was lost
    assert len(bars.flying) == 1


@pytest.mark.parametrize("width", [60, 80, 100])
def test_a_narrow_terminal_cuts_names_alone(width, monkeypatch):
    console, text = pytest.importorskip("rich.console"), pytest.importorskip("rich.text")
    screen = io.StringIO()
    shown = console.Console(file=screen, force_terminal=True, width=width, color_system=None)
    monkeypatch.setattr(display, "_console", lambda: shown)
    bars = Bars()
    unit = Unit("k", "d" * 70, "[b]momentum PGD", "", "", 0, (0, 32), 0)
    bars.each = {(unit.attack, unit.defence): 2.0}
    bars.bars.add_task("all units", total=1234, completed=567)
    bars.begin(unit)
    shown.print(bars.bars.get_renderable())
    whole, flying = (line for line in screen.getvalue().splitlines() if line)
    assert re.fullmatch(r".{12} +567/1234 -+:-- all units *", whole)
    assert re.fullmatch(r".{12} +0/64 s -+:--   \[b\]momentum PGD on d+…", flying)
    assert text.Text(flying).cell_len == width
