"""A run by file and by command: what is wrong with one is named, and no traceback is shown."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from test_missing_extras import BLOCK
from toy_evaluation import Ascent, images
from toys import smooth_classifier

from scoreopt_defense import DefendedModel, OneShot, ScoreOpt, cli, pretrained
from scoreopt_defense.evaluation import Result, Stopped, Store, evaluate
from scoreopt_defense.evaluation.config import ConfigError, _attack, _suite, load
from scoreopt_defense.evaluation.named import classifier, purifier
from scoreopt_defense.evaluation.plan import Plan
from scoreopt_defense.evaluation.report.reload import reload
from scoreopt_defense.evaluation.run.progress import Lines
from scoreopt_defense.objectives import MSE

ROOT = Path(__file__).parent.parent
IMAGES = '[images]\nsource = "mnist"\nn = 4\n'
BARE = '[defences.bare]\nclassifier = "mnist-tiny"\n'
WHOLE = """
seed = 3
batch = 2

[images]
source = "mnist"
n = 4

[judging]
purifications = 2

[defences.bare]
classifier = "mnist-tiny"

[defences.one-shot]
classifier = "mnist-tiny"
denoiser = "mnist-tiny"
purifier = "OneShot"
overrides = { sigma = 0.5 }

[defences.n]
classifier = "mnist-tiny"
denoiser = "mnist-tiny"
purifier = "ScoreOpt"
preset = "mnist-tiny/N"
overrides = { steps = 1 }
votes = 2

[attacks.transfer-pgd-linf]
eps = "51/255"
steps = 2

[attacks.weak]
attack = "transfer-pgd-linf"
eps = 0.01
steps = 1
"""


@pytest.fixture
def written(tmp_path):
    def write(text):
        (tmp_path / "run.toml").write_text(text)
        return tmp_path / "run.toml"

    return write


def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path):
    """As Windows' editors write it."""
    plain, marked = tmp_path / "plain.toml", tmp_path / "marked.toml"
    plain.write_text(WHOLE, encoding="utf-8")
    marked.write_text(WHOLE, encoding="utf-8-sig")
    assert marked.read_bytes() == b"\xef\xbb\xbf" + plain.read_bytes()
    assert load(marked) == load(plain)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("device", "is no regular file"),
        ("pipe", "is no regular file"),
        ("folder", "is no regular file"),
        (b"#" * (2**20 + 1), "must have at most 1,048,576 bytes"),
        (b"a = " + b"[" * 100_000, "is no TOML: "),
        (WHOLE.encode("utf-16"), "is no TOML: "),
    ],
)
def test_what_is_no_such_file_is_said_at_once(content, said, tmp_path, capsys):
    path = tmp_path / "run.toml"
    if content == "device":
        path.symlink_to("/dev/zero")
    elif content == "pipe":
        os.mkfifo(path)
    elif content == "folder":
        path.mkdir()
    else:
        path.write_bytes(content)
    assert cli.main(["evaluate", str(path)]) == 1
    assert said in capsys.readouterr().err


def test_commands_to_a_terminal_in_a_key_are_escaped(written, capsys):
    assert cli.main(["evaluate", str(written(IMAGES + BARE + '[judging]\n"\\u001b]0;a" = 1'))]) == 1
    error = capsys.readouterr().err
    assert "\x1b" not in error
    assert r"judging.\x1b]0;a" in error


def test_commands_to_a_terminal_in_a_name_are_escaped_as_a_run_goes_on(capsys):
    Lines().note("1/2 units, \x1b[31m on bare complete")
    assert capsys.readouterr().err == "1/2 units, \\x1b[31m on bare complete\n"


def test_what_the_file_says_is_what_is_made(written):
    config = load(written(WHOLE))
    materials = config.materials()
    bare, one_shot, n = materials.defences.values()
    assert isinstance(one_shot, DefendedModel)
    assert isinstance(one_shot.purifier, OneShot)
    assert one_shot.purifier.sigma == (0.5, 0.5)
    assert isinstance(n.purifier, ScoreOpt)
    assert (n.purifier.steps, n.purifier.sigma, n.votes) == (1, (0.75, 0.75), 2)
    x, _ = materials.images.batch(0, 4)
    assert torch.equal(bare(x), pretrained.classifier("mnist-tiny")(x))
    attack = materials.tasks["transfer-pgd-linf"]["n"].attack
    assert (attack.eps, attack.steps) == (0.2, 2)
    plan = config.plan(materials)
    assert (plan.seed, plan.batch, plan.count, plan.judging["purifications"]) == (3, 2, 4, 2)
    assert plan.columns == list(plan.attacks)[:3] == ["clean", "transfer-pgd-linf", "weak"]
    assert plan.hash == config.plan(config.materials()).hash


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (IMAGES, "defences is missing"),
        (BARE, "images is missing"),
        (f"sead = 1\n{IMAGES}{BARE}", r"there is no key sead; there are \['attacks', 'batch'"),
        (f"{IMAGES}spl = 1\n{BARE}", r"no key images.spl; there are \['crop', 'n', 'order'"),
        (f"{IMAGES}{BARE}x = 1", r"there is no key defences.bare.x; there are \['classifier'"),
        (f"batch = 0\n{IMAGES}{BARE}", "batch should be greater than or equal to 1, got 0"),
        (f"batch = 1.5\n{IMAGES}{BARE}", "batch should be a valid integer, got 1.5"),
        (f'seed = "1"\n{IMAGES}{BARE}', "seed should be a valid integer, got '1'"),
        (f'{IMAGES}{BARE}[judging]\ncriterion = "best"', "'final' or 'any-step', got 'best'"),
        (f"{IMAGES}[defences.a]", "defences.a.classifier is missing"),
        (f"{IMAGES}{BARE}[attacks.spsa]\neps = -1", "attacks.spsa.eps should be greater than 0"),
        (f'{IMAGES}{BARE}[attacks.spsa]\neps = "8/0"', "attacks.spsa.eps should be a valid number"),
        ("seed = ", "is no TOML"),
        ("seed = " + "9" * 5000, "is no TOML: Exceeds the limit"),
        ("seed = " + "[" * 10**5, "is no TOML"),
        (f"threads = 100000\n{IMAGES}{BARE}", "threads should be less than or equal to 1024, got"),
        *(
            (f'{IMAGES}{BARE}[attacks.spsa]\neps = "{eps}"', f"eps should be {said}")
            for eps, said in {
                "1e999999999": "a finite number",
                "1/1e-999999999": "a valid number",
                "1e-999999999": "greater than 0",
                "inf": "a finite number",
                "nan": "greater than 0",
            }.items()
        ),
    ],
)
def test_a_wrong_file_names_the_key_the_value_and_what_is_allowed(text, said, written):
    with pytest.raises(ConfigError, match=said):
        load(written(text))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f'[images]\nsource = "nowhere"\n{BARE}', "images = 'nowhere': no images at nowhere"),
        (f'{IMAGES}[defences.a]\nclassifier = "x"', r"classifier = 'x': .*must be one of \['cifar"),
        (
            f'{IMAGES}[defences.a]\nclassifier = "file:no.safetensors"',
            "defences.a.classifier = 'file:no.safetensors': no file at no.safetensors",
        ),
        (
            f'{IMAGES}[defences.a]\nclassifier = "python:toys:nothing"',
            "toys has no function 'nothing'",
        ),
        (f'{IMAGES}{BARE}purifier = "Best"', r"purifier must be one of \['none', 'ADP', 'B.*'Sco"),
        (
            f'{IMAGES}{BARE}purifier = "JPEG"\ndenoiser = "mnist-tiny"',
            "JPEG has no network and takes no denoiser, got 'mnist-tiny'",
        ),
        (
            f'{IMAGES}{BARE}purifier = "JPEG"\noverrides = {{ gradient = "exact" }}',
            r"gradient='exact' needs .* the modes \['bpda'\]",
        ),
        (f'{IMAGES}{BARE}purifier = "GDMP"', "GDMP needs denoiser"),
        (f'{IMAGES}{BARE}purifier = "OneShot"', "OneShot needs denoiser"),
        (f'{IMAGES}{BARE}denoiser = "mnist-tiny"', "purifier 'none' takes no denoiser"),
        (
            f'{IMAGES}{BARE}purifier = "ScoreOpt"\ndenoiser = "mnist-tiny"\npreset = "x"',
            "preset must be one of",
        ),
        (
            f'{IMAGES}{BARE}purifier = "OneShot"\ndenoiser = "mnist-tiny"\n'
            "overrides = { sigma = 9.0 }",
            r"sigma must be within \[0.1, 2\]",
        ),
        (
            f'{IMAGES}{BARE}purifier = "OneShot"\ndenoiser = "mnist-tiny"\noverrides = {{ x = 1 }}',
            "there is no setting 'x'",
        ),
        (f"{IMAGES}{BARE}[attacks.best]", "attacks.best = .*attack must be one of"),
        (f"{IMAGES}{BARE}[attacks.spsa]\nx = 1", "attacks.spsa = .*there is no setting 'x'"),
        (f"{IMAGES}{BARE}[attacks.spsa]\neps = 8", "attacks.spsa.*eps must be .*8"),
    ],
)
def test_what_cannot_be_had_names_its_key(text, said, written):
    config = load(written(text))
    with pytest.raises(ConfigError, match=said):
        config.materials()


def test_an_override_may_be_an_object_with_settings():
    given = {"loss": {"name": "mse", "weight": 0.25}}
    made = purifier("ScoreOpt", "mnist-tiny", "mnist-tiny/O", given)
    assert made is not None
    assert made.settings.loss == MSE(weight=0.25)
    with pytest.raises(ValueError, match="loss must be one of"):
        purifier("ScoreOpt", "mnist-tiny", "mnist-tiny/O", {"loss": {"name": "l1"}})


@pytest.mark.parametrize("kind", ["ADP", "BitDepth", "DiffPure", "GDMP", "JPEG", "MENet"])
def test_every_baseline_can_be_named(kind, written):
    network = "" if kind in ("BitDepth", "JPEG", "MENet") else 'denoiser = "mnist-tiny"\n'
    text = f'{IMAGES}{BARE}purifier = "{kind}"\n{network}overrides = {{ max_batch = 7, seed = 3 }}'
    materials = load(written(text)).materials()
    (model,) = materials.defences.values()
    assert type(model.purifier).__name__ == kind
    assert (model.purifier.max_batch, model.purifier.seed) == (7, 3)
    plan = Plan.of(materials, trials=1, batch=8, seed=0, threads=1)
    again = reload(Plan.from_json(plan.as_json()))
    assert not again.missing
    (loaded,) = again.models.values()
    assert loaded.purifier.settings == model.purifier.settings


def toy_classifier():
    return smooth_classifier(torch.float32, channels=1, size=28, classes=10).train()


def test_a_classifier_of_ones_own():
    found = classifier("python:test_evaluation_config:toy_classifier")
    x = torch.rand(2, 1, 28, 28)
    assert torch.equal(found(x), toy_classifier()(x))
    assert not found.training


def test_a_library_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"this needs timm.*pip install timm"):
        classifier("timm:resnet18")


# --- the command --------------------------------------------------------------------------------


def test_a_session(written, tmp_path, capsys):
    config, out = str(written(WHOLE)), tmp_path / "out"
    assert cli.main(["evaluate", config, "--dry-run"]) == 0
    said = capsys.readouterr().out
    # 4 images: 2 purifications of 2 votes of 1 step and the last denoising
    assert said.splitlines()[3].split()[:7] == ["n", "clean", "2", "32", "16", "-", "-"]
    # 2 steps of 40, on the classifier
    assert said.splitlines()[6].split()[:2] == ["n", "transfer-pgd-linf"]
    assert said.splitlines()[6].split()[5:7] == ["2", "40"]
    assert "About" in said
    assert not out.exists()
    assert cli.main(["evaluate", config, "--workers", "1", "--out", str(out)]) == 0
    first = capsys.readouterr().out
    assert [line.split()[0] for line in first.splitlines()[1:4]] == ["bare", "one-shot", "n"]
    assert str(out / "record.sqlite") in first
    with Store(out) as store:
        assert Result(store).cell("n", "weak").accuracy.n == 4
        assert Result(store).cell("n").denoiser_calls == 32  # as foretold
    assert cli.main(["evaluate", config, "--workers", "1", "--out", str(out)]) == 0
    assert capsys.readouterr().out == first
    assert cli.main(["export", str(out), "--csv", str(tmp_path / "rows.csv")]) == 0
    assert f"{36 + 3 * 4 * 4} rows" in capsys.readouterr().out  # the checks' too
    assert (out / "run.toml").read_text() == WHOLE


def test_configurations_share_a_record(written, tmp_path, capsys):
    """What one of them has evaluated is not done again for another, under whatever names."""
    (tmp_path / "two").mkdir()
    one, two, out = written(WHOLE), tmp_path / "two" / "more.toml", tmp_path / "out"
    given = ["--workers", "1", "--out", str(out)]

    def evaluated(path):
        assert cli.main(["evaluate", str(path), *given]) == 0
        said = capsys.readouterr()
        return said.out, said.err.splitlines()[0]

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
    given = ["evaluate", config, "--workers", "1", "--out", str(out)]
    assert cli.main(given) == 1
    held = f"another process is writing this record (process {os.getpid()} on {platform.node()}, "
    assert held in capsys.readouterr().err
    monkeypatch.setattr(time, "sleep", lambda _: holder.unlock())
    assert cli.main([*given, "--wait"]) == 0
    said = capsys.readouterr()
    assert f"waiting: {out}: {held}" in said.err
    assert str(out / "record.sqlite") in said.out


def test_a_fraction_is_the_number_that_its_parts_divide_to(written):
    config = load(written(f'{IMAGES}{BARE}[attacks.spsa]\neps = " 8 / 255 "'))
    assert config.attacks["spsa"].eps == 8 / 255


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
    (here / "plotly").mkdir()  # what stands in for a library is not found either
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
    assert capsys.readouterr().err.strip() == (
        "scoreopt: stopped with 3 units left; start again to go on"
    )


@pytest.mark.parametrize(
    "command", ["", "evaluate", "report", "runs", "forget", "export", "purify", "presets", "models"]
)
def test_help(command, capsys):
    assert cli.main([*command.split(), "--help"]) == 0
    assert "Usage" in capsys.readouterr().out


def test_presets_and_models_are_listed(capsys):
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


TOMLS = [*ROOT.glob("examples/*.toml"), *ROOT.glob("benchmarks/**/*.toml")]
SHIPPED = [path for path in TOMLS if "[images]" in path.read_text()]  # others: the paper's tables


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_configuration_that_ships_names_what_there_is(path):
    """Their data and networks may not be here; their attacks, suites and settings are."""
    config = load(path)
    attacks = {name: _attack(name, section, 3072) for name, section in config.attacks.items()}
    assert all(callable(attack.run) for attack in attacks.values())
    for name, section in config.suites.items():
        assert _suite(name, section).norm in ("linf", "l2")
    for section in config.defences.values():
        if section.denoiser in (None, *pretrained.names("denoiser")):
            arguments = section.purifier, section.denoiser, section.preset, section.overrides
            assert (purifier(*arguments) is None) == (section.purifier == "none")
