"""That the benchmark for whoever has a device works, on the CPU and at the smallest sizes."""

from __future__ import annotations

import re

import pytest
import torch

from benchmarks.common import results_file
from benchmarks.common.timing import SETTINGS
from benchmarks.speed import gpu
from scoreopt_defense.steps.compilation import _as_at_any_step

pytest.importorskip("scipy.stats")
pytest.importorskip("torchattacks")

pytestmark = pytest.mark.usefixtures("nothing_is_compiled")

SMALL = ["--device", "cpu", "--name", "mnist-tiny", "--rounds", "1", "--batches", "1"]


@pytest.fixture
def rows(monkeypatch, tmp_path):
    """Those of a run, which writes nothing."""
    monkeypatch.setattr(results_file, "RESULTS", tmp_path)
    kept = gpu.printed()
    monkeypatch.setattr(gpu, "printed", lambda: kept)
    yield kept.rows
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("quick", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_every_part_is_carried_out(rows, monkeypatch, tmp_path_factory, quick):
    monkeypatch.setattr(gpu, "_SECONDS_TO_COMPILE", 0)
    if quick:  # the suite's own files take long to collect, and processes to start
        tests = tmp_path_factory.mktemp("tests")
        (tests / "test_a.py").write_text("import pytest\n@pytest.mark.cuda\ndef test_a(): pass\n")
        monkeypatch.setattr(gpu, "TESTS", tests)
        monkeypatch.setattr(gpu, "WORKERS", (1, 1))
        monkeypatch.setattr(gpu, "SETTINGS", {"N": SETTINGS["N"]})
    assert gpu.main(SMALL) == 0
    parts = {row["part"]: row for row in rows}
    assert list(parts) == [*gpu.PARTS, "times"]
    collected = re.match(r"(\d+)/?\d* tests? collected", parts["tests"]["pytest"])
    assert (int(collected[1]) == 1) if quick else (int(collected[1]) > 15)
    assert parts["noise"]["other bits than the CPU's"] == 0
    assert parts["evaluation"]["same figures"]
    # a step of each reads its noise level, on the CPU, and nothing else
    found = [v for name, v in parts["host-free step"].items() if "ScoreOpt" in name]
    variants = len(gpu.SETTINGS)
    assert found == 2 * variants * [{"aten::_local_scalar_dense": 3}]
    times = [row for row in rows if row["part"] == "times"]
    ways = [{*row["ratios"]} for row in times]
    eager, compiled = {"eager", "bfloat16", "channels last"}, {"compiled", "CUDA graphs"}
    assert ways == variants * [eager] + variants * [compiled]


def test_a_part_that_fails_is_a_row_and_the_exit_code(rows, monkeypatch, capsys):
    def fail(args):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(gpu, "PARTS", {"noise": fail, "exact memory": lambda args: {"images": 1}})
    assert gpu.main([*SMALL, "--minutes", "0"]) == 1
    assert rows[0] == {"failed": "noise", "error": "RuntimeError: out of memory"}
    assert {"part": "exact memory", "images": 1} in rows
    assert capsys.readouterr().out.count("no time for ('compiled', 'CUDA graphs')") == 2
    monkeypatch.setitem(gpu.PARTS, "noise", lambda args: {"numbers": 1})
    assert gpu.main([*SMALL, "--minutes", "0"]) == 0  # tried again, and no failure is left
    assert {"part": "noise", "numbers": 1} in rows
    assert not any("failed" in row for row in rows)


def test_a_read_of_a_result_is_seen():
    x = torch.ones(3)
    assert gpu._waits(lambda: x.sum().item()) == {"aten::_local_scalar_dense": 1}
    assert gpu._waits(lambda: x.sum()) == {}


@pytest.mark.cuda
def test_a_compiled_step_is_given_whole_numbers_without_a_copy():
    x = torch.zeros(2, device="cuda")
    assert gpu._waits(lambda: torch.tensor(3, device="cuda"))["Memcpy HtoD"] == 1
    assert "Memcpy HtoD" not in gpu._waits(lambda: _as_at_any_step((3, x), x.device))


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a CUDA device")
def test_without_a_device_it_says_what_there_is_to_do(capsys):
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "--device cpu shows that this command works" in capsys.readouterr().err
