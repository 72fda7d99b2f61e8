"""Where units are carried out: here, in processes of their own, or on a cluster."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, MutableSequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from scoreopt_defense._memory import keep_freed_memory
from scoreopt_defense._optional import optional
from scoreopt_defense.evaluation.chain import Carried
from scoreopt_defense.evaluation.plan import Materials, Plan, Unit
from scoreopt_defense.evaluation.units import Outcome, execute

__all__ = ["Crew", "cluster", "in_process", "processes"]

# Of a worker process: what it was given once, and that it does one unit at a time, since torch's
# and numpy's global generators are the process's.
_HELD: dict[str, tuple[Plan, Materials, MutableSequence[int] | None]] = {}
_ONE_AT_A_TIME = threading.Lock()


def carry_out(key: str, unit: Unit, before: Carried | None = None) -> Outcome:
    """A unit, in a worker that was given its plan."""
    plan, materials, seen = _HELD[key]
    with _ONE_AT_A_TIME:
        return execute(unit, plan, materials, before, seen)


def hold(key: str, blob: bytes, seen: MutableSequence[int] | None = None) -> None:
    """Give this process a plan and its networks, and where to say how far a unit is."""
    _HELD[key] = (*pickle.loads(blob), seen)


def let_go(key: str) -> None:
    _HELD.pop(key, None)


def _ready(key: str) -> bool:
    return key in _HELD


class Crew:
    """An executor that can be replaced when it breaks.

    Args:
        opened: a context manager of a working executor and of how many units it takes at a time.
        key: what its workers know the plan by.
        seen: of each unit, rows that the networks have seen so far; None where it is not known.
    """

    def __init__(
        self, opened: Callable[[], Any], key: str, seen: MutableSequence[int] | None = None
    ) -> None:
        self.opened, self.key, self.seen = opened, key, seen

    @contextmanager
    def open(self) -> Iterator[tuple[Executor, Callable[[], int]]]:
        """The executor, once a worker has said that it has the networks."""
        with self.opened() as (executor, width):
            try:
                ready = executor.submit(_ready, self.key).result()
            except Exception as error:
                raise RuntimeError(
                    f"the workers did not start ({error}): their networks and attacks must be of "
                    "modules that they can import, and a script that starts workers must do so "
                    "under if __name__ == '__main__'"
                ) from error
            if not ready:
                raise RuntimeError("the workers did not get the networks")
            yield executor, width


def in_process(plan: Plan, materials: Materials) -> Crew:
    """In this process, on a copy of the networks: the caller's stay as they are."""
    seen = [0] * sum(1 for _ in plan.units())

    @contextmanager
    def opened() -> Iterator[tuple[Executor, Callable[[], int]]]:
        defences, attacks = copy.deepcopy((dict(materials.defences), dict(materials.attacks)))
        _HELD[plan.hash] = plan, replace(materials, defences=defences, attacks=attacks), seen
        try:
            yield _Here(), lambda: 1
        finally:
            let_go(plan.hash)

    return Crew(opened, plan.hash, seen)


class _Here(Executor):
    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        future: Future = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def processes(plan: Plan, materials: Materials, count: int) -> Crew:
    """A pool of so many processes, each with the networks."""
    blob = _packed(plan, materials)
    context = multiprocessing.get_context("spawn")
    seen = context.RawArray("q", sum(1 for _ in plan.units()))  # shared memory

    @contextmanager
    def opened() -> Iterator[tuple[Executor, Callable[[], int]]]:
        others = set(multiprocessing.active_children())
        with tempfile.TemporaryDirectory() as folder:
            # As an argument it would fill the pipe to a process that dies before it reads, and the
            # write would wait for ever.
            file = Path(folder) / "networks"
            file.write_bytes(blob)
            pool = ProcessPoolExecutor(
                count,
                mp_context=context,
                initializer=_start_process,
                initargs=(plan.hash, file, seen),
            )
            try:
                yield pool, lambda: count
            except BaseException:  # do not wait for what is under way
                for process in set(multiprocessing.active_children()) - others:
                    process.terminate()
                raise
            finally:
                pool.shutdown(cancel_futures=True)

    return Crew(opened, plan.hash, seen)


def _packed(plan: Plan, materials: Materials) -> bytes:
    try:
        return pickle.dumps((plan, materials))
    except Exception as error:
        raise ValueError(
            f"workers need networks and attacks that can be pickled, and these cannot ({error}): "
            "use modules and functions of importable files, or workers=1"
        ) from error


def _start_process(key: str, file: Path, seen: MutableSequence[int]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the coordinator's
    threading.Thread(target=_end_with_parent, daemon=True).start()
    keep_freed_memory()
    hold(key, file.read_bytes(), seen)


def _end_with_parent() -> None:
    """A pool's process would wait for ever for a coordinator that was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def cluster(plan: Plan, materials: Materials, address: str) -> Crew:
    """A running Dask scheduler, such as ``tcp://10.0.0.1:8786``; its workers get the networks once.

    Its workers' processes should have one thread each (``dask worker --nthreads 1``): a process
    carries out one unit at a time.
    """
    distributed = optional("distributed", extra="cluster")
    blob = _packed(plan, materials)

    @contextmanager
    def opened() -> Iterator[tuple[Executor, Callable[[], int]]]:
        try:
            client = distributed.Client(address, timeout="30s", set_as_default=False)
        except (OSError, ValueError) as error:
            raise ConnectionError(f"no Dask scheduler answers at {address}: {error}") from error
        with client:
            plugin = _plugin(plan.hash, blob)
            client.register_plugin(plugin)  # also on workers that join or come back later
            try:
                yield client.get_executor(pure=False), lambda: 2 * max(1, len(client.nthreads()))
            finally:
                client.unregister_worker_plugin(plugin.name)

    return Crew(opened, plan.hash)


def _plugin(key: str, blob: bytes) -> Any:
    base: Any = optional("distributed", extra="cluster").WorkerPlugin

    class Networks(base):
        name = f"scoreopt-{key}"

        # A local class travels by value, with copies of the globals that it names: it imports them.
        def setup(self, worker: Any) -> None:
            from scoreopt_defense.evaluation import workers

            workers.hold(key, blob)

        def teardown(self, worker: Any) -> None:
            from scoreopt_defense.evaluation import workers

            workers.let_go(key)

    return Networks()
