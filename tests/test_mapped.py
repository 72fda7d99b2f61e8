"""Objects that other processes map: what is tied stays tied, and nobody changes another's."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from scoreopt_defense._foreign import as_it_was
from scoreopt_defense._mapped import _MAPS, Mapped, _maps, map_weights, packed, unpacked, unwritten

MAPS = pytest.mark.skipif(sys.platform == "win32", reason="copies")


def mapped(thing, times=1):
    """As so many processes get it."""
    given = Mapped(thing)
    arrived = SimpleNamespace(detach=lambda: os.dup(given._file.fileno()))
    return [unpacked(_maps(arrived)) for _ in range(times)]


def copied(thing):
    return [unpacked(packed(thing))]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 2048), nn.BatchNorm1d(2048), nn.Linear(2048, 4))


WAYS = [copied, pytest.param(mapped, marks=MAPS)]
SIZES = [0, 3, 5000]  # of nothing, of less than a page, and of more
TYPES = [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.bool, torch.complex64]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", TYPES)
def test_tensors_of_any_type_arrive(way, kind):
    whole = torch.rand(5000).sub(0.5).to(kind)
    sent = [whole[:size].clone() for size in SIZES] + [whole[::7], whole.view(50, 100).T]
    (found,) = way(sent)
    for one, other in zip(sent, found, strict=True):
        assert (one.dtype, one.shape, one.stride()) == (other.dtype, other.shape, other.stride())
        assert torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))
        assert other.untyped_storage().data_ptr() % 64 == 0


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", SIZES[1:])
def test_what_is_tied_stays_tied(way, size):
    weight = nn.Parameter(torch.zeros(size))
    ties = [weight, weight, weight.detach(), weight.detach()[1:], weight.detach().view(torch.int32)]
    (found,) = way(ties)
    assert found[0] is found[1]
    found[2][1] = 1.0
    assert [float(tensor.detach()[place]) for tensor, place in zip(found, (1, 1, 1, 0))] == [1] * 4
    assert found[4][1] == torch.tensor(1.0).view(torch.int32)
    assert not weight.any()


@MAPS
def test_no_process_changes_what_another_has():
    net, x = network(), torch.rand(8, 64)
    before = net.eval()(x)
    one, other = mapped(net, times=2)
    one.train()(x)  # which writes running statistics
    with torch.no_grad():
        one[0].weight.add_(1)
    assert not torch.equal(one[1].running_mean, net[1].running_mean)
    for same in (net, other):
        assert torch.equal(same(x), before)


@MAPS
def test_what_is_written_is_put_back_from_the_map():
    net = network().eval()
    (found,) = mapped(net)
    weight, mean = found[0].weight, found[1].running_mean
    kept = unwritten(weight)
    assert torch.equal(kept, weight)
    assert kept.data_ptr() != weight.data_ptr()
    with as_it_was(found), torch.no_grad():
        weight[3].mul_(2), mean.add_(1)
        assert unwritten(weight) is None
        assert torch.equal(kept, net[0].weight)
    assert torch.equal(weight, net[0].weight)
    assert torch.equal(mean, net[1].running_mean)
    assert torch.equal(unwritten(weight), weight)


@MAPS
def test_a_modules_own_weights_are_mapped_and_let_go():
    net, x = network().eval(), torch.rand(8, 64)
    net.add_module("tied", nn.Linear(2048, 4))
    net.tied.weight = net[2].weight
    net.register_buffer("sparse", torch.eye(3).to_sparse())
    net.register_parameter("lazy", nn.UninitializedParameter())
    weight = net[0].weight.requires_grad_(False)
    before, parts = net[:3](x), [(p, p.requires_grad) for p in net.parameters()]
    assert unwritten(weight) is None
    map_weights(net)
    for (one, required), other in zip(parts, net.parameters(), strict=True):
        assert one is other
        assert other.requires_grad == required
    assert torch.equal(net[:3](x), before)
    assert torch.equal(unwritten(weight), weight)
    kept = weakref.ref(list(_MAPS)[-1])
    del net, weight, parts, before, one, other
    gc.collect()
    assert kept() is None


def test_of_what_is_not_mapped_nothing_is_kept():
    (found,) = copied(network())
    others = [torch.zeros(5), torch.zeros(5, device="meta"), torch.eye(3).to_sparse()]
    assert all(unwritten(tensor) is None for tensor in [*others, found[0].weight])


WAITING = """
import multiprocessing, time
import torch
from scoreopt_defense._mapped import Mapped, unpacked

def wait(given):
    print(int(unpacked(given).sum()), flush=True)
    multiprocessing.parent_process().join()

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    given = Mapped(torch.ones(10**5))
    context.Process(target=wait, args=(given,)).start()
    time.sleep(600)
"""


@MAPS
def test_nothing_is_left_of_a_process_that_is_killed(tmp_path):
    (tmp_path / "waiting.py").write_text(WAITING)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "waiting.py")], stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": path, "TMPDIR": str(temporary)},
    ) as process:  # fmt: skip
        assert process.stdout.readline() == "100000\n"
        process.kill()
    assert not list(temporary.iterdir())
