"""A Dask cluster whose workers and scheduler come, go and are killed, and the recipes for one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from killed_runs import recorded
from toy_evaluation import Ascent, Noisy, found, run

from scoreopt_defense.evaluation import Stopped
from scoreopt_defense.evaluation.run.progress import Progress

dask = pytest.importorskip("dask")
distributed = pytest.importorskip("distributed")
ROOT = Path(__file__).parents[2]
PATH = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])


class Where(Ascent):
    """Measures in which process it was."""

    def measure(self, model, x, y):
        return {"process": torch.full((len(x),), float(os.getpid()), dtype=torch.float64)}


@pytest.fixture(scope="module")
def forked():
    """Dask's processes start with what they import, and nothing of it used."""
    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        context = distributed.utils.get_mp_context()
        context.set_forkserver_preload(["distributed", "scoreopt_defense.evaluation", __name__])
        yield


@contextmanager
def dask_cluster(folder, count):
    with distributed.LocalCluster(
        n_workers=count, threads_per_worker=1, dashboard_address=None, local_directory=str(folder)
    ) as cluster, distributed.Client(cluster, set_as_default=False) as client:  # fmt: skip
        yield cluster, client


class Disturbed(Progress):
    """Of its workers one more comes after 3 units, one is killed after 9, and one leaves after 15.

    Each time as many as ``each``.
    """

    def __init__(self, cluster, client, each):
        self.cluster, self.client, self.each = cluster, client, each
        self.units, self.pids = [], {"at first": self.processes()}

    def processes(self):
        return self.client.run(os.getpid)

    def advance(self, outcome):
        self.units.append(outcome.unit.key)
        first = self.pids["at first"]
        killed, leaves = (list(first)[k * self.each : (k + 1) * self.each] for k in range(2))
        if len(self.units) == 3:
            self.cluster.scale(len(first) + self.each)
            self.client.wait_for_workers(len(first) + self.each, timeout=60)
            self.pids["late"] = {w: pid for w, pid in self.processes().items() if w not in first}
        elif len(self.units) == 9:
            for worker in killed:
                os.kill(first[worker], signal.SIGKILL)
        elif len(self.units) == 15:
            self.client.retire_workers(leaves)
            assert not self.cluster.scheduler.workers.keys() & {*killed, *leaves}


@pytest.mark.parametrize(
    ("count", "each"), [(2, 1), pytest.param(6, 2, marks=pytest.mark.slow)], ids=["3", "8"]
)
def test_workers_that_come_late_are_killed_and_leave(forked, count, each, tmp_path):
    options = {"attacks": {"where": Where(pause=0.02), "long": Where(steps=3, pause=0.02)}}
    with dask_cluster(tmp_path / "dask", count) as (cluster, client):
        watch = Disturbed(cluster, client, each)
        result = run(tmp_path / "run", cluster=cluster.scheduler_address, progress=watch, **options)
    units = [unit.key for unit in result.plan.units()]
    assert len(watch.units) == len(units) == recorded(tmp_path / "run") == 54
    assert sorted(watch.units) == sorted(units)  # nothing twice, and nothing lost
    rows, alone = found(result), found(run(None, **options))
    processes = {row["measured"]["process"][0] for row in rows if row["measured"]}
    assert len(watch.pids["late"]) == each
    assert processes.issuperset(watch.pids["late"].values())
    for row in (*rows, *alone):
        del row["measured"]
    assert rows == alone


def started(kind, *arguments, **options):
    code = f"import asyncio, distributed, sys\n{DASK[kind]}\nasyncio.run(main())"
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True,
        stderr=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": PATH}, **options,
    )  # fmt: skip


DASK = {
    "scheduler": """async def main():
    scheduler = await distributed.Scheduler(port=0, dashboard=False, host="127.0.0.1")
    print(scheduler.address, flush=True)
    await scheduler.finished()""",
    "worker": """async def main():
    worker = await distributed.Worker(sys.argv[1], nthreads=1)
    await worker.finished()""",
}


@pytest.mark.slow
def test_a_scheduler_that_is_killed_is_said_and_not_waited_for(tmp_path):
    with started("scheduler", cwd=tmp_path) as scheduler:
        address = scheduler.stdout.readline().strip()
        with started("worker", address, cwd=tmp_path) as worker:

            class Killing(Progress):
                def advance(self, outcome):
                    scheduler.kill()

            with pytest.raises(ConnectionError, match=r"the Dask scheduler at tcp.* is lost: what"):
                run(tmp_path / "run", pause=0.05, cluster=address, progress=Killing())
            worker.kill()
    assert 0 < recorded(tmp_path / "run") < 54
    assert found(run(tmp_path / "run", pause=0.05)) == found(run(None, pause=0.05))


def test_a_wrong_address_is_one_sentence():
    """Of each kind, in a process of its own, at whose end Dask's destructors speak."""
    with socket.socket() as silent:  # as a port of another service
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        wrong = {
            f"tcp://127.0.0.1:{silent.getsockname()[1]}": "what listens there said nothing in 1 s",
            "tcp://127.0.0.1:1": "Timed out trying to connect to",
            "nonsense": "missing port number",
            "http://127.0.0.1:8787": "unknown address scheme 'http'",
            "tls://127.0.0.1:1": "TLS expects",
        }
        code = """import sys
from scoreopt_defense.evaluation.run import cluster
cluster._ANSWERS = 1.0
for address in sys.argv[1:]:
    try:
        with cluster.cluster(None, 1, address).open():
            print("it answers")
    except ConnectionError as error:
        print(error, file=sys.stderr)"""
        done = subprocess.run(
            [sys.executable, "-c", code, *wrong], capture_output=True, text=True,
            env=os.environ | {"PYTHONPATH": PATH}, check=True,
        )  # fmt: skip
    assert not done.stdout
    for line, (address, why) in zip(done.stderr.splitlines(), wrong.items(), strict=True):
        assert line.startswith(f"no Dask scheduler answers at {address}: {why}")


SMALL = {"attacks": {"ascent": Ascent()}, "trials": 1, "defences": {"noisy": Noisy().eval()}}


class Terminated(Progress):
    def __init__(self, after):
        self.after = after

    def advance(self, outcome):
        self.after -= 1
        if not self.after:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_machine_that_is_taken_away_records_what_is_in_flight_and_goes_on(forked, tmp_path):
    options = SMALL | {"trials": 4}
    with dask_cluster(tmp_path / "dask", 1) as (cluster, _):
        with pytest.raises(Stopped) as stop:
            run(tmp_path / "run", cluster=cluster.scheduler_address, progress=Terminated(3),
                **options)  # fmt: skip
        assert stop.value.by == signal.SIGTERM
        assert 3 <= recorded(tmp_path / "run") <= 5  # two are handed to a worker at a time
        result = run(tmp_path / "run", cluster=cluster.scheduler_address, **options)
    assert found(result) == found(run(None, **options))


def test_a_coordinator_that_is_taken_away_gives_up_a_unit_of_a_cluster_that_takes_too_long(
    forked, tmp_path
):
    (tmp_path / "a.toml").write_text(
        'batch = 1\n[images]\nsource = "mnist"\nn = 2\n[defences.a]\nclassifier = "mnist-tiny"\n'
        '[attacks.long]\nattack = "pgd-eot-linf"\neps = 0.3\nsteps = 1000000\neot = 1\n'
    )
    code = """import sys
from scoreopt_defense.cli import main
from scoreopt_defense.evaluation.run import scheduler
scheduler._GRACE = 0.5
sys.exit(main(sys.argv[1:]))"""
    with dask_cluster(tmp_path / "dask", 1) as (cluster, _):
        command = ["evaluate", "a.toml", "--out", "run", "--cluster", cluster.scheduler_address]
        with subprocess.Popen(
            [sys.executable, "-c", code, *command], cwd=tmp_path, stderr=subprocess.PIPE,
            text=True, env=os.environ | {"PYTHONPATH": PATH},
        ) as process:  # fmt: skip
            while recorded(tmp_path / "run") < 2:
                assert process.poll() is None
                time.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            said = process.stderr.read().splitlines()
    assert process.returncode == 75
    assert said[-1].startswith("scoreopt: stopped with")
    assert not any("Traceback" in line for line in said)
