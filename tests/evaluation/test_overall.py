"""What a run says of a defence over its attacks: no figure without what speaks against it."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from html_pages import Page, words
from torch import Tensor, nn
from toy_evaluation import Ascent, Noisy, defences, found, images, in_images, run
from toys import smooth_classifier

from scoreopt_defense import cli
from scoreopt_defense.evaluation import Judging, Result, Store, evaluate
from scoreopt_defense.evaluation.evaluate import materials_of
from scoreopt_defense.evaluation.plan import CLEAN, Defence, Plan, Planned
from scoreopt_defense.evaluation.record import figures
from scoreopt_defense.evaluation.record.export import to_json
from scoreopt_defense.evaluation.record.packing import digest_of, pack
from scoreopt_defense.evaluation.record.rows import UnitResult
from scoreopt_defense.evaluation.report import comparison_page, run_page, tables
from scoreopt_defense.evaluation.report import gallery as galleries
from scoreopt_defense.evaluation.report.reload import Reloaded
from scoreopt_defense.evaluation.run.estimate import estimate
from scoreopt_defense.evaluation.suite.checklist import Check, checklist
from scoreopt_defense.evaluation.suite.controls import CHECKS, noise_of_size

pytest.importorskip("torchattacks")
pytest.importorskip("foolbox")

GRADIENTS, UNBOUNDED = "gradients are neither zero nor NaN", "an unbounded attack reaches 0 %"
NOISE = "random noise of the same size is weaker than every attack"
RAISED = "no attack raises the accuracy"


class Rounded(nn.Module):
    """Its gradient is zero, its errors are not."""

    def __init__(self) -> None:
        super().__init__()
        self.net = smooth_classifier(torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        return self.net((8 * x).round() / 8)


@dataclass(frozen=True)
class Ball(Ascent):
    """Ascent that stays where the gradient is zero."""

    def run(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        leaf = x.clone().requires_grad_()
        loss = nn.functional.cross_entropy(model(leaf), y)
        if not (loss.requires_grad and self.eps):
            return x
        step = torch.autograd.grad(loss, leaf)[0].sign()
        return (x + self.eps * step).clamp(0, 1).detach()


def right_images(count: int = 24) -> tuple[Tensor, Tensor]:
    """Images that the toy classifier gets right, and its rounded twin too."""
    plain, rounded = smooth_classifier(torch.float32), Rounded().eval()
    x = images(4 * count)[0]
    kept = plain(x).argmax(1) == rounded(x).argmax(1)
    return x[kept][:count], plain(x[kept][:count]).argmax(1)


@pytest.fixture(scope="module")
def masked() -> Result:
    models = {"plain": smooth_classifier(torch.float32), "masked": Rounded().eval()}
    return evaluate(models, right_images(), {"ball": Ball(eps=0.02)}, batch=24)


def controls(plan: Plan, defence: str) -> dict[str, Planned]:
    """What the checks of the attacks of one defence rest on."""
    return plan.of_suite(CHECKS, defence, "probe")


class TestControls:
    def test_a_masked_gradient_fails_whatever_attacked_it(self, masked: Result) -> None:
        checks = {check.name: check for check in masked.overall("masked").checks}
        assert list(checks) == [GRADIENTS, UNBOUNDED, NOISE, RAISED]
        assert masked.weakest("masked").value == 1
        assert {name for name, check in checks.items() if check.status == "FAIL"} >= {
            GRADIENTS, UNBOUNDED,
        }  # fmt: skip
        assert masked.overall("plain").failing == []
        assert [c.status for c in masked.overall("plain").checks] == ["pass"] * 4

    def test_its_figure_is_said_with_that_wherever_it_is_said(
        self, masked: Result, tmp_path: Path
    ) -> None:
        failing = masked.overall("masked").failing
        (row,) = [line for line in str(masked).splitlines() if line.startswith("masked")]
        assert row.endswith(f"({len(failing)} of 4 checks FAIL)")
        assert f"FAIL: masked: {GRADIENTS} (pixels of gradient zero: as-it-is 100.0 %" in str(
            masked
        )
        assert "FAIL: plain" not in str(masked)
        page = Page(run_page(masked.store))
        (cells,) = [cells for cells in page.rows if cells[0].strip() == "masked"]
        assert f"✗ failed: {GRADIENTS}" in " ".join(cells[1].split())
        text = " ".join(page.text.split())
        assert f"{len(failing)} checks failed" in text[: text.index("All attacks, worst first")]
        said = f"masked fails {len(failing)} of the checks of its attacks"
        compared = " ".join(Page(comparison_page(masked.store, masked.store)).text.split())
        for name in "AB":
            assert f"In run {name} {said}" in compared
        assert text.count("✓ Passed.") + text.count("✗ Failed.") == 8
        to_json(masked, tmp_path / "run.json")
        said = json.loads((tmp_path / "run.json").read_text())["overall"]["masked"]
        assert {c["name"] for c in said["checklist"] if c["status"] == "FAIL"} == {
            check.name for check in failing
        }

    def test_they_change_no_other_unit(self) -> None:
        few: dict[str, Any] = {"defences": {"noisy": Noisy().eval()}, "trials": 1}
        without, beside = found(run(None, **few)), found(run(None, **few, checks=True))
        own = [row for row in beside if not row["attack"].startswith("check/")]
        assert own == without
        assert len(beside) > len(own)

    def test_noise_is_as_large_as_each_attack_and_met_once(self) -> None:
        attacks = {"a": Ball(eps=0.1), "b": Ball(eps=0.1, steps=3), "c": Ball("L2", 0.5)}
        attacks |= {"l1": Ball("l1", 2.0), "none": _Boundless()}
        plan = Plan.of(materials_of(defences(), images(4), attacks, Judging(), checks=True))
        probes = {
            defence: {task.role: name for name, task in controls(plan, defence).items()}
            for defence in plan.defences
        }
        assert {role: name for role, name in probes["noisy"].items() if "noise" in role} == {
            "noise, linf 0.1": "check/noise, linf 0.1",
            "noise, l2 0.5": "check/noise, l2 0.5",
        }
        bounds = {name: of["noisy"].bound for name, of in plan.tasks.items() if name in attacks}
        assert {name: noise_of_size(of) for name, of in bounds.items() if of} == {
            "a": "noise, linf 0.1", "b": "noise, linf 0.1", "c": "noise, l2 0.5",
            "l1": "noise, l1 2",
        }  # fmt: skip
        assert plan.attacks["check/noise, l2 0.5"]["eps"] == 0.5
        unbounded = {name: of["unbounded"] for name, of in probes.items()}
        assert unbounded == {
            "one-shot": "check/unbounded, exact",
            "scoreopt": "check/unbounded, smoothed",
            "noisy": "check/unbounded, as-it-is",
        }
        assert plan.columns == [CLEAN, *attacks]

    def test_of_an_attack_that_states_no_bound_the_gradients_are_checked(self) -> None:
        result = evaluate(Rounded().eval(), right_images(8), {"none": _Boundless()})
        checks = {check.name: check for check in result.overall("Rounded").checks}
        assert [checks[name].status for name in (GRADIENTS, UNBOUNDED, NOISE)] == [
            "FAIL", "not run", "not run",
        ]  # fmt: skip
        assert checks[NOISE].figure == "no attack states a norm and an eps"

    def test_only_attacks_are_checked_and_only_if_asked_for(self) -> None:
        for attacks, checks in (({}, True), ({"ball": Ball()}, False)):
            result = evaluate(smooth_classifier(torch.float32), images(4), attacks, checks=checks)
            assert list(result.plan.attacks) == [CLEAN, *attacks]
        line, *rest = str(result).splitlines()[1:]  # what was not asked for is said once
        assert line.endswith("(no check was run)")
        assert not any("not run" in said for said in rest)
        with pytest.raises(ValueError, match="checks must be True or False, got 1"):
            evaluate(smooth_classifier(torch.float32), images(4), checks=1)

    def test_no_attack_may_have_a_controls_name(self) -> None:
        with pytest.raises(ValueError, match="called 'check/gradients' beside the checks"):
            evaluate(smooth_classifier(torch.float32), images(2), {"check/gradients": Ball()})

    def test_without_its_library_a_check_is_not_run_and_says_why(self, monkeypatch) -> None:
        monkeypatch.setitem(sys.modules, "foolbox", None)
        result = evaluate(smooth_classifier(torch.float32), right_images(8), {"ball": Ball()})
        (check,) = result.overall("Sequential").not_run
        assert check.name == NOISE
        assert "ImportError: this needs foolbox" in check.figure
        assert "not run: Sequential: random noise" in str(result)
        assert "\nfailed:" not in str(result)

    def test_the_dry_run_counts_them(self) -> None:
        materials = materials_of(
            {"d": smooth_classifier(torch.float32)}, images(40), {"ball": Ball()},
            Judging(purifications=2), checks=True,
        )  # fmt: skip
        plan = Plan.of(materials, batch=16)
        foretold = {e.attack: (e.units, e.classifier_calls) for e in estimate(plan, materials)}
        calls = {"gradients": 1, "noise, linf 0.1": 0, "unbounded, as-it-is": 10}
        assert {name: foretold[f"check/{name}"] for name in calls} == {
            name: (2, 32 * (2 + of_probe)) for name, of_probe in calls.items()
        }
        assert foretold["ball"] == (3, 40 * 3)


@dataclass(frozen=True)
class _Boundless:
    def run(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return x

    def as_dict(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class _FailsOn(Ball):
    """Fails on batches that hold one of these labels."""

    labels: tuple[int, ...] = ()

    def run(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        if any((y == label).any() for label in self.labels):
            raise RuntimeError("out of luck")
        return super().run(model, x, y)


SORTED = torch.arange(4).repeat_interleave(2)


class TestWhatThereIsNoFigureOf:
    @pytest.mark.parametrize(
        ("attacks", "absent", "lacking", "n"),
        [
            ({}, "not attacked", {}, None),
            ({"bad": (0, 1, 2, 3)}, "attack failed", {"bad": 8}, None),
            ({"bad": (0, 1, 2, 3), "worse": (0, 1, 2, 3)}, "attack failed",
             {"bad": 8, "worse": 8}, None),
            ({"bad": (1,)}, "", {"bad": 2}, 6),  # the clean images alone are no attack
            ({"good": (), "bad": (0, 1, 2, 3)}, "", {"bad": 8}, 8),
            ({"good": (), "bad": (1, 2)}, "", {"bad": 4}, 8),
        ],
    )  # fmt: skip
    def test_clean_images_are_no_attack(
        self, attacks: dict[str, tuple[int, ...]], absent: str, lacking: dict[str, int],
        n: int | None,
    ) -> None:  # fmt: skip
        of = {name: _FailsOn(labels=labels) for name, labels in attacks.items()}
        model = smooth_classifier(torch.float32)
        result = evaluate(
            {"d": model}, (images(8)[0], SORTED), of, batch=2, judging=Judging(purifications=2)
        )
        overall = result.overall("d")
        assert (overall.absent, overall.lacking) == (absent, lacking)
        assert (overall.weakest and overall.weakest.n) == n
        (row,) = [line for line in str(result).splitlines() if line.startswith("d ")]
        if n is None:
            assert row.endswith(f"  {absent}")
        else:
            for name, count in lacking.items():
                assert f"without {name} on {count} images" in row
        page = run_page(result.store)
        head, cells = words(Page(page).rows)
        shown = dict(zip(head, cells, strict=True))
        assert "lowest" not in shown["no attack"]
        assert any("lowest" in cell for cell in cells) == (n is not None)
        if n is None:
            assert shown["weakest"] == absent

    def test_before_an_attack_is_run_it_says_so(self, tmp_path: Path) -> None:
        model = smooth_classifier(torch.float32)
        plan = Plan.of(materials_of({"d": model}, images(4), {"a": Ball()}, Judging()))
        with Store(tmp_path, writing=True) as store:
            assert Result(store, store.adopt(plan)).overall("d").absent == "not attacked yet"

    def test_of_one_purification_there_is_nothing_to_choose_on(self) -> None:
        result = evaluate(
            {"d": smooth_classifier(torch.float32)}, images(4), {"a": Ball()},
            judging=Judging(purifications=1), checks=False,
        )  # fmt: skip
        assert result.overall("d").absent == "nothing to choose on: one purification"


class Says(nn.Module):
    """One class of so many for every image, or the one that its first pixel names."""

    def __init__(self, classes: int, always: int | None = None) -> None:
        super().__init__()
        self.classes, self.always = classes, always

    def forward(self, x: Tensor) -> Tensor:
        label = (x[:, 0, 0, 0] * 100).round().long()
        label = label if self.always is None else torch.full_like(label, self.always)
        return 5.0 * nn.functional.one_hot(label, self.classes)


@pytest.mark.parametrize(
    ("said", "labels", "near"),
    [
        ([3] * 40, [*range(10)] * 4, "one in 10"),  # one class always
        ([*range(10)] * 4, [*range(10)] * 4, None),
        ([*range(10)] * 2 + [0] * 20, [*range(10)] * 4, None),  # half are right
        ([0] * 4 + [9] * 36, [*range(10)] * 4, "one in 10"),  # 4 of 40
        ([0, 1], [0, 1], None),  # all right, of few
        ([0, 0, 1, 1], [0, 1, 0, 1], "one in 2"),
        ([0] * 8, [0] * 8, None),  # nothing to tell apart
    ],
)
def test_clean_accuracy_near_chance_is_a_warning(
    said: list[int], labels: list[int], near: str | None
) -> None:
    x = torch.tensor(said).reshape(-1, 1, 1, 1) / 100
    result = evaluate(
        {"d": Says(12).eval()}, (x, torch.tensor(labels)), {}, judging=Judging(purifications=2)
    )
    warnings = result.overall("d").warnings
    assert [f"is near chance, {near}" in text for text in warnings] == ([True] if near else [])
    assert ("warning: d: clean accuracy" in str(result)) == bool(near)
    assert ("is near chance" in run_page(result.store)) == bool(near)


# --- the command --------------------------------------------------------------------------------

CONFIG = """
[images]
source = "mnist"
n = 4

[defences.bits]
classifier = "mnist-tiny"
purifier = "BitDepth"

[attacks.weak]
attack = "pgd-eot-linf"
gradient = "{gradient}"
eps = 0.01
eot = 1
steps = 1
"""


@pytest.mark.parametrize(
    ("gradient", "status", "said"),
    [("bpda", 0, "not run"), ("one-shot", 3, "attack failed")],  # it has no such gradient
)
def test_units_that_fail_are_an_exit_status_of_their_own(
    gradient: str, status: int, said: str, tmp_path: Path, capsys: Any
) -> None:
    pytest.importorskip("mlxtend")
    config = tmp_path / "run.toml"
    config.write_text(CONFIG.format(gradient=gradient))
    call = ["evaluate", str(config), "--out", str(tmp_path / "out"), "--workers", "1"]
    assert cli.main(call) == status
    out = capsys.readouterr().out
    assert ("--retry-failed" in out) == bool(status)
    assert said in out


# --- the statistics of the checks ---------------------------------------------------------------


def recorded(
    parts: Mapping[str, Sequence[float]], *, role: str, right: Sequence[float] | None = None
) -> Check:
    """A suite's check of that role, from a record of these shares of 8 purifications."""
    count = len(next(iter(parts.values())))
    task = {"attack": {"kind": "Some"}, "versions": {}, "bound": None}
    plan = Plan(
        defences={"d": Defence(about={}, versions={}, behaviour=None)},
        tasks={
            CLEAN: {"d": Planned(kind="attack", **task)},
            "s/probe": {"d": Planned(kind="probe", **task, role=role, suite="s", label="probe")},
        },
        images={"shape": [count, 1, 1, 1], "sha256": [""]},
        judging={"purifications": 8},
        batch=count,
        suites={"s": {}},
    )
    store, places = Store(), np.arange(count)
    for unit in plan.units():
        if unit.attack in parts:
            shares = np.array(parts[unit.attack])
            predicted = 1 * (np.arange(8) >= 8 * shares[:, None])  # class 0 is right
            measured = {"right": list(right)} if right and unit.attack == "s/probe" else None
            store.add(UnitResult(
                key=unit.key, defence=unit.fingerprint, task=unit.content, images=count,
                places=places, labels=0 * places, predicted=predicted, lead=1.0 - predicted,
                measured=measured,
            ))  # fmt: skip
    found = {check.name: check for check in checklist(Result(store, plan), "d", "s")}
    return found[
        {"unbounded": UNBOUNDED, "bare": "clean accuracy is near the bare classifier's"}[role]
    ]


@pytest.mark.parametrize(
    ("left", "status"),
    [
        ([0.0] * 32, "pass"),
        ([1.0] + [0.0] * 31, "pass"),  # 3 %
        ([1.0] * 2 + [0.0] * 30, "not run"),  # 6 %: above 5 %, and may be chance
        ([1.0] * 4 + [0.0] * 28, "not run"),
        ([1.0] * 7 + [0.0] * 25, "FAIL"),  # of 5 % once in 1,500 times
        ([0.5] * 14 + [0.0] * 18, "FAIL"),
        ([1.0] * 2, "FAIL"),
        ([1.0], "not run"),  # one in twenty is not seldom enough
        ([0.0], "not run"),  # nothing could have failed it
    ],
)
def test_what_an_unbounded_attack_leaves_is_judged_by_its_interval(
    left: list[float], status: str
) -> None:
    assert recorded({"s/probe": left}, role="unbounded").status == status


@pytest.mark.parametrize(
    ("lost", "images", "status"),
    [
        (0, 32, "pass"),
        (4, 32, "pass"),  # 12.5 points
        (6, 32, "not run"),  # 19 points: more than 15, and may be chance
        (16, 32, "FAIL"),
        (3, 7, "not run"),
        (0, 7, "not run"),  # nothing could have failed it
    ],
)
def test_what_a_defence_costs_is_judged_by_its_interval(
    lost: int, images: int, status: str
) -> None:
    clean = [0.0] * lost + [1.0] * (images - lost)
    parts = {CLEAN: clean, "s/probe": clean}
    assert recorded(parts, role="bare", right=[1.0] * images).status == status


# --- the record is read once, and damage is said ------------------------------------------------


def test_a_page_reads_each_thing_once(masked: Result, monkeypatch: Any) -> None:
    calls: dict[str, int] = {}

    def counted(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def count(*args: Any, **settings: Any) -> Any:
            calls[name] = calls.get(name, 0) + 1
            return real(*args, **settings)

        monkeypatch.setattr(owner, name, count)

    for owner, name in (
        (Store, "read"), (Store, "adversarial"), (tables, "paired_all"), (figures, "majority"),
    ):  # fmt: skip
        counted(owner, name)
    run_page(masked.store)
    cells = len(masked.plan.defences) * len(masked.plan.columns)
    shown = cells + len(masked.plan.defences)  # the gallery's, and each defence's worst
    assert calls == {"read": 1, "paired_all": 1, "adversarial": shown, "majority": cells}
    probes = sum(len(controls(masked.plan, defence)) for defence in masked.plan.defences)
    assert probes == 6  # whose figures no table shows


@pytest.mark.parametrize("damage", ["gone", "shape", "channels", "whole file"])
def test_a_damaged_image_is_named_and_the_rest_is_shown(
    damage: str, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "run"
    few: dict[str, Any] = {"defences": {"noisy": Noisy().eval()}, "trials": 1}
    result = run(out, **few)
    (key, *_) = [of.key for unit, of in result.units() if unit.attack == "long"]
    result.store.close()
    if damage == "gone":
        of_it = "SELECT digest FROM held WHERE unit = ?"
        in_images(out, f"DELETE FROM images WHERE digest IN ({of_it})", [key])
    elif damage == "whole file":
        (out / "images.sqlite").write_bytes(b"not a database, and longer than a header" * 100)
    else:
        other = np.zeros((3, 2, 2) if damage == "shape" else (1, 8, 8), np.float32)
        in_images(out, "INSERT INTO images VALUES (?, ?)", [digest_of(other), pack(other)])
        in_images(out, "UPDATE held SET digest = ? WHERE unit = ?", [digest_of(other), key])
    with Store(out) as store:
        page = run_page(store)
    text = " ".join(Page(page).text.split())
    said = {
        "gone": "is missing or damaged", "shape": "is of shape (3, 2, 2), of (3, 8, 8) by the plan",
        "channels": "is of shape (1, 8, 8)", "whole file": "its images.sqlite is damaged",
    }  # fmt: skip
    assert said[damage] in text
    with Store(out) as store:
        walls = galleries.gallery(Result(store), Reloaded(), count=2).walls
    shown = {wall.cell.attack for wall in walls}
    assert "long" not in shown
    assert ("ascent" in shown) == (damage != "whole file")
    assert cli.main(["report", str(out)]) == 0
    assert cli.main(["export", str(out), "--csv", str(tmp_path / "rows.csv")]) == 0
    assert cli.main(["export", str(out), "--json", str(tmp_path / "run.json")]) == 0
    assert capsys.readouterr().err == ""
