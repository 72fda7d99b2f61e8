"""A purifier of a user's own, of many noise levels and so without a single one to call sigma."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from tolerances import rounding
from toys import gaussian, mid_images, smooth_classifier

from scoreopt_defense import DefendedModel, OneShot
from scoreopt_defense._checks import check_sigma
from scoreopt_defense.gradients import BPDA, GRADIENTS, Gradient, as_it_is
from scoreopt_defense.noise import Noise
from scoreopt_defense.purifiers import Purifier, PurifierSettings


@dataclass(frozen=True, kw_only=True)
class LadderSettings(PurifierSettings):
    gradient: Gradient = BPDA()
    levels: tuple[float, ...] = (0.4, 0.2)

    def __post_init__(self):
        super().__post_init__()
        for level in self.levels:
            check_sigma(level)


class Ladder(Purifier):
    """Noise and denoise, level by level."""

    Settings: ClassVar = LadderSettings

    def purify(self, x_a, noise, run=as_it_is):
        denoise, x = run(self.denoiser), x_a
        for i, level in enumerate(self.levels):
            sigma = noise.level((level, level), i, x)
            x = denoise(x + sigma * noise.eps_1(i, x), sigma)
        return x


def test_it_has_all_that_purifiers_have():
    ladder, x = Ladder(gaussian(), levels=(0.4, 0.2), seed=3, max_batch=3), mid_images()
    first = OneShot(gaussian(), sigma=0.4)(x, seed=1)
    assert torch.equal(ladder.replace(levels=(0.4,))(x, seed=1), first)
    assert ladder(x, samples=2).shape == (8, 3, 8, 8)
    assert torch.equal(ladder(x, seed=1), ladder.replace(max_batch=None)(x, seed=1))
    assert "levels=(0.4, 0.2)" in repr(ladder)
    assert ladder.settings.as_dict()["levels"] == [0.4, 0.2]
    with pytest.raises(AttributeError, match="levels of a Ladder cannot be changed"):
        ladder.levels = (0.1,)
    with pytest.raises(ValueError, match="sigma must satisfy"):
        ladder.replace(levels=(-1.0,))


def test_its_exact_gradient_is_known_and_it_has_no_one_shot_surrogate():
    x = mid_images().requires_grad_()
    shrinks = 0.25 / (0.25 + 0.16) * 0.25 / (0.25 + 0.04)  # the Gaussian denoiser's slopes
    exact = Ladder(gaussian(), gradient="exact")
    purified = exact(x, seed=1)
    (found,) = torch.autograd.grad(purified.sum(), x)
    expected = shrinks * ((purified > 0) & (purified < 1)).to(x)  # nothing passes a clamp
    torch.testing.assert_close(found, expected, rtol=0, atol=rounding(torch.float64, 32))
    assert exact.modes == tuple(name for name in GRADIENTS if name not in ("one-shot", "none"))
    refused = r"'one-shot' needs a noise level sigma, and Ladder has none: .*\['bpda', 'exact'"
    for ask in (Ladder(gaussian()).with_gradient, lambda mode: Ladder(gaussian(), gradient=mode)):
        with pytest.raises(ValueError, match=refused):
            ask("one-shot")
    with pytest.raises(NotImplementedError, match="no noise level sigma"):
        exact.one_shot(x, Noise.of_batch(0, len(x)))
    with pytest.raises(AttributeError, match="sigma"):
        DefendedModel(smooth_classifier(), exact).surrogate()


def test_a_mode_of_a_users_own_is_taken_by_every_purifier():
    class Twice:
        def differentiate(self, purification, x_a):
            return purification(x_a), lambda grad: 2 * grad

    x = mid_images().requires_grad_()
    Ladder(gaussian(), gradient=Twice())(x).sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, 2.0))
