"""What is published: the wheel and the source archive, and which version they say they are."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from scoreopt_defense import __version__, _release, cli, pretrained

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", str(folder)],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    return folder


def test_the_wheel_has_the_package_its_weights_and_nothing_else(built):
    (wheel,) = built.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names} == {
        "scoreopt_defense", f"scoreopt_defense-{__version__}.dist-info",
    }  # fmt: skip
    weights = {Path(name).name for name in names if name.endswith(".safetensors")}
    assert weights == {
        f"{name}-{kind}.safetensors"
        for kind in ("classifier", "denoiser")
        for name in pretrained.names(kind)
    }
    assert {"scoreopt_defense/py.typed"} <= set(names)
    (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
    said = zipfile.ZipFile(wheel).read(metadata).decode()
    assert "Project-URL: Paper, https://arxiv.org/abs/2307.04333" in said
    assert "adversarial robustness" in re.findall(r"^Keywords: (.*)$", said, re.MULTILINE)[0]


def test_the_source_archive_has_what_tests_it(built):
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    assert {"README.md", "LICENSE", "pyproject.toml", "tests/conftest.py"} <= names
    assert {"examples/demo.toml", "benchmarks/README.md", "docs/index.md", "mkdocs.yml"} <= names
    assert not any(re.match(r"runs/|\.venv|dist/", name) for name in names)


def test_the_readmes_first_snippet_runs_from_the_wheel(built, tmp_path):
    pytest.importorskip("torchattacks")
    pytest.importorskip("mlxtend")
    (wheel,) = built.glob("*.whl")
    install = ["install", "--quiet", "--no-deps", "--no-index", "--target", str(tmp_path)]
    subprocess.run([sys.executable, "-m", "pip", *install, str(wheel)], check=True)
    snippet = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[0]
    where = "import scoreopt_defense; print('at', scoreopt_defense.__file__)\n"
    done = subprocess.run(
        [sys.executable, "-c", where + snippet], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert f"at {tmp_path}" in done.stdout
    assert 0 <= float(done.stdout.split("robust:")[1]) <= 1


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        ('{"url": "file:///else", "dir_info": {"editable": true}}', _release._of_checkout(ROOT)),
        ('{"url": "file:///nowhere", "dir_info": {}}', None),
        (None, None),
        ('{"url": "https://x/y", "vcs_info": {"vcs": "git", "commit_id": "0123456789abcdef"}}',
         "0123456789ab"),
    ],
)  # fmt: skip
def test_the_commit_is_that_of_what_was_installed(origin, expected, monkeypatch):
    class Installed:
        def read_text(self, name):
            return origin

    monkeypatch.setattr(_release, "distribution", lambda name: Installed())
    assert _release.commit() == expected


def test_a_changed_checkout_says_so(tmp_path):
    def git(*arguments):
        settings = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path), *settings, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    assert _release._of_checkout(tmp_path) is None
    git("init", "-q")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-qm", "one")
    commit = git("rev-parse", "--short=12", "HEAD").strip()
    assert _release._of_checkout(tmp_path) == commit
    (tmp_path / "file").write_text("two")
    assert _release._of_checkout(tmp_path) == f"{commit}, changed"


def test_the_changelog_has_the_version():
    """Versions fall, each with a date, below what is not released yet."""
    text = (ROOT / "CHANGELOG.md").read_text()
    found = re.findall(r"^## \[(\d+)\.(\d+)\.(\d+)\] - \d{4}-\d{2}-\d{2}$", text, re.MULTILINE)
    versions = [tuple(map(int, version)) for version in found]
    assert versions == sorted(versions, reverse=True)
    assert ".".join(found[0]) == __version__
    assert text.index("## [Unreleased]") < text.index(f"## [{__version__}]")


def test_the_command_line_says_which_version_it_is(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith(f"scoreopt {__version__}")
