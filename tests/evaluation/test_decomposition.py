"""Where robustness comes from, of purifiers whose parts are known in closed form."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from configurations import BARE, IMAGES
from tolerances import rounding
from torch import Tensor, nn

from scoreopt_defense import DefendedModel, ThirdParty, cli
from scoreopt_defense.evaluation import Result, Store, decompose
from scoreopt_defense.evaluation.decomposition import decomposition

pytest.importorskip("foolbox")

CLEAN, EPS, COUNT = 0.45, 0.1, 64
EVERY = (torch.full((COUNT, 1, 2, 2), CLEAN), torch.zeros(COUNT).long())
PARTS = ["classifier", "contraction", "randomness", "masking"]


class Threshold(nn.Module):
    """Class 0, which all images are of, where the mean is below a half: eps leads past that."""

    def forward(self, x: Tensor) -> Tensor:
        lead = 0.5 - x.mean((1, 2, 3))
        return torch.stack([lead, -lead], 1)


def added(x: Tensor) -> Tensor:
    """Noise of each pixel, which moves the mean by no more than 0.01."""
    return x + 0.01 * (2 * torch.rand_like(x) - 1)


def contracted(x: Tensor) -> Tensor:
    """Towards the clean image: what eps moved past the threshold comes back before it."""
    return CLEAN + 0.4 * (x - CLEAN)


def flipped(x: Tensor) -> Tensor:
    """The image or, of every second draw, its reflection: no image is wrong in both."""
    flips = torch.rand(len(x), 1, 1, 1) < 0.5
    return torch.where(flips, 2 * CLEAN - x, x)


def masked(x: Tensor) -> Tensor:
    return x.detach() + 0 * x


# What each leaves: the parts, and how much of a perturbation's length.
CASES = {
    "noise that is too small to matter": (added, "bpda", [0, 0, 0, 0], 1.0),
    "contraction by 0.4": (contracted, "bpda", [0, 1, 0, 0], 0.4),
    "a coin that the attacker must guess": (flipped, "bpda", [0, 0, 0.5, 0], 1.0),
    "a gradient of zero": (masked, "exact", [0, 0, 0, 1], 1.0),
}


def defended(purification, **settings) -> DefendedModel:
    return DefendedModel(Threshold().eval(), ThirdParty(purification, **settings))


def of(purification, claim: str = "bpda", **given):
    settings = {"eps": EPS, "steps": 4, "votes": (1, 4), "batch": COUNT} | given
    return decompose(defended(purification), EVERY, claim=claim, **settings)


@pytest.mark.parametrize(("purification", "claim", "parts", "ratio"), CASES.values(), ids=[*CASES])
def test_parts_are_those_of_the_formula(purification, claim, parts, ratio):
    found = of(purification, claim)
    # of 8 draws an image; of the coin alone they vary
    spread = 4 * math.sqrt(0.25 / (8 * COUNT)) if purification is flipped else 0.0
    for name, part in zip(PARTS, parts, strict=True):
        assert found.parts[name].value == pytest.approx(part, abs=spread), name
        assert found.parts[name].low <= found.parts[name].value <= found.parts[name].high
    claimed = sum(part.value for part in found.parts.values())
    assert claimed == pytest.approx(found.gradients[claim].value, abs=1e-12)
    assert found.accuracy["clean"].value == 1
    # a dozen roundings of numbers below 1, in a difference of the smallest pixels' moves
    within = rounding(torch.float32, 12, 1 / EPS)
    for direction, of_it in found.contraction.items():
        assert of_it.value == pytest.approx(ratio, abs=within), direction
    assert set(found.contraction) == {"attack", "attack, draw known", "random"}
    assert ("most of the gain is" in found.verdict) == (sum(parts[1:3]) > 0)
    assert "nan" not in json.dumps(found.as_dict(), allow_nan=False)


def test_a_majority_of_coins_is_binomial():
    votes = of(flipped).votes
    # at least one of one, and three of four: a tie is wrong
    for k, right in {1: 1 / 2, 4: 5 / 16}.items():
        spread = 4 * math.sqrt(right * (1 - right) / (4 // k * COUNT))
        assert votes[k].value == pytest.approx(right, abs=spread)


def test_a_purifier_that_is_fixed_has_no_randomness():
    found = decompose(defended(flipped, deterministic=True), EVERY, eps=EPS, steps=4, batch=COUNT)
    assert found.parts["randomness"].value == 0
    assert list(found.accuracy) == ["clean", "deployed", "draw known", "classifier"]
    assert not found.votes


def test_what_a_record_has_is_not_done_again(tmp_path, monkeypatch):
    found = of(contracted, out=tmp_path)
    monkeypatch.setattr(Threshold, "forward", None)
    with Store(tmp_path) as store:
        assert decomposition(Result(store), name=found.name) == found


def test_what_cannot_be_decomposed_is_refused():
    with pytest.raises(TypeError, match="model must be a DefendedModel, got Threshold"):
        decompose(Threshold(), EVERY)
    with pytest.raises(ValueError, match=r"claim must be one of \['classifier', .*got 'guess'"):
        of(contracted, "guess")
    with pytest.raises(RuntimeError, match=r"has no figure: .*KeyError: 'broken'"):
        of(broken)


def broken(x: Tensor) -> Tensor:
    if x.mean() > CLEAN + 1e-3:
        raise KeyError("broken")
    return x


def test_a_bar_is_as_high_as_its_parts():
    pytest.importorskip("matplotlib").use("Agg")
    first, second = of(contracted), of(masked, "exact")
    axes = second.plot(first.plot(), place=1)
    heights = [bar.get_height() for bar in axes.patches]
    assert heights == [100 * of.parts[name].value for of in (first, second) for name in PARTS]
    assert [text.get_text().split("\n")[0] for text in axes.get_xticklabels()] == [first.name] * 2
    assert "majority of 4" in str(first)


def test_the_command(written, tmp_path, capsys):
    out = tmp_path / "out"
    config = str(written(f'{IMAGES}{BARE}[defences.bits]\nclassifier = "mnist-tiny"\n'
                         'purifier = "BitDepth"\n'))  # fmt: skip
    given = ["--out", str(out), "--steps", "2", "--eps", "77/255"]
    assert cli.main(["decompose", config, *given]) == 0
    said = capsys.readouterr().out
    assert "run, bits, 4 images" in said
    assert "part: randomness" in said
    assert Path(out / "decomposition-bits.png").exists()
    assert cli.main(["decompose", config, *given, "--eps", "much"]) == 1
    assert "eps must be a finite number above 0, got 'much'" in capsys.readouterr().err
    assert cli.main(["decompose", str(written(IMAGES + BARE)), *given]) == 1
    assert "has no defence with a purifier" in capsys.readouterr().err
