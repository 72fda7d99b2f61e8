"""How many units a second one coordinator takes from 1,000 workers, and what saturates first.

    python -m benchmarks.speed.thousand_workers

The coordinator and its record are the real ones; units sleep, and more are done at once than can be
taken. First the workers are a stand-in within this process, then a Dask scheduler's: as many of
Dask's own workers, in a few processes. What a part takes is its processors' time, which other
programs of the machine change little: the one that takes most saturates first.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from benchmarks.common.results_file import write
from benchmarks.speed.record import ONE, Brighter, defences
from scoreopt_defense.evaluation import Store
from scoreopt_defense.evaluation.evaluate import materials_of
from scoreopt_defense.evaluation.plan import Materials, Plan, Unit
from scoreopt_defense.evaluation.record.packing import digest_of
from scoreopt_defense.evaluation.run import cluster, scheduler, workers
from scoreopt_defense.evaluation.run.progress import Progress
from scoreopt_defense.evaluation.run.unit import Outcome, _packed, _result

PROCESSES = 4  # that Dask's workers are in
#: All workers come at once, and what each looks at of itself many times a second is looked at here
#: by hundreds in one process.
DASK = {
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "300s",
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
    "DASK_DISTRIBUTED__ADMIN__TICK__INTERVAL": "60s",
    "DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__INTERVAL": "60s",
}


def slept(unit: Unit, materials: Materials, seconds: float) -> Outcome:
    """What a unit comes to whose attack moved each pixel, and that took so long."""
    size, labels = unit.size, materials.images.labels
    x = materials.images.batch(*unit.images)[0].numpy()
    kept = (x + np.float32(unit.seed % 997) / 1000) if len(x[0].ravel()) > 16 else None
    result = _result(
        unit, labels, places=np.arange(size), predicted=labels[slice(*unit.images)][:, None],
        lead=np.ones((size, 1)), seconds=seconds, adversarial=(kept is not None and digest_of(kept))
        or None,
    )  # fmt: skip
    return Outcome(unit, result, None if kept is None else _packed(np.arange(size), kept))


class Sleepers(Executor):
    """Stands for any number of workers: a unit is done as long after it is handed out."""

    def __init__(self, materials: Materials, seconds: float) -> None:
        self.materials, self.seconds = materials, seconds
        self.asleep: list[tuple[float, int, Unit, Future]] = []
        self.count, self.used = 0, 0.0
        threading.Thread(target=self._wake, daemon=True).start()

    def submit(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        future: Future = Future()
        self.count += 1
        at = time.monotonic() + self.seconds
        heapq.heappush(self.asleep, (at, self.count, args[1], future))
        return future

    def _wake(self) -> None:
        while True:
            if self.asleep and self.asleep[0][0] <= time.monotonic():
                _, _, unit, future = heapq.heappop(self.asleep)
                future.set_result(slept(unit, self.materials, self.seconds))
                self.used = time.thread_time()
            else:
                time.sleep(0.001)


def stand_in(materials: Materials, count: int, seconds: float) -> Any:
    @contextmanager
    def opened() -> Iterator[tuple[Executor, Callable[[], int], dict[str, Any]]]:
        sleepers = Sleepers(materials, seconds)
        yield sleepers, lambda: 2 * count, {"stand-in": lambda: sleepers.used}

    return opened


def _dask_scheduler(said: Any) -> None:
    import distributed

    async def main() -> None:
        one = await distributed.Scheduler(port=0, dashboard=False, host="127.0.0.1")
        said.put(one.address)
        await one.finished()

    asyncio.run(main())


def _dask_workers(address: str, count: int, seconds: float, folder: str) -> None:
    import distributed

    workers._ONE_AT_A_TIME = nullcontext()  # type: ignore[assignment]

    def execute(unit: Unit, materials: Materials, *_: Any, **__: Any) -> Outcome:
        time.sleep(seconds)
        return slept(unit, materials, seconds)

    workers.execute = execute  # type: ignore[assignment]

    async def main() -> None:
        options = {"nthreads": 1, "memory_limit": 0, "local_directory": folder, "dashboard": False}
        made = [distributed.Worker(address, **options) for _ in range(count)]
        await asyncio.gather(*made)
        await asyncio.gather(*(worker.finished() for worker in made))

    asyncio.run(main())


def on_dask(materials: Materials, count: int, seconds: float) -> Any:
    import distributed

    @contextmanager
    def opened() -> Iterator[tuple[Executor, Callable[[], int], dict[str, Any]]]:
        context = multiprocessing.get_context("spawn")
        said = context.Queue()
        with tempfile.TemporaryDirectory() as folder:
            main = context.Process(target=_dask_scheduler, args=(said,), daemon=True)
            main.start()
            address = said.get(timeout=300)
            each = count // PROCESSES
            hosts = [
                context.Process(
                    target=_dask_workers, args=(address, each, seconds, folder), daemon=True
                )
                for _ in range(PROCESSES)
            ]
            for host in hosts:
                host.start()
            try:
                with distributed.Client(address, timeout=120, set_as_default=False) as client:
                    client.wait_for_workers(each * PROCESSES, timeout=600)
                crew = cluster.cluster(materials, 1, address)
                with crew.open() as (executor, width):
                    here = psutil.Process()
                    yield (
                        _Keyed(executor, crew.key), width,
                        {
                            "Dask's client": lambda: _used(here) - time.thread_time(),
                            "Dask's scheduler": lambda: _used(psutil.Process(main.pid)),
                            "Dask's workers": lambda: sum(
                                _used(psutil.Process(host.pid)) for host in hosts
                            ),
                        },
                    )  # fmt: skip
            finally:
                for process in (*hosts, main):
                    process.kill()
                    process.join()

    return opened


class _Keyed(Executor):
    """Hands on what one crew's coordinator asks of another crew's workers."""

    def __init__(self, executor: Executor, key: str) -> None:
        self.executor, self.key = executor, key

    def submit(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        return self.executor.submit(call, self.key, *args[1:])


def _used(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


class Timed(Store):
    """Times what the record takes."""

    def __init__(self, folder: Path) -> None:
        self.used = self.waited = 0.0
        self.commits = 0
        super().__init__(folder, writing=True)

    def add(self, *args: Any, **kwargs: Any) -> None:
        started = time.thread_time()
        super().add(*args, **kwargs)
        self.used += time.thread_time() - started

    def commit(self) -> None:
        started = time.perf_counter()
        super().commit()
        self.waited += time.perf_counter() - started
        self.commits += 1


def measured(how: str, count: int, units: int, seconds: float, side: int) -> dict[str, Any]:
    size = 1 if side == 4 else 32
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(units * size // 4, 1 if side == 4 else 3, side, side, generator=generator)
    attacks = {f"a{k}": Brighter(0.01 * k) for k in range(3)}
    materials = materials_of(
        defences(1), (x, (x.mean((1, 2, 3)) < 0.5).long()), attacks, ONE, checks=False
    )
    plan = Plan.of(materials, batch=size)
    opened = {"stand-in": stand_in, "Dask": on_dask}[how](materials, count, seconds)
    with opened() as (executor, width, parts), tempfile.TemporaryDirectory() as folder:
        crew = workers.Crew(lambda: nullcontext((executor, width)), "key")
        crew.open = crew.opened  # type: ignore[method-assign]
        store = Timed(Path(folder))
        plan = store.adopt(plan)
        store.used = store.waited = store.commits = 0  # type: ignore[assignment]
        before = {name: used() for name, used in parts.items()}
        started, own = time.perf_counter(), time.thread_time()
        scheduler.run(plan, materials, store, crew, Progress())
        took, own = time.perf_counter() - started, time.thread_time() - own
        used = {
            "coordinator but for the record": own - store.used,
            "record": store.used,
            **{name: used() - before[name] for name, used in parts.items()},
        }
        row = {
            "workers": how, "units": units, "seconds a unit": seconds,
            "images kept a unit, kB": 0 if side == 4 else round(x[:size].nbytes / 1000),
            "units a second": round(units / took),
            "processor, ms a unit": {k: round(1000 * v / units, 3) for k, v in used.items()},
            "commits": store.commits,
            "wait for the disk, share of the time": round(store.waited / took, 2),
        }  # fmt: skip
        store.close()
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=1_000)
    parser.add_argument("--units", type=int, default=20_000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.update(DASK)
    rows = []
    for how, units, seconds, side in (
        ("stand-in", args.units, 0.1, 4),
        ("stand-in", args.units // 2, 2.0, 4),
        ("stand-in", args.units // 5, 2.0, 32),
        ("Dask", args.units // 2, 1.0, 4),
    ):
        rows.append(measured(how, args.workers, units, seconds, side))
        print(rows[-1], flush=True)
    write("thousand_workers", count=args.workers, rows=rows)


if __name__ == "__main__":
    main()
