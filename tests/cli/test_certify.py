"""``scoreopt certify``: a table, a record that goes on, and tables for other programs."""

from __future__ import annotations

import pytest
from configurations import BARE, IMAGES

from scoreopt_defense import cli

ONE_SHOT = """
[defences."one/shot"]
classifier = "mnist-tiny"
denoiser = "mnist-tiny"
purifier = "OneShot"
overrides = { sigma = 0.5 }
"""
CERTIFY = "[certify]\nsigma = 0.5\nn0 = 5\nn = 20\nbatch = 2\n"


def test_it_says_what_is_proved_and_goes_on(written, tmp_path, capsys):
    config, out = str(written(IMAGES + BARE + ONE_SHOT + CERTIFY)), tmp_path / "out"
    asked = ["certify", config, "--out", str(out), "--tsv", str(tmp_path / "tables")]
    assert cli.main(asked) == 0
    first = capsys.readouterr()
    assert [line.split()[0] for line in first.out.splitlines()[1:3]] == ["bare", "one/shot"]
    assert first.out.splitlines()[1].split()[-1] == "0.137"  # 0.25 ppf(0.001^(1/20))
    assert cli.main(asked) == 0
    again = capsys.readouterr()
    assert again.out == first.out
    assert "8 units, 8 of them recorded before" in again.err
    for name in ("0-bare.tsv", "1-one_shot.tsv"):
        assert len((tmp_path / "tables" / name).read_text().splitlines()) == 1 + 4
    assert cli.main(["runs", str(out)]) == 0
    assert "certify" in capsys.readouterr().out


WRONG = {
    "no section": ("", "has no section [certify]"),
    "a key": ("[certify]\nsigms = 0.5\n", "there is no key certify.sigms: did you mean sigma?"),
    "no sigma": ("[certify]\nn = 20\n", "sigma must be given for the defence 'bare'"),
    "a level": ("[certify]\nsigma = -1\n", "certify.sigma should be greater than 0, got -1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_asks_for_nothing_sound_is_told_so(name, written, capsys):
    section, said = WRONG[name]
    assert cli.main(["certify", str(written(IMAGES + BARE + section))]) == 1
    assert said in capsys.readouterr().err
