"""Carries out units in any order and by any workers, each after those that it begins from."""

from __future__ import annotations

import heapq
import signal
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager, suppress
from functools import partial
from queue import Empty, SimpleQueue
from types import FrameType

import numpy as np

from scoreopt_defense._foreign import said
from scoreopt_defense.evaluation.plan import Materials, Plan, Unit
from scoreopt_defense.evaluation.record.judged import Judged
from scoreopt_defense.evaluation.record.store import Store
from scoreopt_defense.evaluation.run.keeping import Keeping, lacking
from scoreopt_defense.evaluation.run.progress import Progress
from scoreopt_defense.evaluation.run.unit import Outcome, lost
from scoreopt_defense.evaluation.run.workers import LOOK, Crew, carry_out
from scoreopt_defense.evaluation.suite.carry_over import Carried, carried

__all__ = ["Stopped", "run"]

_GRACE = 25.0  # seconds, from SIGTERM on: machines that are taken away leave 30
_LIVES = 2  # of a worker that is lost while it does one unit alone, before the unit is blamed


class Stopped(KeyboardInterrupt):
    """Ctrl-C, or SIGTERM, after the units in flight were recorded.

    Attributes:
        by: which signal it was.
    """

    def __init__(self, said: str, *, by: signal.Signals = signal.SIGINT) -> None:
        super().__init__(said)
        self.by = by


def run(
    plan: Plan,
    materials: Materials,
    store: Store,
    crew: Crew,
    progress: Progress,
    *,
    keep: str = "all",
    view: str = "",
) -> None:
    """Carry out whatever of the plan is not in the record.

    Args:
        keep, view: which images stay; see
            :class:`~scoreopt_defense.evaluation.run.keeping.Keeping`.

    Raises:
        Stopped: after Ctrl-C or SIGTERM, when the units in flight are recorded; the same call goes
            on.
        StoreError: if a unit cannot be recorded; those before are kept.
        RuntimeError: if the workers do not start.
        ConnectionError: if the cluster's scheduler is lost; the same call goes on.
    """
    done = store.done()
    units = list({unit.key: unit for unit in plan.units()}.values())  # two names may be one task
    if again := lacking(units, done, store):
        progress.note(f"{len(again)} units are done again: others begin from images of theirs that "
                      "were not kept")  # fmt: skip
        done -= again
    keeping = Keeping(keep, plan, store, view, done)
    progress.start(units, done)

    def begins_from(unit: Unit) -> Carried | None:
        """What those before it left; they are all recorded by then."""
        if not unit.needs:
            return None
        x = materials.images.batch(*unit.images)[0].numpy()
        there = {result.key: result for result in store.read(unit.needs)}
        found = (there[key] for key in unit.needs)
        judged = (
            (Judged.of([result]), partial(store.adversarial, result))
            for result in found
            if result.predicted is not None
        )
        return carried(x, unit.images[0], judged)

    def record(outcome: Outcome, more: bool) -> None:
        images = outcome.images if keeping.takes(outcome.unit) else None
        store.add(outcome.result, images, more=more)
        keeping.recorded(outcome.unit)
        progress.advance(outcome)
        if outcome.result.error:
            progress.note(f"failed: {outcome.unit}: {outcome.result.error}")
        elif outcome.result.parts > 1:
            parts = outcome.result.parts
            progress.note(f"out of memory: {outcome.unit} was done in {parts} parts")

    work = _Work(
        crew.key, units, done, materials.images.labels, begins_from, progress.begin, record,
        store.commit,
    )  # fmt: skip
    try:
        with _interrupts(work, progress):
            while work.left and not work.stopped:
                with crew.open() as (executor, width):
                    work.off(executor, width)
    finally:
        progress.stop()
    if work.left:
        raise _stopped(work)
    keeping.finished()


class _Work:
    """What is left to do, what is in flight, and what was in flight when a worker was lost."""

    def __init__(
        self,
        key: str,
        units: Sequence[Unit],
        done: Collection[str],
        labels: np.ndarray,
        begins_from: Callable[[Unit], Carried | None],
        begin: Callable[[Unit], None],
        record: Callable[[Outcome, bool], None],
        idle: Callable[[], None],
    ) -> None:
        self.key, self.labels = key, labels
        self.begins_from, self.begin, self.record = begins_from, begin, record
        self.idle = idle
        self.order = {unit.key: place for place, unit in enumerate(units)}
        self.units = {unit.key: unit for unit in units if unit.key not in done}
        # of each unit that cannot begin yet, how many it waits for; and who waits for a unit
        self.waits: Counter[str] = Counter()
        self.waiting: defaultdict[str, list[str]] = defaultdict(list)
        for unit in self.units.values():
            for earlier in unit.needs:
                if earlier in self.units:
                    self.waits[unit.key] += 1
                    self.waiting[earlier].append(unit.key)
        self.ready = [self.order[key] for key in self.units if not self.waits[key]]  # a heap
        self.names = [unit.key for unit in units]
        self.suspects: deque[Unit] = deque()
        self.losses: Counter[str] = Counter()
        self.flying: dict[Future, Unit] = {}
        self.landed: SimpleQueue[Future] = SimpleQueue()
        self.stopped: signal.Signals | None = None

    @property
    def left(self) -> int:
        """Units that are not recorded."""
        return len(self.units)

    def off(self, executor: Executor, width: Callable[[], int]) -> None:
        """Until nothing is left, or Ctrl-C, or the executor is broken."""
        broken = False
        while True:
            room = width()  # asked each time: it says too if the workers are lost
            if self.suspects:
                room = 1  # after a loss: whichever unit is then lost is the one to blame
            while not (self.stopped or broken) and len(self.flying) < room:
                suspected = bool(self.suspects)
                if (unit := self._next()) is None:
                    break
                self.begin(unit)
                try:
                    future = executor.submit(carry_out, self.key, unit, self.begins_from(unit))
                except RuntimeError:  # it broke while idle
                    broken = True
                    self._put_back(unit, suspected)
                else:
                    self.flying[future] = unit
                    future.add_done_callback(self.landed.put)
                    room = 1 if suspected else room
            if not self.flying:
                return
            alone = len(self.flying) == 1
            for future in self._landed():
                unit = self.flying.pop(future)
                try:
                    outcome = future.result()
                except Exception as error:  # a unit's own are outcomes: the worker itself was lost
                    broken = True
                    self._lost(unit, alone, error)
                else:
                    self._record(outcome)

    def _landed(self) -> Iterator[Future]:
        """Those that are done, the first of which is waited for."""
        try:
            yield self.landed.get(timeout=LOOK)
        except Empty:
            self.idle()
            return
        with suppress(Empty):
            while True:
                yield self.landed.get_nowait()

    def _next(self) -> Unit | None:
        """The first unit that waits for none, but for those that were in flight at a loss."""
        if self.suspects:
            return self.suspects.popleft()
        return self.units[self.names[heapq.heappop(self.ready)]] if self.ready else None

    def _put_back(self, unit: Unit, suspected: bool) -> None:
        if suspected:
            self.suspects.appendleft(unit)
        else:
            heapq.heappush(self.ready, self.order[unit.key])

    def _lost(self, unit: Unit, alone: bool, error: Exception) -> None:
        self.losses[unit.key] += alone
        if self.losses[unit.key] < _LIVES:
            self.suspects.append(unit)
        else:
            why = f"its worker was lost {_LIVES} times: {said(error)}"
            self._record(lost(unit, self.labels, why))

    def _record(self, outcome: Outcome) -> None:
        self.record(outcome, not self.landed.empty())
        done = outcome.unit.key
        del self.units[done]
        for later in self.waiting.pop(done, ()):
            self.waits[later] -= 1
            if not self.waits[later]:
                heapq.heappush(self.ready, self.order[later])


@contextmanager
def _interrupts(work: _Work, progress: Progress) -> Iterator[None]:
    """The first Ctrl-C lets the units in flight finish, and the second stops at once.

    As SIGTERM does, by which a machine is taken away, after the seconds that there usually are.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        if work.stopped:
            raise KeyboardInterrupt
        work.stopped = signal.Signals(number)
        if number == signal.SIGTERM:
            progress.note(f"stopping after the units in flight, or in {_GRACE:.0f} s")
            timer = threading.Timer(_GRACE, _tell_main_thread, [number])
            timer.daemon = True
            timer.start()
            timers.append(timer)
        else:
            progress.note("stopping after the units in flight; Ctrl-C again stops at once")

    timers: list[threading.Timer] = []
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except KeyboardInterrupt as error:
        if work.stopped == signal.SIGTERM:
            raise _stopped(work) from error
        raise
    finally:
        for timer in timers:
            timer.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)


def _tell_main_thread(number: int) -> None:
    """In a way that ends its waiting, where the system has one."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, number)
    else:
        signal.raise_signal(number)


def _stopped(work: _Work) -> Stopped:
    said = f"stopped with {work.left} units left; start again to go on"
    return Stopped(said, by=work.stopped or signal.SIGINT)
