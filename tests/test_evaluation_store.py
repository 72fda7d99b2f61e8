"""The record: whole units or none, refused where it is another run's, and never lost."""

from __future__ import annotations

import csv
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from toy_evaluation import Ascent, Noisy, defences, found, images, run

from scoreopt_defense import DefendedModel, ScoreOpt, cli, pretrained
from scoreopt_defense._files import replacing
from scoreopt_defense.evaluation import Judging, Result, Store, StoreError, evaluate
from scoreopt_defense.evaluation.evaluate import materials_of
from scoreopt_defense.evaluation.plan import Plan, differences
from scoreopt_defense.evaluation.record.export import to_csv, to_json, to_parquet
from scoreopt_defense.evaluation.report import write
from scoreopt_defense.evaluation.report.reload import reload
from scoreopt_defense.evaluation.run.progress import Progress

SMALL = {"attacks": {"ascent": Ascent()}, "trials": 1, "defences": {"noisy": Noisy().eval()}}


@pytest.fixture
def finished(tmp_path):
    run(tmp_path / "run", **SMALL).store.close()
    return tmp_path / "run"


def other_weights():
    model = Noisy().eval()
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1e-6
    return {"noisy": model}


X, Y = images()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 1}, "plan.seed was 0 and is 1"),
        ({"batch": 5}, "plan.batch was 4 and is 5"),
        ({"trials": 2}, "plan.trials was 1 and is 2"),
        ({"judging": Judging(purifications=4)}, "plan.judging.purifications was 3 and is 4"),
        ({"attacks": {"ascent": Ascent(eps=0.2)}}, "plan.attacks.ascent.eps was 0.1 and is 0.2"),
        ({"attacks": {}}, "plan.attacks.ascent was {.*} and is None"),
        ({"defences": other_weights()}, "plan.defences.noisy.weights was '.*' and is '"),
        ({"images": (X.flip(0), Y)}, "plan.images.sha256 was"),
        ({"images": (X, Y.flip(0))}, "plan.images.sha256 was"),
        ({"threads": 2}, "plan.threads was 1 and is 2"),
    ],
)
def test_a_run_of_another_plan_or_other_weights_is_refused(change, said, finished):
    before = (finished / "run.sqlite").read_bytes()
    with pytest.raises(ValueError, match=f"holds another run: {said}.*give another folder"):
        run(finished, **SMALL | change)
    assert (finished / "run.sqlite").read_bytes() == before


def test_another_version_is_another_run(finished, monkeypatch):
    monkeypatch.setattr("scoreopt_defense.__version__", "9.9")
    with pytest.raises(ValueError, match=r"versions.scoreopt_defense was .* and is '9\.9'"):
        run(finished, **SMALL)


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
    assert len(plans[0].defences[name]["denoiser"]["weights"]) == 64


def test_the_order_of_attacks_is_part_of_a_plan():
    assert differences({"a": 1, "b": 2}, {"b": 2, "a": 1}, "attacks") == [
        "attacks: the order was ['a', 'b']"
    ]


def test_a_finished_run_is_read_and_nothing_is_done_again(finished):
    with Store(finished) as store:
        result = Result(store)
        rows = found(result)
        assert result.cell("noisy", "ascent").accuracy.n == 12
    started = os.stat(finished / "images" / "000003.safetensors").st_mtime_ns
    assert found(run(finished, **SMALL)) == rows
    assert os.stat(finished / "images" / "000003.safetensors").st_mtime_ns == started


def test_any_program_that_reads_sqlite_can_read_it(finished):
    with sqlite3.connect(finished / "run.sqlite") as database:
        rows = database.execute(
            "SELECT count(*), sum(label), min(json_array_length(predicted)) FROM results "
            "WHERE attack = 'ascent'"
        ).fetchall()
    assert rows == [(12, int(Y.sum()), 3)]


def test_adversarial_images_are_within_the_bound_and_in_their_places(finished):
    with Store(finished) as store:
        attacked = torch.from_numpy(Result(store).adversarial("noisy", "ascent"))
    largest = (attacked - X).abs().amax((1, 2, 3))
    assert ((largest > 0.05) & (largest <= 0.1 + 1e-6)).all()


def test_no_run_is_an_error(tmp_path):
    with pytest.raises(StoreError, match=r"there is no run in .*: expected run\.sqlite"):
        Store(tmp_path)


@pytest.mark.parametrize("damage", ["garbage", "truncated", "torn", "foreign"])
def test_a_damaged_store_is_said_and_left(damage, finished):
    file = finished / "run.sqlite"
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


def mounted(folder, *options):
    if os.getuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small disk")
    command = ["mount", "-t", "tmpfs", *options, "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no tmpfs can be mounted here")


def test_a_full_disk_loses_nothing(tmp_path):
    out = tmp_path / "disk"
    out.mkdir()
    mounted(out, "-o", "size=192k")
    try:
        with pytest.raises(StoreError, match="the disk is full: free some space and start again"):
            run(out, **SMALL | {"batch": 1, "trials": 4})
        with Store(out) as store:
            kept = len(store.done())
        assert 0 < kept < 4 * 12 * 2
        subprocess.run(["mount", "-o", "remount,size=4m", str(out)], check=True)
        again = run(out, **SMALL | {"batch": 1, "trials": 4})
        assert found(again) == found(run(None, **SMALL | {"batch": 1, "trials": 4}))
        again.store.close()
    finally:
        subprocess.run(["umount", "-l", str(out)], check=True)


def test_a_write_that_fails_keeps_what_was_there(tmp_path, monkeypatch):
    """As above, wherever nothing can be mounted."""
    import safetensors.numpy

    written, save = [], safetensors.numpy.save

    def full(*arguments):
        written.append(1)
        if len(written) > 3:
            raise OSError(28, "No space left on device")
        return save(*arguments)

    monkeypatch.setattr(safetensors.numpy, "save", full)
    with pytest.raises(StoreError, match="the disk is full"):
        run(tmp_path, **SMALL)
    monkeypatch.undo()
    assert sorted(os.listdir(tmp_path / "images")) == [f"00000{i}.safetensors" for i in range(3)]
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


def test_a_run_on_a_medium_that_is_read_only_can_be_read(tmp_path, finished):
    out = tmp_path / "disk"
    out.mkdir()
    mounted(out, "-o", "size=4m")
    try:
        shutil.copytree(finished, out, dirs_exist_ok=True)
        subprocess.run(["mount", "-o", "remount,ro", str(out)], check=True)
        with Store(out) as store, Store(finished) as original:
            assert list(store.rows()) == list(original.rows())
    finally:
        subprocess.run(["umount", "-l", str(out)], check=True)


def test_export_writes_a_line_an_image_trial_and_attack(finished, tmp_path):
    with Store(finished) as store:
        assert to_csv(store, tmp_path / "rows.csv") == 24
        rows = list(store.rows())
    with (tmp_path / "rows.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [int(line["image"]) for line in lines] == [row["image"] for row in rows]
    assert {f"{name}_{draw}" for name in ("predicted", "margin") for draw in range(3)} <= set(
        lines[0]
    )
    right = np.mean([int(line["predicted_0"]) == int(line["label"]) for line in lines])
    assert 0 < right < 1


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1"])
def test_a_spreadsheet_takes_no_text_of_a_csv_file_for_a_formula(text, tmp_path):
    row = {"defence": text, "attack": f"a{text}", "predicted": "[-1, 2]", "margin": "[-0.5, -2.0]",
           "error": None, "seconds": -0.25}  # fmt: skip
    store = SimpleNamespace(
        plan=SimpleNamespace(judging={"purifications": 2}), rows=lambda: iter([dict(row)])
    )
    assert to_csv(store, tmp_path / "rows.csv") == 1
    with (tmp_path / "rows.csv").open(newline="") as file:
        [line] = csv.DictReader(file)
    assert line == {
        **{"defence": f"'{text}", "attack": f"a{text}", "error": "", "seconds": "-0.25"},
        **{"predicted_0": "-1", "predicted_1": "2", "margin_0": "-0.5", "margin_1": "-2.0"},
    }


def test_another_program_reads_the_parquet_file(finished, tmp_path):
    pytest.importorskip("pyarrow")
    duckdb, file = pytest.importorskip("duckdb"), tmp_path / "rows.parquet"
    with Store(finished) as store:
        assert to_parquet(store, file) == 24
        rows = list(store.rows())
    table = duckdb.connect().read_parquet(str(file))
    drawn = table.project("predicted_0, predicted_1, predicted_2, margin_0, margin_1, margin_2")
    assert [list(line) for line in drawn.fetchall()] == [
        json.loads(row["predicted"]) + json.loads(row["margin"]) for row in rows
    ]
    names = ("defence", "attack", "trial", "image", "label", "broken", "denoiser_calls", "seconds")
    assert table.project(", ".join(names)).fetchall() == [
        tuple(row[name] for name in names) for row in rows
    ]
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["rows.parquet"]


def test_without_pyarrow_its_extra_is_named_and_nothing_is_written(finished, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with (
        Store(finished) as store,
        pytest.raises(ImportError, match=r"needs pyarrow.*'scoreopt-defense\[parquet\]'"),
    ):
        to_parquet(store, tmp_path / "rows.parquet")
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
        about = store.about()
    assert (
        about["hash"]
        == evaluate(
            SMALL["defences"],
            images(),
            SMALL["attacks"],
            batch=4,
            judging=Judging(purifications=3),
            checks=False,
        ).plan.hash
    )
    assert about["versions"]["torch"] == torch.__version__
    assert about["machine"]["processor"]


LEFT_OVER = "images/000001.safetensors.12-ab.part"


def test_another_process_that_writes_the_run_is_said_at_once_and_readers_are_let_in(tmp_path):
    class Second(Progress):
        errors = ()

        def advance(self, outcome):
            process = subprocess.run(
                [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True,
                cwd=Path(__file__).parent,
            )  # fmt: skip
            with pytest.raises(StoreError, match="another process is writing this run: wait") as e:
                run(tmp_path, **SMALL)
            with Store(tmp_path) as reader:
                self.errors += (process.stderr, str(e.value), len(reader.done()))
            self.advance = lambda outcome: None

    script = f"import toy_evaluation as t, pathlib; t.run(pathlib.Path({str(tmp_path)!r}))"
    second = Second()
    result = run(tmp_path, **SMALL, progress=second)
    said, said_here, read = second.errors
    assert "StoreError" in said
    assert said_here in said
    assert read == 1
    (tmp_path / LEFT_OVER).touch()  # of a killed one
    assert found(run(tmp_path, **SMALL)) == found(result) == found(run(None, **SMALL))
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("change", [{"seed": 1}, {"defences": other_weights()}])
def test_a_run_that_is_refused_leaves_the_folder_to_others(change, finished):
    with pytest.raises(ValueError, match="holds another run"):
        run(finished, **SMALL | change)
    assert not run(finished, **SMALL).failures


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
        writes(Result(store) if writes is to_json else store, path)
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
        (text,) = database.execute("SELECT plan FROM run").fetchone()
        plan = json.loads(text)
        for name, value in changes.items():
            merged = isinstance(value, dict) and isinstance(plan[name], dict)
            plan[name] = plan[name] | value if merged else value
        database.execute("UPDATE run SET plan = ?", [json.dumps(plan)])

    return change


#: By name, what somebody's record may hold.
HOSTILE = {
    "no plan's text": lambda d: d.execute("UPDATE run SET plan = '[' || plan"),
    "a deep plan": lambda d: d.execute("UPDATE run SET plan = ?", ["[" * 100_000]),
    "no plan": _plan(defences=["one"]),
    "no attack": _plan(attacks={"ascent": 3}),
    "no images": _plan(images={"shape": [-4, 3, 8, 8]}),
    "many images": _plan(images={"shape": [10**12, 3, 8, 8]}),
    "many trials": _plan(trials=10**9),
    "many judgements": _plan(judging={"purifications": 10**12}),
    "no behaviour": _plan(behaviour={"noisy": 3}),
    "no judgement": lambda d: d.execute("UPDATE images SET predicted = '{\"a\": 1}'"),
    "another script": lambda d: d.execute("UPDATE images SET label = '<b>x'"),
    "no measurement": lambda d: d.execute("UPDATE units SET measured = '[1]'"),
    "no versions": lambda d: d.execute("UPDATE run SET versions = '3'"),
    "no machine": lambda d: d.execute("UPDATE run SET machine = '[\"<script>\"]'"),
    "no time": lambda d: d.execute("UPDATE run SET started = 1e300"),
    "no text": lambda d: d.execute("UPDATE units SET error = cast(x'fffe3c' AS text)"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_whatever_a_record_holds_reading_it_is_a_page_or_a_sentence(
    kind, finished, tmp_path, capsys
):
    folder = tmp_path / "another's"
    shutil.copytree(finished, folder)
    database = sqlite3.connect(folder / "run.sqlite")
    with database:
        HOSTILE[kind](database)
    database.close()
    for what in (["report"], ["export", "--json", str(tmp_path / "figures.json")]):
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
    (about,) = plan.defences.values()
    assert reload(plan).models
    about["purifier"]["steps"] = 10**9
    assert "more than 10000 steps" in reload(plan).missing["DefendedModel"]
