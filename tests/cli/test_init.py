"""The first configuration: what is asked for, and that a run takes it as it is."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from scoreopt_defense import JPEG, DefendedModel, ThirdParty, cli, pretrained
from scoreopt_defense.evaluation.config import load


def whole():
    return pretrained.classifier("mnist-tiny")


def purifier():
    return JPEG()


def wrapped():
    return DefendedModel(whole(), ThirdParty(grey))


def grey(x):
    return 0 * x + 0.5


def number():
    return 1


@pytest.mark.parametrize(
    ("defence", "kinds"),
    [
        ("mnist-tiny", {"undefended": None, "ScoreOpt-N": "ScoreOpt"}),
        ("test_init:whole", {"TinyResNet": None}),
        ("test_init.py:whole", {"TinyResNet": None}),
        ("test_init:wrapped", {"grey": "ThirdParty"}),
        ("python:test_init:purifier", {"undefended": None, "JPEG": "JPEG"}),
    ],
)
def test_what_is_written_is_what_a_run_takes(defence, kinds, tmp_path, capsys):
    path = tmp_path / "mine.toml"
    asked = ["init", str(path), "--defence", defence, "--images", "mnist", "--n", "2"]
    needed = ["--classifier", "mnist-tiny"] * ("undefended" in kinds)
    assert cli.main([*asked, *needed]) == 0
    assert f"scoreopt evaluate {path} --dry-run" in capsys.readouterr().out
    materials = load(path).materials()
    found = {
        name: type(model.purifier).__name__ if isinstance(model, DefendedModel) else None
        for name, model in materials.defences.items()
    }
    assert found == kinds
    assert len(materials.images) == 2
    assert list(materials.suites) == ["quick"]


def test_what_is_not_said_is_asked(tmp_path, monkeypatch):
    answers = iter(["", "", 'a "folder"'])
    monkeypatch.setattr("typer.prompt", lambda what, default: next(answers) or default)
    path = tmp_path / "mine.toml"
    assert cli.main(["init", str(path)]) == 1  # there is nobody to ask
    monkeypatch.setattr("sys.stdin", io.StringIO())
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    assert cli.main(["init", str(path)]) == 0
    config = load(path)
    assert config.images.source == 'a "folder"'
    assert {section.classifier for section in config.defences.values()} == {"mnist-tiny"}


def test_a_classifier_of_a_library_brings_its_transform(tmp_path, capsys):
    path = tmp_path / "mine.toml"
    given = ["--defence", "cifar10-tiny", "--classifier", "timm:resnet18", "--images", "photos"]
    assert cli.main(["init", str(path), *given]) == 0
    assert load(path).images.transform == "timm"
    assert "nothing at photos yet" in capsys.readouterr().out


def test_a_classifier_of_ones_own_is_named_as_a_defence_is(tmp_path):
    path = tmp_path / "mine.toml"
    given = ["--defence", "test_init:purifier", "--images", "mnist", "--n", "2"]
    assert cli.main(["init", str(path), *given, "--classifier", "test_init:whole"]) == 0
    config = load(path)
    assert {section.classifier for section in config.defences.values()} == {
        "python:test_init:whole"
    }
    assert len(config.materials().defences) == 2


@pytest.mark.parametrize(
    ("name", "defence", "said"),
    [
        ("there.toml", "mnist-tiny", "is there already"),
        ("a.txt", "mnist-tiny", "must end in .toml"),
        ("a.toml", "mine", "MODULE:FUNCTION or one of ['cifar10-tiny', 'mnist-tiny'], got 'mine'"),
        ("a.toml", "test_init:number", "must return a torch module"),
        ("a.toml", "test_init:nothing", "has no function 'nothing'"),
        ("a.toml", "nowhere:make", f"No module named 'nowhere', in {Path.cwd()} or installed"),
    ],
)
def test_nothing_is_overwritten_nor_written_where_it_is_wrong(
    name, defence, said, tmp_path, capsys
):
    (tmp_path / "there.toml").write_text("mine")
    given = ["--defence", defence, "--classifier", "mnist-tiny", "--images", "mnist"]
    assert cli.main(["init", str(tmp_path / name), *given]) == 1
    assert said in capsys.readouterr().err
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]
