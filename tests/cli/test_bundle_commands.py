"""The commands of bundles: a session, exit statuses, and what is wrong with a call."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from configurations import BARE, ONE_SHOT

from scoreopt_defense import cli, data
from scoreopt_defense.evaluation.bundle import Bundle

TOML = f"""
[images]
source = "mnist"
n = 24

[judging]
purifications = 4

{BARE}{ONE_SHOT}
[attacks.transfer-pgd-linf]
eps = 0.2
steps = 2
"""


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """A folder with a configuration, its run, and a bundle of each defence."""
    folder = tmp_path_factory.mktemp("session")
    config, run = folder / "run.toml", folder / "record"
    config.write_text(TOML)
    given = ["--workers", "1", "--no-page", "--out", str(run)]
    assert cli.main(["evaluate", str(config), *given]) == 0
    for name in ("bare", "one-shot"):
        assert cli.main(["bundle", str(run), str(folder / f"{name}.zip"), "--name", name]) == 0
    return folder


@pytest.fixture
def there(session, monkeypatch):
    monkeypatch.chdir(session)
    return session


def test_a_claim_is_checked(there, capsys):
    assert cli.main(["verify", "one-shot.zip", "--defence", "run.toml", "--margin", "30"]) == 0
    said, shown = capsys.readouterr()
    assert "768/768 purifications judged" in shown
    assert said.startswith("confirmed: of 24 images ")
    assert "stand at linf 0.2, judged by 32 fresh purifications of each (seed " in said
    assert f"Claimed: {100 * Bundle.read('one-shot.zip').share.value:.1f} %, by 4 of each" in said


def _claiming(right):
    bundle = Bundle.read("bare.zip")
    predicted = np.repeat(bundle.labels[:, None], 4, 1) + (not right)
    return type(bundle)(**vars(bundle) | {"predicted": predicted})


@pytest.mark.parametrize(
    ("other", "status", "said"),
    [
        (lambda: _claiming(right=True).write("made-up.zip"), 4, "refuted: of 24"),
        (lambda: shutil.copy("one-shot.zip", "made-up.zip"), 5, "another defence: "),
        (lambda: shutil.copy("run.toml", "made-up.zip"), 1, "must be a zip"),
    ],
)
def test_a_claim_that_is_not_so_has_a_status_of_its_own(other, status, said, there, capsys):
    other()
    call = ["verify", "made-up.zip", "--defence", "run.toml", "--name", "bare"]
    assert cli.main(call) == status
    found = capsys.readouterr()
    assert said in found.out + found.err
    assert "Traceback" not in found.err


def test_what_few_draws_do_not_show_is_undecided(there, capsys):
    call = ["verify", "bare.zip", "--defence", "run.toml", "--margin", "0.1"]
    assert cli.main([*call, "--purifications", "1"]) == 6
    assert "undecided: " in capsys.readouterr().out


def test_somebody_s_images_become_a_bundle_and_challenge_one(there, capsys):
    x = data.mnist(n=24).x.numpy()
    moved = np.clip(x + np.where(x > 0.5, -0.2, 0.2), 0, 1)
    np.save("theirs.npy", np.clip(moved, x - 0.2, x + 0.2).astype("f4"))
    ours = ["--defence", "run.toml", "--name", "one-shot", "--purifications", "4"]
    ball = ["--norm", "linf", "--eps", "51/255"]
    assert cli.main(["bundle", "theirs.zip", "--images", "theirs.npy", *ours, *ball]) == 0
    said, shown = capsys.readouterr()
    assert "96/96 purifications judged" in shown
    assert "theirs.zip: of 24 images " in said
    assert Bundle.read("theirs.zip").eps == 0.2
    call = ["challenge", "one-shot.zip", "theirs.zip", *ours, "--seed", "1"]
    assert cli.main([*call, "--out", "worst.zip"]) == 0
    said, shown = capsys.readouterr()
    assert "384/384 purifications judged" in shown  # both images, to choose and to compare
    assert said.startswith("The claim ")
    assert Bundle.read("worst.zip").claim in said
    assert Bundle.read("worst.zip").clean == Bundle.read("one-shot.zip").clean


@pytest.mark.parametrize(
    ("call", "status", "said"),
    [
        (["bundle", "out.zip"], 2, "RUN OUT.zip, or OUT.zip with --images"),
        (["bundle", "out.zip", "--images", "a.npy"], 2, "say --defence, --norm and --eps too"),
        (["bundle", "record", "out.zip"], 1, "say which defence: one of ['bare', 'one-shot']"),
        (["bundle", "record", "out.zip", "--name", "x"], 1, "defence must be one of"),
        (["bundle", "nowhere", "out.zip"], 1, "no record in nowhere"),
        (["bundle", "record", "o.zip", "--name", "bare", "--eps", "x/2"], 2, "x/2"),
        (["verify", "absent.zip", "--defence", "run.toml"], 1, "absent.zip"),
        (["verify", "bare.zip", "--defence", "absent.toml"], 1, "absent.toml"),
        (["verify", "bare.zip", "--defence", "run.toml", "--name", "x"], 1, "defence must be"),
        (["verify", "bare.zip"], 2, "--defence"),
        (["challenge", "bare.zip", "a.txt", "--defence", "run.toml"], 1, "must be .npy"),
    ],
)
def test_a_wrong_call_is_said_in_a_line(call, status, said, there, capsys):
    assert cli.main(call) == status
    found = capsys.readouterr()
    shown = " ".join(found.err.replace("│", " ").split())
    assert said in shown
    assert "Traceback" not in shown
    assert not (there / "out.zip").exists()
