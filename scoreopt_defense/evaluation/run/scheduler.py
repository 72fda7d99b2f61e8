"""Carries out a plan's units, in any order and by any workers, to the same result."""

from __future__ import annotations

import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import contextmanager
from types import FrameType

from scoreopt_defense._foreign import said
from scoreopt_defense.evaluation.chain import Carried, carried
from scoreopt_defense.evaluation.plan import Materials, Plan, Unit
from scoreopt_defense.evaluation.progress import Progress
from scoreopt_defense.evaluation.store import Store
from scoreopt_defense.evaluation.units import Outcome
from scoreopt_defense.evaluation.workers import LOOK, Crew, carry_out

__all__ = ["Stopped", "run"]

_LIVES = 2  # of a worker that is lost while it does one unit alone, before the unit is blamed


class Stopped(KeyboardInterrupt):
    """Ctrl-C, after the units in flight were recorded."""


def run(plan: Plan, materials: Materials, store: Store, crew: Crew, progress: Progress) -> None:
    """Carry out whatever of the plan is not in the store.

    Raises:
        Stopped: after Ctrl-C, when the units in flight are recorded; the same call goes on.
        StoreError: if a unit cannot be recorded; those before are kept.
        RuntimeError: if the workers do not start.
        ConnectionError: if the cluster's scheduler is lost; the same call goes on.
    """
    done = store.done()
    units = deque(unit for unit in plan.units() if unit.index not in done)
    progress.start(plan, done)

    def begins_from(unit: Unit) -> Carried | None:
        """Of a suite's stage, what those before it left; they are all recorded by then."""
        if not (before := plan.before(unit)):
            return None
        x = materials.x[slice(*unit.images)].cpu().numpy()
        rows = ((earlier, store.read(earlier)) for earlier in before)
        judged = ((e, [row for row in found if row["predicted"]]) for e, found in rows)
        return carried(x, ((found, store.adversarial(e.index)) for e, found in judged if found))

    def record(outcome: Outcome) -> None:
        store.add(outcome, materials.y[slice(*outcome.unit.images)].cpu().numpy())
        progress.advance(outcome)
        if outcome.error:
            progress.note(f"failed: {outcome.unit}: {outcome.error}")
        elif outcome.parts > 1:
            progress.note(f"out of memory: {outcome.unit} was done in {outcome.parts} parts")

    work = _Work(crew.key, units, plan, begins_from, progress.begin, record)
    try:
        with _interrupts(work, progress):
            while work.left and not work.stopped:
                with crew.open() as (executor, width):
                    work.off(executor, width)
    finally:
        progress.stop()
    if work.left:
        raise Stopped(f"stopped with {work.left} units left; start again to go on")


class _Work:
    """What is left to do, what is in flight, and what was in flight when a worker was lost."""

    def __init__(
        self,
        key: str,
        units: deque[Unit],
        plan: Plan,
        begins_from: Callable[[Unit], Carried | None],
        begin: Callable[[Unit], None],
        record: Callable[[Outcome], None],
    ) -> None:
        self.key, self.units, self.plan = key, units, plan
        self.begins_from, self.begin, self.record = begins_from, begin, record
        self.suspects: deque[Unit] = deque()
        self.losses: Counter[Unit] = Counter()
        self.open = set(units)
        self.flying: dict[Future, Unit] = {}
        self.stopped = False

    @property
    def left(self) -> int:
        return len(self.units) + len(self.suspects) + len(self.flying)

    def off(self, executor: Executor, width: Callable[[], int]) -> None:
        """Until nothing is left, or Ctrl-C, or the executor is broken."""
        broken = False
        while True:
            room = width()  # asked each time: it says too if the workers are lost
            if self.suspects:
                room = 1  # after a loss: whichever unit is then lost is the one to blame
            while (
                not (self.stopped or broken)
                and len(self.flying) < room
                and (unit := self._next(queue := self.suspects or self.units))
            ):
                self.begin(unit)
                try:
                    future = executor.submit(carry_out, self.key, unit, self.begins_from(unit))
                except RuntimeError:  # it broke while idle
                    broken = True
                else:
                    queue.remove(unit)
                    self.flying[future] = unit
                    room = 1 if queue is self.suspects else room
            if not self.flying:
                return
            alone = len(self.flying) == 1
            for future in wait(self.flying, timeout=LOOK, return_when=FIRST_COMPLETED).done:
                unit = self.flying.pop(future)
                try:
                    outcome = future.result()
                except Exception as error:  # a unit's own are outcomes: the worker itself was lost
                    broken = True
                    self._lost(unit, alone, error)
                else:
                    self._record(outcome)

    def _next(self, queue: deque[Unit]) -> Unit | None:
        """The first unit that waits for none that is not recorded."""
        ready = (unit for unit in queue if self.open.isdisjoint(self.plan.before(unit)))
        return next(ready, None)

    def _lost(self, unit: Unit, alone: bool, error: Exception) -> None:
        self.losses[unit] += alone
        if self.losses[unit] < _LIVES:
            self.suspects.append(unit)
        else:
            self._record(Outcome(unit, error=f"its worker was lost {_LIVES} times: {said(error)}"))

    def _record(self, outcome: Outcome) -> None:
        self.record(outcome)
        self.open.discard(outcome.unit)


@contextmanager
def _interrupts(work: _Work, progress: Progress) -> Iterator[None]:
    """The first Ctrl-C lets the units in flight finish; the second stops at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        if work.stopped:
            raise KeyboardInterrupt
        work.stopped = True
        progress.note("stopping after the units in flight; Ctrl-C again stops at once")

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
