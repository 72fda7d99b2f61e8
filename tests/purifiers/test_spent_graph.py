"""What is left of a step's graph, once its gradient is taken."""

from __future__ import annotations

import weakref

import pytest
import torch
from toys import mid_images

from scoreopt_defense import ScoreOpt
from scoreopt_defense.denoisers import Denoiser


class _Half(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x / 2

    @staticmethod
    def backward(ctx, grad):
        return grad / 2


class _Halving(Denoiser):
    """Sees at each step that the one before stands, without its tensors, and no earlier one."""

    def __init__(self):
        super().__init__(sigma_range=(0.01, 1))
        self.nodes = []

    def denoise(self, x_t, sigma):
        alive = [node() for node in self.nodes]
        assert [node is not None for node in alive] == [
            place == len(alive) - 1 for place in range(len(alive))
        ]
        if alive:
            with pytest.raises(RuntimeError, match="already been freed"):
                alive[-1].saved_tensors  # noqa: B018
        del alive
        denoised = _Half.apply(x_t)
        if denoised.requires_grad:
            self.nodes.append(weakref.ref(denoised.grad_fn))
        return denoised


@pytest.mark.parametrize("variant", ["O", "N"])
def test_a_spent_graph_stays_until_the_next_stands(variant):
    """Freed at once, it had the C library give back the memory that the next step takes again."""
    denoiser = _Halving()
    ScoreOpt(denoiser, variant=variant, sigma=0.25, lr=0.1, steps=4)(mid_images())
    assert len(denoiser.nodes) == 4
    assert not any(node() for node in denoiser.nodes)
