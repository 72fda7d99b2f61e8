"""Where units are carried out: here, or in processes of their own."""

from __future__ import annotations

import math
import multiprocessing
import os
import secrets
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from concurrent.futures import wait as futures_wait
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import wait
from typing import Any, TypeVar

import torch

from scoreopt_defense._foreign import said
from scoreopt_defense._mapped import Mapped, unpacked
from scoreopt_defense._memory import keep_freed_memory, shared_by
from scoreopt_defense.evaluation.plan import Materials, Unit
from scoreopt_defense.evaluation.run.unit import Outcome, execute
from scoreopt_defense.evaluation.suite.carry_over import Carried

__all__ = ["LOOK", "Crew", "for_workers", "in_process", "processes"]

# Of a worker process: what it was given once by each crew, or why it could not be read; and that it
# does one unit at a time, since torch's and numpy's global generators are the process's.
_HELD: dict[str, tuple[Materials, int] | str] = {}
_ONE_AT_A_TIME = threading.Lock()
LOOK = 5.0  #: seconds, after which it is looked whether the workers are still there
_T = TypeVar("_T")
_STARTS = 3  # of workers that are lost before their first unit, before the run is given up


def carry_out(key: str, unit: Unit, before: Carried | None = None) -> Outcome:
    """A unit, in a worker that was given the networks."""
    held = _HELD[key]
    if isinstance(held, str):
        raise RuntimeError(held)
    materials, threads = held
    with _ONE_AT_A_TIME:
        return execute(unit, materials, before, threads=threads)


def hold(key: str, data: Any) -> None:
    """Give this process the networks, and how many threads it computes with."""
    try:
        _HELD[key] = unpacked(data)
    except BaseException as error:  # whatever a user's module raises; said to who asks if it began
        _HELD[key] = said(error)


def let_go(key: str) -> None:
    _HELD.pop(key, None)


def _begun(key: str) -> str | None:
    """Why this process did not begin, if it did not."""
    held = _HELD.get(key, "they did not get the networks")
    return held if isinstance(held, str) else None


class Crew:
    """An executor that can be replaced when it breaks.

    Args:
        opened: a context manager of a working executor, and of a function that says how many units
            it takes at a time, or raises ConnectionError if it is lost.
        key: what its workers know the networks by, and no other crew's do.
    """

    def __init__(self, opened: Callable[[], Any], key: str) -> None:
        self.opened, self.key = opened, key

    @contextmanager
    def open(self) -> Iterator[tuple[Executor, Callable[[], int]]]:
        """The executor, once a worker has said that it has the networks.

        Raises:
            RuntimeError: if they cannot be read there, or workers are lost again and again.
            ConnectionError: if a cluster is lost meanwhile.
        """
        with ExitStack() as stack:
            for _ in range(_STARTS):
                executor, width = stack.enter_context(self.opened())
                try:
                    future = executor.submit(_begun, self.key)
                    while not futures_wait([future], timeout=LOOK).done:
                        width()
                    why = future.result()
                except BrokenExecutor as error:
                    lost: Exception = error
                    stack.close()
                    continue
                if why is not None:
                    raise RuntimeError(
                        f"the workers did not start ({why}): their networks and attacks must be of "
                        "modules that they can import"
                    )
                yield executor, width
                return
            raise RuntimeError(
                f"the workers were lost {_STARTS} times before they began ({lost}): something "
                "ended them, such as the system for want of memory (give it fewer workers); a "
                "script that starts workers must do so under if __name__ == '__main__'"
            )


def in_process(materials: Materials, threads: int) -> Crew:
    """In this process, with the caller's own networks and attacks, which stay as they are."""
    key = secrets.token_hex(8)

    @contextmanager
    def opened() -> Iterator[tuple[Executor, Callable[[], int]]]:
        _HELD[key] = materials, threads
        try:
            yield _Here(), lambda: 1
        finally:
            let_go(key)

    return Crew(opened, key)


class _Here(Executor):
    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        future: Future = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def processes(materials: Materials, threads: int, count: int) -> Crew:
    """A pool of so many processes, which share the networks' memory."""
    context = multiprocessing.get_context("spawn")
    # As an argument the networks would fill the pipe to a process that dies before it reads, and
    # the write would never end.
    mapped = for_workers(Mapped, materials, threads)
    key, turn, devices = secrets.token_hex(8), context.Value("i", 0), _devices(materials)

    @contextmanager
    def opened() -> Iterator[tuple[Executor, Callable[[], int]]]:
        others = set(multiprocessing.active_children())
        pool = ProcessPoolExecutor(
            count,
            mp_context=context,
            initializer=_start_process,
            initargs=(key, mapped, turn, devices, count),
        )
        try:
            yield pool, lambda: count
        except BaseException:  # do not wait for what is under way
            for process in set(multiprocessing.active_children()) - others:
                process.kill()
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    return Crew(opened, key)


def for_workers(pack: Callable[[Any], _T], *things: Any) -> _T:
    """What ``pack`` makes of them, or an error that says what workers need."""
    try:
        return pack(things)
    except Exception as error:
        raise ValueError(
            f"workers need networks and attacks that can be pickled, and these cannot ({error}): "
            "use modules and functions of importable files, or workers=1"
        ) from error


def _devices(materials: Materials) -> list[str]:
    """The GPUs that workers are pinned to in turn; none where the networks are on no GPU."""
    models = materials.defences.values()
    if not any(part.is_cuda for model in models for part in model.parameters()):
        return []
    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    return said.split(",") if said else [str(i) for i in range(torch.cuda.device_count())]


def _start_process(key: str, data: Any, turn: Any, devices: Sequence[str], count: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # are the coordinator's, and are sent to all
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if devices:  # before anything here asks for one
        with turn.get_lock():
            os.environ["CUDA_VISIBLE_DEVICES"] = devices[turn.value % len(devices)]
            turn.value += 1
    shared_by(math.ceil(count / max(1, len(devices))))
    keep_freed_memory()
    hold(key, data)


def _end_with_parent() -> None:
    """A pool's process would wait for ever for a coordinator that was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
