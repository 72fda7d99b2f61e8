"""Other people's modules in a defence: those that write into what they are given."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tolerances import rounding
from torch import Tensor, nn
from toys import BentNet, bent, labels, mid_images, smooth_classifier

from scoreopt_defense import EOT, BitDepth, DefendedModel, OneShot, ScoreOpt, ThirdParty
from scoreopt_defense.attacks import attack
from scoreopt_defense.attacks.views import Classifier, shown
from scoreopt_defense.denoisers import (
    DDPMDenoiser,
    DeepinvDenoiser,
    Denoiser,
    EDMDenoiser,
    KDiffusionDenoiser,
    ScoreSDEVEDenoiser,
)
from scoreopt_defense.evaluation.judging import AnyStep, criteria, judge, vote
from scoreopt_defense.evaluation.judging.fresh import reseeded
from scoreopt_defense.evaluation.suite.adaptive import _is_random
from scoreopt_defense.gradients import GRADIENTS, as_it_is
from scoreopt_defense.noise import seeded

MEAN, STD = 0.45, 0.25


class Normalised(nn.Module):
    """A classifier that normalises its images: into new memory, or into theirs."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.head = smooth_classifier()

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "normalises in place":
            return self.head(x.sub_(MEAN).div_(STD))
        if self.how == "normalises":
            return self.head((x - MEAN) / STD)
        return self.head(F.relu(x, inplace=self.how == "rectifies in place"))


IN_PLACE = {
    how: (Normalised(how).eval(), Normalised(how.removesuffix(" in place")).eval())
    for how in ("normalises in place", "rectifies in place")
}
in_place = pytest.mark.parametrize(("own", "plain"), IN_PLACE.values(), ids=IN_PLACE.keys())

CALLS = {
    "once": ({}, lambda model: model),
    "votes": ({"votes": 3}, lambda model: model),
    "chunks": ({"max_batch": 3}, lambda model: model),
    "chunks of votes": ({"max_batch": 3, "votes": 2}, lambda model: EOT(model, 2)),
    "samples": ({}, lambda model: EOT(model, 3)),
    "deterministic samples": ({"deterministic": True, "votes": 2}, lambda model: EOT(model, 3)),
    "alone, under EOT": ({}, lambda model: EOT(model.classifier, 3)),
}


def logits_and_gradient(model: nn.Module, *, recorded: bool) -> tuple[Tensor, ...]:
    x = mid_images().requires_grad_(recorded)
    given = x.detach().clone()
    with torch.set_grad_enabled(recorded):
        logits = model(x)
    assert torch.equal(x, given)
    if not recorded:
        return (logits,)
    return logits.detach(), *torch.autograd.grad(F.cross_entropy(logits, labels()), x)


@in_place
@pytest.mark.parametrize("mode", GRADIENTS)
@pytest.mark.parametrize(("settings", "seen"), CALLS.values(), ids=CALLS.keys())
def test_a_classifier_may_write_into_its_images(own, plain, mode, settings, seen):
    settings = {"steps": 2, "sigma": 0.3, "gradient": mode, "seed": 3} | settings
    votes = settings.pop("votes", 1)
    found, expected = (
        logits_and_gradient(
            seen(DefendedModel(classifier, ScoreOpt(bent(), **settings), votes=votes)),
            recorded=mode != "none",
        )
        for classifier in (own, plain)
    )
    for value, known in zip(found, expected, strict=True):
        assert torch.equal(value, known)


@in_place
def test_it_is_judged_and_voted_on_as_any_other(own, plain):
    def judged(classifier):
        model = DefendedModel(classifier, BitDepth(bits=8), votes=2)
        verdict = judge(model, mid_images(), labels(), purifications=3, seed=0)
        return verdict.lead, vote(model, mid_images(), times=5, rows=8, seed=0)

    for value, known in zip(judged(own), judged(plain), strict=True):
        assert torch.equal(value, known)


class OneMemory(nn.Module):
    """Writes each answer where the one before it was, as a CUDA graph does."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.place = net, torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        self.place = self.place if self.place.shape == logits.shape else torch.empty_like(logits)
        return self.place.copy_(logits)


@pytest.mark.parametrize("behind", [True, False])
@pytest.mark.parametrize("asked", [
    lambda model: judge(model, mid_images(), labels(), purifications=3, seed=0).lead,
    lambda model: vote(model, mid_images(), times=3, rows=8, seed=0),
    lambda model: torch.tensor(_is_random(model, mid_images())),
    lambda model: EOT(reseeded(model, 0), 3)(mid_images()),
    lambda model: EOT(reseeded(model.replace(max_batch=3, votes=2), 0)
                      if isinstance(model, DefendedModel) else model, 2)(mid_images()),
], ids=["judge", "vote", "is random", "EOT", "chunks of votes"])  # fmt: skip
@torch.no_grad()
def test_answers_that_share_their_memory_are_kept_apart(asked, behind):
    def answered(keep):
        noisy = nn.Sequential(*([] if behind else [nn.Dropout(0.2)]), smooth_classifier())
        classifier = keep(noisy.train(not behind))
        model = DefendedModel(classifier.eval(), OneShot(bent(), sigma=0.3), votes=2)
        with seeded(0):
            return asked(model if behind else classifier)

    assert torch.equal(answered(OneMemory), answered(lambda net: net))


@in_place
@pytest.mark.parametrize("shows", ["classifier", "as-it-is", "one-shot"])
def test_it_is_attacked_as_any_other(own, plain, shows):
    pgd = attack("pgd-eot-linf", eps=0.1, steps=3, eot=2, gradient=shows)

    def attacked(classifier):
        return pgd.run(
            DefendedModel(classifier, OneShot(bent(), sigma=0.3, seed=0)), mid_images(), labels()
        )

    assert torch.equal(attacked(own), attacked(plain))


@in_place
def test_any_step_judges_what_was_sent_and_not_what_became_of_it(own, plain):
    def broken(classifier):
        model = DefendedModel(classifier, BitDepth(bits=8))
        pgd = attack("pgd-eot-linf", eps=0.2, steps=3, eot=1, gradient="bpda")
        return AnyStep(confirm=2).run(pgd, model, mid_images(), labels(), seed=0)

    for value, known in zip(broken(own), broken(plain), strict=True):
        assert torch.equal(value, known)
    told = []
    criteria._watched(own, lambda *asked: told.append(asked))(x=mid_images())
    assert torch.equal(told[0][0], mid_images())
    assert torch.equal(told[0][1], plain(mid_images()))


def test_a_bare_classifier_that_is_shown_is_the_one_there_is():
    model = DefendedModel(IN_PLACE["normalises in place"][0], BitDepth())
    assert shown(Classifier(), model) is model.classifier


class Overwrites(nn.Module):
    """A network that writes into its images and its noise levels, or leaves them alone."""

    def __init__(self, *, in_place: bool) -> None:
        super().__init__()
        self.net, self.in_place = BentNet().double(), in_place

    def forward(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        denoised = self.net(x_t.clone(), sigma.clone())
        if self.in_place:
            x_t.mul_(0)
            sigma.fill_(7)
        return denoised


ADAPTERS = {
    "EDM": EDMDenoiser,
    "k-diffusion": lambda net: KDiffusionDenoiser(net, sigma_range=(0.01, 2)),
    "deepinv": lambda net: DeepinvDenoiser(net, sigma_range=(0.01, 2)),
    "score_sde": lambda net: ScoreSDEVEDenoiser(net, centered=True),
}


@pytest.mark.parametrize("adapter", ADAPTERS.values(), ids=ADAPTERS.keys())
@pytest.mark.parametrize("mode", ["one-shot", "exact"])
def test_a_denoisers_network_may_write_into_its_images(adapter, mode):
    found, expected = (
        logits_and_gradient(
            DefendedModel(
                smooth_classifier(),
                ScoreOpt(
                    adapter(Overwrites(in_place=in_place).eval()), loss="sr", steps=2,
                    sigma=(0.2, 0.4), gradient=mode, seed=1,
                ),
            ),
            recorded=True,
        )
        for in_place in (True, False)
    )  # fmt: skip
    for value, known in zip(found, expected, strict=True):
        assert torch.equal(value, known)


def test_a_network_may_write_into_its_labels():
    def forgets(x_t, level, labels):
        return x_t * labels.float().fill_(0.5).reshape(-1)[0] + 0 * labels.zero_().sum()

    one_hot, label = torch.eye(3, dtype=torch.float64)[:1], torch.tensor([2])
    EDMDenoiser(forgets, class_labels=one_hot)(mid_images(1), 0.5)
    DDPMDenoiser(forgets, torch.linspace(0.9, 0.1, 9), class_label=label)(mid_images(1), 0.5)
    assert one_hot.tolist() == [[1, 0, 0]]
    assert label.item() == 2


class Identity(Denoiser):
    """Somebody's adapter, which may keep what it is given."""

    def denoise(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        return x_t


def halved(x: Tensor) -> Tensor:
    return x.mul_(0.5)


@pytest.mark.parametrize("mode", ["exact", "bpda", "one-shot"])
def test_a_third_partys_purification_may_write_into_its_images(mode):
    surrogate = {"denoiser": Identity(sigma_range=(0.01, 2)), "sigma": 0.3}
    for max_batch in (None, 3):
        found, expected = (
            logits_and_gradient(
                DefendedModel(
                    smooth_classifier(),
                    ThirdParty(function, gradient=mode, max_batch=max_batch, seed=0, **surrogate),
                    votes=2,
                ),
                recorded=True,
            )
            for function in (halved, lambda x: x * 0.5)
        )
        for value, known in zip(found, expected, strict=True):
            torch.testing.assert_close(value, known, rtol=0, atol=rounding(torch.float64, 64))


class Halves(OneShot):
    """A user's own algorithm, which begins by writing into its images, or does not."""

    in_place = False

    def purify(self, x_a, noise, run=as_it_is):
        x = x_a.mul_(0.5) if self.in_place else x_a * 0.5
        return super().purify(x, noise, run)


class HalvesInPlace(Halves):
    in_place = True


@pytest.mark.parametrize("mode", ["one-shot", "bpda", "exact"])
@pytest.mark.parametrize("recorded", [True, False])
def test_a_users_own_algorithm_may_write_into_its_images(mode, recorded):
    found, expected = (
        logits_and_gradient(
            DefendedModel(smooth_classifier(), kind(bent(), sigma=0.3, gradient=mode, seed=1)),
            recorded=recorded,
        )
        for kind in (HalvesInPlace, Halves)
    )
    assert all(map(torch.equal, found, expected))


class Brought(nn.Module):
    """A network whose weights are brought while it runs, as offloading has it."""

    def __init__(self, how):
        super().__init__()
        self.net = BentNet().double().eval()
        self.kept = dict(self.net.named_parameters())
        self.net.to("meta")
        if how == "hooks":
            self.register_forward_pre_hook(lambda *_: self.put(self.kept))
            self.register_forward_hook(lambda *_: self.put(None))
        if how == "forward":  # accelerate's and diffusers' way
            own = self.forward
            self.forward = lambda *args: (self.put(self.kept), own(*args), self.put(None))[1]

    def put(self, weights):
        for name, weight in self.kept.items():
            module, _, last = name.rpartition(".")
            here = weight if weights else weight.to("meta")
            setattr(self.net.get_submodule(module), last, nn.Parameter(here, requires_grad=False))

    def forward(self, x_t, sigma):
        return self.net(x_t, sigma)


class Fixed(nn.Module):
    """A module all of whose weights are brought."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x, torch.ones(len(x)))


@pytest.mark.parametrize("how", ["hooks", "forward"])
@pytest.mark.parametrize("mode", ["one-shot", "exact"])
def test_a_network_may_be_brought_by_its_own_hook(how, mode):
    def found(net):
        prior = EDMDenoiser(net, sigma_range=(0.01, 2))
        purifier = ScoreOpt(prior, steps=2, sigma=0.3, gradient=mode, seed=1, max_batch="auto")
        model, x = DefendedModel(smooth_classifier(), purifier), mid_images().requires_grad_()
        attacked = attack("pgd-eot-linf", steps=2, eot=1).run(model, mid_images(), labels())
        return attacked, torch.autograd.grad(model(x, seed=1).sum(), x)[0]

    assert all(map(torch.equal, found(Brought(how).eval()), found(BentNet().double().eval())))
    pgd, offloaded = attack("pgd-eot-linf", steps=1, eot=1), Brought(how).eval()
    bare = nn.Sequential(Fixed(offloaded), nn.Flatten())
    assert pgd.run(bare, mid_images(), labels()).shape == (4, 3, 8, 8)
    with pytest.raises(ValueError, match="network is on meta and the images are on cpu"):
        found(Brought("not at all").eval())


# ---- half precision

HALF = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)


@HALF
@pytest.mark.parametrize("mode", ["one-shot", "bpda", "exact"])
def test_half_images_are_purified_in_float32_and_keep_their_type(dtype, mode):
    purifier = ScoreOpt(bent(torch.float32), steps=2, sigma=0.3, gradient=mode, max_batch=3)
    half = mid_images().to(dtype).requires_grad_()
    full = half.detach().float().requires_grad_()
    found, known = purifier(half, seed=1, samples=2), purifier(full, seed=1, samples=2)
    assert found.dtype == dtype
    assert torch.equal(found, known.to(dtype))
    direction = torch.randn(found.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    (gradient,) = torch.autograd.grad(found, half, direction)
    (exact,) = torch.autograd.grad(known, full, direction.float())
    assert torch.equal(gradient, exact.to(dtype))
    assert purifier(half[:0]).dtype == dtype


@HALF
@pytest.mark.parametrize("how", ["mixed", "true"])
def test_a_defended_model_in_half_precision_is_one_as_other_modules_are(dtype, how):
    """As Lightning has it: under autocast, or with every weight and image in half precision."""
    x, classifier = mid_images().to(dtype), smooth_classifier(torch.float32)
    model = DefendedModel(classifier, OneShot(bent(torch.float32), sigma=0.3), votes=2)
    known = model(x.float(), seed=1)
    model = model if how == "mixed" else model.to(dtype)
    with torch.autocast("cpu", dtype, enabled=how == "mixed"):
        logits = model(x, seed=1)
    assert logits.dtype == dtype
    # two layers of the classifier and one of the denoiser, of values and weights below 2
    assert 0 < (logits.float() - known).abs().max() < rounding(dtype, 4 * 3, 2)
