"""A result as a notebook has it: what it says of itself, hands on and writes."""

from __future__ import annotations

import sys

import pytest
from toy_evaluation import run

from scoreopt_defense.evaluation import Result, Store
from scoreopt_defense.evaluation.record.statistics import proportion
from scoreopt_defense.evaluation.suite.verdict import verdict

NAME = "<one> & other"


@pytest.fixture(scope="module")
def result():
    from toy_evaluation import defences

    made = defences()
    few = {NAME: made["one-shot"], "noisy": made["noisy"]}
    return run(None, defences=few, trials=1, checks=True)


def test_it_says_the_verdict_and_shows_the_table(result):
    assert repr(result) == f"{verdict(result, NAME)}\n{verdict(result, 'noisy')}"
    shown = result._repr_html_()
    assert "&lt;one&gt; &amp; other" in shown
    assert NAME not in shown
    for line in str(result).splitlines()[:3]:
        for cell in line.split("  "):
            assert cell.strip().replace("<one> &", "&lt;one&gt; &amp;") in shown


def test_a_cell_is_found_by_its_names(result):
    assert result[NAME, "long"] == result.cell(NAME, "long")
    with pytest.raises(TypeError, match=r'result\["defence", "attack"\], got \'noisy\''):
        result["noisy"]
    with pytest.raises(ValueError, match="attack must be one of"):
        result["noisy", "other"]


def test_its_table_for_pandas_has_each_cells_figure(result, monkeypatch):
    pytest.importorskip("pandas")
    table = result.to_pandas().set_index(["defence", "attack"])
    assert len(table) == len(result.cells) == 6
    for cell in result.cells:
        row = table.loc[(cell.defence, cell.attack)]
        share = cell.robust
        assert (row.accuracy, row.low, row.high, row.images) == (
            share.value,
            share.low,
            share.high,
            12,
        )
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"needs pandas.*pip install pandas"):
        result.to_pandas()


def test_it_draws_each_figure_with_its_interval_worst_first(result, monkeypatch):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    axes = result.plot()
    labels = [label.get_text() for label in axes.get_yticklabels()]
    drawn, defence = {}, ""
    points = {bars.lines[0].get_ydata()[0]: bars for bars in axes.containers}
    for place, label in enumerate(labels):
        if place not in points:
            defence = label
            continue
        (value,) = points[place].lines[0].get_xdata()
        ((low, _), (high, _)) = points[place].lines[2][0].get_segments()[0]
        drawn.setdefault(defence, {})[label.replace("no attack", "clean")] = (low, value, high)
    assert drawn.keys() == {NAME, "noisy"}
    for name, of in drawn.items():
        assert list(of.values()) == sorted(of.values(), key=lambda ends: ends[1])
        for attack, ends in of.items():
            share = result[name, attack].robust
            wanted = [100 * part for part in (share.low, share.value, share.high)]
            assert ends == pytest.approx(wanted)
    assert result.plot(axes) is axes
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"needs matplotlib.*scoreopt-defense\[plots\]"):
        result.plot()


def test_the_page_is_that_of_the_run(result, tmp_path):
    path = result.report(tmp_path / "pages" / "page.html")
    assert "&lt;one&gt; &amp; other" in path.read_text()


def test_a_record_of_memory_is_saved_with_its_images(result, tmp_path):
    folder = result.save(tmp_path / "run")
    with Store(folder) as store:
        saved = Result(store)
        assert saved.cells == result.cells
        assert str(saved) == str(result)
        images = saved.adversarial("noisy", "long")
    assert (images == result.adversarial("noisy", "long")).all()
    with pytest.raises(FileExistsError, match=r"a record in .* already"):
        result.save(folder)
    with Store(folder) as store, pytest.raises(ValueError, match="already: copy that folder"):
        Result(store).save(tmp_path / "other")


def test_a_share_is_a_number_and_true_where_it_is_none():
    share, none = proportion(8, 10), proportion(0, 10)
    assert float(share) == 0.8
    assert none < 0.5 < share
    assert none < share
    assert share >= 0.8 >= share
    assert not share > 0.8
    assert f"{share:.0%} {share}" == f"80% {share!s}"
    assert sum(map(float, (share, none))) == 0.8
    assert none  # there is a figure
