"""Units and workers that memory holds, with stand-ins for what there is."""

from __future__ import annotations

import re
from types import SimpleNamespace

import psutil
import pytest
import torch
from torch import nn
from toy_evaluation import Ascent, images

from scoreopt_defense import _memory, cli
from scoreopt_defense._memory import Alive, _left_in_groups, free_bytes
from scoreopt_defense.cli import evaluation as command
from scoreopt_defense.evaluation import Judging, Store, evaluate
from scoreopt_defense.evaluation.evaluate import materials_of
from scoreopt_defense.evaluation.run import fitting

CPU, GPU = torch.device("cpu"), torch.device("cuda")
OWN, IMAGE = 300, 10  # bytes of a process, and of an image


class Wide(nn.Module):
    """Holds ``width`` numbers of four bytes for each image, for its gradient."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        wide = x.mean((1, 2, 3))[:, None] * self.weight.detach()
        return wide.sin().reshape(len(x), 4, -1).mean(2)


def test_a_gradients_memory_is_counted_for_each_sample_of_eot():
    """A sample keeps its sine's argument; two or more arrays come on top, forward or backward."""
    width = 2**16
    model, (x, y) = Wide(width).eval(), images(2)
    alone = materials_of(model, (x, y), {"ascent": Ascent()}, Judging())
    once = fitting.image_bytes(alone)
    assert 2 * 4 * width <= once < 5 * 4 * width
    eot = materials_of(model, (x, y), ["pgd-eot-linf"], Judging())
    samples = eot.tasks["pgd-eot-linf"]["Wide"].attack.eot
    more = fitting.image_bytes(eot) - once
    assert more == pytest.approx((samples - 1) * 4 * width, rel=0.01)


def test_weights_are_no_part_of_it():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4096), nn.Linear(4096, 4)).eval()
    assert fitting.image_bytes(materials_of(model, images(2), (), Judging())) < 10 * 4 * 4096


def test_bytes_are_those_alive_at_once():
    known = torch.ones(1000)
    with Alive([known]) as alive:
        known.view(10, 100)
        one = known + 1
        del one
        other = known + 2
    assert (alive.now, alive.most) == (4000, 4000)
    del other
    assert alive.now == 0


@pytest.mark.parametrize(
    ("device", "half", "given", "found"),
    [
        (CPU, 10**6, {}, (32, 1, 8)),  # there is enough
        (CPU, 8 * (OWN + 5 * IMAGE), {}, (5, 1, 8)),
        (CPU, 3 * (OWN + IMAGE), {}, (1, 2, 3)),
        (CPU, 10, {}, (1, 8, 1)),  # and what does not fit is tried
        (CPU, 3 * (OWN + IMAGE), {"threads": 4}, (16, 4, 2)),
        (CPU, 3 * (OWN + 4 * IMAGE), {"batch": 4}, (4, 2, 3)),
        (CPU, 4 * (OWN + 7 * IMAGE), {"workers": 4}, (7, 2, 4)),
        (CPU, 10, {"batch": 9, "workers": 4}, (9, 2, 4)),
        (CPU, 10, {"batch": 9, "threads": 3}, (9, 3, 2)),
        (CPU, 10, {"batch": 9, "threads": 16}, (9, 16, 1)),
        (GPU, 7 * IMAGE, {"workers": 2}, (7, 4, 2)),  # each GPU has as much
        (GPU, 10**6, {"workers": 2, "threads": 1}, (32, 1, 2)),
    ],
)
def test_what_fits_is_found_and_what_is_given_stays(device, half, given, found, monkeypatch):
    monkeypatch.setattr(fitting, "image_bytes", lambda _: IMAGE)
    monkeypatch.setattr(fitting, "free_bytes", lambda _: 2 * half)
    memory = SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=OWN))
    monkeypatch.setattr(fitting.psutil, "Process", lambda: memory)
    assert fitting.fitting(None, device=device, cores=8, **given) == found


GIB = 2**30
V2 = {"max": 4 * GIB, "current": 3 * GIB, "stat": f"anon 5\ninactive_file {GIB}\n"}
V1 = {"limit_in_bytes": 4 * GIB, "usage_in_bytes": 3 * GIB,
      "stat": f"inactive_file 7\ntotal_inactive_file {GIB}\n"}  # fmt: skip


@pytest.mark.parametrize(
    ("own", "files", "left"),
    [
        ("0::/a/b\n", {"a/b": V2}, [2 * GIB]),
        ("0::/a/b\n", {"a/b": V2 | {"max": "max"}, "a": V2 | {"max": GIB}}, [0]),  # its parent's
        ("0::/of/the/host\n", {"": V2}, [2 * GIB]),  # within a container
        ("4:memory:/a\n3:cpu:/a\n0::/\n", {"memory/a": V1, "cpu/a": V2}, [2 * GIB]),
        ("4:memory:/of/the/host\n", {"memory": V1}, [2 * GIB]),
        ("0::/a\n", {}, []),
        (None, {}, []),
    ],
)
def test_what_a_container_may_use_is_known(own, files, left, tmp_path, monkeypatch):
    for group, contents in files.items():
        (tmp_path / "groups" / group).mkdir(parents=True, exist_ok=True)
        for name, text in contents.items():
            (tmp_path / "groups" / group / f"memory.{name}").write_text(f"{text}\n")
    if own is not None:
        (tmp_path / "own").write_text(own)
    places = tmp_path / "own", tmp_path / "groups"
    assert _left_in_groups(*places) == left
    monkeypatch.setattr(_memory, "_GROUPS", places)
    machine = SimpleNamespace(available=3 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: machine)
    free = min([3 * GIB, *left])
    assert free_bytes(CPU) == free
    monkeypatch.setattr(_memory, "_sharing", 4)
    assert free_bytes(CPU) == free // 4


class Free(nn.Module):
    """Says how many processes it takes the memory to be shared by."""

    def forward(self, x):
        return torch.full((len(x), 8), -1.0).index_fill(1, torch.tensor(_memory._sharing), 1.0)


@pytest.mark.parametrize("workers", [1, 3])
def test_each_worker_takes_its_part_of_the_memory(workers):
    data = torch.zeros(2, 1, 4, 4), torch.full((2,), workers)
    result = evaluate({"it": Free().eval()}, data, {}, workers=workers, checks=False)
    assert float(result.cell("it").accuracy) == 1.0


def test_what_was_found_once_is_the_records(tmp_path, monkeypatch, capsys):
    (tmp_path / "a.toml").write_text(
        'batch = "auto"\nthreads = "auto"\n[images]\nsource = "mnist"\nn = 6\n'
        '[defences.a]\nclassifier = "mnist-tiny"\n[judging]\npurifications = 1\n'
    )
    monkeypatch.setattr(command, "_cores", lambda: 2)
    of_two = fitting.image_bytes
    monkeypatch.setattr(fitting, "image_bytes", lambda of: of_two(of) and GIB)
    memory = SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=GIB))
    monkeypatch.setattr(fitting.psutil, "Process", lambda: memory)

    def evaluated(*options, gib=8):
        monkeypatch.setattr(fitting, "free_bytes", lambda _: gib * GIB)
        status = cli.main(
            ["evaluate", str(tmp_path / "a.toml"), "--out", str(tmp_path / "run"), *options]
        )
        return status, capsys.readouterr()

    status, said = evaluated("--workers", "1")
    assert status == 0
    assert "Units of 3 images, 2 thread(s) in each of 1 worker(s)." in said.err
    with Store(tmp_path / "run") as store:
        before, units = store.plan(), store.done()
    assert (before.batch, before.threads, len(units)) == (3, 2, 2)
    status, said = evaluated("--workers", "1", gib=100)
    assert status == 0
    with Store(tmp_path / "run") as store:
        assert (store.plan().hash, store.done()) == (before.hash, units)
    status, said = evaluated("--cluster", "tcp://localhost:1")
    assert status
    assert re.search(r'"auto" go by this machine\'s memory', said.err)
