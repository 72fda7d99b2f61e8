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
from scoreopt_defense.gradients import as_it_is
from scoreopt_defense.purifiers import Purifier, PurifierSettings


@dataclass(frozen=True, kw_only=True)
class LadderSettings(PurifierSettings):
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
    one_shot = Ladder(gaussian())
    with pytest.raises(NotImplementedError, match=r"no noise level sigma.*'exact' or 'bpda'"):
        one_shot(x).sum().backward()
    with pytest.raises(AttributeError, match="sigma"):
        DefendedModel(smooth_classifier(), one_shot).surrogate()
