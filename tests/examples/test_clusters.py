"""Recipes for clusters: each option is one that the tool still has, and Slurm's runs as it is."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from killed_runs import recorded

ROOT = Path(__file__).parents[2]
pytest.importorskip("distributed")
yaml = pytest.importorskip("yaml")  # Dask's own


def console(page: str) -> list[str]:
    """Commands that a page shows."""
    blocks = re.findall(r"```console\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    return re.findall(r"^\$ (.*)$", "\n".join(blocks), re.MULTILINE)


def manifest() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "examples/on_kubernetes.yaml").read_text())


def containers() -> list[dict[str, Any]]:
    spec = manifest()["spec"]
    return [spec[part]["spec"]["containers"][0] for part in ("scheduler", "worker")]


COMMANDS = [line for line in console("docs/how-to/cluster.md") if line.startswith("dask ")] + [
    shlex.join(container["args"]) for container in containers()
]


def tool_of(words: list[str]) -> tuple[Any, list[str]]:
    """Dask's own parser of a command, and what is given to it."""
    if words[1] == "cuda":
        module = pytest.importorskip("dask_cuda.cli")
        return module.cuda.commands[words[2]], words[3:]
    module = importlib.import_module(f"distributed.cli.dask_{words[1]}")
    return module.main, words[2:]


@pytest.mark.parametrize("command", COMMANDS)
def test_dasks_commands_know_their_options(command):
    tool, given = tool_of(shlex.split(command, comments=True))
    known = {name for param in tool.params for name in (*param.opts, *param.secondary_opts)}
    assert {word for word in given if word.startswith("--")} <= known
    context = tool.make_context("it", given)
    assert not context.params["preload_argv"], "Dask takes what it does not know for these"


def test_there_is_a_command_of_each_kind():
    kinds = {" ".join(shlex.split(command)[:2]) for command in COMMANDS}
    assert kinds == {"dask scheduler", "dask worker", "dask cuda"}


def unknown(given: Any, schema: dict[str, Any], where: str = "") -> Iterator[str]:
    """Fields of a manifest that a resource's schema does not have."""
    if isinstance(given, list):
        for item in given:
            yield from unknown(item, schema["items"], where)
    elif isinstance(given, dict) and (fields := schema.get("properties")):
        for name, value in given.items():
            if name in fields:
                yield from unknown(value, fields[name], f"{where}.{name}")
            else:
                yield f"{where}.{name}"


def test_kubernetes_knows_the_fields_of_the_cluster():
    found = importlib.util.find_spec("dask_kubernetes")
    if found is None:
        pytest.skip("needs dask-kubernetes")
    crds = Path(found.origin).parent / "operator/deployment/helm/dask-kubernetes-operator/crds"
    definition = yaml.safe_load((crds / "daskcluster.yaml").read_text())["spec"]
    (version,) = definition["versions"]
    given = manifest()
    assert given["apiVersion"] == f"{definition['group']}/{version['name']}"
    assert given["kind"] == definition["names"]["kind"]
    schema = version["schema"]["openAPIV3Schema"]
    assert not list(unknown(given["spec"], schema["properties"]["spec"], "spec"))
    given["spec"]["worker"]["spec"]["containers"][0]["arguments"] = []
    assert list(unknown(given["spec"], schema["properties"]["spec"], "spec")) == [
        "spec.worker.spec.containers.arguments"
    ]


def test_the_parts_of_the_manifest_name_each_other():
    given = manifest()
    name, service = given["metadata"]["name"], given["spec"]["scheduler"]["service"]
    scheduler, worker = containers()
    assert service["selector"]["dask.org/cluster-name"] == name
    assert f"service/{name}-scheduler 8786" in (ROOT / "examples/on_kubernetes.yaml").read_text()
    ports = {port["name"]: port["containerPort"] for port in scheduler["ports"]}
    assert {port["targetPort"]: port["port"] for port in service["ports"]} == ports
    assert scheduler["image"] == worker["image"]


def test_the_job_that_slurm_is_asked_for():
    pytest.importorskip("dask_jobqueue")
    import on_slurm

    with on_slurm.SLURMCluster(**on_slurm.WORKER, **on_slurm.JOB) as cluster:
        script = cluster.job_script()
    for part in ("#SBATCH -p gpu", "#SBATCH -t 04:00:00", "#SBATCH --gres=gpu:1",
                 "--nthreads 1", "--lifetime 220m"):  # fmt: skip
        assert part in script
    assert "--nworkers" not in script  # a worker a job


def test_slurms_recipe_runs_but_for_its_submission(tmp_path, monkeypatch):
    jobqueue = pytest.importorskip("dask_jobqueue.local")
    import on_slurm

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "a.toml").write_text(
        'batch = 1\n[images]\nsource = "mnist"\nn = 6\n[defences.a]\nclassifier = "mnist-tiny"\n'
    )
    with jobqueue.LocalCluster(**on_slurm.WORKER, scheduler_options={"dashboard": False}) as jobs:
        told = {"minimum_jobs": 1, "maximum_jobs": 1}
        assert on_slurm.evaluate_on(jobs, told, ["a.toml", "--out", "run"]) == 0
        (worker,) = jobs.scheduler.workers.values()
        assert worker.nthreads == 1
    assert recorded(tmp_path / "run") == 6
