"""A table of attacks, each on a defended model, a bare one, and a randomised one that is not ours.

A new attack is a row of ROWS: its configuration cut to a test's budget, and what it must see of a
defence.
"""

from __future__ import annotations

import dataclasses
import math
import os
import random
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cifar_files import write_cifar
from tolerances import rounding
from torch import nn
from toys import bent, labels, mid_images, smooth_classifier

from scoreopt_defense import EOT, DefendedModel, OneShot, ScoreOpt, attacks, gradients
from scoreopt_defense._half_precision import in_range
from scoreopt_defense.attacks import (
    APGD,
    ARTPGD,
    ATTACKS,
    PGD,
    SPSA,
    TABLE_5,
    Attack,
    AutoAttack,
    AutoPGD,
    Boundary,
    FoolboxPGD,
    MinimumNorm,
    MomentumPGD,
    Square,
    attack,
)  # fmt: skip
from scoreopt_defense.attacks.bounded import BoundedAttack, strongest
from scoreopt_defense.attacks.losses import LOSSES, divisors, dlr, margin
from scoreopt_defense.attacks.wrappers import Checked, finite
from scoreopt_defense.evaluation.suite.probes import Gradients

for library in ("art", "foolbox", "pyautoattack", "recoloradv", "torchattacks"):
    pytest.importorskip(library)
torch.optim.Adam(
    [torch.zeros(1)]
).zero_grad()  # torch's first one sets a variable of the environment


class Row(NamedTuple):
    """An attack, and what of a defence it asks: purifiers and gradient modes that take part."""

    attack: BoundedAttack
    purifiers: set[type] = {ScoreOpt}
    modes: set[type] = {gradients.OneShotGradient}


LINF, L2, SHORT = {"eps": 0.2}, {"eps": 1.0}, {"steps": 4, "eot": 2}
L1 = {"norm": "l1", "eps": 5.0}
BLACK_BOX = {"modes": set()}
TRANSFER = {"purifiers": set(), "modes": set()}
SURROGATE = {"purifiers": {OneShot}}

ROWS = {
    "transfer-pgd-linf": Row(attack("transfer-pgd-linf", steps=4, **LINF), **TRANSFER),
    "transfer-pgd-l2": Row(attack("transfer-pgd-l2", steps=4, **L2), **TRANSFER),
    "bpda-eot-linf": Row(attack("bpda-eot-linf", **LINF, **SHORT), modes={gradients.BPDA}),
    "pgd-eot-linf": Row(attack("pgd-eot-linf", **LINF, **SHORT)),
    "pgd-eot-l2": Row(attack("pgd-eot-l2", **L2, **SHORT)),
    "pgd-eot-exact": Row(
        attack("pgd-eot-linf", gradient="exact", restarts=2, random_start=True, **LINF, **SHORT),
        modes={gradients.Exact},
    ),
    "pgd-eot-surrogate-linf": Row(attack("pgd-eot-surrogate-linf", **LINF, **SHORT), **SURROGATE),
    "pgd-eot-surrogate-l2": Row(attack("pgd-eot-surrogate-l2", **L2, **SHORT), **SURROGATE),
    "pgd-eot-smoothed-linf": Row(
        attack("pgd-eot-smoothed-linf", **LINF, **SHORT), modes={gradients.Smoothed}
    ),
    "pgd-eot-smoothed-l2": Row(
        attack("pgd-eot-smoothed-l2", **L2, **SHORT), modes={gradients.Smoothed}
    ),
    "momentum-pgd-linf": Row(
        attack("momentum-pgd-linf", **LINF, **SHORT), modes={gradients.Smoothed}
    ),
    "momentum-pgd-l2": Row(attack("momentum-pgd-l2", **L2, **SHORT), modes={gradients.Smoothed}),
    "minimum-norm-linf": Row(
        attack("minimum-norm-linf", confidence=0.1, **LINF, **SHORT), modes={gradients.Smoothed}
    ),
    "minimum-norm-l2": Row(attack("minimum-norm-l2", eps=3.0, **SHORT), modes={gradients.Smoothed}),
    "minimum-norm-l1": Row(MinimumNorm(**L1, **SHORT)),
    "pgd-eot-shortened": Row(
        attack("pgd-eot-linf", gradient={"name": "shortened", "steps": 1}, **LINF, **SHORT),
        modes={gradients.Smoothed},
    ),
    "spsa": Row(attack("spsa", steps=4, samples=20, chunk=8, **LINF), **BLACK_BOX),
    "stadv": Row(attack("stadv", eps=0.2, steps=8, eot=2)),
    "recoloradv": Row(attack("recoloradv", eps=0.2, steps=8, eot=2)),
    "autoattack-rand-linf": Row(attack("autoattack-rand-linf", **LINF, **SHORT)),
    "autoattack-rand-l2": Row(attack("autoattack-rand-l2", **L2, **SHORT)),
    "apgd-linf": Row(APGD(**LINF, **SHORT)),
    "apgd-dlr-l2": Row(APGD(norm="l2", loss="dlr", restarts=2, **L2, **SHORT)),
    "square": Row(attack("square", steps=40, eot=2, **LINF), **BLACK_BOX),
    "square-l2": Row(attack("square", norm="l2", steps=40, eot=2, **L2), **BLACK_BOX),
    "art-linf": Row(ARTPGD(**LINF, **SHORT)),
    "art-l2": Row(ARTPGD(norm="l2", random_start=True, restarts=2, **L2, **SHORT)),
    "foolbox-linf": Row(FoolboxPGD(**LINF, **SHORT)),
    "foolbox-l2": Row(FoolboxPGD(norm="l2", random_start=True, **L2, **SHORT)),
    "foolbox-margin": Row(FoolboxPGD(loss="margin", **LINF, **SHORT)),
    "boundary": Row(Boundary(steps=4, bisections=3, **LINF), **TRANSFER),
    "boundary-l2": Row(Boundary(norm="l2", steps=4, bisections=3, **L2), **TRANSFER),
    "pgd-autocast": Row(PGD(autocast="bfloat16", **LINF, **SHORT)),
    "auto-pgd-targeted": Row(AutoPGD(loss="dlr-targeted", targets=2, **LINF, **SHORT)),
    "auto-pgd-l2": Row(AutoPGD(norm="l2", loss="dlr", **L2, **SHORT)),
    "auto-pgd-l1": Row(AutoPGD(**L1, steps=6, eot=2)),
    "auto-pgd-targeted-l1": Row(AutoPGD(loss="dlr-targeted", targets=3, **L1, steps=6, eot=1)),
    "foolbox-dlr": Row(FoolboxPGD(loss="dlr", restarts=2, random_start=True, **LINF, **SHORT)),
}

DTYPES = {"float32": torch.float32, "float64": torch.float64}


class Jitter(nn.Module):
    """A randomised module that is none of ours."""

    def __init__(self, classifier):
        super().__init__()
        self.classifier = classifier

    def forward(self, x):
        return self.classifier(x + 0.05 * torch.randn_like(x))


class Stubborn(nn.Module):
    """A classifier that nothing within reach changes the mind of, so that no attack stops early."""

    def __init__(self, classifier):
        super().__init__()
        self.classifier = classifier
        self.register_buffer("bias", torch.tensor([100.0, 0, 0, 0]))

    def forward(self, x):
        return self.classifier(x) + self.bias.to(x)


def purifier(dtype=torch.float32, **settings):
    return ScoreOpt(bent(dtype), steps=1, lr=0.01, sigma=(0.2, 0.4), **settings)


MODELS = {
    "bare": lambda classifier, dtype, seed: classifier,
    "defended": lambda classifier, dtype, seed: DefendedModel(
        classifier, purifier(dtype, seed=seed)
    ),
    "randomised": lambda classifier, dtype, seed: Jitter(classifier),
}

on_each_row = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
on_each_model = pytest.mark.parametrize("kind", MODELS)


def images(dtype=torch.float32):
    return mid_images(dtype=dtype)


def seed_everything(seed=0):
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002, ART draws from the global generator
    random.seed(seed)


def run(how, kind, x, y, *, classifier=None, seed=0):
    """The one function that runs an attack here: it may change nothing but the random state."""
    classifier = smooth_classifier(x.dtype) if classifier is None else classifier
    model = MODELS[kind](classifier, x.dtype, seed)
    before, x_before, y_before = state_of(model), x.clone(), y.clone()
    seed_everything(seed)
    x_adv = how.run(model, x, y)
    assert state_of(model) == before
    assert torch.equal(x, x_before)
    assert torch.equal(y, y_before)
    return x_adv


def state_of(model):
    """All that an attack must leave as it was."""
    weights = [*model.parameters(), *model.buffers()]
    return {
        "modes": [module.training for module in model.modules()],
        "values": [(p.data_ptr(), p._version, p.dtype, p.device, p.requires_grad) for p in weights],
        "gradients": [None if p.grad is None else p.grad.tolist() for p in weights],
        "environment": dict(os.environ),
        "default dtype": torch.get_default_dtype(),
        "recording": torch.is_grad_enabled(),
    }


def allowed(how, x):
    """Bounds on the change of each image, and the norms of it that they are bounds on."""
    if how.norm == "flow":
        # a pixel is a mean of those around it: of the 3 by 3 about its place, black outside, as the
        # furthest that it is looked up is less than a pixel; its own share is (1 - shift)^2
        shift = how.eps * x.shape[-1] / 2
        assert shift < 1
        around = F.unfold(F.pad(x, (1, 1, 1, 1)), 3).unflatten(1, (3, 9))
        spread = (around - x.flatten(2).unsqueeze(2)).abs().amax(2).reshape(x.shape)
        return (1 - (1 - shift) ** 2) * spread, lambda change: change.abs()
    if how.norm == "l2":
        return torch.tensor(how.eps), lambda change: change.flatten(1).norm(dim=1)
    if how.norm == "l1":
        # the roundings of a projection, and of the image plus it, are of each pixel
        bound = how.eps + rounding(torch.float32, 4 * x[0].numel())
        return torch.tensor(bound), lambda change: change.flatten(1).abs().sum(1)
    return torch.tensor(how.eps), lambda change: change.abs()


# ---- what each attack must do


@on_each_model
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@on_each_row
def test_it_stays_within_its_ball_and_the_images_range(row, dtype, kind, y):
    x = images(dtype)
    x_adv = run(row.attack, kind, x, y)
    assert (x_adv.shape, x_adv.dtype, x_adv.device) == (x.shape, x.dtype, x.device)
    assert not x_adv.requires_grad
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    bound, size = allowed(row.attack, x)
    # l2 sums the squares of 192 pixels; two libraries compute in float32 whatever the images are;
    # the grid of places has been through a dozen roundings
    assert (size(x_adv - x) <= bound + rounding(torch.float32, 14 + 8)).all()
    moved = (x_adv != x).any(dim=(1, 2, 3))
    assert moved.any() if isinstance(row.attack, MinimumNorm) else moved.all()  # some are wrong


@on_each_model
@on_each_row
def test_it_raises_the_loss_of_what_it_attacks(row, kind):
    x = images()
    judge = EOT(MODELS[kind](smooth_classifier(torch.float32), x.dtype, 1), 64)
    with torch.no_grad():
        y = judge(x).argmax(1)
        x_adv = run(row.attack, kind, x, y)
        losses = [F.cross_entropy(judge(images), y) for images in (x, x_adv)]
    assert losses[1] > losses[0]


@on_each_model
@on_each_row
def test_it_costs_its_stated_number_of_calls(row, kind):
    x, rows = images(), {"queries": 0, "gradients": 0}

    def count(module, args, logits):
        rows["queries"] += len(logits)
        if logits.requires_grad:
            logits.register_hook(lambda grad: rows.update(gradients=rows["gradients"] + len(grad)))

    stubborn = Stubborn(smooth_classifier(torch.float32)).eval()
    stubborn.register_forward_hook(count)
    run(row.attack, kind, x, torch.zeros(len(x), dtype=torch.long), classifier=stubborn)
    stated = {"queries": row.attack.queries, "gradients": row.attack.gradients}
    assert rows == {name: number * len(x) for name, number in stated.items()}


def test_an_attack_that_stops_early_costs_less(y):
    x, rows, classifier = images(), [], smooth_classifier(torch.float32)
    classifier.register_forward_hook(lambda module, args, logits: rows.append(len(logits)))
    wrong = (smooth_classifier(torch.float32)(x).argmax(1) + 1) % 4
    how = attack("square", steps=12, eot=2, **LINF)
    run(how, "bare", x, wrong, classifier=classifier)
    assert sum(rows) < how.queries * len(x)


@on_each_row
def test_it_is_shown_of_the_defence_what_it_states(row, y, monkeypatch):
    asked = {"purifiers": set(), "modes": set()}
    for kind in (ScoreOpt, OneShot):
        purify = kind.purify

        def noted_purify(self, *args, _purify=purify, **options):
            asked["purifiers"].add(type(self))
            return _purify(self, *args, **options)

        monkeypatch.setattr(kind, "purify", noted_purify)
    for mode in gradients.GRADIENTS.values():
        differentiate = mode.differentiate

        def noted_differentiate(self, *args, _differentiate=differentiate):
            asked["modes"].add(type(self))
            return _differentiate(self, *args)

        monkeypatch.setattr(mode, "differentiate", noted_differentiate)
    run(row.attack, "defended", images(), y)
    assert asked == {"purifiers": row.purifiers, "modes": row.modes}


@pytest.mark.parametrize("kind", ["bare", "randomised"])
@on_each_row
def test_a_default_type_is_the_models_and_no_librarys(row, kind, y):
    classifier, types = smooth_classifier(torch.float32), set()
    expected = run(row.attack, kind, images(), y, classifier=classifier)
    classifier.register_forward_pre_hook(lambda *_: types.add(torch.get_default_dtype()))
    torch.set_default_dtype(torch.float64)
    try:
        found = run(row.attack, kind, images(), y, classifier=classifier)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, expected)
    assert types == {torch.float64}


@on_each_row
def test_seeds_repeat_it(row, y):
    x = images()
    once, again, other = (
        run(row.attack, "defended", x, y, seed=seed)
        for seed in (3, 3, 4)
    )  # fmt: skip
    assert torch.equal(once, again)
    assert not torch.equal(once, other)


@on_each_row
def test_modes_and_gradients_of_the_users_are_left_as_they_were(row, y):
    x, classifier = images(), nn.Sequential(smooth_classifier(torch.float32), nn.Dropout(0.5))
    classifier[1].train()
    classifier[0][1].bias.requires_grad_(False)
    F.cross_entropy(classifier(x), y).backward()
    with torch.no_grad():
        run(row.attack, "bare", x, y, classifier=classifier)
    with torch.inference_mode():
        x_adv = row.attack.run(classifier, x.clone(), y)
    assert not x_adv.is_inference()


def test_an_error_on_the_way_leaves_weights_as_they_were(y):
    def fail(module, args):
        raise RuntimeError("on the way")

    classifier = smooth_classifier(torch.float32)
    classifier.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="on the way"):
        PGD(eot=1).run(classifier, images(), y)
    assert all(p.requires_grad for p in classifier.parameters())


# ---- one library against another, and the parts


@pytest.mark.parametrize("other", [ARTPGD, FoolboxPGD])
def test_libraries_agree_on_projected_gradient_ascent(other, y):
    """On a fixed smooth function the sign of a gradient is the same by every library."""
    x, settings = images(), {"eps": 0.2, "eot": 1, "steps": 5}
    torch.testing.assert_close(
        run(other(**settings), "bare", x, y), run(PGD(**settings), "bare", x, y),
        rtol=0, atol=rounding(torch.float32, 3 * 5),
    )  # fmt: skip


@pytest.mark.parametrize("norm", ["linf", "l1"])
def test_a_targeted_run_goes_to_a_class_that_leads(norm):
    """Of a hundred classes, on a linear model, where the others are as near as their logits."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 100))
    x = images()
    logits = model(x)
    ranks = logits.argsort(1, descending=True)
    eps = {"linf": 0.02, "l1": 1.5}[norm]  # three times the gap, and no more than reaches those
    how = AutoPGD(norm=norm, eps=eps, eot=1, steps=10, loss="dlr-targeted", targets=3)
    found = model(run(how, "bare", x, ranks[:, 0], classifier=model)).argmax(1)
    assert (ranks[:, 1:4] == found[:, None]).any(1).all()
    # more targets than there are other classes are all of them
    few = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    y = few(x).argmax(1)
    assert (few(how.replace(targets=9, eps=10 * eps).run(few, x, y)).argmax(1) != y).all()


@pytest.mark.parametrize("classes", [100, 1000])
def test_of_many_classes_the_nine_that_lead_are_the_targets(classes):
    """Of a linear model again; each of nine runs, and no more, is paid for."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, classes))
    x, asked = images(), []
    ranks = model(x).argsort(1, descending=True)
    how = AutoPGD(eps=0.04, eot=1, steps=10, loss="dlr-targeted")
    model.register_forward_hook(lambda module, args, logits: asked.append(len(logits)))
    found = model(how.run(model, x, ranks[:, 0])).argmax(1)
    assert sum(asked[:-1]) == len(x) * how.queries == len(x) * (1 + 9 * (10 + 1 + 2))
    assert (ranks[:, 1:10] == found[:, None]).any(1).all()


def test_losses_are_those_of_the_library_that_has_them(y):
    logits = 3 * torch.randn(len(y), 4, generator=torch.Generator().manual_seed(0))
    logits[0] = 1.0  # all equal: the ratio is 0 over a tiny number
    library = pytest.importorskip("torchattacks").APGD(smooth_classifier(torch.float32), loss="dlr")
    torch.testing.assert_close(
        dlr(logits, y), library.dlr_loss(logits, y), rtol=rounding(torch.float32, 3), atol=0
    )
    others = logits.masked_fill(F.one_hot(y, 4).bool(), -torch.inf).max(1).values
    assert torch.equal(margin(logits, y), others - logits[range(len(y)), y])
    with pytest.raises(ValueError, match="'dlr' needs at least 3 classes, got 2"):
        dlr(logits[:, :2], y.clamp(max=1))


@pytest.mark.parametrize("loss", LOSSES)
def test_one_step_follows_the_gradient_of_its_loss(loss, y):
    """The closed form: the image plus a step along the sign, by plain autograd."""
    x = images().requires_grad_()
    LOSSES[loss](smooth_classifier(torch.float32)(x), y).sum().backward()
    how = FoolboxPGD(eps=0.2, eot=1, steps=1, loss=loss)
    want = (x + 0.25 * 0.2 * x.grad.sign()).detach().clamp(0, 1)
    torch.testing.assert_close(
        run(how, "bare", images(), y), want, rtol=0, atol=rounding(torch.float32, 3)
    )


def test_a_model_on_another_device_is_said_and_not_moved(y):
    model = smooth_classifier(torch.float32).to("meta")
    for kind in (PGD, FoolboxPGD, ARTPGD):
        with pytest.raises(ValueError, match="the model is on meta and the images are on cpu"):
            kind().run(model, images(), y)


class Sure(nn.Module):
    """Of two classes, the other one's probability about e to the -60."""

    def forward(self, x):
        z = 30 + x.flatten(1).mean(1) - 0.5
        return torch.stack([z, -z], 1)


class Gamma(nn.Module):
    """A square root before a classifier: at a black pixel its slope is infinite."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.training = smooth_classifier(torch.float32, channels=1), False

    def forward(self, x):
        return self.net(x.sqrt())


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("kind", [PGD, FoolboxPGD, MomentumPGD, APGD])
def test_an_infinite_slope_at_one_pixel_stops_no_step(kind, norm):
    """A step over the gradient's mean size stood still, and one of l2 had no length."""
    x = mid_images(channels=1, dtype=torch.float32)
    x[:, :, 0, 0] = 0
    net, eps = Gamma(), {"linf": 0.1, "l2": 1.0}[norm]
    y = net(x).argmax(1)
    before = F.cross_entropy(net(x), y, reduction="none")
    attacked = kind(gradient="as-it-is", norm=norm, eps=eps, steps=10, eot=1).run(net, x, y)
    assert ((attacked - x).flatten(1)[:, 1:].abs().amax(1) > 0.01).all()
    assert (F.cross_entropy(net(attacked), y, reduction="none") > before).all()


def test_of_a_gradient_what_is_finite_leads():
    inf, nan = math.inf, math.nan
    rows = [[1, -3, inf, -inf], [nan, 2, 0, inf], [1, 2, 3, 4], [0, 0, 0, 0], [nan, nan, inf, 0]]
    made = [[1, -3, 3, -3], [0, 2, 0, 2], [1, 2, 3, 4], [0, 0, 0, 0]]
    x = torch.rand(5, 1, 2, 2, requires_grad=True)
    finite(nn.Identity(), x).backward(torch.tensor(rows).float().reshape(x.shape))
    assert x.grad[:4].flatten(1).tolist() == made
    assert (x.grad[4].abs() == 1).all()  # in any direction


class Undefined(nn.Module):
    """Divides by an image's spread: of a flat image no slope is a number."""

    def __init__(self, net) -> None:
        super().__init__()
        self.net, self.training = net, False

    def forward(self, x):
        return self.net((x - 0.5) / (x.var((1, 2, 3), keepdim=True).sqrt() + 1e-3))


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("kind", [PGD, FoolboxPGD, MomentumPGD, APGD])
def test_an_image_without_any_slope_is_left_at_random_and_harms_no_other(kind, norm):
    x = mid_images(channels=1, dtype=torch.float32)
    x[1] = 0.5
    net, eps = Undefined(smooth_classifier(torch.float32, channels=1)), {"linf": 0.1, "l2": 1.0}
    y = net(x).argmax(1)
    before = F.cross_entropy(net(x), y, reduction="none")
    how = kind(gradient="as-it-is", norm=norm, eps=eps[norm], steps=10, eot=1)
    torch.manual_seed(0)
    after = F.cross_entropy(net(how.run(net, x, y)), y, reduction="none")
    assert (after > before).all()


class InHalf(nn.Module):
    """Linear, in float16: class 0 leads by 14 at grey, so that the loss's slope is e to the -14."""

    def __init__(self) -> None:
        super().__init__()
        weight = torch.randn(192, generator=torch.Generator().manual_seed(0)).sign() / 1000
        self.register_buffer("weight", weight.half())
        self.training = False

    def forward(self, x):
        lead = 14 + (x.half() - 0.5).flatten(1) @ self.weight
        return torch.stack([lead, torch.zeros_like(lead)], 1)


@pytest.mark.parametrize("kind", [PGD, ARTPGD, FoolboxPGD, MomentumPGD])
def test_a_slope_that_float16_has_no_number_for_is_followed(kind):
    x, net = torch.full((3, 3, 8, 8), 0.5), InHalf()
    attacked = kind(gradient="as-it-is", eps=0.1, steps=8, eot=1).run(net, x, torch.zeros(3).long())
    went = (attacked - x).flatten(1) * -net.weight.float().sign()
    torch.testing.assert_close(
        went, torch.full_like(went, 0.1), rtol=0, atol=rounding(torch.float32, 14)
    )


def test_a_gradient_is_scaled_by_a_power_of_two():
    inf, nan = math.inf, math.nan
    rows = torch.tensor(
        [[3e-9, -1e-9], [0.75, 0.1], [1.0, -1.9], [0, 0], [inf, 1], [nan, 1], [2, 9]]
    )
    scaled, power = in_range(rows)
    assert power.flatten().tolist() == [2.0**-29, 0.5, 1, 1, 1, 1, 8]
    torch.testing.assert_close(scaled * power, rows, rtol=0, atol=0, equal_nan=True)


def test_a_later_draw_that_is_surer_has_its_logits_divided_too():
    y = torch.tensor([0, 0])
    draws = iter([[[2.0, 0], [64, 0]], [[200, 0], [32, 0]], [[2, 0], [120, 0]]])
    checked = Checked(y, of="it", classes=2, scale_free=True, by_direction=True)

    def model(x):
        return torch.tensor(next(draws)) + 0 * x.sum()

    x = torch.zeros(2, 1, 2, 2, requires_grad=True)
    shown = [checked(model, x)[:, 0].tolist() for _ in range(3)]
    assert shown[:2] == [[2, 8], [8, 4]]
    assert shown[2] == [pytest.approx(2 / 25), 15]  # of 16 and more there is no gradient


@pytest.mark.parametrize("how", [Square(), SPSA(), APGD(), AutoPGD(), MinimumNorm(), AutoAttack()])
def test_what_compares_answers_computes_in_full_unless_it_is_told_not_to(how):
    assert how.replace(autocast="auto").autocast is None
    assert how.replace(autocast="bfloat16").autocast == "bfloat16"
    assert MomentumPGD(autocast="auto").autocast == "auto"


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("kind", [PGD, FoolboxPGD, APGD, AutoPGD, Square])
def test_images_of_another_memory_format_are_attacked(kind, norm, y):
    x = images().to(memory_format=torch.channels_last)
    found = run(kind(norm=norm, eps=0.2, eot=1, steps=4), "bare", x, y)
    assert not torch.equal(found, x)


@pytest.mark.parametrize("kind", [PGD, FoolboxPGD, ARTPGD, APGD])
def test_a_very_sure_classifiers_gradient_is_followed_all_the_way(kind):
    x = images()
    x_adv = kind(norm="l2", eps=0.1, eot=1, steps=4).run(Sure(), x, torch.zeros(len(x)).long())
    went = (x_adv - x).flatten(1).norm(dim=1)
    torch.testing.assert_close(
        went, torch.full_like(went, 0.1), rtol=0, atol=rounding(torch.float32, 14)
    )


class Linear(nn.Module):
    """Class 0 leads class 1 by ``lead`` at an image of 0.5 everywhere, and class 2 by ten times."""

    def __init__(self, lead):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(3, 192, generator=generator))
        self.lead = lead

    @property
    def way(self):
        """From class 0 to class 1, as an image."""
        return (self.weight[1] - self.weight[0]).detach().reshape(1, 3, 8, 8)

    def forward(self, x):
        ahead = torch.tensor([10.0, 9.0, 0.0])
        return self.lead * (ahead + (x - 0.5).flatten(1) @ self.weight.T / 100)


@pytest.mark.parametrize("confidence", [0.0, 0.5])
@pytest.mark.parametrize(
    ("norm", "eps", "dual"), [("linf", 0.1, 1), ("l2", 1.0, 2), ("l1", 9.0, math.inf)]
)
def test_the_nearest_wrong_image_is_as_far_as_the_closed_form_says(norm, eps, dual, confidence):
    """A linear lead over its gradient's dual norm; the radius falls by at most 5 % a step."""

    class Lead(nn.Module):
        def forward(self, x):
            lead = 0.5 - (x - 0.5).flatten(1) @ weight
            return torch.stack([lead, torch.zeros_like(lead)], 1)

    weight = torch.randn(192, generator=torch.Generator().manual_seed(0))
    x, y = torch.full((2, 3, 8, 8), 0.5), torch.zeros(2).long()
    nearest = float((0.5 + confidence) / weight.norm(dual))
    how = MinimumNorm(norm=norm, eps=eps, eot=1, confidence=confidence)
    far = how.distances(x, how.run(Lead(), x, y))
    assert (far >= nearest * (1 - 1e-5)).all()
    assert (far <= nearest * 1.05).all()
    # what is further than the radius is scaled back to it, and not said to be outside
    half = how.replace(eps=nearest / 2)
    far = half.distances(x, half.run(Lead(), x, y))
    assert (far <= half.eps).all()
    torch.testing.assert_close(far, torch.full((2,), half.eps), rtol=1e-4, atol=0)


SURE_KINDS = [PGD, FoolboxPGD, ARTPGD, APGD]


@pytest.mark.parametrize("lead", [5.0, 50.0, 1e3, 1e6])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("kind", SURE_KINDS)
def test_a_linear_classifier_is_attacked_along_its_weights_however_sure_it_is(kind, norm, lead):
    """The closed form: the ball's point farthest along the way from one class to the other.

    Class 2 has a share of at most e to the -70 of the gradient. In float32 a cross-entropy knows of
    class 0 no more from a lead of 17 on, and of nothing from 103 on.
    """
    model, x, eps = Linear(lead), torch.full((2, 3, 8, 8), 0.5), 0.01
    x_adv = kind(norm=norm, eps=eps, eot=1, steps=40).run(model, x, torch.zeros(2).long())
    if norm == "linf":
        want = x + eps * model.way.sign()
        torch.testing.assert_close(x_adv, want, rtol=0, atol=rounding(torch.float32, 3 * 40))
    else:
        # of a random start, across the way, each of APGD's first 8 steps leaves at most a half; an
        # angle of 2^-8 costs 1e-5 of the way; the gradient itself has three digits
        went = ((x_adv - x) * model.way / model.way.norm()).flatten(1).sum(1)
        torch.testing.assert_close(went, torch.full((2,), eps), rtol=1e-3, atol=0)


@pytest.mark.parametrize("lead", [1.0, 50.0, 1e6])
def test_the_gradient_of_a_very_sure_classifier_is_measured_as_attacks_take_it(lead):
    model, x, y = Linear(lead), torch.full((2, 3, 8, 8), 0.5), torch.zeros(2).long()
    found = Gradients().measure(model, x, y)
    assert found["as-it-is: zero"].tolist() == [0, 0]
    ours = DefendedModel(model.eval(), OneShot(bent(torch.float32), sigma=0.3))
    found = Gradients().measure(ours, x, y)
    assert max(share.max() for name, share in found.items() if name.endswith(": zero")) < 0.5


def test_of_ordinary_logits_what_an_attack_is_shown_has_the_models_bits(y):
    """A lead below 15.9 is divided by 1; another image's does not depend on its neighbours.

    Its gradient has them up to a power of two.
    """
    shown = []

    @dataclass(frozen=True, kw_only=True)
    class Watch(BoundedAttack):
        def attack(self, model, x, y):
            shown.append(model)
            return x

    y = torch.zeros(2, dtype=torch.long)
    x = torch.full((2, 3, 8, 8), 0.5)
    for lead in (-100.0, 0.1, 5.0, 15.9, 16.0, 1e6):
        model = Linear(lead)
        Watch(eot=1).run(model, x, y)
        found = []
        for asked in (shown[-1], model):
            leaf = x.clone().requires_grad_()
            logits = asked(leaf)
            F.cross_entropy(logits, y, reduction="sum").backward()
            found.append((logits.detach(), in_range(leaf.grad)[0]))
        assert torch.equal(found[0][0], found[1][0]) == (lead < 15.94)
        assert torch.equal(found[0][1], found[1][1]) == (lead < 15.94)
        assert torch.equal(found[0][0].argmax(1), found[1][0].argmax(1))
        with torch.no_grad():
            assert torch.equal(shown[-1](x), model(x))


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("random_start", [False, True])
def test_a_start_is_where_it_begins(norm, random_start, y):
    """Two steps are one step and, from what that found, another."""
    x, classifier = images(), smooth_classifier(torch.float32)
    how = FoolboxPGD(norm=norm, eps=0.4, eot=1, steps=1)
    first = how.run(classifier, x, y)
    begun = how.replace(random_start=random_start).run(classifier, x, y, start=first)
    want = how.replace(steps=2).run(classifier, x, y)
    torch.testing.assert_close(begun, want, rtol=0, atol=rounding(torch.float32, 8))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_start_outside_the_ball_is_projected_onto_it(norm, y):
    x = images()
    how = FoolboxPGD(norm=norm, eps=0.1, eot=1, steps=1, step_size=1e-6)
    x_adv = how.run(smooth_classifier(torch.float32), x, y, start=1 - x)
    bound, size = allowed(how, x)
    sizes = size(x_adv - x)
    assert (sizes <= bound + rounding(torch.float32, 14)).all()
    assert sizes.amax() > 0.099


@pytest.mark.parametrize(
    ("how", "start", "message"),
    [
        (PGD(), images(), "start must be None for PGD, which begins where its library does"),
        (FoolboxPGD(), images()[:2], r"start must have the images' shape \(4, .*got \(2, 3"),
        (FoolboxPGD(), 255 * images(), "divide pixels by 255"),
    ],
)
def test_a_start_is_checked(how, start, message, y):
    with pytest.raises(ValueError, match=message):
        how.run(smooth_classifier(torch.float32), images(), y, start=start)


def test_the_strongest_candidate_is_taken_image_by_image():
    logits = nn.Flatten()
    weak, strong = torch.zeros(2, 3, 1, 1), torch.zeros(2, 3, 1, 1)
    weak[:, 0], strong[:, 0] = 2.0, 1.0  # margins for class 0
    mixed = torch.stack([weak[0], strong[1]]), torch.stack([strong[0], weak[1]])
    y = torch.zeros(2, dtype=torch.long)
    assert torch.equal(strongest(logits, mixed, y), strong)
    assert strongest(logits, [weak, strong], y + 1)[0, 0] == 2.0  # where class 0 is the other one


def test_restarts_leave_no_image_less_broken(y):
    """The first restart begins as the only one does, so that its results are among the others'."""
    x, judge = images(), smooth_classifier(torch.float32)
    how = PGD(eps=0.2, eot=1, steps=2, random_start=True)
    margins = []
    for restarts in (1, 4):
        x_adv = run(how.replace(restarts=restarts), "bare", x, y)
        logits = judge(x_adv)
        others = logits.masked_fill(F.one_hot(y, 4).bool(), -torch.inf).max(1).values
        margins.append(logits[range(4), y] - others)
    assert (margins[1] <= margins[0] + rounding(torch.float32, 30, logits.abs().max())).all()
    assert (margins[1] < margins[0] - 1e-3).any()


@pytest.mark.parametrize("name", ["autoattack-rand-linf", "square"])
def test_an_image_that_is_not_broken_comes_back_attacked(name):
    """The library returns it clean, and a random defence would be judged on clean images."""
    x, y = images(), torch.zeros(4, dtype=torch.long)
    stubborn = Stubborn(smooth_classifier(torch.float32)).eval()
    x_adv = run(attack(name, steps=20, eot=1, **LINF), "bare", x, y, classifier=stubborn)
    logits = stubborn(x_adv)
    assert (logits.argmax(1) == y).all()
    margins = [f[:, 0] - f[:, 1:].max(1).values for f in (stubborn(x), logits)]
    assert (margins[1] < margins[0] - 0.01).all()


@pytest.mark.parametrize("how", [ATTACKS["autoattack-rand-linf"], APGD(loss="dlr")])
def test_of_two_classes_there_is_no_dlr_loss(how):
    x, y = images(), torch.tensor([0, 1, 0, 1])
    classifier = smooth_classifier(torch.float32, classes=2)
    message = f"{type(how).__name__} needs at least 3 classes, got 2; of two, take APGD with loss"
    with pytest.raises(ValueError, match=message):
        run(how.replace(**LINF, **SHORT), "bare", x, y, classifier=classifier)
    run(APGD(**LINF, **SHORT), "bare", x, y, classifier=classifier)


@on_each_row
def test_a_label_that_is_no_class_is_named(row):
    labels = torch.tensor([0, 1, 4, 2])
    if row.attack.calls + row.attack.differentiated:
        with pytest.raises(
            ValueError, match="labels must be from 0 to 3, the model's classes, got 4"
        ):
            run(row.attack, "bare", images(), labels)


def test_logits_that_another_class_cannot_have_are_left_as_they_are():
    logits = torch.tensor([[3.0, -torch.inf, -torch.inf], [3.0, 2.0, -torch.inf], [50.0, 2, 1]])
    assert divisors(logits, torch.zeros(3).long()).flatten().tolist() == [1, 1, 6]
    assert divisors(logits.half(), torch.zeros(3).long()).flatten().tolist() == [1, 1, 6]


class Scribbling(BoundedAttack):
    """Writes into all that it is given, and returns what it was given first."""

    takes_start = True

    def attack(self, model, x, y, *, start=None):
        found = x if start is None else start
        found = found.clone()
        for given in (x, y, start):
            if given is not None:
                given.zero_()
        return found


def test_each_restart_is_given_the_images_and_labels_anew(y):
    x = images()
    how = Scribbling(eps=0.2, eot=1, restarts=3)
    assert torch.equal(run(how, "bare", x, y), x)
    found = how.run(smooth_classifier(torch.float32), x, y, start=1 - x)
    assert torch.equal(found, 1 - x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_logits_of_half_precision_are_shown_in_the_images(dtype, y):
    class Half(nn.Module):
        def forward(self, x):
            return smooth_classifier(torch.float32)(x).to(dtype)

    for kind in SURE_KINDS:
        x_adv = kind(eps=0.2, eot=1, steps=4).run(Half(), images(), y)
        assert x_adv.dtype == torch.float32


def test_an_index_error_of_the_models_is_no_missing_loss(y):
    """AutoAttack would be APGD on cross-entropy alone, without a word."""

    class Fails(nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            if self.calls > 8:  # in the second of the two runs
                raise IndexError("a model's own")
            return smooth_classifier(torch.float32)(x)

    with pytest.raises(IndexError, match="a model's own"):
        attack("autoattack-rand-linf", steps=4, eot=1).run(Fails(), images(), y)


def test_the_sampled_answer_is_the_mean_of_eot_evaluations(y):
    """So that the loss is that of the mean logits, as the authors' code has it."""
    seen = []

    @dataclass(frozen=True, kw_only=True)
    class Watch(BoundedAttack):
        def attack(self, model, x, y):
            seen.append(model)
            return x

    model = DefendedModel(smooth_classifier(torch.float32), purifier(seed=0), votes=3)
    Watch(eot=5, gradient="bpda").run(model, images(), y)
    (shown,) = (outer.model.model for outer in seen)
    assert isinstance(shown, EOT)
    assert shown.samples == 5
    assert shown.model.votes == 3
    assert isinstance(shown.model.purifier.gradient, gradients.BPDA)
    assert not shown.training


def test_a_watch_of_the_defended_model_is_told_what_an_attack_sends_it(y):
    x, sent = images(), []
    model = DefendedModel(smooth_classifier(torch.float32), purifier(seed=0))
    watched = model.watched(lambda x, logits: sent.append(x.detach().clone()))
    x_adv = PGD(eps=0.2, eot=3, steps=4).run(watched, x, y)
    assert torch.equal(sent[0], x)
    assert [len(images) for images in sent] == [4] * 4  # a step each, of three evaluations
    assert (x_adv - sent[-1]).abs().max() <= 0.05 + rounding(torch.float32, 3)


def test_a_gradient_of_the_users_own_is_shown(y):
    asked = []

    @dataclass(frozen=True)
    class MinusIdentity:
        def differentiate(self, purification, x_a):
            asked.append(len(x_a))
            return purification(x_a), lambda grad: -grad

    how = PGD(gradient=MinusIdentity(), eps=0.2, eot=2, steps=3)
    run(how, "defended", images(), y)
    assert asked == [2 * 4] * 3
    assert how.as_dict()["gradient"]["name"].endswith("MinusIdentity")


def test_a_purifier_inside_a_foreign_module_cannot_be_shown_in_a_mode(y):
    inside = DefendedModel(smooth_classifier(torch.float32), purifier(seed=0, gradient="bpda"))
    model = nn.Sequential(nn.Identity(), inside)
    message = r"BPDA\(\) cannot be set of a purifier inside a Sequential.*gradient='as-it-is'"
    with pytest.raises(ValueError, match=message):
        attack("bpda-eot-linf", **SHORT).run(model, images(), y)
    x_adv = attack("bpda-eot-linf", gradient="as-it-is", **SHORT).run(model, images(), y)
    assert (x_adv != images()).any()


# ---- configurations


PAPER = {  # norm, eps, steps, eot, queries: appendix C.3, sections 4.1 to 4.3
    "transfer-pgd-linf": ("linf", 8 / 255, 40, 1, 40),
    "transfer-pgd-l2": ("l2", 0.5, 40, 1, 40),
    "bpda-eot-linf": ("linf", 8 / 255, 50, 15, 750),
    "pgd-eot-linf": ("linf", 8 / 255, 20, 20, 400),
    "pgd-eot-l2": ("l2", 0.5, 20, 20, 400),
    "pgd-eot-surrogate-linf": ("linf", 8 / 255, 20, 20, 400),
    "pgd-eot-surrogate-l2": ("l2", 0.5, 20, 20, 400),
    "pgd-eot-smoothed-linf": ("linf", 8 / 255, 40, 10, 400),
    "pgd-eot-smoothed-l2": ("l2", 0.5, 40, 10, 400),
    "momentum-pgd-linf": ("linf", 8 / 255, 400, 1, 400),
    "momentum-pgd-l2": ("l2", 0.5, 400, 1, 400),
    "minimum-norm-linf": ("linf", 16 / 255, 100, 4, 404),
    "minimum-norm-l2": ("l2", 1.0, 100, 4, 404),
    "spsa": ("linf", 8 / 255, 5, 1, 1280),
    "stadv": ("flow", 0.05, 100, 20, 2000),
    "recoloradv": ("color", 0.06, 100, 20, 2000),
    "autoattack-rand-linf": ("linf", 8 / 255, 100, 20, 4120),
    "autoattack-rand-l2": ("l2", 0.5, 100, 20, 4120),
    "square": ("linf", 8 / 255, 124, 8, 1000),
}


def test_named_configurations_have_the_papers_budgets():
    assert set(ATTACKS) == {*PAPER, "corruptions"}
    for name, budget in PAPER.items():
        paper = attacks.paper_budget(name)
        assert tuple(paper[key] for key in ("norm", "eps", "steps", "eot", "queries")) == budget
        assert f"``{name}``" in attacks.__doc__
        assert paper.get("step_size", 0.25) == (0.5 if "momentum" in name else 0.25)
        assert paper["preset"] == name


@pytest.mark.parametrize("name", ATTACKS)
def test_overrides_stand_beside_the_papers_budget(name):
    change = {"severity": 2} if name == "corruptions" else {"eps": 0.25}
    changed = attack(name, **change)
    both = attacks.budgets(changed)
    assert both["paper"] == attacks.paper_budget(name)
    assert both["used"] | dict(both["paper"], threat=changed.threat) | change == both["used"]
    assert ATTACKS[name] == attack(name)  # a twin never changes its parent
    with pytest.raises(dataclasses.FrozenInstanceError):
        changed.preset = "other"


def test_an_attack_without_a_name_has_no_budget_of_the_papers():
    assert attacks.budgets(PGD())["paper"] is None


@pytest.mark.parametrize("how", [*ATTACKS.values(), *(row.attack for row in ROWS.values())])
def test_it_comes_back_from_its_json(how):
    assert attacks.from_dict(how.as_dict()) == how


def test_a_gradient_with_settings_is_a_name_and_those():
    """As a configuration file has it."""
    made = attack("pgd-eot-linf", gradient={"name": "smoothed", "c": 0.5})
    assert made == attack("pgd-eot-linf", gradient=gradients.Smoothed(c=0.5))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: attack("pgd"), ValueError, r"attack must be one of \['transfer-.*got 'pgd'"),
        (lambda: attacks.paper_budget("pgd"), ValueError, "attack must be one of"),
        (lambda: attack("spsa", queries=9), TypeError, "no setting 'queries'; there are"),
        (
            lambda: PGD(eps=8),
            ValueError,
            r"eps must be above 0 and at most 1 in norm 'linf'.*got 8",
        ),
        (lambda: PGD(eps=127.5, norm="l2"), ValueError, "eps must be above 0 and at most 10 in"),
        (lambda: PGD(eps=0), ValueError, "eps must be a finite number above 0, got 0"),
        (lambda: PGD(eps="8/255"), ValueError, "eps must be a finite number above 0, got '8/255'"),
        (lambda: PGD(norm="l1"), ValueError, r"norm must be one of \['linf', 'l2'\], got 'l1'"),
        (lambda: attack("spsa", norm="l2"), ValueError, r"norm must be one of \['linf'\]"),
        (lambda: attack("stadv", norm="linf"), ValueError, r"norm must be one of \['flow'\]"),
        (lambda: PGD(gradient="bdpa"), ValueError, "gradient must be one of.*'surrogate'.*'bdpa'"),
        (lambda: PGD(gradient=8), ValueError, "gradient must be one of.*GradientOrView"),
        (lambda: PGD(gradient={"c": 1}), ValueError, "gradient must be one of.*got None"),
        (lambda: PGD(steps=0), ValueError, "steps must be a whole number of at least 1, got 0"),
        (lambda: PGD(eot=1.5), ValueError, "eot must be a whole number of at least 1, got 1.5"),
        (lambda: PGD(restarts=0), ValueError, "restarts must be a whole number"),
        (
            lambda: FoolboxPGD(loss="ce"),
            ValueError,
            r"loss must be one of \['cross-entropy', 'margin', 'dlr'\], got 'ce'",
        ),
        (
            lambda: AutoPGD(loss="margin"),
            ValueError,
            r"loss must be one of \['ce', 'dlr', 'dlr-targeted'\], got 'margin'",
        ),
        (lambda: AutoPGD(targets=0), ValueError, "targets must be a whole number of at least 1"),
        (
            lambda: AutoPGD(norm="l1", eps=12, steps=4),
            ValueError,
            "steps must be a whole number of at least 5",
        ),
        (lambda: MinimumNorm(norm="l1", eps=12 * 255), ValueError, "at most 255 in norm 'l1'"),
        (lambda: APGD(loss="margin"), ValueError, r"loss must be one of \['ce', 'dlr'\]"),
        (lambda: PGD(step_size=0), ValueError, "step_size must be a finite number above 0"),
        (lambda: attack("spsa", samples=0), ValueError, "samples must be a whole number"),
        (lambda: attack("spsa", delta=-1), ValueError, "delta must be a finite number above 0"),
        (lambda: attack("stadv", lr=0), ValueError, "lr must be a finite number above 0"),
        (lambda: attack("corruptions", severity=6), ValueError, "severity must be one of"),
        (lambda: attack("corruptions", corruption="rain"), ValueError, "corruption must be one"),
        (lambda: attack("corruptions", files="here"), ValueError, "files and clean go together"),
        (lambda: attacks.from_dict({"kind": "Pgd"}), ValueError, "kind must be one of.*'PGD'"),
    ],
)
def test_wrong_settings_are_refused_by_name(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (255 * images(), torch.zeros(4).long(), "divide pixels by 255"),
        (images()[0], torch.zeros(4).long(), "must have shape"),
        (
            images(),
            torch.zeros(3).long(),
            r"labels must be integers of shape \(4,\), got torch.int",
        ),
        (images(), torch.zeros(4), "labels must be integers .* got torch.float32"),
        (images(), torch.zeros(4).bool(), "labels must be integers .* got torch.bool"),
        (images(), [0, 0, 0, 0], "labels must be integers .* got list"),
        (images(), torch.tensor([0, 1, -100, 2]), "labels must be classes from 0 on, got -100"),
    ],
)
def test_images_and_labels_are_checked(x, y, message):
    with pytest.raises(ValueError, match=message):
        PGD().run(smooth_classifier(torch.float32), x, y)


@pytest.mark.parametrize("kind", [torch.int32, torch.uint8])
def test_labels_may_be_of_any_whole_type(kind, y):
    model = smooth_classifier(torch.float32)
    found = PGD(random_start=False).run(model, images(), y.to(kind))
    assert torch.equal(found, PGD(random_start=False).run(model, images(), y))


def test_an_empty_batch_comes_back(y):
    assert PGD().run(smooth_classifier(torch.float32), images()[:0], y[:0]).shape == (0, 3, 8, 8)


def test_grey_images_are_refused_by_recoloradv(y):
    with pytest.raises(ValueError, match=r"three channels, got shape \(4, 1, 8, 8\)"):
        attack("recoloradv").run(smooth_classifier(torch.float32), images()[:, :1], y)


def test_pixels_of_one_color_are_recoloured_alike(y):
    """Black and white among them, where the colour space's own conversion divides by nothing."""
    x = torch.tensor([0.0, 0.5, 1.0])[torch.arange(4 * 64).reshape(4, 1, 8, 8) % 3]
    x = x.expand(-1, 3, -1, -1).contiguous()
    recoloured = attack("recoloradv", eps=0.2, steps=4, eot=1)
    found = recoloured.run(smooth_classifier(torch.float32), x, y)
    assert found.isfinite().all()
    assert (found - x).abs().amax() > 0.01
    for image, was in zip(found, x[:, 0], strict=True):
        for value in was.unique():
            alike = image[:, was == value]
            assert (alike - alike[:, :1]).abs().max() == 0


def test_images_that_are_not_square_are_refused_by_stadv(y):
    with pytest.raises(ValueError, match=r"square images, got shape \(4, 3, 8, 6\)"):
        attack("stadv").run(smooth_classifier(torch.float32), images()[..., :6], y)


# ---- corruptions


def natural_images(count=4, dtype=torch.float32):
    """Smooth ones, since corruptions of noise are hardly ones."""
    coarse = 2.5 * mid_images(count, size=4, dtype=dtype) - 0.7
    return F.interpolate(coarse, size=32, mode="bicubic").clamp(0, 1)


@pytest.mark.parametrize("name", TABLE_5)
def test_corruptions_are_seeded_and_grow_with_severity(name, y):
    pytest.importorskip("imagecorruptions", exc_type=ImportError)  # OpenCV needs libGL
    x, classifier = natural_images(), smooth_classifier(torch.float32, size=32)
    made = {}
    for severity in (1, 5):
        how = attack("corruptions", corruption=name, severity=severity)
        once, again, other = (
            run(how, "bare", x, y, classifier=classifier, seed=s) for s in (0, 0, 1)
        )
        assert torch.equal(once, again)
        fixed = name in ("pixelate", "jpeg_compression", "brightness")
        assert torch.equal(once, other) == fixed
        assert (once.shape, once.dtype) == (x.shape, x.dtype)
        assert once.min() >= 0
        assert once.max() <= 1
        made[severity] = (once - x).abs().mean()
    assert 0 < made[1] < made[5]
    assert (how.queries, how.gradients) == (0, 0)


def test_corruptions_keep_dtype_and_one_channel(y):
    pytest.importorskip("imagecorruptions", exc_type=ImportError)  # OpenCV needs libGL
    x = natural_images(dtype=torch.float64)[:, :1]
    x_c = attack("corruptions", corruption="fog").run(nn.Identity(), x, y)
    assert (x_c.shape, x_c.dtype) == (x.shape, x.dtype)
    with pytest.raises(ValueError, match="at least 32 by 32 pixels"):
        attack("corruptions").run(nn.Identity(), images(), y)


def test_corruptions_are_read_from_files_by_the_place_of_the_clean_image(tmp_path, monkeypatch):
    datasets = pytest.importorskip("torchvision.datasets")
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)
    x, y = write_cifar(tmp_path, 10)
    x, y = x[10:], y[10:]  # the test images
    pixels = np.random.default_rng(1).integers(0, 256, (5 * 2, 32, 32, 3), dtype=np.uint8)
    np.save(tmp_path / "glass_blur.npy", pixels)
    np.save(tmp_path / "labels.npy", y.numpy())
    how = attack(
        "corruptions", corruption="glass_blur", severity=3, files=str(tmp_path), clean=str(tmp_path)
    )
    x_c = how.run(nn.Identity(), x.flip(0), y.flip(0))
    want = torch.from_numpy(pixels[4:6]).permute(0, 3, 1, 2).float() / 255
    assert torch.equal(x_c, want.flip(0))
    with pytest.raises(ValueError, match="1 of 2 images are not of CIFAR-10's test set"):
        how.run(nn.Identity(), torch.stack([x[0], 1 - x[0]]), y)


# ---- an attack of the user's own


def test_an_attack_of_the_users_own_is_a_subclass_of_one_method(y):
    @dataclass(frozen=True, kw_only=True)
    class FGSM(BoundedAttack):
        steps: int = 1

        def attack(self, model, x, y):
            torchattacks = pytest.importorskip("torchattacks")
            return torchattacks.FGSM(model, eps=self.eps)(x, y)

    x = images()
    assert isinstance(FGSM(), Attack)
    want = PGD(eps=0.2, eot=2, steps=1, step_size=1.0)
    got = FGSM(eps=0.2, eot=2)
    assert torch.equal(run(got, "defended", x, y), run(want, "defended", x, y))
    assert got.queries == want.queries == 2


def length(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(1).norm(dim=1)[:, None, None, None]


class TestMomentum:
    """Against the recurrence, written out, on a model whose gradients vary from step to step."""

    @pytest.mark.parametrize("norm", ["linf", "l2"])
    @pytest.mark.parametrize("last", [None, 0.02])
    def test_a_step_is_along_the_running_mean_and_of_its_size(self, norm, last):
        model, x, y = smooth_classifier(torch.float64), mid_images(dtype=torch.float64), labels()
        eps, steps, mu, first = 0.05, 5, 0.9, 0.5
        expected, mean = x.clone(), torch.zeros_like(x)
        for i in range(steps):
            leaf = expected.clone().requires_grad_()
            loss = nn.functional.cross_entropy(model(leaf), y, reduction="sum")
            (g,) = torch.autograd.grad(loss, leaf)
            mean = mu * mean + g / g.abs().mean((1, 2, 3), keepdim=True)
            final = first if last is None else last
            size = eps * (final + (first - final) * (1 + math.cos(math.pi * i / (steps - 1))) / 2)
            way = {"linf": mean.sign(), "l2": mean / length(mean)}[norm]
            moved = expected + size * way - x
            if norm == "linf":
                moved = moved.clamp(-eps, eps)
            else:
                moved = moved * (eps / length(moved)).clamp(max=1)
            expected = (x + moved).clamp(0, 1)
        found = attacks.MomentumPGD(
            norm=norm, eps=eps, steps=steps, gradient="as-it-is", step_size=first, last_step=last
        ).run(model, x, y)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)

    def test_without_momentum_and_at_one_size_it_is_pgd(self):
        model, x, y = smooth_classifier(torch.float32), mid_images(dtype=torch.float32), labels()
        plain = attacks.FoolboxPGD(eps=0.05, steps=4, gradient="as-it-is", eot=1)
        same = attacks.MomentumPGD(
            eps=0.05, steps=4, gradient="as-it-is", momentum=0.0, last_step=None, step_size=0.25
        )
        assert torch.equal(plain.run(model, x, y), same.run(model, x, y))

    def test_an_image_without_a_gradient_stays_where_it_is(self):
        class Flat(nn.Module):
            def forward(self, x):
                return torch.stack([0 * x.sum((1, 2, 3)), 0 * x.sum((1, 2, 3)) - 1], 1)

        x = mid_images(dtype=torch.float32)
        found = attacks.MomentumPGD(steps=3, gradient="as-it-is").run(Flat(), x, 0 * labels())
        assert torch.equal(found, x)
