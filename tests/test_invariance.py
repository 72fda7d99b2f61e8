"""What an image's result does not depend on."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from purifiers_table import PURIFIERS, RANDOM, SUMS_PIXELS
from tolerances import adam_rounding, default_dtype, rounding
from toys import BentNet, bent, gaussian, mid_images, smooth_classifier

from scoreopt_defense import EOT, DefendedModel, OneShot, ScoreOpt

# Up to 3 repetitions and 4 steps.
TOLERANCE = adam_rounding(torch.float64, lr=0.02, steps=4, pixels=3 * 768)
every_purifier = pytest.mark.parametrize("make", PURIFIERS.values(), ids=PURIFIERS.keys())
every_random_purifier = pytest.mark.parametrize("make", RANDOM.values(), ids=RANDOM.keys())


@every_purifier
def test_the_rest_of_the_batch(make, x):
    """The same place and seed give the same result, whoever the neighbours are."""
    purifier, others = make(bent()), torch.rand_like(x)
    others[1] = x[1]
    together, elsewhere = purifier(x, seed=3), purifier(others, seed=3)
    torch.testing.assert_close(together[1], elsewhere[1], rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(together[:2], purifier(x[:2], seed=3), rtol=0, atol=TOLERANCE)


@every_purifier
def test_the_place_in_the_batch_if_deterministic(make, x):
    purifier = make(bent(), deterministic=True)
    whole = purifier(x)
    torch.testing.assert_close(purifier(x.flip(0)).flip(0), whole, rtol=0, atol=TOLERANCE)
    for i in range(len(x)):
        torch.testing.assert_close(purifier(x[i : i + 1])[0], whole[i], rtol=0, atol=TOLERANCE)


@every_random_purifier
def test_different_places_see_different_noise_unless_deterministic(make, x):
    alike = x[:1].expand(3, -1, -1, -1)
    apart = make(gaussian())(alike, seed=3)
    assert (apart[0] - apart[1]).abs().max() > 1e-3
    same = make(gaussian(), deterministic=True)(alike)
    assert torch.equal(same[0], same[1])
    apart = make(gaussian(), deterministic="per-image")(alike)
    assert (apart[0] - apart[1]).abs().max() > 1e-3


@pytest.mark.parametrize("name", PURIFIERS)
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
def test_the_chunk_size(name, samples, size, x):
    make, atol = PURIFIERS[name], TOLERANCE if name in SUMS_PIXELS else 0
    whole = make(gaussian())(x, seed=3, samples=samples)
    for chunked in (
        make(gaussian(), max_batch=size)(x, seed=3, samples=samples),
        make(gaussian())(x, seed=3, samples=samples, max_batch=size),
    ):
        torch.testing.assert_close(chunked, whole, rtol=0, atol=atol)
    through_a_network = make(bent(), max_batch=size)(x, seed=3, samples=samples)
    torch.testing.assert_close(
        through_a_network, make(bent())(x, seed=3, samples=samples), rtol=0, atol=TOLERANCE
    )


class Recorder(BentNet):
    def __init__(self):
        super().__init__()
        self.sizes = []

    def forward(self, x_t, sigma):
        self.sizes.append(len(x_t))
        return super().forward(x_t, sigma)


def test_the_calls_own_chunk_size_wins_and_bounds_the_network(x):
    from scoreopt_defense.denoisers import EDMDenoiser

    net = Recorder().double()
    purifier = OneShot(EDMDenoiser(net), sigma=0.3, max_batch=2)
    purifier(x, samples=2)
    assert net.sizes == [2, 2, 2, 2]
    net.sizes.clear()
    purifier(x, samples=2, max_batch=3)
    assert net.sizes == [3, 3, 2]


@every_purifier
def test_how_gradients_are_recorded(make, x):
    purifier = make(bent())
    want = purifier(x, seed=3)
    with torch.no_grad():
        assert torch.equal(purifier(x, seed=3), want)
    with torch.inference_mode():
        assert torch.equal(purifier(x, seed=3), want)
        inside = x.clone()
    assert inside.is_inference()
    assert torch.equal(purifier(inside, seed=3), want)
    with torch.enable_grad():
        assert torch.equal(purifier(x, seed=3), want)
    assert torch.equal(purifier(x.clone().requires_grad_(), seed=3), want)
    with torch.no_grad():
        assert not purifier(x.clone().requires_grad_(), seed=3).requires_grad


def test_a_defended_model_runs_in_inference_mode(classifier, x):
    model = DefendedModel(classifier, PURIFIERS["ScoreOpt-N"](bent(), max_batch=3), votes=2)
    want = model(x, seed=3)
    with torch.inference_mode():
        torch.testing.assert_close(model(x, seed=3), want.detach(), rtol=0, atol=TOLERANCE)


@every_purifier
def test_train_and_eval(make, x):
    purifier = make(bent())
    want = purifier.eval()(x, seed=3)
    assert torch.equal(purifier.train()(x, seed=3), want)


@every_purifier
def test_how_the_images_lie_in_memory(make, x):
    purifier = make(gaussian())
    want = purifier(x, seed=3)
    assert torch.equal(purifier(x.to(memory_format=torch.channels_last), seed=3), want)
    assert torch.equal(purifier(x.flip(3).flip(3), seed=3), want)
    assert torch.equal(purifier(torch.cat([x, x], dim=3)[..., :8], seed=3), want)


@every_random_purifier
def test_a_seeded_call_is_repeatable_and_unseeded_ones_go_on(make, x):
    purifier = make(gaussian())
    assert torch.equal(purifier(x, seed=3), purifier(x, seed=3))
    assert not torch.equal(purifier(x, seed=3), purifier(x, seed=4))
    assert not torch.equal(purifier(x), purifier(x))


@every_random_purifier
def test_a_seeded_stream_is_repeatable_and_its_calls_differ(make, x):
    streams = [[purifier(x) for _ in range(3)] for purifier in (make(gaussian(), seed=0),) * 1]
    again = make(gaussian(), seed=0)
    assert all(torch.equal(a, again(x)) for a in streams[0])
    assert not torch.equal(streams[0][0], streams[0][1])
    assert not torch.equal(streams[0][0], make(gaussian(), seed=1)(x))
    assert not torch.equal(make(gaussian())(x), make(gaussian())(x))


def test_a_seeded_call_does_not_advance_the_stream(x):
    plain, interrupted = (PURIFIERS["ScoreOpt-N"](gaussian(), seed=0) for _ in range(2))
    interrupted(x, seed=9)
    assert torch.equal(plain(x), interrupted(x))


@every_random_purifier
@pytest.mark.parametrize("how", [True, "per-image"])
def test_a_deterministic_purifier_is_one_function_everywhere(make, how, x):
    purifier = make(gaussian(), deterministic=how)
    want = purifier(x)
    assert torch.equal(purifier(x), want)
    assert torch.equal(make(gaussian(), deterministic=how)(x), want)
    assert torch.equal(purifier.with_gradient("bpda")(x), want)
    assert not torch.equal(make(gaussian(), deterministic=how, seed=1)(x), want)


TWINS = {
    "with_gradient": lambda m: m.with_gradient("bpda"),
    "surrogate": lambda m: m.surrogate(),
    "replace": lambda m: m.replace(lr=0.03),
    "deepcopy": copy.deepcopy,
}
every_twin = pytest.mark.parametrize("twin", TWINS.values(), ids=TWINS.keys())


def seeded(seed):
    return DefendedModel(smooth_classifier(), PURIFIERS["ScoreOpt-N"](gaussian(), seed=seed))


def first_noise(model, x):
    """What tells one stream from another: a one-shot image under the seed of its next call."""
    seed = model.purifier._next_seed()
    return OneShot(gaussian(), sigma=0.3)(x, seed=seed)


@every_twin
@pytest.mark.parametrize("seed", [0, None])
def test_a_twin_draws_noise_of_its_own(twin, seed, x):
    model = seeded(seed)
    models = [twin(model) for _ in range(1 if twin is copy.deepcopy and seed == 0 else 3)]
    noises = [first_noise(m, x) for m in (model, *models)]
    for i, a in enumerate(noises):
        for b in noises[:i]:
            assert (a - b).abs().max() > 1e-3


@every_twin
def test_a_twin_leaves_its_parent_alone(twin, x):
    plain, asked = seeded(0), seeded(0)
    plain(x), asked(x)
    twin(asked)(x)
    assert torch.equal(plain(x), asked(x))


def test_a_deep_copy_leaves_its_parents_twins_alone_too(x):
    plain, copied = seeded(0), seeded(0)
    copy.deepcopy(copied)
    assert plain.with_gradient("bpda").purifier.seed == copied.with_gradient("bpda").purifier.seed
    assert torch.equal(plain(x), copied(x))


def test_deep_copies_are_alike_where_their_parent_has_not_moved(x):
    """They may not count, which would change the parent, and draw nothing that no seed decides."""
    model = seeded(0)
    seeds = []
    for move in (lambda: None, lambda: model(x), model.surrogate):
        move()
        first, again = copy.deepcopy(model), copy.deepcopy(model)
        assert torch.equal(first_noise(first, x), first_noise(again, x))
        seeds.append(first.purifier.seed)
    assert len({*seeds, copy.deepcopy(first).purifier.seed}) == 4


def test_a_twin_of_a_given_seed_counts_for_nothing():
    """An evaluation seeds its own of a user's model, whose next ones stay what they were."""
    plain, asked = seeded(0), seeded(0)
    asked.replace(seed=5)
    assert plain.surrogate().purifier.seed == asked.surrogate().purifier.seed


@every_twin
def test_a_seeded_programs_twins_are_repeatable_and_say_their_seed(twin, x):
    first, again = twin(seeded(0)), twin(seeded(0))
    assert torch.equal(first(x), again(x))
    assert first.purifier.seed not in (None, 0)
    started = twin(seeded(0)).replace(seed=first.purifier.seed)
    assert torch.equal(twin(seeded(0))(x), started(x))


def test_replace_seed_starts_a_stream_at_a_known_place(x):
    """So that a runner can seed a cell through an attack library, which passes no seed."""
    models = seeded(None).replace(seed=5), seeded(7).replace(seed=5), seeded(5)
    calls = [[model(x) for _ in range(2)] for model in models]
    for others in calls[1:]:
        assert all(torch.equal(a, b) for a, b in zip(calls[0], others))
    assert not torch.equal(*calls[0])


def test_a_deterministic_twin_is_the_same_function(x):
    purifier = PURIFIERS["ScoreOpt-N"](gaussian(), deterministic=True)
    for twin in (
        purifier.with_gradient("bpda"),
        copy.deepcopy(purifier),
        purifier.replace(lr=0.02),
    ):
        assert torch.equal(twin(x), purifier(x))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_it_can_be_copied_and_pickled(duplicate, classifier, x):
    purifier = PURIFIERS["ScoreOpt-N"](bent(), seed=0)
    model = EOT(DefendedModel(classifier, purifier), 2)
    twin = duplicate(model)
    assert torch.equal(purifier(x, seed=1), twin.model.purifier(x, seed=1))
    with torch.no_grad():
        twin.model.purifier.denoiser.net.conv.weight.zero_()
        twin.model.classifier[1].weight.zero_()
    assert purifier.denoiser.net.conv.weight.abs().min() > 0
    assert classifier[1].weight.abs().min() > 0


def test_a_pickle_goes_on_in_the_stream_where_it_was(x):
    purifier = PURIFIERS["ScoreOpt-N"](bent(), seed=0)
    purifier(x)
    restored = pickle.loads(pickle.dumps(purifier))
    assert torch.equal(purifier(x), restored(x))


@every_purifier
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_torchs_default_dtype(make, dtype, x):
    purifier, x = make(bent(dtype)), x.to(dtype)
    for mode in purifier.modes:
        found = []
        for default in (torch.float32, torch.float64):
            leaf = x.clone().requires_grad_()
            with default_dtype(default):
                y = purifier.replace(gradient=mode)(leaf, seed=3)
                found.append((y.detach(), *torch.autograd.grad(y.sum(), leaf)))
        assert [t.dtype for t in found[1]] == [dtype, dtype]
        assert all(torch.equal(a, b) for a, b in zip(*found))


@every_purifier
def test_single_precision(make, x):
    double = make(bent(torch.float64))(x, seed=3)
    single = make(bent(torch.float32))(x.float(), seed=3)
    assert single.dtype == torch.float32
    # Adam divides by the gradient's size: of normal gradients, one in 500 is so small that its
    # float32 rounding moves the step by more than this, and 1 % are allowed
    assert ((single - double).abs() < 1e-4).float().mean() > 0.99


@pytest.mark.parametrize("sigma", [0.3, (0.2, 0.4)])
def test_single_precision_without_adam(sigma, x):
    settings = {"steps": 3, "lr": 0.01, "sigma": sigma, "optimizer": "sgd"}
    double = ScoreOpt(bent(torch.float64), **settings)(x, seed=3)
    single = ScoreOpt(bent(torch.float32), **settings)(x.float(), seed=3)
    torch.testing.assert_close(
        single.double(), double, rtol=0, atol=rounding(torch.float32, 32 * 3, 2)
    )


@pytest.mark.cuda
@every_purifier
def test_the_device(make, x):
    on_cpu = make(bent())(x, seed=3)
    on_gpu = make(bent()).cuda()(x.cuda(), seed=3)
    assert on_gpu.is_cuda
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=0, atol=TOLERANCE)


def test_seeds_of_every_size_are_taken():
    purifier, x = PURIFIERS["one-shot"](gaussian()), mid_images(1)
    results = [purifier(x, seed=seed) for seed in (0, 1, 2**63, 2**64 - 1)]
    assert len({r.sum().item() for r in results}) == 4
