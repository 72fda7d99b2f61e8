"""EOT as a module around the model, for every attack of every library."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tolerances import adam_rounding, rounding
from torch import nn
from toys import bent, labels, mid_images, smooth_classifier

from scoreopt_defense import EOT, BitDepth, DefendedModel, ScoreOpt
from scoreopt_defense.attacks.losses import cross_entropy, margin

torchattacks = pytest.importorskip("torchattacks")


# Images by two routes, in batches of other sizes: one step of Adam at 0.01 on up to 15 repeats.
IMAGES = adam_rounding(torch.float64, lr=0.01, steps=1, pixels=15 * 4 * 192)


def defended(dtype=torch.float64, **settings):
    settings = {"steps": 1, "lr": 0.01, "sigma": (0.2, 0.4)} | settings
    votes = settings.pop("votes", 1)
    return DefendedModel(smooth_classifier(dtype), ScoreOpt(bent(dtype), **settings), votes=votes)


@pytest.mark.parametrize("samples", [1, 2, 5])
@pytest.mark.parametrize("votes", [1, 3])
def test_it_is_the_mean_of_the_replicates_logits(samples, votes, x):
    got = EOT(defended(seed=4, votes=votes), samples)(x)
    twin = defended(seed=4)
    purified = twin.purifier(x, samples=samples * votes)
    replicates = twin.classifier(purified).reshape(samples * votes, len(x), -1)
    torch.testing.assert_close(got, replicates.mean(0), rtol=0, atol=IMAGES)


def test_repeats_are_independent_and_the_first_is_the_single_call(x):
    purifier = defended().purifier
    twice = purifier(x, seed=3, samples=2)
    # not bit for bit: a library may sum otherwise in a batch of another size
    torch.testing.assert_close(twice[:4], purifier(x, seed=3), rtol=0, atol=IMAGES)
    assert (twice[4:] - twice[:4]).abs().max() > 0.01


def test_more_samples_vary_less(x):
    def spread(samples):
        model = EOT(defended(seed=0), samples)
        return torch.stack([model(x) for _ in range(12)]).std(0).mean()

    assert spread(16) < 0.5 * spread(1)  # a quarter, but for the estimate's own error


class Jitter(nn.Module):
    """A randomised module that is no DefendedModel, and draws once for all images of a call."""

    def forward(self, x):
        return (x + torch.randn(())).flatten(1)[:, :5]


def test_it_wraps_any_randomised_module_and_each_sample_is_a_draw_of_its_own(x):
    net = Jitter()
    torch.manual_seed(2)
    got = EOT(net, 6)(x)
    torch.manual_seed(2)
    replicates = torch.stack([net(x) for _ in range(6)])
    assert replicates.std(0).min() > 0.1
    # a mean of six, of numbers below 8
    tolerance = rounding(torch.float64, 6, 8)
    torch.testing.assert_close(got, replicates.mean(0), rtol=0, atol=tolerance)


@pytest.mark.parametrize("how", ["samples", "votes"])
def test_a_random_classifier_draws_for_each_sample(how, x):
    """One draw for all of a call would leave the mean of 64 as far from 0 as a single one is."""
    purifier = BitDepth(bits=8)
    model = DefendedModel(Jitter().eval(), purifier, votes=64 if how == "votes" else 1)
    seen = model if how == "votes" else EOT(model, 64)
    still = purifier(x).flatten(1)[:, :5]
    torch.manual_seed(0)
    off = torch.stack([(seen(x) - still)[0, 0] for _ in range(8)])
    assert off.std() < 0.5  # 1 of a single draw, 1/8 of a mean of 64


def test_samples_of_a_deterministic_purifier_are_the_one_that_it_is(x):
    for votes in (1, 3):
        model = defended(deterministic=True, votes=votes)
        # means of up to fifteen of the same, of numbers below 8
        tolerance = rounding(torch.float64, 15, 8)
        torch.testing.assert_close(EOT(model, 5)(x), model(x), rtol=0, atol=tolerance)


class Coin(nn.Module):
    """One of two classifiers, whose gradients are each other's opposites."""

    def forward(self, x):
        side = random.choice([1.0, -1.0]) * np.random.choice([1.0, -1.0])  # noqa: NPY002
        return side * x.flatten(1)[:, :5].exp()


def test_a_chunk_is_recomputed_with_the_draws_of_its_forward_pass(x):
    model = DefendedModel(Coin().eval(), defended(gradient="bpda", max_batch=2).purifier)
    for _ in range(20):
        leaf = x.clone().requires_grad_()
        logits = model(leaf)
        state = random.getstate()
        (gradient,) = torch.autograd.grad(logits.sum(), leaf)
        assert random.getstate() == state
        assert torch.equal(gradient.flatten(1)[:, :5].sign(), logits.sign())
    logits, found = model(leaf), []
    for _ in range(3):  # as attacks that ask for a class at a time
        found.append(torch.autograd.grad(logits.sum(), leaf, retain_graph=True)[0])
    assert torch.equal(found[0], found[2])


def test_its_modes_do_not_reach_the_model():
    model = defended()
    EOT(model, 2).train()
    assert not model.classifier.training
    assert not model.training
    net = nn.Sequential(nn.Dropout(), nn.Flatten()).train()
    EOT(net, 2).eval()
    assert net.training


class Turns(nn.Module):
    """Linear models that answer in turn."""

    def __init__(self, samples, classes, x):
        super().__init__()
        self.rows = torch.randn(samples, classes, x[0].numel(), dtype=x.dtype)
        self.turn = -1

    def forward(self, x):
        self.turn = (self.turn + 1) % len(self.rows)
        return x.flatten(1) @ self.rows[self.turn].T


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("loss", [cross_entropy, margin])
def test_selective_weighs_by_the_sigmoid_of_each_margin(loss, classes, x):
    """Written out; and of two classes the way in which the mean of cross-entropies rises."""
    torch.manual_seed(0)
    y, net, leaf = labels().clamp(max=classes - 1), Turns(3, classes, x), x.requires_grad_()
    logits = EOT(net, 3, aggregate="selective")(leaf)
    (found,) = torch.autograd.grad(loss(logits, y).sum(), leaf)
    each = torch.stack([net(x) for _ in range(3)])
    torch.testing.assert_close(logits, each.mean(0), rtol=0, atol=rounding(torch.float64, 3, 50))
    mean = each.mean(0).detach().requires_grad_()
    (g,) = torch.autograd.grad(loss(mean, y).sum(), mean)
    leads = 2 * torch.einsum("bk,sbk->sb", g, each) / g.abs().sum(1)
    weights = leads.sigmoid() / leads.sigmoid().sum(0)
    expected = torch.einsum("sb,bk,skd->bd", weights, g, net.rows).view_as(x)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    if classes == 2 and loss is cross_entropy:
        losses = sum(loss(net(leaf), y).sum() for _ in range(3))
        (rises,) = torch.autograd.grad(losses, leaf)
        same = F.cosine_similarity(found.flatten(1), rises.flatten(1))
        torch.testing.assert_close(same, torch.ones_like(same), rtol=0, atol=1e-9)


def test_selective_leaves_no_gradient_where_there_is_none(x):
    logits = EOT(Turns(2, 4, x), 2, aggregate="selective")(x.requires_grad_())
    (found,) = torch.autograd.grad(0 * logits.sum(), x)
    assert torch.equal(found, torch.zeros_like(x))
    with pytest.raises(ValueError, match=r"aggregate must be one of .*'selective'.*got 'loss'"):
        EOT(Turns(2, 4, x), 2, aggregate="loss")


@pytest.mark.parametrize("samples", [0, -1, 1.5, True, "3"])
def test_samples_is_a_count(samples):
    with pytest.raises(ValueError, match="samples must be a whole number of at least 1"):
        EOT(defended(), samples)
    with pytest.raises(ValueError, match="samples must be a whole number of at least 1"):
        defended()(mid_images(), samples=samples)


EPS = 0.1
ATTACKS = {
    "PGD": lambda m: torchattacks.PGD(m, eps=EPS, alpha=EPS / 4, steps=4),
    "PGDL2": lambda m: torchattacks.PGDL2(m, eps=1.0, alpha=0.25, steps=4),
    "EOTPGD": lambda m: torchattacks.EOTPGD(m, eps=EPS, alpha=EPS / 4, steps=4, eot_iter=2),
    "SPSA": lambda m: torchattacks.SPSA(
        m, eps=EPS, delta=0.05, lr=0.05, nb_iter=4, nb_sample=32, max_batch_size=32
    ),
    "APGD": lambda m: torchattacks.APGD(m, eps=EPS, steps=4, n_restarts=1),
    "APGDT": lambda m: torchattacks.APGDT(m, eps=EPS, steps=3, n_restarts=1, n_classes=4),
    "Square": lambda m: torchattacks.Square(m, eps=EPS, n_queries=20, n_restarts=1),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
def test_torchattacks_run_on_it_within_their_budget_and_lower_the_confidence(attack, request):
    x, y = mid_images(dtype=torch.float32), labels()
    model = EOT(defended(torch.float32, seed=0), 4)
    with torch.no_grad():
        y = model(x).argmax(1)
    adversarial = attack(model)(x, y)

    distance = adversarial - x
    if request.node.callspec.id == "PGDL2":
        assert distance.flatten(1).norm(dim=1).max() <= 1.0 + rounding(torch.float32, 4 + 192**0.5)
    else:
        assert distance.abs().max() <= EPS + rounding(torch.float32, 2)
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    judge = EOT(defended(torch.float32, seed=1), 32)
    with torch.no_grad():
        before, after = F.cross_entropy(judge(x), y), F.cross_entropy(judge(adversarial), y)
    assert after > before


def test_a_black_box_attack_needs_no_gradient():
    x, y = mid_images(dtype=torch.float32), labels()
    model = defended(torch.float32, gradient="none")
    attack = torchattacks.SPSA(model, eps=EPS, delta=0.01, nb_iter=2, nb_sample=4, max_batch_size=4)
    assert (attack(x, y) - x).abs().max() <= EPS + rounding(torch.float32, 2)
    assert (attack(x, y) - x).abs().max() > 0
