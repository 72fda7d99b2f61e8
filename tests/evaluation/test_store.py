"""The record: whole units or none, read by others, and never lost; see also the growth of one."""

from __future__ import annotations

import csv
import json
import os
import pickle
import shutil
import sqlite3
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_evaluation import Ascent, Failing, Noisy, defences, found, images, in_images, kept, run

from scoreopt_defense import DefendedModel, ScoreOpt, cli, pretrained
from scoreopt_defense._files import replacing
from scoreopt_defense.evaluation import Judging, Result, Store, StoreError
from scoreopt_defense.evaluation.evaluate import materials_of
from scoreopt_defense.evaluation.plan import Plan
from scoreopt_defense.evaluation.record import store as storing
from scoreopt_defense.evaluation.record.export import to_csv, to_json, to_parquet
from scoreopt_defense.evaluation.record.judged import Judged
from scoreopt_defense.evaluation.record.packing import digest_of, pack, unpack
from scoreopt_defense.evaluation.record.pixels import Pixels
from scoreopt_defense.evaluation.report import write
from scoreopt_defense.evaluation.report.reload import reload

SMALL = {"attacks": {"ascent": Ascent()}, "trials": 1, "defences": {"noisy": Noisy().eval()}}


@pytest.fixture(scope="module")
def of_all(tmp_path_factory):
    folder = tmp_path_factory.mktemp("of all")
    run(folder, **SMALL).store.close()
    return folder


@pytest.fixture
def finished(of_all, tmp_path):
    return shutil.copytree(of_all, tmp_path / "run")


X, Y = images()


@pytest.mark.parametrize("name", ["one-shot", "scoreopt"])
def test_the_plan_knows_a_defence_by_its_settings_and_weights(name):
    model = defences()[name]
    materials = {"images": images(1), "trials": 1, "attacks": {}}
    plans = [
        run(None, defences={name: twin}, **materials).plan
        for twin in (model, model.replace(sigma=0.4), model.replace(votes=2))
    ]
    assert len({plan.hash for plan in plans}) == 3
    assert Plan.from_json(plans[0].as_json()) == plans[0]
    assert len(plans[0].defences[name].about["denoiser"]["weights"]) == 64


def test_a_finished_run_is_read_and_nothing_is_done_again(finished):
    with Store(finished) as store:
        result = Result(store)
        rows = found(result)
        assert result.cell("noisy", "ascent").accuracy.n == 12
    written = kept(finished)
    assert found(run(finished, **SMALL)) == rows
    assert kept(finished) == written


def test_any_program_that_reads_sqlite_can_read_it(finished):
    """Tables are 32-bit numbers, little-endian, after the number of columns."""
    with sqlite3.connect(finished / "record.sqlite") as database:
        units = database.execute("SELECT labels, predicted, lead FROM units").fetchall()
        counts = database.execute("SELECT count(*), sum(images), sum(error) FROM units").fetchone()
    assert counts == (6, 24, None)
    labels, predicted, lead = (b"".join(column) for column in zip(*units))
    assert np.frombuffer(labels, "<i4").sum() == 2 * int(Y.sum())
    assert np.frombuffer(predicted, "<i4").reshape(6, -1).shape == (6, 1 + 4 * 3)
    assert (np.frombuffer(predicted, "<i4").reshape(6, -1)[:, 0] == 3).all()
    assert np.isfinite(np.frombuffer(lead, "<f4")).all()


def test_images_are_kept_once_whoever_they_are_of(tmp_path):
    """Clean ones are, of any defence and trial."""
    result = run(tmp_path)
    made = {
        digest_of(image)
        for _, done in result.units()
        for image in result.store.adversarial(done).values()
    }
    there = kept(tmp_path)
    assert there.keys() == made
    assert sum(digest_of(x) in there for x in X.numpy()) == 12  # of 18 units of 4
    assert all(digest_of(unpack(content)) == digest for digest, content in there.items())


def test_adversarial_images_are_within_the_bound_and_in_their_places(finished):
    with Store(finished) as store:
        attacked = torch.from_numpy(Result(store).adversarial("noisy", "ascent"))
    largest = (attacked - X).abs().amax((1, 2, 3))
    assert ((largest > 0.05) & (largest <= 0.1 + 1e-6)).all()


def test_no_record_is_an_error(tmp_path):
    with pytest.raises(StoreError, match=r"there is no record in .*: expected record\.sqlite"):
        Store(tmp_path)


def test_a_record_of_an_earlier_format_is_said_and_a_new_one_begun_beside_it(tmp_path):
    (tmp_path / "run.sqlite").write_bytes(b"of another time")
    with pytest.raises(
        StoreError, match=r"a record of an earlier format \(run\.sqlite\): the version"
    ):
        Store(tmp_path)
    assert found(run(tmp_path, **SMALL)) == found(run(None, **SMALL)) == found(tmp_path)
    assert (tmp_path / "run.sqlite").read_bytes() == b"of another time"


@pytest.mark.parametrize("damage", ["garbage", "truncated", "torn", "foreign"])
def test_a_damaged_store_is_said_and_left(damage, finished):
    file = finished / "record.sqlite"
    content = file.read_bytes()
    if damage == "garbage":
        file.write_bytes(b"not a database, and longer than a header is" * 100)
    if damage == "truncated":
        file.write_bytes(content[: len(content) // 2])
    if damage == "torn":
        middle = len(content) // 2
        file.write_bytes(content[:middle] + os.urandom(4096) + content[middle + 4096 :])
    if damage == "foreign":
        file.unlink()
        with sqlite3.connect(file) as database:
            database.execute("CREATE TABLE other (a)")
    before = file.read_bytes()
    for attempt in (lambda: run(finished, **SMALL), lambda: Store(finished)):
        with pytest.raises(StoreError, match=r"damaged or none of this program's.*move it"):
            attempt()
    assert file.read_bytes() == before


DAMAGE = {
    "gone": "DELETE FROM images WHERE digest = ?",
    "cut short": "UPDATE images SET content = substr(content, 1, 40) WHERE digest = ?",
    "empty": "UPDATE images SET content = x'' WHERE digest = ?",
    "no image": "UPDATE images SET content = 3 WHERE digest = ?",
    "other pixels": (
        "UPDATE images SET content = (SELECT min(content) FROM images) WHERE digest = ?"
    ),
    "a shape without end": (
        "UPDATE images SET content = x'04ffffffffffffffffffffffff' WHERE digest = ?"
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_images_that_are_damaged_are_said_and_mended_by_doing_their_unit_again(damage, finished):
    with Store(finished) as store:
        [done] = store.read([unit.key for unit in store.plan().units()][-1:])
    before = kept(finished)
    [(digest,)] = in_images(
        finished, "SELECT digest FROM held WHERE unit = ? AND place = 2", [done.key]
    )
    in_images(finished, DAMAGE[damage], [digest])
    assert kept(finished) != before
    with (
        Store(finished) as store,
        pytest.raises(StoreError, match=rf"image {digest} of .* is missing or damaged .*: restore"),
    ):
        Result(store).adversarial("noisy", "ascent")
    database = sqlite3.connect(finished / "record.sqlite")
    with database:
        database.execute('DELETE FROM units WHERE "key" = ?', [done.key])
    database.close()
    assert found(run(finished, **SMALL)) == found(run(None, **SMALL))
    assert kept(finished) == before


def test_a_unit_that_took_long_is_on_the_disk_as_soon_as_it_is_recorded(tmp_path):
    """Whatever took seconds is not lost with those of the last one."""
    result = run(None, **SMALL)
    with Store(tmp_path, writing=True) as store:
        store.adopt(result.plan)
        for count, (_, done) in enumerate(result.units()):
            images = result.store.adversarial(done).items()
            packed = {place: (digest_of(image), pack(image)) for place, image in images}
            store.add(replace(done, seconds=2.0), packed)
            with Store(tmp_path) as reader:
                assert len(reader.done()) == count + 1
                assert len(reader.adversarial(done)) == 4


def mounted(folder, *options):
    if os.getuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small disk")
    command = ["mount", "-t", "tmpfs", *options, "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(storing, "_TOGETHER", -1.0)  # each unit is on the disk at once
    out = tmp_path / "disk"
    out.mkdir()
    mounted(out, "-o", "size=512k")
    try:
        with pytest.raises(StoreError, match="the disk is full: free some space and start again"):
            run(out, **SMALL | {"batch": 1, "trials": 4})
        with Store(out) as store:
            units = len(store.done())
        assert 0 < units < 4 * 12 * 2
        subprocess.run(["mount", "-o", "remount,size=4m", str(out)], check=True)
        again = run(out, **SMALL | {"batch": 1, "trials": 4})
        assert found(again) == found(run(None, **SMALL | {"batch": 1, "trials": 4}))
        again.store.close()
    finally:
        subprocess.run(["umount", "-l", str(out)], check=True)


def test_a_write_that_fails_keeps_what_was_there(tmp_path, monkeypatch):
    """As above, wherever nothing can be mounted."""
    written, write = [], Pixels.write

    def full(*arguments):
        written.append(1)
        if len(written) > 3:
            raise OSError(28, "No space left on device")
        return write(*arguments)

    monkeypatch.setattr(Pixels, "write", full)
    with pytest.raises(StoreError, match="the disk is full"):
        run(tmp_path, **SMALL)
    monkeypatch.undo()
    with Store(tmp_path) as store:
        assert store.done() == store.pixels.held().keys()
        assert len(store.done()) == 3
    assert found(run(tmp_path, **SMALL)) == found(run(None, **SMALL))


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    out = tmp_path / "disk"
    out.mkdir()
    mounted(out, "-o", "ro,size=64k")
    try:
        with pytest.raises(StoreError, match=r"disk: cannot be read or written \(.*\): check its"):
            run(out, **SMALL)
    finally:
        subprocess.run(["umount", "-l", str(out)], check=True)


def test_a_file_in_the_folders_place_is_said(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(StoreError, match="cannot be read or written"):
        run(tmp_path / "run", **SMALL)


def test_a_record_on_a_medium_that_is_read_only_can_be_read(tmp_path, finished):
    out = tmp_path / "disk"
    out.mkdir()
    mounted(out, "-o", "size=4m")
    try:
        shutil.copytree(finished, out, dirs_exist_ok=True)
        subprocess.run(["mount", "-o", "remount,ro", str(out)], check=True)
        with Store(out) as store, Store(finished) as original:
            assert found(Result(store)) == found(Result(original))
    finally:
        subprocess.run(["umount", "-l", str(out)], check=True)


def rows_of(result):
    """Cell, trial and place of each row that is exported, and what was judged."""
    of_units = [(unit, done, Judged.of([done])) for unit, done in result.units()]
    return [
        (unit, done, *(part.tolist() for part in row))
        for unit, done, of in of_units
        for row in zip(of.images, of.labels, of.predicted, of.lead, strict=True)
    ]


def test_export_writes_a_line_an_image_trial_and_attack(finished, tmp_path):
    with Store(finished) as store:
        assert to_csv(Result(store), tmp_path / "rows.csv") == 24
        rows = rows_of(Result(store))
    with (tmp_path / "rows.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(rows) == 24
    for line, (unit, done, image, label, predicted, lead) in zip(lines, rows, strict=True):
        assert (line["defence"], line["attack"], line["trial"]) == ("noisy", unit.attack, "0")
        assert (int(line["image"]), int(line["label"])) == (image, label)
        assert image == unit.images[0] + int(line["place"])
        assert [int(line[f"predicted_{draw}"]) for draw in range(3)] == predicted
        assert [float(line[f"lead_{draw}"]) for draw in range(3)] == lead
        assert line["adversarial"] == done.adversarial
    right = np.mean([int(line["predicted_0"]) == int(line["label"]) for line in lines])
    assert 0 < right < 1


def test_a_unit_that_failed_has_lines_that_are_empty_but_for_its_error(tmp_path):
    result = run(None, **SMALL | {"attacks": {"bad": Failing()}})
    assert to_csv(result, tmp_path / "rows.csv") == 24
    with (tmp_path / "rows.csv").open() as file:
        failed = [line for line in csv.DictReader(file) if line["error"]]
    assert {line["attack"] for line in failed} == {"bad"}
    assert [int(line["image"]) for line in failed] == list(range(12))  # of each batch one is a 3
    judged = (line[f"{name}_{draw}"] for line in failed for name in ("predicted", "lead")
              for draw in range(3))  # fmt: skip
    assert set(judged) == {""}


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1"])
def test_a_spreadsheet_takes_no_text_of_a_csv_file_for_a_formula(text, tmp_path):
    given = {"defences": {text: Noisy().eval()}, "attacks": {f"a{text}": Ascent()}}
    result = run(None, **SMALL | given)
    assert to_csv(result, tmp_path / "rows.csv") == 24
    with (tmp_path / "rows.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert {line["defence"] for line in lines} == {f"'{text}"}
    assert {line["attack"] for line in lines} == {"clean", f"a{text}"}
    leads = [line["lead_0"] for line in lines]
    assert [float(lead) for lead in leads] == [lead[0] for *_, lead in rows_of(result)]
    assert any(lead.startswith("-") for lead in leads)


def test_another_program_reads_the_parquet_file(finished, tmp_path):
    pytest.importorskip("pyarrow")
    duckdb, file = pytest.importorskip("duckdb"), tmp_path / "rows.parquet"
    with Store(finished) as store:
        result = Result(store)
        assert to_parquet(result, file) == 24
        rows = rows_of(result)
    table = duckdb.connect().read_parquet(str(file))
    drawn = table.project("predicted_0, predicted_1, predicted_2, lead_0, lead_1, lead_2")
    assert [list(line) for line in drawn.fetchall()] == [
        predicted + lead for *_, predicted, lead in rows
    ]
    names = ("defence", "attack", "trial", "image", "label", "broken", "denoiser_calls", "seconds")
    assert table.project(", ".join(names)).fetchall() == [
        (unit.defence, unit.attack, unit.trial, image, label, None, 0.0, done.seconds / 4)
        for unit, done, image, label, *_ in rows
    ]
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["rows.parquet"]


def test_without_pyarrow_its_extra_is_named_and_nothing_is_written(finished, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with (
        Store(finished) as store,
        pytest.raises(ImportError, match=r"needs pyarrow.*'scoreopt-defense\[parquet\]'"),
    ):
        to_parquet(Result(store), tmp_path / "rows.parquet")
    assert not (tmp_path / "rows.parquet").exists()


def test_of_one_purification_nothing_can_be_chosen_and_all_else_is_exported(tmp_path):
    result = run(tmp_path / "run", **SMALL, judging=Judging(purifications=1))
    assert result.weakest("noisy") is None
    to_json(result, tmp_path / "run.json")
    read = json.loads((tmp_path / "run.json").read_text())
    assert read["weakest"] == {"noisy": None}
    assert [cell["attack"] for cell in read["cells"]] == ["clean", "ascent"]


def test_results_say_how_they_were_made(finished):
    with Store(finished) as store:
        result = Result(store)
        view = result.view
    assert result.plan.hash == run(None, **SMALL).plan.hash
    assert result.plan.summary()["versions"]["torch"] == torch.__version__
    assert view.machine["processor"]
    assert view.machine["torch"] == torch.__version__


@pytest.mark.filterwarnings("ignore")
def test_nothing_of_a_record_is_a_pickle(tmp_path, monkeypatch):
    def refused(*_, **__):
        raise AssertionError("a pickle")

    for name in ("load", "loads", "dump", "dumps"):
        monkeypatch.setattr(pickle, name, refused)
    rows = found(run(tmp_path, **SMALL))
    assert found(tmp_path) == rows


@pytest.mark.parametrize("writes", [to_csv, to_json, to_parquet, lambda _, path: write("a", path)])
def test_a_full_disk_leaves_no_part_of_a_file(writes, finished, tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    path = tmp_path / "out" / "file"
    path.parent.mkdir()
    path.write_text("as it was")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with Store(finished) as store, pytest.raises(OSError, match="No space left"):
        writes(Result(store), path)
    assert path.read_text() == "as it was"
    assert os.listdir(path.parent) == ["file"]


def test_two_writers_of_one_file_have_names_of_their_own(tmp_path):
    with replacing(tmp_path / "a") as one, replacing(tmp_path / "a") as other:
        one.write_text("one")
        other.write_text("other")
        assert one != other
    assert (tmp_path / "a").read_text() == "one"


def _plan(**changes):
    """Changes what a record says of its plan: a dictionary is merged into the part of its name."""

    def change(database):
        (text,) = database.execute("SELECT plan FROM views").fetchone()
        plan = json.loads(text)
        for name, value in changes.items():
            merged = isinstance(value, dict) and isinstance(plan[name], dict)
            plan[name] = plan[name] | value if merged else value
        database.execute("UPDATE views SET plan = ?", [json.dumps(plan)])

    return change


def _sql(statement, *given):
    return lambda database: database.execute(statement, given)


def _blob(column, change):
    def changed(database):
        database.create_function("changed", 1, change)
        database.execute(f"UPDATE units SET {column} = changed({column})")

    return changed


#: By name, what somebody's record may hold.
HOSTILE = {
    "no plan's text": _sql("UPDATE views SET plan = '[' || plan"),
    "a deep plan": _sql("UPDATE views SET plan = ?", "[" * 100_000),
    "no plan": _plan(defences=["one"]),
    "no attack": _plan(tasks={"ascent": 3}),
    "no task": _plan(tasks={"ascent": {"noisy": {"kind": "attack"}}}),
    "an unknown defence": _plan(tasks={"ascent": {"other": 3}}),
    "no images": _plan(images={"shape": [-4, 3, 8, 8]}),
    "many images": _plan(images={"shape": [10**12, 3, 8, 8]}),
    "many trials": _plan(trials=10**9),
    "many judgements": _plan(judging={"purifications": 10**12}),
    "no behaviour": _plan(defences={"noisy": 3}),
    "no view": _sql("DELETE FROM views"),
    "another name": _sql("UPDATE views SET name = '<b>x'"),
    "no machine": _sql("UPDATE views SET machine = '[\"<script>\"]'"),
    "no time": _sql("UPDATE views SET started = 1e300"),
    "no text": _sql("UPDATE units SET error = cast(x'fffe3c' AS text)"),
    "a script for an error": _sql("UPDATE units SET error = '<b>x'"),
    "a number for an error": _sql("UPDATE units SET error = x'00'"),
    "no measurement": _sql("UPDATE units SET measured = '[1]'"),
    "a deep measurement": _sql("UPDATE units SET measured = ?", "[" * 100_000),
    "no numbers": _sql("UPDATE units SET predicted = '<b>x'"),
    "half a number": _blob("predicted", lambda blob: blob[:15]),
    "fewer numbers": _blob("predicted", lambda blob: blob[:16]),
    "no columns": _blob("predicted", lambda _: bytes(4)),
    "columns below none": _blob("predicted", lambda blob: b"\xff" * 4 + blob[4:]),
    "many columns": _blob("lead", lambda blob: b"\xff\xff\xff\x7f" + blob[4:]),
    "other columns": _blob("lead", lambda blob: b"\4\0\0\0" + blob[4:]),
    "no leads": _sql("UPDATE units SET lead = NULL"),
    "leads that are no numbers": _blob("lead", lambda blob: blob[:4] + b"\xff" * 48),
    "fewer labels": _sql("UPDATE units SET labels = substr(labels, 1, 4)"),
    "labels below none": _sql("UPDATE units SET labels = x'ffffffffffffffffffffffffffffffff'"),
    "no places": _sql("UPDATE units SET places = x''"),
    "places elsewhere": _sql("UPDATE units SET places = x'ffffff7fffffff7fffffff7fffffff7f'"),
    "places below none": _sql("UPDATE units SET places = x'ffffffffffffffffffffffffffffffff'"),
    "half a place": _sql("UPDATE units SET places = x'00'"),
    "fewer that are broken": _sql("UPDATE units SET broken = x'00'"),
    "another trial": _sql("UPDATE units SET trial = 'x'"),
    "another image": _sql("UPDATE units SET \"first\" = 'x'"),
    "a far image": _sql('UPDATE units SET "first" = 1000000000000'),
    "no calls": _sql("UPDATE units SET classifier_calls = '<b>x'"),
    "no seconds": _sql("UPDATE units SET seconds = '<b>x'"),
    "endless seconds": _sql("UPDATE units SET seconds = 9e999"),
    "images elsewhere": _sql("UPDATE units SET adversarial = '../../etc/passwd'"),
    "no such images": _sql("UPDATE units SET adversarial = 'abc'"),
    "needs of none": _sql("UPDATE units SET needs = x'00'"),
    "another defence": _sql("UPDATE defences SET about = '3'"),
    "no versions": _sql("UPDATE defences SET versions = '3'"),
    "no task's words": _sql("UPDATE tasks SET about = '['"),
}


#: Of these, what no reader of a single row can take for one.
DAMAGED = [
    *("no text", "a number for an error", "no measurement", "a deep measurement", "no numbers"),
    *("half a number", "fewer numbers", "no columns", "columns below none", "many columns"),
    *("other columns", "no leads", "fewer labels", "no places", "places elsewhere"),
    *("places below none", "half a place", "fewer that are broken", "another trial"),
    *("another image", "no calls", "no seconds", "needs of none", "another defence"),
    *("no versions", "no task's words", "no machine"),
]


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_row_that_is_damaged_is_said_and_never_taken_for_another(kind, finished):
    database = sqlite3.connect(finished / "record.sqlite")
    with database:
        HOSTILE[kind](database)
    database.close()
    with (
        Store(finished) as store,
        pytest.raises(StoreError, match=r"(damaged|cannot be read).*(move it|check its)"),
    ):
        list(store.read()), store.defences(), store.tasks(), store.views()


@pytest.mark.parametrize("kind", HOSTILE)
def test_whatever_a_record_holds_reading_it_is_a_page_or_a_sentence(
    kind, finished, tmp_path, capsys
):
    folder = tmp_path / "another's"
    shutil.copytree(finished, folder)
    database = sqlite3.connect(folder / "record.sqlite")
    with database:
        HOSTILE[kind](database)
    database.close()
    written = {name: str(tmp_path / f"figures.{name}") for name in ("json", "csv")}
    exports = (["export", f"--{name}", path] for name, path in written.items())
    for what in (["report"], ["runs"], *exports, ["forget", "--failed"]):
        status = cli.main([what[0], str(folder), *what[1:]])
        said = capsys.readouterr().err
        assert (status, said) == (0, "") or (status == 1 and said.startswith("scoreopt: "))
    page = folder / "report.html"
    assert not page.exists() or "<b>x" not in page.read_text()


def test_a_page_carries_out_no_defence_of_as_many_steps_as_a_record_says():
    purifier = ScoreOpt(pretrained.denoiser("mnist-tiny"), steps=1, sigma=0.75)
    model = DefendedModel(pretrained.classifier("mnist-tiny"), purifier)
    pair = torch.rand(2, 1, 28, 28), torch.zeros(2).long()
    plan = Plan.of(materials_of(model, pair, [], Judging()))
    (judged,) = plan.defences.values()
    assert reload(plan).models
    judged.about["purifier"]["steps"] = 10**9
    assert "more than 10000 steps" in reload(plan).missing["DefendedModel"]
