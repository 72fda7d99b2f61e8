"""What counts as broken, by attacks and models whose answers are known."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn
from toy_evaluation import Ascent, Toy, defences, images

from scoreopt_defense import EOT, DefendedModel, OneShot
from scoreopt_defense.attacks.losses import margin
from scoreopt_defense.evaluation import evaluate
from scoreopt_defense.evaluation.judging import AnyStep, Final, Judging, criteria, judge, vote
from scoreopt_defense.evaluation.judging.threat_model import check_attacked, inside
from scoreopt_defense.noise import seeded


class Level(nn.Module):
    """Class 1 where the mean is above 0.5, else class 0; ``noise`` on the mean, one a call."""

    def __init__(self, noise: float = 0.0) -> None:
        super().__init__()
        self.noise = noise

    def forward(self, x):
        level = x.mean((1, 2, 3)) - 0.5
        level = level + self.noise * torch.randn(())
        return torch.stack([-level, level], 1)


def flat(*levels):
    return torch.tensor(levels).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone()


@dataclass(frozen=True)
class Path(Toy):
    """Queries these offsets from the images, in an order of its own, and returns the last."""

    offsets: tuple[float, ...] = ()
    order: str = "plain"

    def run(self, model, x, y):
        for offset in self.offsets:
            queries = x + offset
            if self.order == "reversed":
                queries = queries.flip(0)
            if self.order == "interleaved":
                queries = queries.repeat_interleave(3, 0)
            if self.order == "part":
                model(queries[-1:])
            else:
                model(queries)
        return x + self.offsets[-1]


class Fine(nn.Module):
    """Class 1 where the mean is above 0.5, which bfloat16 cannot tell of one slightly above."""

    def __init__(self) -> None:
        super().__init__()
        self.sum = nn.Linear(4, 1, bias=False)
        nn.init.constant_(self.sum.weight, 0.25)

    def forward(self, x):
        level = self.sum(x.flatten(1)).float() - 0.5
        return torch.cat([-level, level], 1)


X, Y = flat(0.45, 0.1, 0.9), torch.tensor([0, 0, 1])
PASSING = Path(offsets=(0.08, 0.0))  # over the line, and back


def test_what_is_asked_within_an_attacks_autocast_is_answered_in_full_precision():
    """0.5003 is 0.5 in bfloat16, whose spacing there is 2**-8."""

    @dataclass(frozen=True)
    class InHalf(Toy):
        def run(self, model, x, y):
            with torch.autocast("cpu", torch.bfloat16):
                seen.append(model(x).argmax(1).item())
            return x

    model, x, y, seen = Fine(), flat(0.5003), torch.tensor([1]), []
    _, broken = AnyStep(confirm=3).run(InHalf(), model, x, y, seed=0)
    assert seen == [0], "the attack's own precision takes the image for another"
    assert not broken, "but the defence does not"
    with torch.autocast("cpu", torch.bfloat16):
        assert judge(model, x, y, purifications=2, seed=0).predicted.tolist() == [[1, 1]]


@pytest.mark.parametrize("order", ["plain", "reversed", "interleaved"])
def test_any_step_sees_the_break_that_the_last_image_does_not_show(order):
    attack = replace(PASSING, order=order)
    attacked, broken = AnyStep(confirm=3).run(attack, Level(), X, Y, seed=0)
    assert broken.tolist() == [True, False, False]
    assert torch.equal(attacked, X + flat(0.08, 0, 0))  # the query that broke it is kept
    attacked, broken = Final().run(attack, Level(), X, Y, seed=0)
    assert broken is None
    assert torch.equal(attacked, X)


def test_any_step_knows_whose_a_part_of_the_batch_is():
    x = flat(0.1, 0.9, 0.45)
    attack = replace(PASSING, order="part")
    _, broken = AnyStep(confirm=3).run(attack, Level(), x, torch.tensor([0, 1, 0]), seed=0)
    assert broken.tolist() == [False, False, True]


def test_equal_images_are_told_apart_by_their_place():
    x = flat(0.45, 0.45)
    _, broken = AnyStep(confirm=3).run(PASSING, Level(), x, torch.tensor([0, 1]), seed=0)
    assert broken.tolist() == [True, True]  # the second was wrong before


def test_a_query_nearer_to_another_image_breaks_its_own():
    x = flat(0.45, 0.48)  # the second moves past the first one's place, and both past the line
    x[0, 0, 0, 0] = 0.2
    for attack in (Path(offsets=(0.08, 0.0)), Path(offsets=(0.09, 0.0), order="reversed")):
        _, broken = AnyStep(confirm=3).run(attack, Level(), x, torch.tensor([1, 0]), seed=0)
        assert broken.tolist() == [True, True]


def test_of_an_attack_without_a_bound_a_query_is_its_nearest_images():
    x = flat(0.3, 0.7)
    for order in ("plain", "reversed"):
        free = Path(offsets=(0.15, 0.25, 0.0), order=order, norm=None)
        _, broken = AnyStep(confirm=3).run(free, Level(), x, torch.tensor([0, 1]), seed=0)
        assert broken.tolist() == [False, False]


def test_an_attack_that_asks_once_is_voted_on_all_the_same():
    """At 0.58 under noise of 0.2, one draw in three is right."""
    once = Path(offsets=(0.08,))
    for seed in range(10):
        _, broken = AnyStep().run(once, Level(noise=0.2), flat(0.5), torch.tensor([0]), seed=seed)
        assert broken.all()


def test_an_attack_that_writes_into_its_images_is_held_to_them_as_they_were():
    class InPlace(Toy):
        def run(self, model, x, y):
            return x.mul_(0)

    for criterion in (Final(), AnyStep(confirm=3)):
        with pytest.raises(ValueError, match="left its threat model on 2 of 3"):
            criterion.run(InPlace(), Level(), X, Y, seed=0)
    assert X.min() > 0


@pytest.mark.parametrize(
    "attack",
    [Path(offsets=(0.2, 0.0)), Path(offsets=(0.06, 0.0), eps=0.05), Path(offsets=(0.6, 0.0))],
)
def test_queries_outside_the_threat_model_break_nothing(attack):
    _, broken = AnyStep(confirm=3).run(attack, Level(), X, Y, seed=0)
    assert not broken.any()


@dataclass(frozen=True)
class Silent(Toy):
    def run(self, model, x, y):
        return x + 0.08


@pytest.mark.parametrize("seed", range(10))
def test_no_lucky_draw_keeps_an_attack_that_sends_nothing_from_the_vote(seed):
    """At 0.58 under noise of 0.2, one draw in three is right; the vote over 150 never is."""
    _, broken = AnyStep().run(Silent(), Level(noise=0.2), flat(0.5), torch.tensor([0]), seed=seed)
    assert broken.all()


def test_the_last_image_is_a_step_too():
    _, broken = AnyStep(confirm=3).run(Silent(), Level(), X, Y, seed=0)
    assert broken.tolist() == [True, False, False]


def test_a_lucky_draw_is_not_confirmed():
    """At 0.4 under noise of 0.1, one draw in six is wrong; the vote over 150 never is."""
    x, y = flat(0.4), torch.tensor([0])
    model = Level(noise=0.1)
    attack = Path(offsets=(0.0,) * 50)
    with seeded(0):
        assert any(model(x).argmax(1).item() for _ in range(50))
    _, broken = AnyStep().run(attack, model, x, y, seed=0)
    assert not broken.any()
    _, broken = AnyStep(confirm=1).run(attack, model, x, y, seed=0)
    assert broken.all()  # what one draw would have confirmed


TWINS = {
    "gradient": lambda model: model.with_gradient("bpda"),
    "eot": lambda model: EOT(model, 3),
    "surrogate": lambda model: model.surrogate(),
    "keyword": lambda model: lambda x: model(x=x),
    "plain": lambda model: model,
}


@dataclass(frozen=True)
class OfTwin(Toy):
    how: str = ""

    def run(self, model, x, y):
        TWINS[self.how](model)(x[:1])
        return x


@pytest.mark.parametrize("how", TWINS)
def test_any_step_watches_every_twin_that_an_attack_makes_of_a_defended_model(how, monkeypatch):
    model, (x, y), seen = defences()["one-shot"], images(4), []
    monkeypatch.setattr(
        criteria._Watch, "_look", lambda _, queries, logits: seen.append(len(queries))
    )
    AnyStep().run(OfTwin(how=how), model, x, y, seed=0)
    assert seen == [1]
    assert not model._forward_hooks


def test_the_vote_is_the_mean_over_fresh_purifications():
    model = defences()["one-shot"]
    x, _ = images(2)
    first = vote(model, x, times=64, rows=16, seed=0)
    assert torch.equal(first, vote(model, x, times=64, rows=16, seed=0))
    one_by_one = vote(model, x, times=64, rows=1, seed=0)
    single = torch.stack([model.replace(seed=s)(x) for s in range(64)])
    spread = single.std(0) / 8  # of a mean over 64
    for mean in (first, one_by_one):
        assert ((mean - single.mean(0)).abs() <= 6 * spread).all()


@pytest.mark.parametrize("name", ["one-shot", "noisy"])
def test_judging_is_a_function_of_its_seed_and_leaves_no_trace(name):
    model, (x, y) = defences()[name], images(4)
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    first, again, other = (judge(model, x, y, purifications=3, seed=s) for s in (0, 0, 1))
    assert torch.equal(first.lead, again.lead)
    assert not torch.equal(first.lead, other.lead)
    assert not torch.equal(first.lead[:, 0], first.lead[:, 1])
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1][1]).all()  # noqa: NPY002
    assert random.getstate() == states[2]


def test_predictions_and_leads_are_of_the_same_logits():
    model, (x, y) = defences()["one-shot"], images(4)
    verdict = judge(model, x, y, purifications=2, seed=0)
    twin = model.replace(seed=0)
    for draw in range(2):
        with seeded(0):
            logits = twin(x)
        others = logits.masked_fill(nn.functional.one_hot(y, 4).bool(), -torch.inf).amax(1)
        lead = logits[torch.arange(4), y] - others
        assert torch.equal(verdict.lead[:, draw], lead)
        assert torch.equal(verdict.predicted[:, draw], logits.argmax(1))
    assert torch.equal(verdict.lead > 0, verdict.predicted == y[:, None])


def test_a_deterministic_defence_is_judged_with_the_noise_that_was_attacked():
    plain = defences()["one-shot"]
    model = DefendedModel(plain.classifier, OneShot(plain.purifier.denoiser, deterministic=True))
    x, y = images(4)
    verdict = judge(model, x, y, purifications=2, seed=5)
    for draw in range(2):
        assert torch.equal(verdict.lead[:, draw], -margin(model(x), y))


SEEN = []


@dataclass(frozen=True)
class Recording(Toy):
    """Changes nothing, and notes the leads in what it is shown."""

    def run(self, model, x, y):
        with torch.no_grad():
            SEEN.extend((-margin(model(x), y)).tolist() for _ in range(20))
        return x


@pytest.mark.parametrize("name", ["one-shot", "noisy"])
@pytest.mark.parametrize("criterion", ["final", "any-step"])
def test_judged_purifications_are_none_that_the_attack_saw(name, criterion):
    SEEN.clear()
    settings = Judging(criterion=criterion, purifications=20)
    result = evaluate(
        {name: defences()[name]}, images(4), {"recording": Recording()}, judging=settings
    )
    assert not result.failures
    judged = result.judged(name, "recording").lead.tolist()
    assert len(judged) == 4
    for of_attack, of_judge in zip(zip(*SEEN, strict=True), judged, strict=True):
        assert len(set(of_attack)) == len(set(of_judge)) == 20
        assert not set(of_attack) & set(of_judge)


def test_logits_that_are_not_finite_are_an_error():
    with pytest.raises(ValueError, match="logits that are not finite"):
        judge(Level(noise=float("nan")), X, Y, purifications=1, seed=0)


@pytest.mark.parametrize(
    ("norm", "offset", "allowed"),
    [
        ("linf", 0.1, True),
        *((norm, 0.11, False) for norm in ("linf", "Linf", "L-inf", "l_infinity", "inf", np.inf)),
        *((norm, 0.11, False) for norm in ("l∞", "L infinity", float("inf"), "Infinity")),
        ("l2", 0.05, True),
        *((norm, 0.051, False) for norm in ("l2", "L2", "l_2", 2, 2.0, np.float64(2), "2")),
        (1, 0.025, True),
        *((norm, 0.026, False) for norm in ("l1", "L1", 1.0, np.int64(1))),
    ],
)
def test_the_bound_is_the_attacks_own(norm, offset, allowed):
    """On each of 4 pixels 0.05 is 0.1 in l2, and 0.025 in l1."""
    attack, x = Toy(norm=norm, eps=0.1), flat(0.5)
    assert inside(attack, x, x + offset).tolist() == [allowed]
    if not allowed:
        with pytest.raises(ValueError, match=r"left its threat model on 1 of 1.*, eps 0\.1"):
            check_attacked(attack, x, x + offset)


def test_an_attack_without_a_bound_has_only_the_range_of_images():
    for attack in (object(), Toy(norm=None), Toy(norm="flow"), Toy(eps=float("inf"))):
        assert inside(attack, flat(0.5, 0.5), flat(1.0, 1.1)).tolist() == [True, False]


@dataclass(frozen=True)
class Radius:
    """An attack that says how far it goes, but not in which norm."""

    eps: float = 0.1

    def run(self, model, x, y):
        return x

    def as_dict(self):
        return {"eps": self.eps}


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        *(
            (Silent(norm=norm), f"norm must be 'linf', 'l2' or 'l1'.*got {norm!r}")
            for norm in ("l0", "l_inf2", "lpips", 3, -np.inf, float("nan"), True, "", "none")
        ),
        *(
            (Silent(eps=eps), f"of norm 'linf' must have eps, at least 0, got {eps!r}")
            for eps in (None, -0.1, float("nan"), "8/255")
        ),
        (
            Silent(eps=8),
            "of norm 'linf' must have eps, at most 1.*got 8; 8 of 255 levels are 8/255",
        ),
        (Radius(), "an attack with eps must say its norm, 'linf'.*got eps = 0.1 alone"),
    ],
)
def test_an_attack_that_could_be_held_to_nothing_is_refused_at_the_start(attack, message):
    with pytest.raises(ValueError, match=message):
        check_attacked(attack, X, X)
    asked = []
    model = Level().eval()
    model.register_forward_hook(lambda *call: asked.append(call))
    with pytest.raises(ValueError, match=f"attack 'theirs': .*{message}"):
        evaluate(model, (X, Y), {"theirs": attack})
    assert not asked


def test_the_settings_of_judging_are_checked_and_come_back():
    settings = Judging(criterion=AnyStep(confirm=7), purifications=2)
    assert Judging.from_dict(settings.as_dict()) == settings
    assert Judging(criterion="any-step").criterion == AnyStep(confirm=150)
    with pytest.raises(ValueError, match=r"criterion must be one of \['final', 'any-step'\]"):
        Judging(criterion="best")
    with pytest.raises(ValueError, match="purifications must be a whole number of at least 1"):
        Judging(purifications=0)
    with pytest.raises(ValueError, match="confirm must be a whole number of at least 1"):
        AnyStep(confirm=0)


def test_an_attack_under_any_step_is_the_attack_under_final():
    """Watching draws nothing from the generators that the attack uses."""
    x, y = images(4)
    for model in defences().values():
        final, _ = Final().run(Ascent(), model, x, y, seed=0)
        watched, broken = AnyStep(confirm=2).run(Ascent(), model, x, y, seed=0)
        assert torch.equal(final[~broken], watched[~broken])
