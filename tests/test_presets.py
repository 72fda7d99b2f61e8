"""Table 10 of the paper."""

from __future__ import annotations

import pytest
import torch
from toys import gaussian, mid_images

from scoreopt_defense import ScoreOpt
from scoreopt_defense.gradients import BPDA
from scoreopt_defense.objectives import Diff, NoisePrediction
from scoreopt_defense.optimizers import Adam
from scoreopt_defense.presets import PRESETS, preset

# Zhang et al., NeurIPS 2023, Table 10, row by row: method, learning rate, steps, noise level.
TABLE_10 = {
    "cifar10/bpda-eot-linf/O": ("O", 0.1, 5, (0.40, 0.60)),
    "cifar10/bpda-eot-linf/N": ("N", 0.1, 5, (0.50, 0.50)),
    "cifar10/pgd-eot-linf/N": ("N", 0.1, 20, (0.25, 0.25)),
    "cifar10/pgd-eot-l2/N": ("N", 0.1, 20, (0.25, 0.25)),
    "cifar10/transfer-pgd-linf/O": ("O", 0.01, 20, (0.15, 0.35)),
    "cifar10/transfer-pgd-linf/N": ("N", 0.1, 5, (0.25, 0.25)),
    "cifar10/transfer-pgd-l2/O": ("O", 0.01, 20, (0.15, 0.35)),
    "cifar10/transfer-pgd-l2/N": ("N", 0.1, 5, (0.25, 0.25)),
    "cifar100/bpda-eot-linf/O": ("O", 0.1, 3, (0.15, 0.35)),
    "cifar100/bpda-eot-linf/N": ("N", 0.1, 3, (0.25, 0.25)),
}


def test_all_rows_are_there_and_no_other_of_the_papers_data_sets():
    of_the_paper = {name for name in PRESETS if name.startswith(("cifar10/", "cifar100/"))}
    assert of_the_paper == set(TABLE_10)


@pytest.mark.parametrize("name", TABLE_10)
def test_each_row_is_the_papers_and_runs_as_spelled_out(name):
    variant, lr, steps, sigma = TABLE_10[name]
    purifier = ScoreOpt.from_preset(name, gaussian())
    assert (purifier.variant, purifier.lr, purifier.steps, purifier.sigma) == TABLE_10[name]
    # Section 4 and the authors' code: Adam, Diff for O, the noise loss for N, no outer loop
    assert (purifier.optimizer, purifier.outer_steps, purifier.anchor) == (Adam(), 1, "moving")
    assert purifier.loss == {"O": Diff(), "N": NoisePrediction()}[variant]
    spelled_out = ScoreOpt(gaussian(), variant=variant, lr=lr, steps=steps, sigma=sigma)
    x = mid_images(2, dtype=torch.float32)
    assert torch.equal(purifier(x, seed=1), spelled_out(x, seed=1))


def test_lm_is_scoreopt_o_but_for_each_images_own_noise_level():
    published = ScoreOpt.from_preset("rdc/lm", gaussian())
    assert (
        published.settings
        == ScoreOpt(
            gaussian(),
            variant="O",
            loss="diff",
            lr=0.1,
            steps=5,
            sigma=(0.4, 0.6),
            sigma_per="image",
        ).settings
    )
    levels = []
    published(mid_images(), callback=lambda step: levels.append(step["sigma"].flatten()))
    assert len(torch.cat(levels).unique()) == 5 * len(mid_images())
    assert preset("cifar10-tiny/lm") == preset("cifar10-tiny/O") | {"sigma_per": "image"}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_moves_images_and_stays_in_range(name):
    x = mid_images(2, dtype=torch.float32)
    purified = ScoreOpt.from_preset(name, gaussian())(x)
    assert purified.shape == x.shape
    assert purified.min() >= 0
    assert purified.max() <= 1
    assert (purified - x).abs().max() > 0.01


def test_overrides_replace_the_presets_values():
    purifier = ScoreOpt.from_preset(
        "cifar10/bpda-eot-linf/O", gaussian(), steps=2, gradient="bpda", variant="N"
    )
    assert (purifier.steps, purifier.gradient, purifier.variant) == (2, BPDA(), "N")
    assert (purifier.lr, purifier.loss) == (0.1, NoisePrediction())


def test_a_preset_is_a_copy():
    preset("mnist-tiny/N")["steps"] = 99
    assert preset("mnist-tiny/N")["steps"] != 99
