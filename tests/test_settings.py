"""Settings can't lie: what is said of a purifier is what it does, whatever is tried later."""

from __future__ import annotations

import inspect
import json
import pickle
from dataclasses import FrozenInstanceError, dataclass

import pytest
import torch
from purifiers_table import PURIFIERS
from tolerances import rounding
from toys import bent, gaussian, labels, mid_images, smooth_classifier

from scoreopt_defense import EOT, JPEG, DefendedModel, OneShot, ScoreOpt
from scoreopt_defense.denoisers import GaussianDenoiser
from scoreopt_defense.gradients import BPDA, GRADIENTS, Exact
from scoreopt_defense.objectives import MSE, SR, denoising_error
from scoreopt_defense.optimizers import SGD, Adam
from scoreopt_defense.presets import PRESETS
from scoreopt_defense.purifiers import OneShotSettings, ScoreOptSettings
from scoreopt_defense.settings import described

# Networks and losses of the toys, of values about 1.
TOLERANCE = rounding(torch.float64, 192)

SETTINGS = {
    "variant": "N",
    "loss": SR(weight=2.0),
    "steps": 2,
    "lr": 0.05,
    "sigma": (0.2, 0.4),
    "outer_steps": 2,
    "optimizer": Adam(beta1=0.5),
    "anchor": "fixed",
    "sigma_per": "batch",
    "jacobian": True,
    "tol": None,
    "compile": False,
    "gradient": Exact(),
    "deterministic": True,
    "max_batch": 3,
    "autocast": None,
    "channels_last": False,
    "size": None,
    "seed": 7,
}


def purifier(**changes):
    return ScoreOpt(bent(), **SETTINGS | changes)


def other(name):
    """Another value of each setting that is allowed beside the rest."""
    values = {"loss": MSE(weight=2.0), "steps": 3, "lr": 0.06, "sigma": (0.3, 0.3), "seed": 8,
              "outer_steps": 1, "optimizer": SGD(), "anchor": "moving", "gradient": BPDA(),
              "deterministic": False, "max_batch": 4, "jacobian": False, "tol": 0.1, "size": 7,
              "sigma_per": "image",
              "compile": True, "autocast": "bfloat16", "channels_last": True}  # fmt: skip
    with_it = {
        "variant": {"variant": "O", "anchor": "moving", "outer_steps": 1},
        "jacobian": {"jacobian": False, "anchor": "moving", "loss": MSE(weight=2.0)},
    }
    return with_it.get(name) or {name: values[name]}


pytestmark = pytest.mark.usefixtures("nothing_is_compiled")

every_setting = pytest.mark.parametrize("name", SETTINGS)


def test_the_table_here_is_complete():
    assert set(SETTINGS) == set(ScoreOptSettings.names())


@every_setting
def test_none_can_be_set_after_construction(name):
    made = purifier()
    with pytest.raises(AttributeError, match=rf"{name} of a ScoreOpt cannot.*replace\({name}="):
        setattr(made, name, SETTINGS[name])
    model = DefendedModel(smooth_classifier(), made)
    with pytest.raises(AttributeError, match=rf"{name} of a DefendedModel.*replace\({name}="):
        setattr(model, name, SETTINGS[name])
    with pytest.raises(FrozenInstanceError):
        setattr(made.settings, name, SETTINGS[name])
    assert getattr(made, name) == SETTINGS[name]


@every_setting
def test_replace_makes_a_twin_and_leaves_the_parent(name):
    parent, x = purifier(), mid_images()
    before = parent(x, seed=1)
    twin = parent.replace(**other(name))
    assert twin.settings == ScoreOptSettings(**SETTINGS | other(name))
    assert parent.settings == ScoreOptSettings(**SETTINGS)
    assert torch.equal(parent(x, seed=1), before)
    assert torch.equal(twin(x, seed=1), purifier(**other(name))(x, seed=1))
    assert twin.denoiser is parent.denoiser


@every_setting
def test_each_shows_in_repr_json_and_comparison(name):
    """They are a resumed run's key: weights of 1 and 50 must not look alike."""
    one, two = purifier(), purifier(**other(name))
    assert f"{name}={SETTINGS[name]!r}" in " ".join(repr(one).split())  # wherever it wraps
    assert repr(one) != repr(two)
    assert one.settings != two.settings
    assert json.dumps(one.settings.as_dict()) != json.dumps(two.settings.as_dict())
    weak, strong = purifier(loss=SR(weight=1.0)), purifier(loss=SR(weight=50.0))
    assert repr(weak) != repr(strong)


@pytest.mark.parametrize("made", [purifier(), OneShot(bent(), sigma=0.3), *(
    make(bent(), gradient="bpda", seed=3) for make in PURIFIERS.values()
), *(
    ScoreOpt.from_preset(name, gaussian()) for name in PRESETS
)], ids=lambda p: str(p.settings)[-40:])  # fmt: skip
def test_json_and_back(made):
    text = json.dumps(made.settings.as_dict(), allow_nan=False)
    assert made.Settings.from_dict(json.loads(text)) == made.settings
    assert pickle.loads(pickle.dumps(made.settings)) == made.settings


def test_results_keep_their_keys_where_what_came_later_is_not_set():
    came_later = {"size": 9, "sigma_per": "image"}
    assert not came_later.keys() & ScoreOptSettings().as_dict().keys()
    assert came_later.items() <= ScoreOptSettings(**came_later).as_dict().items()


def test_json_is_read_by_the_same_rules():
    plain = ScoreOptSettings().as_dict()
    with pytest.raises(ValueError, match="lr must be a finite number above 0"):
        ScoreOptSettings.from_dict(plain | {"lr": -5})
    with pytest.raises(ValueError, match=r"loss must be one of.*got 'l2'"):
        ScoreOptSettings.from_dict(plain | {"loss": {"name": "l2"}})
    with pytest.raises(TypeError, match="no setting 'weight'"):
        ScoreOptSettings.from_dict(plain | {"weight": 1})


def test_what_changes_no_result_is_no_part_of_a_resumed_runs_key():
    assert described(Exact(keep_mb=100), GRADIENTS) == {"name": "exact"}
    assert Exact(keep_mb=100) == Exact()


def test_a_tensor_is_no_json():
    """Its text would be cut short: two that differ would look alike."""
    odd = ScoreOptSettings(loss=Absolute(power=torch.ones(3)))
    with pytest.raises(TypeError, match="a Tensor cannot be written as JSON"):
        odd.as_dict()


def test_data_parallel_may_fill_its_replicas():
    model = DefendedModel(smooth_classifier(), purifier())
    replica = model._replicate_for_data_parallel()
    replica.classifier = smooth_classifier()
    assert model.classifier is not replica.classifier


def test_the_settings_object_itself_makes_a_purifier():
    settings = OneShotSettings(sigma=(0.2, 0.3), seed=4)
    x = mid_images()
    assert torch.equal(OneShot(bent(), settings)(x), OneShot(bent(), sigma=(0.2, 0.3), seed=4)(x))
    assert OneShot(bent(), settings, seed=5).seed == 5
    with pytest.raises(TypeError, match="settings must be OneShotSettings, got ScoreOptSettings"):
        OneShot(bent(), ScoreOptSettings())


def test_the_signature_lists_every_setting_and_its_default():
    parameters = inspect.signature(ScoreOpt).parameters
    assert list(parameters) == ["denoiser", *ScoreOptSettings.names()]
    assert parameters["steps"].default == ScoreOptSettings().steps
    assert list(inspect.signature(JPEG).parameters) == JPEG.Settings.names()
    assert list(inspect.signature(DefendedModel).parameters) == ["classifier", "purifier", "votes"]


@pytest.mark.parametrize(
    ("make", "name", "value"),
    [
        (lambda: purifier(), "denoiser", bent()),
        (lambda: purifier(), "settings", ScoreOptSettings()),
        (lambda: DefendedModel(smooth_classifier(), purifier()), "votes", -3),
        (lambda: DefendedModel(smooth_classifier(), purifier()), "purifier", purifier()),
        (lambda: EOT(smooth_classifier(), 2), "samples", 4),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_parts_of_a_defence_cannot_be_exchanged(make, name, value):
    made = make()
    with pytest.raises(AttributeError, match=rf"{name} of a \w+ cannot.*make another") as error:
        setattr(made, name, value)
    assert ("replace" in str(error.value)) == (name == "votes")  # where that takes it


def test_a_defended_models_twin():
    model = DefendedModel(smooth_classifier(), purifier(deterministic=False))
    twin = model.replace(votes=3, lr=0.01, seed=5)
    assert (twin.votes, twin.purifier.lr, twin.purifier.seed) == (3, 0.01, 5)
    assert (model.votes, model.purifier.lr, model.purifier.seed) == (1, 0.05, 7)
    assert twin.classifier is model.classifier
    with pytest.raises(ValueError, match="votes must be a whole number"):
        model.replace(votes=0)
    x = mid_images()
    twin.register_forward_hook(lambda *_: pytest.fail("a twin's hook is not its parent's"))
    model(x)


def test_twins_follow_replaced_noise_levels_beyond_the_denoisers():
    with pytest.raises(ValueError, match="sigma must be within"):
        purifier().replace(sigma=5.0)


@dataclass(frozen=True)
class Absolute:
    """A loss of a user's own."""

    power: float = 1.0

    def __call__(self, denoised, x, **_):
        return (denoised - x).abs().pow(self.power).flatten(1).sum(1)


@dataclass(frozen=True)
class SignDescent:
    """An optimiser of a user's own."""

    def init(self, x):
        return ()

    def step(self, count, lr, x, grad, *state):
        return (x - lr * grad.sign(),)


def test_a_users_own_loss_and_optimiser_are_objects_passed_in():
    x = mid_images()
    settings = {"variant": "O", "steps": 2, "sigma": 0.3, "lr": 0.01}
    own = ScoreOpt(bent(), loss=Absolute(power=2.0), **settings)
    assert torch.equal(own(x, seed=1), ScoreOpt(bent(), loss="diff", **settings)(x, seed=1))
    assert own.settings.as_dict()["loss"] == {"name": "Absolute", "power": 2.0}
    assert "loss=Absolute(power=2.0)" in repr(own)

    def plain(denoised, x, **_):
        return denoising_error(denoised, x)

    by_function = ScoreOpt(bent(), loss=plain, optimizer=SignDescent(), **settings)
    moved = (by_function(x, seed=1) - x).abs()
    steps = torch.tensor([0.0, 0.01], dtype=torch.float64)  # two steps of 0.01 / 2 on [0, 1]
    assert torch.isclose(moved[..., None], steps, rtol=0, atol=TOLERANCE).any(-1).all()
    found = torch.autograd.grad(
        DefendedModel(smooth_classifier(), by_function.with_gradient("exact"))(
            x.requires_grad_(), seed=1
        ).sum(),
        x,
    )[0]
    assert found.isfinite().all()


@pytest.mark.parametrize("variant", ["O", "N"])
@pytest.mark.parametrize("loss", ["diff", "sr"])
@pytest.mark.parametrize("max_batch", [None, 3])
def test_a_callback_sees_each_step_as_it_is_taken(variant, loss, max_batch):
    made = ScoreOpt(
        bent(), variant=variant, loss=loss, steps=3, sigma=0.3, lr=0.01, optimizer="sgd",
        outer_steps=2 if variant == "N" else 1, max_batch=max_batch,
    )  # fmt: skip
    x, seen = mid_images(), []
    purified = made(x, seed=1, callback=seen.append)
    assert torch.equal(purified, made(x, seed=1))
    places = {"O": [(i, 0) for i in range(3)], "N": [(i, j) for i in range(2) for j in range(3)]}
    assert [(step["i"], step["j"]) for step in seen] == places[variant] * ((max_batch and 2) or 1)
    for step in seen:
        assert set(step) == {"i", "j", "x", "x_t", "loss", "denoised", "sigma"}
        denoised = bent()(step["x_t"], step["sigma"])
        torch.testing.assert_close(step["denoised"], denoised, rtol=0, atol=TOLERANCE)
        if loss == "diff":
            expected = denoising_error(denoised, step["x"])
            torch.testing.assert_close(step["loss"], expected, rtol=TOLERANCE, atol=0)
        assert not any(v.requires_grad for v in step.values() if isinstance(v, torch.Tensor))
    with pytest.raises(TypeError, match="callback"):
        OneShot(bent(), sigma=0.3)(x, callback=seen.append)


def test_a_callback_sees_a_forward_pass_once_whatever_the_gradient():
    for gradient in ("one-shot", "exact", "bpda"):
        made, seen = purifier(deterministic=False, gradient=gradient, max_batch=None), []
        x = mid_images().requires_grad_()
        made(x, seed=1, callback=seen.append).sum().backward()
        assert len(seen) == 4, gradient
        assert labels().shape == (4,)


def test_a_model_prints_on_a_screen_its_networks_by_class_and_size():
    classifier = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(50)))
    model = DefendedModel(classifier.eval(), ScoreOpt(GaussianDenoiser(), steps=3), votes=2)
    said = repr(model)
    assert len(said.splitlines()) < 24
    assert max(map(len, said.splitlines())) <= 104
    assert "(classifier): Sequential(1,000 parameters)" in said
    assert "steps=3" in said
    assert "votes=2" in said
    assert "(denoiser): GaussianDenoiser(" in said


def test_a_defended_model_gives_what_its_classifier_is_given():
    model = DefendedModel(torch.nn.Flatten().eval(), ScoreOpt(GaussianDenoiser(), steps=1))
    x = torch.rand(2, 1, 2, 2)
    purified = model.purify(x, seed=3)
    assert torch.equal(purified.flatten(1), model(x, seed=3))
    assert model.purify(x, samples=3).shape == (6, 1, 2, 2)
