"""What is edited between two runs is another thing: no old figure stands for it."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch import nn
from toy_evaluation import Noisy, images
from toys import smooth_classifier

from scoreopt_defense import DefendedModel, ThirdParty, data
from scoreopt_defense.evaluation import Judging, Suite, evaluate
from scoreopt_defense.evaluation.plan.behaviour import behaviour, unlike
from scoreopt_defense.evaluation.plan.fingerprint import described, of_attack
from scoreopt_defense.evaluation.plan.tasks import Attack, Judge, Worst
from scoreopt_defense.evaluation.run.progress import Progress

SHAPE = (3, 8, 8)


def told_apart(one: nn.Module, other: nn.Module) -> str | None:
    return unlike(behaviour(one, SHAPE), behaviour(other, SHAPE))


class Net(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.net, self.how = smooth_classifier(torch.float32), how

    def forward(self, x):
        if self.how == "NaN":
            x = x + 0 * (x - x.detach()).square().sum().sqrt()
        return self.net(x.detach() if self.how == "none" else 0 * x + x.detach()
                        if self.how == "zero" else x)  # fmt: skip


@pytest.mark.parametrize("masked", ["NaN", "none", "zero"])
def test_a_gradient_that_was_mended_is_another_defence(masked):
    assert "gradient" in str(told_apart(Net(masked), Net("whole")))
    assert "gradient" in str(told_apart(Net("whole"), Net(masked)))
    assert told_apart(Net(masked), Net(masked)) is None


def test_zero_gradients_and_none_are_told_apart():
    assert told_apart(Net("zero"), Net("none"))


class Passing(torch.autograd.Function):
    """The identity, with this much of the gradient."""

    much = 1.0

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return Passing.much * gradient


def test_a_backward_pass_that_only_the_exact_mode_meets_counts(monkeypatch):
    model = DefendedModel(smooth_classifier(torch.float32), ThirdParty(Passing.apply))
    assert model.purifier.settings.gradient != "exact"
    before = behaviour(model, SHAPE)
    monkeypatch.setattr(Passing, "much", 0.0)
    assert "exactly gradient" in str(unlike(before, behaviour(model, SHAPE)))


def attack_of(kind: str, by: float):
    """A class of one name and no settings that does something else for each ``by``."""

    def own(self, model, x, y):
        return x + self.by

    def wrapped(function):
        @functools.wraps(function)
        def outer(*arguments):
            return function(*arguments)

        return outer

    def closed(self, model, x, y):
        return x + by

    def with_default(self, model, x, y, by=by):
        return x + by

    place: dict = {"torch": torch}
    exec(f"def edited(self, model, x, y):\n    return x + {by}", place)
    edited = place["edited"]
    members = {
        "an attribute": {"run": own, "by": by},
        "a default": {"run": with_default},
        "a closure": {"run": closed},
        "what is decorated": {"run": wrapped(edited)},
        "what torch decorates": {"run": torch.no_grad()(edited)},
        "a static method": {"run": own, "more": staticmethod(edited), "by": 0},
        "a property": {"run": own, "by": property(edited)},
        "a partial method": {"run": functools.partialmethod(with_default, by=by)},
        "a tensor": {"run": own, "by": torch.tensor(by)},
    }[kind]
    return type("Mine", (), {"__module__": "mine", "as_dict": lambda self: {}} | members)()


KINDS = [
    *("an attribute", "a default", "a closure", "what is decorated", "what torch decorates"),
    *("a static method", "a property", "a partial method", "a tensor"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_an_edited_class_of_an_attack_is_another_attack(kind):
    assert of_attack(attack_of(kind, 0.0)) == of_attack(attack_of(kind, 0.0))
    assert of_attack(attack_of(kind, 0.0)) != of_attack(attack_of(kind, 0.3))


def test_an_edited_class_of_a_defence_is_another_defence():
    def made(by):
        place = {"Noisy": Noisy, "__name__": "mine"}
        body = f"return super().forward(x) + {by}"
        exec(f"class Mine(Noisy):\n def forward(self, x):\n  {body}", place)
        return place["Mine"]()

    assert described(made(0.0))["code"] == described(made(0.0))["code"]
    assert described(made(0.0)) != described(made(0.1))
    assert "code" not in described(smooth_classifier(torch.float32))


class Notes(Progress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


class Unseeded(nn.Module):
    def __init__(self, much: float = 1.0) -> None:
        super().__init__()
        self.net, self.much = smooth_classifier(torch.float32), much

    def forward(self, x):
        noise = np.random.default_rng().normal(size=x.shape).astype("float32")
        return self.net(x + self.much * torch.from_numpy(noise))


def test_where_an_edit_could_not_be_seen_that_is_said():
    """Of a little noise too, which is taken for rounding."""
    models = (Unseeded().eval(), 1), (Unseeded(1e-3).eval(), 1), (Noisy().eval(), 0)
    for model, said in models:
        notes = Notes()
        evaluate({"it": model}, images(4), {}, judging=Judging(purifications=1), progress=notes)
        assert sum("that it was edited would not be seen" in note for note in notes.notes) == said


class Raising:
    def run(self, model, x, y):
        raise KeyError("no such thing")

    def as_dict(self):
        return {}


class Same:
    def run(self, model, x, y):
        return x

    def as_dict(self):
        return {}


class Given(Suite):
    def __init__(self, tasks) -> None:
        self.given = tasks

    def tasks(self, model, x):
        return self.given


WORST = Worst(norm="linf", eps=0.1)


def test_a_suite_whose_attacks_all_failed_has_no_figure():
    suite = Given({
        "a": Attack(attack=Raising()), "": Judge(attack=WORST, begins_from=["a"]),
    })  # fmt: skip
    result = evaluate(Noisy().eval(), images(4), suites={"mine": suite})
    assert result.cell("Noisy", "mine").accuracy is None
    assert result.cell("Noisy", "mine").failed == 4


def test_images_that_a_suites_attack_leaves_out_are_said():
    suite = Given({
        "a": Attack(attack=Same(), images=2), "": Judge(attack=WORST, begins_from=["a"]),
    })  # fmt: skip
    result = evaluate(Noisy().eval(), images(4), suites={"mine": suite})
    assert "past the first 2" in result.worst_case("Noisy", "mine").untried["a"]


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        ({"": Judge(attack=WORST)}, "must begin from at least one"),
        ([Attack(attack=Same())], "must return a mapping"),
        ({"a": Attack(attack=Same(), confirm=-1)}, "confirm of 'a' .* at least 0"),
    ],
)
def test_a_suite_that_attacks_nothing_is_refused(tasks, said):
    with pytest.raises((TypeError, ValueError), match=said):
        evaluate(Noisy().eval(), images(2), suites={"mine": Given(tasks)})


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.arange(4) - 1, "labels must be classes from 0 on, got -1"),
        (np.arange(3), "has 4 images, and there are 3 labels"),
        (np.arange(4) * 1.0, "labels must be whole numbers"),
        (np.eye(4), "labels must be whole numbers"),
        (np.array(list("abcd")), "labels must be whole numbers"),
        (None, "no labels.npy beside"),
    ],
)
def test_labels_of_an_array_are_checked(labels, said, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((4, 8, 8, 3), dtype=np.uint8))
    if labels is not None:
        np.save(tmp_path / "labels.npy", labels)
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        data.source(tmp_path / "x.npy")


def test_channels_in_another_place_are_said(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((4, 3, 8, 8), dtype=np.uint8))
    np.save(tmp_path / "labels.npy", np.zeros(4, dtype=int))
    with pytest.raises(ValueError, match="must have 1 or 3 channels, the last of its sides"):
        data.source(tmp_path / "x.npy")


class Samples(torch.utils.data.Dataset):
    def __init__(self, item) -> None:
        self.item = item

    def __len__(self):
        return 4

    def __getitem__(self, place):
        return self.item(place)


@pytest.mark.parametrize(
    ("item", "said"),
    [
        (lambda place: (torch.rand(SHAPE), 0), "gives another image each time"),
        (lambda place: {"image": 1}, "item 0 of the data set must be an image and a label"),
        (lambda place: (torch.zeros(SHAPE), -1), "labels must be classes from 0 on, got -1"),
        (lambda place: (torch.zeros(SHAPE), 0.5), "labels must be whole numbers"),
    ],
)
def test_items_of_a_data_set_are_checked(item, said):
    with pytest.raises(ValueError, match=said):
        evaluate(Noisy().eval(), Samples(item))


class Undefined(Same):
    def measure(self, model, x, y):
        return {"loss": torch.full((len(x),), torch.nan)}


def test_a_measurement_that_is_not_finite_is_recorded(tmp_path):
    result = evaluate(Noisy().eval(), images(4), {"a": Undefined()}, out=tmp_path, checks=False)
    assert not result.failures
    assert np.isnan([*result.measured("Noisy", "a")["loss"].values()]).all()
    result.store.close()
