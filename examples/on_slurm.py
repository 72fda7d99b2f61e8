"""Evaluate on Slurm: a job is a worker with a GPU, and as many are asked for as have work.

    pip install 'scoreopt-defense[cluster]' dask-jobqueue
    python examples/on_slurm.py defence.toml

Edit what is below; the folder of the configuration, and this Python, must be where jobs see them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from dask_jobqueue import SLURMCluster

from scoreopt_defense.cli import main

#: A worker: one process of one thread, which ends of itself before the job's time is over.
WORKER: dict[str, Any] = {
    "cores": 1,
    "processes": 1,
    "memory": "16 GB",
    "worker_extra_args": ["--lifetime", "220m", "--lifetime-stagger", "10m"],
}
#: What Slurm is asked for.
JOB: dict[str, Any] = {
    "queue": "gpu",
    "walltime": "04:00:00",
    "job_extra_directives": ["--gres=gpu:1"],
}
JOBS = {"minimum_jobs": 1, "maximum_jobs": 100}


def evaluate_on(cluster: Any, jobs: dict[str, int], arguments: Sequence[str]) -> int:
    """``scoreopt evaluate``, on the jobs of a cluster; the exit status."""
    cluster.adapt(**jobs)  # asks for others in place of those that ended
    return main(["evaluate", *arguments, "--cluster", cluster.scheduler_address])


if __name__ == "__main__":
    with SLURMCluster(**WORKER, **JOB) as cluster:
        status = evaluate_on(cluster, JOBS, sys.argv[1:])
    sys.exit(status)
