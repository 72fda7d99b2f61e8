"""What makes purification cheaper gives the plain path's result, or what it says it gives."""

from __future__ import annotations

import itertools
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from exact_gradients import assert_same_gradient, gradient_of, label_of
from purifiers_table import BASELINES
from tolerances import adam_rounding, half_rounding, rounding
from torch import Tensor, nn
from torch.torch_version import TorchVersion
from toys import BentNet, bent, gaussian, mid_images, smooth_classifier

from scoreopt_defense import EOT, DefendedModel, OneShot, PurifierPreprocessor, ScoreOpt
from scoreopt_defense.denoisers import EDMDenoiser
from scoreopt_defense.noise import Noise
from scoreopt_defense.objectives import Diff
from scoreopt_defense.optimizers import SGD
from scoreopt_defense.purifiers import batching
from scoreopt_defense.purifiers.descent import Descent
from scoreopt_defense.steps.compilation import OLDEST

SETTINGS = [
    {"variant": "O", "loss": "diff", "optimizer": "adam", "sigma": (0.2, 0.4)},
    {"variant": "O", "loss": "sr", "optimizer": "sgd", "sigma": 0.3},
    {"variant": "N", "loss": "noise", "optimizer": "adam", "sigma": 0.3},
    {"variant": "N", "loss": "mse", "optimizer": "sgd", "sigma": (0.2, 0.4), "outer_steps": 2},
    {"variant": "N", "loss": "noise", "optimizer": "adam", "sigma": 0.3, "jacobian": False},
]


def scoreopt(**settings: Any) -> ScoreOpt:
    return ScoreOpt(bent(), **({"steps": 4, "lr": 0.02} | settings))


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Compiled graphs so far; what compiles them is Dynamo without a code generator."""
    if torch.__version__ < OLDEST:
        pytest.skip(f"compile= needs torch {OLDEST}")
    torch._dynamo.reset()
    made: list[int] = []

    def counting(graph: Any, inputs: list[Any]) -> Any:
        made.append(len(inputs))
        return graph.forward

    compile_with = partial(torch.compile, backend=counting)
    monkeypatch.setattr(torch, "compile", lambda step, mode, **how: compile_with(step, **how))
    yield made
    torch._dynamo.reset()


@pytest.mark.parametrize("settings", SETTINGS, ids=label_of)
def test_compiled_steps_have_no_break_and_the_same_result(
    settings: dict[str, Any], graphs: list[int]
) -> None:
    plain, x = scoreopt(**settings), mid_images()
    found = plain.replace(compile=True)(x, seed=1)  # fullgraph=True: a break would raise
    tolerance = rounding(torch.float64, 64 * 8, 768)  # 8 steps of 64 roundings, 768 pixels
    torch.testing.assert_close(found, plain(x, seed=1), rtol=0, atol=tolerance)
    assert len(graphs) == 2 + (settings["variant"] == "N")  # gradient, update, denoising


def test_no_step_and_no_batch_size_compiles_anything_again(graphs: list[int]) -> None:
    purifier = scoreopt(variant="N", sigma=0.3, compile=True, steps=6)
    purifier(mid_images(4), seed=1)
    first = len(graphs)
    for count in (2, 3, 5, 15):
        purifier(mid_images(count), seed=1)
    purifier.replace()(mid_images(6), seed=1)
    assert len(graphs) == first == 3


@pytest.mark.parametrize("mode", ["one-shot", "bpda", "exact", "smoothed"])
def test_a_compiled_purifier_has_every_gradient_mode(mode: str, graphs: list[int]) -> None:
    plain, x = scoreopt(variant="N", sigma=0.3, gradient=mode), mid_images().requires_grad_()
    found = gradient_of(plain.replace(compile=True)(x, seed=1), x)
    assert graphs
    assert_same_gradient(found, gradient_of(plain(x, seed=1), x))


def test_recorded_whole_by_autograd_a_compiled_step_is_the_plain_one(graphs: list[int]) -> None:
    purifier, x = scoreopt(variant="O", sigma=0.3, compile=True), mid_images().requires_grad_()
    purified = purifier.purify(x, Noise.of_batch(1, len(x)))
    plain = purifier.replace(compile=False).purify(x, Noise.of_batch(1, len(x)))
    assert torch.equal(gradient_of(purified, x), gradient_of(plain, x))
    assert not graphs


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("mode", ["one-shot", "smoothed"])
@pytest.mark.parametrize("max_batch", [None, 2])
def test_a_compiled_model_has_its_purifier_left_out(
    mode: str, inside: bool, max_batch: int | None, graphs: list[int]
) -> None:
    purifier = scoreopt(
        variant="N", sigma=0.3, gradient=mode, compile=inside, seed=0, max_batch=max_batch
    )
    model, x = DefendedModel(smooth_classifier(), purifier), mid_images().requires_grad_()
    whole = torch.compile(EOT(model, 2), mode=None)
    plain = EOT(model.replace(compile=False, seed=0), 2)
    for _ in range(2):  # a graph would draw the same noise again
        assert_same_gradient(gradient_of(whole(x), x), gradient_of(plain(x), x))
    assert len(graphs) > (3 if inside else 0)  # gradient, update, denoising; and the classifier


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.slow
def test_generated_code_has_the_same_result() -> None:
    denoiser = EDMDenoiser(BentNet().eval(), sigma_range=(0.01, 2.0))
    plain = ScoreOpt(denoiser, variant="N", sigma=0.3, steps=4, lr=0.02, optimizer="sgd")
    x = mid_images(dtype=torch.float32)
    found = plain.replace(compile=True)(x, seed=1)
    tolerance = rounding(torch.float32, 64 * 4, 1 / 0.3**2)  # the noise loss divides by its square
    torch.testing.assert_close(found, plain(x, seed=1), rtol=0, atol=tolerance)


# Without the Jacobian


@pytest.mark.parametrize("variant", ["O", "N"])
@pytest.mark.parametrize("loss", ["diff", "noise"])
def test_without_its_jacobian_a_step_is_toward_the_denoised_image(variant: str, loss: str) -> None:
    sigma, lr, x = 0.3, 0.02, mid_images()
    purifier = scoreopt(
        variant=variant, loss=loss, steps=1, lr=lr, sigma=sigma, optimizer="sgd", jacobian=False
    )
    x_a = 2 * x - 1
    eps = Noise.of_batch(1, len(x)).eps_1(0, x_a)
    x_t = x_a + sigma * eps
    scale = 2 / sigma**2 if loss == "noise" else 2
    step = lr * scale * (x_a - purifier.denoiser(x_t, sigma))
    expected = x_a - step if variant == "O" else purifier.denoiser(x_t - step, sigma)
    found = 2 * purifier(x, seed=1) - 1
    torch.testing.assert_close(found, expected, rtol=0, atol=rounding(torch.float64, 64, scale))


class _Recording(nn.Module):
    """Counts its calls, and those that autograd records."""

    img_channels = 3

    def __init__(self) -> None:
        super().__init__()
        self.net = BentNet().to(torch.float64)
        self.calls = self.recorded = 0

    def forward(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        denoised = self.net(x_t, sigma)
        self.calls += 1
        self.recorded += denoised.requires_grad
        return denoised


@pytest.mark.parametrize("variant", ["O", "N"])
def test_without_its_jacobian_nothing_is_recorded(variant: str) -> None:
    net = _Recording()
    purifier = ScoreOpt(EDMDenoiser(net, sigma_range=(0.01, 2.0)), variant=variant, steps=3)
    purifier(mid_images(), seed=1)
    assert net.recorded == 3
    net.recorded = 0
    purifier.replace(jacobian=False)(mid_images(), seed=1)
    assert net.recorded == 0


@pytest.mark.parametrize("variant", ["O", "N"])
def test_exact_gradient_without_the_jacobian_still_goes_through_the_denoiser(variant: str) -> None:
    purifier = scoreopt(variant=variant, steps=3, sigma=0.3, gradient="exact", jacobian=False)
    x = mid_images(2, size=3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: purifier(x, seed=1), x)


@pytest.mark.parametrize("settings", [{"loss": "sr"}, {"loss": "diff", "anchor": "fixed"}])
def test_a_loss_without_a_gradient_of_its_own_needs_the_jacobian(settings: dict) -> None:
    with pytest.raises(ValueError, match="jacobian=False leaves"):
        scoreopt(variant="N", jacobian=False, **settings)


def noting_batches() -> tuple[EDMDenoiser, list[int]]:
    """A denoiser, and how many images each of its calls is of."""
    sizes: list[int] = []

    class Net(BentNet):
        def forward(self, x_t: Tensor, sigma: Tensor) -> Tensor:
            sizes.append(len(x_t))
            return super().forward(x_t, sigma)

    return EDMDenoiser(Net().to(torch.float64), sigma_range=(0.01, 2.0)), sizes


# Early stopping


def reference(purifier: ScoreOpt, x: Tensor, tol: float) -> tuple[Tensor, list[int]]:
    """Each image alone, for as many steps as its own losses say."""
    results, taken = [], []
    for row in range(len(x)):
        losses: list[float] = []

        def note(step: dict[str, Any], row: int = row, losses: list[float] = losses) -> None:
            losses.append(step["loss"][row].item())

        purifier(x, seed=1, callback=note)
        ratios = [b < (1 - tol) * a for a, b in itertools.pairwise(losses)]
        steps = len(losses) if all(ratios) else ratios.index(False) + 1
        taken.append(steps)
        results.append(purifier.replace(steps=steps)(x, seed=1)[row])
    return torch.stack(results), taken


@pytest.mark.parametrize("gradient", ["bpda", "exact"])
def test_an_image_stops_where_its_loss_has_settled(gradient: str) -> None:
    x = torch.cat([mid_images(3), torch.rand(3, 3, 8, 8, dtype=torch.float64)])
    plain = scoreopt(variant="N", sigma=0.3, steps=8, lr=0.1, gradient=gradient)
    tol = 0.15
    expected, taken = reference(plain, x, tol)
    assert len(set(taken)) > 1  # they do stop at different steps
    found = plain.replace(tol=tol)(x.requires_grad_(), seed=1)
    torch.testing.assert_close(found, expected, rtol=0, atol=rounding(torch.float64, 64 * 8, 768))
    if gradient == "exact":
        rows = torch.stack([
            plain.replace(steps=steps)(x, seed=1)[row] for row, steps in enumerate(taken)
        ])  # fmt: skip
        assert_same_gradient(gradient_of(found, x), gradient_of(rows, x))


def test_an_image_that_has_stopped_costs_nothing() -> None:
    denoiser, rows = noting_batches()
    purifier = ScoreOpt(denoiser, variant="N", sigma=0.3, steps=8, lr=0.1, tol=0.99)
    purifier(mid_images(), seed=1)
    assert rows == [4, 4, 4]  # a loss is known, the next has not fallen by 99 %; the last denoising


def test_a_step_changes_nothing_of_the_state_that_it_is_given() -> None:
    x, sigma = 2 * mid_images() - 1, torch.full((4, 1, 1, 1), 0.3, dtype=torch.float64)
    descent = Descent(bent(), Diff(), SGD(), 0.1, tol=0.99)
    states = [descent.start(x)]
    for _ in range(3):
        states.append(descent.gradient(x, x, x, None, sigma, states[-1])[1])
    assert [len(state.rows) for state in states] == [4, 4, 0, 0]
    for before, after in itertools.pairwise(states):
        again = descent.gradient(x, x, x, None, sigma, before)[1]
        assert torch.equal(again.rows, after.rows)
        assert torch.equal(again.loss, after.loss)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"variant": "O", "tol": 0.1}, "tol is for variant 'N'"),
        ({"tol": 1.0}, "tol must be a share below 1, got 1.0"),
        ({"tol": -1}, "tol must be a finite number at least 0"),
        ({"compile": "fast"}, "compile must be one of"),
        ({"jacobian": 1}, "jacobian must be True or False"),
        ({"autocast": "float8"}, "autocast must be one of"),
        ({"channels_last": None}, "channels_last must be True or False"),
        ({"max_batch": "most"}, "max_batch must be a whole number"),
    ],
)
def test_what_cannot_be_set_is_refused(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        scoreopt(**settings)


def test_a_torch_that_cannot_compile_a_step_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.6.1+cpu"))
    with pytest.raises(ValueError, match=r"compile needs torch 2\.7 or later, and this is 2\.6\.1"):
        scoreopt(compile=True)
    scoreopt(compile=False)


# Batches, precision and memory format


def test_a_batch_chosen_by_the_memory_gives_the_same_result(monkeypatch: Any) -> None:
    denoiser, sizes = noting_batches()
    plain = ScoreOpt(denoiser, variant="O", sigma=0.3, steps=2, lr=0.02)
    x, auto = mid_images(6), plain.replace(max_batch="auto")
    expected = plain(x, seed=1)
    assert torch.equal(auto(x, seed=1), expected)  # everything fits
    a_record = auto._recorded(x[:1])
    # two tensors of 3 x 8 x 8 float64 at least (tanh, and what the convolution saw)
    assert a_record >= 2 * 3 * 8 * 8 * 8
    monkeypatch.setattr(batching, "free_bytes", lambda device: 2 * 2 * batching._RECORDS * a_record)
    sizes.clear()
    found = auto(x, seed=1)
    assert set(sizes) == {2}
    torch.testing.assert_close(found, expected, rtol=0, atol=rounding(torch.float64, 64 * 2, 768))
    model = DefendedModel(smooth_classifier(), auto)
    assert model(x, seed=1).shape == (6, 4)


def test_a_twin_of_another_precision_counts_its_own_memory() -> None:
    x = mid_images(1, dtype=torch.float32)
    whole = ScoreOpt(bent(torch.float32), sigma=0.3, max_batch="auto")
    of_whole, of_half = whole._recorded(x), whole.replace(autocast="bfloat16")._recorded(x)
    assert of_half != of_whole
    assert of_half == ScoreOpt(bent(torch.float32), sigma=0.3, autocast="bfloat16")._recorded(x)


def _printed(program: str, *arguments: str) -> int:
    """The number that it prints in a process whose allocator is glibc's own."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "LD_PRELOAD"))}
    command = [sys.executable, "-c", program, *arguments]
    return int(subprocess.run(command, capture_output=True, check=True, text=True, env=own).stdout)


_FAULTS = """
import resource, sys
import torch
import scoreopt_defense.evaluation  # as commands and workers have, since the heap is as it was left
from scoreopt_defense import _memory
assert sys.argv[1] == "given back" or _memory.keep_freed_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for time in range(20):
    torch.ones(9 * 2**20)  # 36 MiB, freed at once
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="under glibc alone")
def test_freed_memory_that_is_kept_is_not_brought_in_again() -> None:
    """Each page of a piece that was given back is a fault when it is written again.

    What is kept is brought in more than once all the same, where something small has come to lie
    behind it: twice or three times in 20, as ASLR has it.
    """
    faults = {how: _printed(_FAULTS, how) for how in ("kept", "given back")}
    assert faults["kept"] < faults["given back"] / 4


@pytest.mark.parametrize("name", BASELINES)
def test_every_purifier_takes_what_fits(name: str) -> None:
    purifier, x = BASELINES[name](bent(), seed=0, max_batch="auto"), mid_images(2, size=32)
    assert torch.equal(purifier(x, seed=1), purifier.replace(max_batch=None)(x, seed=1))


def test_arts_preprocessor_leaves_the_choice_to_the_purifier() -> None:
    preprocessor = PurifierPreprocessor(OneShot(gaussian(), sigma=0.3, seed=0, max_batch="auto"))
    found, _ = preprocessor.forward(mid_images())
    assert found.shape == (4, 3, 8, 8)


@pytest.mark.parametrize("variant", ["O", "N"])
def test_channels_last_gives_the_same_result(variant: str) -> None:
    plain, x = scoreopt(variant=variant, sigma=0.3), mid_images()
    seen: list[bool] = []

    def note(step: dict[str, Any]) -> None:
        seen.append(step["x"].is_contiguous(memory_format=torch.channels_last))

    found = plain.replace(channels_last=True)(x, seed=1, callback=note)
    tolerance = adam_rounding(torch.float64, lr=0.02, steps=4, pixels=x.numel())
    torch.testing.assert_close(found, plain(x, seed=1), rtol=0, atol=tolerance)
    assert seen[0]


@pytest.mark.parametrize("mode", ["one-shot", "exact"])
def test_autocast_is_the_callers_and_images_keep_their_type(mode: str) -> None:
    denoiser = EDMDenoiser(BentNet().eval(), sigma_range=(0.01, 2.0))
    plain = OneShot(denoiser, sigma=0.3, gradient=mode)
    x = mid_images(dtype=torch.float32).requires_grad_()
    found = plain.replace(autocast="bfloat16")(x, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        expected = plain(x, seed=1)
    assert torch.equal(found, expected)
    assert found.dtype == torch.float32
    assert torch.equal(gradient_of(found, x), gradient_of(expected, x))
    far = (found - plain(x, seed=1)).abs().max()
    assert 0 < far < half_rounding(torch.bfloat16, denoiser, 4)


_GIVEN_BACK = """
import psutil
from scoreopt_defense import _memory
_memory.keep_freed_memory()
pieces = [bytearray(b"a" * 100_000) for _ in range(3_000)]
del pieces[1::2], pieces[:-1]  # one small piece is left behind 300 MB that are free
before = psutil.Process().memory_info().rss
_memory.give_back_freed_memory()
print(before - psutil.Process().memory_info().rss)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="under glibc alone")
def test_freed_memory_is_given_back_on_request() -> None:
    assert _printed(_GIVEN_BACK) > 200e6
