"""How far a run is: bars where there is a terminal, plain lines where there is none."""

from __future__ import annotations

import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

from scoreopt_defense._text import printable
from scoreopt_defense.evaluation.plan import Unit
from scoreopt_defense.evaluation.run.unit import Outcome

__all__ = ["Lines", "Progress", "counting", "duration", "progress", "waiting"]

_Cell = tuple[str, str]  # attack, defence
_SHOWN = 32  # bars of units in flight; to draw a cluster's 2,000 would take all the time there is


class Progress:
    """Told of each unit; this one keeps silent."""

    def start(self, units: Sequence[Unit], done: Collection[str]) -> None:
        """A run of these units begins, or goes on after those of these keys."""

    def begin(self, unit: Unit) -> None:
        """A unit is handed to a worker; once more if that is lost."""

    def advance(self, outcome: Outcome) -> None:
        """A unit is recorded."""

    def note(self, text: str) -> None:
        """Something that the user should know."""

    def stop(self) -> None:
        """The run ends."""


class Lines(Progress):
    """A line when a cell is complete, and one at least every ``every`` seconds."""

    def __init__(self, every: float = 30.0) -> None:
        self.every = every

    def start(self, units: Sequence[Unit], done: Collection[str]) -> None:
        self.left = _left(units, done)
        self.ahead = _left(units, done, lambda unit: unit.size)  # images; those met, and their time
        self.met: Counter[_Cell] = Counter()
        self.took: defaultdict[_Cell, float] = defaultdict(float)
        self.total, self.done = len(units), sum(unit.key in done for unit in units)
        self.started = self.said = time.monotonic()
        self.note(f"{self.total} units, {self.done} of them recorded before")

    def advance(self, outcome: Outcome) -> None:
        cell, images = _cell(outcome.unit), outcome.unit.size
        self.done, self.left[cell] = self.done + 1, self.left[cell] - 1
        self.ahead[cell] -= images
        if not outcome.result.error:
            self.met[cell] += images
            self.took[cell] += outcome.result.seconds
        now = time.monotonic()
        if self.left[cell] and now - self.said < self.every:
            return
        self.said = now
        state = f"{self.left[cell]} units left" if self.left[cell] else "complete"
        if self.took:
            still = (now - self.started) * _multiple(self.ahead, self.met, self.took)
            state += f", about {duration(still)} left"
        self.note(f"{self.done}/{self.total} units, {cell[0]} on {cell[1]} {state}")

    def note(self, text: str) -> None:
        print(printable(text), file=sys.stderr, flush=True)


class Bars(Progress):
    """Bars of rich's: of the run, of the attack under way, and of each batch in flight.

    A line is a bar, a count, the time left and, in what width there is, a name. A batch is as far
    as its seconds are, of those that the last one of its attack and defence took; the first has no
    end to show.
    """

    def __init__(self) -> None:
        self.cells: dict[_Cell, Any] = {}
        self.flying: dict[str, tuple[Any, float]] = {}
        self.each: dict[_Cell, float] = {}  # seconds of an image of a cell
        self.bars = _bars(self._move)

    def start(self, units: Sequence[Unit], done: Collection[str]) -> None:
        self.left = _left(units, done)
        before = sum(unit.key in done for unit in units)
        self.run = self.bars.add_task("all units", total=len(units), completed=before)
        self.bars.start()

    def begin(self, unit: Unit) -> None:
        self._land(unit)
        if len(self.flying) >= _SHOWN:
            return
        each = self.each.get(_cell(unit))
        total = None if each is None else max(1, round(each * unit.size))
        task = self.bars.add_task(printable(f"  {unit}"), total=total, by_seconds=True)
        self.flying[unit.key] = task, time.monotonic()

    def _move(self) -> None:
        for task, begun in list(self.flying.values()):
            with suppress(KeyError):  # landed meanwhile: rich draws in a thread of its own
                self.bars.update(task, completed=int(time.monotonic() - begun))

    def _land(self, unit: Unit) -> None:
        if unit.key in self.flying:
            self.bars.remove_task(self.flying.pop(unit.key)[0])

    def advance(self, outcome: Outcome) -> None:
        cell = _cell(outcome.unit)
        self._land(outcome.unit)
        if not outcome.result.error:
            self.each[cell] = outcome.result.seconds / outcome.unit.size
        if cell not in self.cells:
            said = printable(f"{cell[0]} on {cell[1]}")
            self.cells[cell] = self.bars.add_task(said, total=self.left[cell])
        self.left[cell] -= 1
        self.bars.advance(self.run)
        self.bars.advance(self.cells[cell])
        if not self.left[cell]:
            self.bars.remove_task(self.cells.pop(cell))

    def note(self, text: str) -> None:
        self.bars.console.print(printable(text), markup=False)

    def stop(self) -> None:
        self.bars.stop()


def _bars(moved: Callable[[], None] = lambda: None) -> Any:
    """Those of rich's, a line each; what is moved is done before they are drawn.

    Raises:
        ImportError: without rich.
    """
    import rich.progress as bars
    from rich.table import Column

    class Moving(bars.Progress):
        def get_renderables(self) -> Iterable[Any]:
            moved()
            return super().get_renderables()

    class Count(bars.MofNCompleteColumn):
        def render(self, task: Any) -> Any:
            return super().render(task).append(" s" * task.fields.get("by_seconds", False))

    # the name last, which takes what width is left: of a narrow terminal too
    return Moving(
        bars.BarColumn(bar_width=12),
        Count(table_column=Column(no_wrap=True, justify="right")),
        bars.TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
        bars.TextColumn(
            "{task.description}",
            markup=False,
            table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1),
        ),
        console=_console(),
        expand=True,
    )


def progress() -> Progress:
    """Bars on a terminal that has rich, one in a notebook that has tqdm, else lines; on stderr."""
    with suppress(ImportError):
        if sys.stderr.isatty():
            return Bars()
        if "ipykernel" in sys.modules:
            from scoreopt_defense.evaluation.run.notebook import NotebookBar

            return NotebookBar()
    return Lines()


@contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Count to a total on stderr, by a bar where :func:`progress` has bars.

    Elsewhere it is a line at the end, and one every 30 seconds before.
    """
    try:
        bars = _bars() if sys.stderr.isatty() else None
    except ImportError:
        bars = None
    if bars is not None:
        with bars:
            yield partial(bars.advance, bars.add_task(printable(what), total=total))
        return
    done, begun = 0, time.monotonic()
    said = begun

    def advance(count: int) -> None:
        nonlocal done, said
        done, now = done + count, time.monotonic()
        if done >= total or now - said >= 30:
            said = now
            left = duration((now - begun) * (total - done) / done)
            print(
                printable(f"{done}/{total} {what}, about {left} left"), file=sys.stderr, flush=True
            )

    yield advance


@contextmanager
def waiting(what: str) -> Iterator[Callable[[str], None]]:
    """Say on stderr what is waited for; on a terminal that has rich, each step of it too."""
    with ExitStack() as shown:
        try:
            status = _console().status(_plain(what)) if sys.stderr.isatty() else None
        except ImportError:
            status = None
        if status is None:
            print(printable(what), file=sys.stderr, flush=True)
            yield lambda step: None
        else:
            shown.enter_context(status)
            yield lambda step: status.update(_plain(f"{what}: {step}"))


def _plain(text: str) -> Any:
    """Text in which nothing is rich's markup, on one line."""
    from rich.text import Text

    return Text(printable(text), no_wrap=True, overflow="ellipsis")


def _console() -> Any:
    from rich.console import Console

    return Console(stderr=True)


def _cell(unit: Unit) -> _Cell:
    return unit.attack, unit.defence


def _left(
    units: Iterable[Unit], done: Collection[str], measure: Callable[[Unit], int] = lambda unit: 1
) -> Counter[_Cell]:
    """How many units, or what else they measure, are not done of each cell."""
    left: Counter[_Cell] = Counter()
    for unit in units:
        left[_cell(unit)] += measure(unit) * (unit.key not in done)
    return left


def _multiple(
    ahead: Mapping[_Cell, int], met: Mapping[_Cell, int], took: Mapping[_Cell, float]
) -> float:
    """How long the images ahead will take, over how long those met did.

    An image takes what the others of its cell did, and where none was met yet what all did.
    """
    whole = sum(took.values())
    of_all = whole / sum(met.values())
    each = {cell: seconds / met[cell] for cell, seconds in took.items()}
    return sum(images * each.get(cell, of_all) for cell, images in ahead.items()) / whole


def duration(seconds: float) -> str:
    """For people."""
    minutes = seconds / 60
    if minutes < 1.5:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
