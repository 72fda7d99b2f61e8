"""The commands: what they say, and that no traceback is shown."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from configurations import BARE, IMAGES, WHOLE
from missing_libraries import BLOCK
from toy_evaluation import Ascent, images
from toys import smooth_classifier

from scoreopt_defense import cli
from scoreopt_defense.attacks import ATTACKS, KINDS
from scoreopt_defense.evaluation import Result, Stopped, Store, evaluate
from scoreopt_defense.evaluation.named import SUITES


def test_a_session(written, tmp_path, capsys):
    config, out = str(written(WHOLE)), tmp_path / "out"
    assert cli.main(["evaluate", config, "--dry-run"]) == 0
    said = capsys.readouterr().out
    # 4 images: 2 purifications of 2 votes of 1 step and the last denoising
    assert said.splitlines()[3].split()[:7] == ["n", "clean", "2", "32", "16", "-", "-"]
    assert said.splitlines()[1].split()[:5] == ["bare", "clean", "2", "-", "8"]
    # 2 steps of 40, on the classifier
    assert said.splitlines()[6].split()[:2] == ["n", "transfer-pgd-linf"]
    assert said.splitlines()[6].split()[5:7] == ["2", "40"]
    assert said.splitlines()[6].split()[7:10] == ["linf", "<=", "0.2"]
    assert "4 images of mnist, 1 x 28 x 28; attacked within linf 0.2 (transfer" in said
    assert "About" in said
    assert not out.exists()
    assert cli.main(["evaluate", config, "--workers", "1", "--out", str(out)]) == 0
    first = capsys.readouterr().out
    assert [line.split()[0] for line in first.splitlines()[1:4]] == ["bare", "one-shot", "n"]
    assert str(out / "record.sqlite") in first
    said = r"^bare(: no attack run here| is not robust: \d of 4 images survives?)"
    assert re.search(said, first, re.M)
    assert first.splitlines()[-1] == f"Page: {out / 'report.html'}"
    assert "one-shot" in (out / "report.html").read_text("utf-8")
    with Store(out) as store:
        assert Result(store).cell("n", "weak").accuracy.n == 4
        assert Result(store).cell("n").denoiser_calls == 32  # as foretold
    assert cli.main(["evaluate", config, "--workers", "1", "--out", str(out), "--no-page"]) == 0
    assert capsys.readouterr().out == first[: first.index("Page: ")]
    assert cli.main(["export", str(out), "--csv", str(tmp_path / "rows.csv")]) == 0
    assert f"{36 + 3 * 4 * 4} rows" in capsys.readouterr().out  # the checks' too
    assert (out / "run.toml").read_text() == WHOLE


def test_a_dry_run_fails_where_an_attack_cannot_run(written, capsys):
    defence = f'{IMAGES}{BARE}purifier = "BitDepth"\n'
    exact = '[attacks.a]\nattack = "pgd-eot-linf"\neps = 0.3\ngradient = "exact"'
    assert cli.main(["evaluate", str(written(defence + exact)), "--dry-run"]) == 1
    said = capsys.readouterr()
    assert "scoreopt: a cannot run on bare: ValueError: " in said.err
    assert "denoiser" not in said.out  # which none of these defences has
    assert [line.split()[-1] for line in said.out.splitlines() if " a  " in line] == ["FAILS"]


def test_configurations_share_a_record(written, tmp_path, capsys):
    """What one of them has evaluated is not done again for another, under whatever names."""
    (tmp_path / "two").mkdir()
    one, two, out = written(WHOLE), tmp_path / "two" / "more.toml", tmp_path / "out"
    given = ["--workers", "1", "--out", str(out), "--no-page"]

    def evaluated(path):
        assert cli.main(["evaluate", str(path), *given]) == 0
        said = capsys.readouterr()
        return said.out, next(line for line in said.err.splitlines() if "units, " in line)

    units = 3 * 3 * 2 + 3 * 4 * 2  # attacks, and the checks, of batches of two
    first, said = evaluated(one)
    assert said == f"{units} units, 0 of them recorded before"
    more = WHOLE.replace("defences.n]", "defences.scoreopt]").replace("attacks.weak]", "attacks.w]")
    two.write_text(f"{more}\n[attacks.weaker]\nattack = 'spsa'\nsteps = 1\neps = 0.01")
    _, said = evaluated(two)
    new = 3 * 2  # and noise of no other size, as "weak" has the same
    assert said == f"{units + new} units, {units} of them recorded before"
    assert (out / "run.toml").read_text() == WHOLE
    assert (out / "more.toml").read_text() == two.read_text()
    assert evaluated(one) == (first, f"{units} units, {units} of them recorded before")
    assert cli.main(["runs", str(out)]) == 0
    listed = capsys.readouterr().out
    assert [line.split()[0] for line in listed.splitlines()[1:3]] == ["more", "run"]
    assert "scoreopt, n" in listed
    for view, name in (("run", "n"), ("more", "scoreopt")):
        csv = str(tmp_path / "rows.csv")
        assert cli.main(["export", str(out), "--view", view, "--csv", csv]) == 0
        names = {line.split(",")[0] for line in Path(csv).read_text().splitlines()[1:]}
        assert names == {"bare", "one-shot", name}
    written(WHOLE.replace("seed = 3", "seed = 4"))  # beside what was there
    _, said = evaluated(one)
    assert said == f"{units} units, 0 of them recorded before"


def test_a_command_waits_for_a_record_that_is_being_written(written, tmp_path, capsys, monkeypatch):
    config, out = str(written(WHOLE)), tmp_path / "out"
    holder = Store(out, writing=True)
    given = ["evaluate", config, "--workers", "1", "--out", str(out), "--no-page"]
    assert cli.main(given) == 1
    held = f"another process is writing this record (process {os.getpid()} on {platform.node()}, "
    assert held in capsys.readouterr().err
    monkeypatch.setattr(time, "sleep", lambda _: holder.unlock())
    assert cli.main([*given, "--wait"]) == 0
    said = capsys.readouterr()
    assert f"waiting: {out}: {held}" in said.err
    assert str(out / "record.sqlite") in said.out


CODE = """
import pathlib, sys
pathlib.Path("ran").touch()
from toy_evaluation import Ascent, images
from toys import smooth_classifier
def made():
    sys.exit({status})
"""


def test_reading_a_run_runs_nothing_that_its_folder_names(finished_toy, monkeypatch, capsys):
    """Unless its configuration is given; then the folder that it is called in is searched."""
    here, folder = finished_toy
    monkeypatch.chdir(here)
    (folder / "its.toml").write_text(f'{IMAGES}[defences.toy]\nclassifier = "python:theirs:made"\n')
    (here / "theirs.py").write_text(CODE.format(status=0))
    (here / "jinja2").mkdir()  # what stands in for a library is not found either
    before = list(sys.path)
    for command in (["report", str(folder)], ["export", str(folder), "--json", "a.json"]):
        assert cli.main(command) == 0
    assert not (here / "ran").exists()
    assert "say --config FILE" in (folder / "report.html").read_text("utf-8")
    assert cli.main(["report", str(folder), "--config", str(folder / "its.toml")]) == 0
    assert (here / "ran").exists()
    assert "it raised SystemExit: 0" in (folder / "report.html").read_text("utf-8")
    assert sys.path == before
    assert cli.main(["evaluate", str(folder / "its.toml"), "--out", "other"]) == 1
    assert "it raised SystemExit: 0" in capsys.readouterr().err


@pytest.fixture
def finished_toy(tmp_path, monkeypatch):
    model = {"toy": smooth_classifier(torch.float32)}
    evaluate(model, images(2), {"ascent": Ascent()}, out=tmp_path / "run").store.close()
    yield tmp_path, tmp_path / "run"
    sys.modules.pop("theirs", None)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ([], 2, ""),
        (["evaluate"], 2, "Missing argument"),
        (["evaluate", "no.toml"], 1, "no.toml: No such file"),
        (["evaluate", "no.toml", "--workers", "0"], 2, "workers"),
        (["valuate"], 2, "No such command"),
        (["export", "nowhere", "--csv", "a.csv"], 1, "there is no record in nowhere"),
        (["export", "nowhere"], 2, "say --csv FILE"),
        (["purify", "no.png", "a.png", "--denoiser", "mnist-tiny"], 1, "nothing at no.png"),
        (["purify", "a", "b", "--denoiser", "x"], 1, "denoiser must be one of"),
        (["purify", "a", "b", "--denoiser", "mnist-tiny", "--set", "x"], 2, "NAME=VALUE"),
        (["purify", "a", "b", "--denoiser", "mnist-tiny", "--set", "x=1"], 1, "no setting 'x'"),
    ],
)
def test_wrong_use_is_said_without_a_traceback(
    arguments, status, said, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == status
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_ctrl_c_says_how_to_go_on(written, capsys, monkeypatch):
    def stopped(*_, **__):
        raise Stopped("stopped with 3 units left; start again to go on")

    monkeypatch.setattr(
        sys.modules["scoreopt_defense.evaluation.evaluate"], "evaluate_plan", stopped
    )
    assert cli.main(["evaluate", str(written(WHOLE))]) == 130
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == "scoreopt: stopped with 3 units left; start again to go on"


@pytest.mark.parametrize(
    "command",
    [
        "",
        "evaluate",
        "report",
        "runs",
        "forget",
        "export",
        "purify",
        "play",
        "attacks",
        "presets",
        "models",
    ],
)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_has_an_example(command, flag, capsys):
    assert cli.main([*command.split(), flag]) == 0
    said = capsys.readouterr().out
    assert "Usage" in said
    assert f"Such as: scoreopt {command}" in said


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["evaluate", "-h"], ["presets"]])
def test_what_needs_no_torch_does_not_wait_for_it(arguments):
    script = f"import sys; from scoreopt_defense import cli; cli.main({arguments}); "
    script += "sys.exit(bool({'torch', 'scipy', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True).returncode == 0


def test_presets_models_and_attacks_are_listed(capsys):
    assert cli.main(["attacks"]) == 0
    listed = capsys.readouterr().out
    assert "MomentumPGD  Many steps of one sample" in listed
    assert "As PGD, by Foolbox" in listed
    names = [line.split()[0] for line in listed.splitlines() if line]
    assert {*ATTACKS, *KINDS, *SUITES} <= set(names)
    assert cli.main(["presets"]) == 0
    assert "cifar10/bpda-eot-linf/O" in capsys.readouterr().out
    assert cli.main(["models"]) == 0
    assert "python:<package.module>:<function>" in capsys.readouterr().out


def test_purify_files(tmp_path, capsys):
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path / "in" / "deep"
    folder.mkdir(parents=True)
    levels = np.random.default_rng(0).integers(0, 256, (2, 28, 28), dtype=np.uint8)
    image.fromarray(levels[0]).save(folder / "a.png")
    image.fromarray(levels[1]).save(tmp_path / "in" / "b.bmp")
    options = ["--denoiser", "mnist-tiny", "--preset", "mnist-tiny/N", "--set", "steps=1"]
    assert cli.main(["purify", str(tmp_path / "in"), str(tmp_path / "out"), *options]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert cli.main(["purify", str(folder / "a.png"), str(tmp_path / "a.png"), *options]) == 0
    assert cli.main(["purify", str(folder), str(tmp_path / "again"), *options]) == 0
    results = [
        np.asarray(image.open(tmp_path / name)) for name in ("out/deep/a.png", "a.png", "out/b.png")
    ]
    assert all(result.shape == (28, 28) for result in results)
    assert not np.array_equal(results[0], levels[0])
    alone, again = results[1], np.asarray(image.open(tmp_path / "again/a.png"))
    assert np.array_equal(alone, again)  # its noise is of its name, not of its neighbours
    own = ["--denoiser", "MNIST-tiny", "--set", "steps=1"]  # the network's own preset
    assert cli.main(["purify", str(folder), str(tmp_path / "own"), *own]) == 0
    assert np.array_equal(alone, np.asarray(image.open(tmp_path / "own/a.png")))
    squeeze = ["--purifier", "BitDepth", "--set", "bits=1"]
    assert cli.main(["purify", str(folder / "a.png"), str(tmp_path / "bits.png"), *squeeze]) == 0
    squeezed = np.asarray(image.open(tmp_path / "bits.png"))
    assert np.array_equal(squeezed, np.where(levels[0] < 128, 0, 255))
    assert cli.main(["purify", str(folder), str(folder), *options]) == 1
    assert "would be overwritten" in capsys.readouterr().err


def test_a_purifier_of_a_file_in_the_current_folder(tmp_path, monkeypatch, capsys):
    image = pytest.importorskip("PIL.Image")
    levels = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    image.fromarray(levels).save(tmp_path / "a.png")
    lines = ["from scoreopt_defense import ThirdParty", "def inverse():",
             "    return ThirdParty(lambda x: 1 - x, differentiable=False)"]  # fmt: skip
    (tmp_path / "file_of_a_user.py").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    asked = ["purify", "a.png", "b.png", "--purifier", "python:file_of_a_user:inverse"]
    assert cli.main(asked) == 0
    assert np.array_equal(np.asarray(image.open("b.png")), 255 - levels)
    assert sys.path == before
    monkeypatch.delitem(sys.modules, "file_of_a_user")
    monkeypatch.chdir("/")
    assert cli.main(asked) == 1
    assert "No module named 'file_of_a_user'" in capsys.readouterr().err


def test_without_the_extra_it_is_named_and_convert_edm_still_runs(tmp_path):
    script = BLOCK.format(blocked={"typer", "rich", "pydantic", "click"}) + (
        "from scoreopt_defense import cli\nsys.exit(cli.main(sys.argv[1:]))"
    )

    def call(*arguments):
        return subprocess.run(
            [sys.executable, "-c", script, *arguments],
            capture_output=True, text=True, cwd=tmp_path, env=os.environ,
        )  # fmt: skip

    missing = call("presets")
    assert missing.returncode == 1
    assert "pip install 'scoreopt-defense[evaluate]'" in missing.stderr
    assert "Traceback" not in missing.stderr
    converting = call("convert-edm", "no.pkl", "out.safetensors")
    assert converting.returncode == 1
    assert "no.pkl" in converting.stderr
