"""The leaderboard's rows are about the bundles that are committed, which hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.common.table_text import results
from benchmarks.leaderboard import digest
from benchmarks.leaderboard import main as add
from scoreopt_defense.evaluation import config
from scoreopt_defense.evaluation.bundle import Bundle, verify

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks/bundles"
ROWS = {row["bundle"]: row for row in results("leaderboard")["rows"]}


def test_bundles_are_small():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 2 * 10**6


@pytest.mark.parametrize("path", sorted(FOLDER.iterdir()), ids=lambda path: path.stem)
def test_a_row_is_about_its_bundle(path):
    bundle, row = Bundle.read(path), ROWS[path.name]
    assert row["sha256"] == digest(path)
    assert row["outcome"] == "confirmed"
    assert row["claimed"]["value"] == round(bundle.share.value, 4)
    assert (row["defence"], row["norm"], row["eps"]) == (bundle.defence, bundle.norm, bundle.eps)
    assert bundle.predicted.shape[1] >= 16 <= row["purifications"][1]


@pytest.mark.parametrize("name", ["undefended", "one-shot"])
def test_a_bundle_is_of_the_defence_that_ships_now(name):
    """Few draws, so that the margin is wide: what is checked is the networks and images."""
    read = config.load(ROOT / "benchmarks/configs/leaderboard.toml")
    bundle = Bundle.read(FOLDER / f"mnist-{name}.zip")
    found = verify(bundle, read.defence(name), read.source(), margin=0.2, purifications=2)
    assert found.outcome == "confirmed", found


def test_a_row_is_added_by_a_command(monkeypatch, tmp_path, capsys):
    from benchmarks.common import results_file, table_text

    for module in (results_file, table_text):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    monkeypatch.setattr("benchmarks.leaderboard.RESULTS", tmp_path)
    call = [str(FOLDER / "mnist-undefended.zip"), "--defence",
            str(ROOT / "benchmarks/configs/leaderboard.toml"), "--purifications", "8"]  # fmt: skip
    for data in ("digits", "MNIST"):
        monkeypatch.setattr("sys.argv", ["leaderboard", *call, "--data", data])
        add()
    (row,) = results("leaderboard")["rows"]
    assert (row["data"], row["defence"], row["outcome"]) == ("MNIST", "undefended", "confirmed")
    assert "confirmed: of 64 images" in capsys.readouterr().out
