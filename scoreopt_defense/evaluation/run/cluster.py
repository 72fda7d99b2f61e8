"""Units on the workers of a Dask cluster."""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

from scoreopt_defense._mapped import packed
from scoreopt_defense._optional import optional
from scoreopt_defense.evaluation.plan import Materials
from scoreopt_defense.evaluation.run.workers import Crew, for_workers

__all__ = ["cluster"]

_ANSWERS = 30.0  # seconds, within which a scheduler does
_COUNTED = 1.0  # second, for which a cluster's workers are not counted again
_PATIENCE = 4.0  # seconds, with a cluster that is asked to forget the networks; after 25 of SIGTERM


def cluster(materials: Materials, threads: int, address: str) -> Crew:
    """A running Dask scheduler, such as ``tcp://10.0.0.1:8786``; its workers get the networks once.

    Its workers' processes should have one thread each (``dask worker --nthreads 1``): a process
    carries out one unit at a time.
    """
    distributed = optional("distributed", extra="cluster")
    data, key = for_workers(packed, materials, threads), secrets.token_hex(8)

    lost = (
        f"the Dask scheduler at {address} is lost: what is recorded is kept. Start a scheduler and "
        "workers, and then this again"
    )

    @contextmanager
    def opened() -> Iterator[tuple[Executor, Callable[[], int]]]:
        try:
            with ThreadPoolExecutor(1) as elsewhere:  # a notebook has a running loop in its thread
                elsewhere.submit(asyncio.run, _answers(address)).result()
            client = distributed.Client(address, timeout=_ANSWERS, set_as_default=False)
        except (OSError, ValueError, TypeError, asyncio.TimeoutError) as error:
            why = str(error) or f"what listens there said nothing in {_ANSWERS:.0f} s"
            raise ConnectionError(f"no Dask scheduler answers at {address}: {why}") from error
        plugin = _plugin(key, data)
        asked, count = float("-inf"), 0

        def width() -> int:
            nonlocal asked, count
            if client.status != "running":
                raise ConnectionError(lost)
            if time.monotonic() - asked > _COUNTED:
                try:
                    count = len(client.nthreads())
                except OSError as error:
                    raise ConnectionError(lost) from error
                asked = time.monotonic()
            return 2 * max(1, count)

        def leave() -> None:
            with suppress(Exception):
                if client.status == "running":
                    client.unregister_worker_plugin(plugin.name)
                client.close(timeout=_PATIENCE / 2)

        try:
            try:
                client.register_plugin(plugin)  # also on workers that join or come back later
            except OSError as error:
                raise ConnectionError(lost) from error
            yield client.get_executor(pure=False), width
        finally:  # of a scheduler that is lost, Dask may wait for ever
            leaving = threading.Thread(target=leave, daemon=True)
            leaving.start()
            leaving.join(_PATIENCE)

    return Crew(opened, key)


async def _answers(address: str) -> None:
    """Raise if none does; a client that is given a wrong address can't be closed, and may hang."""
    distributed = optional("distributed", extra="cluster")
    options = distributed.Security().get_connection_args("client")
    comm = distributed.comm.connect(address, timeout=_ANSWERS, **options)
    (await asyncio.wait_for(comm, 1.2 * _ANSWERS)).abort()  # which says less than connect does


def _plugin(key: str, data: bytearray) -> Any:
    base: Any = optional("distributed", extra="cluster").WorkerPlugin

    class Networks(base):
        name = f"scoreopt-{key}"
        data: Any

        # A local class travels by value, with copies of the globals that it names: it imports them.
        def setup(self, worker: Any) -> None:
            from scoreopt_defense.evaluation.run import workers

            workers.hold(key, self.data)
            self.data = None  # which it has a copy of

        def teardown(self, worker: Any) -> None:
            from scoreopt_defense.evaluation.run import workers

            workers.let_go(key)

    plugin = Networks()
    plugin.data = data
    return plugin
