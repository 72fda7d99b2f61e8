"""The paper's tables at both scales: what they would run, that it runs, and that it is drawn."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections import defaultdict
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("pydantic")
pytest.importorskip("torchattacks")

from benchmarks.adaptive.figures import paired
from benchmarks.adaptive.run import LITERATURE, MAIN, ROWS, changed
from benchmarks.common import results_file
from benchmarks.common.table_text import less, shares
from benchmarks.paper import cells as paper_cells
from benchmarks.paper import cost as paper_cost
from benchmarks.paper import drawing as paper_drawing
from benchmarks.paper import random_networks
from benchmarks.paper import run as paper_tables
from benchmarks.paper import timing as paper_timing
from benchmarks.paper.cells import SCALES, TABLES, cells, rows, specification
from scoreopt_defense import Fitted, data
from scoreopt_defense.data.choosing import drawn
from scoreopt_defense.denoisers import EDMDenoiser
from scoreopt_defense.evaluation import Store, named
from scoreopt_defense.evaluation import config as configuration

BOTH = pytest.mark.parametrize("scale", SCALES)
#: Few steps of one sample each, where the paper's are too long for a test.
SHORT = {
    **{name: {"steps": 2, "eot": 1} for name in ("bpda-eot-linf", "pgd-eot-linf", "pgd-eot-l2")},
    **{f"pgd-eot-surrogate-{norm}": {"steps": 2, "eot": 1} for norm in ("linf", "l2")},
    **{f"transfer-pgd-{norm}": {"steps": 2} for norm in ("linf", "l2")},
    "stadv": {"steps": 2, "eot": 1},
}


def test_every_table_and_figure_of_the_issue_is_there():
    tables = {f"table{n:02}" for n in range(1, 14)} - {"table10"}  # which has the settings
    figures = {f"figure{n}" for n in range(2, 6)}
    assert set(TABLES) == tables | figures | {"section422", "section43", "section441"}


@BOTH
@pytest.mark.parametrize("table", TABLES)
def test_each_configuration_is_valid(table, scale):
    for cell in cells(table, scale):
        made = cell.config("images")
        assert set(made.attacks) == set(cell.attacks)
        for name, section in made.attacks.items():
            configuration._attack(name, section, 3 * 32 * 32)
        assert paper_cost._operations(cell) > 0  # its purifier's settings are valid too


@BOTH
def test_corruptions_are_read_from_cifar10_c_where_it_is_named(scale):
    for cell in cells("table05", scale, cifar10_c="arrays"):
        read = cell.config("images").attacks[cell.attack]
        assert (read.files, read.clean) == ("arrays", "images")
        assert configuration._attack(cell.attack, read, 3 * 32 * 32).severity == 5
    made = {c.attack: c.config("images").attacks[c.attack] for c in cells("table05", scale)}
    severity = {"cpu": 1, "paper": 5}[scale]
    for name, section in made.items():
        assert configuration._attack(name, section, 3 * 32 * 32).severity == severity
        assert name.endswith(", severity 1") == (scale == "cpu")


@BOTH
def test_runs_of_one_name_are_one_run(scale):
    found = defaultdict(set)
    for table in TABLES:
        for cell in cells(table, scale):
            found[cell.run].add(cell.config("images").model_dump_json())
    assert found
    assert all(len(configurations) == 1 for configurations in found.values())


@pytest.mark.parametrize("table", TABLES)
def test_the_papers_figures_are_numbers_as_printed(table):
    spec = specification(table)
    for row in spec.get("rows", []):
        for said in _leaves(row.get("published", {})):
            assert re.fullmatch(r"\d+\.\d+(±\d\.\d\d)?( % succeed)?", said), (row["name"], said)
    for row in rows(table, "paper"):
        assert row.published.keys() <= spec["columns"].keys()


def _leaves(values):
    for value in values.values():
        yield from _leaves(value) if isinstance(value, dict) else [value]


def test_a_mean_of_the_papers_is_the_mean_that_it_prints():
    """But for one, of which table01.toml says so."""
    other = []
    for table in ("table01", "table07"):
        for row in rows(table, "paper"):
            if average := row.published.get("average"):
                both = [float(row.published[c].partition("±")[0]) for c in ("standard", "robust")]
                if abs(sum(both) / 2 - float(average)) > 0.0101:  # they round both ways
                    other.append(row.name)
    assert other == ["Gowal et al. [15]"]


def test_a_classifier_alone_is_given_one_sample():
    for cell in cells("table01", "paper"):
        samples = [attack.get("eot", 15) for attack in cell.attacks.values()]
        assert samples == [15 if "purifier" in cell.section else 1]


def test_operations_follow_the_attack():
    """Of BPDA: 50 steps of 15 purifications, each 5 steps of two passes and one more for N."""
    (cell,) = (c for c in cells("table01", "paper") if c.defence.startswith("scoreopt-n")
               and c.attack != "clean")  # fmt: skip
    network, classifier = 42.4, 10.5
    once = 11 * network + classifier
    expected = 750 * (once + classifier) + (8 + 8 + 150) * once
    assert paper_cost._operations(cell) == pytest.approx(1e9 * expected * 512 * 5, rel=0.01)


@pytest.fixture
def small(tmp_path, monkeypatch):
    """The paper's architectures, small and of random weights, and two images of 32 pixels."""
    models = pytest.importorskip("deepinv.models")
    pillow = pytest.importorskip("PIL.Image")

    def denoiser(name):
        torch.manual_seed(0)
        net = models.NCSNpp(
            model_type="ddpm", img_resolution=32, model_channels=32, channel_mult=(1, 1),
            num_blocks=1, attn_resolutions=(16,), pretrained=None, pixel_std=0.5,
            _was_trained_on_minus_one_one=True,
        ).eval()  # fmt: skip
        return EDMDenoiser(_Rescaled(net))

    def classifier(name):
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(),
            nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 10),
        ).eval()  # fmt: skip

    for place in range(2):
        folder = tmp_path / "images" / f"class {place}"
        folder.mkdir(parents=True)
        pixels = np.random.default_rng(place).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        pillow.fromarray(pixels).save(folder / "0.png")
    monkeypatch.setattr(named.pretrained, "denoiser", denoiser)
    monkeypatch.setattr(named, "classifier", classifier)
    scale = SCALES["paper"]
    changed = {"images": (2, 2), "trials": (1, 1), "confirm": 2, "rest": {}, "budgets": SHORT}
    monkeypatch.setitem(SCALES, "paper", dataclasses.replace(scale, **changed))
    for module in (results_file, paper_drawing):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    return tmp_path


class _Rescaled(nn.Module):
    """deepinv's network as EDM's: images in [-1, 1]."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, sigma):
        return 2 * self.net((x + 1) / 2, sigma.flatten() / 2) - 1


def _shorter(monkeypatch, table):
    """One judged purification, one step of ScoreOpt, and a curve's first point."""
    monkeypatch.setitem(specification(table), "judging_paper", {"purifications": 1})
    for part, side in {"prepared": 32, "fit": 28}.items():  # of ImageNet's tables
        if given := specification(table).get(part):
            monkeypatch.setitem(specification(table), part, dict.fromkeys(given, side))
    for row in specification(table)["rows"]:
        if "values" in row:
            monkeypatch.setitem(row, "values", [1])
        if row.get("defence") in ("scoreopt-o", "scoreopt-n"):
            monkeypatch.setitem(row, "settings_paper", {"steps": 1})


_LONGER = [pytest.param(table, marks=pytest.mark.slow)
           for table in ("table03", "table04", "table08", "table11", "section422")]  # fmt: skip


@pytest.mark.parametrize("table", ["table09", "figure5", *_LONGER])
def test_the_papers_scale_runs_end_to_end_on_two_images(table, small, monkeypatch, capsys):
    _shorter(monkeypatch, table)
    command = [table, str(small / "images"), "--scale", "paper", "--runs", str(small)]
    paper_tables.main(command)
    written = small / f"paper_{table}_paper.json"
    found = json.loads(written.read_text())
    wanted = {(c.defence, c.attack) for c in cells(table, "paper")}
    assert {(c["defence"], c["attack"]) for c in found["cells"]} == wanted
    for cell in found["cells"]:
        assert cell["failed"] == 0
        counts = shares(cell).values()
        assert cell["accuracy"]["value"] == pytest.approx(sum(counts) / 2, abs=1e-4)
    drawn = paper_drawing.table(table, "paper")
    assert paper_drawing.NOT_YET not in drawn
    before = [cell["seconds"] for cell in found["cells"]]
    paper_tables.main(command)  # all of it is recorded: nothing is run again
    assert [cell["seconds"] for cell in json.loads(written.read_text())["cells"]] == before
    if table.startswith("figure"):
        assert "EOT replicates" not in drawn
        assert (small / f"paper_{table}_paper.svg").read_text().startswith("<?xml")


def test_imagenets_files_are_purified_at_256_and_classified_at_224(small, monkeypatch):
    """By networks of random weights, if need be, which every process makes alike."""
    pillow = pytest.importorskip("PIL.Image")
    for place, size in enumerate([(300, 270), (260, 400)]):
        pixels = np.random.default_rng(place).integers(0, 256, (*size, 3), dtype=np.uint8)
        pillow.fromarray(pixels).save(small / "images" / f"class {place}" / "0.png")
    for cell in cells("table13", "paper", images=2, random_weights=True):
        config = cell.config(str(small / "images"))
        assert config.images.preprocessing([]) == data.Preprocessing(256, 256)
        (section,) = config.defences.values()
        assert section.crop == 224
        assert "random weights" in cell.run
        for name in (section.classifier, section.denoiser):
            kind, module, function = name.split(":")
            assert kind == "python"
            assert callable(getattr(sys.modules[module], function))
    monkeypatch.setattr(random_networks, "guided_diffusion", lambda: named.pretrained.denoiser(""))
    model = configuration.defence("it", section)
    assert isinstance(model.classifier, Fitted)
    assert (model.purifier.max_batch, model.purifier.size) == ("auto", None)
    images = data.source(small / "images", preprocessing=data.Preprocessing(256, 256))
    assert images.shape == (3, 256, 256)
    assert random_networks.small_denoiser()(torch.rand(1, 3, 8, 8), 0.3).shape == (1, 3, 8, 8)
    one, two = (random_networks.resnet50().state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_table_is_made_in_parts(small, monkeypatch):
    """What was exported of runs that are gone is kept, and is what no later run has to make."""
    _shorter(monkeypatch, "figure5")
    command = ["figure5", str(small / "images"), "--scale", "paper", "--float32"]
    name = "ScoreOpt-O, replicates 1"
    paper_tables.main([*command, "--runs", str(small / "first"), "--row", name])
    written = small / "paper_figure5_paper.json"
    first = json.loads(written.read_text())
    defence = "scoreopt-o, steps 1, cifar10/bpda-eot-linf"
    assert {cell["defence"] for cell in first["cells"]} == {*first["plan"]["others"]} == {defence}
    paper_tables.main([*command, "--runs", str(small / "second"), "--missing"])
    both = json.loads(written.read_text())
    assert [cell for cell in both["cells"] if cell in first["cells"]] == first["cells"]
    assert len(both["cells"]) == 2 * len(first["cells"])
    with Store(small / "second") as record:
        assert len(record.views()) == 1
    assert paper_drawing.NOT_YET not in paper_drawing.table("figure5", "paper")
    changed = dataclasses.replace(SCALES["paper"], confirm=3)  # another criterion than theirs
    monkeypatch.setitem(SCALES, "paper", changed)
    for runs in ("third", "second"):  # of which the one has no run, the other runs judged by theirs
        with pytest.raises(SystemExit, match=f"nothing of figure5 is recorded in .*{runs}"):
            paper_tables.main([*command, "--runs", str(small / runs), "--export"])
    assert json.loads(written.read_text()) == both
    with pytest.raises(ValueError, match="no row 'another', but 'ScoreOpt-N, replicates 1'"):
        paper_tables.main([*command, "--row", "another"])


@BOTH
def test_attacks_compute_in_float32_where_that_is_said(scale):
    for cell in cells("table01", scale, float32=True):
        assert all("autocast" not in section for section in cell.attacks.values())


def test_a_worst_case_is_paired_over_the_images_that_both_met():
    """Fewer images are the first ones drawn, in the order of their index like the more."""
    more, fewer = (drawn(5000, n, 0).tolist() for n in (4, 2))
    right = dict(zip(more, (2, 1, 0, 1), strict=True))
    suite = {"right": " ".join(str(right[i]) for i in sorted(more)), "of": 2}
    cell = {"right": " ".join("4" for _ in fewer), "of": 4}
    assert fewer == more[:2]
    assert paired(cell, suite).value == 1 - (2 + 1) / 4
    assert paired(suite, cell).value == (2 + 1) / 4 - 1
    assert paired(suite, suite).value == 0
    assert paired(cell, {"accuracy": {"value": 0.5}}) is None


@pytest.mark.parametrize("table", ["table07", "table08", "table11", "table12", "figure3"])
def test_the_adaptive_benchmark_has_a_row_of_each_scoreopt_of(table):
    ours = [c for c in cells(table, "cpu") if c.section.get("purifier") == "ScoreOpt"]
    assert ours
    assert all(cell.worst for cell in ours if cell.attack != "clean")


def test_a_loss_that_is_the_default_is_the_same_row():
    beside = {row.name: row.cells["robust"].worst for row in rows("figure2", "cpu")}
    assert beside["Diff, steps 5"] == "scoreopt-o_linf"
    assert beside["SR, steps 5"] == "scoreopt-o-sr_linf"
    assert beside["SR at 20 steps, lambda 1"] == "scoreopt-o-sr-20-steps_linf"
    assert beside["SR at 20 steps, lambda 0.1"] == "scoreopt-o-sr-lambda-0.1_linf"
    assert paper_cells._row_of(changed("O", steps=3)) is None


def test_worst_cases_are_of_rows_that_there_are_and_of_as_many_images_as_are_said():
    asked = {cell.worst for table in TABLES for cell in cells(table, "cpu") if cell.worst}
    suites = {
        path.stem: json.loads(path.read_text())
        for kind in ("adaptive", "suite")
        for path in results_file.RESULTS.glob(f"{kind}_*_l*.json")
    }
    missing = {name for name in asked if f"adaptive_{name}" not in suites}
    assert {name.rpartition("_")[0] for name in missing} <= LITERATURE.keys()
    wide = (*MAIN, "scoreopt-o-faster", "scoreopt-o-high")
    for name, found in suites.items():
        kind, row = name.rpartition("_l")[0].split("_", 1)
        if row.rpartition("_")[0] in ROWS:  # and the norm was followed by a former budget
            row = row.rpartition("_")[0]
        assert row in ROWS
        many = kind == "adaptive" and row in wide and "-at-" not in name
        assert found["plan"]["images"]["shape"][0] == (128 if many else 64)


def test_a_row_that_names_its_worst_case_is_that_defence():
    """Of one step, MSE is Diff and DiffPure one-shot, whatever their settings are called."""
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def purified(section):
        settings = section.get("overrides", {}) | {"seed": 0}
        parts = section["purifier"], section["denoiser"], section.get("preset"), settings
        return configuration.named.purifier(*parts)(x)

    named = {}
    for table in TABLES:
        for cell in cells(table, "cpu"):
            own = ROWS.get(str(cell.worst).rpartition("_")[0])
            if own and own.get("overrides", {}) != cell.section.get("overrides", {}):
                named[cell.defence] = own, cell.section
    assert {"diffpure, steps 1", "scoreopt-o, loss mse, steps 1"} <= named.keys()
    for theirs, ours in named.values():
        # DiffPure's last step returns what was denoised through a few roundings of numbers to 2
        torch.testing.assert_close(purified(theirs), purified(ours), rtol=0, atol=1e-5)


def test_table_6_is_timed_and_drawn(small, monkeypatch):
    for row in specification("table06")["timed"]:
        monkeypatch.setitem(row, "steps", [1, 2])
    monkeypatch.setattr(paper_timing, "run", partial(paper_timing.run, rounds=1))
    paper_tables.main(["table06", str(small / "images"), "--scale", "paper"])
    timed = json.loads((small / "paper_table06_paper.json").read_text())["rows"]
    assert len(timed) == 3 * 2
    assert all(row["seconds"] > 0 for row in timed)
    assert f"{timed[0]['seconds']:.4f}" in paper_drawing.table("table06", "paper")


def test_a_difference_is_paired_over_images():
    a = {"right": "8 4 0", "of": 8}
    b = {"right": "4 4 0", "of": 8}
    assert less(a, b).value == pytest.approx(0.5 / 3)
    assert less(a, {"right": "- 4 0", "of": 8}).value == 0.0  # one that the other never met
    with pytest.raises(ValueError, match="3 images cannot be paired with 2"):
        less(a, {"right": "4 0", "of": 8})


def test_a_row_shows_the_clean_accuracy_of_its_own_run(tmp_path, monkeypatch):
    """Table 11 runs one defence twice, on other images and by another criterion."""
    monkeypatch.setattr(paper_drawing, "RESULTS", tmp_path)
    monkeypatch.setattr(results_file, "RESULTS", tmp_path)
    runs = list(dict.fromkeys(cell.run for cell in cells("table11", "cpu")))
    shown = {run: f"{11 + place}.0" for place, run in enumerate(runs)}
    results_file.write("paper_table11_cpu", cells=[
        {"run": cell.run, "defence": cell.defence, "attack": cell.attack,
         "accuracy": {"value": float(shown[cell.run]) / 100, "low": 0.0, "high": 1.0}}
        for cell in cells("table11", "cpu")
    ])  # fmt: skip
    _, _, *lines = paper_drawing.table("table11", "cpu").splitlines()
    for row, line in zip(rows("table11", "cpu"), lines, strict=True):
        of_run = shown[row.cells["standard"].run] if row.cells else "-"
        assert not row.cells or line.count(f"| {of_run} (") == len(row.cells)
