"""Hostile EDM snapshots: nothing in them is run, and none grows before it is refused."""

from __future__ import annotations

import importlib
import os
import pickle
import re
import tracemalloc
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

pytest.importorskip("deepinv")

from edm_snapshots import (
    DDPMPP,
    SMALL,
    Call,
    Persistent,
    importable_persistence,
    snapshot,
    write,
)

from scoreopt_defense import cli
from scoreopt_defense.pretrained.edm_pickle import read_snapshot


def touch(mark: Path) -> str:
    return f"touch {mark}"


PAYLOADS = {
    "os.system": lambda mark: Call(os.system, touch(mark)),
    "eval": lambda mark: Call(eval, f"open({str(mark)!r}, 'w').close()"),
    "exec": lambda mark: Call(exec, f"open({str(mark)!r}, 'w').close()"),
    "open": lambda mark: Call(open, str(mark), "w"),
    "import": lambda mark: Call(importlib.import_module, "antigravity_hostile"),
    "__import__": lambda mark: Call(__import__, "antigravity_hostile"),
    "getattr": lambda mark: Call(getattr, Call(importlib.import_module, "os"), "system"),
    "torch.load": lambda mark: Call(torch.load, str(mark)),
    "torch.hub": lambda mark: Call(torch.hub.load, "owner/repository", "model"),
}
PLACES = {
    "top": lambda payload: payload,
    "ema": lambda payload: {"ema": payload},
    "beside": lambda payload: snapshot(**DDPMPP, **SMALL) | {"dataset_kwargs": payload},
    "arguments": lambda payload: {
        "ema": Persistent("EDMPrecond", {"_init_kwargs": {"channel_mult": [payload]}})
    },
    "nested": lambda payload: {"ema": Call(OrderedDict, [("key", Call(OrderedDict, [payload]))])},
    "source": lambda payload: {"ema": Persistent("EDMPrecond", {}, payload)},
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("payload", PAYLOADS)
def test_calls_are_refused_by_name_and_not_made(payload, place, tmp_path):
    mark = tmp_path / "ran"
    path = write(tmp_path / "hostile.pkl", PLACES[place](PAYLOADS[payload](mark)))
    with pytest.raises(ValueError, match=r"refused, and nothing in it was run: it has .*neither"):
        read_snapshot(path)
    assert not mark.exists()


@pytest.mark.parametrize("payload", ["os.system", "eval", "exec"])
def test_the_same_calls_are_made_by_pickle_itself(payload, tmp_path):
    mark = tmp_path / "ran"
    pickle.loads(pickle.dumps(PAYLOADS[payload](mark)))
    assert mark.exists()


GLOBALS = [
    b"cos\nsystem\n",
    b"cposix\nsystem\n",
    b"cbuiltins\neval\n",
    b"c__builtin__\neval\n",
    b"cbuiltins\ngetattr\n",
    b"coperator\nattrgetter\n",
    b"cfunctools\npartial\n",
    b"ccopyreg\n_reconstructor\n",
    b"ctorch_utils.persistence\nimport_hook\n",
    b"ctorch_utils.persistence\n_src_to_module\n",
    b"ctorch\nload\n",
    b"ctorch.storage\nUntypedStorage\n",
    b"ctorch._utils\n_rebuild_tensor_v2.__globals__\n",
    b"\x8c\x0bcollections\x8c\x14OrderedDict.__init__\x93",
    b"ccollections\nOrderedDict.fromkeys\n",
]


@pytest.mark.parametrize("name", GLOBALS)
def test_names_are_refused_before_they_are_looked_up(name, tmp_path):
    path = tmp_path / "hostile.pkl"
    path.write_bytes(b"\x80\x04" + name + b".")
    with pytest.raises(ValueError, match="neither a tensor nor a plain container"):
        read_snapshot(path)


OPERATIONS = {
    "INST": b"(S'true'\nios\nsystem\n.",
    "OBJ": b"(cbuiltins\nset\nS'x'\no.",
    "EXT1": b"\x82\x01.",
    "PERSID": b"Pstorage\n.",
    "BINPERSID": b"\x80\x04\x8c\x01aQ.",
    "BYTEARRAY8": b"\x96\x01" + b"\0" * 7 + b"x.",
    "DICT": b"(d.",
    "POP": b"N0.",
    "LONG4": b"\x8b\x01\0\0\0\x01.",
    "REDUCE of no name": b"\x8c\x01a)R.",
    "BUILD of a list": b"]}b.",
    "APPEND to a dict": b"}Na.",
    "SETITEM of a list": b"]NNs.",
    "a tuple as a key": b"})Ns.",
    "BUILD of a name": b"cnumpy\ndtype\nN}\x8c\x01aNs\x86b.",
    "BUILD of a name's attributes": b"cnumpy\ndtype\n}\x8c\x01aNsb.",
    "a name as a key": b"}cnumpy\ndtype\nNs.",
    "a number as a key": b"}K\x01Ns.",
    "a tuple in a set": b"\x8f()\x90.",
    "a frame that ends within an operation": b"\x80\x04\x95\x02" + b"\0" * 7 + b"N\x8c\x01a.",
    "a record as a key": b"}cnumpy\ndtype\n)RNs.",
    "a stack underflow": b"\x86.",
    "a missing mark": b"t.",
    "a missing memo": b"h\x07.",
    "no end": b"N",
    "nothing on the stack": b".",
    "an odd set of items": b"}(Nu.",
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operations_beyond_data_and_broken_ones_are_refused(operation, tmp_path):
    path = tmp_path / "hostile.pkl"
    path.write_bytes(OPERATIONS[operation])
    with pytest.raises(ValueError, match="was refused"):
        read_snapshot(path)


def storage_bytes(
    *,
    declared: int = 4,
    again: int | None = None,
    body: bytes = b"\0" * 16,
    kind: str = "Float",
    name: str = "k",
    key: bytes | None = None,
) -> bytes:
    """A storage as torch.save writes it in the old format, with lengths of one's choice."""
    again = declared if again is None else again
    parts = [pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    parts += [b"\x80\x02(X\x07\0\0\0storagectorch\n", kind.encode(), b"Storage\n"]
    parts += [
        key or pickle.dumps(name, 2)[2:-1],
        b"X\x03\0\0\0cpu",
        pickle.dumps(declared, 2)[2:-1],
        b"NtQ.",
    ]
    return b"".join(
        [*parts, pickle.dumps([name], 2), again.to_bytes(8, "little", signed=True), body]
    )


def tensor_pickle(
    blob: bytes, *, offset: int = 0, size: tuple = (4,), stride: tuple = (1,), times: int = 1
) -> bytes:
    """A snapshot of such weights, each with a storage of its own, made from the same bytes."""

    def weight() -> Call:
        storage = Call(torch.storage._load_from_bytes, blob)
        return Call(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, {})

    weights = {f"t{i}": weight() for i in range(times)}
    with importable_persistence():
        return pickle.dumps(with_modules({"a": module(parameters=weights)}), 4)


def test_the_hostile_tensors_differ_from_a_good_one_only_in_their_numbers(tmp_path):
    path = tmp_path / "good.pkl"
    path.write_bytes(tensor_pickle(storage_bytes(body=torch.arange(4.0).numpy().tobytes())))
    _, weights = read_snapshot(path)
    assert weights.keys() == {"a.t0"}
    assert torch.equal(weights["a.t0"], torch.arange(4.0))


def test_weights_may_be_parts_of_one_storage(tmp_path):
    """Each is read from its part: the whole, ten times, would be more than the file."""
    parts = dict(zip("abcdefghij", torch.arange(1e5).reshape(10, 100, 100).mT, strict=True))
    path = write(tmp_path / "parts.pkl", with_modules({"m": module(parameters=parts)}))
    _, weights = read_snapshot(path)
    assert weights.keys() == {f"m.{name}" for name in parts}
    assert all(torch.equal(weights[f"m.{name}"], parts[name]) for name in parts)
    assert all(value.untyped_storage().nbytes() == 40_000 for value in weights.values())


def nested_key(depth: int) -> bytes:
    """A pair of pairs of pairs ... as a key: its hash takes two to the depth steps."""
    return b"})\x94" + b"".join(b"h%c\x86\x94" % i for i in range(depth)) + b"Ns."


TERABYTE = 2**38  # float32 numbers

BOMBS = {
    "a storage that declares a terabyte": (
        lambda: tensor_pickle(storage_bytes(declared=TERABYTE)),
        "declares 274877906944 torch.float32 in 16 bytes",
    ),
    "a storage that declares less than nothing": (
        lambda: tensor_pickle(storage_bytes(declared=-1)),
        "declares -1",
    ),
    "a storage of two lengths": (lambda: tensor_pickle(storage_bytes(again=5)), "declares 4"),
    "a storage with a tail": (lambda: tensor_pickle(storage_bytes(body=b"\0" * 20)), "20 bytes"),
    "a storage of an unknown kind": (
        lambda: tensor_pickle(storage_bytes(kind="Quantum")),
        "torch.QuantumStorage",
    ),
    "a storage whose key takes exponential time": (
        lambda: tensor_pickle(storage_bytes(key=nested_key(60)[1:-3])),
        "more operations",
    ),
    "a storage that calls": (
        lambda: tensor_pickle(pickle.dumps(Call(os.system, "true"))),
        "system",
    ),
    "a tensor of stride 0": (
        lambda: tensor_pickle(storage_bytes(), size=(2**40,), stride=(0,)),
        "1,099,511,627,776 numbers in a storage of 4",
    ),
    "a tensor that repeats what it spans": (
        lambda: tensor_pickle(storage_bytes(), size=(2, 2), stride=(1, 1)),
        "4 numbers in a storage of 4",
    ),
    "a tensor beyond its storage": (
        lambda: tensor_pickle(storage_bytes(), offset=2),
        "4 numbers in a storage of 4",
    ),
    "a tensor before its storage": (lambda: tensor_pickle(storage_bytes(), offset=-1), "negative"),
    "a tensor of negative stride": (
        lambda: tensor_pickle(storage_bytes(), stride=(-1,)),
        "negative",
    ),
    "a tensor of many dimensions": (
        lambda: tensor_pickle(storage_bytes(), size=(1,) * 99, stride=(1,) * 99),
        "unequal size",
    ),
    "a thousand copies of one storage": (
        lambda: tensor_pickle(
            storage_bytes(declared=2**18, body=b"\0" * 2**20), size=(2**18,), times=1000
        ),
        "larger than the file",
    ),
    "a memo of four billion": (
        lambda: b"Nr\xff\xff\xff\xffj\xfe\xff\xff\xff.",
        "Memo value not found",
    ),
    "bytes that are not there": (lambda: b"\x8e" + b"\xff" * 7 + b"\x00.", "malformed"),
    "text that is not there": (lambda: b"\x8d" + b"\xff" * 7 + b"\x00.", "malformed"),
    "a frame that is not there": (lambda: b"\x80\x04\x95" + b"\xff" * 7 + b"\x7f}", "malformed"),
    "a key that takes exponential time": (lambda: nested_key(200), "tuple as a key"),
    "keys of one hash": (
        lambda: (
            b"}("
            + b"".join(pickle.dumps(i * (2**61 - 1), 2)[2:-1] + b"N" for i in range(1, 10**5))
            + b"u."
        ),
        "int as a key",
    ),
    "many dictionaries": (lambda: b"}" * 600_000 + b".", "more operations"),
    "one list made a set again and again": (
        lambda: b"]\x94(" + b"K\x01" * 20_000 + b"e" + b"cbuiltins\nset\nh\x00\x85R" * 40 + b".",
        "filled by its call",
    ),
    "one tuple copied again and again": (
        lambda: b"(" + b"K\x01" * 20_000 + b"t\x94" + b"cnumpy\ndtype\nh\x00R" * 2_000 + b".",
        "class 'numpy.dtype'",
    ),
    "one storage with a long name read again and again": (
        lambda: tensor_pickle(
            storage_bytes(name="k" * 2**16, declared=0, body=b""),
            size=(0,),
            times=400,
        ),
        "malformed",
    ),
    "objects in objects": (
        lambda: b"cnumpy\ndtype\n" * 30_000 + b")" + b"R\x85" * 29_999 + b"R.",
        "class 'numpy.dtype'",
    ),
    "lists in lists": (lambda: b"]" * 100_000 + b"a" * 99_999 + b".", "class 'list'"),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_are_refused_before_they_grow(bomb, tmp_path):
    make, reason = BOMBS[bomb]
    path = tmp_path / "bomb.pkl"
    path.write_bytes(make())
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=f"was refused.*{reason}"):
            read_snapshot(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 200 * len(make()) + 10e6  # of Python's objects


def module(*, parameters=None, buffers=None, modules=None, passing=frozenset()) -> Persistent:
    """A module as EDM pickles it, with no more than reading takes."""
    return Persistent(
        "Linear",
        {
            **{"_parameters": parameters or {}, "_buffers": buffers or {}},
            **{"_modules": modules or {}, "_non_persistent_buffers_set": set(passing)},
        },
    )


def with_modules(modules: dict) -> dict:
    """A snapshot whose U-Net has these modules, and no weights of its own."""
    content = snapshot(**DDPMPP, **SMALL)
    unet = content["ema"].meta["state"]["_modules"]["model"].meta["state"]
    unet |= {"_modules": modules, "_parameters": {}, "_buffers": {}}
    return content


def with_argument(value: object) -> dict:
    content = snapshot(**DDPMPP, **SMALL)
    unet = content["ema"].meta["state"]["_modules"]["model"].meta["state"]
    unet["_init_kwargs"] |= {"encoder_type": value}
    return content


def shared_graph() -> dict:
    """Twelve levels of modules, each of which holds the next ten times: 10 to the 12 paths."""
    inner = module(parameters={"w": None})
    for _ in range(12):
        inner = module(modules={str(i): inner for i in range(10)})
    return with_modules({"a": inner})


WIDE = {f"p{i}": None for i in range(20_000)}  # one dictionary, in every module
LONG = ["x" * 100_000] * 20_000  # one string, 2 GB when it is written out

EXHAUSTING = {
    "modules in a shared graph": (shared_graph, "more modules and weights than any network"),
    "a dictionary in every module": (
        lambda: with_modules({str(i): module(parameters=WIDE) for i in range(300)}),
        "more modules and weights than any network",
    ),
    "a list to be searched for each buffer": (
        lambda: with_modules({"a": Persistent("Linear", {
            "_parameters": {}, "_modules": {}, "_buffers": {f"b{i}": None for i in range(9000)},
            "_non_persistent_buffers_set": list(range(100_000)),
        })}),
        "a list in place of what a module holds",
    ),
    "one tensor under 3,000 names": (
        lambda: with_modules(
            {"a": module(parameters=dict.fromkeys(map(str, range(3000)), torch.zeros(700_000)))}
        ),
        "weights that are larger than the file that holds them",
    ),
    "a name of 1 MB above 500 weights": (
        lambda: with_modules({"x" * 10**6: module(
            parameters={str(i): torch.zeros(1) for i in range(500)})}),
        "a name longer than any network's, 'xxx",
    ),
    "names that grow with each level": (
        lambda: with_modules({"x" * 150: module(modules={"y" * 60: module()})}),
        "a name longer than any network's, 'xxx",
    ),
    "a name that is a number": (
        lambda: with_modules({"a": module(parameters={1: torch.zeros(1)})}),
        "int as a key",
    ),
    "a long list of one long string": (lambda: with_argument(LONG), "20000 items in .*encoder"),
    "a long string": (lambda: with_argument(LONG[0]), "100000 items in .* encoder_type"),
    "no weights": (lambda: with_modules({"a": module()}), "a network without weights"),
    "weights of no numbers": (
        lambda: with_modules({"a": module(parameters={"w": torch.zeros(0, 3)})}),
        "a network without weights",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", EXHAUSTING)
def test_small_files_that_would_grow_are_refused_by_the_command(case, tmp_path, capsys):
    make, said = EXHAUSTING[case]
    path = write(tmp_path / "bomb.pkl", make())
    tracemalloc.start()
    try:
        assert cli.main(["convert-edm", str(path), str(tmp_path / "out.safetensors")]) == 1
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert re.search(said, capsys.readouterr().err)
    assert peak < 10 * path.stat().st_size + 20e6
    assert os.listdir(tmp_path) == ["bomb.pkl"]


def test_modules_that_hold_themselves_are_refused(tmp_path):
    content = snapshot(**DDPMPP, **SMALL)
    unet = content["ema"].meta["state"]["_modules"]["model"]
    container = torch.nn.ModuleDict()
    container._modules["again"] = container
    unet.meta["state"]["_modules"]["enc"] = container
    path = write(tmp_path / "cycle.pkl", content)
    with pytest.raises(ValueError, match=r"longer than any network's, 'enc\.again\.again\."):
        read_snapshot(path)
