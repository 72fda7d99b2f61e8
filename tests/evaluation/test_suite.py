"""A suite: stages hand on what they found, the worst of each image is judged anew, and checked."""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from html_pages import Page, words
from torch import Tensor, nn
from toy_evaluation import SMALL, Noisy, defences, found, images, run
from toys import BentNet, bent, smooth_classifier

from scoreopt_defense import (
    ADP,
    GDMP,
    JPEG,
    BitDepth,
    DefendedModel,
    DiffPure,
    MENet,
    OneShot,
    PurSAMERE,
    ScoreOpt,
    ThirdParty,
    attacks,
    data,
    pretrained,
)
from scoreopt_defense.attacks import views
from scoreopt_defense.denoisers import EDMDenoiser
from scoreopt_defense.evaluation import Judging, Result, Suite, evaluate
from scoreopt_defense.evaluation.evaluate import materials_of
from scoreopt_defense.evaluation.plan import CLEAN, Plan
from scoreopt_defense.evaluation.plan.tasks import Attack, Clean, Judge, Probe, Task, Worst
from scoreopt_defense.evaluation.record.judged import Judged
from scoreopt_defense.evaluation.record.rows import UnitResult
from scoreopt_defense.evaluation.report import run_page
from scoreopt_defense.evaluation.run.estimate import estimate
from scoreopt_defense.evaluation.suite.adaptive import Adaptive
from scoreopt_defense.evaluation.suite.carry_over import Carried, Harm, carried, harms
from scoreopt_defense.evaluation.suite.checklist import _OfSuite, checklist
from scoreopt_defense.evaluation.suite.probes import Convergence
from scoreopt_defense.gradients import Runner, as_it_is
from scoreopt_defense.noise import Noise, seeded
from scoreopt_defense.purifiers import Purifier

for library in ("foolbox", "torchattacks"):
    pytest.importorskip(library)


def images_of(batch: np.ndarray) -> Any:
    """What a unit left, by place."""
    return lambda places: {place: batch[place] for place in places}


def dropping() -> EDMDenoiser:
    """Draws in each call, whatever its purifier is."""

    class Dropping(BentNet):
        def forward(self, x_t: Tensor, sigma: Tensor) -> Tensor:
            return nn.functional.dropout(super().forward(x_t, sigma))

    return EDMDenoiser(Dropping().float(), sigma_range=(0.01, 2.0))


class Threshold(nn.Module):
    """Class 0 where an image's mean is below a half; the margin is how far it is from there.

    ``noise`` on the mean is each image's own.
    """

    def __init__(self, noise: float = 0.0) -> None:
        super().__init__()
        self.noise = noise

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((1, 2, 3))
        mean = mean + self.noise * torch.randn_like(mean)
        return torch.stack([0.5 - mean, mean - 0.5], 1)


@dataclass(frozen=True)
class Add:
    """Adds so much to what it begins from, and remembers in pixels who it met."""

    much: float
    takes_start: bool = True

    def run(self, model: nn.Module, x: Tensor, y: Tensor, *, start: Tensor | None = None) -> Tensor:
        return (x if start is None else start) + self.much

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def dark(*means: float) -> tuple[Tensor, Tensor]:
    """Images of class 0 with these means."""
    x = torch.tensor(means).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    return x, torch.zeros(len(means), dtype=torch.int64)


@dataclass(frozen=True)
class Stages(Suite):
    """These attacks one after another, each from what all before it found."""

    stages: dict[str, Any]
    confirm: int = 32

    def tasks(self, model: nn.Module, x: Tensor) -> dict[str, Task]:
        found: dict[str, Task] = {}
        for label, attack in {"no attack": Clean(), **self.stages}.items():
            found[label] = Attack(attack=attack, begins_from=[*found], confirm=self.confirm)
        return found | {"": Judge(attack=Worst(norm="linf", eps=0.9), begins_from=[*found])}


def run_stages(
    stages: dict[str, Any], pixels: tuple[Tensor, Tensor], *, noise: float = 0.0,
    confirm: int = 32, **options: Any,
) -> Result:  # fmt: skip
    return evaluate(
        {"d": Threshold(noise).eval()}, pixels, suites={"s": Stages(stages, confirm)},
        judging=Judging(purifications=2), **options,
    )  # fmt: skip


def judged(predicted: list[list[int]], **found: Any) -> Judged:
    """Images of class 0 that were taken for these, by leads of -1."""
    classes = np.array(predicted)
    places = np.arange(len(classes))
    return Judged.of([
        UnitResult(
            key="", defence="", task="", images=len(classes), places=places, labels=0 * places,
            predicted=classes, lead=np.full(classes.shape, -1.0), **found,
        )
    ])  # fmt: skip


class TestStages:
    def test_what_is_taken_leaves_the_queue_and_the_rest_is_carried_on(self) -> None:
        # the first takes the image at 0.45, the second adds to the first's, and takes 0.3
        pixels = dark(0.1, 0.3, 0.45, 0.6)  # the last is wrong without any attack
        result = run_stages({"one": Add(0.1), "two": Add(0.15)}, pixels, batch=3)
        met = {name: result.judged("d", name).images.tolist() for name in result.plan.attacks}
        assert met == {
            CLEAN: [0, 1, 2, 3], "s/no attack": [0, 1, 2, 3], "s/one": [0, 1, 2],
            "s/two": [0, 1], "s": [0, 1, 2, 3],
        }  # fmt: skip
        expected = torch.tensor([0.1 + 0.25, 0.3 + 0.25, 0.45 + 0.1, 0.6]).reshape(4, 1, 1, 1)
        torch.testing.assert_close(
            torch.from_numpy(result.adversarial("d", "s")), expected.expand(4, 1, 2, 2)
        )
        worst = result.worst_case("d", "s")
        assert worst.cell is not None
        assert worst.cell.accuracy.value == 0.25
        stages = {s.attack: (s.label, s.tried, s.taken, s.alone, s.left) for s in worst.stages}
        assert stages == {
            "s/no attack": ("no attack", 4, 1, 1, 0.75), "s/one": ("one", 3, 1, 1, 0.5),
            "s/two": ("two", 2, 1, 1, 0.25),
        }  # fmt: skip
        assert result.plan.columns == [CLEAN, "s"]
        assert [cell.attack for cell in result.cells] == [CLEAN, "s"]

    def test_no_luck_of_a_few_draws_takes_an_image_out_of_the_queue(self) -> None:
        """Where an image is right once in four, two draws are wrong oftener than not."""
        result = run_stages({"some": Add(0.1675), "all": Add(0.4)}, dark(*[0.4] * 64), noise=0.1)
        some = result.judged("d", "s/some")
        assert (some.predicted == 1).all(1).sum() > 16  # by luck
        assert result.tried("d", "s/all") == 64
        assert result.cell("d", "s").accuracy.value == 0
        without = run_stages(
            {"some": Add(0.1675), "all": Add(0.4)}, dark(*[0.4] * 64), noise=0.1, confirm=0
        )
        assert without.tried("d", "s/all") < 48
        assert without.cell("d", "s").accuracy.value > 0.05

    def test_a_worse_result_than_before_is_not_carried_on(self) -> None:
        result = run_stages({"up": Add(0.2), "down": Add(-0.3)}, dark(0.1))
        np.testing.assert_allclose(result.adversarial("d", "s"), 0.3, rtol=1e-6)

    def test_an_attack_that_takes_no_start_begins_at_the_clean_image(self) -> None:
        result = run_stages({"one": Add(0.1), "two": _Plain(0.15)}, dark(0.1))
        np.testing.assert_allclose(result.adversarial("d", "s/two"), 0.25, rtol=1e-6)

    def test_a_stage_that_fails_takes_nothing_and_stops_nothing(self) -> None:
        result = run_stages({"bad": _Raising(), "good": Add(0.3)}, dark(0.1, 0.45))
        assert [failure.unit.attack for failure in result.failures] == ["s/bad"]
        assert result.worst_case("d", "s").cell.accuracy.value == 0.5

    def test_what_failed_is_done_again_when_asked_for_with_what_began_from_it(
        self, tmp_path, monkeypatch
    ) -> None:
        stages = {"early": Add(0.1), "mended": _Mended(0.4), "late": Add(0.2)}
        broken = run_stages(stages, dark(0.2, 0.4), out=tmp_path)
        took = {unit.attack: done.seconds for unit, done in broken.units()}
        monkeypatch.setitem(_LIBRARY, "missing", False)
        same = run_stages(stages, dark(0.2, 0.4), out=tmp_path)
        assert {unit.attack: done.seconds for unit, done in same.units()} == took
        again = run_stages(stages, dark(0.2, 0.4), out=tmp_path, retry_failed=True)
        assert found(again) == found(run_stages(stages, dark(0.2, 0.4)))
        kept = [unit.attack for unit, done in again.units() if done.seconds in took.values()]
        assert kept == [CLEAN, "s/no attack", "s/early"]

    def test_calls_are_counted_by_the_images_that_were_met(self) -> None:
        result = run_stages({"one": Add(0.1), "two": Add(0.15)}, dark(0.1, 0.3, 0.45, 0.6))
        for name, rows in (("s/one", 3), ("s/two", 2), ("s", 4)):
            # judged twice, and what was then taken by 32 more
            again = 0 if name == "s" else 32
            assert result.cell("d", name).classifier_calls == 2 * rows + again

    def test_what_a_candidate_leaves_is_the_posterior_mean_of_what_was_seen(self) -> None:
        """8 draws, and 32 more if all are wrong: the rule that ends the drawing cancels."""
        p = (np.arange(10**5) + 0.5) / 10**5  # the midpoint rule errs by (40 / 1e5)^2 / 24
        for c, m in [(1, None), (3, None), (8, None), (0, 0), (0, 5), (0, 32)]:
            chance = p**c * (1 - p) ** (8 - c)
            if m is not None:
                chance = chance * p**m * (1 - p) ** (32 - m)
            more = {} if m is None else {"left": np.array([m / 40]), "draws": np.array([40])}
            (found,) = harms(judged([[0] * c + [1] * (8 - c)], **more))
            expected = (p * chance).sum() / chance.sum()
            assert found.expected == pytest.approx(expected, rel=1e-7)
            assert found.left == (c / 8 if m is None else m / 40)

    def test_draws_that_were_added_are_counted(self) -> None:
        result = run_stages({"some": Add(0.1675)}, dark(*[0.4] * 64), noise=0.1, confirm=30)
        some = result.judged("d", "s/some")
        assert set(some.draws) == {2, 32}
        assert (some.draws == np.where((some.predicted == 1).all(1), 32, 2)).all()
        right = some.left * some.draws
        assert right == pytest.approx(right.round(), abs=32 * 2**-24)  # a share in float32

    def test_ties_keep_the_first(self) -> None:
        x, same = np.zeros((1, 1, 2, 2), dtype=np.float32), judged([[1]])
        kept = carried(x, 0, [(same, images_of(x + by)) for by in (0.25, 0.5)])
        assert isinstance(kept, Carried)
        assert kept.images.max() == 0.25
        assert not kept.standing[0]


@dataclass(frozen=True)
class Given(Suite):
    """These tasks, and their worst case."""

    given: dict[str, Task]
    other: dict[str, Task] = field(default_factory=dict)

    def tasks(self, model: nn.Module, x: Tensor) -> dict[str, Task]:
        """The others for a defence that is noisy."""
        given = self.other if self.other and model.noise else self.given
        judged = [label for label, task in given.items() if not isinstance(task, Probe)]
        return {**given, "": Judge(attack=Worst(norm="linf", eps=0.9), begins_from=judged)}


def ordered(*labels: str) -> dict[str, Task]:
    """Each from the one before it."""
    return {
        label: Attack(
            attack=Add(0.04 + 0.01 * "abc".index(label)),
            begins_from=labels[max(place - 1, 0) : place],
        )
        for place, label in enumerate(labels)
    }


@dataclass(frozen=True)
class Near(Add):
    """Meets images of one mean alone."""

    mean: float = 0.3

    def run(self, model: nn.Module, x: Tensor, y: Tensor, *, start: Tensor | None = None) -> Tensor:
        here = ((x.mean((1, 2, 3)) - self.mean).abs() < 0.02).float()
        return x + self.much * here[:, None, None, None]


class TestSeveralThreats:
    def test_the_weakest_is_the_worst_of_all_suites_and_attacks(self) -> None:
        """Each takes another image, and no two figures say that three are taken."""
        suites = {
            name: Given({"push": Attack(attack=Near(0.3, mean=mean))})
            for name, mean in (("one ball", 0.3), ("another", 0.45))
        }
        result = evaluate(
            {"d": Threshold().eval()}, dark(0.1, 0.25, 0.3, 0.45), {"flow": Near(0.4, mean=0.25)},
            suites=suites,
        )  # fmt: skip
        assert result.plan.columns == [CLEAN, "flow", "one ball", "another"]
        assert [result.cell("d", name).accuracy.value for name in result.plan.columns] == [
            1, 0.75, 0.75, 0.75,
        ]  # fmt: skip
        assert result.weakest("d").value == 0.25
        head, row = str(result).splitlines()[:2]
        assert head.endswith("weakest")
        assert f"{result.weakest('d')} (" in row

    def test_one_suite_has_its_own_figure_and_no_weakest(self) -> None:
        result = run_stages({"one": Add(0.1)}, dark(0.1, 0.45))
        assert result.weakest("d") is None
        assert "weakest" not in str(result)


class TestOwnOrder:
    def test_a_researchers_own_order_of_attacks_is_one_object(self) -> None:
        class Mine(Suite):
            def tasks(self, model: nn.Module, x: Tensor) -> dict[str, Task]:
                worst = Worst(norm="linf", eps=0.5)
                return {
                    "push": Attack(attack=Add(0.1)),
                    "push on": Attack(attack=Add(0.15), begins_from=["push"]),
                    "afresh": Attack(attack=Add(0.02)),
                    "": Judge(attack=worst, begins_from=["push", "push on", "afresh"]),
                }

            def untried(self, model: nn.Module) -> dict[str, str]:
                return {"sideways": f"{type(model).__name__} has one direction"}

        result = evaluate(
            {"d": Threshold().eval()}, dark(0.1, 0.3, 0.45, 0.6), suites={"mine": Mine()},
            judging=Judging(purifications=2),
        )  # fmt: skip
        assert result.failures == []
        assert result.plan.columns == [CLEAN, "mine"]
        np.testing.assert_allclose(  # the third and the fourth are taken by the first
            result.adversarial("d", "mine").mean((1, 2, 3)), [0.35, 0.55, 0.55, 0.7], rtol=1e-6
        )
        worst = result.worst_case("d", "mine")
        assert result.cell("d", "mine") == worst.cell
        assert worst.cell.accuracy.value == 0.25
        stages = [(s.label, s.tried, s.taken, s.alone, s.left) for s in worst.stages]
        assert stages == [
            ("push", 4, 2, 1, 0.5), ("push on", 2, 1, 1, 0.25), ("afresh", 4, 0, 0, 0.25),
        ]  # fmt: skip
        assert f"{worst.cell.robust} (no check was run)" in str(result)
        page = run_page(result.store)
        text = " ".join(Page(page).text.split())
        assert "the suite mine of 3 attacks at most" in text
        assert "sideways: Threshold has one direction." in text
        head, row = words(Page(page).rows)
        assert head == ["defence", "mine", "no attack"]
        assert row[1].startswith("25.0 ")
        shown = [
            (label, *map(float, rest)) for label, *rest in words(Page(page, "stages-1-1").rows)[1:]
        ]
        assert shown == [(*of, 100 * left) for *of, left in stages]

    @pytest.mark.parametrize(
        ("much", "status", "said"),
        [(0.6, "pass", "1 of 1 checks passed"), (0.0, "FAIL", "1 of 1 checks FAIL")],
    )
    def test_its_probe_is_what_its_role_says(self, much: float, status: str, said: str) -> None:
        probe = Probe(attack=Add(much), images=4, role="unbounded")
        suite = Given({"push": Attack(attack=Add(0.1)), "far": probe})
        result = evaluate(
            {"d": Threshold().eval()}, dark(0.1, 0.2, 0.3, 0.4, 0.45), suites={"mine": suite}
        )
        assert [stage.label for stage in result.worst_case("d", "mine").stages] == ["push"]
        (check,) = (c for c in checklist(result, "d", "mine") if c.passed is not None)
        assert (check.name, check.status) == ("an unbounded attack reaches 0 %", status)
        assert "% of 4 images left" in check.figure
        assert f"({said}" in str(result)

    @pytest.mark.parametrize("before", ["nowhere", "itself", "later"])
    def test_what_begins_from_nothing_before_it_is_refused(self, before: str) -> None:
        suite = Given({
            "first": Attack(attack=Add(0.1)),
            "itself": Attack(attack=Add(0.1), begins_from=["first", before]),
            "later": Attack(attack=Add(0.1)),
        })  # fmt: skip
        message = (
            f"'itself' of the suite 'mine' begins from '.*{before}', which must come before it; "
            r"there are \['.*first'\]"
        )
        with pytest.raises(ValueError, match=message):
            evaluate(Threshold().eval(), dark(0.1), suites={"mine": suite})

    @pytest.mark.parametrize(
        ("task", "error", "message"),
        [
            (Add(0.1), TypeError, "must be a Task, got Add"),
            (
                Attack(attack="spsa"),
                TypeError,
                r"must have run\(model, x, y\) and as_dict\(\), got str",
            ),
            (
                Attack(attack=Worst(norm="linf", eps=8)),
                ValueError,
                "norm 'linf' must have eps, at most 1.*got 8",
            ),
        ],
    )
    def test_a_task_that_cannot_be_done_is_refused_by_its_name(
        self, task: Any, error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=f"'push' of the suite 'mine'.*{message}"):
            evaluate(Threshold().eval(), dark(0.1), suites={"mine": Given({"push": task})})

    def test_two_defences_may_be_met_in_opposite_orders(self) -> None:
        models = {"plain": Threshold().eval(), "noisy": Threshold(0.1).eval()}
        orders = {"plain": ("a", "b", "c"), "noisy": ("c", "a", "b")}
        suites = {"mine": Given(*(ordered(*labels) for labels in orders.values()))}
        pixels = dark(*np.linspace(0.1, 0.6, 12).tolist())
        both = evaluate(models, pixels, suites=suites)
        assert both.failures == []
        for name, model in models.items():
            alone = evaluate({name: model}, pixels, suites=suites)
            stages = both.worst_case(name, "mine").stages
            assert tuple(stage.label for stage in stages) == orders[name]
            assert stages == alone.worst_case(name, "mine").stages
            (last,) = (unit for unit in found(both) if unit["defence"] == name
                       and unit["attack"] == "mine")  # fmt: skip
            assert last in found(alone)

    @pytest.mark.parametrize(("probed", "count"), [(3, 12), (6, 12), (12, 3)])
    def test_what_meets_other_numbers_of_images_than_it_begins_from(
        self, probed: int, count: int
    ) -> None:
        """Of those that both meet it goes on, and of others it begins at the clean ones."""
        suite = Given({
            "push": Attack(attack=Add(0.1), images=count),
            "probe": Probe(attack=Add(0.05), images=probed, begins_from=["push"]),
        })  # fmt: skip
        result = evaluate(
            {"d": Threshold().eval()}, dark(*[0.1] * 12), suites={"mine": suite}, batch=4
        )
        assert result.failures == []
        went_on = min(probed, count)
        np.testing.assert_allclose(
            result.adversarial("d", "mine/probe")[:probed].mean((1, 2, 3)),
            [0.25] * went_on + [0.15] * (probed - went_on), rtol=1e-6,
        )  # fmt: skip

    def test_a_dry_run_counts_an_attack_of_ones_own_as_it_is(self) -> None:
        @dataclass(frozen=True)
        class Averaged(Add):
            eot: int = 3

            def run(
                self, model: nn.Module, x: Tensor, y: Tensor, *, start: Tensor | None = None
            ) -> Tensor:
                for _ in range(self.eot):
                    model(x)
                return super().run(model, x, y, start=start)

        suite = {"mine": Given({"push": Attack(attack=Averaged(0.1))})}
        judging = Judging(purifications=2)
        materials = materials_of({"d": Threshold().eval()}, dark(*[0.1] * 4), {}, judging, suite)
        foretold = {cell.attack: cell for cell in estimate(Plan.of(materials), materials)}
        assert foretold["mine/push"].error is None
        assert foretold["mine/push"].classifier_calls == 4 * (3 + 2)

    def test_a_suite_is_not_called_as_the_checks_are(self) -> None:
        suite = Given({"push": Attack(attack=Add(0.1))})
        with pytest.raises(ValueError, match="no suite may be called 'check'"):
            evaluate(Threshold().eval(), dark(0.1), suites={"check": suite})


class _Plain:
    def __init__(self, much: float) -> None:
        self.much = much

    def run(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return x + self.much

    def as_dict(self) -> dict[str, Any]:
        return {"much": self.much}


class _Raising(_Plain):
    def __init__(self) -> None:
        super().__init__(0)

    def run(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        raise KeyError("no such thing")


_LIBRARY = {"missing": True}


class _Mended(_Plain):
    def run(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        if _LIBRARY["missing"]:
            raise ImportError("its library is missing")
        return super().run(model, x, y)


def stages_of(tasks: dict[str, Task]) -> dict[str, Any]:
    """The attacks on the way to a suite's sum, by label."""
    return {label: task.attack for label, task in tasks.items() if isinstance(task, Attack)}


def probes_of(tasks: dict[str, Task]) -> dict[str, Any]:
    """What the checks rest on, by role."""
    return {task.role: task.attack for task in tasks.values() if isinstance(task, Probe)}


def is_averaged(tasks: dict[str, Task]) -> bool:
    """Whether the model is held to be random: AutoAttack's APGD is for what is not."""
    probes, stages = probes_of(tasks), stages_of(tasks)
    averaged = "half EOT" in probes
    samples = [probes[role].eot for role in ("white-box", "half EOT") if role in probes]
    assert samples == ([4, 2] if averaged else [1])
    assert averaged != any(label.startswith("APGD") for label in stages)
    return averaged


class Halving(Purifier):
    """Somebody's own, which draws nothing."""

    def purify(self, x_a: Tensor, noise: Noise, run: Runner = as_it_is) -> Tensor:
        return run(lambda x: x / 2)(x_a)


SUITE_RUN = {
    "attacks": {}, "trials": 1, "batch": 4, "judging": Judging(purifications=3),
    "suites": {"adaptive": Adaptive(**SMALL)},
}  # fmt: skip


@pytest.fixture(scope="module")
def whole() -> Result:
    """The suite on three toys: two purifiers, and a randomised module that is none of ours."""
    return run(None, **SUITE_RUN)


class TestAdaptive:
    def test_nothing_fails_and_every_image_is_judged_at_last(self, whole: Result) -> None:
        assert whole.failures == []
        for defence in whole.plan.defences:
            assert whole.judged(defence, "adaptive").images.tolist() == [*range(12)]

    def test_each_mode_is_attacked_that_a_defence_offers(self, whole: Result) -> None:
        modes = {
            "one-shot": {"one-shot", "bpda", "exact"},  # no optimiser: smoothed is exact
            "scoreopt": {"one-shot", "bpda", "exact", "smoothed"},
            "noisy": {"as-it-is"},
        }
        strongest = {"one-shot": "exact", "scoreopt": "smoothed", "noisy": "as-it-is"}
        for defence, expected in modes.items():
            stages = [*whole.plan.of_suite("adaptive", defence, "attack")]
            kind = "adaptive/momentum PGD, "
            named = [s.removeprefix(kind).split(", ") for s in stages if s.startswith(kind)]
            assert {mode for mode, *_ in named} == expected
            assert [mode for mode, *more in named if "longer" in more] == [strongest[defence]]
            assert ["onwards" in more for _, *more in named] == [False] * (len(named) - 1) + [True]
            assert stages[0] == "adaptive/no attack"
            assert ("adaptive/Square" in stages) == ("exact" not in expected)
            judges = whole.plan.of_suite("adaptive", defence, "judge")
            assert {name: judge.begins_from for name, judge in judges.items()} == {
                "adaptive": tuple(stages)
            }

    def test_stages_are_ordered_by_their_cost_and_what_they_take(self, whole: Result) -> None:
        stages = whole.plan.of_suite("adaptive", "scoreopt", "attack").values()
        order = [stage.label for stage in stages]
        named = (
            "PGD at the surrogate",
            "PGD, one-shot",
            "PGD, exact",
            "PGD, smoothed, longer",
            "PGD, bpda",
            "PGD, exact, onwards",
        )
        places = [order.index(f"momentum {name}") for name in named]
        assert [order.index("transfer PGD"), *places] == sorted([1, *places])

    def test_two_have_as_many_more_steps_as_is_said(self) -> None:
        model = DefendedModel(smooth_classifier(torch.float32), OneShot(bent(), sigma=0.3))
        stages = stages_of(Adaptive(steps=6, longer=3).tasks(model, images()[0]))
        momentum = {label: of.steps for label, of in stages.items() if "momentum" in label}
        assert [*momentum.values()] == [6, 6, 18, 6, 18]

    @pytest.mark.parametrize("deterministic", [True, False])
    @pytest.mark.parametrize("noisy", [True, False])
    def test_what_is_random_in_a_defence_is_averaged_over(
        self, deterministic: bool, noisy: bool
    ) -> None:
        """A random classifier behind a purifier that is none, too: one sample would flatter it."""
        purifier = OneShot(bent(), sigma=0.3, deterministic=deterministic)
        model = DefendedModel(
            Noisy().eval() if noisy else smooth_classifier(torch.float32), purifier
        )
        tasks = Adaptive().tasks(model, images()[0])
        assert is_averaged(tasks) == (noisy or not deterministic)

    @pytest.mark.parametrize(
        ("purifier", "random"),
        [
            (BitDepth(), False),
            (JPEG(), False),
            (MENet(), True),
            (ThirdParty(lambda x: x / 2), False),
            (ThirdParty(lambda x: x - 0.1 * torch.rand_like(x)), True),
            (ThirdParty(lambda x: x * (1 + 1e-6 * torch.rand(()))), False),
            (Halving(bent(torch.float32), gradient="bpda"), False),
            (ThirdParty(lambda x: x - 0.1 * torch.rand_like(x), deterministic=True), False),
            (OneShot(dropping(), sigma=0.3, deterministic=True), True),
        ],
        ids=[
            "bit depth",
            "jpeg",
            "me-net",
            "a function",
            "a random function",
            "rounding",
            "one's own",
            "a fixed draw",
            "a network that draws",
        ],
    )
    def test_what_draws_nothing_is_not_held_to_be_random(
        self, purifier: Purifier, random: bool
    ) -> None:
        """Its settings do not say; averaged over, it would not meet AutoAttack."""
        model = DefendedModel(smooth_classifier(torch.float32), purifier)
        assert is_averaged(Adaptive().tasks(model, images()[0])) == random

    @pytest.mark.parametrize("steps", [1, 2, 3, 20])
    def test_a_defence_of_more_than_two_steps_is_shown_as_one_of_two(self, steps: int) -> None:
        model = DefendedModel(smooth_classifier(torch.float32), ScoreOpt(bent(), steps=steps))
        shown = views.shown(views.Shortened(), model)
        assert shown.purifier.settings == model.purifier.settings.replace(
            steps=min(2, steps), gradient="smoothed"
        )

    @pytest.mark.parametrize("kind", [ADP, DiffPure, GDMP, PurSAMERE, ScoreOpt])
    def test_every_purifier_of_steps_is_differentiated_at_two(self, kind: type) -> None:
        purifier = kind(bent(), steps=5, seed=0)
        model = DefendedModel(smooth_classifier(torch.float32), purifier)
        x = images()[0][:2].requires_grad_()
        views.shown(views.Shortened(), model)(x).logsumexp(1).sum().backward()
        assert x.grad.isfinite().all()
        assert x.grad.abs().max() > 0
        assert purifier.settings.steps == 5

    def test_a_purifier_without_steps_cannot_be_shortened(self) -> None:
        model = DefendedModel(smooth_classifier(torch.float32), OneShot(bent(), sigma=0.3))
        with pytest.raises(ValueError, match="OneShot has no number of steps to shorten"):
            views.shown(views.Shortened(), model)

    def test_memory_for_time_changes_no_name_and_no_key(self) -> None:
        model = DefendedModel(smooth_classifier(torch.float32), OneShot(bent(), sigma=0.3))
        both = [Adaptive(keep_mb=mb).tasks(model, images()[0]) for mb in (0, 50)]
        described = [
            {label: task.attack.as_dict() for label, task in tasks.items()} for tasks in both
        ]
        assert described[0] == described[1]
        kept = stages_of(both[1])["momentum PGD, exact, longer"].gradient.keep_mb
        assert kept == probes_of(both[1])["white-box"].gradient.keep_mb == 50

    def test_the_worst_case_is_no_better_than_what_was_found(self, whole: Result) -> None:
        """Judged anew, an image that was wrong in each of 3 purifications may be right again."""
        for defence in whole.plan.defences:
            worst = whole.worst_case(defence, "adaptive")
            assert worst.stages[-1].left < worst.stages[0].left
            assert worst.cell.accuracy.value < whole.cell(defence).accuracy.value
            least: dict[int, Harm] = {}
            for stage in worst.stages:
                found = whole.judged(defence, stage.attack)
                for image, done in zip(found.images.tolist(), harms(found), strict=True):
                    least[image] = min(least.get(image, done), done)
            taken = sum(stage.taken for stage in worst.stages)
            assert taken == sum(done.left < 0.5 for done in least.values())

    def test_the_last_judge_saw_other_purifications_than_the_choice(self, whole: Result) -> None:
        for defence in whole.plan.defences:
            last, *chosen = (
                set(map(tuple, whole.judged(defence, name).lead.tolist()))
                for name in ("adaptive", *whole.plan.of_suite("adaptive", defence, "attack"))
            )
            assert len(last) == 12
            assert not any(last & leads for leads in chosen)

    @pytest.mark.parametrize(("classes", "kind"), [(2, "APGD"), (3, "AutoAttack")])
    def test_of_two_classes_there_is_but_apgd_and_the_plan_says_so(self, classes, kind) -> None:
        classifier = smooth_classifier(torch.float32, classes=classes)
        fixed = OneShot(bent(torch.float32), sigma=0.3, deterministic=True)
        for model in (classifier, DefendedModel(classifier, fixed)):
            stages = stages_of(Adaptive().tasks(model, images()[0]))
            found = {type(a).__name__ for name, a in stages.items() if name.startswith("APGD")}
            assert found == {kind}

    def test_a_module_that_is_not_ours_says_what_was_not_tried(self, whole: Result) -> None:
        ((what, why),) = whole.worst_case("noisy", "adaptive").untried.items()
        assert "gradient modes, transfer, boundary, surrogate and" in what
        assert why.startswith("Noisy is one module")

    def test_a_deterministic_model_is_asked_once(self) -> None:
        x = images()[0]
        assert not is_averaged(Adaptive().tasks(smooth_classifier(torch.float32), x))
        assert is_averaged(Adaptive().tasks(Noisy().eval(), x))

    @pytest.mark.parametrize("draw", [random.random, np.random.rand, lambda: torch.rand(()).item()])
    @pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
    def test_a_coin_is_found_whoever_tosses_it(self, draw: Any, share: float) -> None:
        class Coin(Threshold):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x) * (1 if draw() < share else 2)

        assert is_averaged(Adaptive().tasks(Coin().eval(), images()[0]))

    def test_its_owner_may_say_that_a_model_is_random(self) -> None:
        """What is random on attacked images alone is not found by asking."""
        assert is_averaged(Adaptive(random=True).tasks(Threshold().eval(), images()[0]))
        with pytest.raises(ValueError, match="random must be True or False"):
            Adaptive(random="yes")

    def test_a_purifier_inside_another_module_is_refused(self) -> None:
        model = nn.Sequential(defences()["scoreopt"])
        with pytest.raises(ValueError, match="pass the DefendedModel itself"):
            Adaptive().tasks(model, images()[0])

    def test_workers_and_resumption_change_nothing(self, whole: Result, tmp_path) -> None:
        few = SUITE_RUN | {"suites": {"adaptive": Adaptive(**SMALL | {"probed": 0})}}
        alone = found(run(None, **few))
        assert found(run(tmp_path / "two", workers=2, **few)) == alone

    @pytest.mark.slow
    def test_kills_change_nothing(self, tmp_path) -> None:
        import multiprocessing

        from killed_runs import killed_until_done

        forked = multiprocessing.get_context("forkserver")
        few = SUITE_RUN | {"suites": {"adaptive": Adaptive(**SMALL | {"probed": 0})}}
        killed_until_done(forked, tmp_path, 20, few)
        assert found(run(tmp_path, **few)) == found(run(None, **few))

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"norm": "l1"}, r"norm must be one of \['linf', 'l2'\], got 'l1'"),
            ({"eps": 0}, "eps must be a finite number above 0, got 0"),
            ({"steps": 1}, "steps must be a whole number of at least 2, got 1"),
            ({"queries": 5}, "queries must be a whole number of at least 20, got 5"),
            ({"autocast": "float16"}, "autocast must be one of .*'bfloat16', 'float32'"),
            ({"keep_mb": -1}, "keep_mb must be a finite number at least 0, got -1"),
        ],
    )
    def test_wrong_settings_are_refused(self, settings: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Adaptive(**settings).tasks(smooth_classifier(torch.float32), images()[0])

    def test_an_unknown_suite_is_refused(self) -> None:
        said = r"suite must be one of \['quick', 'adaptive'\], got 'all'"
        with pytest.raises(ValueError, match=said):
            evaluate(smooth_classifier(torch.float32), images(), suites="all")


class Quantised(nn.Module):
    """The classifier behind a rounding of its images: its gradient is zero, its errors are not."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier((8 * x).round() / 8)


@pytest.fixture(scope="module")
def verdicts() -> dict[str, dict[str, Any]]:
    plain = smooth_classifier(torch.float32)
    purifier = ScoreOpt(bent(torch.float32), steps=2, lr=0.01, sigma=0.1, variant="O")
    models = {
        "plain": plain,
        "masked": Quantised(plain).eval(),
        "defended": DefendedModel(plain, purifier),
    }
    x, _ = images(24)
    y = plain(x).argmax(1)
    suite = Adaptive(eps=0.2, steps=64, longer=1, queries=40, probed=24)
    result = evaluate(models, (x, y), suites={"adaptive": suite}, batch=24)
    assert result.failures == []
    return {
        name: {check.name: check for check in checklist(result, name, "adaptive")}
        for name in models
    }


class TestChecklist:
    def test_a_plain_classifier_passes(self, verdicts) -> None:
        failed = [c for c in verdicts["plain"].values() if c.passed is False]
        assert failed == []
        assert sum(bool(c.passed) for c in verdicts["plain"].values()) >= 7

    def test_a_masked_gradient_fails(self, verdicts) -> None:
        failed = {name for name, check in verdicts["masked"].items() if check.status == "FAIL"}
        assert {
            "an unbounded attack reaches 0 %",
            "gradients are neither zero nor NaN",
            "the white box is no weaker than the black box and transfer",
        } <= failed

    def test_a_defended_model_is_checked_for_what_only_it_has(self, verdicts) -> None:
        checks = verdicts["defended"]
        assert all(check.passed is not None for check in checks.values())
        assert checks["clean accuracy is near the bare classifier's"].passed
        for name in ("the loss falls over the purifier's steps", "clean accuracy is near"):
            others = [c for n, c in verdicts["plain"].items() if n.startswith(name)]
            assert [c.status for c in others] == ["not run"]

    @pytest.mark.parametrize(("rises", "passed"), [(0, True), (8, None), (16, False)])
    def test_a_descent_fails_where_the_loss_rises_not_where_noise_hides_that_it_falls(
        self, rises: int, passed: bool | None
    ) -> None:
        before = dict.fromkeys(range(24), 1.0)
        after = {place: 1.9 if place < rises else 0.5 for place in before}
        found = {"loss before": before, "loss after": after}
        check = _OfSuite.descent(SimpleNamespace(measured=lambda _: found))
        assert check.passed is passed

    def test_a_descent_begins_at_noise_since_a_clean_image_is_at_the_minimum(self) -> None:
        """From a clean digit the preset's first step of Adam leads up, as far as any step."""
        denoiser, classifier = (
            pretrained.denoiser("mnist-tiny"),
            pretrained.classifier("mnist-tiny"),
        )
        model = DefendedModel(classifier, ScoreOpt.from_preset("mnist-tiny/O", denoiser))
        digits = data.mnist(n=16)
        with seeded(0):
            rises, falls = (
                Convergence("linf", eps).measure(model, digits.x, digits.y) for eps in (1e-6, 0.3)
            )
        assert (rises["loss after"] > rises["loss before"]).sum() > 10
        assert (falls["loss after"] < falls["loss before"]).all()

    def test_what_too_few_images_cannot_fail_is_not_passed(self) -> None:
        suite = Adaptive(**SMALL | {"probed": 7})
        result = evaluate(smooth_classifier(torch.float32), images(7), suites={"adaptive": suite})
        checks = {c.name: c for c in checklist(result, "Sequential", "adaptive")}
        of_few = checks["the white box is no weaker than the black box and transfer"]
        assert (of_few.passed, of_few.figure) == (None, "of 7 images no difference could fail it")

    def test_a_check_says_what_it_has_no_figure_of(self, monkeypatch) -> None:
        def fails(*_: Any) -> Tensor:
            raise ImportError("its library is missing")

        monkeypatch.setattr(attacks.Square, "attack", fails)
        suite = {"adaptive": Adaptive(**SMALL | {"probed": 8})}
        result = evaluate(defences()["one-shot"], images(8), suites=suite)
        checks = {c.name: c for c in checklist(result, "DefendedModel", "adaptive")}
        check = checks["the white box is no weaker than the black box and transfer"]
        assert check.figure.endswith("; no figure of black box")

    def test_an_attack_that_raises_the_accuracy_is_a_failed_check(self) -> None:
        pixels = dark(*[0.6 if place % 2 else 0.4 for place in range(32)])  # half are wrong
        suite = Adaptive(norm="linf", eps=0.01, steps=4, queries=20, probed=0)
        result = evaluate(
            Threshold(), pixels, {"helpful": _Plain(-0.3)}, suites={"adaptive": suite}
        )
        checks = {c.name: c for c in checklist(result, "Threshold", "adaptive")}
        assert checks["no attack raises the accuracy"].passed is False
        assert "helpful less clean: +50.0 points" in checks["no attack raises the accuracy"].figure


class TestAttacksOfTheSuite:
    def test_boundary_images_are_barely_wrong(self) -> None:
        x, y = dark(0.35, 0.45, 0.1)
        model = DefendedModel(Threshold().eval(), OneShot(bent(torch.float32), sigma=0.1))
        attack = attacks.Boundary(eps=0.2, steps=10, bisections=12)
        mean = attack.run(model, x, y).mean((1, 2, 3))
        # half of at most 0.2, 12 times over; the third cannot be reached and goes all the way
        assert ((mean[:2] >= 0.5) & (mean[:2] <= 0.5 + 0.2 * 2.0**-12 + 1e-6)).all()
        torch.testing.assert_close(mean[2], torch.tensor(0.3))

    @pytest.mark.parametrize("norm", ["linf", "l2"])
    def test_noise_has_the_size_that_is_asked_for(self, norm: str) -> None:
        x = torch.full((16, 3, 8, 8), 0.5)
        torch.manual_seed(0)
        y = torch.zeros(16, dtype=torch.int64)
        change = attacks.RandomNoise(norm=norm, eps=0.1).run(smooth_classifier(x.dtype), x, y) - x
        if norm == "l2":
            torch.testing.assert_close(change.flatten(1).norm(dim=1), torch.full((16,), 0.1))
        else:
            # uniform: its variance is a third, of 16 * 192 draws
            torch.testing.assert_close(change.square().mean().item(), 0.1**2 / 3, rtol=0.1, atol=0)
            assert change.abs().max() <= 0.1 + 1e-7

    def test_autocast_is_the_attacks_and_not_the_judges(self) -> None:
        seen = []

        class Spy(Threshold):
            def forward(self, x: Tensor) -> Tensor:
                seen.append(torch.is_autocast_enabled("cpu"))
                return super().forward(x)

        attack = attacks.PGD(eps=0.1, steps=2, eot=1, autocast="bfloat16")
        judging = Judging(purifications=2)
        evaluate(Spy(), dark(0.4, 0.45), {"pgd": attack}, judging=judging, checks=False)
        asked = [False] * 3  # for its classes, and twice for the key of the run
        assert seen == asked + [False] * 2 + [True] * 2 + [False] * 2
