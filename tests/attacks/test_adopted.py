"""Attack objects of other libraries, asked of our models by their own settings."""

from __future__ import annotations

import pickle

import pytest
import torch
from toy_evaluation import images
from toys import smooth_classifier

from scoreopt_defense import DefendedModel, OneShot
from scoreopt_defense.attacks import adopt
from scoreopt_defense.denoisers import GaussianDenoiser
from scoreopt_defense.evaluation import Judging, evaluate
from scoreopt_defense.evaluation.judging.threat_model import inside

EPS = 0.1
MODEL = smooth_classifier(torch.float32)


def of_art(kind: str, **settings: object):
    art = pytest.importorskip("art.attacks.evasion")
    from art.estimators.classification import PyTorchClassifier

    other = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 4))
    bound = PyTorchClassifier(
        other, torch.nn.CrossEntropyLoss(), input_shape=(3, 8, 8), nb_classes=4, clip_values=(0, 1)
    )
    return getattr(art, kind)(bound, **settings)


def of_torchattacks(kind: str, **settings: object):
    other = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 4))
    return getattr(pytest.importorskip("torchattacks"), kind)(other, **settings)


OBJECTS = {
    "torchattacks": (lambda: adopt(of_torchattacks("PGD", eps=EPS, steps=3)), "linf"),
    "torchattacks l2": (lambda: adopt(of_torchattacks("PGDL2", eps=EPS, steps=3)), "l2"),
    "torchattacks unbounded": (lambda: adopt(of_torchattacks("DeepFool", steps=3)), None),
    "torchattacks of several": (
        lambda: adopt(of_torchattacks("AutoAttack", eps=EPS, version="rand", n_classes=4)),
        "linf",
    ),
    "foolbox": (
        lambda: adopt(pytest.importorskip("foolbox").attacks.L2PGD(steps=3), eps=EPS),
        "l2",
    ),
    "art": (
        lambda: adopt(
            of_art("ProjectedGradientDescent", eps=EPS, eps_step=0.05, max_iter=3, verbose=False)
        ),
        "linf",
    ),
    "art of several": (
        lambda: adopt(of_art("FastGradientMethod", norm=2, eps=EPS, minimal=False)),
        "l2",
    ),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_it_attacks_the_model_it_is_shown_and_not_its_own(name):
    made, norm = OBJECTS[name]
    attack = pickle.loads(pickle.dumps(made()))  # as a worker gets it
    assert (attack.norm, attack.eps) == (norm, None if norm is None else EPS)
    x, _ = images(4)
    y = MODEL(x).argmax(1)
    asked = []
    hook = MODEL.register_forward_hook(lambda *_: asked.append(None))
    torch.manual_seed(0)
    attacked = attack.run(MODEL, x, y)
    hook.remove()
    assert asked
    assert inside(attack, x, attacked).all()
    loss = torch.nn.functional.cross_entropy
    assert loss(MODEL(attacked), y) > loss(MODEL(x), y)


def test_objects_of_three_libraries_stand_where_an_attack_of_ours_does():
    theirs = of_torchattacks("PGD", eps=EPS, steps=2)
    before = theirs.model
    model = DefendedModel(MODEL, OneShot(GaussianDenoiser(), sigma=0.25))
    attacks = [theirs, OBJECTS["foolbox"][0](), OBJECTS["art"][0]()]
    result = evaluate(
        {"d": model}, images(4), attacks, judging=Judging(purifications=2), checks=False
    )
    assert not result.failures
    names = ["clean", "PGD", "L2ProjectedGradientDescentAttack", "ProjectedGradientDescent"]
    assert [cell.attack for cell in result.cells] == names
    assert theirs.model is before


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        (lambda: adopt(object()), TypeError, "must be an object of torchattacks, foolbox, art"),
        (
            lambda: adopt(pytest.importorskip("foolbox").attacks.LinfPGD()),
            ValueError,
            "Attack needs eps",
        ),
        (lambda: adopt(of_torchattacks("PGD"), eps=0.1), ValueError, "has its own eps"),
    ],
)
def test_what_cannot_be_adopted_says_why(given, error, said):
    with pytest.raises(error, match=said):
        given()


@pytest.mark.parametrize("classes", [100, 1000])
def test_fab_goes_towards_the_classes_that_lead_and_no_others(classes, monkeypatch):
    """As many as it is told, less one, by the logits of the model that it is shown."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, classes)).eval()
    x, tried = images(4)[0], []
    ranks = model(x).argsort(1, descending=True)
    settings = {"steps": 5, "multi_targeted": True, "n_classes": 10}
    kind = pytest.importorskip("torchattacks").FAB
    own = kind.attack_single_run_targeted

    def targeted(self, *args, **kwargs):
        tried.append(self.target_class)
        return own(self, *args, **kwargs)

    monkeypatch.setattr(kind, "attack_single_run_targeted", targeted)
    near, far = (adopt(of_torchattacks("FAB", eps=eps, **settings)) for eps in (1e-6, 0.1))
    near.run(model, x, ranks[:, 0])
    assert tried == [*range(2, 11)]  # places by logit: nothing is so near that one is left out
    found = model(far.run(model, x, ranks[:, 0])).argmax(1)
    assert (ranks[:, 1:10] == found[:, None]).any(1).all()


def test_settings_tell_two_of_a_kind_apart():
    made = [adopt(of_torchattacks("PGD", eps=EPS, steps=steps)).as_dict() for steps in (3, 3, 4)]
    assert made[0] == made[1] != made[2]


def test_a_very_sure_model_is_attacked_all_the_way():
    """Its cross-entropy has no gradient in float32: its logits are shown as ours are."""
    sure = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2, bias=False))
    with torch.no_grad():
        sure[1].weight.copy_(torch.tensor([[1.0], [-1.0]]).expand(2, 192))
    x = torch.full((2, 3, 8, 8), 0.9)
    attack = adopt(of_torchattacks("PGD", eps=EPS, alpha=EPS, steps=2, random_start=False))
    attacked = attack.run(sure, x, torch.zeros(2).long())
    torch.testing.assert_close(attacked, x - EPS, rtol=0, atol=1e-6)
