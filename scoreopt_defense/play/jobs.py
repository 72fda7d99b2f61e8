"""A line of jobs: one computes at a time, and each can be stopped."""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

__all__ = ["Jobs", "Stopped"]

Event = dict[str, Any]
#: Does it all, given whom to tell of it and what to call often, which may raise.
Work = Callable[[Callable[[Event], object], Callable[[], None]], None]


class Stopped(Exception):
    """A job was stopped, by who began it or by the time that one may take."""


@dataclass(eq=False)
class _Job:
    work: Work
    news: asyncio.Queue[Event | None] = field(default_factory=asyncio.Queue)
    id: str = field(default_factory=lambda: secrets.token_urlsafe(12))
    is_stopped: threading.Event = field(default_factory=threading.Event)
    began: float | None = None


class Jobs:
    """Jobs in the order in which they are asked for, all on one thread, one after another.

    So what a library keeps for a whole process, such as its random numbers, is one job's at a time.
    All methods are the event loop's.

    Args:
        most: jobs in the line, the one that computes among them.
        seconds: that one may compute.
    """

    def __init__(self, *, most: int = 16, seconds: float = 600) -> None:
        self.most = most
        self.seconds = seconds
        self._line: list[_Job] = []
        self._thread = ThreadPoolExecutor(1, "computing")

    @property
    def is_full(self) -> bool:
        return len(self._line) >= self.most

    async def events(self, work: Work) -> AsyncGenerator[Event, None]:
        """What there is to tell of a job; whoever stops listening stops it.

        First of all its ``id``, then how many are ``ahead`` of it while it waits, then what it
        tells itself, and in the end that it is ``done``, was ``stopped``, or ``why`` it failed.
        """
        job = _Job(work)
        self._line.append(job)
        try:
            yield {"kind": "job", "id": job.id}
            self._go_on()
            while event := await job.news.get():
                yield event
        finally:
            self.stop(job.id)

    def stop(self, id: str | None = None) -> None:
        """Stop a job before its network's next call, or all; one that has ended stays as it is."""
        for job in [job for job in self._line if id in (None, job.id)]:
            job.is_stopped.set()
            if job.began is None:
                job.news.put_nowait({"kind": "stopped", "why": "stopped before it began"})
                self._left(job)

    def _go_on(self) -> None:
        for ahead, job in enumerate(self._line):
            if job.began is not None:
                continue
            if ahead:
                job.news.put_nowait({"kind": "waiting", "ahead": ahead})
                continue
            job.began = time.monotonic()
            loop = asyncio.get_running_loop()
            loop.run_in_executor(self._thread, self._carry_out, job, loop)

    def _carry_out(self, job: _Job, loop: asyncio.AbstractEventLoop) -> None:
        def tell(event: Event) -> None:
            loop.call_soon_threadsafe(job.news.put_nowait, event)

        try:
            job.work(tell, partial(self._check, job))
            tell({"kind": "done"})
        except Stopped as stopped:
            tell({"kind": "stopped", "why": str(stopped)})
        except (ValueError, TypeError, ImportError) as error:  # the library's own words
            tell({"kind": "failed", "why": str(error)})
        except Exception:
            logging.getLogger(__name__).exception("a job failed")
            tell({"kind": "failed", "why": "it failed; what scoreopt play prints says how"})
        finally:
            loop.call_soon_threadsafe(self._left, job)

    def _check(self, job: _Job) -> None:
        if job.is_stopped.is_set():
            raise Stopped("stopped")
        if job.began is not None and time.monotonic() - job.began > self.seconds:
            raise Stopped(f"stopped: it may take {self.seconds:g} seconds, and others wait")

    def _left(self, job: _Job) -> None:
        self._line.remove(job)
        job.news.put_nowait(None)
        self._go_on()
