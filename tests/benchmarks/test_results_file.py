"""Result files of benchmarks: a run goes on where it was, and no row is ever lost."""

from __future__ import annotations

import json
import os

import pytest

from benchmarks.common import results_file
from benchmarks.common.results_file import resumed

ABOUT = {"images": 8, "sigma": (0.15, 0.35), "weights": {"denoiser": "abc"}, "seed": 0}
KEY = {"variant": "N", "sigma": (0.1, 0.2)}


@pytest.fixture(autouse=True)
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(results_file, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


def test_a_run_goes_on_where_it_was(results):
    rows = resumed("it", **ABOUT)
    assert not rows.has(KEY)
    rows.add(KEY | {"value": 1})
    assert rows.has(KEY)
    rows = resumed("it", **ABOUT)
    assert rows.has(KEY)
    assert not rows.has(KEY | {"variant": "O"})
    rows.add({"variant": "O"})
    written = json.loads((results / "it.json").read_text())
    assert list(written) == ["machine", *ABOUT, "rows"]
    assert [row["variant"] for row in written["rows"]] == ["N", "O"]
    assert os.listdir(results) == ["it.json"]


def test_each_row_is_written_when_it_is_added(results):
    rows = resumed("it", **ABOUT)
    rows.add(KEY)
    assert len(json.loads((results / "it.json").read_text())["rows"]) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"sigma": (0.15, 0.5)}, r"sigma was \[0.15, 0.35\] and is \[0.15, 0.5\]"),
        ({"steps": 5}, "steps was None and is 5"),
        ({"weights": {"denoiser": "x"}, "seed": 2}, "weights was .*; seed was 0 and is 2"),
    ],
)
def test_rows_about_other_inputs_are_refused_and_kept(change, said, results):
    resumed("it", **ABOUT).add(KEY)
    before = (results / "it.json").read_bytes()
    with pytest.raises(ValueError, match=rf"it\.json has rows about other inputs: {said}.*move"):
        resumed("it", **ABOUT | change)
    assert (results / "it.json").read_bytes() == before


def test_inputs_that_are_no_longer_named_are_another_run():
    resumed("it", **ABOUT).add(KEY)
    with pytest.raises(ValueError, match="seed was 0 and is None"):
        resumed("it", **{name: value for name, value in ABOUT.items() if name != "seed"})


@pytest.mark.parametrize("content", ["", '{"rows": [{"variant', "[]", '{"seed": 0}', "null"])
def test_an_unreadable_file_is_an_error_and_stays(content, results):
    results.mkdir()
    (results / "it.json").write_text(content)
    with pytest.raises(ValueError, match=r"it\.json is no result file.*move it"):
        resumed("it", **ABOUT)
    assert (results / "it.json").read_text() == content


def test_a_write_that_fails_leaves_the_file_as_it_was(results, monkeypatch):
    rows = resumed("it", **ABOUT)
    rows.add(KEY)
    before = (results / "it.json").read_bytes()

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        rows.add({"variant": "O"})
    assert (results / "it.json").read_bytes() == before
    assert os.listdir(results) == ["it.json"]
