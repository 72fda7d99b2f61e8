"""The grids that presets are chosen from."""

from __future__ import annotations

import json

import pytest

from benchmarks.common import results_file
from benchmarks.models import tune_presets
from benchmarks.models.tune_presets import CLEAN, TRANSFER, WHITE_BOX, main
from scoreopt_defense.presets import preset


@pytest.mark.parametrize("white_box", [0, 2])
def test_a_grid_of_any_purifiers_is_measured_and_goes_on(white_box, tmp_path, monkeypatch, capsys):
    pytest.importorskip("mlxtend")
    pytest.importorskip("torchattacks")
    grid = {
        "one-shot": [("OneShot", {"sigma": 0.5}), ("OneShot", {"sigma": 2.0})],
        "mine": [("ScoreOpt", preset("mnist-tiny/N") | {"steps": 1})],
    }
    monkeypatch.setattr(results_file, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(tune_presets, "GRIDS", {"mnist-tiny": grid})
    given = ["mnist-tiny", "mnist", "--eps", "0.3", "--images", "4", "--runs", str(tmp_path)]
    given += ["--white-box-images", str(white_box)]
    main(given)
    written = (tmp_path / "results" / "tune_presets_mnist-tiny.json").read_text()
    found = json.loads(written)
    columns = [CLEAN, TRANSFER, *([WHITE_BOX] if white_box else [])]
    assert [list(row["accuracy"]) for row in found["rows"]] == [columns] * 3
    assert [row["accuracy"][columns[-1]]["n"] for row in found["rows"]] == [white_box or 4] * 3
    assert found["best"]["one-shot"] == {"sigma": 0.5}  # 2.0 leaves nothing of a digit
    capsys.readouterr()
    main(given)
    said = capsys.readouterr().err.splitlines()
    assert all(line.split()[0] == line.split()[2] for line in said if "before" in line)
    assert (tmp_path / "results" / "tune_presets_mnist-tiny.json").read_text() == written
